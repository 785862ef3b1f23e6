//! The parameters and headers of responses, and the request text that they never repeat.

use super::STATE;
use crate::expect::{
    WEB_CALLBACK, consent_page, login_page, page400, posted_to, redirected, redirected_with_code,
    summary,
};
use crate::fixtures::server::{PASSWORD, confidential};
use crate::fixtures::{Answer, ISSUER};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a029_authorize_responses_carry_security_headers),
    row!(a030_authorization_responses_carry_iss),
    row!(a032_error_descriptions_contain_no_request_text),
];

async fn a029_authorize_responses_carry_security_headers(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.node(1).browser();
    let common = |answer: &Answer| {
        let wanted = [
            ("cache-control", "no-store"),
            ("referrer-policy", "same-origin"),
            (
                "strict-transport-security",
                "max-age=63072000; includeSubDomains",
            ),
            ("x-content-type-options", "nosniff"),
        ];
        let odd = wanted
            .iter()
            .find(|(name, want)| answer.header(name) != Some(*want));
        odd.map_or(Ok(()), |(name, want)| {
            Err(format!(
                "{name}: got {:?}, want {want}",
                answer.header(name)
            ))
        })
    };
    let html = |answer: &Answer, popup: bool, posts_away: bool| {
        let csp = answer.header("content-security-policy").unwrap_or_default();
        let wanted = [
            "default-src 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ];
        let framed = !wanted.iter().all(|part| csp.contains(part))
            || csp.contains("form-action 'self'") == posts_away
            || answer.header("x-frame-options") != Some("DENY");
        let coop = answer.header("cross-origin-opener-policy");
        if framed || csp.contains("unsafe") || coop.is_some() == popup {
            Err(format!("csp {csp:?}, coop {coop:?}"))
        } else {
            Ok(())
        }
    };
    let start = alice.get(&web.request(&[])).await;
    stage.expect(1, common(&start));
    let login = alice.get(&start.own_redirect().unwrap()).await;
    stage.expect(
        2,
        login_page(&login)
            .and(common(&login))
            .and(html(&login, true, false)),
    );
    let consent = alice.fills_in(&login, "alice", PASSWORD).await;
    stage.expect(
        3,
        consent_page(&consent)
            .and(common(&consent))
            .and(html(&consent, true, false)),
    );
    let success = alice.decides(&consent, "allow").await;
    stage.expect(
        4,
        redirected_with_code(&success, WEB_CALLBACK, STATE).and(common(&success)),
    );
    let refused = alice.get(&web.request(&[("scope", "wibble")])).await;
    stage.expect(
        5,
        redirected(&refused, "invalid_scope", STATE).and(common(&refused)),
    );
    let error = alice.get(&web.request(&[("client_id", "unknown")])).await;
    stage.expect(
        6,
        page400(&error)
            .and(common(&error))
            .and(html(&error, false, false)),
    );
    let posted = alice
        .get(&web.request(&[("response_mode", "form_post")]))
        .await;
    stage.expect(
        7,
        posted_to(&posted, WEB_CALLBACK)
            .map(drop)
            .and(common(&posted))
            .and(html(&posted, true, true)),
    );
    let method = alice.send("PUT", &web.request(&[]), &[], None).await;
    stage.expect(8, common(&method));
}

/// Each error that the endpoint sends to a client, and parameters that cause it.
const REFUSALS: [(&str, &[(&str, &str)]); 9] = [
    ("invalid_request", &[("prompt", "foo")]),
    ("unsupported_response_type", &[("response_type", "token")]),
    ("invalid_scope", &[("scope", "openid wibble")]),
    ("invalid_target", &[("resource", "https://other.example")]),
    ("request_not_supported", &[("request", "e30.e30.")]),
    ("request_uri_not_supported", &[("request_uri", "urn:x:1")]),
    (
        "unmet_authentication_requirements",
        &[(
            "claims",
            r#"{"id_token":{"acr":{"essential":true,"value":"urn:none"}}}"#,
        )],
    ),
    (
        "consent_required",
        &[("prompt", "none"), ("scope", "openid orders:write")],
    ),
    ("access_denied", &[("prompt", "consent")]),
];

async fn a030_authorization_responses_carry_iss(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let mut incapable = confidential("incapable", WEB_CALLBACK);
    incapable.grant_types = Vec::new();
    let incapable = stage.server.register(incapable).await;
    let iss = |answer: &Answer, mode: &str, error: Option<&str>| {
        let fields = if mode == "query" {
            let to = answer
                .location()
                .filter(|to| to.starts_with(&format!("{WEB_CALLBACK}?")));
            to.map(|to| {
                form_urlencoded::parse(to.split_once('?').unwrap().1.as_bytes())
                    .into_owned()
                    .collect()
            })
        } else {
            posted_to(answer, WEB_CALLBACK).ok()
        };
        let fields: std::collections::BTreeMap<String, String> =
            fields.ok_or_else(|| summary(answer))?;
        let right = fields.get("iss").map(String::as_str) == Some(ISSUER)
            && fields.get("error").map(String::as_str) == error
            && fields.get("state").map(String::as_str) == STATE
            && fields.contains_key("code") == error.is_none();
        if right {
            Ok(())
        } else {
            Err(format!("{mode}: got {fields:?}, want {error:?}"))
        }
    };
    for mode in ["query", "form_post"] {
        let offset = if mode == "query" {
            0
        } else {
            REFUSALS.len() + 3
        };
        let success = alice
            .clone()
            .get(&web.request(&[("response_mode", mode)]))
            .await;
        stage.expect(offset + 1, iss(&success, mode, None));
        let mut anonymous = stage.node(1).browser();
        let answer = anonymous
            .get(&web.request(&[("response_mode", mode), ("prompt", "none")]))
            .await;
        stage.expect(offset + 2, iss(&answer, mode, Some("login_required")));
        let answer = anonymous
            .get(&incapable.request(&[("response_mode", mode)]))
            .await;
        stage.expect(offset + 3, iss(&answer, mode, Some("unauthorized_client")));
        for (n, (error, changed)) in REFUSALS.iter().enumerate() {
            let mut alice = alice.at(&stage.node(n).base);
            let changed: Vec<(&str, &str)> = changed
                .iter()
                .copied()
                .chain([("response_mode", mode)])
                .collect();
            let mut answer = alice.opens(&web.request(&changed)).await;
            if *error == "access_denied" {
                answer = alice.decides(&answer, "deny").await;
            }
            stage.expect(offset + 4 + n, iss(&answer, mode, Some(error)));
        }
    }
    let metadata = alice
        .clone()
        .get("/.well-known/openid-configuration")
        .await
        .json();
    let offered = metadata["authorization_response_iss_parameter_supported"] == true
        && metadata["issuer"] == ISSUER;
    stage.check(2 * (REFUSALS.len() + 3) + 1, offered, || {
        metadata.to_string()
    });
}

async fn a032_error_descriptions_contain_no_request_text(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let text = "<svg onload=alert(1)>";
    let names = [
        "scope",
        "response_type",
        "response_mode",
        "prompt",
        "max_age",
        "code_challenge",
        "code_challenge_method",
        "claims",
        "id_token_hint",
        "request",
        "request_uri",
        "resource",
    ];
    for (case, name) in (1..).zip(names) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[(name, text)]))
            .await;
        let error = answer.callback("error").unwrap_or_default();
        stage.expect(case, redirected(&answer, &error, STATE));
        stage.check(case, !error.is_empty(), || summary(&answer));
        let description = answer.callback("error_description").unwrap_or_default();
        let printable = !description.is_empty()
            && description
                .bytes()
                .all(|b| matches!(b, 0x20..=0x21 | 0x23..=0x5b | 0x5d..=0x7e));
        let ours = printable
            && !description.contains("svg")
            && !answer.location().unwrap_or_default().contains("svg");
        stage.check(case, ours, || format!("error_description `{description}`"));
    }
    for (case, name) in (names.len() + 1..).zip(["client_id", "redirect_uri"]) {
        let answer = alice.clone().get(&web.request(&[(name, text)])).await;
        stage.expect(case, page400(&answer));
        stage.check(case, !answer.body.contains("onload"), || {
            answer.body.clone()
        });
    }
}
