//! Token introspection: which tokens a resource server or client may introspect, and what it learns about
//! them.

use portcullis::audit::{Actor, RevocationReason};
use portcullis::id::{ClientId, UserId};
use portcullis::oauth::resource::Resource;
use serde_json::{Value, json};

use crate::fixtures::TestClient;
use crate::fixtures::server::{AUDIENCE, confidential};
use crate::fixtures::{Db, Server, apply, on_both_databases};

impl TestClient {
    async fn finds(&self, token: &str) -> Value {
        let answer = self.introspects(token).await;
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }
}

const INACTIVE: &str = r#"{"active":false}"#;

#[apply(on_both_databases)]
#[actix_web::test]
async fn resource_server_introspects_only_its_own_tokens(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let api = server.resource_server("api", AUDIENCE).await;
    let other = server
        .resource_server("other-api", "https://other.example")
        .await;
    let scope = ("scope", "openid orders:read");
    let tokens = shop
        .redeems(
            &server
                .browser()
                .allows_request(&shop.request(&[scope]))
                .await,
        )
        .await
        .ok();
    let response = api.finds(tokens.access()).await;
    let mut claims = tokens.access_claims();
    claims["active"] = true.into();
    claims["token_type"] = "Bearer".into();
    assert_eq!(response, claims, "the claims of the token are unchanged");

    for (who, token) in [
        (&other, tokens.access()),
        (&api, tokens.refresh()),
        (&api, tokens.0["id_token"].as_str().unwrap()),
        (&api, "nonsense"),
        (&api, &tokens.access()[..tokens.access().len() - 9]),
    ] {
        assert_eq!(who.introspects(token).await.body, INACTIVE);
    }
    shop.introspects(tokens.access()).await.refused(
        "unauthorized_client",
        "introspection.denied",
        "no_resource_server",
    );
    api.posts("/oauth2/introspect", &[]).await.refused(
        "invalid_request",
        "token.rejected",
        "token",
    );
    let unproven = api
        .posts_raw(
            "/oauth2/introspect",
            &[],
            &[("token", tokens.access()), ("client_id", "api")],
        )
        .await;
    unproven.refused("invalid_client", "client.auth_failed", "method");
    assert_eq!(
        server
            .browser()
            .get("/oauth2/introspect?token=x")
            .await
            .status,
        405
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn userinfo_token_is_inactive_for_resource_servers(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut client = confidential("plain", "https://plain.example/cb");
    client.resources.clear();
    let plain = server.register(client).await;
    let api = server.resource_server("api", AUDIENCE).await;
    let tokens = plain
        .redeems(&server.browser().allows(&plain).await)
        .await
        .ok();
    assert_eq!(tokens.access_claims()["aud"], crate::fixtures::ISSUER);
    assert_eq!(api.introspects(tokens.access()).await.body, INACTIVE);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn client_introspects_its_own_refresh_token(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut client = confidential("both", "https://both.example/cb");
    client.serves = vec![AUDIENCE.to_owned()];
    let both = server.register(client).await;
    let first = both
        .redeems(&server.browser().allows(&both).await)
        .await
        .ok();
    let response = both.finds(first.refresh()).await;
    assert_eq!(
        (&response["active"], &response["client_id"]),
        (&json!(true), &json!("both"))
    );
    assert_eq!(response["sub"], first.id_claims()["sub"]);
    let second = both.refreshes(first.refresh(), &[]).await.ok();
    assert_eq!(both.introspects(first.refresh()).await.body, INACTIVE);
    both.revokes(second.refresh()).await;
    assert_eq!(both.introspects(second.refresh()).await.body, INACTIVE);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn introspection_reflects_revocations_at_once(#[case] db: Db) {
    let server = Server::start(db).await;
    let api = server.resource_server("api", AUDIENCE).await;
    let now = server.clock.now();
    for how in ["revoked", "grant", "session", "user", "client", "epoch"] {
        let shop = server.shop().await;
        let tokens = shop
            .redeems(&server.browser().allows(&shop).await)
            .await
            .ok();
        assert_eq!(api.finds(tokens.access()).await["active"], true, "{how}");
        let claims = tokens.access_claims();
        let text = |name: &str| claims[name].as_str().unwrap().to_owned();
        let (sid, user, client) = (
            text("sid"),
            UserId::from(text("sub")),
            ClientId::from(text("client_id")),
        );
        match how {
            "revoked" => drop(shop.revokes(tokens.access()).await),
            "grant" => drop(shop.revokes(tokens.refresh()).await),
            "session" => assert!(
                server
                    .write(move |tx| tx.revoke_session(
                        &sid.into(),
                        &RevocationReason::Revoked,
                        &Actor::Operator,
                        now
                    ))
                    .await
            ),
            "user" => {
                server
                    .write(move |tx| {
                        tx.revoke_all_for_user(
                            &user,
                            &RevocationReason::Revoked,
                            &Actor::Operator,
                            now,
                        )
                    })
                    .await
            }
            "client" => assert!(
                server
                    .write(move |tx| tx.revoke_all_for_client(
                        &client,
                        &RevocationReason::Revoked,
                        &Actor::Operator,
                        now
                    ))
                    .await
            ),
            _ => server.execute("UPDATE feed_head SET epoch = epoch + 1"),
        }
        assert_eq!(
            api.introspects(tokens.access()).await.body,
            INACTIVE,
            "{how}"
        );
        let asked = server.browser().asks_userinfo("GET", tokens.access()).await;
        asked.refused("invalid_token", "bearer.rejected", "revoked");
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn userinfo_is_signed_when_registered(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut client = confidential("signed", "https://signed.example/cb");
    client.userinfo_alg = Some(portcullis::keys::Alg::ES256);
    let signed = server.register(client).await;
    let tokens = signed
        .redeems(&server.browser().allows(&signed).await)
        .await
        .ok();
    let answer = server.browser().asks_userinfo("GET", tokens.access()).await;
    assert_eq!(answer.header("content-type"), Some("application/jwt"));
    let response = server
        .app
        .keys()
        .verify(&answer.body, "JWT")
        .expect("signed by a published key");
    let expected = json!({ "iss": crate::fixtures::ISSUER, "aud": "signed", "sub": tokens.id_claims()["sub"] });
    assert_eq!(Value::Object(response), expected);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn client_token_is_inactive_after_client_deletion(#[case] db: Db) {
    let server = Server::start(db).await;
    let robot = server.resource_server("robot", AUDIENCE).await;
    let grant = ("grant_type", "client_credentials");
    let tokens = robot.posts("/oauth2/token", &[grant]).await.ok();
    assert_eq!(robot.finds(tokens.access()).await["active"], true);
    let now = server.clock.now();
    server
        .write(move |tx| {
            tx.revoke_all_for_client(
                &"robot".into(),
                &RevocationReason::Revoked,
                &Actor::Operator,
                now,
            )
        })
        .await;
    assert_eq!(robot.introspects(tokens.access()).await.body, INACTIVE);
    let fresh = robot.posts("/oauth2/token", &[grant]).await.ok();
    assert_eq!(fresh.access_claims()["rev"], "1.2");
    assert_eq!(
        robot.finds(fresh.access()).await["active"],
        true,
        "a grant that begins after the revocation is active"
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn deleted_resource_leaves_other_tokens_active(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let tokens = shop
        .redeems(&server.browser().allows(&shop).await)
        .await
        .ok();
    let now = server.clock.now();
    let more = Resource {
        max_age: portcullis_verifier::MaxAge::STANDARD,
        id: "second".to_owned(),
        audience: "https://second.example".to_owned(),
        name: "Second".to_owned(),
        scopes: portcullis::oauth::request::scope::Scope::parse("second:read").unwrap(),
        access_ttl: None,
        alg: portcullis::keys::Alg::ES256,
        created_at: now,
    };
    server.write(move |tx| tx.put_resource(&more)).await;
    server
        .alter(&shop.client.id, |client| {
            client.resources = vec!["https://second.example".to_owned()]
        })
        .await;
    let refused = shop.refreshes(tokens.refresh(), &[]).await;
    refused.refused("invalid_target", "token.rejected", "resource");
    server
        .alter(&shop.client.id, |client| {
            client.resources = vec![AUDIENCE.to_owned()]
        })
        .await;
    shop.refreshes(tokens.refresh(), &[]).await.ok();
}
