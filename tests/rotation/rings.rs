//! An installation that signs only with ES256: nothing announces RS256, and everything else works.

use std::time::Duration;

use portcullis::app::{App, StartError};
use portcullis::config::Config;
use portcullis::key_manager::Act;
use portcullis::keys::{Alg, Ring, Use};
use portcullis::oauth::client::Client;
use portcullis::secret::Entropy;
use portcullis::time::Clock;
use serde_json::Value;

use crate::fixtures::server::{confidential, execute};
use crate::fixtures::{Db, Server, TestClient, apply, on_both_databases};
use crate::nodes::{Node, World};

const DAY: Duration = Duration::from_secs(86_400);

fn only_es256(config: &mut Config) {
    config.keys.algorithms = vec!["ES256".to_owned()];
}

/// Starts a node that never had another ring.
async fn one_ring(db: Db) -> Server {
    Server::with(db, |config| {
        only_es256(config);
        execute(config, "DELETE FROM signing_keys WHERE alg = 'RS256'");
    })
    .await
}

async fn shop(server: &Server) -> TestClient {
    server
        .register(Client {
            id_token_alg: Alg::ES256,
            userinfo_alg: Some(Alg::ES256),
            ..confidential("shop", "https://app.example/cb")
        })
        .await
}

async fn get(server: &Server, path: &str) -> Value {
    serde_json::from_str(&server.browser().get(path).await.body).unwrap()
}

fn alg_of(jwt: &str) -> Value {
    let header = jwt.split('.').next().unwrap();
    let header = portcullis::secret::from_base64url(header).unwrap();
    serde_json::from_slice::<Value>(&header).unwrap()["alg"].clone()
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn single_ring_serves_all_endpoints(#[case] db: Db) {
    let server = one_ring(db).await;
    for path in [
        "/.well-known/openid-configuration",
        "/.well-known/oauth-authorization-server",
    ] {
        let metadata = get(&server, path).await;
        // The algorithms with which clients sign their assertions are another matter.
        let of_server = |name: &str| !name.contains("auth_signing_alg");
        let members = metadata.as_object().unwrap().iter();
        for (name, value) in members.filter(|(name, _)| of_server(name)) {
            assert!(!value.to_string().contains("RS256"), "{name}: {value}");
        }
        let only = serde_json::json!(["ES256"]);
        assert_eq!(metadata["id_token_signing_alg_values_supported"], only);
        assert_eq!(metadata["userinfo_signing_alg_values_supported"], only);
    }
    let key_manager = &server.app.key_manager;
    assert_eq!(
        key_manager.table().rings(),
        [Ring::token(Alg::ES256), Ring::FEED]
    );
    assert!(key_manager.can_sign());
    key_manager.run_maintenance().await.unwrap();
    let published = server.app.keys().published(Use::Token).set.clone();
    assert_eq!(published.keys.len(), 2, "the signer and its next key");
    let es256 = |alg: &Option<String>| alg.as_deref() == Some("ES256");
    assert!(published.keys.iter().all(|key| es256(&key.alg)));

    let shop = shop(&server).await;
    let mut alice = server.browser();
    let code = alice.allows(&shop).await;
    let tokens = shop.redeems(&code).await.ok();
    assert_eq!(alg_of(tokens.access()), "ES256");
    assert_eq!(alg_of(tokens.0["id_token"].as_str().unwrap()), "ES256");
    let answer = alice.asks_userinfo("GET", tokens.access()).await;
    assert_eq!(alg_of(&answer.body), "ES256");
    assert_eq!(shop.refreshes(tokens.refresh(), &[]).await.status, 200);

    // Its keys rotate like all others.
    server.advance(DAY * 91);
    server.app.poll().await.unwrap();
    key_manager.run_maintenance().await.unwrap();
    let code = server.browser().allows(&shop).await;
    let later = shop.redeems(&code).await.ok();
    assert_ne!(
        later.access().split('.').next(),
        tokens.access().split('.').next(),
        "another key"
    );
    let rows = server.count("SELECT count(*) AS n FROM signing_keys WHERE alg <> 'ES256'");
    assert_eq!(rows, 0, "there is no other ring");
    server.remove().await;
}

/// A node is ready only after its next keys are published, at a first start, for a new algorithm, and for a new key
/// set.
#[apply(on_both_databases)]
#[actix_web::test]
async fn next_key_is_published_before_ready(#[case] db: Db) {
    let mut world = World::new(db, |config| {
        only_es256(config);
        // The template of the fixtures has keys.
        execute(config, "DELETE FROM signing_keys");
    })
    .await;
    let published = |node: &Node, use_: Use, alg: &str| {
        let view = node.app.keys();
        let keys = &view.published(use_).set.keys;
        let of_alg = keys.iter().filter(|key| key.alg.as_deref() == Some(alg));
        of_alg.count()
    };
    // No task runs, so only the start creates keys.
    let node = world.node(0).await;
    assert_eq!(published(&node, Use::Token, "ES256"), 2);
    assert_eq!(published(&node, Use::Token, "RS256"), 0);
    assert_eq!(published(&node, Use::Feed, "ES256"), 2);
    drop(node);
    world.config.keys.algorithms = vec!["ES256".to_owned(), "RS256".to_owned()];
    let node = world.node(0).await;
    assert_eq!(published(&node, Use::Token, "ES256"), 2);
    assert_eq!(published(&node, Use::Token, "RS256"), 2);
    let act = Act {
        actor: portcullis::audit::Actor::Operator,
        now: world.now(),
    };
    let ring = Ring::token(Alg::ES256);
    let table = node.app.key_manager.table();
    table.revoke_ring(ring, "leaked", &act).await.unwrap();
    node.app.refresh_key_view().await.unwrap();
    assert_eq!(published(&node, Use::Token, "ES256"), 2);
}

/// The keys of a ring that is omitted later can be revoked by command, and no others are made.
#[actix_web::test]
async fn omitted_ring_can_be_revoked() {
    for db in [Db::Sqlite, Db::Postgres] {
        let server = Server::with(db, only_es256).await;
        let rsa = Ring::token(Alg::RS256);
        let shows = || {
            let view = server.app.keys();
            let set = &view.published(Use::Token).set;
            set.keys
                .iter()
                .any(|key| key.alg.as_deref() == Some("RS256"))
        };
        assert!(shows(), "what it signed must verify for a while");
        let now = server.clock.now();
        let act = Act {
            actor: portcullis::audit::Actor::Operator,
            now,
        };
        let table = server.app.key_manager.table();
        let before = server.count("SELECT count(*) AS n FROM signing_keys");
        let write = table.revoke_ring(rsa, "left out", &act).await.unwrap();
        assert_eq!((write.changes().count(), write.inserts().len()), (2, 0));
        let again = table.revoke_ring(rsa, "left out", &act).await.unwrap();
        assert!(again.is_empty());
        server.app.poll().await.unwrap();
        server.app.key_manager.run_maintenance().await.unwrap();
        assert!(!shows());
        let after = server.count("SELECT count(*) AS n FROM signing_keys");
        assert_eq!(before, after, "no key is made");
        server.remove().await;
    }
}

/// Verifiers accept a key set of at most 16 KiB, so no key is imported beyond that.
#[actix_web::test]
async fn published_key_set_stays_small() {
    use p256::pkcs8::EncodePrivateKey;
    let server = Server::start(Db::Sqlite).await;
    let table = server.app.key_manager.table();
    let now = server.clock.now();
    let act = Act {
        actor: portcullis::audit::Actor::Operator,
        now,
    };
    let mut imported = 0;
    let refused = loop {
        let key = p256::SecretKey::random(&mut Entropy::seeded(9_000 + imported));
        let pem = key.to_pkcs8_pem(p256::pkcs8::LineEnding::LF).unwrap();
        match table.import(&pem, &act).await {
            Ok(_) => imported += 1,
            Err(refused) => break refused,
        }
        assert!(imported < 200, "an import is rejected at last");
    };
    assert!(refused.to_string().contains("16 KiB"), "{refused}");
    assert!(imported > 40, "{imported}");
    server.app.poll().await.unwrap();
    let jwks = server.browser().get("/oauth2/jwks").await.body;
    assert!(jwks.len() <= 16 * 1_024, "{}", jwks.len());
    server.remove().await;
}

/// Tokens of a registered client could not be signed, so the start fails instead of the next sign-in.
#[actix_web::test]
async fn required_algorithm_cannot_be_omitted() {
    for db in [Db::Sqlite, Db::Postgres] {
        for needs in ["client", "userinfo", "resource"] {
            let server = Server::start(db).await;
            let shop = shop(&server).await;
            let statement = match needs {
                "client" => "UPDATE clients SET id_token_alg = 'RS256'",
                "userinfo" => "UPDATE clients SET userinfo_alg = 'RS256'",
                _ => "UPDATE resources SET alg = 'RS256'",
            };
            server.execute(statement);
            let mut config = server.config.clone();
            only_es256(&mut config);
            let (clock, entropy) = (server.clock.clone(), Entropy::seeded(4));
            let who = match needs {
                "resource" => "https://api.example",
                _ => shop.id(),
            };
            // A SQLite database belongs to one node.
            server.stop().await;
            let refused = starts(&config, &clock, &entropy).await.err().unwrap();
            assert!(
                matches!(&refused, StartError::Configuration(why)
                    if why.contains("keys.algorithms") && why.contains(who)),
                "{refused}"
            );
            execute(
                &config,
                "UPDATE clients SET id_token_alg = 'ES256', userinfo_alg = NULL",
            );
            execute(&config, "UPDATE resources SET alg = 'ES256'");
            assert!(starts(&config, &clock, &entropy).await.is_ok());
        }
    }
}

/// Starts a node once the previous one has closed its database. The threads of a stopped node close a SQLite
/// database a little later.
async fn starts(config: &Config, clock: &Clock, entropy: &Entropy) -> Result<App, StartError> {
    let begun = std::time::Instant::now();
    while portcullis::db::Claim::on(&config.database_url()).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(5), "still claimed");
        tokio::task::yield_now().await;
    }
    App::start(config.clone(), clock.clone(), entropy.clone()).await
}
