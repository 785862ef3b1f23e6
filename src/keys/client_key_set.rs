//! The public keys of a client: RFC 7517 §5. They verify the assertions that it signs.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

use crate::secret::from_base64url;

/// Maximum size of a key set in bytes.
pub const KEY_SET_BYTES: usize = 64 * 1024;
/// Maximum number of keys in a key set.
const KEYS: usize = 20;

/// A signature algorithm of assertions (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssertionAlg {
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// RSASSA-PSS with SHA-256.
    PS256,
    /// Ed25519.
    EdDSA,
}

impl AssertionAlg {
    /// Every algorithm, the preferred one first.
    pub const ALL: [Self; 4] = [Self::ES256, Self::RS256, Self::PS256, Self::EdDSA];

    /// Returns the registered name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ES256 => "ES256",
            Self::RS256 => "RS256",
            Self::PS256 => "PS256",
            Self::EdDSA => "EdDSA",
        }
    }

    /// Parses the registered name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|alg| alg.name() == name)
    }

    fn as_jwt(self) -> Algorithm {
        match self {
            Self::ES256 => Algorithm::ES256,
            Self::RS256 => Algorithm::RS256,
            Self::PS256 => Algorithm::PS256,
            Self::EdDSA => Algorithm::EdDSA,
        }
    }
}

/// A parsed key set, with its text.
#[derive(Clone)]
pub struct ClientKeySet {
    text: String,
    keys: Vec<ClientKey>,
}

impl std::fmt::Debug for ClientKeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientKeySet of {} keys", self.keys.len())
    }
}

#[derive(Clone)]
struct ClientKey {
    kid: Option<String>,
    /// The algorithms that it may be used with.
    algs: Vec<AssertionAlg>,
    key: DecodingKey,
}

/// Why a signature is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySetError {
    /// No key has this `kid`.
    UnknownKey,
    /// The key may not be used with the algorithm.
    Alg,
    /// The signature is invalid.
    Signature,
}

impl ClientKeySet {
    /// Parses a JSON Web Key Set. Keys of other types and for encryption are skipped.
    ///
    /// # Errors
    /// The rest of a sentence that starts with the name of the field.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > KEY_SET_BYTES {
            return Err(format!("must have at most {KEY_SET_BYTES} bytes"));
        }
        let set: Value =
            serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
        let keys = set.get("keys").and_then(Value::as_array);
        let keys = keys.ok_or("is not a JSON Web Key Set: the member `keys` is missing")?;
        if keys.len() > KEYS {
            return Err(format!("must have at most {KEYS} keys"));
        }
        // RFC 7518 §§6.2.2, 6.3.2, 6.4: the members of private and symmetric keys.
        let private = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
        if keys
            .iter()
            .any(|key| private.iter().any(|name| key.get(name).is_some()))
        {
            return Err(
                "contains a private or symmetric key; register public keys only".to_owned(),
            );
        }
        let keys: Vec<ClientKey> = keys.iter().filter_map(ClientKey::parse).collect();
        if keys.is_empty() {
            return Err(
                "contains no usable key for signatures; expected a P-256, Ed25519 or RSA key of 2048 to 8192 bits"
                    .to_owned(),
            );
        }
        Ok(Self {
            text: text.to_owned(),
            keys,
        })
    }

    /// Returns the text that was parsed, JSON.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Verifies a signature over `message`. `signature` is base64url. Without a `kid` the set must have one key for the
    /// algorithm.
    ///
    /// # Errors
    /// [`KeySetError`].
    pub fn verify(
        &self,
        alg: AssertionAlg,
        kid: Option<&str>,
        message: &[u8],
        signature: &str,
    ) -> Result<(), KeySetError> {
        let named: Vec<&ClientKey> = match kid {
            Some(_) => self
                .keys
                .iter()
                .filter(|key| key.kid.as_deref() == kid)
                .collect(),
            None => self.keys.iter().collect(),
        };
        if named.is_empty() {
            return Err(KeySetError::UnknownKey);
        }
        let mut suitable = named.into_iter().filter(|key| key.algs.contains(&alg));
        let key = suitable.next().ok_or(KeySetError::Alg)?;
        if suitable.next().is_some() {
            return Err(KeySetError::UnknownKey);
        }
        let verified = jsonwebtoken::crypto::verify(signature, message, &key.key, alg.as_jwt());
        match verified {
            Ok(true) => Ok(()),
            _ => Err(KeySetError::Signature),
        }
    }
}

impl ClientKey {
    /// Parses a public key. `None` if it is not one for signatures.
    fn parse(value: &Value) -> Option<Self> {
        let member = |name: &str| value.get(name).and_then(Value::as_str);
        if member("use").is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        let algs = match &jwk.algorithm {
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                vec![AssertionAlg::ES256]
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                vec![AssertionAlg::EdDSA]
            }
            AlgorithmParameters::RSA(key) => {
                let modulus = from_base64url(&key.n)?;
                let first = modulus.iter().position(|byte| *byte != 0)?;
                let bits = (modulus.len() - first) * 8 - modulus[first].leading_zeros() as usize;
                let exponent = from_base64url(&key.e)?;
                let is_large = exponent.iter().skip_while(|byte| **byte == 0).count() >= 3;
                let is_usable =
                    (2048..=8192).contains(&bits) && is_large && exponent.last()? % 2 == 1;
                is_usable.then(|| vec![AssertionAlg::RS256, AssertionAlg::PS256])?
            }
            _ => return None,
        };
        let algs = match member("alg") {
            None => algs,
            Some(only) => algs.into_iter().filter(|alg| alg.name() == only).collect(),
        };
        if algs.is_empty() {
            return None;
        }
        Some(Self {
            kid: member("kid").map(str::to_owned),
            algs,
            key: DecodingKey::from_jwk(&jwk).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EC: &str = r#""kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0""#;

    fn set(keys: &str) -> Result<ClientKeySet, String> {
        ClientKeySet::parse(&format!(r#"{{"keys":[{keys}]}}"#))
    }

    #[test]
    fn usable_public_keys_are_required() {
        assert!(set(&format!("{{{EC}}}")).is_ok());
        assert!(set(&format!(r#"{{{EC},"use":"sig","alg":"ES256","kid":"a"}}"#)).is_ok());
        for (bad, why) in [
            (String::new(), "no usable key"),
            (format!(r#"{{{EC},"use":"enc"}}"#), "no usable key"),
            (format!(r#"{{{EC},"alg":"RS256"}}"#), "no usable key"),
            (format!(r#"{{{EC},"d":"AA"}}"#), "private"),
            (r#"{"kty":"oct","k":"AAAA"}"#.to_owned(), "symmetric"),
            (
                r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#.to_owned(),
                "no usable key",
            ),
            (vec![format!("{{{EC}}}"); 21].join(","), "at most 20"),
        ] {
            let refused = set(&bad).unwrap_err();
            assert!(refused.contains(why), "{bad}: {refused}");
        }
        for bad in ["", "[]", "{}", r#"{"keys":{}}"#] {
            assert!(ClientKeySet::parse(bad).is_err(), "{bad}");
        }
        let long = format!("{}{}", r#"{"keys":[]}"#, " ".repeat(KEY_SET_BYTES));
        assert!(ClientKeySet::parse(&long).is_err());
    }

    #[test]
    fn rfc_7515_section_a_3_signature_is_verified() {
        crate::keys::provider::install();
        let message = b"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let one = set(&format!(r#"{{{EC},"kid":"a"}}"#)).unwrap();
        let verify = |kid, alg| one.verify(alg, kid, message, signature);
        assert_eq!(verify(Some("a"), AssertionAlg::ES256), Ok(()));
        assert_eq!(verify(None, AssertionAlg::ES256), Ok(()));
        let unknown = Err(KeySetError::UnknownKey);
        assert_eq!(verify(Some("b"), AssertionAlg::ES256), unknown);
        assert_eq!(
            verify(Some("a"), AssertionAlg::RS256),
            Err(KeySetError::Alg)
        );
        let other = one.verify(AssertionAlg::ES256, None, b"other", signature);
        assert_eq!(other, Err(KeySetError::Signature));
        let two = set(&format!("{{{EC}}},{{{EC}}}")).unwrap();
        let ambiguous = two.verify(AssertionAlg::ES256, None, message, signature);
        assert_eq!(ambiguous, unknown);
    }
}
