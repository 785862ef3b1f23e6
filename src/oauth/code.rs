//! The authorization code: RFC 6749 §4.1.2.

use std::time::Duration;

use super::grant::Grant;
use super::pkce::Challenge;
use super::request::authorize::Request;
use crate::id::{ClientId, GrantId};
use crate::secret::{Entropy, Hash, Secret};
use crate::time::Timestamp;

/// A row of `codes`.
#[derive(Clone, Debug)]
pub struct Code {
    /// SHA-256 of the code.
    pub hash: Hash,
    /// The grant that it is exchanged for.
    pub grant_id: GrantId,
    /// The client that may exchange it.
    pub client_id: ClientId,
    /// The redirect URI that it was sent to.
    pub redirect_uri: String,
    /// Whether the authorization request contained the redirect URI.
    pub redirect_uri_sent: bool,
    /// The PKCE challenge.
    pub challenge: Option<Challenge>,
    /// `nonce` of the ID token.
    pub nonce: Option<String>,
    /// When the code expires.
    pub expires_at: Timestamp,
}

impl Code {
    /// Generates a code for `grant`. Returns the code and the row to store.
    pub fn issue(
        grant: &Grant,
        request: &Request,
        lifetime: Duration,
        entropy: &Entropy,
        now: Timestamp,
    ) -> (Secret, Self) {
        let secret = Secret::code(entropy);
        let code = Self {
            hash: secret.hash(),
            grant_id: grant.id.clone(),
            client_id: grant.client_id.clone(),
            redirect_uri: request.callback.uri().to_owned(),
            redirect_uri_sent: request.callback.sent(),
            challenge: request.challenge.clone(),
            nonce: request.nonce.clone(),
            expires_at: now + lifetime,
        };
        (secret, code)
    }
}
