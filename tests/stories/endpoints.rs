//! UserInfo, revocation, and clients that act for themselves.

use std::collections::BTreeSet;
use std::time::Duration;

use portcullis::accounts::user::Username;
use portcullis::oauth::client::{AuthMethod, GrantType};
use portcullis::oauth::redirect_uri::Localhost;
use portcullis::oauth::request::scope::Scope;
use portcullis::oauth::userinfo;
use portcullis_verifier::Need;
use serde_json::{Value, json};

use crate::fixtures::client::{basic, claims};
use crate::fixtures::server::{AUDIENCE, PASSWORD, confidential};
use crate::fixtures::{Answer, Db, Server, TestClient, VERIFIER, apply, on_both_databases, raw};

#[apply(on_both_databases)]
#[actix_web::test]
async fn userinfo_returns_claims_of_granted_scope(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let plain = shop.redeems(&alice.allows(&shop).await).await.ok();
    let claims = alice.asks_userinfo("GET", plain.access()).await.json();
    assert_eq!(
        claims,
        serde_json::json!({ "sub": plain.id_claims()["sub"] })
    );

    let url = shop.request(&[("scope", "openid profile email")]);
    let more = shop.redeems(&alice.allows_request(&url).await).await.ok();
    for method in ["GET", "POST"] {
        let answer = alice.asks_userinfo(method, more.access()).await;
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let claims = answer.json();
        assert_eq!(claims["email"], "alice@mail.example");
        assert_eq!(
            (
                claims["email_verified"].is_boolean(),
                claims["updated_at"].is_number()
            ),
            (true, true)
        );
        assert_eq!(claims["preferred_username"], "alice");
    }
    let form = format!("access_token={}", more.access());
    let kind = ("Content-Type", "application/x-www-form-urlencoded");
    let posted = alice
        .send("POST", "/oauth2/userinfo", &[kind], Some(form.clone()))
        .await;
    assert_eq!(posted.json()["sub"], plain.id_claims()["sub"]);
    let bearer = format!("bEARER {}", more.access());
    let twice = [kind, ("Authorization", bearer.as_str())];
    assert_eq!(
        alice
            .send("POST", "/oauth2/userinfo", &twice, Some(form))
            .await
            .status,
        400
    );
    assert_eq!(
        alice
            .send("GET", "/oauth2/userinfo", &twice[1..], None)
            .await
            .status,
        200
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn userinfo_rejects_inactive_and_client_tokens(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let tokens = shop.redeems(&alice.allows(&shop).await).await.ok();
    let missing = alice.get("/oauth2/userinfo").await;
    assert_eq!(missing.status, 401);
    assert_eq!(
        missing
            .header("www-authenticate")
            .map(|value| value.contains("error")),
        Some(false)
    );
    let query = format!("/oauth2/userinfo?access_token={}", tokens.access());
    assert_eq!(alice.get(&query).await.status, 400);
    let id_token = tokens.0["id_token"].as_str().unwrap();
    for token in ["x", id_token, &format!("{}x", tokens.access())] {
        let answer = alice.asks_userinfo("GET", token).await;
        let logged = answer.logged();
        // The private reason says which check failed.
        let is_precise = |(event, reason): &(String, String)| {
            let reasons = ["malformed", "type", "algorithm", "unknown_key", "signature"];
            event == "bearer.rejected" && reasons.contains(&reason.as_str())
        };
        assert!(logged.iter().any(is_precise), "{logged:?}");
        assert_eq!(answer.json()["error"], "invalid_token");
    }
    let url = shop.request(&[("scope", "orders:read")]);
    let narrow = shop.redeems(&alice.allows_request(&url).await).await.ok();
    let refused = alice.asks_userinfo("GET", narrow.access()).await;
    assert_eq!(refused.status, 403);
    refused.refused("insufficient_scope", "bearer.rejected", "scope");

    let page = alice.get("/oauth2/end_session").await;
    alice
        .post("/oauth2/end_session", &[("csrf", &page.hidden("csrf"))])
        .await;
    let dead = alice.asks_userinfo("GET", tokens.access()).await;
    dead.refused("invalid_token", "bearer.rejected", "revoked");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn revoked_refresh_token_revokes_grant(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let tokens = shop.redeems(&alice.allows(&shop).await).await.ok();
    let answer = shop.revokes(tokens.refresh()).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    shop.refreshes(tokens.refresh(), &[]).await.refused(
        "invalid_grant",
        "token.rejected",
        "grant_ended",
    );
    assert_eq!(
        alice.asks_userinfo("GET", tokens.access()).await.status,
        401
    );
    assert_eq!(
        server.count("SELECT count(*) AS n FROM revocations WHERE kind = 'G'"),
        1
    );
    assert_eq!(
        shop.revokes(tokens.refresh()).await.status,
        200,
        "twice is fine"
    );
    assert_eq!(
        server.count("SELECT count(*) AS n FROM revocations WHERE kind = 'G'"),
        1
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn revoked_access_token_leaves_grant_active(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let tokens = shop.redeems(&alice.allows(&shop).await).await.ok();
    assert_eq!(shop.revokes(tokens.access()).await.status, 200);
    assert_eq!(
        server.count(
            "SELECT count(*) AS n FROM revocations WHERE kind = 'J' AND token_exp IS NOT NULL"
        ),
        1
    );
    assert_eq!(
        alice.asks_userinfo("GET", tokens.access()).await.status,
        401
    );
    let fresh = shop.refreshes(tokens.refresh(), &[]).await.ok();
    assert_eq!(alice.asks_userinfo("GET", fresh.access()).await.status, 200);
    server.advance(Duration::from_secs(400));
    shop.revokes(fresh.access()).await;
    assert_eq!(
        server.count("SELECT count(*) AS n FROM revocations WHERE kind = 'J'"),
        1,
        "an expired token needs no record"
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn revocation_of_foreign_token_is_ignored(#[case] db: Db) {
    let server = Server::start(db).await;
    let (shop, other) = (server.shop().await, server.shop().await);
    let tokens = shop
        .redeems(&server.browser().allows(&shop).await)
        .await
        .ok();
    for token in [tokens.refresh(), tokens.access()] {
        other
            .revokes(token)
            .await
            .refused("invalid_request", "revocation.denied", "client");
    }
    for token in ["", "nonsense", "pcl_rt_AAAA"] {
        let status = if token.is_empty() { 400 } else { 200 };
        assert_eq!(other.revokes(token).await.status, status, "{token}");
    }
    let unproven = shop
        .posts_raw(
            "/oauth2/revoke",
            &[],
            &[("token", tokens.refresh()), ("client_id", shop.id())],
        )
        .await;
    unproven.refused("invalid_client", "client.auth_failed", "method");
    assert_eq!(server.browser().get("/oauth2/revoke").await.status, 405);
    shop.refreshes(tokens.refresh(), &[]).await.ok();
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn client_credentials_token_acts_for_the_client(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut client = confidential("robot", "https://robot.example/cb");
    client.grant_types = vec![GrantType::ClientCredentials];
    let robot = server.register(client).await;
    let grant = ("grant_type", "client_credentials");
    let tokens = robot
        .posts("/oauth2/token", &[grant, ("scope", "orders:read")])
        .await
        .ok();
    assert!(tokens.0["refresh_token"].is_null() && tokens.0["id_token"].is_null());
    let seen = server
        .api()
        .verify_at(
            tokens.access(),
            &Need::scope("orders:read"),
            server.clock.now().secs(),
        )
        .unwrap();
    assert_eq!(
        (
            seen.sub.as_str(),
            seen.aud.as_str(),
            seen.rev.to_string().as_str()
        ),
        ("robot", AUDIENCE, "1.1")
    );
    assert!(claims(tokens.access())["grant_id"].is_null());
    let all = robot.posts("/oauth2/token", &[grant]).await.ok();
    assert_eq!(all.0["scope"], "orders:read orders:write");
    for scope in ["openid", "admin", "orders:read openid"] {
        robot
            .posts("/oauth2/token", &[grant, ("scope", scope)])
            .await
            .callback_free_refusal("invalid_scope");
    }
    let other = robot
        .posts(
            "/oauth2/token",
            &[grant, ("resource", "https://other.example")],
        )
        .await;
    other.callback_free_refusal("invalid_target");
    let asked = server.browser().asks_userinfo("GET", tokens.access()).await;
    asked.refused("insufficient_scope", "bearer.rejected", "scope");
    let shop = server.shop().await;
    let refused = shop.posts("/oauth2/token", &[grant]).await;
    refused.refused("unauthorized_client", "token.rejected", "grant_type");
    let mut public = crate::fixtures::server::public("p", &["http://127.0.0.1/cb"]);
    public.grant_types.push(GrantType::ClientCredentials);
    assert!(
        public.check(Localhost::Forbidden).is_err(),
        "a public client has no secret to act with"
    );
}

/// Posts a form with a label of its charset.
async fn posts_labelled(client: &TestClient, path: &str, charset: &str, body: &[u8]) -> Answer {
    let secret = client.secret.as_ref().unwrap().expose();
    let (id, secret) = (client.id(), basic(client.id(), secret));
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\nAuthorization: {secret}\r\n\
         Content-Type: application/x-www-form-urlencoded; charset={charset}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let bytes = [head.as_bytes(), body].concat();
    let answer = raw::bytes(client.base(), bytes).await;
    answer.unwrap_or_else(|| panic!("{id} {path}: no response"))
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn form_charset_label_is_ignored(#[case] db: Db) {
    let server = Server::start(db).await;
    let api = server.api_server().await;
    let grant = b"grant_type=client_credentials".as_slice();
    for charset in [
        "ISO-8859-1",
        "us-ascii",
        "utf8",
        "UTF-8",
        "\"utf-8\"",
        "windows-1252",
    ] {
        for (path, body) in [
            ("/oauth2/token", grant),
            ("/oauth2/revoke", b"token=x"),
            ("/oauth2/introspect", b"token=x"),
        ] {
            let answer = posts_labelled(&api, path, charset, body).await;
            assert_eq!(answer.status, 200, "{path} {charset}: {}", answer.body);
        }
    }
    // The bytes are UTF-8, whatever the label says, and a charset that is not ASCII cannot be read.
    let not_utf8 = b"grant_type=client_credentials&x=\xe9".as_slice();
    for (charset, body) in [
        ("ISO-8859-1", not_utf8),
        ("utf-16", grant),
        ("UTF-32LE", grant),
    ] {
        let answer = posts_labelled(&api, "/oauth2/token", charset, body).await;
        answer.refused("invalid_request", "token.rejected", "content_type");
    }
    // The server's own forms and UserInfo as well.
    let shop = server.shop().await;
    let mut alice = server.browser();
    let tokens = shop.redeems(&alice.allows(&shop).await).await.ok();
    let form = "application/x-www-form-urlencoded; charset=ISO-8859-1";
    let body = format!("access_token={}", tokens.access());
    let kind = [("Content-Type", form)];
    let answer = alice
        .send("POST", "/oauth2/userinfo", &kind, Some(body))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let csrf = alice.get("/oauth2/end_session").await.hidden("csrf");
    let answer = alice
        .send(
            "POST",
            "/oauth2/end_session",
            &kind,
            Some(format!("csrf={csrf}")),
        )
        .await;
    assert!(
        answer.body.contains("You are signed out"),
        "{}",
        answer.body
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn head_has_status_of_get(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let page = alice.opens(&shop.request(&[])).await;
    let open = format!(
        "/oauth2/authorize?authorization={}",
        page.hidden("authorization")
    );
    let mut visitor = server.browser();
    let unregistered = [("redirect_uri", "https://evil.test/")];
    for url in [
        shop.request(&[]),
        shop.request(&[("prompt", "none")]),
        shop.request(&[("scope", "unknown")]),
        shop.request(&unregistered),
        "/oauth2/authorize".to_owned(),
        "/oauth2/authorize?authorization=unknown".to_owned(),
        "/.well-known/openid-configuration".to_owned(),
        "/oauth2/jwks".to_owned(),
        "/revocations/jwks".to_owned(),
        "/unknown".to_owned(),
    ] {
        let head = visitor.send("HEAD", &url, &[], None).await;
        let get = visitor.get(&url).await;
        assert_eq!((head.status, head.body.as_str()), (get.status, ""), "{url}");
    }
    // A sign-in in progress, and one whose user is signed in and gave consent.
    let rows = "SELECT (SELECT count(*) FROM authorizations) + (SELECT count(*) FROM codes) AS n";
    let before = server.count(rows);
    let head = alice.send("HEAD", &open, &[], None).await;
    assert_eq!(head.status, 303);
    let page = alice.fills_in(&page, "alice", PASSWORD).await;
    alice.decides(&page, "allow").await;
    let after = server.count(rows);
    for (mode, status) in [("query", 303), ("form_post", 200)] {
        let url = shop.request(&[("response_mode", mode)]);
        let head = alice.send("HEAD", &url, &[], None).await;
        assert_eq!(
            (head.status, head.callback("code")),
            (status, None),
            "{mode}"
        );
    }
    assert_eq!((before, after), (2, 3), "only GET stores a code");
    assert_eq!(server.count(rows), after);
    // A request that was posted belongs to the first browser that opens it with GET.
    let kind = [("Content-Type", "application/x-www-form-urlencoded")];
    let request = shop.request(&[("prompt", "login")]);
    let body = request.split_once('?').unwrap().1.to_owned();
    let mut carol = server.browser();
    let posted = carol
        .send("POST", "/oauth2/authorize", &kind, Some(body))
        .await;
    let stored = posted.location().unwrap().to_owned();
    let head = server.browser().send("HEAD", &stored, &[], None).await;
    assert_eq!((head.status, carol.get(&stored).await.status), (303, 303));
    assert_eq!(server.browser().get(&stored).await.status, 400);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn claims_supported_equals_userinfo_claims(#[case] db: Db) {
    let server = Server::start(db).await;
    // A user with every claim that an operator may set.
    let (name, now) = (Username::parse("alice").unwrap(), server.clock.now());
    server
        .write(move |tx| {
            let (mut user, _) = tx.find_credentials(&name)?.unwrap();
            user.name = Some("Alice".to_owned());
            for claim in userinfo::claim_names() {
                for value in [json!("x"), json!(true), json!({})] {
                    if userinfo::is_settable(claim, &value) {
                        user.claims.insert(claim.to_owned(), value);
                    }
                }
            }
            tx.update_user(&user, now)
        })
        .await;
    let mut shop = confidential("shop", "https://app.example/cb");
    let scopes = "openid profile email address phone";
    shop.scopes = Scope::parse(scopes).unwrap();
    let shop = server.register(shop).await;
    let mut alice = server.browser();
    let code = alice
        .allows_request(&shop.request(&[("scope", scopes)]))
        .await;
    let tokens = shop.redeems(&code).await.ok();
    let names = |value: Value| -> BTreeSet<String> {
        let members = value.as_object().unwrap().clone();
        members.into_iter().map(|(name, _)| name).collect()
    };
    let mut sent = names(alice.asks_userinfo("GET", tokens.access()).await.json());
    sent.extend(names(tokens.id_claims()));
    // A hash of the access token, not a claim about the user.
    sent.remove("at_hash");
    for path in [
        "/.well-known/openid-configuration",
        "/.well-known/oauth-authorization-server",
    ] {
        let listed = alice.get(path).await.json()["claims_supported"].clone();
        let listed: BTreeSet<String> = serde_json::from_value(listed).unwrap();
        assert_eq!(listed, sent, "{path}");
    }
}

/// Headers and form fields that authenticate a client.
type Credentials<'a> = (&'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)]);

#[apply(on_both_databases)]
#[actix_web::test]
async fn secret_is_accepted_by_basic_or_form(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut client = confidential("shop", "https://app.example/cb");
    client.auth_method = AuthMethod::Secret;
    let shop = server.register(client).await;
    let secret = shop.secret.as_ref().unwrap().expose();
    let header = basic("shop", secret);
    let by_basic: (&[_], &[_]) = (&[("Authorization", header.as_str())], &[]);
    let by_form: (&[_], &[_]) = (&[], &[("client_id", "shop"), ("client_secret", secret)]);
    let send = async |(headers, credentials): Credentials<'_>, fields: &[(&str, &str)]| {
        let fields = [fields, credentials].concat();
        shop.posts_raw("/oauth2/token", headers, &fields).await
    };
    // golang.org/x/oauth2 tries Basic and, after any error, the form: it shows the error of the request.
    let wrong = [("grant_type", "authorization_code"), ("code", "pcl_ac_x")];
    for credentials in [by_basic, by_form] {
        let answer = send(credentials, &wrong).await;
        answer.refused("invalid_grant", "token.rejected", "unknown");
    }
    // zitadel/oidc signs in by Basic and refreshes by the form.
    let code = server.browser().allows(&shop).await;
    let exchange = [
        ("grant_type", "authorization_code"),
        ("code", code.as_str()),
        ("redirect_uri", shop.redirect_uri()),
        ("code_verifier", VERIFIER),
    ];
    let tokens = send(by_basic, &exchange).await.ok();
    let refresh = [
        ("grant_type", "refresh_token"),
        ("refresh_token", tokens.refresh()),
    ];
    let tokens = send(by_form, &refresh).await.ok();
    // Neither both at once, nor no secret.
    let both = (by_basic.0, by_form.1);
    let refresh = [
        ("grant_type", "refresh_token"),
        ("refresh_token", tokens.refresh()),
    ];
    send(both, &refresh)
        .await
        .refused("invalid_request", "client.auth_failed", "multi");
    let none: (&[_], &[_]) = (&[], &[("client_id", "shop")]);
    send(none, &refresh)
        .await
        .refused("invalid_client", "client.auth_failed", "method");
    send(by_basic, &refresh).await.ok();
    // Discovery lists registered names only.
    let metadata = server
        .browser()
        .get("/.well-known/openid-configuration")
        .await
        .json();
    let listed = &metadata["token_endpoint_auth_methods_supported"];
    let names = [
        "client_secret_basic",
        "client_secret_post",
        "private_key_jwt",
        "none",
    ];
    assert_eq!(*listed, json!(names));
}

impl Answer {
    /// Asserts an error response without checking its private reason.
    #[track_caller]
    fn callback_free_refusal(&self, code: &str) {
        assert_eq!(
            (self.status, self.json()["error"].as_str()),
            (400, Some(code)),
            "{}",
            self.body
        );
    }
}
