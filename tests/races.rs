//! Concurrent uses of codes and refresh tokens, with three nodes on PostgreSQL and one on SQLite. Whatever
//! the order of events, no token remains valid that should have been revoked.
//!
//! Each run does a few rounds of each race; `tests/run slow` does 1,000.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "fixtures/mod.rs"]
mod fixtures;

use std::sync::Arc;
use std::time::Duration;

use fixtures::server::confidential;
use fixtures::{
    Answer, Browser, Db, ISSUER, Look, Server, TestClient, Tokens, apply, on_both_databases,
};
use portcullis::accounts::admin::{Admin, GrantedBy};
use portcullis::accounts::consent::Consent;
use portcullis::accounts::throttle::failed_client;
use portcullis::accounts::user::{User, Username};
use portcullis::db::{Acknowledged, Ended, Error, Transaction};
use portcullis::id::{ClientId, ConsentId, GrantId, UserId};
use portcullis::keys::server_secret::SealedSecret;
use portcullis::oauth::client_auth::UsedAssertion;
use portcullis::secret::Hash;
use portcullis::time::Timestamp;
use portcullis_verifier::Rev;
use rstest::rstest;
use rstest_reuse::template;

/// The number of concurrent requests.
const RACERS: usize = 16;
const FULL: usize = 1_000;

/// The nodes of one database.
struct Arena {
    nodes: Vec<Server>,
}

impl Arena {
    async fn open(db: Db, grace: &str) -> Self {
        let first = Server::with(db, |config| {
            config.tokens.refresh_grace = grace.parse().unwrap();
        })
        .await;
        let mut nodes = vec![first];
        if db == Db::Postgres {
            nodes.push(nodes[0].node().await);
            nodes.push(nodes[0].node().await);
        }
        Self { nodes }
    }

    fn node(&self, n: usize) -> &Server {
        &self.nodes[n % self.nodes.len()]
    }

    fn count(&self, query: &str) -> i64 {
        self.nodes[0].count(query)
    }

    /// Moves the clock forward, so that a round neither slows down the next one nor lends it a grace period.
    fn next_round(&self) {
        self.nodes[0].advance(Duration::from_secs(60));
    }

    /// Signs in for a round, and gets tokens for `shop` without an ID token, whose signature is slow.
    async fn begin(&self, shop: &TestClient, round: usize) -> (Browser, Tokens) {
        let mut alice = self.node(round).enters("alice").await;
        let shop = shop.at(&self.node(round).base);
        let code = alice.allows_request(&plain(&shop)).await;
        let tokens = shop.redeems(&code).await.ok();
        (alice, tokens)
    }

    /// Refreshes with each of the tokens, at all nodes concurrently.
    async fn refresh_at_once(&self, shop: &TestClient, tokens: &[&str]) -> Vec<Answer> {
        let racers: Vec<_> = (0..)
            .zip(tokens)
            .map(|(n, token)| refresh_at(shop, self.node(n), token))
            .collect();
        let mut answers = Vec::new();
        for racer in racers {
            answers.push(racer.await.unwrap());
        }
        answers
    }

    /// Asserts that no refresh token works at any node, and that a record revokes the access tokens.
    async fn all_dead(&self, shop: &TestClient, held: &[Tokens]) {
        for (n, tokens) in held.iter().enumerate() {
            let (node, claims) = (self.node(n), tokens.access_claims());
            let late = shop.at(&node.base).refreshes(tokens.refresh(), &[]).await;
            assert_eq!(late.status, 400, "a refresh token lives: {}", late.body);
            let text = |name: &str| claims[name].as_str().unwrap_or_default().to_owned();
            let (grant, now) = (GrantId::from(text("grant_id")), node.clock.now());
            let active = node
                .app
                .store
                .read(move |tx| tx.find_active_grant(&grant, now));
            assert!(
                active.await.unwrap().is_none(),
                "the grant is active: {claims}"
            );
            let hits = self.count(&format!(
                "SELECT count(*) AS n FROM revocations
                 WHERE kind = 'G' AND value = '{}' OR kind = 'S' AND value = '{}'
                    OR kind = 'U' AND value = '{}' AND floor > {}",
                text("grant_id"),
                text("sid"),
                text("sub"),
                user_epoch(tokens),
            ));
            assert!(hits > 0, "no record hits {claims}");
        }
    }

    async fn close(mut self) {
        let first = self.nodes.remove(0);
        for node in self.nodes {
            node.stop().await;
        }
        first.remove().await;
    }
}

type Racing = actix_web::rt::task::JoinHandle<Answer>;

fn refresh_at(shop: &TestClient, node: &Server, token: &str) -> Racing {
    let (shop, token) = (shop.at(&node.base), token.to_owned());
    actix_web::rt::spawn(async move { shop.refreshes(&token, &[]).await })
}

/// Returns the auth epoch of the user in an access token.
fn user_epoch(tokens: &Tokens) -> u64 {
    let rev: Rev = serde_json::from_value(tokens.access_claims()["rev"].clone()).unwrap();
    rev.user_epoch.unwrap()
}

/// Returns a request whose response needs no ID token.
fn plain(shop: &TestClient) -> String {
    shop.request(&[("scope", "orders:read")])
}

/// Returns the tokens that a request got. Otherwise asserts that it was rejected, or answered 503: on a busy
/// machine a wait may exceed the limit of the server, which then has changed nothing.
fn minted(answer: &Answer) -> Option<Tokens> {
    if answer.status == 200 {
        return Some(answer.ok());
    }
    if is_shed(answer) {
        return None;
    }
    assert_eq!(
        (answer.status, &answer.json()["error"]),
        (400, &"invalid_grant".into())
    );
    None
}

fn is_shed(answer: &Answer) -> bool {
    answer.status == 503 && answer.header("retry-after").is_some()
}

/// The number of rounds of a race.
#[derive(Clone, Copy)]
enum Length {
    Brief,
    Full,
}

impl Length {
    /// Returns `brief`, or [`FULL`] for slow tests.
    fn rounds(self, brief: usize) -> usize {
        match self {
            Self::Brief => brief,
            Self::Full => FULL,
        }
    }
}

/// Runs a race on both databases, with a few rounds always and with all rounds as a slow test.
#[template]
#[rstest]
#[case::on_sqlite(Db::Sqlite, Length::Brief)]
#[case::on_postgres(Db::Postgres, Length::Brief)]
#[ignore = "slow"]
#[case::in_full_on_sqlite(Db::Sqlite, Length::Full)]
#[ignore = "slow"]
#[case::in_full_on_postgres(Db::Postgres, Length::Full)]
fn on_both_databases_in_two_lengths(#[case] db: Db, #[case] length: Length) {}

/// Within the grace period sixteen concurrent refreshes count as one: one generation, and the same successor
/// for all.
#[apply(on_both_databases_in_two_lengths)]
#[actix_web::test]
async fn concurrent_refreshes_within_grace_are_one(#[case] db: Db, #[case] length: Length) {
    let (arena, rounds) = (Arena::open(db, "30s").await, length.rounds(20));
    let shop = arena.nodes[0].shop().await;
    let (_, mut tokens) = arena.begin(&shop, 0).await;
    for round in 1..=rounds {
        arena.next_round();
        let answers = arena
            .refresh_at_once(&shop, &[tokens.refresh(); RACERS])
            .await;
        let shed = answers.iter().filter(|answer| is_shed(answer)).count();
        assert!(shed < RACERS / 2, "round {round}: {shed} were shed");
        let answers: Vec<Tokens> = answers
            .iter()
            .filter(|answer| !is_shed(answer))
            .map(Answer::ok)
            .collect();
        assert!(
            answers
                .iter()
                .all(|answer| answer.refresh() == answers[0].refresh())
        );
        let generation = arena.count("SELECT max(generation) AS n FROM grants");
        assert_eq!(usize::try_from(generation), Ok(round));
        tokens = answers[0].clone();
    }
    assert_eq!(
        arena.count("SELECT count(*) AS n FROM grants WHERE ended_at IS NOT NULL"),
        0
    );
    assert_eq!(
        arena.count("SELECT count(*) AS n FROM audit_events WHERE name = 'token.refresh_reuse'"),
        0
    );
    arena.close().await;
}

/// Without a grace period one of sixteen refreshes succeeds. The others are reuse, which revokes the grant
/// once.
#[apply(on_both_databases_in_two_lengths)]
#[actix_web::test]
async fn concurrent_refreshes_without_grace_revoke_grant(#[case] db: Db, #[case] length: Length) {
    let (arena, rounds) = (Arena::open(db, "0s").await, length.rounds(8));
    let shop = arena.nodes[0].shop().await;
    for round in 0..rounds {
        arena.next_round();
        let (_, tokens) = arena.begin(&shop, round).await;
        let answers = arena
            .refresh_at_once(&shop, &[tokens.refresh(); RACERS])
            .await;
        let winners: Vec<Tokens> = answers.iter().filter_map(minted).collect();
        assert_eq!(winners.len(), 1, "round {round}");
        arena.all_dead(&shop, &[tokens, winners[0].clone()]).await;
        let ended = i64::try_from(round).unwrap() + 1;
        assert_eq!(
            arena.count("SELECT count(*) AS n FROM revocations WHERE kind = 'G'"),
            ended
        );
        assert_eq!(
            arena
                .count("SELECT count(*) AS n FROM audit_events WHERE name = 'token.refresh_reuse'"),
            ended
        );
    }
    arena.close().await;
}

/// A token and its successor are used concurrently. Either each use of the older token comes while its
/// successor is unused, and returns that again; or one comes later and counts as reuse, and the grant is
/// revoked.
#[apply(on_both_databases_in_two_lengths)]
#[actix_web::test]
async fn refresh_races_its_successor(#[case] db: Db, #[case] length: Length) {
    let (arena, rounds) = (Arena::open(db, "30s").await, length.rounds(8));
    let shop = arena.nodes[0].shop().await;
    for round in 0..rounds {
        arena.next_round();
        let (_, old) = arena.begin(&shop, round).await;
        let new = shop.refreshes(old.refresh(), &[]).await.ok();
        let mixed: Vec<&str> = (0..RACERS)
            .map(|n| {
                if n % 4 == 3 {
                    new.refresh()
                } else {
                    old.refresh()
                }
            })
            .collect();
        let answers = arena.refresh_at_once(&shop, &mixed).await;
        let reuse = answers.iter().any(|answer| answer.status == 400);
        let newest: Vec<Tokens> = answers
            .iter()
            .skip(3)
            .step_by(4)
            .filter_map(minted)
            .collect();
        for answer in answers
            .iter()
            .enumerate()
            .filter(|(n, _)| n % 4 != 3)
            .filter_map(|(_, answer)| minted(answer))
        {
            assert_eq!(
                answer.refresh(),
                new.refresh(),
                "round {round}: a second leaf"
            );
        }
        assert!(
            newest
                .iter()
                .all(|tokens| tokens.refresh() == newest[0].refresh()),
            "round {round}"
        );
        if reuse {
            arena.all_dead(&shop, &newest).await;
            arena.all_dead(&shop, &[old, new]).await;
        } else if let Some(newest) = newest.first() {
            shop.refreshes(newest.refresh(), &[]).await.ok();
        }
    }
    arena.close().await;
}

/// A code is exchanged while its session is signed out.
#[apply(on_both_databases_in_two_lengths)]
#[actix_web::test]
async fn code_exchange_races_logout(#[case] db: Db, #[case] length: Length) {
    let (arena, rounds) = (Arena::open(db, "30s").await, length.rounds(12));
    let shop = arena.nodes[0].shop().await;
    for round in 0..rounds {
        arena.next_round();
        let (mut alice, first) = arena.begin(&shop, round).await;
        let code = alice.allows_request(&plain(&shop)).await;
        let racer = {
            let (shop, code) = (shop.at(&arena.node(round + 1).base), code.clone());
            actix_web::rt::spawn(async move { shop.redeems(&code).await })
        };
        assert_eq!(alice.signs_out().await.status, 200);
        let mut held: Vec<Tokens> = minted(&racer.await.unwrap()).into_iter().collect();
        held.push(first);
        arena.all_dead(&shop, &held).await;
    }
    let inconsistent = "SELECT count(*) AS n FROM grants JOIN sessions ON sessions.sid = grants.sid
                        WHERE grants.ended_at IS NULL AND sessions.ended_at IS NOT NULL";
    assert_eq!(arena.count(inconsistent), 0);
    arena.close().await;
}

/// A code is issued while its session is signed out. Tokens from it are revoked.
#[apply(on_both_databases_in_two_lengths)]
#[actix_web::test]
async fn authorization_races_logout(#[case] db: Db, #[case] length: Length) {
    let (arena, rounds) = (Arena::open(db, "30s").await, length.rounds(12));
    let shop = arena.nodes[0].shop().await;
    for round in 0..rounds {
        arena.next_round();
        let (mut alice, first) = arena.begin(&shop, round).await;
        let racer = {
            let mut tab = alice.at(&arena.node(round + 1).base);
            let silent = shop.request(&[("scope", "orders:read"), ("prompt", "none")]);
            actix_web::rt::spawn(async move { tab.get(&silent).await })
        };
        assert_eq!(alice.signs_out().await.status, 200);
        let answer = racer.await.unwrap();
        match answer.callback("code") {
            Some(code) => assert!(
                minted(&shop.redeems(&code).await).is_none(),
                "round {round}"
            ),
            None => assert_eq!(answer.callback("error").as_deref(), Some("login_required")),
        }
        arena.all_dead(&shop, &[first]).await;
    }
    arena.close().await;
}

/// A token is refreshed while its session is signed out.
#[apply(on_both_databases_in_two_lengths)]
#[actix_web::test]
async fn refresh_races_logout(#[case] db: Db, #[case] length: Length) {
    let (arena, rounds) = (Arena::open(db, "30s").await, length.rounds(12));
    let shop = arena.nodes[0].shop().await;
    for round in 0..rounds {
        arena.next_round();
        let (mut alice, tokens) = arena.begin(&shop, round).await;
        let racers = [1, 2].map(|n| refresh_at(&shop, arena.node(round + n), tokens.refresh()));
        assert_eq!(alice.signs_out().await.status, 200);
        let mut held = vec![tokens];
        for racer in racers {
            held.extend(minted(&racer.await.unwrap()));
        }
        arena.all_dead(&shop, &held).await;
    }
    arena.close().await;
}

/// Tokens are refreshed while alice signs out everywhere. This includes offline grants.
#[apply(on_both_databases_in_two_lengths)]
#[actix_web::test]
async fn refresh_races_sign_out_everywhere(#[case] db: Db, #[case] length: Length) {
    let (arena, rounds) = (Arena::open(db, "30s").await, length.rounds(12));
    let shop = arena.nodes[0].shop().await;
    let offline = shop.request(&[("scope", "orders:read offline_access")]);
    for round in 0..rounds {
        arena.next_round();
        let (mut alice, bound) = arena.begin(&shop, round).await;
        let lasting = shop
            .redeems(&alice.allows_request(&offline).await)
            .await
            .ok();
        let racers = [
            (1, bound.refresh()),
            (2, lasting.refresh()),
            (3, lasting.refresh()),
        ]
        .map(|(n, token)| refresh_at(&shop, arena.node(round + n), token));
        arena.node(round).signs_out_everywhere("alice").await;
        let mut held = vec![bound, lasting];
        for racer in racers {
            held.extend(minted(&racer.await.unwrap()));
        }
        arena.all_dead(&shop, &held).await;
    }
    arena.close().await;
}

/// A token is refreshed while its client revokes it.
#[apply(on_both_databases_in_two_lengths)]
#[actix_web::test]
async fn refresh_races_revocation(#[case] db: Db, #[case] length: Length) {
    let (arena, rounds) = (Arena::open(db, "30s").await, length.rounds(12));
    let shop = arena.nodes[0].shop().await;
    for round in 0..rounds {
        arena.next_round();
        let (_, tokens) = arena.begin(&shop, round).await;
        let racers = [1, 2].map(|n| refresh_at(&shop, arena.node(round + n), tokens.refresh()));
        let revoked = shop
            .at(&arena.node(round).base)
            .revokes(tokens.refresh())
            .await;
        assert_eq!(revoked.status, 200);
        let mut held = vec![tokens];
        for racer in racers {
            held.extend(minted(&racer.await.unwrap()));
        }
        arena.all_dead(&shop, &held).await;
    }
    let rounds = i64::try_from(rounds).unwrap();
    assert_eq!(
        arena.count("SELECT count(*) AS n FROM revocations WHERE kind = 'G'"),
        rounds
    );
    arena.close().await;
}

/// What several concurrent inserts of the same value result in. In both cases there is one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Later {
    /// All but the first are rejected as duplicates, which the caller reports.
    Rejected,
    /// All succeed.
    Merged,
}

/// Inserts the value of a table. The number differs for each racer.
type FirstUse = Arc<dyn Fn(&mut Transaction<'_>, usize) -> Result<(), Error> + Send + Sync>;

/// Tables whose keys are random or numbered under a lock, so that no two inserts meet.
const WITHOUT_RACES: [&str; 11] = [
    "__diesel_schema_migrations",
    "audit_events",
    "audit_waiting",
    "authorizations",
    "client_secrets",
    "codes",
    "feed_head",
    "grants",
    "revocations",
    "sessions",
    "setup_links",
];

fn user(tx: &mut Transaction<'_>, name: &str) -> Result<UserId, Error> {
    let id = tx.find_user_id(&Username::parse(name).unwrap())?;
    Ok(id.unwrap())
}

/// Returns the first use of every other table.
fn first_uses(server: &Server) -> Vec<(&'static str, Later, FirstUse)> {
    fn case(
        table: &'static str,
        later: Later,
        run: impl Fn(&mut Transaction<'_>, usize) -> Result<(), Error> + Send + Sync + 'static,
    ) -> (&'static str, Later, FirstUse) {
        (table, later, Arc::new(run))
    }
    let now = server.clock.now();
    let secrets = Arc::clone(&server.app.secret);
    vec![
        case("users", Later::Rejected, move |tx, n| {
            tx.put_user(&User {
                id: UserId::from(format!("racer-{n}")),
                username: Username::parse("raced").unwrap(),
                name: None,
                email: None,
                email_verified: false,
                claims: Default::default(),
                auth_epoch: 1,
                disabled_at: None,
                created_at: now,
                updated_at: now,
            })
        }),
        case("passwords", Later::Merged, move |tx, _| {
            let user = user(tx, "raced")?;
            tx.put_password(&user, "$argon2id$none", now)
        }),
        case("user_roles", Later::Rejected, move |tx, n| {
            let user_id = user(tx, ["alice", "raced"][n % 2])?;
            tx.put_admin(&Admin {
                user_id,
                granted_by: GrantedBy::Setup,
                granted_at: now,
                expires_at: None,
            })
        }),
        case("clients", Later::Rejected, |tx, _| {
            tx.put_client(&confidential("raced", "https://raced.example/cb"))
        }),
        case("resources", Later::Rejected, |tx, n| {
            let mut resource = tx.list_resources()?.remove(0);
            resource.id = format!("racer-{n}");
            resource.audience = "https://raced.example".to_owned();
            tx.put_resource(&resource)
        }),
        case("scopes", Later::Merged, |tx, _| {
            tx.put_scope_description("raced:read", "Read races")
        }),
        case("consents", Later::Merged, move |tx, n| {
            let user_id = user(tx, "raced")?;
            tx.put_consent(&Consent {
                id: ConsentId::from(format!("racer-{n}")),
                user_id,
                client_id: ClientId::from("raced"),
                scope: "openid".to_owned(),
                client_shape: Hash::of("shape"),
                granted_at: now,
                expires_at: now + Duration::from_secs(60),
            })
        }),
        case("logout_notifications", Later::Merged, move |tx, _| {
            let alice = user(tx, "alice")?;
            tx.put_logout_notifications(Ended::User(&alice, 1), now)
        }),
        case("used_assertions", Later::Merged, move |tx, _| {
            // One of them is the first, which `tests/stories/private_key_jwt.rs` asserts.
            tx.use_assertion(&UsedAssertion {
                client_id: ClientId::from("raced"),
                jti: Hash::of("jti"),
                expires_at: now,
            })
            .map(drop)
        }),
        case("throttles", Later::Merged, move |tx, _| {
            let counted = tx.count_failure(&failed_client([192, 0, 2, 77].into()), now);
            counted.map(drop)
        }),
        case("known_devices", Later::Merged, move |tx, _| {
            let user = user(tx, "raced")?;
            tx.put_known_device(&Hash::of("device"), &user, now)
        }),
        case("feed_acks", Later::Merged, move |tx, n| {
            tx.put_ack(&Acknowledged {
                client_id: ClientId::from("raced"),
                instance: "one".to_owned(),
                epoch: 1,
                seq: i64::try_from(n).unwrap(),
                kids: Vec::new(),
                max_age: None,
                acked_at: now,
            })
        }),
        case("downtimes", Later::Merged, move |tx, _| {
            let (began, ended) = (now - Duration::from_secs(60), now);
            tx.put_downtime((began, ended), Timestamp::from_secs(0))
        }),
        case("served_issuer", Later::Merged, move |tx, _| {
            tx.put_served_issuer(ISSUER, now)
        }),
        case("audit_seals", Later::Merged, move |tx, _| {
            tx.seal_audit(&secrets).map(drop)
        }),
        // The last two, because no node can open these rows.
        case("signing_keys", Later::Rejected, |tx, n| {
            let mut key = tx.list_keys(ISSUER)?.remove(0);
            key.kid = format!("racer-{n}");
            key.generation = 99;
            tx.put_key(&key)
        }),
        case("server_secrets", Later::Rejected, move |tx, n| {
            tx.put_server_secret(&SealedSecret {
                id: format!("racer-{n}"),
                generation: 99,
                sealed: "none".to_owned(),
                created_at: now,
            })
        }),
    ]
}

/// Every table with a unique index: several nodes insert the same value at the same time. None of them
/// gets an error, except that a value exists already where each value has one creator.
#[apply(on_both_databases)]
#[actix_web::test]
async fn concurrent_first_use_of_every_table_is_answered(#[case] db: Db) {
    let arena = Arena::open(db, "30s").await;
    let mut told = confidential("told", "https://told.example/cb");
    told.backchannel_logout_uri = Some("https://told.example/logout".to_owned());
    let told = arena.nodes[0].register(told).await;
    let mut alice = arena.nodes[0].enters("alice").await;
    alice.allows(&told).await;
    let uses = first_uses(&arena.nodes[0]);
    let mut tables: Vec<&str> = uses.iter().map(|(table, ..)| *table).collect();
    tables.extend(WITHOUT_RACES);
    tables.sort_unstable();
    let stored = match db {
        Db::Sqlite => {
            "SELECT name AS line FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        }
        Db::Postgres => {
            "SELECT DISTINCT tablename::text AS line FROM pg_indexes WHERE schemaname = 'public' AND indexdef LIKE 'CREATE UNIQUE %' ORDER BY line"
        }
    };
    let mut stored = Look::at(&arena.nodes[0].config.database_url()).lines(stored);
    stored.sort_unstable();
    assert_eq!(tables, stored, "a table is missing in this test");
    for (table, later, run) in uses {
        let racers: Vec<_> = (0..RACERS)
            .map(|n| {
                let (store, run) = (arena.node(n).app.store.clone(), Arc::clone(&run));
                actix_web::rt::spawn(async move { store.transaction(move |tx| run(tx, n)).await })
            })
            .collect();
        let (mut succeeded, mut rejected) = (0, 0);
        for racer in racers {
            match racer.await.unwrap() {
                Ok(()) => succeeded += 1,
                Err(Error::Duplicate(_)) => rejected += 1,
                Err(error) => panic!("{table}: {error}"),
            }
        }
        let wanted = match later {
            Later::Rejected => (1, RACERS - 1),
            Later::Merged => (RACERS, 0),
        };
        assert_eq!((succeeded, rejected), wanted, "{table}");
    }
    let notified = arena.count("SELECT count(*) AS n FROM logout_notifications");
    assert_eq!(notified, 1);
    arena.close().await;
}
