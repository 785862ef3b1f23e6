//! A node that is killed during a redemption.

use super::{TOKEN, valid};
use crate::expect::{json_error, summary};
use crate::fixtures::{Browser, raw};
use crate::process::Site;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[row!(a197_code_stays_consumed_after_kill)];

/// Maximum number of attempts: an attempt is repeated if the node answers before it is killed.
const TRIES: usize = 20;

async fn a197_code_stays_consumed_after_kill(stage: &Stage) {
    let site = Site::open(stage.db());
    let mut look = site.look();
    let mut node = site.starts();
    let mut alice = Browser::new(&node.base);
    let mut lost = false;
    for _ in 0..TRIES {
        let web = site.web(&node);
        let code = alice.allows(&web).await;
        let (body, authorization) = valid(&web, &code);
        let request = raw::post(TOKEN, &[("Authorization", &authorization)], &body);
        // The node is killed as soon as the code is marked as used.
        let used = "SELECT count(*) AS n FROM codes WHERE used_at IS NOT NULL";
        let before = look.count(used);
        let (base, sent) = (node.base.clone(), request.clone());
        let redeeming = actix_web::rt::spawn(async move { raw::bytes(&base, sent).await });
        while look.count(used) == before && !redeeming.is_finished() {
            tokio::task::yield_now().await;
        }
        node.dies();
        let reply = redeeming.await.unwrap();
        node = site.starts();
        alice = alice.at(&node.base);
        // Killed after the commit and before the response.
        if reply.is_some() || look.count(used) == before {
            continue;
        }
        lost = true;
        let retry = raw::bytes(&node.base, request).await.unwrap();
        stage.expect(1, json_error(&retry, 400, "invalid_grant"));
        // The retry counts as a replay, so the tokens of the code are revoked.
        let ended = "SELECT count(*) AS n FROM grants WHERE ended_at IS NOT NULL";
        stage.check(3, look.count(ended) == 1, || {
            format!("{} grants ended", look.count(ended))
        });
        // A new flow works in the same session.
        let web = site.web(&node);
        let code = alice.allows(&web).await;
        let answer = web.redeems(&code).await;
        stage.check(2, answer.status == 200, || summary(&answer));
        break;
    }
    stage.check(1, lost, || {
        format!("answered {TRIES} times before the kill")
    });
    node.dies();
}
