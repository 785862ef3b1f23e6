//! A soak test over HTTP: sign-ins, refreshes and verifications in a loop, over three forced rotations and
//! one emergency revocation. Only requests whose token was revoked fail.

use std::time::Duration;

use portcullis::key_manager::Act;
use portcullis::keys::{Alg, Ring};
use portcullis_verifier::{JwkSet, Need, Rejected, Verifier};

use crate::fixtures::client::header;
use crate::fixtures::server::AUDIENCE;
use crate::fixtures::{Browser, Db, ISSUER, Server, TestClient, Tokens, apply, on_both_databases};

const ES256: Ring = Ring::token(Alg::ES256);

/// An API with its own copy of the keys, which it fetches again when a token has an unknown `kid`.
struct Api {
    verifier: Verifier,
    fetches: usize,
}

impl Api {
    async fn new(server: &Server) -> Self {
        let verifier = Verifier::builder(ISSUER, AUDIENCE);
        let verifier = verifier.keys(fetch(server).await).build().unwrap();
        Self {
            verifier,
            fetches: 0,
        }
    }

    async fn verdict(&mut self, server: &Server, token: &str) -> Result<(), Rejected> {
        let (need, now) = (Need::any(), server.clock.now().secs());
        let mut verdict = self.verifier.verify_at(token, &need, now);
        if matches!(verdict, Err(Rejected::UnknownKey)) {
            self.fetches += 1;
            self.verifier.replace_keys(&fetch(server).await).unwrap();
            verdict = self.verifier.verify_at(token, &need, now);
        }
        verdict.map(drop)
    }
}

async fn fetch(server: &Server) -> JwkSet {
    let answer = server.browser().get("/oauth2/jwks").await;
    assert_eq!(answer.status, 200);
    serde_json::from_str(&answer.body).unwrap()
}

/// A user: each round gets a new code, exchanges it, refreshes, and requests UserInfo.
struct Soak {
    nodes: Vec<Server>,
    shop: TestClient,
    alice: Browser,
    api: Api,
    requests: usize,
}

impl Soak {
    async fn round(&mut self, n: usize) -> Tokens {
        let node = &self.nodes[n % self.nodes.len()];
        let other = &self.nodes[(n + 1) % self.nodes.len()];
        let (shop, mut alice) = (self.shop.at(&node.base), self.alice.at(&node.base));
        // A token for the API and one for UserInfo in turn.
        let url = shop.request(&[]);
        let answer = alice.get(&url).await;
        let code = answer.callback("code").expect("alice allowed it before");
        let tokens = shop.at(&other.base).redeems(&code).await.ok();
        assert_eq!(
            self.api.verdict(node, tokens.access()).await,
            Ok(()),
            "round {n}"
        );
        let next = shop
            .posts(
                "/oauth2/token",
                &[
                    ("grant_type", "refresh_token"),
                    ("refresh_token", tokens.0["refresh_token"].as_str().unwrap()),
                ],
            )
            .await
            .ok();
        assert_eq!(
            self.api.verdict(other, next.access()).await,
            Ok(()),
            "round {n}"
        );
        self.requests += 3;
        next
    }

    async fn all_follow(&self) {
        for node in &self.nodes {
            node.app.poll().await.unwrap();
        }
    }
}

async fn soak(server: Server) {
    let shop = server.shop().await;
    let mut alice = server.browser();
    alice.signs_in(&shop, "alice").await;
    let api = Api::new(&server).await;
    let mut nodes = vec![server];
    if nodes[0].db == Db::Postgres {
        for _ in 0..2 {
            nodes.push(nodes[0].node().await);
        }
    }
    let mut soak = Soak {
        nodes,
        shop,
        alice,
        api,
        requests: 0,
    };
    let table = soak.nodes[0].app.key_manager.table().clone();
    let mut signers = Vec::new();
    let mut n = 0;
    for forced in 0..4 {
        let mut last = None;
        for _ in 0..5 {
            last = Some(soak.round(n).await);
            n += 1;
            soak.nodes[0].advance(Duration::from_secs(10));
        }
        let kid = header(last.unwrap().access())["kid"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(!signers.contains(&kid), "rotation {forced} did not happen");
        signers.push(kid);
        if forced < 3 {
            let now = soak.nodes[0].clock.now();
            table
                .rotate(
                    ES256,
                    portcullis::key_manager::Rotation::Immediate,
                    &Act {
                        actor: portcullis::audit::Actor::Operator,
                        now,
                    },
                )
                .await
                .unwrap();
            soak.nodes[0]
                .app
                .key_manager
                .run_maintenance()
                .await
                .unwrap();
        }
    }
    // The emergency revocation.
    let doomed = soak.round(n).await;
    let kid = header(doomed.access())["kid"].as_str().unwrap().to_owned();
    let now = soak.nodes[0].clock.now();
    table
        .revoke(
            &kid,
            "found in a backup",
            &Act {
                actor: portcullis::audit::Actor::Operator,
                now,
            },
        )
        .await
        .unwrap();
    soak.all_follow().await;
    for node in &soak.nodes {
        let verdict = node
            .app
            .verifier()
            .verify_at(doomed.access(), &Need::any(), now.secs());
        assert!(verdict.is_err(), "no node accepts it after the answer");
    }
    soak.api
        .verifier
        .replace_keys(&fetch(&soak.nodes[0]).await)
        .unwrap();
    assert_eq!(
        soak.api.verdict(&soak.nodes[0], doomed.access()).await,
        Err(Rejected::UnknownKey)
    );
    let reborn = soak
        .shop
        .posts(
            "/oauth2/token",
            &[
                ("grant_type", "refresh_token"),
                ("refresh_token", doomed.0["refresh_token"].as_str().unwrap()),
            ],
        )
        .await
        .ok();
    assert_eq!(
        soak.api.verdict(&soak.nodes[0], reborn.access()).await,
        Ok(()),
        "grants stay active"
    );
    for _ in 0..5 {
        let tokens = soak.round(n).await;
        assert_ne!(header(tokens.access())["kid"], kid.as_str());
        n += 1;
    }
    println!(
        "{} requests, {} fetches of keys, {} signers",
        soak.requests,
        soak.api.fetches,
        signers.len() + 1
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn rotations_and_emergency_revocation_fail_no_request(#[case] db: Db) {
    let server = Server::start(db).await;
    soak(server).await;
}
