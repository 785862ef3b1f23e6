//! RFC 7517: public keys on the wire. The server publishes with these very types.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::Algorithm;

/// A public key (RFC 7517 §4). There is no member for a private number, so none can be published;
/// unknown members are ignored on input. Numbers are base64url without padding (RFC 7518 §6).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Jwk {
    /// Key type: `EC` or `RSA`.
    pub kty: String,
    /// What the key is for: `sig`.
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    pub use_: Option<String>,
    /// The only algorithm that the key may be used with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    /// The key's id.
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
    /// EC: the point's x, 32 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// EC: the point's y, 32 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
}

impl Jwk {
    /// An ES256 signing key from the coordinates of its point; `kid` is the thumbprint.
    pub fn es256(x: &[u8; 32], y: &[u8; 32]) -> Self {
        Self {
            kty: "EC".to_owned(),
            crv: Some("P-256".to_owned()),
            x: Some(URL_SAFE_NO_PAD.encode(x)),
            y: Some(URL_SAFE_NO_PAD.encode(y)),
            ..Self::default()
        }
        .for_signatures(Algorithm::ES256)
    }

    /// An RS256 signing key from its modulus and exponent, big-endian; `kid` is the thumbprint.
    pub fn rs256(n: &[u8], e: &[u8]) -> Self {
        Self {
            kty: "RSA".to_owned(),
            n: Some(URL_SAFE_NO_PAD.encode(without_leading_zeros(n))),
            e: Some(URL_SAFE_NO_PAD.encode(without_leading_zeros(e))),
            ..Self::default()
        }
        .for_signatures(Algorithm::RS256)
    }

    fn for_signatures(mut self, algorithm: Algorithm) -> Self {
        self.kid = Some(self.thumbprint());
        self.use_ = Some("sig".to_owned());
        self.alg = Some(algorithm.name().to_owned());
        self
    }

    /// The SHA-256 thumbprint, base64url (RFC 7638): a hash over the required members alone, so
    /// `kid`, `alg` and `use` do not change it. A member that is missing counts as empty.
    pub fn thumbprint(&self) -> String {
        let member = |value: &Option<String>| quoted(value.as_deref().unwrap_or_default());
        let canonical = match self.kty.as_str() {
            "RSA" => format!(
                r#"{{"e":{},"kty":"RSA","n":{}}}"#,
                member(&self.e),
                member(&self.n)
            ),
            kty => format!(
                r#"{{"crv":{},"kty":{},"x":{},"y":{}}}"#,
                member(&self.crv),
                quoted(kty),
                member(&self.x),
                member(&self.y)
            ),
        };
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, canonical.as_bytes()))
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// RFC 7518 §2, Base64urlUInt: the fewest bytes that hold the number.
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
    fn the_thumbprint_is_that_of_rfc_7638_section_3_1() {
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
    fn a_published_key_has_these_members_and_no_others() {
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
    fn a_private_number_is_not_kept() {
        let read: Jwk =
            serde_json::from_str(r#"{"kty":"EC","kid":"k","d":"AQ","k":"AQ"}"#).unwrap();
        assert_eq!(
            serde_json::to_string(&read).unwrap(),
            r#"{"kty":"EC","kid":"k"}"#
        );
    }
}
