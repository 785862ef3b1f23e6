//! Codes that are rejected, and codes that are replayed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use portcullis::secret::{base64url, from_base64url, sha256};
use serde_json::Value;

use super::{Flow, code_is_consumed, median, severity};
use crate::expect::{json_error, logged, summary};
use crate::fixtures::server::{confidential, public};
use crate::fixtures::{Answer, Server, TestClient, VERIFIER, challenge};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a189_code_guesses_are_indistinguishable),
    row!(a190_code_of_another_client_is_rejected_and_consumed),
    row!(a192_wrong_code_verifiers_consume_the_code),
    row!(a193_stripped_pkce_challenge_is_detected),
    row!(a194_replayed_code_revokes_the_grant),
    row!(a196_concurrent_redemptions_succeed_once),
];

/// Samples of each case.
const ROUNDS: usize = 40;

async fn a189_code_guesses_are_indistinguishable(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let mut spread = Duration::MAX;
    let mut bodies = BTreeSet::new();
    for attempt in 0..6 {
        let mut late = Vec::new();
        for _ in 0..ROUNDS {
            late.push(flow.code().await);
        }
        stage.server.advance(Duration::from_secs(61));
        let mut took: [Vec<Duration>; 5] = Default::default();
        for code in &late {
            let tries = [
                random(code),
                flipped(code),
                code[..code.len() - 1].to_owned(),
                format!("{code}A"),
                code.clone(),
            ];
            for (case, code) in tries.iter().enumerate() {
                let started = Instant::now();
                let answer = flow.web.redeems(code).await;
                took[case].push(started.elapsed());
                if attempt == 0 {
                    stage.expect(case + 1, json_error(&answer, 400, "invalid_grant"));
                    stage.expect(case + 1, logged(&answer, "token.rejected", ""));
                }
                bodies.insert(
                    answer
                        .body
                        .replace(answer.header("x-request-id").unwrap(), ""),
                );
            }
        }
        let medians: Vec<Duration> = took.iter_mut().map(|took| median(took)).collect();
        spread = spread.min(*medians.iter().max().unwrap() - *medians.iter().min().unwrap());
        if spread <= Duration::from_millis(2) {
            break;
        }
    }
    stage.check(6, bodies.len() == 1, || format!("{bodies:?}"));
    stage.check(7, spread <= Duration::from_millis(2), || {
        format!("the medians are {spread:?} apart")
    });
}

/// Returns a random code of the same form.
fn random(like: &str) -> String {
    format!("pcl_ac_{}", base64url(&sha256(like.as_bytes())))
}

/// Flips one bit of the random part of a code.
fn flipped(code: &str) -> String {
    let (prefix, text) = code.split_at("pcl_ac_".len());
    let mut bytes = from_base64url(text).unwrap();
    bytes[7] ^= 1;
    format!("{prefix}{}", base64url(&bytes))
}

async fn a190_code_of_another_client_is_rejected_and_consumed(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let web2 = stage
        .server
        .register(confidential("web2", "https://app2.example/cb"))
        .await;
    let code = flow.code().await;
    let answer = web2
        .redeems_with(&code, &[("redirect_uri", flow.web.redirect_uri())])
        .await;
    stage.expect(1, json_error(&answer, 400, "invalid_grant"));
    stage.expect(1, logged(&answer, "code.client_mismatch", ""));
    stage.expect(1, severity(&answer, "code.client_mismatch", "high"));
    stage.expect(1, code_is_consumed(&flow.web, &code).await);
    // A code has no structure to edit: it is a prefix and 256 random bits.
    let (one, two) = (flow.code().await, flow.code().await);
    let bits = |code: &str| from_base64url(code.strip_prefix("pcl_ac_").unwrap()).unwrap();
    stage.check(
        2,
        bits(&one).len() == 32
            && bits(&one)[..8] != bits(&two)[..8]
            && bits(&one)[24..] != bits(&two)[24..],
        || format!("{one} {two}"),
    );
}

async fn a192_wrong_code_verifiers_consume_the_code(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let own = challenge(VERIFIER);
    let verifiers = [
        String::new(),
        "x".repeat(43),
        VERIFIER[..42].to_owned(),
        format!("{VERIFIER}{}", "x".repeat(129 - VERIFIER.len())),
        VERIFIER.replacen('d', "!", 1),
        own,
    ];
    for (case, verifier) in (1..).zip(verifiers) {
        let code = flow.code().await;
        let answer = flow
            .web
            .at(&stage.node(case).base)
            .redeems_with(&code, &[("code_verifier", &verifier)])
            .await;
        stage.expect(case, json_error(&answer, 400, "invalid_grant"));
        stage.expect(case, logged(&answer, "token.rejected", "pkce"));
        stage.expect(case, code_is_consumed(&flow.web, &code).await);
    }
    // The form is checked as well as the hash: verifiers with 42 or 129 characters or a `!` match their
    // challenges and are still rejected.
    for (case, verifier) in [
        (3, "y".repeat(42)),
        (4, "y".repeat(129)),
        (5, format!("!{}", "y".repeat(42))),
    ] {
        let code = flow
            .alice
            .allows_request(
                &flow
                    .web
                    .request(&[("code_challenge", &challenge(&verifier))]),
            )
            .await;
        let answer = flow
            .web
            .redeems_with(&code, &[("code_verifier", &verifier)])
            .await;
        stage.expect(case, json_error(&answer, 400, "invalid_grant"));
    }
}

async fn a193_stripped_pkce_challenge_is_detected(stage: &Stage) {
    let mut old = confidential("old", "https://old.example/cb");
    old.require_pkce = false;
    let old = stage.server.register(old).await;
    let mut alice = stage.server.enters("alice").await;
    let stripped = old.request(&[("code_challenge", ""), ("code_challenge_method", "")]);
    let code = alice.allows_request(&stripped).await;
    let answer = old.redeems(&code).await;
    stage.expect(1, json_error(&answer, 400, "invalid_grant"));
    stage.expect(1, logged(&answer, "token.rejected", "pkce"));
    let code = alice.allows_request(&stripped).await;
    let answer = old.redeems_with(&code, &[("code_verifier", "")]).await;
    stage.check(2, answer.status == 200, || {
        format!("without both it works: {}", summary(&answer))
    });
}

/// Checks that the replay is rejected and logged, and that it revoked the grant of these tokens once.
fn replay_is_rejected(
    stage: &Stage,
    server: &Server,
    case: usize,
    answer: &Answer,
    tokens: &Value,
) {
    stage.expect(case, json_error(answer, 400, "invalid_grant"));
    stage.expect(case, logged(answer, "code.replay", ""));
    stage.expect(case, severity(answer, "code.replay", "high"));
    stage.expect(case, grant_is_revoked(server, tokens, 1));
}

/// Checks that the grant of the access token is revoked, with this many records and audit events (0: active).
fn grant_is_revoked(server: &Server, tokens: &Value, times: i64) -> Result<(), String> {
    let claims = crate::fixtures::client::claims(tokens["access_token"].as_str().unwrap());
    let grant = claims["grant_id"].as_str().unwrap();
    let count = |query: &str| server.count(&format!("SELECT count(*) AS n FROM {query}"));
    let found = [
        count(&format!(
            "grants WHERE id = '{grant}' AND ended_at IS NOT NULL"
        )),
        count(&format!(
            "revocations WHERE kind = 'G' AND value = '{grant}'"
        )),
        count(&format!(
            "audit_events WHERE name = 'code.replay' AND target = 'grant:{grant}'"
        )),
    ];
    if found == [times; 3] {
        Ok(())
    } else {
        Err(format!(
            "revoked grants, G records, audit events: got {found:?}, want {times} each"
        ))
    }
}

async fn a194_replayed_code_revokes_the_grant(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    for (case, secs) in [(1, 1), (2, 30)] {
        let code = flow.code().await;
        let tokens = flow.web.redeems(&code).await.ok();
        stage.expect(case, grant_is_revoked(&stage.server, &tokens.0, 0));
        stage.server.advance(Duration::from_secs(secs));
        let answer = flow.web.redeems(&code).await;
        replay_is_rejected(stage, &stage.server, case, &answer, &tokens.0);
        // A second replay changes nothing.
        let answer = flow.web.redeems(&code).await;
        replay_is_rejected(stage, &stage.server, case, &answer, &tokens.0);
    }
    // 3. After a restart, on a separate server.
    let own = Server::start(stage.db()).await;
    let mut flow_there = Flow::begin(&own).await;
    let code = flow_there.code().await;
    let tokens = flow_there.web.redeems(&code).await.ok();
    let own = own.restarted().await;
    let answer = flow_there.web.at(&own.base).redeems(&code).await;
    replay_is_rejected(stage, &own, 3, &answer, &tokens.0);
    own.remove().await;
    // 4. On the last node, which on SQLite is the only one.
    let code = flow.code().await;
    let tokens = flow.web.redeems(&code).await.ok();
    let answer = flow
        .web
        .at(&stage.all().last().unwrap().base)
        .redeems(&code)
        .await;
    replay_is_rejected(stage, &stage.server, 4, &answer, &tokens.0);
    // 5. A replay without client authentication does not revoke the grant.
    let spa = stage
        .server
        .register(public("spa", &["https://spa.example/cb"]))
        .await;
    let code = flow.alice.allows(&spa).await;
    let tokens = spa.redeems(&code).await.ok();
    let answer = spa
        .redeems_with(&code, &[("code_verifier", &"x".repeat(43))])
        .await;
    stage.expect(5, json_error(&answer, 400, "invalid_grant"));
    stage.expect(5, grant_is_revoked(&stage.server, &tokens.0, 0));
    let answer = flow
        .web
        .redeems_with(&code, &[("redirect_uri", spa.redirect_uri())])
        .await;
    stage.expect(5, json_error(&answer, 400, "invalid_grant"));
    stage.expect(5, grant_is_revoked(&stage.server, &tokens.0, 0));
}

async fn a196_concurrent_redemptions_succeed_once(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let nodes: Vec<TestClient> = stage.all().map(|node| flow.web.at(&node.base)).collect();
    for (case, n) in (1..).zip([2, 4, 8, 16, 32, 64]) {
        for _ in 0..4 {
            let code = flow.code().await;
            let racers: Vec<_> = (0..n)
                .map(|racer| {
                    let (web, code) = (nodes[racer % nodes.len()].clone(), code.clone());
                    actix_web::rt::spawn(async move { web.redeems(&code).await })
                })
                .collect();
            let mut winners = Vec::new();
            for racer in racers {
                let answer = racer.await.unwrap();
                if answer.status == 200 {
                    winners.push(answer.json());
                } else {
                    stage.expect(case, json_error(&answer, 400, "invalid_grant"));
                    stage.expect(case, logged(&answer, "code.replay", ""));
                }
            }
            stage.check(case, winners.len() == 1, || {
                format!("{} of {n} won", winners.len())
            });
            for tokens in winners {
                stage.expect(case, grant_is_revoked(&stage.server, &tokens, 1));
            }
        }
    }
}
