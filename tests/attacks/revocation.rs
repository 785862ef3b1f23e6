//! Rows of the catalogue: `/oauth2/revoke`.

use std::time::{Duration, Instant};

use portcullis::secret::{base64url, sha256};

use crate::expect::{json_error, logged, summary};
use crate::fixtures::client::{basic, claims};
use crate::fixtures::server::confidential;
use crate::fixtures::{Answer, Browser, Db, Server, Tokens, raw};
use crate::process::Site;
use crate::token_code::{Flow, median};
use crate::token_refresh::{
    grant_is_revoked, on_all_nodes, redeem_new_code, rejected_on_all_nodes,
};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a320_revocation_answers_are_indistinguishable),
    row!(a321_token_of_another_client_is_not_revoked),
    row!(a322_unauthenticated_revocation_is_rejected),
    row!(a324_malformed_revocation_requests_are_rejected),
    row!(a325_refresh_token_revocation_reaches_resource_servers),
    row!(a326_access_token_revocation_keeps_the_refresh_token),
    row!(a328_revocation_survives_kill),
    row!(a329_forged_tokens_write_no_revocation_rows),
];

const REVOKE: &str = "/oauth2/revoke";

/// Checks for 200 with an empty body: the only success response.
fn succeeded(answer: &Answer) -> Result<(), String> {
    if answer.status == 200
        && answer.body.is_empty()
        && answer.header("cache-control") == Some("no-store")
    {
        logged(answer, "revocation.done", "")
    } else {
        Err(format!(
            "got {}, want 200 with an empty body",
            summary(answer)
        ))
    }
}

/// Counts the revocation records except those of users.
fn records(server: &Server) -> i64 {
    server.count("SELECT count(*) AS n FROM revocations WHERE kind <> 'U'")
}

/// Checks that the access token works at userinfo and the refresh token can be used.
async fn tokens_are_active(flow: &Flow, server: &Server, tokens: &Tokens) -> Result<(), String> {
    let told = server.browser().asks_userinfo("GET", tokens.access()).await;
    let next = flow.web.refreshes(tokens.refresh(), &[]).await;
    match (told.status, next.status) {
        (200, 200) => Ok(()),
        _ => Err(format!("inactive: {} {}", summary(&told), summary(&next))),
    }
}

/// Samples of each case; thousands are run by hand.
const SAMPLES: usize = 40;

async fn a320_revocation_answers_are_indistinguishable(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let late = redeem_new_code(&mut flow).await;
    stage.server.advance(Duration::from_secs(6 * 60));
    flow.alice = stage.server.enters("alice").await;
    let mut tokens = redeem_new_code(&mut flow).await;
    let unknown = format!("pcl_rt_{}", base64url(&sha256(b"unknown")));
    let mut spread = Duration::MAX;
    for _ in 0..3 {
        let mut took: [Vec<Duration>; 4] = Default::default();
        for _ in 0..SAMPLES {
            // A grant has 30 refreshes per minute.
            stage.server.advance(Duration::from_secs(2));
            tokens = flow.web.refreshes(tokens.refresh(), &[]).await.ok();
            let tries = [
                unknown.as_str(),
                late.access(),
                "not.a.token",
                tokens.access(),
            ];
            for (case, token) in tries.into_iter().enumerate() {
                let before = records(&stage.server);
                let started = Instant::now();
                let answer = flow.web.revokes(token).await;
                took[case].push(started.elapsed());
                stage.expect(case + 1, succeeded(&answer));
                let more = records(&stage.server) - before;
                stage.check(case + 1, more == i64::from(case == 3), || {
                    format!("{more} records")
                });
            }
        }
        let medians: Vec<Duration> = took.iter_mut().map(|took| median(took)).collect();
        spread = spread.min(*medians.iter().max().unwrap() - *medians.iter().min().unwrap());
        if spread <= LIMIT {
            break;
        }
    }
    stage.check(5, spread <= LIMIT, || {
        format!("the medians are {spread:?} apart")
    });
}

/// The limit of the catalogue applies to a release build on an idle machine.
const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 8 } else { 2 });

async fn a321_token_of_another_client_is_not_revoked(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let web2 = confidential("web2", "https://app2.example/cb");
    let web2 = stage.server.register(web2).await;
    let tokens = redeem_new_code(&mut flow).await;
    for (case, token) in [(1, tokens.access()), (2, tokens.refresh())] {
        let answer = web2.at(&stage.node(case).base).revokes(token).await;
        stage.expect(case, json_error(&answer, 400, "invalid_request"));
        stage.expect(case, logged(&answer, "revocation.denied", "client"));
    }
    stage.check(2, records(&stage.server) == 0, || {
        "a record was written".to_owned()
    });
    stage.expect(2, tokens_are_active(&flow, &stage.server, &tokens).await);
}

async fn a322_unauthenticated_revocation_is_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let tokens = redeem_new_code(&mut flow).await;
    let wrong = basic(flow.web.id(), "pcl_sec_wrong");
    let tries: [(&[(&str, &str)], &[(&str, &str)]); 3] = [
        (&[], &[("client_id", flow.web.id())]),
        (&[("Authorization", &wrong)], &[]),
        (&[], &[]),
    ];
    for (case, (headers, more)) in (1..).zip(tries) {
        for token in [tokens.access(), tokens.refresh()] {
            let mut fields = vec![("token", token)];
            fields.extend_from_slice(more);
            let web = flow.web.at(&stage.node(case).base);
            let answer = web.posts_raw(REVOKE, headers, &fields).await;
            stage.expect(case, json_error(&answer, 401, "invalid_client"));
            stage.expect(case, logged(&answer, "client.auth_failed", ""));
        }
    }
    stage.expect(3, tokens_are_active(&flow, &stage.server, &tokens).await);
}

async fn a324_malformed_revocation_requests_are_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let tokens = redeem_new_code(&mut flow).await;
    let answer = flow.web.posts(REVOKE, &[]).await;
    stage.expect(1, json_error(&answer, 400, "invalid_request"));
    stage.expect(1, logged(&answer, "token.rejected", "token"));
    let twice = [("token", tokens.access()), ("token", tokens.access())];
    let answer = flow.web.posts(REVOKE, &twice).await;
    stage.expect(2, json_error(&answer, 400, "invalid_request"));
    stage.expect(2, logged(&answer, "token.rejected", ""));
    let target = format!("{REVOKE}?token={}", tokens.refresh());
    let answer = stage.server.browser().get(&target).await;
    stage.check(
        3,
        answer.status == 405 && answer.header("allow") == Some("POST"),
        || summary(&answer),
    );
    stage.expect(3, tokens_are_active(&flow, &stage.server, &tokens).await);
    // The JSONP of RFC 7009 §2.3 is not offered.
    let fields = [
        ("token", tokens.access()),
        ("callback", "package.myCallback"),
    ];
    let answer = flow.web.posts(REVOKE, &fields).await;
    stage.expect(4, succeeded(&answer));
    stage.check(4, answer.header("content-type").is_none(), || {
        format!("{:?}", answer.headers)
    });
    stage.expect(4, rejected_on_all_nodes(stage.all(), &tokens).await);
}

async fn a325_refresh_token_revocation_reaches_resource_servers(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let (first, other) = (
        redeem_new_code(&mut flow).await,
        redeem_new_code(&mut flow).await,
    );
    let live = flow.web.refreshes(first.refresh(), &[]).await.ok();
    // 1. The current refresh token of a grant. 2. A used one: its holder may revoke the grant, too.
    for (case, tokens, token) in [(1, &live, live.refresh()), (2, &other, other.refresh())] {
        if case == 2 {
            flow.web.refreshes(token, &[]).await.ok();
        }
        let answer = flow.web.at(&stage.node(case).base).revokes(token).await;
        stage.expect(case, succeeded(&answer));
        stage.expect(case, grant_is_revoked(&stage.server, tokens, 1));
        stage.expect(case, rejected_on_all_nodes(stage.all(), tokens).await);
        for web in on_all_nodes(stage, &flow.web) {
            let answer = web.refreshes(token, &[]).await;
            stage.expect(case, json_error(&answer, 400, "invalid_grant"));
            stage.expect(case, logged(&answer, "token.rejected", "grant_ended"));
        }
        // A second revocation changes nothing.
        stage.expect(case, succeeded(&flow.web.revokes(token).await));
        stage.expect(case, grant_is_revoked(&stage.server, tokens, 1));
    }
    stage.expect(1, rejected_on_all_nodes(stage.all(), &first).await);
    // 3. No 200 if the commit fails.
    let tokens = redeem_new_code(&mut flow).await;
    let answer = record_fails(stage, &flow, tokens.refresh()).await;
    stage.expect(3, json_error(&answer, 503, "temporarily_unavailable"));
    stage.check(3, answer.header("retry-after").is_some(), || {
        format!("{:?}", answer.headers)
    });
    stage.expect(3, tokens_are_active(&flow, &stage.server, &tokens).await);
}

/// Revokes while the database rejects the record.
async fn record_fails(stage: &Stage, flow: &Flow, token: &str) -> Answer {
    let (breaks, heals) = match stage.db() {
        Db::Sqlite => (
            "CREATE TRIGGER broken BEFORE INSERT ON revocations BEGIN SELECT RAISE(ABORT, 'no'); END",
            "DROP TRIGGER broken",
        ),
        Db::Postgres => (
            "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
             CREATE TRIGGER broken BEFORE INSERT ON revocations FOR EACH ROW EXECUTE FUNCTION broken()",
            "DROP TRIGGER broken ON revocations; DROP FUNCTION broken()",
        ),
    };
    stage.server.execute(breaks);
    let header = basic(flow.web.id(), flow.web.secret.as_ref().unwrap().expose());
    // Sent raw, outside the journal, because this row expects a 5xx.
    let request = raw::post(
        REVOKE,
        &[("Authorization", &header)],
        &format!("token={token}"),
    );
    let answer = raw::bytes(&stage.server.base, request).await.unwrap();
    stage.server.execute(heals);
    answer
}

async fn a326_access_token_revocation_keeps_the_refresh_token(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let tokens = redeem_new_code(&mut flow).await;
    let web = flow.web.at(&stage.node(1).base);
    stage.expect(1, succeeded(&web.revokes(tokens.access()).await));
    let claims = tokens.access_claims();
    let (jti, exp) = (
        claims["jti"].as_str().unwrap(),
        claims["exp"].as_i64().unwrap() * 1_000_000,
    );
    // The record gets its expiry when it is numbered.
    let record = stage.server.count(&format!(
        "SELECT count(*) AS n FROM revocations WHERE kind = 'J' AND value = '{jti}' AND token_exp = {exp}
         AND (expires_at IS NULL OR expires_at = {exp} + 60000000)"
    ));
    stage.check(1, record == 1 && records(&stage.server) == 1, || {
        format!("{record} of {} records", records(&stage.server))
    });
    stage.expect(1, rejected_on_all_nodes(stage.all(), &tokens).await);
    // The grant and its next access token stay active.
    let next = flow.web.refreshes(tokens.refresh(), &[]).await.ok();
    stage.expect(2, tokens_are_active(&flow, &stage.server, &next).await);
}

async fn a328_revocation_survives_kill(stage: &Stage) {
    let site = Site::open(stage.db());
    let mut node = site.starts();
    let second = (stage.db() == Db::Postgres).then(|| site.starts());
    let mut alice = Browser::new(&node.base);
    for (case, kind) in [(1, "refresh_token"), (2, "access_token")] {
        let web = site.web(&node);
        let code = alice.allows(&web).await;
        let tokens = web.redeems(&code).await.ok();
        let token = tokens.0[kind].as_str().unwrap();
        let answer = web.revokes(token).await;
        node.dies();
        stage.check(case, answer.status == 200, || summary(&answer));
        node = site.starts();
        for node in std::iter::once(&node).chain(&second) {
            let web = site.web(node);
            let header = basic(web.id(), web.secret.as_ref().unwrap().expose());
            let form = format!("access_token={}", tokens.access());
            let told = raw::bytes(&node.base, raw::post("/oauth2/userinfo", &[], &form)).await;
            let told = told.unwrap();
            stage.check(case, told.status == 401, || summary(&told));
            let form = format!(
                "grant_type=refresh_token&refresh_token={}",
                tokens.refresh()
            );
            let refresh = raw::post("/oauth2/token", &[("Authorization", &header)], &form);
            let next = raw::bytes(&node.base, refresh).await.unwrap();
            // Revoking an access token does not revoke its grant.
            let want = if case == 1 { 400 } else { 200 };
            stage.check(case, next.status == want, || summary(&next));
        }
        alice = alice.at(&node.base);
    }
}

async fn a329_forged_tokens_write_no_revocation_rows(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let tokens = redeem_new_code(&mut flow).await;
    let before = stage.rows() + records(&stage.server);
    let parts: Vec<&str> = tokens.access().split('.').collect();
    let nodes = on_all_nodes(stage, &flow.web);
    for n in 0..100_u32 {
        // Each has its own `jti`, with the signature of another token or without one.
        let mut forged = claims(tokens.access());
        forged["jti"] = format!("0190b2f0-0000-7000-8000-{n:012}").into();
        let payload = base64url(forged.to_string().as_bytes());
        let signature = if n % 2 == 0 { parts[2] } else { "" };
        let token = format!("{}.{payload}.{signature}", parts[0]);
        let answer = nodes[n as usize % nodes.len()].revokes(&token).await;
        stage.expect(1, succeeded(&answer));
    }
    // An expired token writes no record, because the record could not match any token.
    stage.server.advance(Duration::from_secs(6 * 60));
    stage.expect(2, succeeded(&flow.web.revokes(tokens.access()).await));
    stage.check(1, stage.rows() + records(&stage.server) == before, || {
        "rows were written".to_owned()
    });
}
