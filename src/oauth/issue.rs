//! Issuing: what a grant decided becomes signed tokens. Access tokens are RFC 9068. The one mint.

use std::time::Duration;

use portcullis_verifier::{Claims, Rev};
use serde::Serialize;

use super::client::Client;
use super::error::Error;
use super::grants::Grant;
use super::grants::refresh_token::RefreshLifetimes;
use super::id_token::{self, IdClaims};
use super::request::scope::Scope;
use super::resource::Resource;
use crate::id::ClientId;
use crate::keys::{Alg, KeyView, ServerSecrets};
use crate::secret::{Entropy, Secret};
use crate::time::Timestamp;

/// What a token request was granted; signing it can no longer be refused.
#[derive(Debug)]
pub struct PendingTokens {
    access: Claims,
    access_alg: Alg,
    id: Option<(IdClaims, Alg)>,
    refresh: Option<Secret>,
    /// Whether a client that lost the answer to a refresh gets it once more.
    pub replayed_within_grace: bool,
}

/// What a grant allows this time.
pub struct TokenGrant<'a> {
    /// The grant.
    pub grant: &'a Grant,
    /// All of its scope, or less.
    pub scope: &'a Scope,
    /// The audience; `None` is this server.
    pub resource: Option<&'a Resource>,
    /// Of the authorization request; absent after a refresh (OIDC Core §12.2).
    pub nonce: Option<String>,
    /// The client's algorithm for ID tokens.
    pub id_alg: Alg,
    /// The generation of the refresh token that goes along, if one does.
    pub generation: Option<i64>,
}

/// A successful token response: RFC 6749 §5.1, OIDC Core §3.1.3.3.
#[derive(Debug, Serialize)]
pub struct TokenResponse {
    /// The access token.
    pub access_token: String,
    /// Always `Bearer`.
    pub token_type: &'static str,
    /// Seconds.
    pub expires_in: u64,
    /// What was granted, in the order in which it was asked for.
    pub scope: String,
    /// The ID token, with scope `openid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_token: Option<String>,
    /// The refresh token, for clients with that grant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
}

/// The lifetimes in force.
#[derive(Clone, Copy, Debug)]
pub struct TokenLifetimes {
    /// Access tokens whose resource has no lifetime of its own.
    pub access: Duration,
    /// ID tokens.
    pub id: Duration,
}

/// What every mint needs.
#[derive(Clone, Copy)]
pub struct TokenIssuer<'a> {
    /// `iss`.
    pub issuer: &'a str,
    /// Lifetimes.
    pub lives: TokenLifetimes,
    /// Lifetimes of refresh tokens.
    pub refresh: RefreshLifetimes,
    /// Signs refresh tokens.
    pub secret: &'a ServerSecrets,
    /// For `jti`.
    pub entropy: &'a Entropy,
    /// `iat`.
    pub now: Timestamp,
}

impl TokenIssuer<'_> {
    /// Tokens for what a grant allows, at one of its resources.
    pub fn for_grant(&self, allowed: TokenGrant<'_>) -> PendingTokens {
        let TokenGrant {
            grant,
            scope,
            resource,
            nonce,
            id_alg,
            generation,
        } = allowed;
        let identity = scope.contains("openid");
        let scope = resource.map_or_else(|| scope.clone(), |resource| resource.narrow(scope));
        let rev = Rev {
            feed_epoch: number(grant.feed_epoch),
            client_epoch: number(grant.client_epoch),
            user_epoch: Some(number(grant.user_epoch)),
        };
        let access = Claims {
            sub: grant.user_id.as_str().to_owned(),
            grant_id: Some(grant.id.as_str().to_owned()),
            sid: (!grant.offline).then(|| grant.sid.as_str().to_owned()),
            auth_time: Some(grant.auth_time.secs()),
            acr: Some(grant.acr.clone()),
            ..self.access(&grant.client_id, &scope, resource, rev)
        };
        let id = identity.then(|| {
            let claims = IdClaims::of(grant, nonce, self.issuer, self.lives.id, self.now);
            (claims, id_alg)
        });
        let refresh = generation.map(|generation| self.secret.refresh_token(&grant.id, generation));
        PendingTokens {
            access,
            access_alg: resource.map_or(Alg::ES256, |r| r.alg),
            id,
            refresh,
            replayed_within_grace: false,
        }
    }

    /// A token for the client itself: `sub` is its `client_id`, and no person stands behind it.
    pub fn for_client(
        &self,
        client: &Client,
        feed_epoch: i64,
        scope: &Scope,
        resource: Option<&Resource>,
    ) -> PendingTokens {
        let rev = Rev {
            feed_epoch: number(feed_epoch),
            client_epoch: number(client.auth_epoch),
            user_epoch: None,
        };
        let access = self.access(&client.id, scope, resource, rev);
        PendingTokens {
            access,
            access_alg: resource.map_or(Alg::ES256, |r| r.alg),
            id: None,
            refresh: None,
            replayed_within_grace: false,
        }
    }

    /// The claims that every access token has (RFC 9068 §2.2), about the client itself.
    fn access(
        &self,
        client_id: &ClientId,
        scope: &Scope,
        resource: Option<&Resource>,
        rev: Rev,
    ) -> Claims {
        let life = resource.and_then(|r| r.access_ttl);
        let life = life.unwrap_or(self.lives.access);
        Claims {
            iss: self.issuer.to_owned(),
            sub: client_id.as_str().to_owned(),
            aud: resource.map_or(self.issuer, |r| &r.audience).to_owned(),
            client_id: client_id.as_str().to_owned(),
            scope: scope.to_string(),
            iat: self.now.secs(),
            exp: (self.now + life).secs(),
            nbf: None,
            jti: crate::id::uuid(self.entropy, self.now),
            rev,
            grant_id: None,
            sid: None,
            auth_time: None,
            acr: None,
            roles: Vec::new(),
            groups: Vec::new(),
            entitlements: Vec::new(),
            cnf: None,
        }
    }
}

fn number(epoch: i64) -> u64 {
    u64::try_from(epoch).unwrap_or(0)
}

/// Signs. Runs after the commit: no lock waits for RSA, and a failed signature leaves the code
/// spent, on purpose.
///
/// # Errors
/// 503 without a usable signer.
pub fn sign(decided: PendingTokens, keys: &KeyView) -> Result<TokenResponse, Error> {
    let expires_in = decided.access.exp.saturating_sub(decided.access.iat);
    let access_token = keys.sign(decided.access_alg, "at+jwt", &decided.access)?;
    let id_token = match decided.id {
        None => None,
        Some((mut claims, alg)) => {
            claims.at_hash = Some(id_token::at_hash(&access_token));
            Some(id_token::sign(&claims, alg, keys)?)
        }
    };
    Ok(TokenResponse {
        access_token,
        token_type: "Bearer",
        expires_in,
        scope: decided.access.scope,
        id_token,
        refresh_token: decided.refresh.map(|token| token.expose().to_owned()),
    })
}
