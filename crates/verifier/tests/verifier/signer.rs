//! Signing keys for tests: those of RFC 7515, Appendix A, and others from fixed bytes. The private
//! keys are public.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use p256::pkcs8::EncodePrivateKey;
use portcullis_verifier::{Builder, Claims, Jwk, JwkSet, Rev, Verifier};
use rsa::BigUint;
use rsa::pkcs1::EncodeRsaPrivateKey;

pub const ISSUER: &str = "https://id.example";
pub const AUDIENCE: &str = "https://api.example";
/// The time in all tests that do not need the real time, in seconds since the Unix epoch.
pub const NOW: u64 = 1_800_000_000;

/// A signing key and its public JWK.
pub struct Signer {
    pub jwk: Jwk,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    pub fn es256(seed: u8) -> Self {
        let secret = p256::SecretKey::from_slice(&[seed; 32]).unwrap();
        let point = secret.public_key().to_encoded_point(false);
        let half = |bytes: Option<&p256::FieldBytes>| (*bytes.unwrap()).into();
        Self {
            jwk: Jwk::es256(&half(point.x()), &half(point.y())),
            algorithm: Algorithm::ES256,
            key: EncodingKey::from_ec_der(secret.to_pkcs8_der().unwrap().as_bytes()),
        }
    }

    /// Returns the key of RFC 7515 §A.2.
    pub fn rs256() -> Self {
        let n = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
        let d = "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ";
        let number = |text| URL_SAFE_NO_PAD.decode(text).unwrap();
        let (n, d) = (number(n), number(d));
        let big = BigUint::from_bytes_be;
        // The primes are computed from the other numbers.
        let key = rsa::RsaPrivateKey::from_components(big(&n), 65537u32.into(), big(&d), vec![]);
        Self {
            jwk: Jwk::rs256(&n, &[1, 0, 1]),
            algorithm: Algorithm::RS256,
            key: EncodingKey::from_rsa_der(key.unwrap().to_pkcs1_der().unwrap().as_bytes()),
        }
    }

    pub fn kid(&self) -> &str {
        self.jwk.kid.as_deref().unwrap()
    }

    /// Returns the header of a valid access token.
    pub fn header(&self) -> String {
        format!(
            r#"{{"alg":"{:?}","typ":"at+jwt","kid":"{}"}}"#,
            self.algorithm,
            self.kid()
        )
    }

    /// Returns a correctly signed token with this header and payload.
    pub fn sign(&self, header: &str, payload: &str) -> String {
        let message = unsigned(header, payload);
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm);
        format!("{message}.{}", signature.unwrap())
    }

    pub fn token(&self, claims: &Claims) -> String {
        self.sign(&self.header(), &serde_json::to_string(claims).unwrap())
    }

    /// Returns a builder of a verifier that is given only this key.
    pub fn known(&self) -> Builder {
        Verifier::builder(ISSUER, AUDIENCE).keys(JwkSet {
            keys: vec![self.jwk.clone()],
        })
    }

    pub fn verifier(&self) -> Verifier {
        self.known().build().unwrap()
    }
}

/// Returns the first two parts of a token.
pub fn unsigned(header: &str, payload: &str) -> String {
    format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(payload)
    )
}

/// Returns claims that are valid for 5 min from [`NOW`].
pub fn claims() -> Claims {
    Claims {
        iss: ISSUER.into(),
        sub: "alice".into(),
        aud: AUDIENCE.into(),
        client_id: "shop".into(),
        scope: "orders:read orders:write".into(),
        iat: NOW,
        exp: NOW + 300,
        nbf: None,
        jti: "0198c0de-0000-7000-8000-000000000003".into(),
        rev: Rev {
            feed_epoch: 1,
            client_epoch: 2,
            user_epoch: Some(3),
        },
        grant_id: Some("0198c0de-0000-7000-8000-000000000004".into()),
        sid: Some("0198c0de-0000-7000-8000-000000000005".into()),
        auth_time: Some(NOW - 60),
        acr: Some("1".into()),
        roles: vec![],
        groups: vec![],
        entitlements: vec![],
        cnf: None,
    }
}

/// Returns the seconds of the system's clock.
#[allow(
    clippy::disallowed_methods,
    dead_code,
    reason = "integrations with web frameworks read this clock"
)]
pub fn system_now() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}
