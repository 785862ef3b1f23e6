//! Forms that other sites submit, and the cookies of a login.

use std::collections::BTreeSet;

use portcullis::secret::from_base64url;

use super::{FORM, INTERACTION, LoginForm, RANDOM, SESSION, passed, sessions, signed_in};
use crate::expect::{logged, login_page, page, summary};
use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Answer, ISSUER};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a124_login_form_without_valid_csrf_token_is_rejected),
    row!(a125_login_csrf_creates_no_session),
    row!(a126_planted_session_ids_are_replaced_at_login),
    row!(a128_cookies_carry_host_prefix_and_secure_attributes),
];

/// Checks that the form is rejected as forged and creates no session.
fn forged(stage: &Stage, case: usize, answer: &Answer, before: i64) {
    stage.expect(case, page(answer, 403));
    stage.expect(case, logged(answer, "csrf.rejected", ""));
    let sessions = sessions(stage);
    stage.check(case, sessions == before, || {
        format!("{sessions} sessions, were {before}")
    });
}

async fn a124_login_form_without_valid_csrf_token_is_rejected(stage: &Stage) {
    let web = stage.server.shop().await;
    let other = LoginForm::opens(&stage.server, &web).await;
    let (ours, evil, null) = (
        ("Origin", ISSUER),
        ("Origin", "https://evil.test"),
        ("Origin", "null"),
    );
    let (same, cross) = (
        ("Sec-Fetch-Site", "same-origin"),
        ("Sec-Fetch-Site", "cross-site"),
    );
    let cases: [(usize, Option<&str>, &[(&str, &str)]); 9] = [
        (1, Some(""), &[FORM, ours, same]),
        (2, Some(RANDOM), &[FORM, ours, same]),
        (3, Some(&other.csrf), &[FORM, ours, same]),
        (4, None, &[FORM, evil]),
        (4, None, &[FORM, evil, same]),
        (5, None, &[FORM, cross]),
        (5, None, &[FORM, ours, ("Sec-Fetch-Site", "same-site")]),
        (6, Some(RANDOM), &[FORM, null, same]),
        (6, None, &[FORM, null, cross]),
    ];
    for (case, csrf, headers) in cases {
        let mut login_form = LoginForm::opens(stage.node(case), &web).await;
        let csrf = csrf.map_or_else(|| login_form.csrf.clone(), str::to_owned);
        let fields = [
            ("authorization", login_form.authorization.as_str()),
            ("csrf", &csrf),
            ("username", "alice"),
            ("password", PASSWORD),
        ];
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields.into_iter().filter(|(_, value)| !value.is_empty()))
            .finish();
        let answer = login_form
            .browser
            .send("POST", "/login", headers, Some(body))
            .await;
        forged(stage, case, &answer, 0);
    }
}

async fn a125_login_csrf_creates_no_session(stage: &Stage) {
    let web = stage.server.shop().await;
    let attacker = LoginForm::opens(&stage.server, &web).await;
    let victim = LoginForm::opens(&stage.server, &web).await;
    let post = |authorization: &str, csrf: &str| {
        let fields = [
            ("authorization", authorization),
            ("csrf", csrf),
            ("username", "bob"),
            ("password", PASSWORD),
        ];
        Some(
            form_urlencoded::Serializer::new(String::new())
                .extend_pairs(fields)
                .finish(),
        )
    };
    let cross = [
        FORM,
        ("Origin", "https://evil.test"),
        ("Sec-Fetch-Site", "cross-site"),
    ];
    // A browser omits `Lax` cookies. A browser that knows neither `Lax` nor these headers sends all cookies.
    let old = [FORM];
    let cases: [(usize, bool, &[(&str, &str)]); 3] =
        [(1, false, &cross), (2, true, &cross), (3, true, &old)];
    for (case, with_cookies, headers) in cases {
        for authorization in [&attacker.authorization, &victim.authorization] {
            let mut browser = victim.browser.clone();
            if !with_cookies {
                browser.cookies.clear();
            }
            let answer = browser
                .send(
                    "POST",
                    "/login",
                    headers,
                    post(authorization, &attacker.csrf),
                )
                .await;
            forged(stage, case, &answer, 0);
            stage.check(case, !browser.cookies.contains_key(SESSION), || {
                "the victim is the attacker now".to_owned()
            });
        }
    }
}

/// Returns whether the id consists of 256 bits in base64url.
fn is_random_id(id: &str) -> bool {
    id.len() == 43 && from_base64url(id).is_some_and(|bytes| bytes.len() == 32)
}

async fn a126_planted_session_ids_are_replaced_at_login(stage: &Stage) {
    let web = stage.server.shop().await;
    // 1. The attacker's own live session id, planted.
    let mut attacker = stage.server.browser();
    attacker.signs_in(&web, "bob").await;
    let planted = attacker.cookies[SESSION].clone();
    for (case, name, value) in [
        (1, SESSION, planted.as_str()),
        (2, SESSION, RANDOM),
        (3, "sid", RANDOM),
    ] {
        let mut victim = stage.server.browser();
        victim.cookies.insert(name.to_owned(), value.to_owned());
        let login = victim.opens(&web.request(&[("prompt", "login")])).await;
        stage.expect(case, login_page(&login));
        let (authorization, csrf) = (login.hidden("authorization"), login.hidden("csrf"));
        let answer = victim
            .post(
                "/login",
                &[
                    ("authorization", &authorization),
                    ("csrf", &csrf),
                    ("username", "alice"),
                    ("password", PASSWORD),
                ],
            )
            .await;
        stage.expect(case, passed(&answer));
        stage.expect(case, logged(&answer, "session.rotated", ""));
        let first = victim.cookies[SESSION].clone();
        stage.check(case, first != value && is_random_id(&first), || {
            format!("the new id is {first}")
        });
        let (is_in, _) = signed_in(&stage.server, &web, value).await;
        stage.check(case, !is_in, || "the planted id is signed in".to_owned());
        // Step-up authentication.
        let login = victim.opens(&web.request(&[("prompt", "login")])).await;
        let (authorization, csrf) = (login.hidden("authorization"), login.hidden("csrf"));
        let answer = victim
            .post(
                "/login",
                &[
                    ("authorization", &authorization),
                    ("csrf", &csrf),
                    ("username", "alice"),
                    ("password", PASSWORD),
                ],
            )
            .await;
        stage.expect(case, logged(&answer, "session.rotated", ""));
        let second = victim.cookies[SESSION].clone();
        stage.check(case, second != first && is_random_id(&second), || {
            format!("after step-up the id is {second}")
        });
        let ((old, _), (new, _)) = (
            signed_in(&stage.server, &web, &first).await,
            signed_in(&stage.server, &web, &second).await,
        );
        stage.check(case, !old && new, || {
            format!("old id: {old}, new id: {new}")
        });
    }
    // 4. Two cookies of the same name: an attacker planted one.
    let alice = stage.server.signed_in("alice").await;
    let cookies = format!("{SESSION}={}; {SESSION}={RANDOM}", alice.cookies[SESSION]);
    let answer = stage
        .server
        .browser()
        .send("GET", "/account", &[("Cookie", &cookies)], None)
        .await;
    stage.check(4, answer.body.contains("not signed in"), || {
        summary(&answer)
    });
}

async fn a128_cookies_carry_host_prefix_and_secure_attributes(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.browser();
    let mut set = Vec::new();
    let mut answers = vec![alice.get(&web.request(&[])).await];
    let login = alice.opens(&web.request(&[])).await;
    let (authorization, csrf) = (login.hidden("authorization"), login.hidden("csrf"));
    answers.push(
        alice
            .post(
                "/login",
                &[
                    ("authorization", &authorization),
                    ("csrf", &csrf),
                    ("username", "alice"),
                    ("password", PASSWORD),
                ],
            )
            .await,
    );
    let size: usize = alice
        .cookies
        .iter()
        .map(|(name, value)| name.len() + value.len() + 3)
        .sum();
    stage.check(3, size < 4_096, || format!("{size} bytes"));
    let csrf = alice.get("/account").await.hidden("csrf");
    answers.push(alice.post("/oauth2/end_session", &[("csrf", &csrf)]).await);
    for answer in &answers {
        set.extend(
            answer
                .headers
                .get_all("set-cookie")
                .iter()
                .map(|cookie| cookie.to_str().unwrap().to_owned()),
        );
    }
    for (case, name) in [(1, SESSION), (2, INTERACTION)] {
        stage.check(
            case,
            set.iter().filter(|cookie| cookie.starts_with(name)).count() >= 1,
            || format!("{set:?}"),
        );
    }
    for cookie in &set {
        stage.expect(1, cookie_is_ours(cookie));
    }
}

/// Checks a cookie by the rules of policy §7.
pub fn cookie_is_ours(cookie: &str) -> Result<(), String> {
    let mut parts = cookie.split(';').map(str::trim);
    let name = parts
        .next()
        .and_then(|pair| pair.split_once('='))
        .map_or("", |(name, _)| name);
    let attributes: BTreeSet<&str> = parts.collect();
    let same_site = if name == "__Host-admin" {
        "SameSite=Strict"
    } else {
        "SameSite=Lax"
    };
    let all = ["Secure", "HttpOnly", "Path=/", same_site]
        .iter()
        .all(|attribute| attributes.contains(attribute));
    let domain = attributes
        .iter()
        .any(|attribute| attribute.to_ascii_lowercase().starts_with("domain"));
    if name.starts_with("__Host-") && all && !domain {
        Ok(())
    } else {
        Err(format!("{name} {attributes:?}"))
    }
}
