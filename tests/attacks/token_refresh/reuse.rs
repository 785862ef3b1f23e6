//! Refresh tokens that were used before.

use std::time::Duration;

use super::{grant_is_revoked, redeem_new_code, rejected_on_all_nodes, reuse_is_rejected};
use crate::expect::{json_error, logged, summary};
use crate::fixtures::{Db, Server};
use crate::token_code::Flow;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a210_reused_refresh_token_revokes_the_grant),
    row!(a213_refresh_token_two_rotations_old_revokes_the_grant),
    row!(a214_refresh_reuse_is_detected_after_restart_and_clock_change),
    row!(a224_lost_refresh_response_is_repeated_within_grace),
];

const GRACE: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

async fn a210_reused_refresh_token_revokes_the_grant(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    // 1. After the grace period, on another node.
    let first = redeem_new_code(&mut flow).await;
    let live = flow.web.refreshes(first.refresh(), &[]).await.ok();
    stage.server.advance(GRACE + SECOND);
    let answer = flow.web.at(&stage.node(1).base);
    let answer = answer.refreshes(first.refresh(), &[]).await;
    reuse_is_rejected(stage, &stage.server, 1, &answer, &first);
    for tokens in [&first, &live] {
        stage.expect(1, rejected_on_all_nodes(stage.all(), tokens).await);
    }
    let answer = flow.web.refreshes(live.refresh(), &[]).await;
    stage.expect(1, json_error(&answer, 400, "invalid_grant"));
    stage.expect(1, logged(&answer, "token.rejected", "grant_ended"));
    // 2. Within the grace period, after the successor was used.
    let first = redeem_new_code(&mut flow).await;
    let second = flow.web.refreshes(first.refresh(), &[]).await.ok();
    let live = flow.web.refreshes(second.refresh(), &[]).await.ok();
    stage.server.advance(SECOND);
    let answer = flow.web.at(&stage.node(2).base);
    let answer = answer.refreshes(first.refresh(), &[]).await;
    reuse_is_rejected(stage, &stage.server, 2, &answer, &first);
    for tokens in [&first, &second, &live] {
        stage.expect(2, rejected_on_all_nodes(stage.all(), tokens).await);
    }
    let answer = flow.web.refreshes(live.refresh(), &[]).await;
    stage.expect(2, json_error(&answer, 400, "invalid_grant"));
    // 3. Other grants of the same client and user stay active.
    let other = redeem_new_code(&mut flow).await;
    let stolen = redeem_new_code(&mut flow).await;
    flow.web.refreshes(stolen.refresh(), &[]).await.ok();
    stage.server.advance(GRACE + SECOND);
    flow.web.refreshes(stolen.refresh(), &[]).await;
    let answer = flow.web.refreshes(other.refresh(), &[]).await;
    stage.check(3, answer.status == 200, || summary(&answer));
}

async fn a213_refresh_token_two_rotations_old_revokes_the_grant(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let first = redeem_new_code(&mut flow).await;
    // The clock does not move, so only the generation numbers differ.
    let second = flow.web.refreshes(first.refresh(), &[]).await.ok();
    let third = flow.web.refreshes(second.refresh(), &[]).await.ok();
    let answer = flow.web.at(&stage.node(1).base);
    let answer = answer.refreshes(first.refresh(), &[]).await;
    reuse_is_rejected(stage, &stage.server, 1, &answer, &first);
    let answer = flow.web.refreshes(third.refresh(), &[]).await;
    stage.expect(1, json_error(&answer, 400, "invalid_grant"));
}

async fn a214_refresh_reuse_is_detected_after_restart_and_clock_change(stage: &Stage) {
    let hour = Duration::from_secs(3_600);
    // 1. After a restart, on a separate server.
    let own = Server::start(stage.db()).await;
    let mut flow = Flow::begin(&own).await;
    let first = redeem_new_code(&mut flow).await;
    flow.web.refreshes(first.refresh(), &[]).await.ok();
    let own = own.restarted().await;
    own.advance(GRACE + SECOND);
    let answer = flow.web.at(&own.base);
    let answer = answer.refreshes(first.refresh(), &[]).await;
    reuse_is_rejected(stage, &own, 1, &answer, &first);
    own.remove().await;
    // 2. On a node that was added later.
    let mut flow = Flow::begin(&stage.server).await;
    if stage.db() == Db::Postgres {
        let first = redeem_new_code(&mut flow).await;
        flow.web.refreshes(first.refresh(), &[]).await.ok();
        let late = stage.server.node().await;
        stage.server.advance(GRACE + SECOND);
        let answer = flow.web.at(&late.base);
        let answer = answer.refreshes(first.refresh(), &[]).await;
        reuse_is_rejected(stage, &stage.server, 2, &answer, &first);
        late.stop().await;
    }
    // 3. The clock jumps forward. 4. It jumps back: the grace period does not start again.
    let first = redeem_new_code(&mut flow).await;
    flow.web.refreshes(first.refresh(), &[]).await.ok();
    stage.server.advance(hour + GRACE + SECOND);
    let answer = flow.web.refreshes(first.refresh(), &[]).await;
    reuse_is_rejected(stage, &stage.server, 3, &answer, &first);
    flow.alice = stage.server.enters("alice").await;
    let first = redeem_new_code(&mut flow).await;
    flow.web.refreshes(first.refresh(), &[]).await.ok();
    stage.server.advance(GRACE + SECOND);
    // A node that detects a clock set back by an hour issues nothing, so it must not check now.
    let turn = stage.server.app.feed.turn().await;
    stage.server.set_back(hour);
    let answer = flow.web.refreshes(first.refresh(), &[]).await;
    drop(turn);
    reuse_is_rejected(stage, &stage.server, 4, &answer, &first);
}

async fn a224_lost_refresh_response_is_repeated_within_grace(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    // DPoP is not offered: its header is ignored, and the tokens are bearer tokens.
    let proof = "eyJ0eXAiOiJkcG9wK2p3dCJ9.e30.AAAA";
    for (case, header) in [(1, None), (2, Some(proof))] {
        let first = redeem_new_code(&mut flow).await;
        let basic = crate::fixtures::client::basic(
            flow.web.id(),
            flow.web.secret.as_ref().unwrap().expose(),
        );
        let mut headers = vec![("Authorization", basic.as_str())];
        headers.extend(header.map(|proof| ("DPoP", proof)));
        let fields = [
            ("grant_type", "refresh_token"),
            ("refresh_token", first.refresh()),
        ];
        let lost = flow.web.posts_raw("/oauth2/token", &headers, &fields).await;
        stage.check(
            case,
            !lost
                .logged()
                .iter()
                .any(|(event, _)| event == "token.refresh_grace"),
            || summary(&lost),
        );
        let lost = lost.ok();
        for (node, wait) in [(1, 3), (2, 22)] {
            stage.server.advance(Duration::from_secs(wait));
            let web = flow.web.at(&stage.node(node).base);
            let again = web.posts_raw("/oauth2/token", &headers, &fields).await;
            stage.check(case, again.status == 200, || summary(&again));
            stage.expect(case, logged(&again, "token.refresh_grace", "again"));
            let again = again.ok();
            stage.check(
                case,
                again.refresh() == lost.refresh() && again.0["token_type"] == "Bearer",
                || again.0.to_string(),
            );
        }
        // No reuse alert was logged, and the successor works.
        let alerts = "SELECT count(*) AS n FROM audit_events WHERE name = 'token.refresh_reuse'";
        stage.check(case, stage.server.count(alerts) == 0, || {
            "a reuse alert was logged".to_owned()
        });
        stage.check(
            case,
            grant_is_revoked(&stage.server, &first, 0).is_err(),
            || "the grant ended".to_owned(),
        );
        let next = flow.web.refreshes(lost.refresh(), &[]).await;
        stage.check(case, next.status == 200, || summary(&next));
    }
}
