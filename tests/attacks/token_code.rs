//! Rows of the catalogue: `/oauth2/token` and what a code buys.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use portcullis::keys::Alg;
use portcullis::oauth::Code;
use portcullis::secret::{base64url, from_base64url, sha256};
use serde_json::Value;

use crate::cast::client::{basic, header};
use crate::cast::server::{AUDIENCE, confidential, public};
use crate::cast::{Answer, Browser, Db, Party, Server, VERIFIER, challenge, log, raw};
use crate::expect::{json_error, logged, seen};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a180),
    row!(a181),
    row!(a182),
    row!(a184),
    row!(a185),
    row!(a186),
    row!(a188),
    row!(a189),
    row!(a190),
    row!(a192),
    row!(a193),
    row!(a194),
    row!(a196),
    row!(a198),
    row!(a200),
    row!(a201),
    row!(a202),
    row!(a204),
];

const TOKEN: &str = "/oauth2/token";
const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");

/// `web` and alice, who signed in and allowed it.
pub struct Flow {
    pub web: Party,
    pub alice: Browser,
}

impl Flow {
    pub async fn begin(server: &Server) -> Self {
        let web = server.shop().await;
        let mut alice = server.browser();
        alice.signs_in(&web, "alice").await;
        Self { web, alice }
    }

    pub async fn code(&mut self) -> String {
        self.alice.allows(&self.web).await
    }
}

/// The body of a valid token request, and the header that authenticates it.
fn valid(web: &Party, code: &str) -> (String, String) {
    let fields = [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", web.redirect_uri()),
        ("code_verifier", VERIFIER),
    ];
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish();
    (body, basic(web.id(), web.secret.as_ref().unwrap().expose()))
}

async fn posts(server: &Server, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    server
        .browser()
        .send("POST", path, headers, Some(body.to_owned()))
        .await
}

/// What comes back for these bytes.
async fn asked(base: &str, request: Vec<u8>) -> Answer {
    raw::bytes(base, request).await.expect("an answer")
}

/// The code still buys tokens.
async fn unspent(web: &Party, code: &str) -> Result<(), String> {
    let answer = web.redeems(code).await;
    if answer.status == 200 {
        Ok(())
    } else {
        Err(format!("the code is spent: {}", seen(&answer)))
    }
}

/// The code buys nothing any more.
async fn spent(web: &Party, code: &str) -> Result<(), String> {
    json_error(&web.redeems(code).await, 400, "invalid_grant")
}

/// No log line of this request holds the text.
fn unlogged(answer: &Answer, text: &str) -> Result<(), String> {
    let events = log::of(answer.header("x-request-id").unwrap_or_default());
    let told = events
        .iter()
        .find(|event| event.values().any(|value| value.contains(text)));
    told.map_or(Ok(()), |event| Err(format!("the log tells it: {event:?}")))
}

/// The request's event has this severity.
pub fn severity(answer: &Answer, event: &str, wanted: &str) -> Result<(), String> {
    let events = log::of(answer.header("x-request-id").unwrap_or_default());
    let found = events
        .iter()
        .find(|found| found.get("event").is_some_and(|name| name == event));
    match found.and_then(|event| event.get("severity")) {
        Some(severity) if severity == wanted => Ok(()),
        other => Err(format!("severity of {event}: got {other:?}, want {wanted}")),
    }
}

async fn a180(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let target = format!("{TOKEN}?grant_type=authorization_code&code={code}");
    for (case, method, target) in [(1, "GET", target.as_str()), (2, "PUT", TOKEN)] {
        let answer = stage.server.browser().send(method, target, &[], None).await;
        stage.check(
            case,
            answer.status == 405 && answer.header("allow") == Some("POST"),
            || format!("{} allow {:?}", seen(&answer), answer.header("allow")),
        );
        stage.expect(case, logged(&answer, "http.method", ""));
        stage.expect(case, unlogged(&answer, &code));
    }
    stage.expect(1, unspent(&flow.web, &code).await);
}

async fn a181(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let kinds = [
        Some("application/json"),
        Some("text/plain"),
        Some("multipart/form-data; boundary=x"),
        None,
        Some("application/x-www-form-urlencoded; charset=utf-16"),
    ];
    for (case, kind) in (1..).zip(kinds) {
        let code = flow.code().await;
        let (body, authorization) = valid(&flow.web, &code);
        let mut headers = vec![("Authorization", authorization.as_str())];
        headers.extend(kind.map(|kind| ("Content-Type", kind)));
        let answer = posts(stage.node(case), TOKEN, &headers, &body).await;
        stage.expect(case, json_error(&answer, 400, "invalid_request"));
        stage.expect(case, logged(&answer, "token.rejected", ""));
        stage.expect(case, unspent(&flow.web, &code).await);
    }
}

async fn a182(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let (body, authorization) = valid(&flow.web, &code);
    let secret = flow.web.secret.clone().unwrap();
    let in_query = format!(
        "{TOKEN}?client_id={}&client_secret={}",
        flow.web.id(),
        secret.expose()
    );
    let answer = posts(&stage.server, &in_query, &[FORM], &body).await;
    stage.expect(1, json_error(&answer, 400, "invalid_request"));
    stage.expect(1, logged(&answer, "token.rejected", "query"));
    stage.expect(1, unlogged(&answer, secret.expose()));
    let without = body.replace("grant_type=authorization_code&", "");
    let answer = posts(
        &stage.server,
        &format!("{TOKEN}?grant_type=authorization_code"),
        &[FORM, ("Authorization", &authorization)],
        &without,
    )
    .await;
    stage.expect(2, json_error(&answer, 400, "invalid_request"));
    stage.expect(2, logged(&answer, "token.rejected", "query"));
    stage.expect(2, unlogged(&answer, "grant_type=authorization_code"));
    stage.expect(2, unspent(&flow.web, &code).await);
}

async fn a184(stage: &Stage) {
    let web = stage.server.shop().await;
    let (body, authorization) = valid(&web, "pcl_ac_x");
    let headers = [("Authorization", authorization.as_str())];
    let base = stage.server.base.as_str();
    let refused = |case: usize, answer: &Answer, statuses: &[u16]| {
        stage.check(case, statuses.contains(&answer.status), || {
            format!("got {}, want {statuses:?}", seen(answer))
        });
        stage.expect(case, logged(answer, "http.too_large", ""));
    };
    // 1. One byte too many.
    let long = format!("{body}&x={}", "x".repeat(16 * 1_024 + 1 - body.len() - 3));
    assert_eq!(long.len(), 16 * 1_024 + 1);
    refused(
        1,
        &asked(base, raw::post(TOKEN, &headers, &long)).await,
        &[413],
    );
    // 2. 100 MiB in chunks, and no end: the server does not wait for one.
    let head = format!(
        "POST {TOKEN} HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nAuthorization: {authorization}\r\n\r\n"
    );
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x1_0000));
    let mut growth = u64::MAX;
    for _ in 0..4 {
        let before = resident();
        let (answer, hung_up) = raw::flood(
            base,
            head.clone().into_bytes(),
            chunk.clone().into_bytes(),
            1_600,
        )
        .await;
        // The nodes of the other database live in this process too: the quietest round counts.
        growth = growth.min(resident().saturating_sub(before));
        stage.check(2, hung_up, || "still listening".to_owned());
        match answer {
            Some(answer) => refused(2, &answer, &[413]),
            None => stage.check(2, false, || "hung up without an answer".to_owned()),
        }
        if growth < 2 << 20 {
            break;
        }
    }
    stage.check(2, growth < 2 << 20, || {
        format!("{growth} bytes more are resident")
    });
    // 3. The first bytes of a gzip stream; nobody unpacks it.
    let bomb = [
        ("Authorization", authorization.as_str()),
        ("Content-Encoding", "gzip"),
    ];
    refused(
        3,
        &asked(base, raw::post(TOKEN, &bomb, "\u{1f}\u{8b}\u{8}")).await,
        &[415],
    );
    // 4. and 5. Fields.
    for (case, fields, statuses) in [(4, 65, &[400][..]), (5, 10_000, &[400, 413])] {
        let many: String = (4..fields).map(|n| format!("&x{n}=1")).collect();
        refused(
            case,
            &asked(base, raw::post(TOKEN, &headers, &format!("{body}{many}"))).await,
            statuses,
        );
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}

async fn a185(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let (body, authorization) = valid(&flow.web, &code);
    // A NUL is well-formed UTF-8, so the log gives it its own reason.
    for (case, value, reason) in [
        (1, "%ff%fe", "utf8"),
        (2, "a%00b", "control_char"),
        (3, "%zz", "utf8"),
        (4, "%", "utf8"),
    ] {
        for body in [
            body.replace(&code, value),
            body.replace(VERIFIER, value),
            format!("{body}&unknown={value}"),
        ] {
            let answer = posts(
                stage.node(case),
                TOKEN,
                &[FORM, ("Authorization", &authorization)],
                &body,
            )
            .await;
            stage.expect(case, json_error(&answer, 400, "invalid_request"));
            stage.expect(case, logged(&answer, "token.rejected", reason));
        }
    }
    stage.expect(4, unspent(&flow.web, &code).await);
    let plus = flow.web.request(&[("scope", "openid orders:read")]);
    for (case, url) in [(5, plus.clone()), (6, plus.replace('+', "%20"))] {
        let code = flow.alice.allows_request(&url).await;
        let scope = flow.web.redeems(&code).await.ok().0["scope"].clone();
        stage.check(case, scope == "openid orders:read", || {
            format!("{url} got {scope}")
        });
    }
}

async fn a186(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let answer = flow.web.redeems_with(&code, &[("grant_type", "")]).await;
    stage.expect(1, json_error(&answer, 400, "invalid_request"));
    stage.expect(1, logged(&answer, "token.rejected", ""));
    let others = [
        "foo",
        "password",
        "implicit",
        "PASSWORD",
        "urn:ietf:params:oauth:grant-type:token-exchange ",
        "authorization_code ",
    ];
    for (case, other) in (2..).zip(others) {
        let extra = [
            ("grant_type", other),
            ("username", "alice"),
            ("password", crate::cast::server::PASSWORD),
        ];
        let answer = flow.web.redeems_with(&code, &extra).await;
        stage.expect(case, json_error(&answer, 400, "unsupported_grant_type"));
        stage.expect(case, logged(&answer, "token.rejected", ""));
    }
    stage.expect(1, unspent(&flow.web, &code).await);
}

async fn a188(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let answer = flow.web.redeems(&code).await;
    stage.expect(1, answer_headers(&answer));
    let tokens = answer.ok();
    stage.check(
        1,
        tokens.0["token_type"] == "Bearer" && tokens.0["expires_in"].is_u64(),
        || answer.body.clone(),
    );
    for (case, (answer, status, error)) in (2..).zip(every_error(stage, &mut flow).await) {
        stage.check(case, answer.status == status, || {
            format!("got {}, want {status} {error}", seen(&answer))
        });
        stage.check(case, answer.json()["error"] == error, || {
            format!("got {}, want {error}", answer.body)
        });
        stage.expect(case, answer_headers(&answer));
        stage.check(
            case,
            answer.status != 401
                || answer
                    .header("www-authenticate")
                    .is_some_and(|scheme| scheme.starts_with("Basic ")),
            || format!("{:?}", answer.headers),
        );
        let technical = [
            "src/", ".rs", "panicked", "diesel", "actix", "SELECT", "sqlite", "postgres",
        ];
        stage.check(
            case,
            technical.iter().all(|word| !answer.body.contains(word)),
            || answer.body.clone(),
        );
    }
}

fn answer_headers(answer: &Answer) -> Result<(), String> {
    let pair = (
        answer.header("cache-control"),
        answer.header("content-type"),
    );
    if pair == (Some("no-store"), Some("application/json")) {
        Ok(())
    } else {
        Err(format!("{pair:?}"))
    }
}

/// Each kind of error answer of the token endpoint, with its status and code.
async fn every_error(stage: &Stage, flow: &mut Flow) -> Vec<(Answer, u16, &'static str)> {
    let mut idle = confidential("idle", "https://idle.example/cb");
    idle.grant_types.clear();
    let idle = stage.server.register(idle).await;
    let (fresh, spare) = (flow.code().await, flow.code().await);
    let (body, authorization) = valid(&flow.web, &spare);
    let headers = [("Authorization", authorization.as_str())];
    let base = stage.server.base.as_str();
    vec![
        (flow.web.posts(TOKEN, &[]).await, 400, "invalid_request"),
        (
            flow.web
                .posts_raw(TOKEN, &[], &[("grant_type", "authorization_code")])
                .await,
            401,
            "invalid_client",
        ),
        (
            flow.web
                .posts_raw(TOKEN, &[("Authorization", &basic("ghost", "x"))], &[])
                .await,
            401,
            "invalid_client",
        ),
        (
            flow.web.redeems("pcl_ac_unknown").await,
            400,
            "invalid_grant",
        ),
        (
            idle.redeems("pcl_ac_unknown").await,
            400,
            "unauthorized_client",
        ),
        (
            flow.web
                .redeems_with(&fresh, &[("grant_type", "password")])
                .await,
            400,
            "unsupported_grant_type",
        ),
        (
            flow.web
                .redeems_with(&fresh, &[("resource", "https://other.example")])
                .await,
            400,
            "invalid_target",
        ),
        (
            asked(base, raw::post(TOKEN, &headers, &"x".repeat(20_000))).await,
            413,
            "invalid_request",
        ),
        (
            asked(
                base,
                raw::post(TOKEN, &[headers[0], ("Content-Encoding", "br")], &body),
            )
            .await,
            415,
            "invalid_request",
        ),
        (
            asked(base, raw::post(TOKEN, &headers, &"a=1&".repeat(65))).await,
            400,
            "invalid_request",
        ),
        (
            storage_fails(stage, &flow.web, &spare).await,
            503,
            "temporarily_unavailable",
        ),
    ]
}

/// Redeems the code while the database refuses to mark it.
async fn storage_fails(stage: &Stage, web: &Party, code: &str) -> Answer {
    let (body, authorization) = valid(web, code);
    let (breaks, heals) = match stage.db() {
        Db::Sqlite => (
            "CREATE TRIGGER broken BEFORE UPDATE ON codes BEGIN SELECT RAISE(ABORT, 'the disk is on fire'); END",
            "DROP TRIGGER broken",
        ),
        Db::Postgres => (
            "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the disk is on fire' USING ERRCODE = '53100'; END $$;
             CREATE TRIGGER broken BEFORE UPDATE ON codes FOR EACH ROW EXECUTE FUNCTION broken()",
            "DROP TRIGGER broken ON codes; DROP FUNCTION broken()",
        ),
    };
    stage.server.execute(breaks);
    // By hand: the row names its 5xx.
    let answer = asked(
        &stage.server.base,
        raw::post(TOKEN, &[("Authorization", &authorization)], &body),
    )
    .await;
    stage.server.execute(heals);
    answer
}

/// Samples of each case.
const ROUNDS: usize = 40;

async fn a189(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let mut spread = Duration::MAX;
    let mut bodies = BTreeSet::new();
    for attempt in 0..3 {
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

pub fn median(samples: &mut [Duration]) -> Duration {
    samples.sort();
    samples[samples.len() / 2]
}

/// Another code of the same form.
fn random(like: &str) -> String {
    format!("pcl_ac_{}", base64url(&sha256(like.as_bytes())))
}

/// The code with one bit of its random part flipped.
fn flipped(code: &str) -> String {
    let (prefix, text) = code.split_at("pcl_ac_".len());
    let mut bytes = from_base64url(text).unwrap();
    bytes[7] ^= 1;
    format!("{prefix}{}", base64url(&bytes))
}

async fn a190(stage: &Stage) {
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
    stage.expect(1, spent(&flow.web, &code).await);
    // A code has no structure to edit: a prefix and 256 bits that depend on nothing.
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

async fn a192(stage: &Stage) {
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
        stage.expect(case, spent(&flow.web, &code).await);
    }
    // The form decides, not only the hash: 42 and 129 characters and `!` that do fit their challenge.
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

async fn a193(stage: &Stage) {
    let mut old = confidential("old", "https://old.example/cb");
    old.require_pkce = false;
    let old = stage.server.register(old).await;
    let mut alice = stage.server.signed_in("alice").await;
    let stripped = old.request(&[("code_challenge", ""), ("code_challenge_method", "")]);
    let code = alice.allows_request(&stripped).await;
    let answer = old.redeems(&code).await;
    stage.expect(1, json_error(&answer, 400, "invalid_grant"));
    stage.expect(1, logged(&answer, "token.rejected", "pkce"));
    let code = alice.allows_request(&stripped).await;
    let answer = old.redeems_with(&code, &[("code_verifier", "")]).await;
    stage.check(2, answer.status == 200, || {
        format!("without both it works: {}", seen(&answer))
    });
}

/// The replay is refused, told and has ended the grant of these tokens, once.
fn replayed(stage: &Stage, server: &Server, case: usize, answer: &Answer, tokens: &Value) {
    stage.expect(case, json_error(answer, 400, "invalid_grant"));
    stage.expect(case, logged(answer, "code.replay", ""));
    stage.expect(case, severity(answer, "code.replay", "high"));
    stage.expect(case, ended(server, tokens, 1));
}

/// The grant behind the access token has ended, with this many records and audit events.
fn ended(server: &Server, tokens: &Value, times: i64) -> Result<(), String> {
    let claims = crate::cast::client::claims(tokens["access_token"].as_str().unwrap());
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
            "ended grants, G records, audit events: got {found:?}, want {times} each"
        ))
    }
}

async fn a194(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    for (case, secs) in [(1, 1), (2, 30)] {
        let code = flow.code().await;
        let tokens = flow.web.redeems(&code).await.ok();
        stage.expect(case, ended(&stage.server, &tokens.0, 0));
        stage.server.advance(Duration::from_secs(secs));
        let answer = flow.web.redeems(&code).await;
        replayed(stage, &stage.server, case, &answer, &tokens.0);
        // Once more changes nothing more.
        let answer = flow.web.redeems(&code).await;
        replayed(stage, &stage.server, case, &answer, &tokens.0);
    }
    // 3. After a restart, with a server of its own.
    let own = Server::start(stage.db()).await;
    let mut flow_there = Flow::begin(&own).await;
    let code = flow_there.code().await;
    let tokens = flow_there.web.redeems(&code).await.ok();
    let own = own.restarted().await;
    let answer = flow_there.web.at(&own.base).redeems(&code).await;
    replayed(stage, &own, 3, &answer, &tokens.0);
    own.remove().await;
    // 4. On the last node; on SQLite the only one.
    let code = flow.code().await;
    let tokens = flow.web.redeems(&code).await.ok();
    let answer = flow
        .web
        .at(&stage.all().last().unwrap().base)
        .redeems(&code)
        .await;
    replayed(stage, &stage.server, 4, &answer, &tokens.0);
    // 5. Whoever cannot show to be the client ends nothing.
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
    stage.expect(5, ended(&stage.server, &tokens.0, 0));
    let answer = flow
        .web
        .redeems_with(&code, &[("redirect_uri", spa.redirect_uri())])
        .await;
    stage.expect(5, json_error(&answer, 400, "invalid_grant"));
    stage.expect(5, ended(&stage.server, &tokens.0, 0));
}

async fn a196(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let nodes: Vec<Party> = stage.all().map(|node| flow.web.at(&node.base)).collect();
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
                stage.expect(case, ended(&stage.server, &tokens, 1));
            }
        }
    }
}

async fn a198(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let rows = || {
        [
            "grants",
            "revocations",
            "audit_events",
            "codes WHERE used_at IS NOT NULL",
        ]
        .map(|of| {
            stage
                .server
                .count(&format!("SELECT count(*) AS n FROM {of}"))
        })
    };
    let before = rows();
    let answer = storage_fails(stage, &flow.web, &code).await;
    stage.expect(1, json_error(&answer, 503, "temporarily_unavailable"));
    stage.check(
        1,
        answer
            .header("retry-after")
            .is_some_and(|secs| secs.parse::<u8>().is_ok()),
        || format!("{:?}", answer.headers),
    );
    stage.check(
        1,
        !answer.body.contains("token\"") && !answer.body.contains("fire"),
        || answer.body.clone(),
    );
    stage.expect(1, logged(&answer, "token.storage_error", ""));
    stage.check(1, rows() == before, || {
        format!("rows were {before:?}, are {:?}", rows())
    });
    stage.expect(1, unspent(&flow.web, &code).await);
}

async fn a200(stage: &Stage) {
    let began = stage.server.clock.now().secs();
    let mut flow = Flow::begin(&stage.server).await;
    stage.server.advance(Duration::from_secs(100));
    let nonce = "n-\u{fc}\"'<>&+% =/\u{1f600}";
    let code = flow
        .alice
        .allows_request(&flow.web.request(&[("nonce", nonce)]))
        .await;
    let tokens = flow.web.redeems(&code).await.ok();
    let id = tokens.id_claims();
    stage.check(1, id["nonce"] == nonce, || id["nonce"].to_string());
    stage.check(2, id["aud"] == flow.web.id(), || id["aud"].to_string());
    let at_hash = base64url(&sha256(tokens.access().as_bytes())[..16]);
    stage.check(3, id["at_hash"] == at_hash.as_str(), || {
        format!("got {}, want {at_hash}", id["at_hash"])
    });
    stage.check(
        4,
        id["auth_time"] == began && id["iat"] == began + 100,
        || id.to_string(),
    );
    let alice = format!(
        "SELECT count(*) AS n FROM users WHERE username = 'alice' AND id = '{}'",
        id["sub"].as_str().unwrap()
    );
    stage.check(
        5,
        id["sub"] == tokens.access_claims()["sub"] && stage.server.count(&alice) == 1,
        || id["sub"].to_string(),
    );
    let bearer = format!("Bearer {}", tokens.access());
    let told = stage
        .server
        .browser()
        .send(
            "GET",
            "/oauth2/userinfo",
            &[("Authorization", &bearer)],
            None,
        )
        .await;
    stage.check(
        5,
        told.status == 200 && told.json()["sub"] == id["sub"],
        || seen(&told),
    );
    stage.check(
        6,
        id.get("azp").is_none_or(|azp| azp == flow.web.id()),
        || id["azp"].to_string(),
    );
}

async fn a201(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.browser();
    let code = alice
        .allows_request(&web.request(&[("scope", "openid profile email orders:read")]))
        .await;
    let tokens = web.redeems(&code).await.ok();
    let (access, claims, id) = (
        header(tokens.access()),
        tokens.access_claims(),
        tokens.id_claims(),
    );
    stage.check(
        1,
        access["typ"] == "at+jwt" && access["alg"] == Alg::ES256.name(),
        || access.to_string(),
    );
    for name in ["iss", "exp", "aud", "sub", "client_id", "iat", "jti"] {
        stage.check(2, claims.get(name).is_some(), || {
            format!("no {name} in {claims}")
        });
    }
    stage.check(
        3,
        claims["aud"] == AUDIENCE && claims["client_id"] == web.id(),
        || claims.to_string(),
    );
    let personal = [
        "email",
        "email_verified",
        "name",
        "given_name",
        "family_name",
        "preferred_username",
        "nickname",
        "picture",
        "phone_number",
        "ip",
        "ip_address",
    ];
    stage.check(
        4,
        personal.iter().all(|name| claims.get(name).is_none()),
        || claims.to_string(),
    );
    let text = claims.to_string();
    stage.check(
        4,
        ["alice", "mail.example", "127.0.0.1"]
            .iter()
            .all(|word| !text.contains(word)),
        || text.clone(),
    );
    let id_header = header(tokens.0["id_token"].as_str().unwrap());
    stage.check(
        5,
        id_header["typ"] != "at+jwt" && id["aud"] != AUDIENCE,
        || format!("{id_header} {id}"),
    );
    // Neither passes for the other at the API.
    let now = stage.server.clock.now().secs();
    let need = portcullis_verifier::Need::any();
    stage.check(
        6,
        stage
            .server
            .api()
            .verify_at(tokens.access(), &need, now)
            .is_ok(),
        || "the API refuses the access token".to_owned(),
    );
    stage.check(
        7,
        stage
            .server
            .api()
            .verify_at(tokens.0["id_token"].as_str().unwrap(), &need, now)
            .is_err(),
        || "the API accepts the ID token".to_owned(),
    );
}

async fn a202(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    for (case, (answer, _, _)) in (1..).zip(every_error(stage, &mut flow).await) {
        stage.expect(case, fixed_text(&answer));
    }
}

/// What an error answer of the token endpoint may hold: a code, the sentence of that code or of the
/// HTTP layer, and the correlation id.
pub fn fixed_text(answer: &Answer) -> Result<(), String> {
    const HTTP: [&str; 4] = [
        "The request has more than 16 KiB.",
        "Bodies must not be compressed.",
        "At most 64 are read.",
        "The address has more than 8 KiB.",
    ];
    const OAUTH: [Code; 8] = [
        Code::InvalidRequest,
        Code::UnauthorizedClient,
        Code::InvalidScope,
        Code::TemporarilyUnavailable,
        Code::InvalidClient,
        Code::InvalidGrant,
        Code::UnsupportedGrantType,
        Code::InvalidTarget,
    ];
    let body = answer.json();
    let members: BTreeSet<&str> = body
        .as_object()
        .map(|members| members.keys().map(String::as_str).collect())
        .unwrap_or_default();
    let (error, text) = (
        body["error"].as_str().unwrap_or_default(),
        body["error_description"].as_str().unwrap_or_default(),
    );
    let known = OAUTH
        .iter()
        .any(|code| code.as_str() == error && code.sentence() == text)
        || (error == "invalid_request" && HTTP.contains(&text));
    let quoted = body["error_id"].as_str() == answer.header("x-request-id");
    if known && quoted && members == BTreeSet::from(["error", "error_description", "error_id"]) {
        Ok(())
    } else {
        Err(format!("not from the table: {body}"))
    }
}

async fn a204(stage: &Stage) {
    let mut spa = public("spa", &["https://spa.example/cb"]);
    spa.cors_origins = vec!["https://spa.example".to_owned()];
    let spa = stage.server.register(spa).await;
    let origins = [
        "https://evil.test",
        "null",
        "https://spa.example",
        "https://spa.example.evil.test",
        "http://spa.example",
        "https://spa.example:8443",
        "https://SPA.example",
    ];
    for (case, origin) in (1..).zip(origins) {
        let want = (origin == "https://spa.example").then_some(origin);
        let asked = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "content-type"),
        ];
        let preflight = stage
            .node(case)
            .browser()
            .send("OPTIONS", TOKEN, &asked, None)
            .await;
        let actual = spa
            .posts_raw(
                TOKEN,
                &[("Origin", origin)],
                &[
                    ("grant_type", "authorization_code"),
                    ("code", "pcl_ac_x"),
                    ("client_id", spa.id()),
                ],
            )
            .await;
        for answer in [&preflight, &actual] {
            stage.check(
                case,
                answer.header("access-control-allow-origin") == want,
                || format!("{origin}: {:?}", answer.headers),
            );
            stage.check(
                case,
                answer.header("access-control-allow-credentials").is_none(),
                || format!("{origin}: {:?}", answer.headers),
            );
            stage.check(
                case,
                answer
                    .header("vary")
                    .is_some_and(|vary| vary.contains("Origin")),
                || format!("{origin}: {:?}", answer.headers),
            );
        }
        stage.check(
            case,
            preflight.header("access-control-allow-methods").is_some() == want.is_some(),
            || format!("{origin}: {:?}", preflight.headers),
        );
    }
}
