//! A row of the catalogue: revocation while one node cannot reach the database.

use std::time::{Duration, Instant};

use portcullis_verifier::{Need, Rejected, Verifier};
use serde_json::json;

use crate::expect::{json_error, logged, summary};
use crate::fixtures::client::basic;
use crate::fixtures::relay::Relay;
use crate::fixtures::{Answer, Db, Server, journal, log, raw};
use crate::token_code::Flow;
use crate::token_refresh::redeem_new_code;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[row!(
    a330_node_without_database_issues_no_fresh_revocation_data
)];

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn verdict(service: &Verifier, token: &str) -> Result<(), Rejected> {
    service.verify(token, &Need::any()).map(drop)
}

/// Waits up to 20 s until a condition holds; returns whether it did.
pub async fn until(mut holds: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > seconds(20) {
            return false;
        }
        // Lets all other tasks run, including sockets.
        tokio::task::spawn_blocking(std::thread::yield_now)
            .await
            .unwrap();
    }
    true
}

/// Sends a request raw, outside the journal, because this row expects a 5xx.
async fn asks(node: &Server, target: &str, authorization: &str, body: &str) -> Answer {
    let request = raw::post(target, &[("Authorization", authorization)], body);
    raw::bytes(&node.base, request).await.unwrap()
}

async fn a330_node_without_database_issues_no_fresh_revocation_data(stage: &Stage) {
    let relay = match stage.db() {
        Db::Postgres => Relay::new(),
        // One node without a network.
        Db::Sqlite => None,
    };
    let Some(relay) = relay else {
        return stage.check(0, true, String::new);
    };
    let whole = Server::found_by_services(Db::Postgres, |_| {}).await;
    let cut = whole
        .node_with(|config| {
            config.database.url = Some(relay.through(&config.database_url()));
        })
        .await;
    let api = whole.api_server().await;
    let follows_cut = whole.subscriber(&api, "cut-1").feed_at(cut.base.as_str());
    let follows_cut = follows_cut.start().await.unwrap();
    let follows_whole = whole.subscriber(&api, "whole-1").start().await.unwrap();
    let mut alice = Flow::begin(&whole).await;
    let hers = redeem_new_code(&mut alice).await;
    let mut bob = whole.enters("bob").await;
    let kept = alice.web.redeems(&bob.allows(&alice.web).await).await.ok();
    let own = basic(api.id(), api.secret.as_ref().unwrap().expose());
    let shops = basic(alice.web.id(), alice.web.secret.as_ref().unwrap().expose());
    let about = |token: &str| format!("token={token}");
    let before = asks(&cut, "/oauth2/introspect", &own, &about(hers.access())).await;
    stage.check(1, before.json()["active"] == true, || summary(&before));

    // The connection to the database is silent, but not closed.
    let mark = log::mark();
    relay.falls_silent();
    let degraded = |event: &log::Event| {
        let is = |field: &str, value: &str| event.get(field).is_some_and(|is| is == value);
        is("event", "node.degraded") && is("reason", "poll") && is("severity", "high")
    };
    let told = until(|| log::since(mark).iter().any(degraded)).await;
    stage.check(1, told, || "no node.degraded".into());
    let position_before = cut.app.feed.position().unwrap();
    // The other node revokes as usual, and its subscribers receive the revocation.
    let revoked = alice.web.revokes(hers.refresh()).await;
    stage.check(3, revoked.status == 200, || summary(&revoked));
    let known = until(|| verdict(&follows_whole, hers.access()) == Err(Rejected::Revoked)).await;
    stage.check(3, known, || {
        "the subscriber of the other node accepts it".into()
    });

    // The connection is closed: requests that need the database get 503 at once.
    relay.breaks();
    let (active, refresh) = (
        about(hers.access()),
        format!("grant_type=refresh_token&refresh_token={}", kept.refresh()),
    );
    for (target, authorization, body) in [
        ("/oauth2/introspect", &own, &active),
        ("/oauth2/token", &shops, &refresh),
    ] {
        let answer = asks(&cut, target, authorization, body).await;
        stage.expect(1, json_error(&answer, 503, "temporarily_unavailable"));
        stage.check(1, answer.header("retry-after").is_some(), || {
            summary(&answer)
        });
        if target == "/oauth2/introspect" {
            stage.expect(1, logged(&answer, "introspection.degraded", ""));
        }
    }
    // A frame of the other node only proves that this node is behind, so it must not stop issuing.
    let ahead = whole.app.feed.position().unwrap();
    let keys = whole.app.keys();
    let frame = whole.app.feed.frame_after(Default::default(), &keys);
    let body = json!({
        "instance": "cut-1", "epoch": ahead.epoch, "seq": ahead.seq, "kids": [],
        "frame": frame.unwrap().jws,
    });
    let answer = asks(&cut, "/revocations/ack", &own, &body.to_string()).await;
    stage.check(4, answer.status == 409, || summary(&answer));

    // After one minute the revocation data of the other node is still fresh.
    whole.advance(seconds(61));
    let moves = until(|| {
        whole
            .app
            .feed
            .position()
            .is_some_and(|place| place.beat.since(position_before.beat) >= seconds(60))
    })
    .await;
    stage.check(3, moves, || "its feed beat does not move".into());
    let fresh = until(|| verdict(&follows_whole, kept.access()) == Ok(())).await;
    stage.check(3, fresh, || "a valid token is rejected there".into());
    // The disconnected node reports the true age of its revocation data, so its subscribers stop trusting it.
    let now_at = cut.app.feed.position().unwrap();
    stage.check(2, now_at == position_before, || {
        format!("{now_at:?} after {position_before:?}")
    });
    let stale = verdict(&follows_cut, kept.access());
    stage.check(2, stale == Err(Rejected::Stale), || format!("{stale:?}"));

    // Reconnected: the node catches up, and so do its subscribers.
    relay.heals();
    let caught_up = until(|| {
        cut.app
            .feed
            .position()
            .is_some_and(|place| place.seq >= ahead.seq)
    })
    .await;
    stage.check(5, caught_up, || format!("{:?}", cut.app.feed.position()));
    let trusts = until(|| verdict(&follows_cut, kept.access()) == Ok(())).await;
    stage.check(5, trusts, || {
        format!("{:?}", verdict(&follows_cut, kept.access()))
    });
    let learnt = verdict(&follows_cut, hers.access());
    stage.check(5, learnt == Err(Rejected::Revoked), || {
        format!("{learnt:?}")
    });
    let closed = [&whole, &cut].map(|node| node.app.feed.is_restored());
    stage.check(4, closed == [false, false], || format!("{closed:?}"));
    drop((follows_cut, follows_whole));
    // The general checks are skipped: without TLS there is no HSTS header here.
    journal::begin();
    cut.stop().await;
    whole.remove().await;
}
