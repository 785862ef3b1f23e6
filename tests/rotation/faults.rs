//! Rows that somebody changed, the wrong KEK, clocks that are wrong, and a database that is away.

use std::sync::atomic::Ordering;
use std::time::Duration;

use portcullis::app::{App, StartError, write_kek};
use portcullis::keys::rotation::{State, state};
use portcullis::keys::{Alg, KeyError, Ring, SigningKey, Use};
use portcullis::secret::Entropy;
use portcullis::time::Clock;

use crate::cast::server::{count, execute};
use crate::cast::{Db, log};
use crate::nodes::{Node, World, all_at_once};
use crate::story;

const DAY: Duration = Duration::from_secs(86_400);
const ES256: Ring = Ring::token(Alg::ES256);

async fn rows(world: &World, node: &Node) -> Vec<SigningKey> {
    node.app
        .keeper
        .table()
        .read(world.now())
        .await
        .unwrap()
        .keys
}

/// Everything of a sealed value changed by one character, at a place that means something.
fn flipped(sealed: &str, part: usize) -> String {
    let mut parts: Vec<String> = sealed.split('.').map(str::to_owned).collect();
    let at = parts[part].len() / 2;
    let old = &parts[part][at..=at];
    let new = if old == "A" { "B" } else { "A" };
    parts[part].replace_range(at..=at, new);
    parts.join(".")
}

/// The statements that an attacker with the database, and without the KEK, can run on a row.
fn attacks(victim: &SigningKey, other: &SigningKey) -> Vec<String> {
    let set = |what: String| {
        format!(
            "UPDATE signing_keys SET {what} WHERE kid = '{}'",
            victim.kid
        )
    };
    let mut attacks = vec![
        set(format!("sealed = '{}'", flipped(&victim.sealed, 2))),
        set(format!("sealed = '{}'", flipped(&victim.sealed, 3))),
        set(format!("sealed = '{}A'", victim.sealed)),
        set(format!(
            "sealed = '{}'",
            &victim.sealed[..victim.sealed.len() - 4]
        )),
        set("sealed = ''".to_owned()),
        set(format!("sealed = '{}'", other.sealed)),
        set(format!("public_jwk = '{}'", other.public_jwk)),
        set("kid = 'attacker'".to_owned()),
        set("use = 'feed', generation = 77".to_owned()),
        set("alg = 'RS256', generation = 78".to_owned()),
        set("generation = 79".to_owned()),
        set("created_at = created_at + 1".to_owned()),
        set("revoke_reason = 'x'".to_owned()),
    ];
    for instant in [
        "publish_at = publish_at - 1",
        "activate_at = activate_at + 1",
        "retire_at = retire_at + 1",
        "remove_at = remove_at + 1",
        "retire_at = NULL",
        "remove_at = NULL",
    ] {
        attacks.push(set(instant.to_owned()));
    }
    attacks
}

/// The row as it was.
fn restore(row: &SigningKey) -> Vec<String> {
    let at = |at: Option<portcullis::time::Timestamp>| {
        at.map_or_else(|| "NULL".to_owned(), |at| at.micros().to_string())
    };
    let SigningKey {
        kid, generation, ..
    } = row;
    vec![
        "DELETE FROM signing_keys WHERE kid = 'attacker'".to_owned(),
        format!("DELETE FROM signing_keys WHERE kid = '{kid}'"),
        format!(
            "INSERT INTO signing_keys VALUES ('{kid}', '{}', '{}', '{}', {generation}, '{}', '{}', {}, {}, {}, {}, {}, NULL, {})",
            row.issuer,
            row.use_.as_str(),
            row.alg.name(),
            row.public_jwk,
            row.sealed,
            row.publish_at.micros(),
            row.activate_at.micros(),
            at(row.retire_at),
            at(row.remove_at),
            at(row.revoked_at),
            row.created_at.micros(),
        ),
        "UPDATE feed_head SET keys_version = keys_version + 1".to_owned(),
    ]
}

async fn changed_rows(db: Db) {
    let world = World::new(db, |_| {}).await;
    let node = world.node(0).await;
    let before = rows(&world, &node).await;
    let of = |generation| {
        ES256
            .among(&before)
            .find(|key| key.generation == generation)
            .unwrap()
    };
    let (victim, other) = (of(1).clone(), of(2).clone());
    let good = node.app.keys().published(Use::Token).set.clone();
    let mut tried = 0;
    for attack in attacks(&victim, &other) {
        let mark = log::mark();
        execute(&world.config, &attack);
        // A running node says so, and goes on with the good copy that it holds.
        node.app.refresh_key_view().await.unwrap();
        let event = log::since(mark)
            .into_iter()
            .find(|event| event.get("event").is_some_and(|name| name == "key.corrupt"));
        assert_eq!(
            event.unwrap_or_else(|| panic!("no alarm: {attack}"))["severity"],
            "critical"
        );
        if !attack.contains("'attacker'") {
            assert_eq!(
                node.app.keys().signer(ES256),
                Some(victim.kid.as_str()),
                "{attack}"
            );
        }
        assert!(
            node.app
                .key_figures()
                .rings
                .iter()
                .map(|ring| ring.corrupt)
                .sum::<usize>()
                > 0
        );
        for token in node.signs().await {
            assert!(node.accepts(&token));
        }
        // A node that starts on it never publishes what does not open, and somebody else signs.
        if db == Db::Postgres {
            let fresh = world.node(0).await;
            let view = fresh.app.keys();
            let shown = &view.published(Use::Token).set.keys;
            assert!(
                shown.iter().all(|key| good.keys.contains(key)),
                "{attack}: {shown:?}"
            );
            assert!(
                shown
                    .iter()
                    .all(|key| key.kid.as_deref() != Some(&victim.kid)),
                "{attack}"
            );
            assert_eq!(view.signer(ES256), Some(other.kid.as_str()), "{attack}");
        }
        for statement in restore(&victim) {
            execute(&world.config, &statement);
        }
        node.app.refresh_key_view().await.unwrap();
        assert!(
            node.app.keys().corrupt().is_empty(),
            "as it was after {attack}"
        );
        tried += 1;
    }
    println!("{tried} changes of a row on {db:?}");
    inserted(&world, &node, &victim).await;
    revoked(&world, &node, &victim).await;
}

/// An attacker's own public key: never published.
async fn inserted(world: &World, node: &Node, victim: &SigningKey) {
    let pair = portcullis::keys::Generated::new(Alg::ES256, 2_048, &Entropy::seeded(66)).unwrap();
    let (kid, jwk) = (
        pair.public().thumbprint(),
        serde_json::to_string(pair.public()).unwrap(),
    );
    execute(
        &world.config,
        &format!(
            "INSERT INTO signing_keys VALUES ('{kid}', '{}', 'token', 'ES256', 99, '{jwk}', '{}', 1, 1, NULL, NULL, NULL, NULL, 1)",
            victim.issuer, victim.sealed,
        ),
    );
    node.app.refresh_key_view().await.unwrap();
    let bytes = node.app.keys().published(Use::Token).bytes.clone();
    assert!(!String::from_utf8_lossy(&bytes).contains(&kid));
    assert!(node.app.keys().corrupt().contains_key(&kid));
    assert_eq!(node.app.keys().signer(ES256), Some(victim.kid.as_str()));
    execute(
        &world.config,
        &format!("DELETE FROM signing_keys WHERE kid = '{kid}'"),
    );
    node.app.refresh_key_view().await.unwrap();
}

/// A revocation holds even on a row that does not open, and a row put back does not take it back.
async fn revoked(world: &World, node: &Node, victim: &SigningKey) {
    let token = node
        .app
        .keys()
        .sign(Alg::ES256, "at+jwt", &serde_json::json!({}))
        .unwrap();
    let kid = &victim.kid;
    execute(
        &world.config,
        &format!("UPDATE signing_keys SET revoked_at = 5, sealed = 'broken' WHERE kid = '{kid}'"),
    );
    node.app.refresh_key_view().await.unwrap();
    assert_ne!(node.app.keys().signer(ES256), Some(kid.as_str()));
    assert!(node.app.keys().verify(&token, "at+jwt").is_none());
    for statement in restore(victim) {
        execute(&world.config, &statement);
    }
    node.app.refresh_key_view().await.unwrap();
    assert_ne!(
        node.app.keys().signer(ES256),
        Some(kid.as_str()),
        "the node remembers"
    );
    // For a node that does not, the record on the blocklist does.
    let now = world.now();
    let act = portcullis::keeper::Act { actor: "cli", now };
    node.app
        .keeper
        .table()
        .revoke(kid, "leaked", &act)
        .await
        .unwrap();
    for statement in restore(victim) {
        execute(&world.config, &statement);
    }
    let rows = node.app.keeper.table().read(now).await.unwrap();
    let keychain = node.app.keeper.table().keychain();
    let view =
        portcullis::keys::KeyView::build(&rows.keys, &rows.blocked, &keychain, None, now).unwrap();
    assert_ne!(view.signer(ES256), Some(kid.as_str()));
    assert!(!String::from_utf8_lossy(&view.published(Use::Token).bytes).contains(kid.as_str()));
}

#[actix_web::test]
async fn a_changed_row_is_never_published_and_never_signs_on_sqlite() {
    changed_rows(Db::Sqlite).await;
}

#[actix_web::test]
async fn a_changed_row_is_never_published_and_never_signs_on_postgres() {
    changed_rows(Db::Postgres).await;
}

async fn wrong_kek(db: Db) {
    let world = World::new(db, |_| {}).await;
    let name = format!("wrong-kek-{}-{db:?}", std::process::id());
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_file(&path);
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
        "nothing is made"
    );
    // Beside the right one it is welcome, and a running node refuses to lose the one it needs.
    let node = world.node(0).await;
    let table = node.app.keeper.table();
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
    let act = portcullis::keeper::Act {
        actor: "cli",
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
        "once is enough"
    );
    // The old one can go now; grants, forms and tokens survive.
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
    assert_eq!(node.app.key_figures().kek_values.len(), 1);
    node.signs().await;
}

#[actix_web::test]
async fn the_wrong_kek_refuses_the_start_and_the_right_ones_change_places_on_sqlite() {
    wrong_kek(Db::Sqlite).await;
}

#[actix_web::test]
async fn the_wrong_kek_refuses_the_start_and_the_right_ones_change_places_on_postgres() {
    wrong_kek(Db::Postgres).await;
}

/// Postgres alone: an embedded database has no clock of its own.
#[actix_web::test]
async fn a_node_whose_clock_is_wrong_issues_nothing_and_changes_nothing() {
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
        assert!(!node.app.keeper.settled());
        assert_eq!(
            rows(&world, &node).await,
            before,
            "no key made or destroyed"
        );
        node.off.store(0, Ordering::SeqCst);
        world.pass(Duration::from_secs(1));
        node.minute().await;
        node.signs().await;
        assert!(!node.app.keeper.settled(), "it rests for an hour");
        for _ in 0..61 {
            world.pass(Duration::from_secs(60));
            node.app.poll().await.unwrap();
        }
        assert!(node.app.keeper.settled());
    }
}

/// Postgres: the node's own clock is a few seconds off, and is put right.
#[actix_web::test]
async fn a_clock_that_is_a_little_off_is_corrected() {
    let world = World::new(Db::Postgres, |_| {}).await;
    let node = world.node(-7_000_000).await;
    assert_eq!(node.app.clock.now().secs() + 7, world.now().secs());
    node.minute().await;
    assert_eq!(node.app.clock.now(), world.now());
}

#[actix_web::test]
async fn a_world_that_jumps_a_year_and_back_has_one_generation_more_at_most() {
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
        node.signs().await;
        assert!(
            rows(&world, &node).await.len() <= before + 3,
            "one per ring"
        );
    }
}

#[actix_web::test]
async fn nodes_that_slept_through_a_change_sign_with_the_next_key() {
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
        assert_eq!(ES256.among(&rows).count(), 3, "and there is a standby");
    }
}

story! {
    async fn without_its_lease_a_node_signs_nothing_and_uses_nothing_up(server: Server) {
        let mut server = server;
        let shop = server.shop().await;
        let code = server.browser().allows(&shop).await;
        let jwks = server.browser().get("/oauth2/jwks").await.body;
        server.unfollow().await;
        server.advance(Duration::from_secs(31));
        let answer = shop.redeems(&code).await;
        assert_eq!((answer.status, answer.json()["error"].as_str()), (503, Some("temporarily_unavailable")));
        assert!(answer.header("retry-after").is_some());
        answer.refused("temporarily_unavailable", "key.unusable", "lease");
        assert_eq!(server.browser().get("/oauth2/jwks").await.body, jwks, "keys are published all the same");
        assert!(server.app.keys().sign_frame("revocation-frame+jwt", &serde_json::json!({})).is_ok());
        server.app.poll().await.unwrap();
        shop.redeems(&code).await.ok();
    }
}
