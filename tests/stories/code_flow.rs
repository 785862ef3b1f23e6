//! The authorization code flow.

use portcullis::audit::{Actor, RevocationReason};
use std::time::Duration;

use portcullis_verifier::{Need, Rejected};

use crate::fixtures::client::{basic, claims, header};
use crate::fixtures::server::{AUDIENCE, ISSUER, PASSWORD};
use crate::fixtures::{Db, Server, apply, on_both_databases};

#[apply(on_both_databases)]
#[actix_web::test]
async fn code_flow_yields_token_that_the_api_accepts(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();

    let back = alice.signs_in(&shop, "Alice").await;
    assert_eq!(back.status, 303);
    assert_eq!(back.callback("state").as_deref(), Some("st-4711"));
    assert_eq!(back.callback("iss").as_deref(), Some(ISSUER));

    let tokens = shop.redeems(&back.callback("code").unwrap()).await.ok();
    let now = server.clock.now().secs();
    let claims = server
        .api()
        .verify_at(tokens.access(), &Need::any(), now)
        .unwrap();
    assert_eq!(
        (
            claims.iss.as_str(),
            claims.aud.as_str(),
            claims.scope.as_str()
        ),
        (ISSUER, AUDIENCE, "openid")
    );
    assert_eq!(claims.rev.to_string(), "1.1.1");
    let id = tokens.id_claims();
    assert_eq!(
        (id["nonce"].as_str(), id["aud"].as_str()),
        (Some("n-0815"), Some(shop.id()))
    );
    assert_eq!(id["sub"].as_str(), Some(claims.sub.as_str()));
    let late = server
        .api()
        .verify_at(tokens.access(), &Need::any(), now + 331);
    assert!(matches!(late, Err(Rejected::Expired)));
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn replayed_code_revokes_grant(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let code = server.browser().allows(&shop).await;
    shop.redeems(&code).await.ok();
    shop.redeems(&code)
        .await
        .refused("invalid_grant", "code.replay", "replayed");
    assert_eq!(
        server.count("SELECT count(*) AS n FROM revocations WHERE kind = 'G'"),
        1
    );
    assert_eq!(
        server.count("SELECT count(*) AS n FROM audit_events WHERE name = 'code.replay'"),
        1
    );
    shop.redeems(&code)
        .await
        .refused("invalid_grant", "code.replay", "replayed");
    assert_eq!(
        server.count("SELECT count(*) AS n FROM revocations"),
        2,
        "one of dave, one of the grant"
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn public_client_completes_code_flow_with_pkce(#[case] db: Db) {
    let server = Server::start(db).await;
    let phone = server.phone().await;
    let mut alice = server.browser();
    let url = phone.request(&[("redirect_uri", "http://127.0.0.1:51004/cb")]);
    let code = alice.allows_request(&url).await;
    phone
        .redeems_with(
            &code,
            &[
                ("redirect_uri", "http://127.0.0.1:51004/cb"),
                ("code_verifier", &"x".repeat(43)),
            ],
        )
        .await
        .refused("invalid_grant", "token.rejected", "pkce");
    let code = alice.allows_request(&url).await;
    phone
        .redeems_with(&code, &[("redirect_uri", "http://127.0.0.1:51004/cb")])
        .await
        .ok();
    let other = phone
        .redeems_with(&code, &[("code_verifier", &"y".repeat(43))])
        .await;
    other.refused("invalid_grant", "token.rejected", "replayed_by_stranger");
    assert_eq!(
        server.count("SELECT count(*) AS n FROM revocations WHERE kind = 'G'"),
        0
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn code_is_bound_to_client_redirect_uri_and_lifetime(#[case] db: Db) {
    let server = Server::start(db).await;
    let (shop, other) = (server.shop().await, server.shop().await);
    let mut alice = server.browser();
    let code = alice.allows(&shop).await;
    other
        .redeems(&code)
        .await
        .refused("invalid_grant", "code.client_mismatch", "other_client");
    let code = alice.allows(&shop).await;
    let elsewhere = shop
        .redeems_with(&code, &[("redirect_uri", "https://app.example/other")])
        .await;
    elsewhere.refused("invalid_grant", "token.rejected", "redirect_uri");
    let code = alice.allows(&shop).await;
    server.advance(Duration::from_secs(60));
    shop.redeems(&code)
        .await
        .refused("invalid_grant", "token.rejected", "expired");
    shop.redeems("pcl_ac_unknown")
        .await
        .refused("invalid_grant", "token.rejected", "unknown");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn code_is_rejected_after_user_revocation(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let code = alice.allows(&shop).await;
    let name = portcullis::accounts::user::Username::parse("alice").unwrap();
    let now = server.clock.now();
    server
        .write(move |tx| {
            let (user, _) = tx.find_credentials(&name)?.unwrap();
            tx.revoke_all_for_user(
                &user.id,
                &RevocationReason::SignedOutEverywhere,
                &Actor::Operator,
                now,
            )
        })
        .await;
    shop.redeems(&code)
        .await
        .refused("invalid_grant", "token.rejected", "grant_ended");
    let page = alice.opens(&shop.request(&[])).await;
    assert!(
        page.body.contains("login-submit"),
        "the old session has ended as well"
    );
    let back = alice.fills_in(&page, "alice", PASSWORD).await;
    let tokens = shop.redeems(&back.callback("code").unwrap()).await.ok();
    assert_eq!(
        tokens.access_claims()["rev"],
        "1.1.2",
        "the new login is valid at once"
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn remembered_consent_is_skipped_until_scope_grows(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    alice.signs_in(&shop, "alice").await;
    let silent = alice.opens(&shop.request(&[("prompt", "none")])).await;
    assert!(silent.callback("code").is_some());
    let more = alice
        .opens(&shop.request(&[("scope", "openid orders:read")]))
        .await;
    assert!(more.body.contains("consent-allow") && more.body.contains("orders:read"));
    let back = alice.decides(&more, "allow").await;
    let tokens = shop.redeems(&back.callback("code").unwrap()).await.ok();
    assert_eq!(tokens.0["scope"], "openid orders:read");
    let again = alice.opens(&shop.request(&[("prompt", "consent")])).await;
    assert!(again.body.contains("consent-allow"));
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn denied_consent_returns_access_denied(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let page = alice.opens(&shop.request(&[])).await;
    let page = alice.fills_in(&page, "alice", PASSWORD).await;
    let back = alice.decides(&page, "deny").await;
    back.refused("access_denied", "consent.denied", "denied");
    assert_eq!(server.count("SELECT count(*) AS n FROM codes"), 0);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn prompt_none_never_shows_a_page(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let other = server
        .browser()
        .opens(&shop.request(&[("prompt", "none")]))
        .await;
    other.refused("login_required", "authz.rejected", "login");
    let mut alice = server.signed_in("alice").await;
    let unasked = alice.opens(&shop.request(&[("prompt", "none")])).await;
    unasked.refused("consent_required", "authz.rejected", "consent");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn max_age_forces_login_and_keeps_sid(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let first = shop
        .redeems(&alice.allows(&shop).await)
        .await
        .ok()
        .id_claims();
    server.advance(Duration::from_secs(100));
    let young = shop
        .redeems(
            &alice
                .allows_request(&shop.request(&[("max_age", "15000")]))
                .await,
        )
        .await
        .ok()
        .id_claims();
    assert_eq!(young["auth_time"], first["auth_time"]);
    let page = alice.opens(&shop.request(&[("max_age", "99")])).await;
    assert!(page.body.contains("login-submit"));
    let back = alice.fills_in(&page, "alice", PASSWORD).await;
    let renewed = shop
        .redeems(&back.callback("code").unwrap())
        .await
        .ok()
        .id_claims();
    assert!(renewed["auth_time"].as_u64() > first["auth_time"].as_u64());
    assert_eq!(renewed["sid"], first["sid"]);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn id_token_hint_of_another_user_is_not_answered(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let tokens = shop
        .redeems(&server.browser().allows(&shop).await)
        .await
        .ok();
    let hint = tokens.0["id_token"].as_str().unwrap().to_owned();
    let mut bob = server.signed_in("bob").await;
    let silent = bob
        .opens(&shop.request(&[("id_token_hint", &hint), ("prompt", "none")]))
        .await;
    silent.refused("login_required", "authz.rejected", "other_user");
    let page = bob.opens(&shop.request(&[("id_token_hint", &hint)])).await;
    assert!(page.body.contains("login-submit"));
    let forged = bob
        .opens(&shop.request(&[("id_token_hint", &hint[..hint.len() - 4])]))
        .await;
    forged.refused("invalid_request", "authz.rejected", "id_token_hint");
    let access = bob
        .opens(&shop.request(&[("id_token_hint", tokens.access())]))
        .await;
    access.refused("invalid_request", "authz.rejected", "id_token_hint");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn two_tabs_and_back_button_complete_the_flow(#[case] db: Db) {
    let server = Server::start(db).await;
    let (shop, other) = (server.shop().await, server.shop().await);
    let mut alice = server.browser();
    let first = alice.opens(&shop.request(&[])).await;
    let second = alice.opens(&other.request(&[])).await;
    let second = alice.fills_in(&second, "alice", PASSWORD).await;
    assert!(
        alice
            .decides(&second, "allow")
            .await
            .callback("code")
            .is_some()
    );
    let first = alice.fills_in(&first, "alice", PASSWORD).await;
    assert!(
        alice
            .decides(&first, "allow")
            .await
            .callback("code")
            .is_some()
    );
    let authorization = first.hidden("authorization");
    let done = alice
        .get(&format!("/oauth2/authorize?authorization={authorization}"))
        .await;
    assert!(
        done.status == 400 && done.body.contains("already done"),
        "{}",
        done.body
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn cross_site_post_is_stored_and_continues_by_get(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.signed_in("alice").await;
    let cookies = alice.cookies.clone();
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(shop.parameters(&[]))
        .finish();
    let headers = [
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Sec-Fetch-Site", "cross-site"),
    ];
    alice.cookies.clear();
    let stored = alice
        .send("POST", "/oauth2/authorize", &headers, Some(body))
        .await;
    assert_eq!(stored.status, 303);
    assert!(alice.cookies.is_empty(), "no cookie changes");
    alice.cookies = cookies;
    let page = alice.opens(&stored.own_redirect().unwrap()).await;
    assert!(
        page.body.contains("consent-allow"),
        "her session is used again"
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn access_token_has_one_audience_and_its_scopes(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let url = shop.request(&[("scope", "openid orders:read"), ("resource", AUDIENCE)]);
    let code = alice.allows_request(&url).await;
    let wrong = shop
        .redeems_with(&code, &[("resource", "https://other.example")])
        .await;
    wrong.refused("invalid_target", "token.rejected", "resource");
    let code = alice.allows_request(&url).await;
    let tokens = shop
        .redeems_with(&code, &[("resource", AUDIENCE)])
        .await
        .ok();
    assert_eq!(header(tokens.access())["typ"], "at+jwt");
    assert_eq!(tokens.access_claims()["aud"], AUDIENCE);
    let unknown = alice
        .opens(&shop.request(&[("resource", "https://other.example")]))
        .await;
    unknown.refused("invalid_target", "authz.rejected", "resource");
    let foreign = alice
        .opens(&shop.request(&[("scope", "openid admin")]))
        .await;
    foreign.refused("invalid_scope", "authz.rejected", "scope");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn logout_asks_and_revokes_session_grants(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let tokens = shop.redeems(&alice.allows(&shop).await).await.ok();
    let page = alice.get("/oauth2/end_session").await;
    assert!(page.body.contains("logout-confirm") && page.status == 200);
    let out = alice
        .post("/oauth2/end_session", &[("csrf", &page.hidden("csrf"))])
        .await;
    assert!(out.body.contains("You are signed out"));
    assert_eq!(out.header("clear-site-data"), Some("\"cache\",\"storage\""));
    assert_eq!(
        server.count("SELECT count(*) AS n FROM revocations WHERE kind = 'S'"),
        1
    );
    let silent = alice.opens(&shop.request(&[("prompt", "none")])).await;
    silent.refused("login_required", "authz.rejected", "login");

    let code = alice.allows(&shop).await;
    let hint = shop.redeems(&code).await.ok().0["id_token"]
        .as_str()
        .unwrap()
        .to_owned();
    let url = format!(
        "/oauth2/end_session?id_token_hint={hint}&state=s&post_logout_redirect_uri=https://app.example/bye"
    );
    assert_eq!(
        alice.get(&url).await.location(),
        Some("https://app.example/bye?state=s")
    );
    let elsewhere = format!(
        "/oauth2/end_session?id_token_hint={hint}&post_logout_redirect_uri=https://app.example/bye?x"
    );
    assert_eq!(alice.get(&elsewhere).await.location(), None);
    assert!(claims(tokens.access())["sid"].is_string());
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn client_authenticates_only_by_registered_method(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let code = alice.allows(&shop).await;
    let fields = [
        ("grant_type", "authorization_code"),
        ("code", code.as_str()),
        ("redirect_uri", shop.redirect_uri()),
        ("code_verifier", crate::fixtures::VERIFIER),
    ];
    let wrong = basic(shop.id(), "pcl_sec_wrong");
    let refusals = [
        (vec![("Authorization", wrong.as_str())], vec![], "secret"),
        (vec![], vec![], "missing"),
        (vec![], vec![("client_id", shop.id())], "method"),
        (
            vec![],
            vec![("client_id", "unknown"), ("client_secret", "x")],
            "unknown",
        ),
    ];
    for (headers, more, reason) in refusals {
        let answer = shop
            .posts_raw(
                "/oauth2/token",
                &headers,
                &[fields.as_slice(), &more].concat(),
            )
            .await;
        assert_eq!(answer.status, 401);
        assert!(
            answer
                .header("www-authenticate")
                .unwrap()
                .starts_with("Basic")
        );
        answer.refused("invalid_client", "client.auth_failed", reason);
    }
    shop.redeems(&code).await.ok();
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn metadata_lists_what_is_served(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut browser = server.browser();
    let document = browser.get("/.well-known/openid-configuration").await;
    assert_eq!(document.header("access-control-allow-origin"), Some("*"));
    let metadata = document.json();
    assert_eq!(metadata["issuer"], ISSUER);
    assert_eq!(
        metadata["code_challenge_methods_supported"],
        serde_json::json!(["S256"])
    );
    assert_eq!(
        browser
            .get("/.well-known/oauth-authorization-server")
            .await
            .body,
        document.body
    );
    let jwks = browser.get("/oauth2/jwks").await;
    assert_eq!(browser.get("/.well-known/jwks.json").await.body, jwks.body);
    let etag = jwks.header("etag").unwrap().to_owned();
    let unchanged = browser
        .send("GET", "/oauth2/jwks", &[("If-None-Match", &etag)], None)
        .await;
    assert_eq!((unchanged.status, unchanged.body.as_str()), (304, ""));
    let keys = jwks.json()["keys"].as_array().unwrap().clone();
    assert_eq!(
        keys.len(),
        4,
        "a signing key and a next key of each algorithm"
    );
    assert!(keys.iter().all(|key| key.get("d").is_none()));
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn consent_page_stays_valid_after_sign_in_in_another_tab(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let (left, right) = (
        alice.opens(&shop.request(&[])).await,
        alice.opens(&shop.request(&[])).await,
    );
    let left = alice.fills_in(&left, "alice", PASSWORD).await;
    let right = alice.fills_in(&right, "alice", PASSWORD).await;
    assert!(left.body.contains("consent-allow") && right.body.contains("consent-allow"));
    assert!(
        alice
            .decides(&left, "allow")
            .await
            .callback("code")
            .is_some()
    );
}
