//! Proof Key for Code Exchange: RFC 7636, S256 only (RFC 9700 §2.1.1).

use std::borrow::Cow;

use oxide_auth::code_grant::extensions::Pkce;
use oxide_auth::primitives::grant::Value;

use super::error::{Description, Error};
use super::macros::details;
use crate::secret::from_base64url;

/// An S256 challenge: 43 canonical base64url characters (§4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge(String);

/// Whether a client must use PKCE: `require_pkce` of its registration (policy §10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Requests without a challenge are rejected.
    Required,
    /// A challenge may be omitted.
    Optional,
}

details! {
    enum Rejection {
        Missing =>
            Detail::new("authz.rejected", "require_pkce").described(Description::CODE_CHALLENGE),
        MethodWithoutChallenge =>
            Detail::new("authz.rejected", "pkce").described(Description::CODE_CHALLENGE),
        Method =>
            Detail::new("authz.rejected", "pkce").described(Description::CODE_CHALLENGE_METHOD),
        Form => Detail::new("authz.rejected", "pkce").described(Description::CODE_CHALLENGE_FORM),
    }
}

impl Challenge {
    /// Reads `code_challenge` and `code_challenge_method` of an authorization request.
    ///
    /// # Errors
    /// `invalid_request` if the challenge is required and missing, or if it is not S256.
    pub fn from_request(
        challenge: Option<&str>,
        method: Option<&str>,
        requirement: Requirement,
    ) -> Result<Option<Self>, Error> {
        let Some(challenge) = challenge else {
            return match method {
                _ if requirement == Requirement::Required => {
                    let error = Error::invalid_request(Rejection::Missing);
                    Err(error.comparing("no code_challenge", "require_pkce=true"))
                }
                Some(_) => Err(Error::invalid_request(Rejection::MethodWithoutChallenge)),
                None => Ok(None),
            };
        };
        if method != Some("S256") {
            let error = Error::invalid_request(Rejection::Method);
            return Err(error.comparing(method.unwrap_or("plain"), "S256"));
        }
        // `from_base64url` rejects padding and non-zero trailing bits, so the form is canonical.
        let canonical =
            challenge.len() == 43 && from_base64url(challenge).is_some_and(|b| b.len() == 32);
        if !canonical {
            return Err(Error::invalid_request(Rejection::Form));
        }
        Ok(Some(Self(challenge.to_owned())))
    }

    /// Restores a stored challenge.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// Returns the stored text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the challenge as an extension of an oxide-auth grant.
    pub fn extension(&self) -> Option<Value> {
        Pkce::required()
            .challenge(Some(Cow::Borrowed("S256")), Some(Cow::Borrowed(&self.0)))
            .ok()
            .flatten()
    }
}

/// Returns whether `verifier` (§4.1: 43 to 128 unreserved characters) matches the challenge of the code. A
/// verifier without a challenge does not match, because an attacker may have removed the challenge from the
/// authorization request (RFC 9700 §4.8.2).
pub fn verifies(extension: Option<Value>, verifier: Option<&str>) -> bool {
    let well_formed = |verifier: &str| {
        (43..=128).contains(&verifier.len())
            && verifier
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
    };
    match (extension, verifier) {
        (None, None) => true,
        (Some(extension), Some(verifier)) if well_formed(verifier) => Pkce::required()
            .verify(Some(extension), Some(Cow::Borrowed(verifier)))
            .is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

    #[test]
    fn rfc_7636_appendix_b() {
        let challenge =
            Challenge::from_request(Some(CHALLENGE), Some("S256"), Requirement::Required)
                .unwrap()
                .unwrap();
        assert!(verifies(challenge.extension(), Some(VERIFIER)));
        assert!(!verifies(challenge.extension(), Some(CHALLENGE)));
        assert!(!verifies(challenge.extension(), None));
        assert!(!verifies(None, Some(VERIFIER)));
        assert!(verifies(None, None));
    }

    #[test]
    fn only_a_canonical_s256_challenge_passes() {
        for (challenge, method) in [
            (CHALLENGE, Some("plain")),
            (CHALLENGE, None),
            (CHALLENGE, Some("s256")),
            (&CHALLENGE[..42], Some("S256")),
            ("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cN", Some("S256")),
            ("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw+cM", Some("S256")),
        ] {
            assert!(
                Challenge::from_request(Some(challenge), method, Requirement::Optional).is_err(),
                "{challenge} {method:?}"
            );
        }
        assert!(Challenge::from_request(None, None, Requirement::Required).is_err());
        assert!(matches!(
            Challenge::from_request(None, None, Requirement::Optional),
            Ok(None)
        ));
    }
}
