//! The only code that issues tokens.

use std::time::Duration;

use portcullis_verifier::Rev;
use serde::Serialize;

use super::access_token::{AccessToken, AccessTokenInput};
use super::id_token::{self, IdClaims};
use crate::id::ClientId;
use crate::keys::{Alg, KeyView, ServerSecrets};
use crate::oauth::client::Client;
use crate::oauth::error::Error;
use crate::oauth::grant::Grant;
use crate::oauth::request::scope::Scope;
use crate::oauth::resource::Resource;
use crate::secret::{Entropy, Secret};
use crate::time::Timestamp;

/// The tokens that a request was granted. Only the signatures are missing.
#[derive(Debug)]
pub struct PendingTokens {
    access: AccessToken,
    id: Option<(IdClaims, Alg)>,
    refresh: Option<Secret>,
    /// Whether this repeats the response to a refresh token that was used before.
    pub replayed_within_grace: bool,
}

/// The part of a grant for which tokens are issued.
pub struct TokenGrant<'a> {
    /// The grant.
    pub grant: &'a Grant,
    /// The scope of the grant, or a part of it.
    pub scope: &'a Scope,
    /// The audience; `None` is this server.
    pub resource: Option<&'a Resource>,
    /// `nonce` of the authorization request; `None` after a refresh (OIDC Core §12.2).
    pub nonce: Option<String>,
    /// The client's algorithm for ID tokens.
    pub id_alg: Alg,
    /// The generation of the refresh token to issue, if one is issued.
    pub generation: Option<i64>,
}

/// A successful token response: RFC 6749 §5.1, OIDC Core §3.1.3.3.
#[derive(Debug, Serialize)]
pub struct TokenResponse {
    access_token: String,
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
    /// The granted scope, in the requested order.
    scope: String,
    /// With scope `openid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    id_token: Option<String>,
    /// For clients with that grant.
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
}

/// The configured lifetimes of tokens.
#[derive(Clone, Copy, Debug)]
pub struct TokenLifetimes {
    /// Of access tokens whose resource has no lifetime of its own.
    pub access: Duration,
    /// Of ID tokens.
    pub id: Duration,
}

/// The configured periods of refresh tokens.
#[derive(Clone, Copy, Debug)]
pub struct RefreshLifetimes {
    /// How long a client that lost a response receives the same successor again. Ends at once when the
    /// successor is used.
    pub grace: Duration,
    /// How long an unused grant is active, from now.
    pub idle: Duration,
}

/// Issues the tokens of one request.
#[derive(Clone, Copy)]
pub struct TokenIssuer<'a> {
    /// `iss`.
    pub issuer: &'a str,
    /// Lifetimes of access and ID tokens.
    pub lifetimes: TokenLifetimes,
    /// Periods of refresh tokens.
    pub refresh: RefreshLifetimes,
    /// Creates and reads refresh tokens.
    pub secret: &'a ServerSecrets,
    /// For `jti`.
    pub entropy: &'a Entropy,
    /// `iat`.
    pub now: Timestamp,
}

impl TokenIssuer<'_> {
    /// Issues tokens for a grant.
    pub fn for_grant(&self, token_grant: TokenGrant<'_>) -> PendingTokens {
        let TokenGrant {
            grant,
            scope,
            resource,
            nonce,
            id_alg,
            generation,
        } = token_grant;
        let rev = Rev {
            feed_epoch: number(grant.feed_epoch),
            client_epoch: number(grant.client_epoch),
            user_epoch: Some(number(grant.user_epoch)),
        };
        let narrowed = resource.map_or_else(|| scope.clone(), |resource| resource.narrow(scope));
        let mut access = self.access_token(&grant.client_id, &narrowed, resource, rev);
        let claims = &mut access.claims;
        claims.sub = grant.user_id.as_str().to_owned();
        claims.grant_id = Some(grant.id.as_str().to_owned());
        claims.sid = (!grant.offline).then(|| grant.sid.as_str().to_owned());
        claims.auth_time = Some(grant.auth_time.secs());
        claims.acr = Some(grant.acr.clone());
        let id = scope.contains("openid").then(|| {
            let claims = IdClaims::of(grant, nonce, self.issuer, self.lifetimes.id, self.now);
            (claims, id_alg)
        });
        PendingTokens {
            access,
            id,
            refresh: generation.map(|number| self.secret.refresh_token(&grant.id, number)),
            replayed_within_grace: false,
        }
    }

    /// Issues an access token for the client itself. Its `sub` is the `client_id`, because no user is
    /// involved.
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
        PendingTokens {
            access: self.access_token(&client.id, scope, resource, rev),
            id: None,
            refresh: None,
            replayed_within_grace: false,
        }
    }

    fn access_token(
        &self,
        client_id: &ClientId,
        scope: &Scope,
        resource: Option<&Resource>,
        rev: Rev,
    ) -> AccessToken {
        AccessToken::new(AccessTokenInput {
            issuer: self.issuer,
            client_id,
            scope,
            resource,
            rev,
            jti: crate::id::uuid(self.entropy, self.now),
            default_lifetime: self.lifetimes.access,
            now: self.now,
        })
    }
}

fn number(epoch: i64) -> u64 {
    u64::try_from(epoch).unwrap_or(0)
}

impl PendingTokens {
    /// Returns whether one of the signatures is made with RSA.
    pub fn needs_rsa(&self) -> bool {
        let id = self.id.as_ref().map(|(_, alg)| *alg);
        [Some(self.access.alg()), id].contains(&Some(Alg::RS256))
    }

    /// Signs the tokens. This runs after the commit, so that no lock waits for RSA. If it fails, the code or
    /// refresh token stays consumed on purpose.
    ///
    /// # Errors
    /// 503 without a usable signing key.
    pub fn sign(self, keys: &KeyView) -> Result<TokenResponse, Error> {
        let access_token = self.access.sign(keys)?;
        let id_token = match self.id {
            None => None,
            Some((mut claims, alg)) => {
                claims.at_hash = Some(id_token::at_hash(&access_token));
                Some(claims.sign(alg, keys)?)
            }
        };
        Ok(TokenResponse {
            access_token,
            token_type: "Bearer",
            expires_in: self.access.expires_in(),
            scope: self.access.claims.scope,
            id_token,
            refresh_token: self.refresh.map(|token| token.expose().to_owned()),
        })
    }
}
