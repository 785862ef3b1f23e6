//! Rows of the catalogue: the revocation feed that a node serves.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use portcullis::audit::{Actor, RevocationReason};
use portcullis::db::{Record, Transaction};
use portcullis::id::uuid;
use portcullis::oauth::resource::Resource;
use portcullis_verifier::Kind;
use serde_json::Value;

use crate::expect::{json_error, logged, summary};
use crate::fixtures::client::{basic, claims};
use crate::fixtures::server::sweep;
use crate::fixtures::{Answer, Server, TestClient};
use crate::token_code::Flow;
use crate::token_refresh::redeem_new_code;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a429_feed_positions_follow_the_commit_order),
    row!(a433_feed_contains_no_identifiers_and_needs_credentials),
    row!(a434_feed_records_outlive_their_tokens),
    row!(a437_feed_streams_are_limited_per_client_and_node),
    row!(a438_feed_answers_are_not_cacheable),
];

const FEED: &str = "/revocations";
const STREAM: &str = "/revocations/stream";

async fn asks(server: &Server, path: &str, authorization: Option<&str>) -> Answer {
    let headers: Vec<(&str, &str)> = authorization
        .iter()
        .map(|value| ("Authorization", *value))
        .collect();
    server.browser().send("GET", path, &headers, None).await
}

fn credentials(client: &TestClient) -> String {
    basic(client.id(), client.secret.as_ref().unwrap().expose())
}

/// Returns the claims of all frames of a response.
fn frames(answer: &Answer) -> Vec<Value> {
    let frames = answer.json()["frames"].as_array().cloned();
    let frames = frames.unwrap_or_default();
    let jws = frames.iter().filter_map(Value::as_str);
    jws.map(claims).collect()
}

fn packed(frames: &[Value]) -> String {
    let records = frames.iter().filter_map(|frame| frame["records"].as_str());
    records.collect()
}

/// Revoking transactions per node, all nodes at once; a million are run by hand.
const EVENTS: usize = 300;

async fn a429_feed_positions_follow_the_commit_order(stage: &Stage) {
    let all_nodes = || std::iter::once(&stage.server).chain(&stage.nodes);
    let before = stage.server.count("SELECT seq AS n FROM feed_head");
    let mut writers = Vec::new();
    for (node, server) in all_nodes().enumerate() {
        let (store, now) = (server.app.store.clone(), server.clock.now());
        writers.push(actix_web::rt::spawn(async move {
            for number in 0..EVENTS {
                let value = format!("{node}-{number}");
                let work = move |tx: &mut Transaction<'_>| {
                    let record = Record {
                        kind: Kind::Grant,
                        value: &value,
                        floor: 0,
                        reason: &RevocationReason::Revoked,
                        actor: &Actor::Operator,
                    };
                    tx.put_revocation(&record, now)
                };
                store.transaction(work).await.unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    for node in all_nodes() {
        node.app.number_waiting().await.unwrap();
    }
    let all = i64::try_from(EVENTS * (1 + stage.nodes.len())).unwrap() + before;
    let numbered = stage
        .server
        .count("SELECT count(DISTINCT seq) AS n FROM revocations");
    let highest = stage.server.count("SELECT max(seq) AS n FROM revocations");
    stage.check(1, numbered == all && highest == all, || {
        format!("{numbered} numbers up to {highest}, want {all}")
    });
    for node in all_nodes() {
        node.app.poll().await.unwrap();
        let held = node.app.feed.live_records();
        stage.check(1, i64::try_from(held) == Ok(all), || {
            format!("a node holds {held} of {all}")
        });
    }
}

async fn a433_feed_contains_no_identifiers_and_needs_credentials(stage: &Stage) {
    let server = &stage.server;
    let api = server
        .resource_server("rs1", crate::fixtures::server::AUDIENCE)
        .await;
    let mut flow = Flow::begin(server).await;
    let tokens = redeem_new_code(&mut flow).await;
    flow.web.revokes(tokens.access()).await;
    server.signs_out_everywhere("alice").await;
    server.app.number_waiting().await.unwrap();
    server.app.poll().await.unwrap();
    let answer = asks(server, FEED, Some(&credentials(&api))).await;
    let told = frames(&answer);
    let text = serde_json::to_string(&told).unwrap();
    let bytes = portcullis::secret::from_base64url(&packed(&told)).unwrap_or_default();
    stage.check(
        1,
        bytes.len() >= 50 && bytes.len().is_multiple_of(25),
        || text.clone(),
    );
    let inside = tokens.access_claims();
    for secret in ["jti", "sub", "sid", "grant_id", "client_id"] {
        let value = inside[secret].as_str().unwrap_or_default();
        let shown = text.contains(value)
            || bytes
                .windows(value.len().max(1))
                .any(|part| part == value.as_bytes());
        stage.check(1, !value.is_empty() && !shown, || {
            format!("{secret} is shown")
        });
    }
    stage.check(1, !text.contains("alice") && !text.contains("eyJ"), || {
        text.clone()
    });
    // Without credentials, with wrong ones, and with those of a client that is not a resource server.
    for path in [FEED, STREAM] {
        let anonymous = asks(server, path, None).await;
        stage.expect(2, json_error(&anonymous, 401, "invalid_client"));
        let wrong = asks(server, path, Some(&basic(api.id(), "guess"))).await;
        stage.expect(2, json_error(&wrong, 401, "invalid_client"));
        let other = asks(server, path, Some(&credentials(&flow.web))).await;
        stage.expect(2, json_error(&other, 401, "invalid_client"));
        stage.expect(2, logged(&other, "feed.denied", "no_resource_server"));
    }
}

/// Token lifetimes are raised and lowered between revocations. A record stays until one minute after the
/// expiry of the last token that it can match.
async fn a434_feed_records_outlive_their_tokens(stage: &Stage) {
    let server = &stage.server;
    let now = || server.clock.now();
    for (round, minutes) in [5_u64, 60, 15, 5, 30].into_iter().enumerate() {
        let life = Duration::from_secs(minutes * 60);
        let resource = Resource {
            id: uuid(&server.app.entropy, now()),
            audience: format!("https://api{round}.example"),
            name: "API".to_owned(),
            scopes: portcullis::oauth::request::scope::Scope::parse("").unwrap_or_default(),
            access_ttl: Some(life),
            alg: portcullis::keys::Alg::ES256,
            max_age: portcullis_verifier::MaxAge::STANDARD,
            created_at: now(),
        };
        server.write(move |tx| tx.put_resource(&resource)).await;
        // The last token with this lifetime is issued now.
        let dies = now() + life;
        let (value, at) = (format!("session-{round}"), now());
        server
            .write(move |tx| {
                let record = Record {
                    kind: Kind::Session,
                    value: &value,
                    floor: 0,
                    reason: &RevocationReason::Revoked,
                    actor: &Actor::Operator,
                };
                tx.put_revocation(&record, at)
            })
            .await;
        server.app.number_waiting().await.unwrap();
        let query =
            format!("SELECT expires_at AS n FROM revocations WHERE value = 'session-{round}'");
        let kept = server.count(&query);
        let wanted = (dies + Duration::from_secs(60)).micros();
        stage.check(1, kept >= wanted, || {
            format!(
                "life {minutes} min: gone {} s early",
                (wanted - kept) / 1_000_000
            )
        });
        // The one-hour lifetime of the second round also applies to the two rounds after it.
        server.advance(Duration::from_secs(20 * 60));
    }
    server.advance(Duration::from_secs(3 * 3_600));
    let sweep_at = now();
    server.write(move |tx| sweep(tx, sweep_at)).await;
    let left = server.count("SELECT count(*) AS n FROM revocations");
    stage.check(1, left == 0, || format!("{left} rows stay"));
    // Three hours later no token has the one-hour lifetime, so the configured lifetime applies again.
    let (own, at) = (server.app.config.tokens.access.0, now());
    server
        .write(move |tx| tx.require_max_token_ttl(own, at))
        .await;
    let longest = server.count("SELECT longest_life AS n FROM feed_head");
    stage.check(1, i64::try_from(own.as_micros()) == Ok(longest), || {
        format!("{longest}")
    });
}

/// Opens a stream outside the journal.
async fn opens(server: &Server, api: &TestClient) -> reqwest::Response {
    // Shared by all streams, because each new client loads the system's certificates.
    static CLIENTS: [OnceLock<reqwest::Client>; 2] = [const { OnceLock::new() }; 2];
    let over_tls = server.base.starts_with("https:");
    CLIENTS[usize::from(over_tls)]
        .get_or_init(|| crate::fixtures::browser::http(&server.base))
        .get(format!("{}{STREAM}", server.base))
        .header("Host", "op.example")
        .header("Authorization", credentials(api))
        .send()
        .await
        .unwrap()
}

/// Subscribers with 16 streams each; thousands are run by hand.
const SUBSCRIBERS: usize = 20;

async fn a437_feed_streams_are_limited_per_client_and_node(stage: &Stage) {
    let server = &stage.server;
    let mut open = Vec::new();
    let begun = Instant::now();
    for number in 0..SUBSCRIBERS {
        let api = server
            .resource_server(&format!("rs{number}"), crate::fixtures::server::AUDIENCE)
            .await;
        for _ in 0..16 {
            let stream = opens(server, &api).await;
            stage.check(1, stream.status() == 200, || format!("{}", stream.status()));
            open.push(stream);
        }
        let more = opens(server, &api).await;
        let (status, retry) = (more.status(), more.headers().get("retry-after").cloned());
        stage.check(1, status == 503 && retry.is_some(), || format!("{status}"));
    }
    // All streams come from one address, whose limit for other connections is 256.
    stage.check(1, open.len() > 256, || format!("{}", open.len()));
    let count = server.app.feed.streams.count();
    stage.check(1, count == open.len(), || format!("{count}"));
    stage.check(1, begun.elapsed() < Duration::from_secs(150), || {
        "slow".into()
    });
}

async fn a438_feed_answers_are_not_cacheable(stage: &Stage) {
    let server = &stage.server;
    let api = server
        .resource_server("rs1", crate::fixtures::server::AUDIENCE)
        .await;
    let answer = asks(server, FEED, Some(&credentials(&api))).await;
    let caching = answer.header("cache-control");
    stage.check(1, caching == Some("no-store"), || summary(&answer));
    for frame in frames(&answer) {
        let life = frame["exp"].as_u64().zip(frame["iat"].as_u64());
        stage.check(1, life.is_some_and(|(exp, iat)| exp - iat == 30), || {
            frame.to_string()
        });
    }
    let stream = opens(server, &api).await;
    let headers: BTreeMap<String, String> = stream
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("").to_owned()))
        .collect();
    let has = |name: &str, value: &str| headers.get(name).map(String::as_str) == Some(value);
    stage.check(1, has("cache-control", "no-store"), || {
        format!("{headers:?}")
    });
}
