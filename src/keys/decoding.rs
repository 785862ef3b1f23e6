//! Checks signatures with the public keys of this server.

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use portcullis_verifier::Jwk;
use serde::de::DeserializeOwned;

use super::ring::Alg;

/// Returns the algorithm as `jsonwebtoken` names it.
pub(super) fn jwt_algorithm(alg: Alg) -> Algorithm {
    match alg {
        Alg::ES256 => Algorithm::ES256,
        Alg::RS256 => Algorithm::RS256,
    }
}

/// Returns the algorithm and the key of a JWK.
pub(super) fn decoding_key(jwk: &Jwk) -> Option<(Algorithm, DecodingKey)> {
    let member = |value: &'_ Option<String>| value.clone().unwrap_or_default();
    let alg = Alg::from_name(jwk.alg.as_deref()?)?;
    let key = match alg {
        Alg::ES256 => DecodingKey::from_ec_components(&member(&jwk.x), &member(&jwk.y)),
        Alg::RS256 => DecodingKey::from_rsa_components(&member(&jwk.n), &member(&jwk.e)),
    };
    Some((jwt_algorithm(alg), key.ok()?))
}

/// Returns the claims of a JWS that this key signed. Checks the signature and nothing else.
pub(super) fn signed_claims<T: DeserializeOwned>(jws: &str, jwk: &Jwk) -> Option<T> {
    let (alg, key) = decoding_key(jwk)?;
    let mut signature_only = Validation::new(alg);
    signature_only.validate_exp = false;
    signature_only.validate_aud = false;
    signature_only.required_spec_claims.clear();
    let data = jsonwebtoken::decode(jws, &key, &signature_only).ok()?;
    Some(data.claims)
}
