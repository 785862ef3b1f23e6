//! Benchmarks of the verification of new and cached tokens in comparison with the signature check
//! alone, and of the revocation check with 10 thousand, 1 million and 10 million records. Run with
//! `cargo bench -p portcullis-verifier`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/verifier/feed_issuer.rs"]
#[allow(dead_code)]
mod feed_issuer;
#[path = "../tests/verifier/signer.rs"]
#[allow(dead_code)]
mod signer;

use std::hint::black_box;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::{Criterion, criterion_group, criterion_main};
use feed_issuer::FeedIssuer;
use p256::elliptic_curve::sec1::ToEncodedPoint;
use portcullis_verifier::{FRAME_MAX_RECORDS, Kind, Need, Record, Verifier};
use signer::{NOW, Signer, claims};
use tokio::runtime::Runtime;

/// Number of tokens, large enough that neither tokens nor records stay in the nearest CPU caches.
const TOKENS: usize = 2048;

fn signatures(criterion: &mut Criterion) {
    let signer = Signer::es256(1);
    let token = signer.token(&claims());
    let (message, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let public = p256::SecretKey::from_slice(&[1; 32]).unwrap().public_key();
    let point = public.to_encoded_point(false);
    let public = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point.as_bytes()).unwrap();
    let need = Need::scope("orders:read");
    let uncached = signer.known().remember(0).build().unwrap();
    let verifier = signer.verifier();

    let mut group = criterion.benchmark_group("verify");
    group.bench_function("raw_es256", |b| {
        b.iter(|| public.verify_sig(message.as_bytes(), &signature).unwrap())
    });
    group.bench_function("uncached", |b| {
        b.iter(|| uncached.verify_at(&token, &need, NOW).unwrap())
    });
    group.bench_function("cached", |b| {
        b.iter(|| verifier.verify_at(&token, &need, NOW).unwrap())
    });
    group.finish();
}

fn revocations(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("verify_2048_cached_tokens");
    let issuer = runtime.block_on(FeedIssuer::start());
    let tokens: Vec<String> = (0..TOKENS).map(|number| issuer.token(number)).collect();
    let without_feed = Verifier::builder(&issuer.url, signer::AUDIENCE)
        .keys(
            serde_json::from_value(serde_json::json!({"keys": [feed_issuer::token_key().jwk]}))
                .unwrap(),
        )
        .clock(&issuer.clock)
        .remember(8 * TOKENS)
        .build()
        .unwrap();
    let mut run = |name: &str, verifier: &Verifier| {
        let mut turn = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                turn = (turn + 1) % TOKENS;
                black_box(verifier.verify(&tokens[turn], &Need::any()).unwrap())
            })
        });
    };
    run("without_feed", &without_feed);
    for (name, count) in [("10_k", 10_000), ("1_m", 1_000_000), ("10_m", 10_000_000)] {
        issuer.change(|state| {
            state.per_frame = FRAME_MAX_RECORDS;
            state.records = (0..count).map(unrelated_record).collect();
        });
        let start = Instant::now();
        let builder = issuer.subscriber().remember(8 * TOKENS);
        let verifier = runtime.block_on(async {
            let verifier = builder.start().await.unwrap();
            issuer.acked(count as u64).await;
            verifier
        });
        let elapsed = start.elapsed();
        let metrics = verifier.metrics();
        assert_eq!(metrics.records, count);
        println!(
            "{count} records: {} bytes, {:.1} per record; served, fetched and applied in {elapsed:.1?}",
            metrics.record_bytes,
            metrics.record_bytes as f64 / count as f64,
        );
        run(name, &verifier);
        issuer.change(|state| state.acks.clear());
    }
    group.finish();
}

/// Returns a record that revokes none of the tokens.
fn unrelated_record(number: usize) -> Record {
    Record::new(
        Kind::Grant,
        &format!("another grant {number}"),
        0,
        1_800_000_900,
    )
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4));
    targets = signatures, revocations
}
criterion_main!(benches);
