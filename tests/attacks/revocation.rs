//! Rows of the catalogue: `/oauth2/revoke`.

use std::time::{Duration, Instant};

use portcullis::secret::{base64url, sha256};

use crate::expect::{json_error, logged, seen};
use crate::fixtures::client::{basic, claims};
use crate::fixtures::server::confidential;
use crate::fixtures::{Answer, Browser, Db, Server, Tokens, raw};
use crate::process::Site;
use crate::token_code::{Flow, median};
use crate::token_refresh::{bought, everywhere, grant_ended, refused_everywhere};
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

/// 200 with an empty body: all that is ever told.
fn done(answer: &Answer) -> Result<(), String> {
    if answer.status == 200
        && answer.body.is_empty()
        && answer.header("cache-control") == Some("no-store")
    {
        logged(answer, "revocation.done", "")
    } else {
        Err(format!("got {}, want 200 with nothing", seen(answer)))
    }
}

/// Records of tokens and grants; there is one of dave from the start.
fn records(server: &Server) -> i64 {
    server.count("SELECT count(*) AS n FROM revocations WHERE kind <> 'U'")
}

/// The access token is good at userinfo, and the refresh token refreshes.
async fn lives(flow: &Flow, server: &Server, tokens: &Tokens) -> Result<(), String> {
    let told = server.browser().asks_userinfo("GET", tokens.access()).await;
    let next = flow.web.refreshes(tokens.refresh(), &[]).await;
    match (told.status, next.status) {
        (200, 200) => Ok(()),
        _ => Err(format!("dead: {} {}", seen(&told), seen(&next))),
    }
}

/// Samples of each case; the thousands are run by hand.
const SAMPLES: usize = 40;

async fn a320_revocation_answers_are_indistinguishable(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let late = bought(&mut flow).await;
    stage.server.advance(Duration::from_secs(6 * 60));
    flow.alice = stage.server.enters("alice").await;
    let mut tokens = bought(&mut flow).await;
    let unknown = format!("pcl_rt_{}", base64url(&sha256(b"nobody's")));
    let mut spread = Duration::MAX;
    for _ in 0..3 {
        let mut took: [Vec<Duration>; 4] = Default::default();
        for _ in 0..SAMPLES {
            // One grant has thirty refreshes a minute.
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
                stage.expect(case + 1, done(&answer));
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

/// The bound of the catalogue holds for a release build on a machine of its own.
const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 8 } else { 2 });

async fn a321_token_of_another_client_is_not_revoked(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let web2 = confidential("web2", "https://app2.example/cb");
    let web2 = stage.server.register(web2).await;
    let tokens = bought(&mut flow).await;
    for (case, token) in [(1, tokens.access()), (2, tokens.refresh())] {
        let answer = web2.at(&stage.node(case).base).revokes(token).await;
        stage.expect(case, json_error(&answer, 400, "invalid_request"));
        stage.expect(case, logged(&answer, "revocation.denied", "client"));
    }
    stage.check(2, records(&stage.server) == 0, || {
        "a record was written".to_owned()
    });
    stage.expect(2, lives(&flow, &stage.server, &tokens).await);
}

async fn a322_unauthenticated_revocation_is_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let tokens = bought(&mut flow).await;
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
    stage.expect(3, lives(&flow, &stage.server, &tokens).await);
}

async fn a324_malformed_revocation_requests_are_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let tokens = bought(&mut flow).await;
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
        || seen(&answer),
    );
    stage.expect(3, lives(&flow, &stage.server, &tokens).await);
    // RFC 7009 §2.3 has a JSONP of its own; we have none.
    let fields = [
        ("token", tokens.access()),
        ("callback", "package.myCallback"),
    ];
    let answer = flow.web.posts(REVOKE, &fields).await;
    stage.expect(4, done(&answer));
    stage.check(4, answer.header("content-type").is_none(), || {
        format!("{:?}", answer.headers)
    });
    stage.expect(4, refused_everywhere(stage.all(), &tokens).await);
}

async fn a325_refresh_token_revocation_reaches_resource_servers(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let (first, other) = (bought(&mut flow).await, bought(&mut flow).await);
    let live = flow.web.refreshes(first.refresh(), &[]).await.ok();
    // 1. The live token of a grant; 2. one that was used before: whoever has it may end its grant.
    for (case, tokens, token) in [(1, &live, live.refresh()), (2, &other, other.refresh())] {
        if case == 2 {
            flow.web.refreshes(token, &[]).await.ok();
        }
        let answer = flow.web.at(&stage.node(case).base).revokes(token).await;
        stage.expect(case, done(&answer));
        stage.expect(case, grant_ended(&stage.server, tokens, 1));
        stage.expect(case, refused_everywhere(stage.all(), tokens).await);
        for web in everywhere(stage, &flow.web) {
            let answer = web.refreshes(token, &[]).await;
            stage.expect(case, json_error(&answer, 400, "invalid_grant"));
            stage.expect(case, logged(&answer, "token.rejected", "grant_ended"));
        }
        // Once more changes nothing more.
        stage.expect(case, done(&flow.web.revokes(token).await));
        stage.expect(case, grant_ended(&stage.server, tokens, 1));
    }
    stage.expect(1, refused_everywhere(stage.all(), &first).await);
    // 3. No 200 without the commit.
    let tokens = bought(&mut flow).await;
    let answer = record_fails(stage, &flow, tokens.refresh()).await;
    stage.expect(3, json_error(&answer, 503, "temporarily_unavailable"));
    stage.check(3, answer.header("retry-after").is_some(), || {
        format!("{:?}", answer.headers)
    });
    stage.expect(3, lives(&flow, &stage.server, &tokens).await);
}

/// Revokes while the database refuses the record.
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
    // By hand: the row names its 5xx.
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
    let tokens = bought(&mut flow).await;
    let web = flow.web.at(&stage.node(1).base);
    stage.expect(1, done(&web.revokes(tokens.access()).await));
    let claims = tokens.access_claims();
    let (jti, exp) = (
        claims["jti"].as_str().unwrap(),
        claims["exp"].as_i64().unwrap() * 1_000_000,
    );
    // What numbers the record gives it its end.
    let record = stage.server.count(&format!(
        "SELECT count(*) AS n FROM revocations WHERE kind = 'J' AND value = '{jti}' AND token_exp = {exp}
         AND (expires_at IS NULL OR expires_at = {exp} + 60000000)"
    ));
    stage.check(1, record == 1 && records(&stage.server) == 1, || {
        format!("{record} of {} records", records(&stage.server))
    });
    stage.expect(1, refused_everywhere(stage.all(), &tokens).await);
    // The grant lives on, and so does its next access token.
    let next = flow.web.refreshes(tokens.refresh(), &[]).await.ok();
    stage.expect(2, lives(&flow, &stage.server, &next).await);
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
        stage.check(case, answer.status == 200, || seen(&answer));
        node = site.starts();
        for node in std::iter::once(&node).chain(&second) {
            let web = site.web(node);
            let header = basic(web.id(), web.secret.as_ref().unwrap().expose());
            let form = format!("access_token={}", tokens.access());
            let told = raw::bytes(&node.base, raw::post("/oauth2/userinfo", &[], &form)).await;
            let told = told.unwrap();
            stage.check(case, told.status == 401, || seen(&told));
            let form = format!(
                "grant_type=refresh_token&refresh_token={}",
                tokens.refresh()
            );
            let refresh = raw::post("/oauth2/token", &[("Authorization", &header)], &form);
            let next = raw::bytes(&node.base, refresh).await.unwrap();
            // An access token is revoked alone.
            let want = if case == 1 { 400 } else { 200 };
            stage.check(case, next.status == want, || seen(&next));
        }
        alice = alice.at(&node.base);
    }
}

async fn a329_forged_tokens_write_no_revocation_rows(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let tokens = bought(&mut flow).await;
    let before = stage.rows() + records(&stage.server);
    let parts: Vec<&str> = tokens.access().split('.').collect();
    let nodes = everywhere(stage, &flow.web);
    for n in 0..100_u32 {
        // Each with a `jti` of its own: under the signature of another token, and under none.
        let mut forged = claims(tokens.access());
        forged["jti"] = format!("0190b2f0-0000-7000-8000-{n:012}").into();
        let payload = base64url(forged.to_string().as_bytes());
        let signature = if n % 2 == 0 { parts[2] } else { "" };
        let token = format!("{}.{payload}.{signature}", parts[0]);
        let answer = nodes[n as usize % nodes.len()].revokes(&token).await;
        stage.expect(1, done(&answer));
    }
    // Nor one that is over: its record would hit nothing any more.
    stage.server.advance(Duration::from_secs(6 * 60));
    stage.expect(2, done(&flow.web.revokes(tokens.access()).await));
    stage.check(1, stage.rows() + records(&stage.server) == before, || {
        "rows were written".to_owned()
    });
}
