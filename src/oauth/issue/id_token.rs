//! The ID token: OIDC Core §2, §3.1.3.6.

use serde::Serialize;

use crate::id::UserId;
use crate::keys::{Alg, KeyError, KeyView};
use crate::oauth::grant::Grant;
use crate::secret::{base64url, sha256};
use crate::time::Timestamp;

/// The claims, in the order in which they are serialised. Instants are in seconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct IdClaims {
    pub(super) iss: String,
    pub(super) sub: String,
    pub(super) aud: String,
    pub(super) iat: u64,
    pub(super) exp: u64,
    pub(super) auth_time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) nonce: Option<String>,
    pub(super) acr: String,
    pub(super) amr: Vec<String>,
    pub(super) sid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) at_hash: Option<String>,
}

impl IdClaims {
    /// Creates the claims about the user of a grant, for its client.
    pub(super) fn of(
        grant: &Grant,
        nonce: Option<String>,
        issuer: &str,
        lifetime: std::time::Duration,
        now: Timestamp,
    ) -> Self {
        Self {
            iss: issuer.to_owned(),
            sub: grant.user_id.as_str().to_owned(),
            aud: grant.client_id.as_str().to_owned(),
            iat: now.secs(),
            exp: (now + lifetime).secs(),
            auth_time: grant.auth_time.secs(),
            nonce,
            acr: grant.acr.clone(),
            amr: grant.amr.clone(),
            sid: grant.sid.as_str().to_owned(),
            at_hash: None,
        }
    }

    /// Signs the claims with the client's registered algorithm.
    pub(super) fn sign(&self, alg: Alg, keys: &KeyView) -> Result<String, KeyError> {
        keys.sign(alg, "JWT", self)
    }
}

/// Returns the left half of the SHA-256 hash of the access token (§3.1.3.6). Both algorithms of this server use
/// SHA-256.
pub(super) fn at_hash(access_token: &str) -> String {
    base64url(&sha256(access_token.as_bytes())[..16])
}

/// The content of an ID token that a client sends as a hint. Signature, type and issuer must be valid; expiry
/// is ignored (§3.1.2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The user.
    pub user_id: UserId,
    /// The client that the ID token was issued to.
    pub client_id: String,
    /// The session.
    pub sid: Option<String>,
}

impl Hint {
    /// Reads an ID token of this server.
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

#[cfg(test)]
mod tests {
    #[test]
    fn at_hash_matches_oidc_core_appendix_a() {
        // OIDC Core A.3: the access token and its at_hash.
        assert_eq!(
            super::at_hash("jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y"),
            "77QmUPtjPfzWtF2AnpK9RQ"
        );
    }
}
