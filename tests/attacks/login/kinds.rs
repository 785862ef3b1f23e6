//! One kind of secret in place of another, and sign-in methods that are not offered.

use super::{FORM, INTERACTION, LoginForm, RANDOM, SESSION, failed, signed_in, targets};
use crate::expect::{consent_page, json_error, logged, login_page, page, page400, summary};
use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Answer, ISSUER};
use crate::token_code::Flow;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a144_credentials_of_another_kind_are_rejected),
    row!(a145_totp_is_not_offered),
    row!(a146_mfa_is_not_offered_and_consent_requires_login),
    row!(a148_upstream_sign_in_is_not_offered),
    row!(a149_users_cannot_verify_their_own_email),
    row!(a150_device_and_ciba_grants_are_not_offered),
];

/// Returns the response without the parts that always differ.
fn comparable(answer: &Answer) -> (u16, Option<String>, String) {
    let id = answer.header("x-request-id").unwrap();
    (
        answer.status,
        answer.location().map(str::to_owned),
        answer.body.replace(id, ""),
    )
}

async fn a144_credentials_of_another_kind_are_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let asked = flow
        .alice
        .opens(&flow.web.request(&[("prompt", "consent")]))
        .await;
    let (authorization, csrf) = (asked.hidden("authorization"), asked.hidden("csrf"));
    let (session, interaction) = (
        flow.alice.cookies[SESSION].clone(),
        flow.alice.cookies[INTERACTION].clone(),
    );
    let secret = flow.web.secret.as_ref().unwrap().expose().to_owned();
    let tokens = {
        let spare = flow.code().await;
        flow.web.redeems(&spare).await.ok()
    };
    let refresh = tokens.0["refresh_token"].as_str().unwrap().to_owned();
    let others = |own: &str| {
        [
            ("code", &code),
            ("session", &session),
            ("interaction", &interaction),
            ("authorization", &authorization),
            ("form token", &csrf),
            ("client secret", &secret),
            ("refresh token", &refresh),
        ]
        .into_iter()
        .filter(|(kind, _)| *kind != own)
        .map(|(kind, value)| (kind, value.clone()))
        .chain([
            ("access token", tokens.access().to_owned()),
            (
                "ID token",
                tokens.0["id_token"].as_str().unwrap().to_owned(),
            ),
        ])
        .collect::<Vec<_>>()
    };
    // 1. As a code.
    let random = comparable(
        &flow
            .web
            .redeems("pcl_ac_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8")
            .await,
    );
    for (kind, value) in others("code") {
        let answer = flow.web.redeems(&value).await;
        stage.check(1, comparable(&answer) == random, || {
            format!("{kind} as a code: {}", summary(&answer))
        });
        stage.expect(1, logged(&answer, "token.rejected", "kind"));
    }
    // 2. As a session.
    let (_, random) = signed_in(&stage.server, &flow.web, RANDOM).await;
    for (kind, value) in others("session") {
        let (_, answer) = signed_in(&stage.server, &flow.web, &value).await;
        stage.check(2, comparable(&answer) == comparable(&random), || {
            format!("{kind} as a session: {}", summary(&answer))
        });
        stage.expect(2, logged(&answer, "session.invalid", ""));
    }
    // 3. As an authorization id, on each page that continues one.
    for path in ["/oauth2/authorize", "/login", "/consent"] {
        let random = flow
            .alice
            .get(&format!(
                "{path}?authorization=0190b2f0-0000-7000-8000-000000000000"
            ))
            .await;
        stage.expect(3, page400(&random));
        for (kind, value) in others("authorization") {
            let answer = flow
                .alice
                .get(&format!("{path}?authorization={value}"))
                .await;
            stage.check(3, comparable(&answer) == comparable(&random), || {
                format!("{kind} at {path}: {}", summary(&answer))
            });
        }
    }
    // 4. As the browser that began the authorization.
    for (kind, value) in others("interaction") {
        let mut browser = stage.server.browser();
        browser.cookies.insert(INTERACTION.to_owned(), value);
        let answer = browser
            .get(&format!("/login?authorization={authorization}"))
            .await;
        stage.check(4, page400(&answer).is_ok(), || {
            format!("{kind} as a browser: {}", summary(&answer))
        });
        stage.expect(4, logged(&answer, "authorization.binding_failed", ""));
    }
    // 5. As a client secret.
    for (kind, value) in others("client secret") {
        let header = crate::fixtures::client::basic(flow.web.id(), &value);
        let answer = flow
            .web
            .posts_raw(
                "/oauth2/token",
                &[("Authorization", &header)],
                &[("grant_type", "authorization_code"), ("code", &code)],
            )
            .await;
        stage.check(
            5,
            json_error(&answer, 401, "invalid_client").is_ok(),
            || format!("{kind} as a secret: {}", summary(&answer)),
        );
    }
    // 6. As a refresh token.
    let random = comparable(&flow.web.refreshes(&format!("pcl_rt_{RANDOM}"), &[]).await);
    for (kind, value) in others("refresh token") {
        let answer = flow.web.refreshes(&value, &[]).await;
        stage.check(6, comparable(&answer) == random, || {
            format!("{kind} as a refresh token: {}", summary(&answer))
        });
        stage.expect(6, logged(&answer, "token.rejected", "kind"));
    }
    // 7. Nothing was consumed.
    let answer = flow.web.refreshes(&refresh, &[]).await;
    stage.check(7, answer.status == 200, || {
        format!("the refresh token is spent: {}", summary(&answer))
    });
    stage.check(7, flow.web.redeems(&code).await.status == 200, || {
        "the code is spent".to_owned()
    });
    stage.check(
        7,
        signed_in(&stage.server, &flow.web, &session).await.0,
        || "the session is over".to_owned(),
    );
    stage.expect(
        7,
        consent_page(
            &flow
                .alice
                .get(&format!("/consent?authorization={authorization}"))
                .await,
        ),
    );
}

/// Checks that nothing is served at these paths, signed in or not, and that no page links to them.
async fn absent(stage: &Stage, case: usize, paths: &[&str]) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.browser();
    let login = alice.opens(&web.request(&[])).await;
    let consent = alice.fills_in(&login, "alice", PASSWORD).await;
    let account = alice.get("/account").await;
    for path in paths {
        for method in ["GET", "POST"] {
            let answer = alice
                .send(
                    method,
                    path,
                    &[FORM, ("Origin", ISSUER)],
                    (method == "POST").then(String::new),
                )
                .await;
            stage.expect(case, page(&answer, 404));
        }
        for shown in [&login, &consent, &account] {
            stage.check(
                case,
                !targets(&shown.body).iter().any(|to| to.starts_with(path)),
                || format!("a page leads to {path}"),
            );
        }
    }
}

async fn a145_totp_is_not_offered(stage: &Stage) {
    absent(
        stage,
        1,
        &[
            "/login/totp",
            "/login/otp",
            "/mfa",
            "/account/totp",
            "/account/mfa",
        ],
    )
    .await;
    let web = stage.server.shop().await;
    let mut login_form = LoginForm::opens(&stage.server, &web).await;
    stage.check(
        2,
        !login_form
            .browser
            .get(&format!(
                "/login?authorization={}",
                login_form.authorization
            ))
            .await
            .body
            .contains("otp"),
        || "the page asks for a code".to_owned(),
    );
    // A code in the form is not accepted as a password.
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(&login_form.fields("alice", "")[..3])
        .append_pair("otp", "123456")
        .finish();
    let answer = login_form
        .browser
        .send("POST", "/login", &[FORM, ("Origin", ISSUER)], Some(body))
        .await;
    stage.expect(2, failed(&answer));
}

async fn a146_mfa_is_not_offered_and_consent_requires_login(stage: &Stage) {
    absent(
        stage,
        1,
        &[
            "/login/webauthn",
            "/webauthn",
            "/login/mfa",
            "/account/passkeys",
        ],
    )
    .await;
    // Consent without a login leads back to the login page.
    let web = stage.server.shop().await;
    let mut login_form = LoginForm::opens(&stage.server, &web).await;
    let answer = login_form
        .browser
        .opens(&format!(
            "/consent?authorization={}",
            login_form.authorization
        ))
        .await;
    stage.expect(2, login_page(&answer));
}

async fn a148_upstream_sign_in_is_not_offered(stage: &Stage) {
    absent(
        stage,
        1,
        &[
            "/login/idp",
            "/login/upstream",
            "/idp",
            "/oauth2/callback",
            "/login/callback",
        ],
    )
    .await;
}

async fn a149_users_cannot_verify_their_own_email(stage: &Stage) {
    absent(
        stage,
        1,
        &[
            "/api/account",
            "/api/me",
            "/account/profile",
            "/account/email",
            "/scim/v2/Me",
        ],
    )
    .await;
    let mut alice = stage.server.enters("alice").await;
    let answer = alice.post("/account", &[("email_verified", "true")]).await;
    stage.check(2, matches!(answer.status, 403..=405), || summary(&answer));
    let verified = stage
        .server
        .count("SELECT count(*) AS n FROM users WHERE email_verified");
    stage.check(2, verified == 0, || {
        format!("{verified} addresses are verified")
    });
}

async fn a150_device_and_ciba_grants_are_not_offered(stage: &Stage) {
    absent(
        stage,
        1,
        &[
            "/oauth2/device_authorization",
            "/oauth2/bc-authorize",
            "/device",
        ],
    )
    .await;
    let web = stage.server.shop().await;
    for (case, grant) in [
        (2, "urn:ietf:params:oauth:grant-type:device_code"),
        (3, "urn:openid:params:grant-type:ciba"),
    ] {
        let answer = web
            .posts(
                "/oauth2/token",
                &[
                    ("grant_type", grant),
                    ("device_code", "x"),
                    ("auth_req_id", "x"),
                ],
            )
            .await;
        stage.expect(case, json_error(&answer, 400, "unsupported_grant_type"));
    }
}
