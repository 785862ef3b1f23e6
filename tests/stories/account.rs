//! The account page: a sign-in of its own, and what the user allowed.

use std::time::Duration;

use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Browser, Db, Server, apply, on_both_databases};

const SESSIONS: &str = "SELECT count(*) AS n FROM sessions WHERE ended_at IS NULL";

/// Signs in at the account page.
async fn signs_in(browser: &mut Browser, username: &str) {
    let login = browser.opens("/login").await;
    let account = browser.fills_in(&login, username, PASSWORD).await;
    let signed_in = format!("Signed in as <strong>{username}</strong>");
    assert!(account.body.contains(&signed_in), "{}", account.body);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn account_page_offers_sign_in_and_returns(#[case] db: Db) {
    let server = Server::start(db).await;
    // No client is registered.
    let mut browser = server.browser();
    for path in ["/", "/account"] {
        let offered = browser.opens(path).await;
        assert_eq!(offered.status, 200);
        assert!(offered.body.contains("You are not signed in"));
        assert!(offered.body.contains("href=\"/login\""), "{}", offered.body);
    }
    assert!(browser.cookies.is_empty(), "an offer starts nothing");
    let login = browser.opens("/login").await;
    assert!(login.body.contains("to your account"), "{}", login.body);
    // A wrong password is answered by the form, which works after that.
    let failed = browser.fills_in(&login, "alice", "wrong-password").await;
    assert!(failed.body.contains("Invalid user name or password"));
    let account = browser.fills_in(&failed, "alice", PASSWORD).await;
    assert!(account.body.contains("Signed in as <strong>alice</strong>"));
    assert_eq!(server.count(SESSIONS), 1);
    // The user who is signed in is not asked again.
    let again = browser.get("/login").await;
    assert_eq!(
        (again.status, again.location()),
        (303, Some("/account")),
        "{}",
        again.body
    );
    // The session is that of every client.
    let shop = server.shop().await;
    let consent = browser.opens(&shop.request(&[])).await;
    assert!(consent.body.contains("consent-allow"), "{}", consent.body);
    // After the sign-out, that page and the account page lead back.
    let out = browser.signs_out().await;
    assert!(out.body.contains("You are signed out"));
    assert!(out.body.contains("href=\"/login\""));
    assert_eq!(server.count(SESSIONS), 0);
    signs_in(&mut browser, "bob").await;
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn expired_account_sign_in_and_session_lead_to_sign_in(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut browser = server.browser();
    let login = browser.opens("/login").await;
    server.advance(Duration::from_secs(601));
    let late = browser.fills_in(&login, "alice", PASSWORD).await;
    assert_eq!(late.status, 400);
    assert!(late.body.contains("This sign-in took too long"));
    assert!(late.body.contains("href=\"/login\""), "{}", late.body);
    // The form of a page whose session has expired.
    let shop = server.shop().await;
    signs_in(&mut browser, "alice").await;
    browser.allows(&shop).await;
    let account = browser.get("/account").await;
    let (csrf, consent) = (account.values("csrf"), account.hidden("consent"));
    server.advance(Duration::from_secs(31 * 60));
    let fields = [("csrf", csrf[0].as_str()), ("consent", consent.as_str())];
    let answer = browser.post("/account", &fields).await;
    assert_eq!((answer.status, answer.location()), (303, Some("/account")));
    let offered = browser.opens("/account").await;
    assert!(offered.body.contains("You are not signed in"));
    let active = "SELECT count(*) AS n FROM consents WHERE ended_at IS NULL";
    assert_eq!(server.count(active), 1, "nothing was withdrawn");
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn account_page_shows_scope_descriptions(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let scope = "openid email orders:read offline_access";
    let url = shop.request(&[("scope", scope)]);
    let mut alice = server.browser();
    let login = alice.opens(&url).await;
    let consent = alice.fills_in(&login, "alice", PASSWORD).await;
    alice.decides(&consent, "allow").await;
    let account = alice.get("/account").await;
    let described = server.app.store.read(|tx| {
        let scope = portcullis::oauth::request::scope::Scope::parse("orders:read").unwrap();
        tx.find_scope_descriptions(&scope)
    });
    let described = described.await.unwrap();
    let orders = described
        .get("orders:read")
        .map_or("Use this permission on your behalf", String::as_str);
    for text in [
        "Know who you are when you sign in",
        "See your e-mail address",
        "Keep this access when you are not using the application",
        orders,
    ] {
        assert!(consent.body.contains(text), "consent: {text}");
        assert!(account.body.contains(text), "account: {text}");
    }
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn consent_can_be_given_with_another_account(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut browser = server.browser();
    let login = browser.opens(&shop.request(&[])).await;
    let consent = browser.fills_in(&login, "alice", PASSWORD).await;
    let path = format!("/login?authorization={}", consent.hidden("authorization"));
    assert!(consent.body.contains(&format!("href=\"{path}\"")));
    let login = browser.opens(&path).await;
    assert!(
        login
            .body
            .contains("You are signed in as <strong>alice</strong>")
    );
    assert_eq!(login.hidden("username"), "");
    let consent = browser.fills_in(&login, "bob", PASSWORD).await;
    assert!(
        consent
            .body
            .contains("to your account <strong>bob</strong>")
    );
    let answer = browser.decides(&consent, "allow").await;
    let code = answer.callback("code").unwrap();
    let tokens = shop.redeems(&code).await.ok();
    let bob = "SELECT count(*) AS n FROM users WHERE username = 'bob' AND id = ";
    let sub = tokens.access_claims()["sub"].as_str().unwrap().to_owned();
    assert_eq!(server.count(&format!("{bob}'{sub}'")), 1);
    assert_eq!(server.count(SESSIONS), 1, "alice's session has ended");
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn consent_form_of_a_signed_out_user_leads_to_sign_in_and_back(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut browser = server.browser();
    let login = browser.opens(&shop.request(&[])).await;
    let consent = browser.fills_in(&login, "alice", PASSWORD).await;
    // In another tab.
    browser.signs_out().await;
    let login = browser.decides(&consent, "allow").await;
    assert!(login.body.contains("login-submit"), "{}", login.body);
    let consent = browser.fills_in(&login, "alice", PASSWORD).await;
    let answer = browser.decides(&consent, "allow").await;
    assert!(answer.callback("code").is_some(), "{}", answer.body);
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn user_name_is_trimmed(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut browser = server.browser();
    let login = browser.opens("/login").await;
    let account = browser.fills_in(&login, " alice\t", PASSWORD).await;
    assert!(account.body.contains("Signed in as <strong>alice</strong>"));
    // On the set-up page, too.
    let link = server.app.bootstrap().await.unwrap().unwrap();
    let mut first = server.browser();
    let page = first.opens(&link).await;
    let csrf = page.hidden("csrf");
    let password = "four walls and a gate";
    let fields = [
        ("csrf", csrf.as_str()),
        ("username", "root\t"),
        ("password", password),
        ("repeat", password),
    ];
    let answer = first.post("/setup", &fields).await;
    assert_eq!(answer.location(), Some("/account"), "{}", answer.body);
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn refusals_that_the_user_can_correct_are_shown_on_the_form(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut browser = server.browser();
    let login = browser.opens("/login").await;
    let long = "x".repeat(1_025);
    for (password, message) in [
        (long.as_str(), "A password has at most 1024 bytes."),
        ("a\0b", "A password must not contain a NUL character."),
    ] {
        let answer = browser.fills_in(&login, "alice", password).await;
        assert_eq!(answer.status, 400);
        assert!(answer.body.contains(message), "{}", answer.body);
        assert_eq!(answer.hidden("username"), "alice");
        assert!(!answer.body.contains(password), "the password is shown");
    }
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn no_page_is_a_dead_end(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut browser = server.browser();
    let pages = [
        "/account",
        "/login",
        "/login?authorization=unknown",
        "/login?authorization=a&authorization=b",
        "/consent",
        "/consent?authorization=unknown",
        "/oauth2/authorize",
        "/oauth2/authorize?client_id=unknown",
        "/oauth2/authorize?authorization=unknown",
        "/oauth2/end_session",
        "/setup",
        "/setup?token=unknown",
        "/nowhere",
    ];
    for path in pages {
        let shown = browser.opens(path).await;
        assert!(shown.body.contains("<main>"), "{path}: {}", shown.body);
        let leads_on = ["<a class=\"button", "<button type=\"submit\""]
            .iter()
            .any(|control| shown.body.contains(control));
        assert!(leads_on, "{path} is a dead end: {}", shown.body);
    }
    // A form without a cookie.
    for path in ["/login", "/consent", "/setup"] {
        let refused = server.browser().post(path, &[("csrf", "x")]).await;
        assert!(refused.body.contains("<a class=\"button"), "{path}");
    }
    server.remove().await;
}
