//! Sign-ins that start at the account page, without a client.

use super::{FORM, INTERACTION, LoginForm, RANDOM, SESSION, passed, sessions, targets};
use crate::expect::{logged, login_page, page, page400, summary};
use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Answer, Browser};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a570_account_sign_in_of_another_browser_is_rejected),
    row!(a571_account_sign_in_ends_at_the_account_page),
    row!(a572_account_sign_ins_in_two_tabs_do_not_mix_users),
    row!(a573_account_sign_in_yields_no_code_or_consent),
];

/// Opens the login page of a sign-in that starts at the account page.
async fn begins(mut browser: Browser) -> LoginForm {
    let shown = browser.opens("/login").await;
    LoginForm {
        authorization: shown.hidden("authorization"),
        csrf: shown.hidden("csrf"),
        browser,
    }
}

fn begun(stage: &Stage) -> i64 {
    stage
        .server
        .count("SELECT count(*) AS n FROM authorizations WHERE client_id IS NULL")
}

/// Checks that the browser is at its account page as this user.
async fn is_at_account(
    stage: &Stage,
    case: usize,
    browser: &mut Browser,
    answer: &Answer,
    username: &str,
) {
    let mut answer = answer.clone();
    let mut path = String::new();
    while let Some(next) = answer.own_redirect() {
        answer = browser.get(&next).await;
        path = next;
    }
    let is_there = path == "/account" && answer.status == 200 && answer.body.contains(username);
    stage.check(case, is_there, || format!("{path}: {}", summary(&answer)));
}

async fn a570_account_sign_in_of_another_browser_is_rejected(stage: &Stage) {
    let attacker = begins(stage.server.browser()).await;
    let victim = begins(stage.server.browser()).await;
    let path = format!("/login?authorization={}", attacker.authorization);
    // 1. The attacker's address, opened by a browser without and with a sign-in of its own.
    let mut browsers = [stage.server.browser(), victim.browser.clone()];
    for browser in &mut browsers {
        let answer = browser.get(&path).await;
        stage.expect(1, page400(&answer));
        stage.expect(1, logged(&answer, "authorization.binding_failed", ""));
    }
    // 2. The attacker's authorization in the form of the victim.
    let mut mixed = victim.clone();
    mixed.authorization = attacker.authorization.clone();
    let answer = mixed.tries("bob", PASSWORD).await;
    stage.expect(2, page400(&answer));
    stage.expect(2, logged(&answer, "authorization.binding_failed", ""));
    // 3. The attacker's form token. 4. The form of another site.
    let mut forged = victim.clone();
    forged.csrf = attacker.csrf.clone();
    let answer = forged.tries("bob", PASSWORD).await;
    stage.expect(3, page(&answer, 403));
    stage.expect(3, logged(&answer, "csrf.rejected", "token"));
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(victim.fields("bob", PASSWORD))
        .finish();
    let headers = [
        FORM,
        ("Origin", "https://evil.test"),
        ("Sec-Fetch-Site", "cross-site"),
    ];
    let mut browser = victim.browser.clone();
    let answer = browser.send("POST", "/login", &headers, Some(body)).await;
    stage.expect(4, page(&answer, 403));
    stage.expect(4, logged(&answer, "csrf.rejected", "origin"));
    // 5. A prefetch or an image starts no sign-in.
    let before = begun(stage);
    for header in [("Sec-Purpose", "prefetch"), ("Sec-Fetch-Dest", "image")] {
        let mut browser = stage.server.browser();
        browser.send("GET", "/login", &[header], None).await;
        stage.check(5, browser.cookies.is_empty(), || format!("{header:?}"));
    }
    let after = begun(stage);
    stage.check(5, after == before, || format!("{after}, were {before}"));
    stage.check(6, sessions(stage) == 0, || "a session began".to_owned());
}

async fn a571_account_sign_in_ends_at_the_account_page(stage: &Stage) {
    let targets_of = [
        "https://evil.test",
        "//evil.test",
        "/\\evil.test",
        "javascript:alert(1)",
    ];
    let names = [
        "return_to",
        "next",
        "redirect_uri",
        "continue",
        "post_logout_redirect_uri",
    ];
    for (case, target) in (1..).zip(targets_of) {
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(names.map(|name| (name, target)))
            .finish();
        let mut browser = stage.node(case).browser();
        let referrer = [("Referer", target), ("Sec-Fetch-Site", "cross-site")];
        let offered = browser
            .send("GET", &format!("/account?{query}"), &referrer, None)
            .await;
        let begun = browser
            .send("GET", &format!("/login?{query}"), &referrer, None)
            .await;
        let shown = browser.opens(&begun.own_redirect().unwrap()).await;
        stage.expect(case, login_page(&shown));
        let (authorization, csrf) = (shown.hidden("authorization"), shown.hidden("csrf"));
        let mut fields = vec![
            ("authorization", authorization.as_str()),
            ("csrf", &csrf),
            ("username", "alice"),
            ("password", PASSWORD),
        ];
        fields.extend(names.map(|name| (name, target)));
        let answer = browser.post(&format!("/login?{query}"), &fields).await;
        stage.expect(case, passed(&answer));
        let dispatched = browser
            .get(&format!("{}&{query}", answer.own_redirect().unwrap()))
            .await;
        stage.check(case, dispatched.location() == Some("/account"), || {
            summary(&dispatched)
        });
        for answer in [&offered, &begun, &shown, &answer, &dispatched] {
            let mut links = targets(&answer.body);
            links.extend(answer.location().map(str::to_owned));
            let away = links
                .iter()
                .find(|to| to.contains("evil") || !to.starts_with('/') || to.starts_with("//"));
            stage.check(case, away.is_none(), || format!("leads to {away:?}"));
        }
    }
}

async fn a572_account_sign_ins_in_two_tabs_do_not_mix_users(stage: &Stage) {
    // Two tabs of one browser, on two nodes where there are several.
    let mut first = begins(stage.server.browser()).await;
    let mut second = begins(first.browser.at(&stage.node(1).base)).await;
    let answer = first.tries("alice", PASSWORD).await;
    stage.expect(1, passed(&answer));
    is_at_account(stage, 1, &mut first.browser, &answer, "alice").await;
    let account = first.browser.get("/account").await;
    // 2. bob signs in in the other tab: alice's session ends, and her page can no longer act.
    second.browser.cookies = first.browser.cookies.clone();
    let alices = first.browser.cookies[SESSION].clone();
    let answer = second.tries("bob", PASSWORD).await;
    stage.expect(2, passed(&answer));
    is_at_account(stage, 2, &mut second.browser, &answer, "bob").await;
    let live = "SELECT count(*) AS n FROM sessions WHERE ended_at IS NULL";
    let live = stage.server.count(live);
    stage.check(2, live == 1, || format!("{live} sessions are active"));
    let csrf = account.hidden("csrf");
    let stale = second
        .browser
        .post("/oauth2/end_session", &[("csrf", &csrf)])
        .await;
    stage.expect(2, page(&stale, 403));
    // 3. The first tab's sign-in is complete: its address leads to the account, its form opens no session.
    let path = format!("/login?authorization={}", first.authorization);
    let replayed = second.browser.get(&path).await;
    is_at_account(stage, 3, &mut second.browser, &replayed, "bob").await;
    first.browser.cookies = second.browser.cookies.clone();
    let replayed = first.tries("alice", PASSWORD).await;
    stage.check(3, !crate::expect::sets_session(&replayed), || {
        summary(&replayed)
    });
    is_at_account(stage, 3, &mut first.browser, &replayed, "bob").await;
    // 4. Without a session, the same address offers to sign in and signs no user in.
    let mut signed_out = second.browser.clone();
    signed_out.cookies.remove(SESSION);
    let answer = signed_out.opens(&path).await;
    stage.check(4, answer.body.contains("not signed in"), || {
        summary(&answer)
    });
    signed_out.cookies.insert(SESSION.to_owned(), alices);
    let answer = signed_out.opens(&path).await;
    stage.check(4, answer.body.contains("not signed in"), || {
        summary(&answer)
    });
}

async fn a573_account_sign_in_yields_no_code_or_consent(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let grants = "SELECT (SELECT count(*) FROM grants) + (SELECT count(*) FROM codes) AS n";
    let before = stage.server.count(grants);
    let mut form = begins(stage.server.browser()).await;
    stage.expect(1, passed(&form.tries("alice", PASSWORD).await));
    // 1. The parameters of a client, added to the address that continues the sign-in.
    let id = form.authorization.clone();
    let request = web.request(&[]);
    let (_, query) = request.split_once('?').unwrap();
    let continued = format!("/oauth2/authorize?authorization={id}&{query}");
    let mut other = form.browser.clone();
    let answer = other.get(&continued).await;
    stage.check(1, answer.location() == Some("/account"), || {
        summary(&answer)
    });
    // 2. Its id on the consent page, and in the form of a consent that was asked for.
    let mut form = begins(stage.server.browser()).await;
    let id = form.authorization.clone();
    let shown = form
        .browser
        .opens(&format!("/consent?authorization={id}"))
        .await;
    stage.expect(2, login_page(&shown));
    let asked = alice.opens(&web.request(&[("prompt", "consent")])).await;
    let csrf = asked.hidden("csrf");
    form.browser
        .cookies
        .insert(SESSION.to_owned(), alice.cookies[SESSION].clone());
    let fields = [
        ("authorization", id.as_str()),
        ("csrf", &csrf),
        ("decision", "allow"),
        ("scope", "openid"),
    ];
    let answer = form.browser.post("/consent", &fields).await;
    stage.expect(2, page(&answer, 403));
    // 3. In a frame.
    let frame = [
        ("Sec-Fetch-Dest", "iframe"),
        ("Sec-Fetch-Site", "same-origin"),
    ];
    let path = format!("/oauth2/authorize?authorization={id}");
    let answer = form.browser.send("GET", &path, &frame, None).await;
    stage.expect(3, page400(&answer));
    // 4. With the cookie of another browser.
    let mut planted = form.browser.clone();
    planted
        .cookies
        .insert(INTERACTION.to_owned(), RANDOM.to_owned());
    stage.expect(4, page400(&planted.get(&path).await));
    let after = stage.server.count(grants);
    stage.check(5, after == before, || {
        format!("{after} grants and codes, were {before}")
    });
}
