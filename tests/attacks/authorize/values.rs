//! Invalid parameter values, and parameters of features that are not offered.

use std::time::{Duration, Instant};

use portcullis::oauth::request::scope::Scope;

use super::{STATE, both, form, posts_across};
use crate::expect::{
    WEB_CALLBACK, logged, page, posted_to, redirected, redirected_with_code, sets_session, summary,
};
use crate::fixtures::server::{AUDIENCE, confidential};
use crate::fixtures::{Browser, ISSUER};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a012_oversized_scopes_are_rejected_in_linear_time),
    row!(a013_invalid_scopes_are_rejected_before_login),
    row!(a014_invalid_response_types_are_rejected),
    row!(a016_unregistered_response_modes_are_rejected),
    row!(a017_form_post_page_escapes_state),
    row!(a018_invalid_prompt_and_max_age_are_rejected),
    row!(a033_unsatisfiable_essential_acr_is_rejected),
    row!(a036_invalid_resources_are_rejected),
    row!(a037_authorization_details_are_ignored),
    row!(a038_dpop_parameter_and_header_are_ignored),
];

async fn a012_oversized_scopes_are_rejected_in_linear_time(stage: &Stage) {
    let web = stage.server.shop().await;
    let many = |n: usize| {
        (0..n)
            .map(|n| format!("s{n}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let scopes = [
        many(10_000),
        "a".repeat(100_000),
        ["openid"; 1_000].join(" "),
        "a".repeat(1_025),
        many(33),
    ];
    for (case, scope) in (1..).zip(&scopes) {
        let answer = posts_across(stage, case, form(&web.parameters(&[("scope", scope)]))).await;
        if scope.len() > 16_384 {
            stage.expect(
                case,
                page(&answer, 413).and(logged(&answer, "http.too_large", "body")),
            );
        } else {
            stage.expect(
                case,
                both(
                    redirected(&answer, "invalid_scope", STATE),
                    logged(&answer, "authz.rejected", "scope"),
                ),
            );
        }
    }
    // A value within the limit is small, so parsing takes far less than the 5 ms of a handler.
    let (longest, started) = (many(32), Instant::now());
    for _ in 0..100 {
        assert!(Scope::parse(&longest).is_ok());
    }
    stage.check(6, started.elapsed() < Duration::from_millis(500), || {
        format!("100 times in {:?}", started.elapsed())
    });
}

async fn a013_invalid_scopes_are_rejected_before_login(stage: &Stage) {
    let mut narrow = confidential("narrow", WEB_CALLBACK);
    narrow.scopes = Scope::parse("openid").unwrap();
    let web = stage.server.register(narrow).await;
    let mut alice = stage.server.browser();
    alice.signs_in(&web, "alice").await;
    let scopes = [
        "openid \"",
        "openid a\\b",
        "openid caf\u{e9}",
        "openid wibble",
        "openid orders:read",
    ];
    for (case, scope) in (1..).zip(scopes) {
        let node = stage.node(case);
        for mut browser in [alice.at(&node.base), node.browser()] {
            let answer = browser.get(&web.request(&[("scope", scope)])).await;
            stage.expect(
                case,
                both(
                    redirected(&answer, "invalid_scope", STATE),
                    logged(&answer, "authz.rejected", "scope"),
                ),
            );
        }
    }
}

async fn a014_invalid_response_types_are_rejected(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let cases = [
        ("", "invalid_request"),
        ("foo", "unsupported_response_type"),
        ("code code", "unsupported_response_type"),
    ];
    for (case, (response_type, error)) in (1..).zip(cases) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[("response_type", response_type)]))
            .await;
        stage.expect(
            case,
            both(
                redirected(&answer, error, STATE),
                logged(&answer, "authz.rejected", ""),
            ),
        );
    }
}

async fn a016_unregistered_response_modes_are_rejected(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    for (case, mode) in (1..).zip(["fragment", "web_message", "foo", "query.jwt"]) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[("response_mode", mode)]))
            .await;
        stage.expect(
            case,
            both(
                redirected(&answer, "invalid_request", STATE),
                logged(&answer, "authz.rejected", ""),
            ),
        );
        stage.check(
            case,
            !answer.location().unwrap_or_default().contains('#'),
            || "answered in a fragment".to_owned(),
        );
    }
}

async fn a017_form_post_page_escapes_state(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let state = "\"><script>alert(1)</script>";
    let answer = alice
        .get(&web.request(&[("response_mode", "form_post"), ("state", state)]))
        .await;
    stage.check(
        1,
        answer.status == 200 && answer.location().is_none(),
        || summary(&answer),
    );
    stage.check(
        1,
        !answer.body.contains("<script>") && answer.body.matches("<script").count() == 1,
        || answer.body.clone(),
    );
    let field = |name: &str| {
        posted_to(&answer, WEB_CALLBACK)
            .ok()
            .and_then(|fields| fields.get(name).cloned())
    };
    stage.check(2, field("state").as_deref() == Some(state), || {
        format!("state {:?}", field("state"))
    });
    stage.check(
        2,
        field("code").is_some() && field("iss").as_deref() == Some(ISSUER),
        || answer.body.clone(),
    );
    let csp = answer.header("content-security-policy").unwrap_or_default();
    let directive = |name: &str| {
        csp.split(';')
            .map(str::trim)
            .find_map(|part| part.strip_prefix(name))
            .map(str::trim)
    };
    stage.check(3, directive("form-action").is_none(), || csp.to_owned());
    let nonce = answer
        .body
        .split_once("<script nonce=\"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .map(|(nonce, _)| nonce);
    let only = nonce.map(|nonce| format!("'nonce-{nonce}' 'strict-dynamic'"));
    stage.check(
        4,
        only.is_some() && directive("script-src") == only.as_deref(),
        || csp.to_owned(),
    );
    let again = alice
        .get(&web.request(&[("response_mode", "form_post")]))
        .await;
    stage.check(
        4,
        nonce.is_some_and(|nonce| !again.body.contains(nonce)),
        || "the nonce came twice".to_owned(),
    );
}

async fn a018_invalid_prompt_and_max_age_are_rejected(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let cases = [
        ("prompt", "none login"),
        ("prompt", "foo"),
        ("max_age", "-1"),
        ("max_age", "1e3"),
        ("max_age", "99999999999999999999"),
    ];
    for (case, (name, value)) in (1..).zip(cases) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[(name, value)]))
            .await;
        stage.expect(
            case,
            both(
                redirected(&answer, "invalid_request", STATE),
                logged(&answer, "authz.rejected", name),
            ),
        );
    }
}

async fn a033_unsatisfiable_essential_acr_is_rejected(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let essential = r#"{"id_token":{"acr":{"essential":true,"values":["urn:none"]}}}"#;
    let answer = alice.get(&web.request(&[("claims", essential)])).await;
    stage.expect(
        1,
        both(
            redirected(&answer, "unmet_authentication_requirements", STATE),
            logged(&answer, "authz.rejected", "acr"),
        ),
    );
    let voluntary = r#"{"id_token":{"acr":{"values":["urn:none"]}}}"#;
    let best = web
        .redeems(&alice.allows(&web).await)
        .await
        .ok()
        .id_claims()["acr"]
        .clone();
    for (case, (name, value)) in [(2, ("claims", voluntary)), (3, ("acr_values", "urn:none"))] {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[(name, value)]))
            .await;
        stage.expect(case, redirected_with_code(&answer, WEB_CALLBACK, STATE));
        let acr = web
            .redeems(&answer.callback("code").unwrap())
            .await
            .ok()
            .id_claims()["acr"]
            .clone();
        stage.check(
            case,
            acr == best && acr.is_string() && acr != "urn:none",
            || format!("acr {acr}"),
        );
    }
}

async fn a036_invalid_resources_are_rejected(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let with = |resources: &[&str]| {
        let fields: Vec<(String, String)> = resources
            .iter()
            .map(|uri| ("resource".to_owned(), (*uri).to_owned()))
            .collect();
        format!("{}&{}", web.request(&[("resource", "")]), form(&fields))
    };
    let fragment = format!("{AUDIENCE}#x");
    let cases = [
        vec!["/orders"],
        vec![fragment.as_str()],
        vec!["https://other.example"],
        vec![AUDIENCE; 9],
        vec![AUDIENCE, "https://other.example"],
    ];
    for (case, resources) in (1..).zip(&cases) {
        let answer = alice.at(&stage.node(case).base).get(&with(resources)).await;
        stage.expect(
            case,
            both(
                redirected(&answer, "invalid_target", STATE),
                logged(&answer, "authz.rejected", "resource"),
            ),
        );
    }
    let answer = alice.clone().get(&with(&[AUDIENCE; 8])).await;
    stage.expect(6, redirected_with_code(&answer, WEB_CALLBACK, STATE));
}

async fn a037_authorization_details_are_ignored(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let deep = format!(
        "[{{\"type\":\"a\",\"x\":{}{}}}]",
        "[".repeat(9),
        "]".repeat(9)
    );
    let plain = web.redeems(&alice.clone().allows(&web).await).await.ok();
    for (case, details) in (1..).zip([
        "[{",
        r#"[{"type":"unknown_type"}]"#,
        &deep,
        r#"[{"type":"payment"}]"#,
    ]) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[("authorization_details", details)]))
            .await;
        // Rich authorization requests are not offered, so the parameter is unknown.
        stage.expect(case, redirected_with_code(&answer, WEB_CALLBACK, STATE));
        let tokens = web.redeems(&answer.callback("code").unwrap()).await.ok();
        let same = ["aud", "scope"]
            .iter()
            .all(|name| tokens.access_claims()[name] == plain.access_claims()[name]);
        let silent = tokens.0.get("authorization_details").is_none()
            && tokens
                .access_claims()
                .get("authorization_details")
                .is_none();
        stage.check(case, same && silent, || tokens.access_claims().to_string());
    }
    let metadata = alice
        .clone()
        .get("/.well-known/openid-configuration")
        .await
        .json();
    stage.check(
        5,
        metadata
            .get("authorization_details_types_supported")
            .is_none(),
        || metadata.to_string(),
    );
}

async fn a038_dpop_parameter_and_header_are_ignored(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let jkt = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I";
    let answer = alice.clone().get(&web.request(&[("dpop_jkt", jkt)])).await;
    stage.expect(1, redirected_with_code(&answer, WEB_CALLBACK, STATE));
    // DPoP is not offered, so its parameter and header are ignored.
    let code = answer.callback("code").unwrap();
    let authorization =
        crate::fixtures::client::basic(web.id(), web.secret.as_ref().unwrap().expose());
    let fields = [
        ("grant_type", "authorization_code"),
        ("code", &code),
        ("redirect_uri", WEB_CALLBACK),
        ("code_verifier", crate::fixtures::VERIFIER),
    ];
    let tokens = web
        .posts_raw(
            "/oauth2/token",
            &[("Authorization", &authorization), ("DPoP", "e30.e30.e30")],
            &fields,
        )
        .await
        .ok();
    stage.check(
        2,
        tokens.0["token_type"] == "Bearer" && tokens.access_claims().get("cnf").is_none(),
        || tokens.0.to_string(),
    );
    let mut anonymous: Browser = stage.node(1).browser();
    let metadata = anonymous
        .get("/.well-known/openid-configuration")
        .await
        .json();
    stage.check(
        3,
        metadata.get("dpop_signing_alg_values_supported").is_none(),
        || metadata.to_string(),
    );
    let pushed = anonymous
        .post("/oauth2/par", &[("client_id", web.id()), ("dpop_jkt", jkt)])
        .await;
    stage.expect(4, page(&pushed, 404));
    stage.check(4, !sets_session(&pushed), || summary(&pushed));
}
