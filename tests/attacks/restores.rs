//! Rows of the catalogue: a database that was restored from an older copy.

use std::time::Duration;

use serde_json::json;

use crate::expect::{json_error, logged, login_page, summary};
use crate::fixtures::backup::Backup;
use crate::fixtures::client::basic;
use crate::fixtures::{Answer, Browser, Server, TestClient, Tokens, journal, log};
use crate::token_code::Flow;
use crate::token_refresh::redeem_new_code;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a522_restored_database_stops_issuing),
    row!(a523_empty_start_keeps_the_high_water_mark),
];

/// Returns whether an event was logged with this reason since `mark`.
fn was_logged(mark: usize, event: &str, reason: &str) -> bool {
    let is = |line: &log::Event, field: &str, value: &str| {
        line.get(field).is_some_and(|found| found == value)
    };
    log::since(mark)
        .iter()
        .any(|line| is(line, "event", event) && is(line, "reason", reason))
}

/// Tokens that were issued and revoked after the copy was made.
struct IssuedAfterBackup {
    revoked: Tokens,
    lost: Tokens,
    code: String,
    alice: Browser,
    frame: String,
}

/// Sends an acknowledgement of a subscriber to a node.
async fn acknowledges(server: &Server, api: &TestClient, frame: Option<&str>) -> Answer {
    let own = basic(api.id(), api.secret.as_ref().unwrap().expose());
    let headers = [
        ("Authorization", own.as_str()),
        ("Content-Type", "application/json"),
    ];
    let ack = json!({ "instance": "a", "epoch": 1, "seq": 99, "kids": [], "frame": frame });
    let body = Some(ack.to_string());
    server
        .browser()
        .send("POST", "/revocations/ack", &headers, body)
        .await
}

/// Checks that the node issues nothing and that the revoked grant cannot be used.
async fn issues_nothing(
    stage: &Stage,
    case: usize,
    server: &Server,
    web: &TestClient,
    since: &IssuedAfterBackup,
) {
    stage.check(case, server.app.feed.is_restored(), || {
        "still issuing".to_owned()
    });
    for tokens in [&since.revoked, &since.lost] {
        let answer = web.refreshes(tokens.refresh(), &[]).await;
        stage.check(case, answer.status == 503, || summary(&answer));
    }
    let answer = since.alice.at(&server.base).get(&web.request(&[])).await;
    stage.check(case, answer.status == 503, || summary(&answer));
}

async fn a522_restored_database_stops_issuing(stage: &Stage) {
    let server = Server::start(stage.db()).await;
    let mut flow = Flow::begin(&server).await;
    let api = server.api_server().await;
    let revoked = redeem_new_code(&mut flow).await;
    server.app.number_waiting().await.unwrap();
    let (server, backup) = Backup::of(server).await;
    server.advance(Duration::from_secs(600));
    let web = flow.web.at(&server.base);
    let answer = web.revokes(revoked.refresh()).await;
    stage.check(0, answer.status == 200, || summary(&answer));
    let mut alice = server.enters("alice").await;
    let lost = web.redeems(&alice.allows(&web).await).await.ok();
    let code = alice.allows(&web).await;
    server.app.number_waiting().await.unwrap();
    server.app.poll().await.unwrap();
    let own = basic(api.id(), api.secret.as_ref().unwrap().expose());
    let headers = [("Authorization", own.as_str())];
    let answer = server
        .browser()
        .send("GET", "/revocations", &headers, None)
        .await;
    let frame = answer.json()["frames"][0].as_str().unwrap().to_owned();
    let since = IssuedAfterBackup {
        revoked,
        lost,
        code,
        alice,
        frame,
    };
    server.advance(Duration::from_secs(120));
    server.stop().await;
    for case in 1..=6 {
        let mark = log::mark();
        let restored = backup.restored().await;
        let (web, api) = (web.at(&restored.base), api.at(&restored.base));
        // Not evidence of a restore: a code, a session, and a position without a signed frame.
        let answer = web.redeems(&since.code).await;
        stage.expect(case, json_error(&answer, 400, "invalid_grant"));
        let answer = since
            .alice
            .at(&restored.base)
            .opens(&web.request(&[]))
            .await;
        stage.expect(case, login_page(&answer));
        let answer = acknowledges(&restored, &api, None).await;
        stage.check(case, answer.status == 409, || summary(&answer));
        stage.check(case, !restored.app.feed.is_restored(), || {
            "closed by a claim".to_owned()
        });
        match case {
            1 => {
                let answer = web.refreshes(since.lost.refresh(), &[]).await;
                stage.expect(case, json_error(&answer, 400, "invalid_grant"));
                stage.expect(case, logged(&answer, "db.restored", "grant_lost"));
            }
            2 => {
                let token = since.lost.access();
                let answer = restored.browser().asks_userinfo("GET", token).await;
                stage.check(case, answer.status == 503, || summary(&answer));
            }
            3 => {
                let answer = api.introspects(since.lost.refresh()).await;
                stage.check(case, answer.status == 503, || summary(&answer));
            }
            4 => {
                let answer = web.revokes(since.lost.refresh()).await;
                stage.check(case, answer.status == 503, || summary(&answer));
            }
            5 => {
                let mut forged = since.frame.clone();
                forged.replace_range(forged.len() - 8.., "AAAAAAAA");
                acknowledges(&restored, &api, Some(&forged)).await;
                stage.check(case, !restored.app.feed.is_restored(), || {
                    "closed by a forgery".to_owned()
                });
                let answer = acknowledges(&restored, &api, Some(&since.frame)).await;
                stage.check(case, answer.status == 409, || summary(&answer));
            }
            _ => {
                // A token of a grant that the copy contains is not evidence either.
                let answer = web.refreshes(since.revoked.refresh(), &[]).await;
                stage.check(case, answer.status == 200, || summary(&answer));
                stage.check(case, !restored.app.feed.is_restored(), || {
                    "closed by no evidence".to_owned()
                });
                web.refreshes(since.lost.refresh(), &[]).await;
            }
        }
        issues_nothing(stage, case, &restored, &web, &since).await;
        let reason = if case == 5 { "subscriber" } else { "grant" };
        stage.check(case, was_logged(mark, "db.restored", reason), || {
            "no db.restored".to_owned()
        });
        restored.remove().await;
    }
    journal::strike_out(|exchange| exchange.answer.status == 503);
}

async fn a523_empty_start_keeps_the_high_water_mark(stage: &Stage) {
    let server = Server::start(stage.db()).await;
    let mut flow = Flow::begin(&server).await;
    let revoked = redeem_new_code(&mut flow).await;
    let (server, backup) = Backup::of(server).await;
    let web = flow.web.at(&server.base);
    web.revokes(revoked.refresh()).await;
    server.app.settle_feed().await.unwrap();
    let kek = server.config.keys.kek.clone();
    server.stop().await;
    // 1. A start on an empty database logs a warning.
    let mark = log::mark();
    let empty = backup.replaced_by_nothing().await;
    let warned = was_logged(mark, "db.unfamiliar", "empty_beside_mark");
    stage.check(1, warned, || "no warning".to_owned());
    stage.check(1, empty.config.keys.kek == kek, || {
        "another folder".to_owned()
    });
    empty.app.settle_feed().await.unwrap();
    empty.remove().await;
    // 2. The empty start kept the high-water mark, so the copy is detected as restored.
    let mark = log::mark();
    let restored = backup.put_back().await;
    stage.check(2, was_logged(mark, "db.restored", "mark"), || {
        "no db.restored".to_owned()
    });
    let answer = web
        .at(&restored.base)
        .refreshes(revoked.refresh(), &[])
        .await;
    stage.check(2, answer.status == 503, || summary(&answer));
    restored.remove().await;
    journal::strike_out(|exchange| exchange.answer.status == 503);
}
