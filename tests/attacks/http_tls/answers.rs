//! The security headers of all responses, and the CSP of each page.

use std::collections::BTreeSet;

use crate::expect::{page, summary};
use crate::fixtures::{Answer, Server, raw};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a457_csp_nonce_is_unique_per_answer),
    row!(a458_all_answers_carry_security_headers),
    row!(a460_path_suffixes_cannot_poison_caches),
];

/// Opens one page of each kind.
async fn pages(stage: &Stage) -> Vec<(&'static str, Answer)> {
    let server = &stage.server;
    let web = server.shop().await;
    let mut alice = server.browser();
    let login = alice
        .opens(&web.request(&[("response_mode", "form_post")]))
        .await;
    let failed = alice.fills_in(&login, "alice", "wrong").await;
    let consent = alice
        .fills_in(&login, "alice", crate::fixtures::server::PASSWORD)
        .await;
    let posted = alice.decides(&consent, "allow").await;
    vec![
        ("login", login),
        ("failed login", failed),
        ("consent", consent),
        ("form_post", posted),
        ("account", alice.get("/account").await),
        ("sign out", alice.get("/oauth2/end_session").await),
        ("signed out", server.browser().get("/account").await),
        ("not found", alice.get("/nothing").await),
        (
            "refused",
            alice.get("/oauth2/authorize?client_id=unknown").await,
        ),
    ]
}

fn directive<'a>(csp: &'a str, name: &str) -> Option<&'a str> {
    csp.split(';')
        .map(str::trim)
        .find_map(|one| one.strip_prefix(name)?.strip_prefix(' '))
}

async fn a457_csp_nonce_is_unique_per_answer(stage: &Stage) {
    let mut nonces = BTreeSet::new();
    for (case, (name, answer)) in (1..).zip(pages(stage).await) {
        let csp = answer.header("content-security-policy").unwrap_or_default();
        // The high findings of csp_evaluator: no default-src, script-src or base-uri, or unsafe values in them.
        for (directive_name, wanted) in [
            ("default-src", "'none'"),
            ("base-uri", "'none'"),
            ("frame-ancestors", "'none'"),
            ("style-src", "'self'"),
            ("img-src", "'self'"),
            ("require-trusted-types-for", "'script'"),
        ] {
            stage.check(case, directive(csp, directive_name) == Some(wanted), || {
                format!("{name}: {directive_name} in {csp}")
            });
        }
        let script = directive(csp, "script-src").unwrap_or("missing");
        let nonce = script
            .strip_prefix("'nonce-")
            .and_then(|rest| rest.strip_suffix("' 'strict-dynamic'"));
        let sound = script == "'none'" || nonce.is_some_and(|nonce| nonce.len() >= 22);
        stage.check(
            case,
            sound && !csp.contains("unsafe") && !csp.contains('*'),
            || format!("{name}: {csp}"),
        );
        if let Some(nonce) = nonce {
            stage.check(case, nonces.insert(nonce.to_owned()), || {
                format!("{name}: a nonce twice")
            });
        }
        let tags = answer.body.matches("<script").count();
        let right = nonce.map_or(0, |nonce| {
            answer
                .body
                .matches(&format!("<script nonce=\"{nonce}\""))
                .count()
        });
        let inline = answer.body.contains(" onclick=")
            || answer.body.contains(" onload=")
            || answer.body.contains(" style=");
        stage.check(
            case,
            tags == right && !inline && !answer.body.contains("<style"),
            || format!("{name}: {tags} scripts, {right} with the nonce"),
        );
    }
    // The nonce of one page over many responses.
    let (web, mut alice) = stage.web_and_alice().await;
    for _ in 0..50 {
        let page = alice
            .opens(&web.request(&[("response_mode", "form_post")]))
            .await;
        let csp = page.header("content-security-policy").unwrap_or_default();
        let nonce = directive(csp, "script-src").unwrap_or_default().to_owned();
        stage.check(20, nonces.insert(nonce), || format!("a nonce twice: {csp}"));
    }
}

/// Checks the headers that every response must have.
fn has_security_headers(answer: &Answer) -> Result<(), String> {
    let powers = answer.header("permissions-policy").unwrap_or_default();
    // A redirect shows nothing.
    let is_shown = !(300..400).contains(&answer.status);
    for power in ["camera", "geolocation", "microphone", "payment", "usb"] {
        if is_shown && !powers.contains(&format!("{power}=()")) {
            return Err(format!("{power} is not off: {powers}"));
        }
    }
    for (name, wanted) in [
        (
            "strict-transport-security",
            "max-age=63072000; includeSubDomains",
        ),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
    ] {
        if answer.header(name) != Some(wanted) {
            return Err(format!(
                "{name}: {:?} on {}",
                answer.header(name),
                answer.status
            ));
        }
    }
    let open = answer.header("access-control-allow-origin") == Some("*");
    let shared = if open { "cross-origin" } else { "same-origin" };
    if answer.header("cross-origin-resource-policy") != Some(shared) {
        return Err(format!(
            "{:?}",
            answer.header("cross-origin-resource-policy")
        ));
    }
    let html = answer
        .header("content-type")
        .is_some_and(|kind| kind.starts_with("text/html"));
    if html
        && (answer.header("content-security-policy").is_none()
            || answer.header("x-frame-options") != Some("DENY"))
    {
        return Err("a page without its policy".to_owned());
    }
    if answer.headers.contains_key("server") || answer.headers.contains_key("x-powered-by") {
        return Err("says what it is made of".to_owned());
    }
    Ok(())
}

/// Sends a request outside the journal, because the general checks would reject its response.
async fn raw_get(server: &Server, headers: &str) -> Answer {
    let text = format!("GET /account HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    raw::bytes(&server.base, text.into_bytes()).await.unwrap()
}

async fn a458_all_answers_carry_security_headers(stage: &Stage) {
    let own = Server::with(stage.db(), |_| {}).await;
    let web = own.shop().await;
    let mut browser = own.browser();
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    let long = format!("/oauth2/authorize?x={}", "x".repeat(9_000));
    let wide = "x".repeat(33_000);
    let mut answers = vec![
        (200, browser.get("/oauth2/jwks").await),
        (200, browser.get("/account").await),
        (303, browser.get("/").await),
        (303, browser.get(&web.request(&[])).await),
        (400, browser.get("/oauth2/authorize").await),
        (
            401,
            web.posts_raw("/oauth2/token", &[], &[("grant_type", "x")])
                .await,
        ),
        (403, browser.post("/login", &[("csrf", "x")]).await),
        (404, browser.get("/nothing").await),
        (405, browser.send("PUT", "/oauth2/token", &[], None).await),
        (
            413,
            browser
                .send("POST", "/oauth2/token", &[form], Some("x".repeat(17_000)))
                .await,
        ),
        (414, browser.get(&long).await),
        (
            415,
            browser
                .send(
                    "POST",
                    "/oauth2/token",
                    &[form, ("Content-Encoding", "gzip")],
                    Some("x".into()),
                )
                .await,
        ),
        (421, raw_get(&own, "Host: evil.example\r\n").await),
        (
            431,
            browser
                .send("GET", "/account", &[("X-Wide", &wide)], None)
                .await,
        ),
    ];
    for _ in 0..301 {
        let answer = browser.get("/oauth2/end_session").await;
        if answer.status == 429 {
            answers.push((429, answer));
            break;
        }
    }
    own.execute("ALTER TABLE sessions RENAME TO sessions_gone");
    let cookie = "A".repeat(43);
    let broken = raw_get(
        &own,
        &format!("Host: op.example\r\nCookie: __Host-sid={cookie}\r\n"),
    )
    .await;
    own.execute("ALTER TABLE sessions_gone RENAME TO sessions");
    answers.push((broken.status.clamp(500, 503), broken));
    for (case, (status, answer)) in (1..).zip(answers) {
        stage.check(case, answer.status == status, || {
            format!("{}, want {status}", summary(&answer))
        });
        stage.expect(case, has_security_headers(&answer));
    }
    own.remove().await;
}

async fn a460_path_suffixes_cannot_poison_caches(stage: &Stage) {
    let (_, mut alice) = stage.web_and_alice().await;
    for (case, path) in (1..).zip([
        "/oauth2/userinfo/x.css",
        "/account/a.js",
        "/account/",
        "/account.css",
        "/oauth2/token/x.png",
        "/consent/a.css",
    ]) {
        let answer = alice.get(path).await;
        stage.expect(case, page(&answer, 404));
        let caching = answer.header("cache-control");
        stage.check(case, caching == Some("no-store"), || {
            format!("{path}: {caching:?}")
        });
    }
    for (case, path) in (10..).zip([
        "/account",
        "/login",
        "/consent",
        "/oauth2/userinfo",
        "/oauth2/authorize",
        "/oauth2/end_session",
        "/",
    ]) {
        let answer = alice.get(path).await;
        let caching = answer.header("cache-control");
        stage.check(case, caching == Some("no-store"), || {
            format!("{path}: {caching:?}")
        });
    }
}
