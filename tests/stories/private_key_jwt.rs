//! Clients that authenticate with a key of their own: RFC 7523, OpenID Connect Core §9.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use portcullis::id::ClientId;
use portcullis::keys::client_key_set::ClientKeySet;
use portcullis::oauth::client::{AssertionAudience, AuthMethod, GrantType};
use serde_json::{Value, json};

use crate::fixtures::client_key::{ASSERTION_TYPE, ClientKey, key_set};
use crate::fixtures::installation::{Installation, refused};
use crate::fixtures::server::{confidential, sweep};
use crate::fixtures::{Answer, Db, ISSUER, Server, TestClient, apply, on_both_databases};

const TOKEN: &str = "/oauth2/token";

/// Registers a machine client with this key.
async fn machine(server: &Server, key_set: ClientKeySet) -> TestClient {
    let mut client = confidential("", "https://job.example/cb");
    client.id = ClientId::new(&server.app.entropy, server.clock.now());
    client.auth_method = AuthMethod::PrivateKeyJwt;
    client.grant_types = vec![GrantType::AuthorizationCode, GrantType::ClientCredentials];
    client.jwks = Some(Arc::new(key_set));
    server.register(client).await
}

/// Claims of a valid assertion with a new `jti`.
fn claims(server: &Server, client: &TestClient) -> Value {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let now = server.clock.now().secs();
    let jti = format!("jti-{}", COUNT.fetch_add(1, Ordering::SeqCst));
    json!({ "iss": client.id(), "sub": client.id(), "aud": ISSUER, "iat": now, "exp": now + 60, "jti": jti })
}

/// Posts a form with an assertion.
async fn posts(
    client: &TestClient,
    path: &str,
    assertion: &str,
    fields: &[(&str, &str)],
) -> Answer {
    let mut fields = fields.to_vec();
    fields.extend([
        ("client_assertion_type", ASSERTION_TYPE),
        ("client_assertion", assertion),
    ]);
    client.posts_raw(path, &[], &fields).await
}

async fn gets_token(client: &TestClient, assertion: &str) -> Answer {
    posts(
        client,
        TOKEN,
        assertion,
        &[("grant_type", "client_credentials")],
    )
    .await
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn assertion_of_each_algorithm_is_accepted_once(#[case] db: Db) {
    let server = Server::start(db).await;
    for alg in ["ES256", "RS256", "PS256", "EdDSA"] {
        let key = ClientKey::new(alg, "one");
        let job = machine(&server, key.key_set()).await;
        let assertion = key.assertion(&claims(&server, &job));
        let first = gets_token(&job, &assertion).await;
        assert_eq!(first.status, 200, "{alg}: {}", first.body);
        let again = gets_token(&job, &assertion).await;
        assert_eq!(again.status, 401, "{alg}");
        again.refused("invalid_client", "client.auth_failed", "replay");
        let next = gets_token(&job, &key.assertion(&claims(&server, &job))).await;
        assert_eq!(next.status, 200, "{alg}: {}", next.body);
    }
    // Used assertions are removed when they have expired.
    let rows = || server.count("SELECT count(*) AS n FROM used_assertions");
    assert_eq!(rows(), 8);
    let now = server.clock.now();
    server
        .write(move |tx| sweep(tx, now + Duration::from_secs(150)))
        .await;
    assert_eq!(rows(), 8, "a node with a slow clock may still accept them");
    server
        .write(move |tx| sweep(tx, now + Duration::from_secs(151)))
        .await;
    assert_eq!(rows(), 0);
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn assertion_authenticates_at_every_endpoint_of_clients(#[case] db: Db) {
    let server = Server::start(db).await;
    let key = ClientKey::new("ES256", "one");
    let job = machine(&server, key.key_set()).await;
    let assertion = || key.assertion(&claims(&server, &job));
    let mut alice = server.browser();
    let code = alice.allows(&job).await;
    let tokens = posts(
        &job,
        TOKEN,
        &assertion(),
        &[
            ("grant_type", "authorization_code"),
            ("code", &code),
            ("redirect_uri", job.redirect_uri()),
            ("code_verifier", crate::fixtures::VERIFIER),
            ("client_id", job.id()),
        ],
    )
    .await
    .ok();
    let revoked = posts(
        &job,
        "/oauth2/revoke",
        &assertion(),
        &[("token", tokens.access())],
    )
    .await;
    assert_eq!(revoked.status, 200, "{}", revoked.body);
    let id = ClientId::from(job.id());
    server
        .alter(&id, |client| client.serves = client.resources.clone())
        .await;
    let introspected = posts(
        &job,
        "/oauth2/introspect",
        &assertion(),
        &[("token", tokens.access())],
    )
    .await;
    assert_eq!(introspected.status, 200, "{}", introspected.body);
    assert_eq!(introspected.json(), json!({ "active": false }));
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn audience_is_the_issuer_or_by_setting_the_token_endpoint(#[case] db: Db) {
    let server = Server::start(db).await;
    let key = ClientKey::new("RS256", "one");
    let job = machine(&server, key.key_set()).await;
    let at_token_endpoint = || {
        let mut claims = claims(&server, &job);
        claims["aud"] = json!(format!("{ISSUER}{TOKEN}"));
        key.assertion(&claims)
    };
    let answer = gets_token(&job, &at_token_endpoint()).await;
    answer.refused("invalid_client", "client.auth_failed", "aud");
    let id = ClientId::from(job.id());
    server
        .alter(&id, |client| {
            client.assertion_audience = AssertionAudience::IssuerOrTokenEndpoint;
        })
        .await;
    for assertion in [at_token_endpoint(), key.assertion(&claims(&server, &job))] {
        let answer = gets_token(&job, &assertion).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn key_is_replaced_by_a_set_with_both_and_then_without_the_old_one(#[case] db: Db) {
    let server = Server::start(db).await;
    let (old, new) = (
        ClientKey::new("ES256", "old"),
        ClientKey::new("ES256", "new"),
    );
    let job = machine(&server, old.key_set()).await;
    let id = ClientId::from(job.id());
    let status = async |key: &ClientKey| {
        let assertion = key.assertion(&claims(&server, &job));
        gets_token(&job, &assertion).await.status
    };
    assert_eq!((status(&old).await, status(&new).await), (200, 401));
    let both = Arc::new(key_set(&[&old, &new]));
    server
        .alter(&id, move |client| client.jwks = Some(both))
        .await;
    assert_eq!((status(&old).await, status(&new).await), (200, 200));
    let only_new = Arc::new(new.key_set());
    server
        .alter(&id, move |client| client.jwks = Some(only_new))
        .await;
    assert_eq!((status(&old).await, status(&new).await), (401, 200));
    server.remove().await;
}

#[actix_web::test]
async fn one_of_many_nodes_accepts_an_assertion() {
    let server = Server::start(Db::Postgres).await;
    let nodes = [server.node().await, server.node().await];
    let key = ClientKey::new("ES256", "one");
    let job = machine(&server, key.key_set()).await;
    for _ in 0..5 {
        let assertion = key.assertion(&claims(&server, &job));
        let at = [job.clone(), job.at(&nodes[0].base), job.at(&nodes[1].base)];
        let (one, two, three) = tokio::join!(
            gets_token(&at[0], &assertion),
            gets_token(&at[1], &assertion),
            gets_token(&at[2], &assertion)
        );
        let mut statuses = [one.status, two.status, three.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 401, 401]);
    }
    for node in nodes {
        node.stop().await;
    }
    server.remove().await;
}

#[apply(on_both_databases)]
#[test]
fn client_with_a_key_is_registered_by_command_and_has_no_secret(#[case] db: Db) {
    let installation = Installation::on(db);
    let key = ClientKey::new("ES256", "one");
    installation.write("keys.json", key.key_set().as_str());
    let path = installation.folder.join("keys.json");
    let create = |more: &[&str]| {
        let base = [
            "client",
            "create",
            "--name",
            "Job",
            "--grant-type",
            "client_credentials",
            "--scope",
            "",
            "--auth-method",
            "private_key_jwt",
        ];
        installation.run(&[&base[..], more].concat(), &[])
    };
    let without = create(&[]);
    refused(
        &without,
        2,
        "private_key_jwt needs the public keys of the client",
    );
    let created = create(&["--jwks", path.to_str().unwrap(), "--format", "json"]);
    assert!(created.status.success(), "{created:?}");
    let shown: Value = serde_json::from_slice(&created.stdout).unwrap();
    assert!(shown["client_secret"].is_null(), "{shown}");
    assert_eq!(shown["token_endpoint_auth_method"], "private_key_jwt");
    assert_eq!(shown["jwks"]["keys"][0]["kid"], "one");
    let id = shown["client_id"].as_str().unwrap();
    let rotated = installation.run(&["client", "rotate-secret", id], &[]);
    assert!(!rotated.status.success());
    installation.write("private.json", r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#);
    let path = installation.folder.join("private.json");
    let private = create(&["--jwks", path.to_str().unwrap()]);
    refused(&private, 2, "contains a private or symmetric key");
}
