//! RFC 7517 §5: the keys of a document that can be used, parsed once.

use std::collections::{HashMap, HashSet};

use crate::{JwkSet, Key};

/// A JWKS document that no key may be taken from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the JWKS holds the kid {kid:?} twice")]
pub struct DuplicateKid {
    /// The `kid` that appears more than once.
    pub kid: String,
}

/// The keys of a document that this crate can use: parsed, checked, found by `kid` and by nothing
/// else.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    by_kid: HashMap<String, Key>,
}

impl Keys {
    /// Takes the usable keys out of a document. Skipped (RFC 7517 §5) is a key
    /// - that has no `kid`, or whose `use` is not `sig`;
    /// - whose `alg` is neither ES256 nor RS256, or does not fit its `kty` and `crv`;
    /// - that is no point of P-256, or is RSA under 2048 or over 8192 bits, or has a small or even
    ///   exponent.
    ///
    /// # Errors
    ///
    /// [`DuplicateKid`], even if the second key would be skipped: which one a token means is then
    /// anyone's guess.
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
                None => tracing::debug!(kid, "a key of the JWKS is not one we can use"),
            }
        }
        Ok(Self { by_kid })
    }

    /// Whether no key of the document was usable.
    pub fn is_empty(&self) -> bool {
        self.by_kid.is_empty()
    }

    /// How many keys were usable.
    pub fn len(&self) -> usize {
        self.by_kid.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Key)> {
        self.by_kid.iter().map(|(kid, key)| (kid.as_str(), key))
    }

    /// The key of that id. A lookup and nothing else: `kid` never becomes a path, a query or a URL.
    pub fn find(&self, kid: &str) -> Option<&Key> {
        self.by_kid.get(kid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Jwk;

    fn named(kid: &str, kty: &str) -> Jwk {
        Jwk {
            kid: Some(kid.to_owned()),
            kty: kty.to_owned(),
            ..Jwk::default()
        }
    }

    #[test]
    fn a_kid_may_not_appear_twice() {
        let keys = vec![named("a", "EC"), named("b", "RSA"), named("a", "oct")];
        let refused = Keys::parse(&JwkSet { keys });
        assert_eq!(
            refused.unwrap_err(),
            DuplicateKid {
                kid: "a".to_owned()
            }
        );
    }

    #[test]
    fn a_key_without_kid_cannot_be_found() {
        // RFC 7515 §A.3: a good key, but for its name.
        let member = |text: &str| Some(text.to_owned());
        let good = Jwk {
            use_: member("sig"),
            alg: member("ES256"),
            crv: member("P-256"),
            x: member("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"),
            y: member("x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"),
            ..named("k", "EC")
        };
        let nameless = Jwk {
            kid: None,
            ..good.clone()
        };
        let keys = vec![nameless.clone(), good, nameless];
        let keys = Keys::parse(&JwkSet { keys }).unwrap();
        assert_eq!(keys.len(), 1);
        assert!(keys.find("k").is_some() && keys.find("").is_none());
    }
}
