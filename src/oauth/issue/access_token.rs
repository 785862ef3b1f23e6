//! The access token: RFC 9068.

use std::time::Duration;

use portcullis_verifier::{Claims, Rev};

use crate::id::ClientId;
use crate::keys::{Alg, KeyError, KeyView};
use crate::oauth::request::scope::Scope;
use crate::oauth::resource::Resource;
use crate::time::Timestamp;

/// An access token before it is signed.
#[derive(Debug)]
pub(super) struct AccessToken {
    pub(super) claims: Claims,
    alg: Alg,
}

/// What every access token is made of.
pub(super) struct AccessTokenInput<'a> {
    pub(super) issuer: &'a str,
    pub(super) client_id: &'a ClientId,
    pub(super) scope: &'a Scope,
    /// The audience; `None` is this server.
    pub(super) resource: Option<&'a Resource>,
    pub(super) rev: Rev,
    pub(super) jti: String,
    /// Used if the resource has no lifetime of its own.
    pub(super) default_lifetime: Duration,
    pub(super) now: Timestamp,
}

impl AccessToken {
    /// Returns the algorithm of its signature.
    pub(super) fn alg(&self) -> Alg {
        self.alg
    }

    /// Creates a token for the client itself, with the claims that every access token has (§2.2).
    pub(super) fn new(input: AccessTokenInput<'_>) -> Self {
        let AccessTokenInput { resource, now, .. } = input;
        let lifetime = resource.and_then(|resource| resource.access_ttl);
        let lifetime = lifetime.unwrap_or(input.default_lifetime);
        let claims = Claims {
            iss: input.issuer.to_owned(),
            sub: input.client_id.as_str().to_owned(),
            aud: resource
                .map_or(input.issuer, |resource| &resource.audience)
                .to_owned(),
            client_id: input.client_id.as_str().to_owned(),
            scope: input.scope.to_string(),
            iat: now.secs(),
            exp: (now + lifetime).secs(),
            nbf: None,
            jti: input.jti,
            rev: input.rev,
            grant_id: None,
            sid: None,
            auth_time: None,
            acr: None,
            roles: Vec::new(),
            groups: Vec::new(),
            entitlements: Vec::new(),
            cnf: None,
        };
        Self {
            claims,
            alg: resource.map_or(Alg::ES256, |resource| resource.alg),
        }
    }

    /// Returns the lifetime in seconds.
    pub(super) fn expires_in(&self) -> u64 {
        self.claims.exp.saturating_sub(self.claims.iat)
    }

    /// Signs the token.
    pub(super) fn sign(&self, keys: &KeyView) -> Result<String, KeyError> {
        keys.sign(self.alg, "at+jwt", &self.claims)
    }
}
