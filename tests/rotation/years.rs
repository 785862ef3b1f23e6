//! Two simulated years, with eight nodes on PostgreSQL and one on SQLite. Exactly the expected keys exist.
//! Every token of any node verifies at every other node, and with a key set as old as is allowed.

use std::time::{Duration, Instant};

use portcullis::keys::rotation::{State, state};
use portcullis::keys::{Ring, Use};
use portcullis::time::Timestamp;
use portcullis_verifier::{JwkSet, Need, Verifier};

use crate::fixtures::server::count;
use crate::fixtures::{Db, ISSUER};
use crate::nodes::{Node, World, all_at_once};

const DAY: Duration = Duration::from_secs(86_400);
/// The longest time that a verifier may cache a JWKS.
const CACHE: Duration = Duration::from_secs(25 * 3_600);
const SECOND: Duration = Duration::from_secs(1);

/// Rotations in two years: at 90, 180 … 720 days.
const ROTATIONS: i64 = 8;

#[actix_web::test]
async fn eight_nodes_rotate_for_two_years_on_postgres() {
    two_years(Db::Postgres, 8).await;
}

#[actix_web::test]
async fn one_node_rotates_for_two_years_on_sqlite() {
    two_years(Db::Sqlite, 1).await;
}

/// A key set as it was fetched.
type Fetched = (Timestamp, JwkSet);

async fn two_years(db: Db, many: i64) {
    let began = Instant::now();
    let world = World::new(db, |_| {}).await;
    let (start, end) = (world.now(), world.now() + DAY * 730);
    let mut nodes = Vec::new();
    for n in 0..many {
        // The clocks are up to 2 s apart.
        nodes.push(world.node((n % 5 - 2) * 1_000_000).await);
    }
    let mut fetched: Vec<Fetched> = Vec::new();
    let mut living: Vec<(Timestamp, String)> = Vec::new();
    let (mut steps, mut tokens, mut checks) = (0, 0, 0);
    while world.now() < end {
        all_at_once(&nodes).await;
        let now = world.now();
        fetched.push((now, published(&nodes[steps % nodes.len()])));
        // The oldest copy that may still be in use. Older ones are dropped.
        while fetched.len() > 1 && fetched[1].0 + CACHE <= now {
            fetched.remove(0);
        }
        living.retain(|(signed, _)| now.since(*signed) <= Duration::from_secs(3_600));
        let mut fresh = Vec::new();
        for node in &nodes {
            fresh.extend(node.signs().await);
        }
        let stalest = verifier(&fetched[0].1);
        for token in fresh.iter().chain(living.iter().map(|(_, token)| token)) {
            for node in &nodes {
                assert!(node.accepts(token), "a node refuses at {now}");
            }
            let verdict = stalest.verify_at(token, &Need::any(), now.secs());
            assert!(
                verdict.is_ok(),
                "a cache of {} refuses at {now}: {verdict:?}",
                fetched[0].0
            );
            checks += nodes.len() + 1;
        }
        tokens += fresh.len();
        // The tokens of one node are verified again until they expire.
        living.extend(fresh.into_iter().take(2).map(|token| (now, token)));
        one_signer(&nodes);
        steps += 1;
        if steps % 50 == 0 {
            let restarted = steps / 50 % nodes.len();
            drop(nodes.remove(restarted));
            nodes.insert(restarted, world.node(0).await);
        }
        world.set(next(&nodes[0], now, start).min(end));
    }
    all_at_once(&nodes).await;
    as_expected(&world, &nodes[0]).await;
    println!(
        "{db:?}, {many} nodes: {steps} steps, {tokens} tokens, {checks} checks, {:.1} s",
        began.elapsed().as_secs_f32()
    );
}

/// Returns the next relevant instant: around each change of a signer, and every ten days.
fn next(node: &Node, now: Timestamp, start: Timestamp) -> Timestamp {
    let keys = node.app.keys();
    let changes = Ring::token(portcullis::keys::Alg::ES256)
        .among(keys.rows())
        .flat_map(|key| {
            let at = key.activate_at;
            let around = [SECOND * 2, SECOND, Duration::ZERO];
            let before = around.map(|by| at - by);
            let after = [
                30,
                62,
                66,
                1_800,
                3_600,
                3_660,
                7_300,
                25 * 3_600,
                27 * 3_600,
            ];
            let after = after.map(|secs| at + SECOND * secs);
            [vec![at - CACHE - SECOND], before.to_vec(), after.to_vec()].concat()
        })
        .collect::<Vec<_>>();
    let tenth = start + DAY * 10 * u32::try_from(now.since(start).as_secs() / 864_000 + 1).unwrap();
    changes
        .into_iter()
        .chain([tenth])
        .filter(|at| *at > now)
        .min()
        .unwrap()
}

fn published(node: &Node) -> JwkSet {
    let keys = node.app.keys();
    let published = keys.published(Use::Token);
    assert!(published.bytes.len() < 16 * 1024, "a JWKS stays small");
    serde_json::from_slice(&published.bytes).unwrap()
}

fn verifier(keys: &JwkSet) -> Verifier {
    Verifier::builder(ISSUER, ISSUER)
        .keys(keys.clone())
        .build()
        .unwrap()
}

/// Asserts that all nodes whose clocks are on the same side of a change agree on the signer.
fn one_signer(nodes: &[Node]) {
    for ring in nodes[0].app.key_manager.table().rings() {
        for node in nodes {
            let (keys, now) = (node.app.keys(), node.app.clock.now());
            let kid = keys.signer(*ring).expect("always a signer");
            let row = keys.rows().find(|key| key.kid == kid).unwrap();
            assert_eq!(state(row, now), State::Active, "{ring} at {now}");
        }
    }
}

async fn as_expected(world: &World, node: &Node) {
    let rows = node
        .app
        .key_manager
        .table()
        .read(world.now())
        .await
        .unwrap();
    for ring in node.app.key_manager.table().rings() {
        let generations: Vec<i64> = ring.among(&rows.keys).map(|key| key.generation).collect();
        let expected: Vec<i64> = (1..=ROTATIONS + 2).collect();
        assert_eq!(generations, expected, "{ring}: signers, and one standby");
        let keychain = node.app.key_manager.table().keychain();
        let private: Vec<i64> = ring
            .among(&rows.keys)
            .filter(|key| key.open(&keychain).unwrap().private.is_some())
            .map(|key| key.generation)
            .collect();
        assert_eq!(
            private,
            [ROTATIONS + 1, ROTATIONS + 2],
            "{ring}: the signer and its standby"
        );
    }
    let events = |name: &str| {
        let query = format!("SELECT count(*) AS n FROM audit_events WHERE name = '{name}'");
        count(&world.config, &query)
    };
    let rings = 3;
    assert_eq!(
        events("key.created"),
        rings * (ROTATIONS + 2) + 1,
        "and one server secret"
    );
    assert_eq!(events("key.destroyed"), rings * ROTATIONS);
}
