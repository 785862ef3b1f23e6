//! Measures issuing, verification, JWKS and the token endpoint, each beside its baseline, so that the
//! ratios are valid on a noisy machine. `cargo bench --bench token`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/fixtures/mod.rs"]
mod fixtures;

use std::time::{Duration, Instant};

use actix_web::rt::System;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use criterion::{Criterion, criterion_group, criterion_main};
use fixtures::{Db, Server};
use p256::pkcs8::EncodePrivateKey;
use portcullis::keys::{Alg, Use};
use portcullis_verifier::Need;
use rsa::pkcs1::EncodeRsaPrivateKey;

/// A code exchange signs one ES256 access token and one RS256 ID token.
fn signatures(criterion: &mut Criterion) {
    let server = System::new().block_on(Server::start(Db::Sqlite));
    let keys = server.app.keys();
    let claims = serde_json::json!({
        "iss": fixtures::ISSUER, "sub": "01a20013-9e82-7ad2-98c8-42a1eb0b038a", "aud": "https://api.example",
        "client_id": "01a20013-9e82-7ad2-98c8-42a1eb0b038b", "scope": "openid orders:read", "iat": 1_800_000_000,
        "exp": 1_800_000_300, "jti": "01a20013-9e82-7ad2-98c8-42a1eb0b038c", "rev": "1.1.1",
    });
    let message = keys.sign(Alg::ES256, "at+jwt", &claims).unwrap();
    let message = message.rsplit_once('.').unwrap().0.as_bytes();
    let random = SystemRandom::new();

    let mut group = criterion.benchmark_group("sign");
    let secret = p256::SecretKey::random(&mut portcullis::secret::Entropy::seeded(1));
    let ec = EcdsaKeyPair::from_pkcs8(
        &ECDSA_P256_SHA256_FIXED_SIGNING,
        secret.to_pkcs8_der().unwrap().as_bytes(),
    )
    .unwrap();
    group.bench_function("es256_raw", |b| {
        b.iter(|| ec.sign(&random, message).unwrap())
    });
    group.bench_function("es256_mint", |b| {
        b.iter(|| keys.sign(Alg::ES256, "at+jwt", &claims).unwrap())
    });
    let secret =
        rsa::RsaPrivateKey::new(&mut portcullis::secret::Entropy::seeded(1), 2048).unwrap();
    let rsa = RsaKeyPair::from_der(secret.to_pkcs1_der().unwrap().as_bytes()).unwrap();
    let mut signature = vec![
        0;
        rsa.public_key()
            .modulus()
            .big_endian_without_leading_zero()
            .len()
    ];
    group.bench_function("rs256_raw", |b| {
        b.iter(|| {
            rsa.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                .unwrap()
        })
    });
    group.bench_function("rs256_mint", |b| {
        b.iter(|| keys.sign(Alg::RS256, "JWT", &claims).unwrap())
    });
    group.finish();

    let mut group = criterion.benchmark_group("verify");
    let public = aws_lc_rs::signature::ParsedPublicKey::new(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED,
        ec.public_key().as_ref(),
    )
    .unwrap();
    let signed = ec.sign(&random, message).unwrap();
    group.bench_function("es256_raw", |b| {
        b.iter(|| public.verify_sig(message, signed.as_ref()).unwrap())
    });
    let (api, token) = (
        server.api(),
        keys.sign(Alg::ES256, "at+jwt", &claims).unwrap(),
    );
    group.bench_function("es256_verifier", |b| {
        b.iter(|| api.verify_at(&token, &Need::any(), 1_800_000_001).unwrap())
    });
    group.finish();
}

/// Compares the JWKS handler with a bare actix response of the same size.
fn jwks(criterion: &mut Criterion) {
    let system = System::new();
    let server = system.block_on(Server::start(Db::Sqlite));
    let bytes = server.app.keys().published(Use::Token).bytes.clone();
    let bare = system.block_on(async move {
        let server = actix_web::HttpServer::new(move || {
            let bytes = bytes.clone();
            actix_web::App::new().route(
                "/",
                actix_web::web::get().to(move || {
                    let bytes = bytes.clone();
                    async move {
                        actix_web::HttpResponse::Ok()
                            .content_type("application/json")
                            .body(bytes)
                    }
                }),
            )
        })
        .workers(1)
        .bind("127.0.0.1:0")
        .unwrap();
        let url = format!("http://{}/", server.addrs()[0]);
        actix_web::rt::spawn(server.run());
        url
    });
    let http = reqwest::Client::new();
    let mut group = criterion.benchmark_group("jwks");
    for (name, url) in [
        ("bare_actix", bare),
        ("handler", format!("{}/oauth2/jwks", server.base)),
    ] {
        group.bench_function(name, |b| {
            b.iter_custom(|rounds| {
                system.block_on(async {
                    let start = Instant::now();
                    for _ in 0..rounds {
                        let answer = http
                            .get(&url)
                            .header("Host", "op.example")
                            .send()
                            .await
                            .unwrap();
                        answer.bytes().await.unwrap();
                    }
                    start.elapsed()
                })
            });
        });
    }
    group.finish();
}

/// Starts a server that only counts requests above the limits, because one client at one address sends all
/// of them.
async fn unhurried(db: Db) -> Server {
    Server::with(db, |config| {
        config.limits.mode = portcullis::config::Mode::Count
    })
    .await
}

/// Measures the latency of the token endpoint, one code at a time. Codes are created outside the measured
/// time.
fn token_endpoint(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("token_endpoint");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(8));
    for db in [Db::Sqlite, Db::Postgres] {
        let system = System::new();
        let (shop, mut alice, _server) = system.block_on(async {
            let server = unhurried(db).await;
            let shop = server.shop().await;
            let mut alice = server.browser();
            alice.signs_in(&shop, "alice").await;
            (shop, alice, server)
        });
        group.bench_function(format!("authorization_code_{db:?}").to_lowercase(), |b| {
            b.iter_custom(|rounds| {
                system.block_on(async {
                    let mut spent = Duration::ZERO;
                    for _ in 0..rounds {
                        let code = alice.allows(&shop).await;
                        let start = Instant::now();
                        let answer = shop.redeems(&code).await;
                        spent += start.elapsed();
                        answer.ok();
                    }
                    spent
                })
            });
        });
    }
    group.finish();
}

/// Compares the other token requests with the one signature that each of them needs.
fn renewals(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("token_endpoint");
    for db in [Db::Sqlite, Db::Postgres] {
        let system = System::new();
        let (shop, robot, first, _server) = system.block_on(async {
            let server = unhurried(db).await;
            let mut client = fixtures::server::confidential("phone", "https://phone.example/cb");
            client.id_token_alg = Alg::ES256;
            let shop = server.register(client).await;
            let mut client = fixtures::server::confidential("robot", "https://robot.example/cb");
            client.grant_types = vec![portcullis::oauth::client::GrantType::ClientCredentials];
            let robot = server.register(client).await;
            let mut alice = server.browser();
            alice.signs_in(&shop, "alice").await;
            let scope = shop.request(&[("scope", "orders:read")]);
            let first = shop.redeems(&alice.allows_request(&scope).await).await.ok();
            (shop, robot, first, server)
        });
        let mut token = first.0["refresh_token"].as_str().unwrap().to_owned();
        group.bench_function(format!("refresh_token_{db:?}").to_lowercase(), |b| {
            b.iter(|| {
                let fields = [("grant_type", "refresh_token"), ("refresh_token", &token)];
                let next = system.block_on(shop.posts("/oauth2/token", &fields)).ok();
                token = next.0["refresh_token"].as_str().unwrap().to_owned();
            });
        });
        group.bench_function(format!("client_credentials_{db:?}").to_lowercase(), |b| {
            let fields = [("grant_type", "client_credentials")];
            b.iter(|| system.block_on(robot.posts("/oauth2/token", &fields)).ok());
        });
        // Baseline of the harness: the same client and a form of that size, without any work.
        group.bench_function(format!("refused_{db:?}").to_lowercase(), |b| {
            b.iter(|| {
                system.block_on(shop.posts_raw("/oauth2/token", &[], &[("grant_type", "x")]))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, signatures, jwks, token_endpoint, renewals);
criterion_main!(benches);
