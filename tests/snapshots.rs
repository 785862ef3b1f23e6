//! Snapshots of public documents, error bodies and pages, in `tests/snapshots/`.
//!
//! A changed response fails here until its snapshot is accepted:
//! `INSTA_UPDATE=always cargo test --test snapshots`, then review the diff. Values that differ between two runs,
//! such as keys, identifiers and form tokens, are replaced by their name in brackets.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "fixtures/mod.rs"]
mod fixtures;

use std::time::Duration;

use fixtures::client::basic;
use fixtures::installation::Installation;
use fixtures::server::{AUDIENCE, PASSWORD, confidential};
use fixtures::{Answer, Browser, Db, Server, TestClient};
use portcullis::oauth::client::GrantType;
use serde_json::Value;

/// Compares `text` with the snapshot `name`.
fn assert_matches(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// Responses of one endpoint, each under a heading.
#[derive(Default)]
struct Transcript(String);

impl Transcript {
    fn add(&mut self, case: &str, answer: &Answer) {
        let challenge = match answer.header("www-authenticate") {
            Some(challenge) => format!("WWW-Authenticate: {challenge}\n"),
            None => String::new(),
        };
        let kind = answer.header("content-type").unwrap_or("none");
        let body = match answer.body.is_empty() {
            true => "(no body)".to_owned(),
            false => {
                let mut body = answer.json();
                if let Some(id) = body.get_mut("error_id") {
                    *id = "[error id]".into();
                }
                pretty(&body)
            }
        };
        let status = answer.status;
        self.0 += &format!("# {case}\n{status}\nContent-Type: {kind}\n{challenge}\n{body}\n\n");
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

/// Replaces the text between `before` and the next `after`, everywhere.
fn redact(text: &str, before: &str, after: &str, name: &str) -> String {
    let mut parts = text.split(before);
    let mut redacted = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.find(after).map_or("", |end| &part[end..]);
        redacted += &format!("{before}[{name}]{rest}");
    }
    redacted
}

/// Returns the HTML of a page without the values that differ between two runs.
fn page(answer: &Answer) -> String {
    let mut html = answer.body.clone();
    for (before, after, name) in [
        ("name=\"csrf\" value=\"", "\"", "csrf"),
        ("name=\"authorization\" value=\"", "\"", "authorization"),
        ("name=\"consent\" value=\"", "\"", "consent"),
        ("name=\"code\" value=\"", "\"", "code"),
        ("?authorization=", "\"", "authorization"),
        ("href=\"/assets/", ".", "hash"),
        ("src=\"/assets/", ".", "hash"),
        ("<script nonce=\"", "\"", "nonce"),
        ("<dd><code>", "</code>", "error id"),
    ] {
        html = redact(&html, before, after, name);
    }
    let lines: Vec<&str> = html.lines().map(str::trim_end).collect();
    format!("{}\n\n{}", answer.status, lines.join("\n"))
}

/// Returns a client with a fixed name in every page.
async fn shop(server: &Server) -> TestClient {
    let mut client = confidential("shop", "https://app.example/cb");
    client.client_uri = Some("https://app.example/".to_owned());
    client.policy_uri = Some("https://app.example/privacy".to_owned());
    client.tos_uri = Some("https://app.example/terms".to_owned());
    server.register(client).await
}

/// Returns a client that gets tokens for itself.
async fn robot(server: &Server) -> TestClient {
    let mut client = confidential("robot", "");
    client.redirect_uris.clear();
    client.grant_types = vec![GrantType::ClientCredentials];
    server.register(client).await
}

#[actix_web::test]
async fn discovery_documents_match_snapshots() {
    let server = Server::start(Db::Sqlite).await;
    let mut browser = server.browser();
    for (path, name) in [
        ("/.well-known/openid-configuration", "openid_configuration"),
        (
            "/.well-known/oauth-authorization-server",
            "oauth_authorization_server",
        ),
    ] {
        let document = browser.get(path).await;
        assert_eq!(document.status, 200, "{path}");
        assert_matches(name, &pretty(&document.json()));
    }
}

#[actix_web::test]
async fn key_set_matches_snapshot() {
    let server = Server::start(Db::Sqlite).await;
    let mut set = server.browser().get("/oauth2/jwks").await.json();
    for key in set["keys"].as_array_mut().unwrap() {
        for (member, value) in key.as_object_mut().unwrap() {
            if ["kid", "x", "y", "n"].contains(&member.as_str()) {
                *value = format!("[{member}]").into();
            }
        }
    }
    assert_matches("jwks", &pretty(&set));
}

#[actix_web::test]
async fn token_errors_match_snapshot() {
    let server = Server::start(Db::Sqlite).await;
    let (shop, robot) = (shop(&server).await, robot(&server).await);
    let code = server.browser().allows(&shop).await;
    let wrong_secret = basic(shop.id(), "pcl_sec_wrong");
    let path = "/oauth2/token";
    let mut transcript = Transcript::default();
    for (case, fields) in [
        ("no grant type", &[][..]),
        ("unsupported grant type", &[("grant_type", "password")]),
        ("no code", &[("grant_type", "authorization_code")]),
        (
            "grant type that is not registered",
            &[("grant_type", "client_credentials")],
        ),
        (
            "unknown refresh token",
            &[("grant_type", "refresh_token"), ("refresh_token", "x")],
        ),
    ] {
        transcript.add(case, &shop.posts(path, fields).await);
    }
    transcript.add("unknown code", &shop.redeems("pcl_ac_unknown").await);
    let wrong_target = [("resource", "https://other.example")];
    transcript.add(
        "resource that was not granted",
        &shop.redeems_with(&code, &wrong_target).await,
    );
    let too_much = [("grant_type", "client_credentials"), ("scope", "admin")];
    transcript.add(
        "scope that is not registered",
        &robot.posts(path, &too_much).await,
    );
    let grant = [("grant_type", "client_credentials")];
    transcript.add(
        "wrong client secret",
        &shop
            .posts_raw(path, &[("Authorization", &wrong_secret)], &grant)
            .await,
    );
    transcript.add(
        "no client authentication",
        &shop.posts_raw(path, &[], &grant).await,
    );
    assert_matches("token_errors", &transcript.0);
}

#[actix_web::test]
async fn introspection_errors_match_snapshot() {
    let server = Server::start(Db::Sqlite).await;
    let api = server.resource_server("api", AUDIENCE).await;
    let path = "/oauth2/introspect";
    let mut transcript = Transcript::default();
    transcript.add(
        "no client authentication",
        &api.posts_raw(path, &[], &[("token", "x")]).await,
    );
    transcript.add("no token", &api.posts(path, &[]).await);
    transcript.add("malformed token", &api.introspects("x").await);
    assert_matches("introspection_errors", &transcript.0);
}

#[actix_web::test]
async fn revocation_errors_match_snapshot() {
    let server = Server::start(Db::Sqlite).await;
    let shop = shop(&server).await;
    let path = "/oauth2/revoke";
    let mut transcript = Transcript::default();
    transcript.add(
        "no client authentication",
        &shop.posts_raw(path, &[], &[("token", "x")]).await,
    );
    transcript.add("no token", &shop.posts(path, &[]).await);
    transcript.add("malformed token", &shop.revokes("x").await);
    assert_matches("revocation_errors", &transcript.0);
}

#[actix_web::test]
async fn userinfo_errors_match_snapshot() {
    let server = Server::start(Db::Sqlite).await;
    let (shop, robot) = (shop(&server).await, robot(&server).await);
    let mut browser = server.browser();
    let mut transcript = Transcript::default();
    transcript.add("no token", &browser.get("/oauth2/userinfo").await);
    transcript.add("malformed token", &browser.asks_userinfo("GET", "x").await);
    let grant = [("grant_type", "client_credentials")];
    let own = robot.posts("/oauth2/token", &grant).await.ok();
    transcript.add(
        "token of a client",
        &browser.asks_userinfo("GET", own.access()).await,
    );
    let url = shop.request(&[("scope", "orders:read")]);
    let code = server.browser().allows_request(&url).await;
    let narrow = shop.redeems(&code).await.ok();
    transcript.add(
        "token without the scope openid",
        &browser.asks_userinfo("GET", narrow.access()).await,
    );
    let code = server.browser().allows(&shop).await;
    let tokens = shop.redeems(&code).await.ok();
    server.advance(Duration::from_secs(3_600));
    transcript.add(
        "expired token",
        &browser.asks_userinfo("GET", tokens.access()).await,
    );
    assert_matches("userinfo_errors", &transcript.0);
}

#[actix_web::test]
async fn pages_of_a_sign_in_match_snapshots() {
    let server = Server::start(Db::Sqlite).await;
    let shop = shop(&server).await;
    let mut alice = server.browser();
    let scope = ("scope", "openid email offline_access orders:read");
    let login = alice.opens(&shop.request(&[scope])).await;
    assert_matches("login", &page(&login));
    let failed = alice.fills_in(&login, "alice", "not her password").await;
    assert_matches("login_failed", &page(&failed));
    let consent = alice.fills_in(&failed, "alice", PASSWORD).await;
    assert_matches("consent", &page(&consent));
    let back = alice.decides(&consent, "allow").await;
    assert!(back.callback("code").is_some(), "{}", back.body);
    let by_form = shop.request(&[scope, ("response_mode", "form_post")]);
    assert_matches("form_post", &page(&alice.opens(&by_form).await));
    let again = alice
        .opens(&shop.request(&[scope, ("prompt", "login")]))
        .await;
    assert_matches("login_again", &page(&again));
}

#[actix_web::test]
async fn account_and_logout_pages_match_snapshots() {
    let server = Server::start(Db::Sqlite).await;
    let shop = shop(&server).await;
    let mut alice = server.browser();
    let tokens = shop.redeems(&alice.allows(&shop).await).await.ok();
    assert_matches("account", &page(&alice.get("/account").await));
    let logout = alice.get("/oauth2/end_session").await;
    assert_matches("logout", &page(&logout));
    // A hint of another user's session: the page says which client asks.
    let hint = tokens.0["id_token"].as_str().unwrap();
    let mut bob = server.signed_in("bob").await;
    let asked = bob
        .get(&format!("/oauth2/end_session?id_token_hint={hint}"))
        .await;
    let asked = redact(
        &page(&asked),
        "name=\"id_token_hint\" value=\"",
        "\"",
        "hint",
    );
    assert_matches("logout_asked_by_client", &asked);
    let csrf = logout.hidden("csrf");
    let done = alice.post("/oauth2/end_session", &[("csrf", &csrf)]).await;
    assert_matches("signed_out", &page(&done));
}

#[actix_web::test]
async fn setup_page_matches_snapshot() {
    let server = Server::start(Db::Sqlite).await;
    let link = server.app.bootstrap().await.unwrap().unwrap();
    let mut browser = server.browser();
    browser.opens(&link).await;
    let setup = browser.get("/setup").await;
    assert_matches("setup", &page(&setup));
    let csrf = setup.hidden("csrf");
    let fields = [
        ("csrf", csrf.as_str()),
        ("username", "root"),
        ("password", "short"),
        ("repeat", "short"),
    ];
    let rejected = browser.post("/setup", &fields).await;
    assert_matches("setup_rejected", &page(&rejected));
    let used = server.browser().opens(&link).await;
    assert_matches("setup_link_used", &page(&used));
}

#[actix_web::test]
async fn error_pages_match_snapshots() {
    let server = Server::start(Db::Sqlite).await;
    let shop = shop(&server).await;
    let mut alice = server.browser();
    for (name, path) in [
        ("error_unknown_client", shop.request(&[("client_id", "x")])),
        (
            "error_redirect_uri",
            shop.request(&[("redirect_uri", "https://other.example/")]),
        ),
        ("error_not_found", "/no-such-page".to_owned()),
        ("error_login_gone", "/login?authorization=x".to_owned()),
    ] {
        assert_matches(name, &page(&html(&mut alice, &path).await));
    }
}

/// Loads a page as a browser navigates to it.
async fn html(browser: &mut Browser, path: &str) -> Answer {
    browser
        .send("GET", path, &[("Accept", "text/html")], None)
        .await
}

/// The help text of every command.
#[test]
fn help_texts_match_snapshot() {
    let desk = Installation::new();
    let mut commands = vec![Vec::new()];
    commands.extend(desk.commands());
    let texts = commands.iter().map(|command| {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = desk.done(&arguments);
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        format!(
            "# portcullis {}\n\n{}\n",
            command.join(" "),
            lines.join("\n")
        )
    });
    assert_matches("help", &texts.collect::<Vec<_>>().join("\n"));
}
