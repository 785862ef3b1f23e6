//! Access tokens at the verifier. An input with a NUL is a header and a payload, which receive a valid
//! signature so that the checks after the signature are reached. Any other input is the token itself.
#![no_main]

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use libfuzzer_sys::fuzz_target;
use portcullis_verifier::{Claims, Jwk, JwkSet, Need, Verifier};
use serde_json::Value;

const ISSUER: &str = "https://id.example";
const AUDIENCE: &str = "https://api.example";
const NOW: u64 = 1_800_000_000;

struct World {
    pair: EcdsaKeyPair,
    jwk: Jwk,
    verifier: Verifier,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let point = pair.public_key().as_ref().to_vec();
    let number = |part: &[u8]| <[u8; 32]>::try_from(part).expect("32 bytes");
    let mut jwk = Jwk::es256(&number(&point[1..33]), &number(&point[33..]));
    // The seeds use this `kid`.
    jwk.kid = Some("k".to_owned());
    let keys = JwkSet {
        keys: vec![jwk.clone()],
    };
    let verifier = Verifier::builder(ISSUER, AUDIENCE).keys(keys).remember(0);
    World {
        pair,
        jwk,
        verifier: verifier.build().expect("a verifier"),
    }
});

fn signed(header: &str, payload: &str) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", part(header), part(payload));
    let signature = WORLD.pair.sign(&SystemRandom::new(), message.as_bytes());
    let signature = signature.expect("a signature");
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// Asserts that an accepted token has the required properties, and that another library accepts it too.
fn accepted(token: &str, claims: &Claims) {
    let part = |n: usize| -> Value {
        let text = token.split('.').nth(n).expect("three parts");
        let json = URL_SAFE_NO_PAD.decode(text).expect("base64url");
        serde_json::from_slice(&json).expect("JSON")
    };
    let (header, payload) = (part(0), part(1));
    assert_eq!(header["alg"], "ES256");
    assert!(header.get("crit").is_none());
    let typ = header["typ"]
        .as_str()
        .unwrap_or_default()
        .to_ascii_lowercase();
    assert!(
        ["at+jwt", "application/at+jwt"].contains(&typ.as_str()),
        "{typ}"
    );
    assert_eq!(payload["iss"], ISSUER);
    assert!(payload["aud"] == AUDIENCE || payload["aud"] == serde_json::json!([AUDIENCE]));
    assert_eq!(
        (claims.iss.as_str(), claims.aud.as_str()),
        (ISSUER, AUDIENCE)
    );
    assert!(claims.exp + 60 >= NOW && !claims.sub.is_empty() && !claims.jti.is_empty());
    let member = |value: &Option<String>| value.clone().unwrap_or_default();
    let (x, y) = (member(&WORLD.jwk.x), member(&WORLD.jwk.y));
    let key = DecodingKey::from_ec_components(&x, &y).expect("the key");
    let mut validation = Validation::new(Algorithm::ES256);
    validation.validate_exp = false;
    validation.set_audience(&[AUDIENCE]);
    validation.set_issuer(&[ISSUER]);
    let theirs = jsonwebtoken::decode::<Value>(token, &key, &validation);
    assert!(theirs.is_ok(), "{:?}", theirs.err());
}

fuzz_target!(|text: &str| {
    let token = match text.split_once('\0') {
        Some((header, payload)) => signed(header, payload),
        None => text.to_owned(),
    };
    if let Ok(claims) = WORLD.verifier.verify_at(&token, &Need::any(), NOW) {
        accepted(&token, &claims);
    }
});
