//! Faults of key rotation: a wrong KEK, a wrong clock, and an unreachable database.

use std::sync::atomic::Ordering;
use std::time::Duration;

use portcullis::app::{App, StartError};
use portcullis::key_manager::write_kek;
use portcullis::keys::rotation::{State, state};
use portcullis::keys::{Alg, KeyError, Ring, SigningKey};
use portcullis::secret::Entropy;
use portcullis::time::Clock;

use crate::fixtures::server::count;
use crate::fixtures::{Db, Server, apply, on_both_databases};
use crate::nodes::{Node, World, all_at_once};

const DAY: Duration = Duration::from_secs(86_400);
const ES256: Ring = Ring::token(Alg::ES256);

async fn rows(world: &World, node: &Node) -> Vec<SigningKey> {
    node.app
        .key_manager
        .table()
        .read(world.now())
        .await
        .unwrap()
        .keys
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn wrong_kek_fails_start_and_right_keks_can_be_swapped(#[case] db: Db) {
    let world = World::new(db, |_| {}).await;
    let path = crate::fixtures::server::scratch().join(format!("wrong-kek-{db:?}"));
    write_kek(&path, &Entropy::seeded(4_711)).unwrap();
    let mut config = world.config.clone();
    config.keys.kek = vec![format!("file:{}", path.display())];
    let before = count(&world.config, "SELECT count(*) AS n FROM signing_keys");
    let clock = Clock::Settable(world.clock.clone());
    let refused = App::start(config.clone(), clock, Entropy::seeded(1))
        .await
        .err()
        .unwrap();
    assert!(
        matches!(&refused, StartError::Configuration(why) if why.contains("not configured in `keys.kek`")),
        "{refused}"
    );
    assert_eq!(
        count(&world.config, "SELECT count(*) AS n FROM signing_keys"),
        before,
        "no key is made"
    );
    // In addition to the right KEK it is accepted. A running node refuses to lose the KEK that it needs.
    let node = world.node(0).await;
    let table = node.app.key_manager.table();
    let chain = |sources: &[String]| portcullis::keys::Keychain::read(sources).unwrap();
    let lost = table
        .replace_keychain(chain(&config.keys.kek), world.now())
        .await;
    assert!(lost.is_err());
    let both = [config.keys.kek.clone(), world.config.keys.kek.clone()].concat();
    table
        .replace_keychain(chain(&both), world.now())
        .await
        .unwrap();
    let act = portcullis::key_manager::Act {
        actor: portcullis::audit::Actor::Operator,
        now: world.now(),
    };
    let moved = table.rewrap(&act).await.unwrap();
    assert_eq!(
        (moved.moved.values().sum::<usize>(), moved.left),
        (7, vec![])
    );
    assert_eq!(
        table.rewrap(&act).await.unwrap().moved.len(),
        0,
        "a second run changes nothing"
    );
    // The old KEK can be removed now: grants, forms and tokens stay valid.
    let refresh = node.app.secret.refresh_token(
        &portcullis::id::GrantId::new(&Entropy::seeded(2), world.now()),
        1,
    );
    table
        .replace_keychain(chain(&config.keys.kek), world.now())
        .await
        .unwrap();
    node.app.refresh_key_view().await.unwrap();
    assert!(
        node.app
            .secret
            .read_refresh_token(refresh.expose())
            .is_some()
    );
    assert_eq!(node.app.key_metrics().kek_values.len(), 1);
    node.signs().await;
}

/// PostgreSQL only, because a SQLite database has no clock of its own.
#[actix_web::test]
async fn skewed_node_issues_and_changes_nothing() {
    let world = World::new(Db::Postgres, |_| {}).await;
    let node = world.node(0).await;
    node.minute().await;
    let before = rows(&world, &node).await;
    for days in [1_i64, -1, 365] {
        node.off.store(days * 86_400_000_000, Ordering::SeqCst);
        node.minute().await;
        assert!(
            matches!(node.app.signing_keys().await.err(), Some(KeyError::Clock)),
            "{days} days off"
        );
        assert!(!node.app.key_manager.is_stable());
        assert_eq!(
            rows(&world, &node).await,
            before,
            "no key made or destroyed"
        );
        node.off.store(0, Ordering::SeqCst);
        world.pass(Duration::from_secs(1));
        node.minute().await;
        node.signs().await;
        assert!(
            !node.app.key_manager.is_stable(),
            "the clock is not stable for an hour"
        );
        for _ in 0..61 {
            world.pass(Duration::from_secs(60));
            node.app.poll().await.unwrap();
        }
        assert!(node.app.key_manager.is_stable());
    }
}

/// PostgreSQL only: the clock of the node is a few seconds off, and is corrected.
#[actix_web::test]
async fn small_clock_skew_is_corrected() {
    let world = World::new(Db::Postgres, |_| {}).await;
    let node = world.node(0).await;
    node.off.store(-7_000_000, Ordering::SeqCst);
    assert_eq!(node.app.clock.now().secs() + 7, world.now().secs());
    node.minute().await;
    assert_eq!(node.app.clock.now(), world.now());
}

#[actix_web::test]
async fn clock_jump_of_a_year_adds_at_most_one_key_version() {
    for db in [Db::Sqlite, Db::Postgres] {
        let world = World::new(db, |_| {}).await;
        let node = world.node(0).await;
        node.minute().await;
        let before = rows(&world, &node).await.len();
        let real = world.now();
        world.pass(DAY * 365);
        drop(node);
        let node = world.node(0).await;
        node.minute().await;
        node.signs().await;
        world.set(real);
        drop(node);
        let node = world.node(0).await;
        node.minute().await;
        // The node wrote a beat of the next year, so on PostgreSQL the clock of the database is behind it
        // now.
        match db {
            Db::Sqlite => drop(node.signs().await),
            Db::Postgres => assert!(matches!(
                node.app.signing_keys().await.err(),
                Some(KeyError::Clock)
            )),
        }
        assert!(
            rows(&world, &node).await.len() <= before + 3,
            "one key per ring"
        );
    }
}

#[actix_web::test]
async fn suspended_nodes_sign_with_the_next_key() {
    for db in [Db::Sqlite, Db::Postgres] {
        let world = World::new(db, |_| {}).await;
        let node = world.node(0).await;
        let first = node.app.keys().signer(ES256).unwrap().to_owned();
        drop(node);
        world.pass(DAY * 91);
        let nodes = vec![world.node(0).await];
        let kid = nodes[0].app.keys().signer(ES256).unwrap().to_owned();
        assert_ne!(kid, first);
        nodes[0].signs().await;
        all_at_once(&nodes).await;
        let rows = rows(&world, &nodes[0]).await;
        let old = rows.iter().find(|key| key.kid == first).unwrap();
        assert_eq!(state(old, world.now()), State::Retiring);
        assert_eq!(ES256.among(&rows).count(), 3, "including a next key");
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn node_without_lease_signs_and_consumes_nothing(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut server = server;
    let shop = server.shop().await;
    let code = server.browser().allows(&shop).await;
    let jwks = server.browser().get("/oauth2/jwks").await.body;
    server.unfollow().await;
    server.advance(Duration::from_secs(31));
    let answer = shop.redeems(&code).await;
    assert_eq!(
        (answer.status, answer.json()["error"].as_str()),
        (503, Some("temporarily_unavailable"))
    );
    assert!(answer.header("retry-after").is_some());
    answer.refused("temporarily_unavailable", "key.unusable", "lease");
    assert_eq!(
        server.browser().get("/oauth2/jwks").await.body,
        jwks,
        "keys are still published"
    );
    assert!(
        server
            .app
            .keys()
            .sign_frame("revocation-frame+jwt", &serde_json::json!({}))
            .is_ok()
    );
    // Keys that were not confirmed for a day are no longer published. A verifier would drop them as well.
    server.advance(DAY - Duration::from_secs(31));
    assert_eq!(
        server.browser().get("/oauth2/jwks").await.body,
        jwks,
        "for one day"
    );
    server.advance(Duration::from_secs(1));
    let stale = server.browser().get("/oauth2/jwks").await;
    stale.refused("temporarily_unavailable", "key.unusable", "lease");
    assert!(stale.header("retry-after").is_some());
    let metadata = server
        .browser()
        .get("/.well-known/openid-configuration")
        .await;
    assert_eq!(metadata.status, 200);
    server.set_back(DAY - Duration::from_secs(30));
    server.app.poll().await.unwrap();
    shop.redeems(&code).await.ok();
}
