//! JSON Web Keys (RFC 7517). The server publishes its keys with the same types.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::Algorithm;

/// A public key (RFC 7517 §4). The type has no members for private parameters, so they cannot be
/// published. Unknown members are ignored on input. Numbers are base64url without padding
/// (RFC 7518 §6).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Jwk {
    /// Key type: `EC` or `RSA`.
    pub kty: String,
    /// Intended use of the key: `sig`.
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    pub use_: Option<String>,
    /// The only algorithm that the key may be used with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    /// Key ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// RSA: the modulus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    /// RSA: the public exponent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    /// EC: the curve, `P-256`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    /// EC: the x coordinate of the point, 32 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// EC: the y coordinate of the point, 32 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
}

impl Jwk {
    /// Creates an ES256 signing key from the coordinates of its point. The `kid` is the thumbprint.
    pub fn es256(x: &[u8; 32], y: &[u8; 32]) -> Self {
        Self {
            kty: "EC".to_owned(),
            crv: Some("P-256".to_owned()),
            x: Some(URL_SAFE_NO_PAD.encode(x)),
            y: Some(URL_SAFE_NO_PAD.encode(y)),
            ..Self::default()
        }
        .into_signing_key(Algorithm::ES256)
    }

    /// Creates an RS256 signing key from its modulus and exponent, both big-endian. The `kid` is
    /// the thumbprint.
    pub fn rs256(n: &[u8], e: &[u8]) -> Self {
        Self {
            kty: "RSA".to_owned(),
            n: Some(URL_SAFE_NO_PAD.encode(without_leading_zeros(n))),
            e: Some(URL_SAFE_NO_PAD.encode(without_leading_zeros(e))),
            ..Self::default()
        }
        .into_signing_key(Algorithm::RS256)
    }

    fn into_signing_key(mut self, algorithm: Algorithm) -> Self {
        self.kid = Some(self.thumbprint());
        self.use_ = Some("sig".to_owned());
        self.alg = Some(algorithm.name().to_owned());
        self
    }

    /// Returns the SHA-256 thumbprint in base64url (RFC 7638). Only the required members are
    /// hashed, so `kid`, `alg` and `use` do not change it. A missing member is hashed as an empty
    /// string.
    pub fn thumbprint(&self) -> String {
        let member = |value: &Option<String>| json_string(value.as_deref().unwrap_or_default());
        let canonical = match self.kty.as_str() {
            "RSA" => format!(
                r#"{{"e":{},"kty":"RSA","n":{}}}"#,
                member(&self.e),
                member(&self.n)
            ),
            kty => format!(
                r#"{{"crv":{},"kty":{},"x":{},"y":{}}}"#,
                member(&self.crv),
                json_string(kty),
                member(&self.x),
                member(&self.y)
            ),
        };
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, canonical.as_bytes()))
    }
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Strips leading zero bytes, because Base64urlUInt uses the minimum number of octets (RFC 7518
/// §2).
pub(crate) fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// A set of public keys (RFC 7517 §5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JwkSet {
    /// The keys.
    pub keys: Vec<Jwk>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbprint_matches_rfc_7638_section_3_1() {
        let jwk: Jwk = serde_json::from_str(
            r#"{
                "kty": "RSA",
                "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
                "e": "AQAB",
                "alg": "RS256",
                "kid": "2011-04-29"
            }"#,
        )
        .unwrap();
        assert_eq!(
            jwk.thumbprint(),
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
        );
    }

    #[test]
    fn published_keys_have_only_public_members() {
        let ec = serde_json::to_string(&Jwk::es256(&[1; 32], &[2; 32])).unwrap();
        assert_eq!(
            ec,
            r#"{"kty":"EC","use":"sig","alg":"ES256","kid":"kOFKxjJdOqJD5G4Yuw-cxHe64VGyxKEO_hoV83QfGj0","crv":"P-256","x":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE","y":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI"}"#
        );
        let rsa = serde_json::to_value(Jwk::rs256(&[0, 0xff], &[1, 0, 1])).unwrap();
        let members: Vec<_> = rsa.as_object().unwrap().keys().collect();
        assert_eq!(members, ["alg", "e", "kid", "kty", "n", "use"]);
        assert_eq!((&rsa["n"], &rsa["e"]), (&"_w".into(), &"AQAB".into()));
    }

    #[test]
    fn private_parameters_are_dropped_on_input() {
        let read: Jwk =
            serde_json::from_str(r#"{"kty":"EC","kid":"k","d":"AQ","k":"AQ"}"#).unwrap();
        assert_eq!(
            serde_json::to_string(&read).unwrap(),
            r#"{"kty":"EC","kid":"k"}"#
        );
    }
}
