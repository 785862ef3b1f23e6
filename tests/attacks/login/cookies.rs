//! Cookies that other hosts of the domain may set.

use super::{DEVICE, INTERACTION, LoginForm, RANDOM, SESSION, passed};
use crate::expect::{self, page400, redirected, summary};
use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Browser, Server};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a127_duplicate_session_cookies_are_rejected),
    row!(a502_encoded_cookie_names_are_ignored),
    row!(a506_non_utf8_cookies_are_ignored),
    row!(a507_planted_device_cookies_are_replaced),
    row!(a531_cookies_of_other_ports_have_no_effect),
];

const STATE: Option<&str> = Some("st-4711");

/// Spellings of `__Host-NAME` that a browser lets any host of the domain set.
fn spellings(name: &str) -> [String; 3] {
    let (first, rest) = name.split_at(1);
    [
        format!("%5F%5FHost-{name}"),
        format!("__Host%2D{name}"),
        format!("__Host-%{:02x}{rest}", first.as_bytes()[0]),
    ]
}

fn with_cookie(browser: &Browser, name: &str, value: &str) -> Browser {
    let mut browser = browser.clone();
    browser.cookies.insert(name.to_owned(), value.to_owned());
    browser
}

async fn a502_encoded_cookie_names_are_ignored(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let bob = stage.server.enters("bob").await;
    let silent = web.request(&[("prompt", "none")]);
    // 1 to 3: bob's session only. 4 to 6: beside alice's own session.
    for (case, name) in (1..).zip(spellings("sid")) {
        let node = &stage.node(case).base;
        let mut stranger =
            with_cookie(&stage.server.browser(), &name, &bob.cookies[SESSION]).at(node);
        let answer = stranger.get(&silent).await;
        stage.expect(case, redirected(&answer, "login_required", STATE));
        let account = stranger.get("/account").await;
        stage.check(case, account.body.contains("not signed in"), || {
            summary(&account)
        });
        let mut own = with_cookie(&alice, &name, &bob.cookies[SESSION]).at(node);
        let account = own.get("/account").await;
        stage.check(case + 3, account.body.contains("alice"), || {
            summary(&account)
        });
        let answer = own.get(&silent).await;
        stage.check(case + 3, answer.callback("code").is_some(), || {
            summary(&answer)
        });
    }
    // 7 to 9: only the cookie that binds an authorization. 10 to 12: beside the real one.
    for (case, name) in (7..).zip(spellings("ix")) {
        let mut login_form = LoginForm::opens(stage.node(case), &web).await;
        let bound = login_form.browser.cookies[INTERACTION].clone();
        let mut beside = login_form.clone();
        login_form.browser.cookies.remove(INTERACTION);
        login_form.browser.cookies.insert(name.clone(), bound);
        let path = format!("/login?authorization={}", login_form.authorization);
        stage.expect(case, page400(&login_form.browser.get(&path).await));
        beside.browser.cookies.insert(name, RANDOM.to_owned());
        stage.expect(case + 3, passed(&beside.tries("alice", PASSWORD).await));
    }
    // 13 to 15: the cookie of a known device. A planted one is not accepted and does not hide the real one.
    for (case, name) in (13..).zip(spellings("dev")) {
        let mut login_form = LoginForm::opens(stage.node(case), &web).await;
        login_form.browser.cookies.insert(name, RANDOM.to_owned());
        let answer = login_form.tries("alice", PASSWORD).await;
        stage.expect(case, passed(&answer));
        let device = &login_form.browser.cookies["__Host-dev"];
        stage.check(case, device != RANDOM, || {
            "the planted device is known".to_owned()
        });
    }
}

async fn a506_non_utf8_cookies_are_ignored(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    for (case, before) in [(1, true), (2, false)] {
        let node = stage.node(case);
        let planted = |own: &str| {
            let own = own.as_bytes().to_vec();
            let junk = b"junk=\xe9".to_vec();
            let parts = if before { [junk, own] } else { [own, junk] };
            parts.join(&b"; "[..])
        };
        let cookie = planted(&format!("{SESSION}={}", alice.cookies[SESSION]));
        let answer = sends(
            &node.base,
            &web.request(&[("prompt", "none")]),
            cookie,
            None,
        )
        .await;
        let location = answer
            .headers()
            .get("location")
            .map_or("", |to| to.to_str().unwrap());
        stage.check(case, location.contains("code="), || format!("{answer:?}"));
        let login_form = LoginForm::opens(node, &web).await;
        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(login_form.fields("alice", PASSWORD))
            .finish();
        let cookie = planted(&format!(
            "{INTERACTION}={}",
            login_form.browser.cookies[INTERACTION]
        ));
        let answer = sends(&node.base, "/login", cookie, Some(form)).await;
        let set = answer.headers().get_all("set-cookie").iter();
        let begun = set
            .filter_map(|cookie| cookie.to_str().ok())
            .any(|cookie| cookie.starts_with(SESSION));
        stage.check(case, answer.status() == 200 && begun, || {
            format!("{answer:?}")
        });
    }
}

/// Sends a request whose `Cookie` header contains any bytes.
async fn sends(base: &str, path: &str, cookie: Vec<u8>, form: Option<String>) -> reqwest::Response {
    let http = crate::fixtures::browser::http(base);
    let request = match form {
        None => http.get(format!("{base}{path}")),
        Some(form) => http
            .post(format!("{base}{path}"))
            .header("Content-Type", super::FORM.1)
            .header("Origin", crate::fixtures::ISSUER)
            .body(form),
    };
    let cookie = reqwest::header::HeaderValue::from_bytes(&cookie).unwrap();
    request
        .header("Host", "op.example")
        .header("Cookie", cookie)
        .send()
        .await
        .unwrap()
}

/// With two session cookies, the browser is not signed in, and no form reports an effect that it did not
/// have.
async fn a127_duplicate_session_cookies_are_rejected(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let account = alice.get("/account").await;
    let csrf = account.values("csrf");
    let own = alice.cookies[SESSION].clone();
    let twice = format!("{SESSION}={RANDOM}; {SESSION}={own}");
    let sessions = || {
        stage
            .server
            .count("SELECT count(*) AS n FROM sessions WHERE ended_at IS NULL")
    };
    let before = sessions();
    let node = &stage.node(1).base;
    let silent = web.request(&[("prompt", "none")]);
    let answer = sends(node, &silent, twice.clone().into_bytes(), None).await;
    let location = answer.headers().get("location").cloned();
    let location = location.map_or(String::new(), |to| to.to_str().unwrap().to_owned());
    stage.check(1, location.contains("login_required"), || location.clone());
    for (path, token) in [
        ("/oauth2/end_session", csrf.last()),
        ("/account", csrf.first()),
        ("/login", csrf.first()),
        ("/consent", csrf.first()),
    ] {
        let form = format!("csrf={}", token.cloned().unwrap_or_default());
        let answer = sends(node, path, twice.clone().into_bytes(), Some(form)).await;
        let id = answer.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        let told = crate::fixtures::log::of(&id).iter().any(|event| {
            event
                .get("event")
                .is_some_and(|name| name == "session.dup_cookie")
        });
        stage.check(2, answer.status() == 400 && told, || {
            format!("{path}: {answer:?}")
        });
    }
    stage.check(2, sessions() == before, || "a session ended".to_owned());
}

/// Returns how many browsers are known for any user.
fn known_devices(server: &Server) -> i64 {
    server.count("SELECT count(*) AS n FROM known_devices")
}

async fn a507_planted_device_cookies_are_replaced(stage: &Stage) {
    // Rows about limits start a server of their own.
    let server = Server::behind_proxy(stage.db()).await;
    let web = server.shop().await;
    let planted = |value: &str| (DEVICE.to_owned(), value.to_owned());
    // 1. A value that this server never issued. 2. One that it issued for another user.
    let mut bob = LoginForm::opens(&server, &web).await;
    stage.expect(2, passed(&bob.tries("bob", PASSWORD).await));
    let bobs = bob.browser.cookies[DEVICE].clone();
    let mut login_form = LoginForm::opens(&server, &web).await;
    for (case, value) in [(1, RANDOM), (2, bobs.as_str())] {
        login_form = LoginForm::opens(&server, &web).await;
        login_form.browser.cookies.extend([planted(value)]);
        stage.expect(case, passed(&login_form.tries("alice", PASSWORD).await));
        let device = &login_form.browser.cookies[DEVICE];
        stage.check(case, device != value, || "the value was kept".to_owned());
    }
    let known = known_devices(&server);
    stage.check(1, known == 3, || format!("{known} devices are known"));
    // 3. The device that the server issued stays the same at the next sign-in.
    let own = login_form.browser.cookies[DEVICE].clone();
    let mut next = LoginForm::opens(&server, &web).await;
    next.browser.cookies.extend([planted(&own)]);
    stage.expect(3, passed(&next.tries("alice", PASSWORD).await));
    stage.check(3, next.browser.cookies[DEVICE] == own, || {
        "a known device was replaced".to_owned()
    });
    // 4. After the user's sessions are revoked, as by both commands, no browser of the user is known, and its
    //    attempts count like those of any other.
    server.signs_out_everywhere("alice").await;
    let known = known_devices(&server);
    stage.check(4, known == 1, || format!("{known} devices are known"));
    let mut elsewhere = LoginForm::opens(&server, &web).await.from("192.0.2.1");
    let mut throttled = false;
    for _ in 0..12 {
        throttled |= elsewhere.tries("alice", "wrong-password").await.status == 429;
    }
    stage.check(4, throttled, || "the account is not throttled".to_owned());
    let mut late = LoginForm::opens(&server, &web).await.from("192.0.2.1");
    for value in [own.as_str(), RANDOM] {
        late.browser.cookies.extend([planted(value)]);
        let answer = late.tries("alice", PASSWORD).await;
        stage.check(4, answer.status == 429, || summary(&answer));
    }
    server.remove().await;
}

async fn a531_cookies_of_other_ports_have_no_effect(stage: &Stage) {
    let first = Server::found_by_services(stage.db(), |_| {}).await;
    let second = Server::found_by_services(stage.db(), |_| {}).await;
    let name = |server: &Server, kind| format!("portcullis-{}-{kind}", server.app.issuer.port());
    // One browser: cookies do not depend on the port. Another program has set its own, for two paths, so that
    // they are sent twice.
    let theirs = ["sid", "ix", "dev"].map(|name| (name.to_owned(), format!("1; {name}=2")));
    let mut cookies = std::collections::BTreeMap::from(theirs.clone());
    for (case, server) in [(1, &first), (2, &second)] {
        let mut browser = server.browser();
        browser.cookies = cookies;
        let shown = browser.opens("/login").await;
        let answer = browser.fills_in(&shown, "alice", PASSWORD).await;
        stage.check(case, answer.body.contains("alice"), || summary(&answer));
        cookies = browser.cookies;
    }
    for kind in ["sid", "ix", "dev"] {
        for server in [&first, &second] {
            let name = name(server, kind);
            stage.check(1, cookies.contains_key(&name), || format!("no {name}"));
        }
    }
    // 3. Both sessions are active, and one ends without the other.
    for (case, server) in [(3, &first), (3, &second)] {
        let mut browser = server.browser();
        browser.cookies = cookies.clone();
        let account = browser.get("/account").await;
        stage.check(case, account.body.contains("alice"), || summary(&account));
    }
    let mut browser = first.browser();
    browser.cookies = cookies;
    browser.signs_out().await;
    let mut other = second.browser();
    other.cookies = browser.cookies.clone();
    let account = other.get("/account").await;
    stage.check(3, account.body.contains("alice"), || summary(&account));
    // 4. The cookies of the other program are as before.
    for (name, value) in &theirs {
        let kept = browser.cookies.get(name);
        stage.check(4, kept == Some(value), || format!("{name}: {kept:?}"));
    }
    expect::strike_out_http_issuer();
    second.remove().await;
    first.remove().await;
}
