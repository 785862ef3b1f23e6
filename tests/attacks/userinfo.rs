//! Rows of the catalogue: `/oauth2/userinfo`.

use std::time::Duration;

use portcullis::oauth::client::GrantType;

use crate::expect::{logged, summary};
use crate::fixtures::server::{confidential, public};
use crate::fixtures::{Answer, TestClient, Tokens, raw};
use crate::token_code::{FORM, Flow, not_logged};
use crate::token_refresh::redeem_new_code;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a350_userinfo_without_token_has_no_error_code),
    row!(a351_invalid_tokens_are_rejected_at_userinfo),
    row!(a352_userinfo_requires_scope_openid),
    row!(a353_userinfo_token_in_query_or_sent_twice_is_rejected),
    row!(a354_userinfo_accepts_well_formed_bearer_headers_only),
    row!(a356_userinfo_returns_only_permitted_claims),
    row!(a357_userinfo_sub_equals_id_token_sub),
    row!(a358_userinfo_cors_rejects_foreign_origins),
    row!(a536_userinfo_audience_follows_decision),
];

const USERINFO: &str = "/oauth2/userinfo";

/// Checks BEARER401, BEARER403, or a 400 in the same form.
fn bearer(answer: &Answer, status: u16, code: &str) -> Result<(), String> {
    let challenge = answer.header("www-authenticate").unwrap_or_default();
    let named =
        challenge.starts_with("Bearer ") && challenge.contains(&format!("error=\"{code}\""));
    if answer.status != status || !named || answer.header("cache-control") != Some("no-store") {
        return Err(format!(
            "got {} with `{challenge}`, want {status} {code}",
            summary(answer)
        ));
    }
    logged(answer, "bearer.rejected", "")
}

fn told(stage: &Stage, case: usize, answer: &Answer) {
    stage.check(
        case,
        answer.status == 200 && answer.json()["sub"].is_string(),
        || summary(answer),
    );
}

async fn a350_userinfo_without_token_has_no_error_code(stage: &Stage) {
    for (case, method) in [(1, "GET"), (2, "POST")] {
        let mut anonymous = stage.node(case).browser();
        let answer = anonymous.send(method, USERINFO, &[], None).await;
        let challenge = answer.header("www-authenticate").unwrap_or_default();
        stage.check(
            case,
            answer.status == 401 && challenge.starts_with("Bearer") && !challenge.contains("error"),
            || format!("{} {challenge}", summary(&answer)),
        );
        stage.check(case, answer.body.is_empty(), || answer.body.clone());
        stage.expect(case, logged(&answer, "bearer.rejected", "missing"));
    }
    // Another scheme counts as no token.
    let basic = [("Authorization", "Basic YTpi")];
    let answer = stage
        .server
        .browser()
        .send("GET", USERINFO, &basic, None)
        .await;
    stage.check(3, answer.status == 401, || summary(&answer));
}

async fn a351_invalid_tokens_are_rejected_at_userinfo(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let (tokens, revoked) = (
        redeem_new_code(&mut flow).await,
        redeem_new_code(&mut flow).await,
    );
    let asks = async |case: usize, token: &str| {
        stage.node(case).browser().asks_userinfo("GET", token).await
    };
    // 2. Revoked.
    flow.web.revokes(revoked.access()).await;
    let answer = asks(2, revoked.access()).await;
    stage.expect(2, bearer(&answer, 401, "invalid_token"));
    stage.expect(2, logged(&answer, "bearer.rejected", "revoked"));
    // 3. A bad signature. 4. An ID token.
    let (body, signature) = tokens.access().rsplit_once('.').unwrap();
    let turned: String = signature.chars().rev().collect();
    let forged = format!("{body}.{turned}");
    let id_token = tokens.0["id_token"].as_str().unwrap();
    for (case, token) in [(3, forged.as_str()), (4, id_token)] {
        let answer = asks(case, token).await;
        stage.expect(case, bearer(&answer, 401, "invalid_token"));
        stage.expect(case, logged(&answer, "bearer.rejected", ""));
    }
    // 1. Expired, exact to the second of the server's clock.
    let exp = tokens.access_claims()["exp"].as_u64().unwrap();
    for at in [exp - 1, exp, exp + 1, exp + 29] {
        let now = stage.server.clock.now().secs();
        stage.server.advance(Duration::from_secs(at - now));
        let answer = asks(1, tokens.access()).await;
        if at < exp {
            told(stage, 1, &answer);
        } else {
            stage.expect(1, bearer(&answer, 401, "invalid_token"));
            stage.expect(1, logged(&answer, "bearer.rejected", "expired"));
        }
    }
}

async fn a352_userinfo_requires_scope_openid(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let url = flow.web.request(&[("scope", "orders:read profile")]);
    let code = flow.alice.allows_request(&url).await;
    let plain = flow.web.redeems(&code).await.ok();
    let mut robot = confidential("robot", "https://robot.example/cb");
    robot.grant_types = vec![GrantType::ClientCredentials];
    let robot = stage.server.register(robot).await;
    let fields = [
        ("grant_type", "client_credentials"),
        ("scope", "orders:read"),
    ];
    let machine = robot.posts("/oauth2/token", &fields).await.ok();
    for (case, tokens) in [(1, &plain), (2, &machine)] {
        for method in ["GET", "POST"] {
            let mut browser = stage.node(case).browser();
            let answer = browser.asks_userinfo(method, tokens.access()).await;
            stage.expect(case, bearer(&answer, 403, "insufficient_scope"));
            stage.expect(case, logged(&answer, "bearer.rejected", "scope"));
        }
    }
    // A client credentials grant cannot get the scope either.
    let fields = [("grant_type", "client_credentials"), ("scope", "openid")];
    let answer = robot.posts("/oauth2/token", &fields).await;
    stage.check(
        2,
        answer.status == 400 && answer.json()["error"] == "invalid_scope",
        || summary(&answer),
    );
}

async fn a353_userinfo_token_in_query_or_sent_twice_is_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let tokens = redeem_new_code(&mut flow).await;
    let (token, mut browser) = (tokens.access(), stage.server.browser());
    let form = format!("access_token={token}");
    let header = format!("Bearer {token}");
    let header = ("Authorization", header.as_str());
    let in_query = format!("{USERINFO}?{form}");
    for (method, headers) in [("GET", &[][..]), ("POST", &[]), ("GET", &[header])] {
        let answer = browser.send(method, &in_query, headers, None).await;
        stage.expect(1, bearer(&answer, 400, "invalid_request"));
        stage.expect(1, not_logged(&answer, token));
    }
    let both = browser
        .send("POST", USERINFO, &[FORM, header], Some(form.clone()))
        .await;
    stage.expect(2, bearer(&both, 400, "invalid_request"));
    let twice = browser
        .send("POST", USERINFO, &[FORM], Some(format!("{form}&{form}")))
        .await;
    stage.expect(2, bearer(&twice, 400, "invalid_request"));
    told(
        stage,
        3,
        &browser
            .send("POST", USERINFO, &[FORM], Some(form.clone()))
            .await,
    );
    // A form body is accepted only with POST (RFC 6750 §2.2).
    let got = browser.send("GET", USERINFO, &[FORM], Some(form)).await;
    stage.check(3, got.status == 401, || summary(&got));
}

async fn a354_userinfo_accepts_well_formed_bearer_headers_only(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let tokens = redeem_new_code(&mut flow).await;
    let token = tokens.access();
    let once = |value: String| vec![format!("Authorization: {value}")];
    let cases = [
        (1, once(format!("bearer {token}")), 200),
        (2, once(format!("BEARER {token}")), 200),
        (
            3,
            [
                once(format!("Bearer {token}")),
                once(format!("Bearer {token}")),
            ]
            .concat(),
            400,
        ),
        (
            3,
            [
                once(format!("Bearer {token}")),
                once("Basic YTpi".to_owned()),
            ]
            .concat(),
            400,
        ),
        (4, once(format!("Bearer\t{token}")), 400),
        (5, once(format!("Bearer {token},")), 400),
        (5, once(format!("Bearer {token}, Bearer {token}")), 400),
        (6, once("Bearer".to_owned()), 400),
        (6, once(format!("Bearer  {token}")), 400),
    ];
    for (case, lines, status) in cases {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let answer = raw::request(&stage.node(case).base, "GET", USERINFO, &lines, "").await;
        let answer = answer.unwrap();
        if status == 200 {
            told(stage, case, &answer);
        } else {
            stage.expect(case, bearer(&answer, 400, "invalid_request"));
        }
    }
}

/// Runs a flow of alice with changed parameters; returns the tokens and the userinfo response.
async fn tells(stage: &Stage, client: &TestClient, changed: &[(&str, &str)]) -> (Tokens, Answer) {
    let mut alice = stage.server.enters("alice").await;
    let code = alice.allows_request(&client.request(changed)).await;
    let tokens = client.redeems(&code).await.ok();
    let answer = alice.asks_userinfo("GET", tokens.access()).await;
    (tokens, answer)
}

async fn a356_userinfo_returns_only_permitted_claims(stage: &Stage) {
    let mut narrow = confidential("narrow", "https://narrow.example/cb");
    narrow.scopes = portcullis::oauth::request::scope::Scope::parse("openid").unwrap();
    let narrow = stage.server.register(narrow).await;
    let web = stage.server.shop().await;
    let wanted = r#"{"userinfo":{"email":null,"email_verified":{"essential":true},"shoe_size":{"essential":true}},"id_token":{"email":null}}"#;
    let requests: [(usize, &TestClient, &[(&str, &str)]); 3] = [
        (1, &web, &[("scope", "openid")]),
        (2, &narrow, &[("claims", wanted)]),
        (
            3,
            &web,
            &[
                ("scope", "openid"),
                ("claims", r#"{"userinfo":{"shoe_size":null}}"#),
            ],
        ),
    ];
    for (case, client, changed) in requests {
        let (tokens, answer) = tells(stage, client, changed).await;
        let only = serde_json::json!({ "sub": tokens.id_claims()["sub"] });
        stage.check(case, answer.json() == only, || answer.body.clone());
        stage.check(case, tokens.id_claims().get("email").is_none(), || {
            tokens.id_claims().to_string()
        });
    }
}

async fn a357_userinfo_sub_equals_id_token_sub(stage: &Stage) {
    // 1. Pairwise subjects are not offered: a user has one `sub`, as the metadata states.
    let metadata = "/.well-known/openid-configuration";
    let metadata = stage.server.browser().get(metadata).await.json();
    stage.check(
        1,
        metadata["subject_types_supported"] == serde_json::json!(["public"]),
        || metadata["subject_types_supported"].to_string(),
    );
    let web = stage.server.shop().await;
    let other = confidential("web2", "https://app2.example/cb");
    let other = stage.server.register(other).await;
    let mut subjects = Vec::new();
    for client in [&web, &other] {
        let (tokens, answer) = tells(stage, client, &[]).await;
        let sub = answer.json()["sub"].clone();
        stage.check(2, sub == tokens.id_claims()["sub"], || answer.body.clone());
        subjects.push(sub);
    }
    stage.check(1, subjects[0] == subjects[1], || format!("{subjects:?}"));
}

async fn a358_userinfo_cors_rejects_foreign_origins(stage: &Stage) {
    let mut spa = public("spa", &["https://spa.example/cb"]);
    spa.cors_origins = vec!["https://spa.example".to_owned()];
    let spa = stage.server.register(spa).await;
    let (tokens, _) = tells(stage, &spa, &[]).await;
    let authorization = format!("Bearer {}", tokens.access());
    for (case, origin) in [
        (1, "null"),
        (2, "https://evil.test"),
        (3, "https://spa.example"),
    ] {
        let mut alice = stage.server.enters("alice").await;
        let preflight = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "GET"),
            ("Access-Control-Request-Headers", "authorization"),
        ];
        // With the cookies of alice, as a script sends them in credentials mode.
        let actual = [
            ("Origin", origin),
            ("Authorization", authorization.as_str()),
        ];
        let bare = [("Origin", origin)];
        let answers = [
            alice.send("OPTIONS", USERINFO, &preflight, None).await,
            alice.send("GET", USERINFO, &actual, None).await,
            alice.send("GET", USERINFO, &bare, None).await,
        ];
        stage.check(
            case,
            answers[1].status == 200 && answers[2].status == 401,
            || format!("{} {}", summary(&answers[1]), summary(&answers[2])),
        );
        for answer in &answers {
            let (allowed, credentials) = (
                answer.header("access-control-allow-origin"),
                answer.header("access-control-allow-credentials"),
            );
            let want = (case == 3).then_some(origin);
            stage.check(case, allowed == want && credentials.is_none(), || {
                format!("{origin}: {:?}", answer.headers)
            });
        }
    }
}

async fn a536_userinfo_audience_follows_decision(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let url = flow.web.request(&[("scope", "openid profile orders:read")]);
    let code = flow.alice.allows_request(&url).await;
    let tokens = flow.web.redeems(&code).await.ok();
    // 1. The API can read the profile of its caller with the token that it received.
    let mut api = stage.node(1).browser();
    let answer = api.asks_userinfo("GET", tokens.access()).await;
    let name = answer.json()["preferred_username"] == "alice";
    stage.check(1, answer.status == 200 && name, || summary(&answer));
    // 2. Not with a token that the client requested without `openid`.
    let narrow = flow
        .web
        .refreshes(tokens.refresh(), &[("scope", "orders:read")])
        .await
        .ok();
    let answer = api.asks_userinfo("GET", narrow.access()).await;
    stage.expect(2, bearer(&answer, 403, "insufficient_scope"));
}
