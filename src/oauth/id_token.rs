//! The ID token: OIDC Core §2, §3.1.3.6.

use serde::Serialize;

use crate::id::UserId;
use crate::keys::{Alg, KeyView};
use crate::oauth::grants::Grant;
use crate::secret::{base64url, sha256};
use crate::time::Timestamp;

/// The claims, in the order in which they are written. Instants are seconds.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)] // the registered claims
pub struct IdClaims {
    pub iss: String,
    pub sub: String,
    pub aud: String,
    pub iat: u64,
    pub exp: u64,
    pub auth_time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    pub acr: String,
    pub amr: Vec<String>,
    pub sid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_hash: Option<String>,
}

impl IdClaims {
    /// The claims about the person who gave `grant`, for its client.
    pub fn of(
        grant: &Grant,
        nonce: Option<String>,
        issuer: &str,
        life: std::time::Duration,
        now: Timestamp,
    ) -> Self {
        Self {
            iss: issuer.to_owned(),
            sub: grant.user_id.as_str().to_owned(),
            aud: grant.client_id.as_str().to_owned(),
            iat: now.secs(),
            exp: (now + life).secs(),
            auth_time: grant.auth_time.secs(),
            nonce,
            acr: grant.acr.clone(),
            amr: grant.amr.clone(),
            sid: grant.sid.as_str().to_owned(),
            at_hash: None,
        }
    }
}

/// §3.1.3.6: the left half of SHA-256 of the access token. Both our algorithms hash with SHA-256.
pub fn at_hash(access_token: &str) -> String {
    base64url(&sha256(access_token.as_bytes())[..16])
}

/// Whom an ID token of ours was about, for hints. Its signature, type and issuer must be right; its
/// expiry does not matter (§3.1.2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The person.
    pub user_id: UserId,
    /// The client it was made for.
    pub client_id: String,
    /// The login.
    pub sid: Option<String>,
}

impl Hint {
    /// Reads a hint.
    pub fn read(token: &str, keys: &KeyView, issuer: &str) -> Option<Self> {
        let claims = keys.verify(token, "JWT")?;
        let text = |name: &str| {
            claims
                .get(name)
                .and_then(|value| value.as_str())
                .map(str::to_owned)
        };
        if text("iss")? != issuer {
            return None;
        }
        Some(Self {
            user_id: UserId::from(text("sub")?),
            client_id: text("aud")?,
            sid: text("sid"),
        })
    }
}

/// Signs the claims for the client's registered algorithm.
///
/// # Errors
/// [`crate::keys::KeyError`].
pub fn sign(claims: &IdClaims, alg: Alg, keys: &KeyView) -> Result<String, crate::keys::KeyError> {
    keys.sign(alg, "JWT", claims)
}

#[cfg(test)]
mod tests {
    #[test]
    fn at_hash_is_that_of_oidc_core_appendix_a() {
        // OIDC Core A.3: the access token and its at_hash.
        assert_eq!(
            super::at_hash("jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y"),
            "77QmUPtjPfzWtF2AnpK9RQ"
        );
    }
}
