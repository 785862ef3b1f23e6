//! Parameters about the user and their sign-in: `prompt`, `max_age`, `id_token_hint`, `login_hint`, `claims`.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::keys::Alg;
use serde_json::json;

use super::{STATE, both, form, posts_across};
use crate::expect::{
    WEB_CALLBACK, logged, login_page, page, page400, redirected, redirected_with_code,
};
use crate::fixtures::client::{claims, header};
use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Answer, log};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a020_prompt_login_and_max_age_0_require_a_new_login),
    row!(a021_invalid_id_token_hints_are_rejected),
    row!(a022_login_hint_is_escaped_and_ui_locales_are_not_cached),
    row!(a024_malformed_claims_json_is_rejected),
];

async fn a020_prompt_login_and_max_age_0_require_a_new_login(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    for (case, (name, value)) in [(1, ("max_age", "0")), (2, ("prompt", "login"))] {
        stage.server.advance(Duration::from_secs(40));
        let earlier = alice.opens(&web.request(&[(name, value)])).await;
        stage.expect(case, login_page(&earlier));
        let fields = [
            ("authorization", earlier.hidden("authorization")),
            ("csrf", earlier.hidden("csrf")),
            ("username", "alice".to_owned()),
            ("password", PASSWORD.to_owned()),
        ];
        let fields: Vec<(&str, &str)> = fields
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let login = alice.post("/login", &fields).await;
        stage.expect(case, logged(&login, "login.reauth", ""));
        let answer = alice.opens(&login.own_redirect().unwrap()).await;
        stage.expect(case, redirected_with_code(&answer, WEB_CALLBACK, STATE));
        let id = web
            .redeems(&answer.callback("code").unwrap())
            .await
            .ok()
            .id_claims();
        let now = stage.server.clock.now().secs();
        stage.check(case, id["auth_time"] == now, || {
            format!("auth_time {}, now {now}", id["auth_time"])
        });
        let back = alice.post("/login", &fields).await;
        stage.expect(
            case + 2,
            both(page400(&back), logged(&back, "authorization.replay", "")),
        );
    }
    // Even a login of the same instant is not recent enough.
    let answer = alice.opens(&web.request(&[("max_age", "0")])).await;
    stage.expect(5, login_page(&answer));
}

async fn a021_invalid_id_token_hints_are_rejected(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let mark = log::mark();
    let code = alice.allows(&web).await;
    let genuine = web.redeems(&code).await.ok().0["id_token"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut bob = stage.server.browser();
    let code = bob.signs_in(&web, "bob").await.callback("code").unwrap();
    let of_bob = web.redeems(&code).await.ok().0["id_token"]
        .as_str()
        .unwrap()
        .to_owned();

    let (signed, signature) = genuine.rsplit_once('.').unwrap();
    let middle = signature.len() / 2;
    let other = if signature.as_bytes()[middle] == b'A' {
        "B"
    } else {
        "A"
    };
    let forged = format!(
        "{signed}.{}{other}{}",
        &signature[..middle],
        &signature[middle + 1..]
    );
    let mut none = header(&genuine);
    none["alg"] = json!("none");
    let unsigned = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode(none.to_string()),
        genuine.split('.').nth(1).unwrap()
    );
    let mut foreign = claims(&genuine);
    foreign["iss"] = json!("https://other.example");
    let foreign = stage
        .server
        .app
        .keys()
        .sign(Alg::RS256, "JWT", &foreign)
        .unwrap();

    for (case, hint) in (1..).zip([&forged, &unsigned, &foreign]) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[("id_token_hint", hint)]))
            .await;
        stage.expect(
            case,
            both(
                redirected(&answer, "invalid_request", STATE),
                logged(&answer, "authz.rejected", "id_token_hint"),
            ),
        );
    }
    let answer = alice
        .get(&web.request(&[("id_token_hint", &of_bob), ("prompt", "none")]))
        .await;
    stage.expect(
        4,
        both(
            redirected(&answer, "login_required", STATE),
            logged(&answer, "authz.rejected", "other_user"),
        ),
    );
    // A genuine hint for the signed-in user is accepted.
    let answer = alice
        .get(&web.request(&[("id_token_hint", &genuine), ("prompt", "none")]))
        .await;
    stage.expect(5, redirected_with_code(&answer, WEB_CALLBACK, STATE));
    let parts: Vec<&str> = [&forged, &foreign, &of_bob]
        .into_iter()
        .flat_map(|token| token.split('.').skip(1))
        .collect();
    let told = log::since(mark).into_iter().find(|event| {
        event
            .values()
            .any(|value| parts.iter().any(|part| value.contains(part)))
    });
    stage.check(6, told.is_none(), || format!("logged {told:?}"));
}

async fn a022_login_hint_is_escaped_and_ui_locales_are_not_cached(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut anonymous = stage.server.browser();
    let page = anonymous
        .opens(&web.request(&[("login_hint", "<script>alert(1)</script>")]))
        .await;
    stage.expect(1, login_page(&page));
    stage.check(
        1,
        !page.body.contains("<script") && page.body.contains("&#60;script&#62;alert(1)"),
        || page.body.clone(),
    );

    let long = "a".repeat(10_000);
    let posted = posts_across(stage, 2, form(&web.parameters(&[("login_hint", &long)]))).await;
    let page = anonymous.opens(&posted.own_redirect().unwrap()).await;
    stage.expect(2, login_page(&page));
    let shown = page.hidden("username").len();
    stage.check(2, shown == 254, || format!("{shown} characters are shown"));

    let page = anonymous
        .opens(&web.request(&[("ui_locales", "../../etc/passwd")]))
        .await;
    stage.expect(3, login_page(&page));
    stage.check(
        3,
        page.body.contains("<html lang=\"en\">") && !page.body.contains("passwd"),
        || page.body.clone(),
    );
    // 10,000 are run by hand. Each request writes one authorization, and no locale is kept.
    for n in 0..50 {
        let answer = stage
            .node(n)
            .browser()
            .opens(&web.request(&[("ui_locales", &format!("x{n}-AB"))]))
            .await;
        stage.expect(4, login_page(&answer));
    }
}

async fn a024_malformed_claims_json_is_rejected(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let nested = |depth: usize, inner: &str| {
        format!(
            "{}{inner}{}",
            r#"{"userinfo":"#.repeat(depth),
            "}".repeat(depth)
        )
    };
    let malformed = |answer: &Answer| {
        both(
            redirected(answer, "invalid_request", STATE),
            logged(answer, "authz.rejected", "json"),
        )
    };
    for inner in ["1", "{}"] {
        let depth = if inner == "1" { 9 } else { 8 };
        let answer = alice
            .get(&web.request(&[("claims", &nested(depth, inner))]))
            .await;
        stage.expect(1, malformed(&answer));
    }
    for deepest in [
        nested(8, "null"),
        format!(r#"{{"x":{}{}}}"#, "[".repeat(7), "]".repeat(7)),
    ] {
        let answer = alice.get(&web.request(&[("claims", &deepest)])).await;
        stage.expect(5, redirected_with_code(&answer, WEB_CALLBACK, STATE));
    }
    // Brackets need no encoding in a form, so 10,000 of them fit into a body.
    let body = format!(
        "{}&claims={{\"a\":{}",
        form(&web.parameters(&[])),
        "[".repeat(10_000)
    );
    let answer = posts_across(stage, 2, body).await;
    stage.expect(2, malformed(&answer));
    let answer = posts_across(
        stage,
        3,
        form(&web.parameters(&[("claims", &format!("{{\"a\":\"{}\"}}", "b".repeat(1 << 20)))])),
    )
    .await;
    stage.expect(3, page(&answer, 413));
    let answer = alice
        .get(&web.request(&[("claims", r#"{"id_token":{},"id_token":{}}"#)]))
        .await;
    stage.expect(4, malformed(&answer));
}
