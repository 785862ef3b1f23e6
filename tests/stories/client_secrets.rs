//! Several secrets of one client are valid at the same time, each with its own expiry.

use std::time::Duration;

use portcullis::audit::{Actor, RevocationReason};
use portcullis::oauth::client::ClientSecret;
use portcullis::secret::Secret;

use crate::fixtures::client::basic;
use crate::fixtures::{Answer, Db, Server, TestClient, apply, on_both_databases};

impl Server {
    async fn adds_secret(&self, shop: &TestClient, label: &str) -> (Secret, ClientSecret) {
        let (entropy, now) = (&self.app.entropy, self.clock.now());
        let secret = Secret::client_secret(entropy);
        let kept = ClientSecret::keep(&secret, label, entropy, now);
        let (id, stored) = (shop.client.id.clone(), kept.clone());
        self.write(move |tx| tx.put_client_secret(&id, &stored))
            .await;
        (secret, kept)
    }
}

impl TestClient {
    async fn proves(&self, secret: &Secret) -> Answer {
        let header = basic(self.id(), secret.expose());
        let fields = [("token", "nonsense")];
        self.posts_raw("/oauth2/revoke", &[("Authorization", &header)], &fields)
            .await
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn both_client_secrets_work_during_the_overlap(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let old = shop.secret.clone().unwrap();
    let (new, kept) = server.adds_secret(&shop, "rotated").await;
    let (id, end) = (
        shop.client.id.clone(),
        server.clock.now() + Duration::from_secs(60),
    );
    let ended = server
        .write(move |tx| tx.expire_client_secrets(&id, &kept.id, end))
        .await;
    assert_eq!(ended, 1);
    assert_eq!(
        (
            shop.proves(&old).await.status,
            shop.proves(&new).await.status
        ),
        (200, 200)
    );
    server.advance(Duration::from_secs(59));
    assert_eq!(shop.proves(&old).await.status, 200);
    server.advance(Duration::from_secs(1));
    shop.proves(&old)
        .await
        .refused("invalid_client", "client.auth_failed", "secret");
    assert_eq!(shop.proves(&new).await.status, 200);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn new_client_secret_works_at_once_on_every_node(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let old = shop.secret.clone().unwrap();
    // The client is cached from here on, and this node is not notified of the new secret.
    assert_eq!(shop.proves(&old).await.status, 200);
    let (entropy, now) = (server.app.entropy.clone(), server.clock.now());
    let secret = Secret::client_secret(&entropy);
    let (id, kept) = (
        shop.client.id.clone(),
        ClientSecret::keep(&secret, "new", &entropy, now),
    );
    server
        .app
        .store
        .transaction(move |tx| tx.put_client_secret(&id, &kept))
        .await
        .unwrap();
    assert_eq!(
        shop.proves(&secret).await.status,
        200,
        "what is remembered never turns a client away"
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn last_use_of_client_secret_is_recorded(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let (second, _) = server.adds_secret(&shop, "second").await;
    assert_eq!(shop.proves(&second).await.status, 200);
    let id = shop.client.id.clone();
    // The use is recorded in the background, by a transaction that this one waits for.
    let mut used = (None, None);
    for _ in 0..1_000 {
        let id = id.clone();
        let client = server
            .write(move |tx| tx.find_registered(&id))
            .await
            .unwrap();
        let of = |label: &str| {
            client
                .secrets
                .iter()
                .find(|s| s.label == label)
                .unwrap()
                .last_used_at
        };
        used = (of("first"), of("second"));
        if used.1.is_some() {
            break;
        }
    }
    assert_eq!(used, (None, Some(server.clock.now())));
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn compromised_client_secret_revokes_all_grants(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let tokens = shop
        .redeems(&server.browser().allows(&shop).await)
        .await
        .ok();
    let (new, kept) = server.adds_secret(&shop, "after the theft").await;
    let (id, now) = (shop.client.id.clone(), server.clock.now());
    server
        .write(move |tx| {
            tx.expire_client_secrets(&id, &kept.id, now)?;
            tx.revoke_all_for_client(
                &id,
                &RevocationReason::SecretCompromised,
                &Actor::Operator,
                now,
            )
        })
        .await;
    let thief = shop.refreshes(tokens.refresh(), &[]).await;
    thief.refused("invalid_client", "client.auth_failed", "secret");
    let mut shop = shop;
    shop.secret = Some(new);
    let late = shop.refreshes(tokens.refresh(), &[]).await;
    late.refused("invalid_grant", "token.rejected", "grant_ended");
    assert_eq!(
        server
            .browser()
            .asks_userinfo("GET", tokens.access())
            .await
            .status,
        401
    );
    assert_eq!(
        server.count("SELECT count(*) AS n FROM revocations WHERE kind = 'C' AND floor = 2"),
        1
    );
    shop.redeems(&server.browser().allows(&shop).await)
        .await
        .ok();
}
