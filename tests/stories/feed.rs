//! The revocation feed, and services that follow it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use portcullis::audit::{Actor, RevocationReason};
use portcullis_verifier::{Need, Rejected, Verifier};
use serde_json::{Value, json};

use crate::fixtures::backup;
use crate::fixtures::client::{basic, claims};
use crate::fixtures::server::sweep;
use crate::fixtures::{Answer, Db, Server, TestClient, Tokens, apply, on_both_databases};

/// The guaranteed time from the commit of a revocation until services reject the token.
const PROMISE: Duration = Duration::from_secs(3);

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Starts a server whose issuer is the address that it listens on, so that services reach it.
async fn discoverable_server(db: Db) -> Server {
    Server::found_by_services(db, |_| {}).await
}

/// Signs in at `shop` in a new browser, and returns the tokens.
async fn tokens(server: &Server, shop: &TestClient) -> Tokens {
    let wanted = shop.request(&[("scope", "openid orders:read")]);
    let code = server.browser().allows_request(&wanted).await;
    shop.redeems(&code).await.ok()
}

fn accepts(service: &Verifier, token: &str) -> bool {
    service.verify(token, &Need::any()).is_ok()
}

/// Waits until a service rejects a token as revoked, and returns how long that took.
async fn refuses(service: &Verifier, token: &str) -> Duration {
    let begun = Instant::now();
    loop {
        match service.verify(token, &Need::any()) {
            // A revoked key is removed from the JWKS as well, and either may reach the service first.
            Err(Rejected::Revoked | Rejected::UnknownKey) => return begun.elapsed(),
            Err(other) => panic!("refused for another reason: {other:?}"),
            Ok(_) => {}
        }
        assert!(
            begun.elapsed() < PROMISE,
            "still accepted after the promise"
        );
        yield_to_all().await;
    }
}

/// Requests the feed with these credentials.
async fn asks(server: &Server, path: &str, authorization: Option<&str>) -> Answer {
    let headers: Vec<(&str, &str)> = authorization
        .iter()
        .map(|value| ("Authorization", *value))
        .collect();
    server.browser().send("GET", path, &headers, None).await
}

fn credentials(party: &TestClient) -> String {
    basic(party.id(), party.secret.as_ref().unwrap().expose())
}

fn frames(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let frames = answer.json()["frames"].as_array().unwrap().clone();
    frames
        .iter()
        .map(|jws| claims(jws.as_str().unwrap()))
        .collect()
}

/// Waits until the position of the feed meets a condition, without moving the clock.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < seconds(20), "{what} did not happen");
        yield_to_all().await;
    }
}

/// Lets all other tasks run, including those that wait for sockets: a task that only yields would keep them
/// waiting.
async fn yield_to_all() {
    tokio::task::spawn_blocking(std::thread::yield_now)
        .await
        .unwrap();
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn signing_out_everywhere_reaches_the_services(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let shop = server.shop().await;
    // Three services. If there is a second node, one of them follows the feed there.
    let other = match server.db {
        Db::Postgres => Some(server.node().await),
        Db::Sqlite => None,
    };
    let api = server.api_server().await;
    let elsewhere = other.as_ref().map_or(&server.base, |node| &node.base);
    let billing = server.subscriber(&api, "billing-1").start().await.unwrap();
    let orders = server.service("orders-1").await;
    let ledger = server
        .subscriber(&api, "ledger-1")
        .feed_at(elsewhere.as_str())
        .start()
        .await
        .unwrap();
    let services = [&billing, &orders, &ledger];
    // Alice is signed in on the phone and on a laptop. Bob is signed in as well.
    let (phone, laptop) = (tokens(&server, &shop).await, tokens(&server, &shop).await);
    let mut bobs = server.browser();
    bobs.signs_in(&shop, "bob").await;
    let code = bobs
        .allows_request(&shop.request(&[("scope", "openid orders:read")]))
        .await;
    let bob = shop.redeems(&code).await.ok();
    for service in services {
        for tokens in [&phone, &laptop, &bob] {
            assert!(accepts(service, tokens.access()));
        }
    }
    // The phone is lost, so she signs out everywhere.
    server.signs_out_everywhere("alice").await;
    for service in services {
        for tokens in [&phone, &laptop] {
            refuses(service, tokens.access()).await;
        }
        assert!(accepts(service, bob.access()), "no other user is affected");
    }
    for tokens in [&phone, &laptop] {
        shop.refreshes(tokens.refresh(), &[]).await.refused(
            "invalid_grant",
            "token.rejected",
            "grant_ended",
        );
    }
    // Her new login works at once at each service.
    let new = tokens(&server, &shop).await;
    for service in services {
        assert!(accepts(service, new.access()));
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn every_kind_of_revocation_reaches_the_services(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let shop = server.shop().await;
    let service = server.service("orders-1").await;
    // A revoked access token, and no other token of the grant.
    let (one, other) = (tokens(&server, &shop).await, tokens(&server, &shop).await);
    assert_eq!(shop.revokes(one.access()).await.status, 200);
    refuses(&service, one.access()).await;
    assert!(accepts(&service, other.access()));
    let again = shop.refreshes(one.refresh(), &[]).await.ok();
    assert!(accepts(&service, again.access()), "its grant is active");
    // A revoked refresh token, and with it the tokens of its grant.
    assert_eq!(shop.revokes(again.refresh()).await.status, 200);
    refuses(&service, again.access()).await;
    // A replayed refresh token revokes the grant.
    let next = shop.refreshes(other.refresh(), &[]).await.ok();
    let last = shop.refreshes(next.refresh(), &[]).await.ok();
    shop.refreshes(other.refresh(), &[]).await.refused(
        "invalid_grant",
        "token.refresh_reuse",
        "reused",
    );
    for tokens in [&other, &next, &last] {
        refuses(&service, tokens.access()).await;
    }
    // A replayed code revokes the grant as well.
    let wanted = shop.request(&[("scope", "openid orders:read")]);
    let code = server.browser().allows_request(&wanted).await;
    let bought = shop.redeems(&code).await.ok();
    assert!(accepts(&service, bought.access()));
    shop.redeems(&code)
        .await
        .refused("invalid_grant", "code.replay", "replayed");
    refuses(&service, bought.access()).await;
    // A sign-out.
    let mut alice = server.browser();
    let code = alice.allows_request(&wanted).await;
    let signed_in = shop.redeems(&code).await.ok();
    assert!(accepts(&service, signed_in.access()));
    alice.signs_out().await;
    refuses(&service, signed_in.access()).await;
    // A disabled client.
    let held = tokens(&server, &shop).await;
    assert!(accepts(&service, held.access()));
    let (id, now) = (shop.client.id.clone(), server.clock.now());
    server
        .write(move |tx| tx.disable_client(&id, &Actor::Operator, now))
        .await;
    refuses(&service, held.access()).await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn revoked_key_is_rejected_and_successor_accepted(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let shop = server.shop().await;
    server.app.key_manager.run_maintenance().await.unwrap();
    server.app.poll().await.unwrap();
    let service = server.service("orders-1").await;
    let old = tokens(&server, &shop).await;
    let kid = crate::fixtures::client::header(old.access())["kid"]
        .as_str()
        .unwrap()
        .to_owned();
    let act = portcullis::key_manager::Act {
        actor: portcullis::audit::Actor::Operator,
        now: server.clock.now(),
    };
    server
        .app
        .key_manager
        .table()
        .revoke(&kid, "leaked", &act)
        .await
        .unwrap();
    refuses(&service, old.access()).await;
    server.app.poll().await.unwrap();
    let new = shop.refreshes(old.refresh(), &[]).await.ok();
    assert_ne!(
        crate::fixtures::client::header(new.access())["kid"],
        kid.as_str()
    );
    assert!(accepts(&service, new.access()));
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn feed_requires_a_resource_server(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let (api, shop) = (server.api_server().await, server.shop().await);
    for path in ["/revocations", "/revocations/stream"] {
        asks(&server, path, None)
            .await
            .refused("invalid_client", "client.auth_failed", "missing");
        asks(&server, path, Some(&basic(api.id(), "wrong")))
            .await
            .refused("invalid_client", "client.auth_failed", "secret");
        asks(&server, path, Some(&credentials(&shop)))
            .await
            .refused("invalid_client", "feed.denied", "no_resource_server");
    }
    let answer = asks(&server, "/revocations", Some(&credentials(&api))).await;
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let keys = asks(&server, "/revocations/jwks", None).await;
    assert_eq!(keys.status, 200);
    assert!(
        keys.header("cache-control")
            .unwrap()
            .contains("max-age=300")
    );
    let tokens = asks(&server, "/oauth2/jwks", None).await.json();
    for key in keys.json()["keys"].as_array().unwrap() {
        assert!(
            !tokens["keys"].as_array().unwrap().contains(key),
            "no token key signs frames"
        );
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn feed_positions_reveal_missing_records(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let (api, shop) = (server.api_server().await, server.shop().await);
    let own = credentials(&api);
    let empty = frames(&asks(&server, "/revocations", Some(&own)).await);
    assert_eq!(
        (
            empty.len(),
            empty[0]["after"].as_u64(),
            empty[0]["last"].as_u64()
        ),
        (1, Some(0), Some(1)),
        "dave's"
    );
    for _ in 0..3 {
        let tokens = tokens(&server, &shop).await;
        shop.revokes(tokens.access()).await;
    }
    server.app.number_waiting().await.unwrap();
    server.app.poll().await.unwrap();
    let all = frames(&asks(&server, "/revocations?after=0", Some(&own)).await);
    assert_eq!(all[0]["last"], 4);
    assert_eq!(
        all[0]["records"].as_str().unwrap().len(),
        134,
        "four packed records"
    );
    let late = frames(&asks(&server, "/revocations?after=1:2", Some(&own)).await);
    assert_eq!(
        (late[0]["after"].as_u64(), late[0]["last"].as_u64()),
        (Some(2), Some(4))
    );
    let other_epoch = frames(&asks(&server, "/revocations?after=0:9", Some(&own)).await);
    assert_eq!(
        other_epoch[0]["after"], 0,
        "a subscriber of an older epoch gets all records"
    );
    asks(&server, "/revocations?after=1:5", Some(&own))
        .await
        .is_conflict();
    asks(&server, "/revocations?after=2:0", Some(&own))
        .await
        .is_conflict();
    for (query, reason) in [
        ("after=x", "after"),
        ("after=1:+2", "after"),
        ("after=1:1&after=1:2", "after"),
        ("wait=21", "wait"),
        ("wait=-1", "wait"),
    ] {
        asks(&server, &format!("/revocations?{query}"), Some(&own))
            .await
            .refused("invalid_request", "feed.denied", reason);
    }
    // Nothing in a frame identifies the user or client concerned.
    let text = asks(&server, "/revocations", Some(&own)).await.body;
    let sub = claims(tokens(&server, &shop).await.access())["sub"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(!text.contains(&sub));
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn long_poll_returns_on_new_record(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let (api, shop) = (server.api_server().await, server.shop().await);
    let held = tokens(&server, &shop).await;
    let own = credentials(&api);
    let poll = asks(&server, "/revocations?after=1:1&wait=20", Some(&own));
    let revoke = async {
        // The revocation holds the database, so the poll starts before it. Otherwise the poll would return
        // without a record.
        shop.revokes(held.access()).await
    };
    let begun = Instant::now();
    let (polled, _) = tokio::join!(poll, revoke);
    assert!(begun.elapsed() < seconds(10));
    assert_eq!(frames(&polled)[0]["last"], 2);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn records_expire_with_the_last_affected_token(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let (api, shop) = (server.api_server().await, server.shop().await);
    server.advance(seconds(600));
    let held = tokens(&server, &shop).await;
    shop.revokes(held.access()).await;
    server.signs_out_everywhere("alice").await;
    server.app.number_waiting().await.unwrap();
    server.app.poll().await.unwrap();
    let own = credentials(&api);
    let packed = |answer: &Answer| frames(answer)[0]["records"].as_str().unwrap().len();
    // For the token: its `exp` and one minute. For the user: the longest token lifetime, one minute and five
    // seconds.
    server.advance(seconds(300 + 59));
    assert_eq!(
        packed(&asks(&server, "/revocations", Some(&own)).await),
        67,
        "both"
    );
    server.advance(seconds(2));
    assert_eq!(
        packed(&asks(&server, "/revocations", Some(&own)).await),
        34,
        "one"
    );
    server.advance(seconds(10));
    assert_eq!(
        packed(&asks(&server, "/revocations", Some(&own)).await),
        0,
        "none"
    );
    let now = server.clock.now();
    server.write(move |tx| sweep(tx, now)).await;
    assert_eq!(server.count("SELECT count(*) AS n FROM revocations"), 0);
    let left = frames(&asks(&server, "/revocations", Some(&own)).await);
    assert_eq!(left[0]["last"], 3, "numbers are not assigned twice");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn feed_response_holds_sixteen_frames(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let api = server.api_server().await;
    let own = credentials(&api);
    server.execute(&many_revocations(70_000));
    server.app.poll().await.unwrap();
    let numbers = |frame: &Value| (frame["after"].as_u64(), frame["last"].as_u64());
    let first = frames(&asks(&server, "/revocations", Some(&own)).await);
    assert_eq!(first.len(), 16);
    assert_eq!(numbers(&first[0]), (Some(0), Some(1_024)));
    assert_eq!(numbers(&first[15]), (Some(15 * 1_024), Some(16 * 1_024)));
    assert!(
        first.iter().all(|frame| frame["as_of_us"].is_null()),
        "more must follow"
    );
    let rest = frames(&asks(&server, "/revocations?after=1:69000", Some(&own)).await);
    assert_eq!(
        (rest.len(), numbers(&rest[0])),
        (1, (Some(69_000), Some(70_000)))
    );
    assert!(rest[0]["as_of_us"].is_u64());
    // A service requests frames until none is missing.
    let service = server.subscriber(&api, "billing-1").start().await.unwrap();
    assert_eq!(service.metrics().records, 70_000);
}

/// Returns the statements that fill the feed up to a number of records.
fn many_revocations(count: u32) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) \
         INSERT INTO revocations (id, kind, value, floor, reason, actor, created_at, epoch, seq, expires_at) \
         SELECT 'id-' || i, 'S', 'session-' || i, 0, 'test', 'test', 0, 1, i, 1900000000000000 FROM n; \
         UPDATE feed_head SET seq = {count}"
    )
}

/// A follower that is written from docs/revocation.md alone, with a line reader of 64 KiB as in common libraries,
/// reads a large snapshot.
#[apply(on_both_databases)]
#[actix_web::test]
async fn first_frame_fits_documented_limit(#[case] db: Db) {
    const LINE_BYTES: usize = 64 * 1_024;
    let server = discoverable_server(db).await;
    let page = include_str!("../../docs/revocation.md");
    assert!(page.contains("48 KiB") && page.contains("1,024 records"));
    let api = server.api_server().await;
    server.execute(&many_revocations(3_400));
    server.app.poll().await.unwrap();
    let mut stream = opens_stream(&server, &api).await;
    let (mut buffer, mut position) = (String::new(), 0);
    let mut records = BTreeSet::new();
    let mut is_complete = false;
    while !is_complete {
        buffer += std::str::from_utf8(&stream.chunk().await.unwrap().unwrap()).unwrap();
        while let Some((line, rest)) = buffer.split_once('\n') {
            assert!(line.len() <= 48 * 1_024, "{} bytes", line.len());
            if let Some(jws) = line.strip_prefix("data: ") {
                let frame = claims(jws);
                let members: Vec<&String> = frame.as_object().unwrap().keys().collect();
                for member in members {
                    assert!(page.contains(&format!("| `{member}` |")), "{member}");
                }
                // Frames may overlap, and applying a record twice changes nothing.
                assert!(frame["after"].as_u64().unwrap() <= position);
                position = frame["last"].as_u64().unwrap();
                let packed = portcullis::secret::from_base64url(frame["records"].as_str().unwrap());
                records.extend(packed.unwrap().chunks(25).map(<[u8]>::to_vec));
                is_complete = frame["as_of_us"].is_u64();
            }
            buffer = rest.to_owned();
        }
        assert!(buffer.len() <= LINE_BYTES);
    }
    assert_eq!((position, records.len()), (3_400, 3_400));
    // The documented bodies: a position ahead of the feed, and no stream from a node that awaits `recover`.
    let own = credentials(&api);
    let ahead = asks(&server, "/revocations?after=1:9999", Some(&own)).await;
    assert_eq!(
        (ahead.status, ahead.body.as_str()),
        (409, r#"{"error":"ahead"}"#)
    );
    assert_eq!(ahead.header("retry-after"), Some("2"));
    server.execute("UPDATE feed_head SET restored_at = 1");
    server.app.poll().await.unwrap();
    let closed = asks(&server, "/revocations", Some(&own)).await;
    assert_eq!(
        (closed.status, &closed.json()["error"]),
        (503, &"temporarily_unavailable".into())
    );
    assert!(closed.header("retry-after").is_some());
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn unknown_subscriber_does_not_block_acknowledgements(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let api = server.api_server().await;
    let ack = |client: &str| portcullis::db::Acknowledged {
        client_id: client.into(),
        instance: "one".to_owned(),
        epoch: 1,
        seq: 1,
        kids: Vec::new(),
        max_age: None,
        acked_at: server.clock.now(),
    };
    let (unknown, there) = (ack("of-a-newer-database"), ack(api.id()));
    server
        .write(move |tx| {
            tx.put_ack(&unknown)?;
            tx.put_ack(&there)
        })
        .await;
    assert_eq!(server.count("SELECT count(*) AS n FROM feed_acks"), 1);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn acknowledgement_is_recorded(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let api = server.api_server().await;
    let service = server.subscriber(&api, "billing-1").start().await.unwrap();
    let count = || {
        server.count("SELECT count(*) AS n FROM feed_acks WHERE instance = 'billing-1' AND seq = 1")
    };
    until("an acknowledgement", || count() == 1).await;
    server.signs_out_everywhere("alice").await;
    until("another", || {
        server.count("SELECT count(*) AS n FROM feed_acks WHERE seq = 2 AND epoch = 1") == 1
    })
    .await;
    drop(service);
    // A malformed acknowledgement is rejected.
    let good = json!({"instance": "a", "epoch": 1, "seq": 1, "kids": []});
    for (change, reason) in [
        (json!({"instance": ""}), "instance"),
        (json!({"instance": "a b"}), "instance"),
        (json!({"instance": "x".repeat(129)}), "instance"),
        (json!({"kids": vec!["k"; 65]}), "kids"),
        (json!({"seq": -1}), "body"),
        (json!({"epoch": "1"}), "body"),
    ] {
        let mut body = good.clone();
        body.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        posts(&server, &api, &body)
            .await
            .refused("invalid_request", "feed.denied", reason);
    }
    assert_eq!(posts(&server, &api, &good).await.json()["max_age"], 60);
    let mut ahead = good.clone();
    ahead["seq"] = json!(99);
    posts(&server, &api, &ahead).await.is_conflict();
    assert!(
        !server.app.feed.is_restored(),
        "a bare claim proves nothing"
    );
}

async fn posts(server: &Server, api: &TestClient, body: &Value) -> Answer {
    let own = credentials(api);
    let headers = [
        ("Authorization", own.as_str()),
        ("Content-Type", "application/json"),
    ];
    server
        .browser()
        .send("POST", "/revocations/ack", &headers, Some(body.to_string()))
        .await
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn stale_service_answers_503_until_updated(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let shop = server.shop().await;
    let service = server.service("orders-1").await;
    let held = tokens(&server, &shop).await;
    assert!(accepts(&service, held.access()));
    // The clock moves, and no revocation data arrives meanwhile.
    server.services.advance(seconds(61));
    assert!(
        matches!(
            service.verify(held.access(), &Need::any()),
            Err(Rejected::Stale)
        ),
        "503, never 401"
    );
    server.clock.advance(seconds(61));
    until("fresh news", || accepts(&service, held.access())).await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn restored_database_blocks_issuance_until_recover(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let shop = server.shop().await;
    let api = server.api_server().await;
    let held = tokens(&server, &shop).await;
    server.signs_out_everywhere("bob").await;
    server.app.number_waiting().await.unwrap();
    server.app.poll().await.unwrap();
    // An operator restores the database as it was an hour ago.
    server.execute("UPDATE feed_head SET seq = 0");
    until("restored mode", || server.app.feed.is_restored()).await;
    shop.refreshes(held.refresh(), &[]).await.is_unavailable();
    asks(&server, "/revocations", Some(&credentials(&api)))
        .await
        .is_unavailable();
    assert_eq!(server.browser().get("/login").await.status, 503);
    assert_eq!(
        asks(&server, "/oauth2/jwks", None).await.status,
        200,
        "keys are public all the same"
    );
    // After `recover`, all earlier tokens are rejected and new ones work.
    let act = portcullis::key_manager::Act {
        actor: portcullis::audit::Actor::Operator,
        now: server.clock.now(),
    };
    let renewal = server
        .app
        .key_manager
        .table()
        .renewal("restored", &act)
        .await
        .unwrap();
    server
        .write(move |tx| {
            tx.recover(act.now)?;
            renewal.run(tx, &act)
        })
        .await;
    until("an end of it", || !server.app.feed.is_restored()).await;
    shop.refreshes(held.refresh(), &[]).await.refused(
        "invalid_grant",
        "token.rejected",
        "grant_ended",
    );
    let service = server.subscriber(&api, "orders-1").start().await.unwrap();
    assert!(!accepts(&service, held.access()));
    let new = tokens(&server, &shop).await;
    until("the new epoch", || accepts(&service, new.access())).await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn refresh_token_from_the_future_is_restore_evidence(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let shop = server.shop().await;
    let first = tokens(&server, &shop).await;
    let second = shop.refreshes(first.refresh(), &[]).await.ok();
    server.execute("UPDATE grants SET generation = 0");
    shop.refreshes(second.refresh(), &[]).await.refused(
        "invalid_grant",
        "db.restored",
        "refresh_ahead",
    );
    until("restored mode", || server.app.feed.is_restored()).await;
    shop.refreshes(second.refresh(), &[]).await.is_unavailable();
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn high_water_mark_beside_kek_survives_restart(#[case] db: Db) {
    let server = discoverable_server(db).await;
    server.signs_out_everywhere("bob").await;
    until("a mark", || backup::mark(&server.config).contains(" 1 2 ")).await;
    let mut server = server;
    server.unfollow().await;
    server.execute("UPDATE feed_head SET seq = 0, beat = 0");
    let server = server.restarted().await;
    assert!(server.app.feed.is_restored());
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn signed_frame_of_subscriber_is_restore_evidence(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let api = server.api_server().await;
    server.signs_out_everywhere("bob").await;
    server.app.number_waiting().await.unwrap();
    server.app.poll().await.unwrap();
    let own = credentials(&api);
    let answer = asks(&server, "/revocations", Some(&own)).await;
    let frame = answer.json()["frames"][0].as_str().unwrap().to_owned();
    let mut server = server;
    server.unfollow().await;
    // The node starts on an older copy, and its high-water mark was lost with the machine.
    server.execute("UPDATE feed_head SET seq = 0, beat = 0");
    backup::forget_marks(&server.config);
    let server = server.restarted().await;
    assert!(!server.app.feed.is_restored());
    let mut claim = json!({"instance": "a", "epoch": 1, "seq": 2, "kids": []});
    posts(&server, &api, &claim).await.is_conflict();
    let mut forged = frame.clone();
    forged.replace_range(frame.len() - 8.., "AAAAAAAA");
    claim["frame"] = json!(forged);
    posts(&server, &api, &claim).await.is_conflict();
    server.app.poll().await.unwrap();
    assert!(
        !server.app.feed.is_restored(),
        "a forged frame proves nothing"
    );
    claim["frame"] = json!(frame);
    posts(&server, &api, &claim).await.is_conflict();
    server.app.poll().await.unwrap();
    assert!(server.app.feed.is_restored());
}

/// Opens a stream over a plain socket, to read its bytes.
async fn opens_stream(server: &Server, api: &TestClient) -> reqwest::Response {
    crate::fixtures::browser::http(&server.base)
        .get(format!("{}/revocations/stream", server.base))
        .header("Authorization", credentials(api))
        .send()
        .await
        .unwrap()
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn stream_sends_beats_and_closes_cleanly(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let api = server.api_server().await;
    let mut stream = opens_stream(&server, &api).await;
    assert_eq!(stream.status(), 200);
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    assert_eq!(stream.headers()["x-accel-buffering"], "no");
    assert_eq!(stream.headers()["cache-control"], "no-store");
    let mut seen = String::new();
    while !seen.contains("id: 1:1\ndata: ") {
        seen += std::str::from_utf8(&stream.chunk().await.unwrap().unwrap()).unwrap();
    }
    // When the node stops, the stream tells the client when to reconnect, and ends.
    server.app.draining.begin();
    let mut rest = String::new();
    while let Some(chunk) = stream.chunk().await.unwrap() {
        rest += std::str::from_utf8(&chunk).unwrap();
    }
    assert!(rest.ends_with("retry: 500\n\n"), "{rest}");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn subscriber_may_open_sixteen_streams(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let api = server.api_server().await;
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(opens_stream(&server, &api).await);
    }
    assert!(open.iter().all(|stream| stream.status() == 200));
    assert_eq!(opens_stream(&server, &api).await.status(), 503);
    let other = server.api_server().await;
    assert_eq!(opens_stream(&server, &other).await.status(), 200);
    drop(open);
    until("room again", || server.app.feed.streams.count() <= 1).await;
    assert_eq!(opens_stream(&server, &api).await.status(), 200);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn stream_closes_when_subscriber_is_deleted(#[case] db: Db) {
    let server = discoverable_server(db).await;
    let api = server.api_server().await;
    let mut stream = opens_stream(&server, &api).await;
    let (id, now) = (api.client.id.clone(), server.clock.now());
    server
        .write(move |tx| tx.disable_client(&id, &Actor::Operator, now))
        .await;
    let mut seen = String::new();
    while let Some(chunk) = stream.chunk().await.unwrap() {
        seen += std::str::from_utf8(&chunk).unwrap();
    }
    assert!(seen.ends_with("retry: 500\n\n"), "{seen}");
    asks(&server, "/revocations", Some(&credentials(&api)))
        .await
        .refused("invalid_client", "client.auth_failed", "unknown");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn opening_stream_is_closed_when_subscriber_is_deleted(#[case] db: Db) {
    let server = Server::start(db).await;
    let api = server.api_server().await;
    server.app.poll().await.unwrap();
    // The stream has checked its subscriber a moment ago, and is not counted yet.
    let mut standing = server.app.feed.streams.active_subscribers();
    assert_eq!(server.app.feed.streams.count(), 0);
    let (id, now) = (api.client.id.clone(), server.clock.now());
    server
        .write(move |tx| tx.disable_client(&id, &Actor::Operator, now))
        .await;
    server.app.poll().await.unwrap();
    assert!(standing.has_changed().unwrap());
    let standing = standing.borrow_and_update();
    assert!(!standing.includes(&api.client.id, api.client.auth_epoch));
}

impl Answer {
    #[track_caller]
    fn is_conflict(&self) {
        assert_eq!(self.status, 409, "{}", self.body);
        assert!(self.logged().iter().any(|(event, _)| event == "feed.ahead"));
    }

    #[track_caller]
    fn is_unavailable(&self) {
        assert_eq!(self.status, 503, "{}", self.body);
        assert!(self.header("retry-after").is_some());
    }
}

/// Returns the kinds of the records that an operation writes, in alphabetical order.
fn records(server: &Server) -> String {
    let kinds = ["C", "G", "J", "K", "S", "U"];
    let many = |kind: &&str| {
        let query = format!("SELECT count(*) AS n FROM revocations WHERE kind = '{kind}'");
        usize::try_from(server.count(&query)).unwrap()
    };
    kinds.iter().map(|kind| kind.repeat(many(kind))).collect()
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn every_revocation_writes_a_feed_record(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let assert_records = async |act: &str, before: String, wanted: &str| {
        let mut more: Vec<char> = records(&server).chars().collect();
        for known in before.chars() {
            more.remove(more.iter().position(|kind| *kind == known).unwrap());
        }
        assert_eq!(more.into_iter().collect::<String>(), wanted, "{act}");
    };
    let now = server.clock.now();
    // Tokens, revoked by their client.
    let (one, other) = (tokens(&server, &shop).await, tokens(&server, &shop).await);
    let before = records(&server);
    shop.revokes(one.access()).await;
    assert_records("an access token is revoked", before, "J").await;
    let before = records(&server);
    shop.revokes("nothing.of.ours").await;
    assert_records("nothing is revoked", before, "").await;
    let before = records(&server);
    shop.revokes(one.refresh()).await;
    assert_records("a refresh token is revoked", before, "G").await;
    // Replays.
    let before = records(&server);
    let next = shop.refreshes(other.refresh(), &[]).await.ok();
    shop.refreshes(next.refresh(), &[]).await.ok();
    shop.refreshes(other.refresh(), &[]).await;
    assert_records("a refresh token comes back", before, "G").await;
    let code = server.browser().allows(&shop).await;
    shop.redeems(&code).await.ok();
    let before = records(&server);
    shop.redeems(&code).await;
    assert_records("a code comes back", before, "G").await;
    // Operations of the user.
    let mut alice = server.browser();
    alice.allows(&shop).await;
    let before = records(&server);
    alice.signs_out().await;
    assert_records("a sign-out", before, "S").await;
    let mut alice = server.browser();
    shop.redeems(&alice.allows(&shop).await).await.ok();
    let standing = server.count("SELECT count(*) AS n FROM grants WHERE ended_at IS NULL");
    let account = alice.get("/account").await;
    let (csrf, consent) = (account.values("csrf"), account.hidden("consent"));
    let before = records(&server);
    alice
        .post("/account", &[("csrf", &csrf[0]), ("consent", &consent)])
        .await;
    assert_records(
        "a consent is withdrawn",
        before,
        &"G".repeat(usize::try_from(standing).unwrap()),
    )
    .await;
    // Operations of operators.
    let (bob, dave) = server
        .write(|tx| {
            let find = |tx: &mut portcullis::db::Transaction<'_>, name: &str| {
                let name = portcullis::accounts::user::Username::parse(name).unwrap();
                Ok::<_, portcullis::db::Error>(tx.find_credentials(&name)?.map(|(user, _)| user.id))
            };
            Ok((find(tx, "bob")?.unwrap(), find(tx, "alice")?.unwrap()))
        })
        .await;
    let before = records(&server);
    let user = bob.clone();
    server
        .write(move |tx| {
            tx.revoke_all_for_user(
                &user,
                &RevocationReason::PasswordChanged,
                &Actor::Operator,
                now,
            )
        })
        .await;
    assert_records(
        "a password is set, or the user signs out everywhere",
        before,
        "U",
    )
    .await;
    let before = records(&server);
    server
        .write(move |tx| tx.disable_user(&dave, &Actor::Operator, now))
        .await;
    assert_records("an account is locked", before, "U").await;
    type Act = fn(
        &mut portcullis::db::Transaction<'_>,
        &portcullis::id::ClientId,
        portcullis::time::Timestamp,
    ) -> Result<bool, portcullis::db::Error>;
    let acts: [(&str, Act); 3] = [
        ("a client's secret is compromised", |tx, id, now| {
            tx.revoke_all_for_client(
                id,
                &RevocationReason::SecretCompromised,
                &Actor::Operator,
                now,
            )
        }),
        ("a client is switched off", |tx, id, now| {
            tx.disable_client(id, &Actor::Operator, now)
        }),
        ("a client is deleted", |tx, id, now| {
            tx.delete_client(id, &Actor::Operator, now)
        }),
    ];
    for (act, work) in acts {
        let (before, id) = (records(&server), shop.client.id.clone());
        server.write(move |tx| work(tx, &id, now)).await;
        assert_records(act, before, "C").await;
    }
    // Keys.
    let before = records(&server);
    let kid = server
        .app
        .keys()
        .signer(portcullis::keys::Ring::token(portcullis::keys::Alg::ES256))
        .unwrap()
        .to_owned();
    let act = portcullis::key_manager::Act {
        actor: portcullis::audit::Actor::Operator,
        now,
    };
    server
        .app
        .key_manager
        .table()
        .revoke(&kid, "leaked", &act)
        .await
        .unwrap();
    assert_records("a key is revoked", before, "K").await;
    // Expiry alone writes no record.
    let before = records(&server);
    server.advance(seconds(400 * 86_400));
    assert_records("time passes", before, "").await;
}
