//! Concurrent changes of the same key: one succeeds, no caller gets an error, and a revoked key stays
//! revoked.

use std::path::PathBuf;
use std::time::Duration;

use portcullis::key_manager::{Act, KeyManagerError, KeyTable, Rotation, write_kek};
use portcullis::keys::rotation::{Change, State, signer, state};
use portcullis::keys::{Alg, Keychain, Ring};
use portcullis::secret::Entropy;

use crate::fixtures::server::{count, execute};
use crate::fixtures::{Db, apply, on_both_databases};
use crate::nodes::{Node, World, all_at_once};

const DAY: Duration = Duration::from_secs(86_400);
const ES256: Ring = Ring::token(Alg::ES256);

/// Creates a world with only the rings whose keys are fast to generate.
async fn world(db: Db) -> World {
    World::new(db, |config| {
        config.keys.algorithms = vec!["ES256".to_owned()]
    })
    .await
}

fn act(world: &World) -> Act {
    let now = world.now();
    Act {
        actor: portcullis::audit::Actor::Operator,
        now,
    }
}

fn events(world: &World, name: &str) -> i64 {
    let query = format!("SELECT count(*) AS n FROM audit_events WHERE name = '{name}'");
    count(&world.config, &query)
}

fn records(world: &World) -> i64 {
    count(
        &world.config,
        "SELECT count(*) AS n FROM revocations WHERE kind = 'K'",
    )
}

/// Starts three nodes on PostgreSQL. A SQLite database has one, and commands beside it.
async fn nodes(world: &World, db: Db) -> Vec<Node> {
    let mut nodes = Vec::new();
    for _ in 0..if db == Db::Postgres { 3 } else { 1 } {
        nodes.push(world.node(0).await);
    }
    nodes
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn concurrent_rotations_create_one_key_version_each(#[case] db: Db) {
    let world = world(db).await;
    let nodes = nodes(&world, db).await;
    for round in 1..=100 {
        world.pass(DAY * 90);
        all_at_once(&nodes).await;
        for ring in [ES256, Ring::FEED] {
            let rows = nodes[0]
                .app
                .key_manager
                .table()
                .read(world.now())
                .await
                .unwrap()
                .keys;
            let generations: Vec<i64> = ring.among(&rows).map(|key| key.generation).collect();
            let expected: Vec<i64> = (1..=round + 2).collect();
            let expected = &expected[expected.len() - generations.len()..];
            assert_eq!(generations, expected, "{ring}, round {round}");
        }
        if round % 10 == 0 {
            // Opening a hundred destroyed keys each time would take longer than the races.
            let old = format!("DELETE FROM signing_keys WHERE generation < {round}");
            execute(&world.config, &old);
        }
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn concurrent_key_revocations_write_one_record(#[case] db: Db) {
    let world = world(db).await;
    let node = world.node(0).await;
    for round in 1..=10 {
        let kid = node.app.keys().signer(ES256).unwrap().to_owned();
        let table = node.app.key_manager.table().clone();
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (table, kid, act) = (table.clone(), kid.clone(), act(&world));
                actix_web::rt::spawn(async move { table.revoke(&kid, "leaked", &act).await })
            })
            .collect();
        let mut winners = 0;
        for task in tasks {
            winners += usize::from(!task.await.unwrap().unwrap().is_empty());
        }
        assert_eq!(winners, 1);
        assert_eq!(
            (records(&world), events(&world, "key.revoked")),
            (round, round)
        );
        node.app.poll().await.unwrap();
        assert_ne!(node.app.keys().signer(ES256), Some(kid.as_str()));
        let view = node.app.keys();
        let shown = &view.published(portcullis::keys::Use::Token).bytes;
        assert!(!String::from_utf8_lossy(shown).contains(&kid));
        world.pass(Duration::from_secs(1));
    }
}

/// Returns the same table with the KEKs in another order: the first one seals.
fn with_new_kek(world: &World, node: &Node, round: usize) -> KeyTable {
    let old = world.config.keys.kek.clone();
    let path = kek(round);
    let _ = std::fs::remove_file(&path);
    write_kek(&path, &Entropy::seeded(500 + round as u64)).unwrap();
    let mut config = world.config.clone();
    config.keys.kek = [vec![format!("file:{}", path.display())], old].concat();
    let keychain = Keychain::read(&config.keys.kek).unwrap();
    KeyTable::new(
        &config,
        node.app.issuer.as_str(),
        node.app.store.clone(),
        keychain,
        world.source.clone(),
        Entropy::seeded(900 + round as u64),
    )
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn key_manager_rewrap_and_revocation_race_on_one_row(#[case] db: Db) {
    let world = world(db).await;
    let node = world.node(0).await;
    for round in 0..20 {
        // Each operation has something to change: a next key is missing, a private key is due for deletion,
        // the KEK differs.
        world.pass(DAY * 90 + Duration::from_secs(2));
        let new = with_new_kek(&world, &node, round);
        new.replace_keychain(Keychain::read(&keks(&world, round)).unwrap(), world.now())
            .await
            .unwrap();
        let rows = new.read(world.now()).await.unwrap().keys;
        let kid = signer(ES256.among(&rows), world.now()).unwrap().kid.clone();
        let (key_manager, rewrapper, revoker) = (new.clone(), new.clone(), new.clone());
        let act = act(&world);
        let (kept, rewrapped, revoked) = tokio::join!(
            async { key_manager.maintain(&act).await },
            async { rewrapper.rewrap(&act).await },
            async { revoker.revoke(&kid, "leaked", &act).await },
        );
        kept.unwrap();
        assert_eq!(rewrapped.unwrap().left, []);
        assert!(!revoked.unwrap().is_empty());
        let after = new.read(world.now()).await.unwrap();
        let row = after.keys.iter().find(|key| key.kid == kid).unwrap();
        assert_eq!(state(row, world.now()), State::Revoked);
        let opened = row.open(&new.keychain()).unwrap();
        assert!(
            opened.private.is_none(),
            "its private key is never restored"
        );
        assert!(after.blocked.contains(&kid));
        let next = signer(ES256.among(&after.keys), world.now()).unwrap();
        assert!(next.kid != kid && next.open(&new.keychain()).unwrap().private.is_some());
        new.rewrap(&act).await.unwrap();
        new.maintain(&act).await.unwrap();
    }
    assert_eq!(records(&world), 20);
}

/// Returns the file of a round's KEK.
fn kek(round: usize) -> PathBuf {
    let thread = std::thread::current().id();
    crate::fixtures::server::scratch().join(format!("kek-{thread:?}-{round}"))
}

/// Returns all KEKs so far, newest first.
fn keks(world: &World, round: usize) -> Vec<String> {
    let made = (0..=round)
        .rev()
        .map(|round| format!("file:{}", kek(round).display()));
    made.chain(world.config.keys.kek.clone()).collect()
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn concurrent_rotation_and_revocation_both_apply(#[case] db: Db) {
    let world = world(db).await;
    let node = world.node(0).await;
    let table = node.app.key_manager.table().clone();
    for _ in 0..10 {
        world.pass(DAY * 2);
        let rows = table.read(world.now()).await.unwrap().keys;
        let kid = signer(ES256.among(&rows), world.now()).unwrap().kid.clone();
        let act = act(&world);
        let (rotated, revoked, kept) = tokio::join!(
            table.rotate(ES256, Rotation::Scheduled, &act),
            table.revoke(&kid, "leaked", &act),
            table.maintain(&act),
        );
        rotated.unwrap();
        revoked.unwrap();
        kept.unwrap();
        let rows = table.read(world.now()).await.unwrap().keys;
        let ring: Vec<_> = ES256.among(&rows).cloned().collect();
        let signs = signer(&ring, world.now()).unwrap();
        assert_ne!(signs.kid, kid);
        let newest = ring.last().unwrap().generation;
        assert_eq!(
            i64::try_from(ring.len()).unwrap(),
            newest,
            "no version twice and none missing"
        );
        let schedule = *table.schedule();
        assert!(!Change::of(&ring, newest, schedule, world.now()).lacks_standby());
    }
    let unknown = table.revoke("unknown", "x", &act(&world)).await;
    assert!(matches!(unknown, Err(KeyManagerError::NoSuchKey(kid)) if kid == "unknown"));
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn recovery_renews_every_ring_and_revokes_every_key(#[case] db: Db) {
    let world = world(db).await;
    let node = world.node(0).await;
    let (table, act) = (node.app.key_manager.table().clone(), act(&world));
    let before = table.read(world.now()).await.unwrap();
    let token = node
        .app
        .keys()
        .sign(Alg::ES256, "at+jwt", &serde_json::json!({"a": 1}))
        .unwrap();
    assert!(node.app.keys().verify(&token, "at+jwt").is_some());
    let write = table.renewal("restored", &act).await.unwrap();
    let with = act.clone();
    node.app
        .store
        .transaction(move |tx| write.run(tx, &with))
        .await
        .unwrap();
    node.app.poll().await.unwrap();
    let after = table.read(world.now()).await.unwrap();
    assert_eq!(after.secrets.len(), before.secrets.len() + 1);
    for old in &before.keys {
        assert!(after.blocked.contains(&old.kid));
        let row = after.keys.iter().find(|key| key.kid == old.kid).unwrap();
        assert_eq!(state(row, world.now()), State::Revoked);
    }
    for ring in table.rings() {
        let fresh = node.app.keys().signer(*ring).unwrap().to_owned();
        assert!(before.keys.iter().all(|old| old.kid != fresh));
    }
    assert!(
        node.app.keys().verify(&token, "at+jwt").is_none(),
        "not even as a hint"
    );
}
