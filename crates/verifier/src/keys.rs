//! The usable keys of a JWK set (RFC 7517 §5).

use std::collections::{HashMap, HashSet};

use crate::{JwkSet, Key};

/// Error of a JWK set in which two keys have the same `kid`. The whole set is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the JWKS contains the kid {kid:?} more than once")]
pub struct DuplicateKid {
    /// The `kid` that appears more than once.
    pub kid: String,
}

/// The keys of a JWK set that this crate can use, parsed and validated. Keys are looked up only by
/// `kid`.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    by_kid: HashMap<String, Key>,
}

impl Keys {
    /// Parses the usable keys of a JWK set. A key is skipped (RFC 7517 §5) if
    /// - it has no `kid`, or its `use` is not `sig`;
    /// - its `alg` is neither ES256 nor RS256, or does not match its `kty` and `crv`;
    /// - it is not a point on P-256, or is an RSA key of less than 2048 or more than 8192 bits, or
    ///   has an exponent that is even or less than 65536.
    ///
    /// # Errors
    ///
    /// [`DuplicateKid`] if two keys have the same `kid`, even if one of them would be skipped,
    /// because it is ambiguous which key a token refers to.
    pub fn parse(document: &JwkSet) -> Result<Self, DuplicateKid> {
        let mut seen = HashSet::new();
        let mut by_kid = HashMap::new();
        for jwk in &document.keys {
            let Some(kid) = &jwk.kid else { continue };
            if !seen.insert(kid.as_str()) {
                return Err(DuplicateKid { kid: kid.clone() });
            }
            match Key::parse(jwk) {
                Some(key) => {
                    by_kid.insert(kid.clone(), key);
                }
                None => tracing::debug!(kid, "skipped an unusable key of the JWKS"),
            }
        }
        Ok(Self { by_kid })
    }

    /// Returns whether the set has no usable keys.
    pub fn is_empty(&self) -> bool {
        self.by_kid.is_empty()
    }

    /// Returns the number of usable keys.
    pub fn len(&self) -> usize {
        self.by_kid.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Key)> {
        self.by_kid.iter().map(|(kid, key)| (kid.as_str(), key))
    }

    /// Returns the key with this `kid`. The `kid` is only used for a map lookup, and never as part
    /// of a path, a query or a URL.
    pub fn find(&self, kid: &str) -> Option<&Key> {
        self.by_kid.get(kid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Jwk;

    fn jwk(kid: &str, kty: &str) -> Jwk {
        Jwk {
            kid: Some(kid.to_owned()),
            kty: kty.to_owned(),
            ..Jwk::default()
        }
    }

    #[test]
    fn duplicate_kid_is_rejected() {
        let keys = vec![jwk("a", "EC"), jwk("b", "RSA"), jwk("a", "oct")];
        let refused = Keys::parse(&JwkSet { keys });
        assert_eq!(
            refused.unwrap_err(),
            DuplicateKid {
                kid: "a".to_owned()
            }
        );
    }

    #[test]
    fn keys_without_kid_are_skipped() {
        // The key of RFC 7515 §A.3, with and without a `kid`.
        let member = |text: &str| Some(text.to_owned());
        let good = Jwk {
            use_: member("sig"),
            alg: member("ES256"),
            crv: member("P-256"),
            x: member("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"),
            y: member("x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"),
            ..jwk("k", "EC")
        };
        let without_kid = Jwk {
            kid: None,
            ..good.clone()
        };
        let keys = vec![without_kid.clone(), good, without_kid];
        let keys = Keys::parse(&JwkSet { keys }).unwrap();
        assert_eq!(keys.len(), 1);
        assert!(keys.find("k").is_some() && keys.find("").is_none());
    }
}
