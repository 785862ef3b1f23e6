//! A node that is killed in the middle of it.

use super::{TOKEN, valid};
use crate::expect::{json_error, seen};
use crate::fixtures::{Browser, raw};
use crate::process::Site;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[row!(a197_code_stays_consumed_after_kill)];

/// How often the node may answer before it is killed, and it is tried again.
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
        // Redeemed; as soon as the code is seen to be spent, the node dies.
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
        // Not before the commit, and not after the answer.
        if reply.is_some() || look.count(used) == before {
            continue;
        }
        lost = true;
        let retry = raw::bytes(&node.base, request).await.unwrap();
        stage.expect(1, json_error(&retry, 400, "invalid_grant"));
        // To a client that asks twice it is a replay: what the code had bought is over.
        let ended = "SELECT count(*) AS n FROM grants WHERE ended_at IS NOT NULL";
        stage.check(3, look.count(ended) == 1, || {
            format!("{} grants ended", look.count(ended))
        });
        // A new flow works, in the same login.
        let web = site.web(&node);
        let code = alice.allows(&web).await;
        let answer = web.redeems(&code).await;
        stage.check(2, answer.status == 200, || seen(&answer));
        break;
    }
    stage.check(1, lost, || {
        format!("answered {TRIES} times before the kill")
    });
    node.dies();
}
