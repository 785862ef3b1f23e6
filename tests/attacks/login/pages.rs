//! The content of pages, and the URLs that they lead to.

use super::{LoginForm, passed, targets};
use crate::expect::{logged, login_page, summary};
use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Answer, Browser, ISSUER, TestClient, raw};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a129_return_parameters_never_leave_the_origin),
    row!(a130_xss_payloads_are_escaped_on_every_page),
    row!(a140_host_header_does_not_change_reset_links),
];

fn stays_on_origin(answer: &Answer) -> Result<(), String> {
    let ours = |to: &str| to.starts_with('/') && !to.starts_with("//") && !to.contains('\\');
    let away: Vec<String> = answer
        .location()
        .map(str::to_owned)
        .into_iter()
        .chain(targets(&answer.body))
        .filter(|to| !ours(to) || to.contains("evil"))
        .collect();
    if away.is_empty() {
        Ok(())
    } else {
        Err(format!("{away:?}"))
    }
}

async fn a129_return_parameters_never_leave_the_origin(stage: &Stage) {
    let web = stage.server.shop().await;
    for (case, target) in [
        (1, "//evil.test"),
        (2, "https:evil.test"),
        (3, "/\\evil.test"),
        (4, "javascript:alert(1)"),
    ] {
        for name in ["return_to", "next", "redirect", "continue"] {
            let query = form_urlencoded::Serializer::new(String::new())
                .append_pair(name, target)
                .finish();
            let mut login_form = LoginForm::opens(stage.node(case), &web).await;
            let shown = login_form
                .browser
                .get(&format!(
                    "/login?authorization={}&{query}",
                    login_form.authorization
                ))
                .await;
            stage.expect(case, login_page(&shown));
            stage.expect(case, stays_on_origin(&shown));
            let fields = [
                login_form.fields("alice", PASSWORD).as_slice(),
                &[(name, target)],
            ]
            .concat()
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect::<Vec<_>>();
            let fields: Vec<(&str, &str)> = fields
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            let answer = login_form
                .browser
                .post(&format!("/login?{query}"), &fields)
                .await;
            stage.expect(case, passed(&answer));
            stage.expect(case, stays_on_origin(&answer));
            let account = login_form.browser.get(&format!("/account?{query}")).await;
            stage.expect(case, stays_on_origin(&account));
            stage.expect(
                case,
                stays_on_origin(
                    &login_form
                        .browser
                        .get(&format!("/oauth2/end_session?{query}"))
                        .await,
                ),
            );
            let csrf = account.hidden("csrf");
            let out = login_form
                .browser
                .post(
                    &format!("/oauth2/end_session?{query}"),
                    &[("csrf", &csrf), (name, target)],
                )
                .await;
            stage.check(case, out.status == 200, || summary(&out));
            stage.expect(case, stays_on_origin(&out));
            stage.expect(
                case,
                stays_on_origin(&stage.server.browser().get(&format!("/?{query}")).await),
            );
        }
    }
}

/// Returns the tags of a page with the names of their attributes, without texts and values. Two pages with
/// the same skeleton run the same scripts.
pub fn skeleton(html: &str) -> String {
    let mut out = String::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let mut quote = None;
        for c in rest.chars() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (Some(_), _) => continue,
                (None, '"' | '\'') => quote = Some(c),
                (None, '>') => break,
                (None, c) => out.push(c),
            }
        }
        out.push('\n');
        rest = rest.find('>').map_or("", |_| rest);
    }
    out
}

/// Returns 200 ways to break out of a text, an attribute, a script or a style.
fn payloads() -> Vec<String> {
    let breaks = [
        "",
        "\"",
        "'",
        "\">",
        "'>",
        "\"/>",
        "</title>",
        "</strong>",
        "</code>",
        "</textarea>",
        "-->",
        "\" x=\"",
        "&quot;>",
        "%22%3e",
        "`",
        "\\\">",
        "]]>",
        "}}",
        "{{7*7}}",
        "\u{feff}\">",
    ];
    let codes = [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<svg/onload=alert(1)>",
        " onfocus=alert(1) autofocus ",
        "<a href=javascript:alert(1)>x</a>",
        "<iframe srcdoc=x>",
        "<style>*{x:y}</style>",
        "<meta http-equiv=refresh content=0>",
        "<base href=//evil.test>",
        "<ScRiPt/x>alert(1)//",
    ];
    breaks
        .iter()
        .flat_map(|open| codes.iter().map(move |code| format!("{open}{code}")))
        .collect()
}

async fn a130_xss_payloads_are_escaped_on_every_page(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.enters("alice").await;
    let payloads = payloads();
    stage.check(0, payloads.len() == 200, || {
        format!("{} payloads", payloads.len())
    });
    let mut plain = Vec::new();
    for (n, payload) in std::iter::once("plain")
        .chain(payloads.iter().map(String::as_str))
        .enumerate()
    {
        // Written to the database directly, because registration would refuse some of them.
        let quoted = payload.replace('\'', "''");
        stage.server.execute(&format!(
            "UPDATE clients SET name = '{quoted}' WHERE id = '{}';
             UPDATE users SET username = '{quoted}', name = '{quoted}' WHERE email = 'alice@mail.example';",
            web.id()
        ));
        let shown = pages_showing(&mut alice, &web, payload).await;
        if n == 0 {
            stage.check(
                1,
                shown
                    .iter()
                    .map(|answer| answer.status)
                    .eq([200, 200, 200, 200, 400, 200]),
                || shown.iter().map(summary).collect(),
            );
            plain = shown.iter().map(|answer| skeleton(&answer.body)).collect();
            continue;
        }
        for (answer, plain) in shown.iter().zip(&plain) {
            let csp = answer.header("content-security-policy").unwrap_or_default();
            stage.check(n, skeleton(&answer.body) == *plain, || {
                format!("`{payload}` changes {}", summary(answer))
            });
            stage.check(
                n,
                csp.starts_with("default-src 'none'") && !csp.contains("unsafe"),
                || csp.to_owned(),
            );
        }
    }
    // Submitted text is shown only after a failure, which costs a hash.
    let mut login_form = LoginForm::opens(&stage.server, &web).await;
    let plain = skeleton(&login_form.tries("plain", "x").await.body);
    for (n, payload) in (1..).zip(&payloads).step_by(13) {
        // The password of a throttled attempt is not checked.
        stage.server.execute("DELETE FROM throttles");
        let answer = login_form.tries(payload, "x").await;
        stage.check(n, skeleton(&answer.body) == plain, || {
            format!("typed `{payload}` changes the login page")
        });
    }
}

/// Returns every page that shows the name of a user or client, or a part of the request.
async fn pages_showing(alice: &mut Browser, web: &TestClient, payload: &str) -> Vec<Answer> {
    vec![
        alice
            .opens(&web.request(&[("prompt", "login"), ("login_hint", payload)]))
            .await,
        alice.opens(&web.request(&[("prompt", "consent")])).await,
        alice.get("/account").await,
        alice
            .get(&format!(
                "/oauth2/end_session?{}",
                form_urlencoded::Serializer::new(String::new())
                    .append_pair("state", payload)
                    .finish()
            ))
            .await,
        alice.get(&web.request(&[("redirect_uri", payload)])).await,
        alice
            .opens(&web.request(&[
                ("response_mode", "form_post"),
                ("prompt", "none"),
                ("scope", payload),
            ]))
            .await,
    ]
}

async fn a140_host_header_does_not_change_reset_links(stage: &Stage) {
    let web = stage.server.shop().await;
    for (case, target) in [
        (1, "/login".to_owned()),
        (1, web.request(&[])),
        (1, "/.well-known/openid-configuration".to_owned()),
    ] {
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n");
        let answer = raw::bytes(&stage.server.base, request.into_bytes())
            .await
            .expect("an answer");
        stage.check(case, answer.status == 421, || summary(&answer));
        stage.expect(case, logged(&answer, "http.bad_host", ""));
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: <script>alert(1)</script>\r\nConnection: close\r\n\r\n"
        );
        if let Some(answer) = raw::bytes(&stage.server.base, request.into_bytes()).await {
            let html = answer
                .header("content-type")
                .is_some_and(|kind| kind.contains("html"));
            stage.check(case, matches!(answer.status, 400 | 421) && !html, || {
                summary(&answer)
            });
        }
    }
    let forwarded = [
        ("X-Forwarded-Host", "evil.test"),
        ("Forwarded", "host=evil.test;proto=http"),
        ("X-Forwarded-Proto", "http"),
    ];
    let metadata = stage
        .server
        .browser()
        .send("GET", "/.well-known/openid-configuration", &forwarded, None)
        .await;
    stage.check(
        2,
        metadata.json()["issuer"] == ISSUER && !metadata.body.contains("evil"),
        || metadata.body.clone(),
    );
    let mut browser = stage.server.browser();
    let answer = browser
        .send("GET", &web.request(&[]), &forwarded, None)
        .await;
    stage.expect(2, stays_on_origin(&answer));
    let login = browser
        .send(
            "GET",
            &answer.own_redirect().unwrap_or_default(),
            &forwarded,
            None,
        )
        .await;
    stage.expect(2, login_page(&login));
    stage.expect(2, stays_on_origin(&login));
}
