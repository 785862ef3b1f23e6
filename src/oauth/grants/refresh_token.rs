//! The refresh token grant: RFC 6749 §6, RFC 9700 §4.14. A refresh token consists of a grant id, a
//! generation and a MAC, so nothing is stored per token, and a refresh is one conditional UPDATE. A client
//! that lost the response receives the same successor again during a grace period. Any other reuse revokes
//! the grant.

use super::request::{GrantContext, GrantRequest};
use crate::audit::{Actor, Event, Name, RevocationReason, Target};
use crate::id::GrantId;
use crate::oauth::client::Client;
use crate::oauth::error::{Cause, Description, Error};
use crate::oauth::grant::Grant;
use crate::oauth::issue::{PendingTokens, TokenGrant, TokenIssuer};
use crate::oauth::ledger::{Ledger, Outcome, StorageError};
use crate::oauth::macros::details;
use crate::oauth::request::params::{Params, Problem};
use crate::oauth::request::scope::Scope;
use crate::oauth::resource::Resource;
use crate::secret::Secret;
use crate::time::Timestamp;

/// The parameters of the grant.
#[derive(Clone, Debug)]
pub struct RefreshRequest {
    token: Secret,
    scope: Option<Scope>,
}

details! {
    /// Why a refresh token is not exchanged for tokens.
    pub enum Rejection {
        /// The request contains no refresh token.
        Missing =>
            Detail::new("token.rejected", "refresh_token").described(Description::REFRESH_TOKEN),
        /// The value does not have the prefix of refresh tokens.
        Kind => Detail::new("token.rejected", "kind"),
        /// This server did not issue the token.
        Unknown => Detail::new("token.rejected", "unknown"),
        /// The grant, or what it depends on, was revoked.
        GrantInactive =>
            Detail::new("token.rejected", "grant_ended").caused_by(Cause::GrantInactive),
        /// The idle or the absolute lifetime of the grant is over.
        Expired => Detail::new("token.expired", "grant"),
        /// The token was issued to another client.
        OtherClient => Detail::new("token.rejected", "client"),
        /// The token was used before, and so was its successor or the grace period is over: the grant is
        /// revoked.
        Reused => Detail::high("token.refresh_reuse", "reused"),
        /// The token is newer than the stored grant, so the database was restored from an older backup.
        Ahead => Detail::high("db.restored", "refresh_ahead").caused_by(Cause::RefreshTokenAhead),
        /// The grant of the token is missing although it cannot have been cleaned up, so the database was
        /// restored from an older backup.
        GrantLost => Detail::high("db.restored", "grant_lost"),
        /// The scope exceeds the grant, or the client is no longer registered for any of it.
        Scope => Detail::new("token.rejected", "scope"),
    }
}

impl GrantRequest for RefreshRequest {
    /// Parses the form of §6.
    fn parse(form: &Params) -> Result<Self, Error> {
        let one = |name| form.one(name).map_err(Problem::in_token_request);
        let (token, scope) = (one("refresh_token")?, one("scope")?);
        let token = token.ok_or_else(|| Error::invalid_request(Rejection::Missing))?;
        let scope = scope.map(Scope::parse).transpose();
        Ok(Self {
            token: Secret::from_text(token),
            scope: scope.map_err(|_| Error::invalid_scope(Rejection::Scope))?,
        })
    }

    /// Rotates the refresh token of a grant.
    fn issue(&self, context: &GrantContext<'_>, ledger: &mut dyn Ledger) -> Outcome<PendingTokens> {
        let (client, issuer) = (context.client.client(), &context.issuer);
        // 1. The MAC is checked before any look-up.
        let Some((grant_id, generation)) = issuer.secret.read_refresh_token(self.token.expose())
        else {
            let reason = match self.token.is_refresh_token() {
                true => Rejection::Unknown,
                false => Rejection::Kind,
            };
            return Ok(Err(Error::invalid_grant(reason)));
        };
        // 2. One conditional statement. A request that loses a race reads the current state of the grant.
        let now = issuer.now;
        let idle_until = now + issuer.refresh.idle;
        let rotated = ledger.rotate_grant(&grant_id, generation, &client.id, idle_until, now)?;
        let successor = generation + 1;
        let replayed_within_grace = rotated.is_none();
        let grant = match rotated {
            Some(grant) => grant,
            None => match replayed(&grant_id, successor, client, ledger, issuer)? {
                Ok(grant) => grant,
                Err(reason) => return Ok(Err(Error::invalid_grant(reason))),
            },
        };
        // 3. The requested part of the grant, for which the client is still registered. A rejection undoes
        //    the rotation, so that the client can use its token again.
        let (scope, resource) = match self.narrow(&grant, context) {
            Ok(narrowed) => narrowed,
            Err(error) => {
                ledger.undo();
                return Ok(Err(error));
            }
        };
        let mut tokens = issuer.for_grant(TokenGrant {
            grant: &grant,
            scope: &scope,
            resource,
            nonce: None,
            id_alg: client.id_token_alg,
            generation: Some(successor),
        });
        tokens.replayed_within_grace = replayed_within_grace;
        Ok(Ok(tokens))
    }
}

impl RefreshRequest {
    /// Returns the scope and audience of the new token: the requested part of the grant, as far as the client
    /// is still registered for it.
    fn narrow<'p>(
        &self,
        grant: &Grant,
        context: &GrantContext<'p>,
    ) -> Result<(Scope, Option<&'p Resource>), Error> {
        let requested = self.scope.as_ref().unwrap_or(&grant.scope);
        if !requested.is_within(&grant.scope) {
            let beyond = requested.retain(|token| !grant.scope.contains(token));
            let error = Error::invalid_scope(Rejection::Scope);
            return Err(error.comparing(beyond.to_string(), grant.scope.to_string()));
        }
        let client = context.client;
        let effective = grant
            .within(&client.client().scopes, client.resources())
            .ok_or_else(|| Error::invalid_grant(Rejection::Scope))?;
        let scope = requested.retain(|token| effective.scope.contains(token));
        Ok((scope, effective.audience(context.resource)?))
    }
}

/// Handles a refresh token that is not the current one. Returns its grant if the client may receive the same
/// successor once more.
fn replayed(
    grant_id: &GrantId,
    successor: i64,
    client: &Client,
    ledger: &mut dyn Ledger,
    issuer: &TokenIssuer<'_>,
) -> Outcome<Grant, Rejection> {
    let now = issuer.now;
    let Some(grant) = ledger.find_active_grant(grant_id, now)? else {
        return Ok(Err(match ledger.is_expired(grant_id, now)? {
            true => Rejection::Expired,
            false => Rejection::GrantInactive,
        }));
    };
    if grant.client_id != client.id {
        return Ok(Err(Rejection::OtherClient));
    }
    if grant.generation < successor {
        return Ok(Err(Rejection::Ahead));
    }
    // In both directions, so that a clock that was set back does not reopen the grace period.
    let then = grant.rotated_at;
    let within_grace = now.since(then).max(then.since(now)) < issuer.refresh.grace;
    if grant.generation == successor && within_grace {
        return Ok(Ok(grant));
    }
    revoke(&grant, ledger, now)?;
    Ok(Err(Rejection::Reused))
}

/// Revokes a grant of which two parties have a refresh token (RFC 9700 §4.14.2).
fn revoke(grant: &Grant, ledger: &mut dyn Ledger, now: Timestamp) -> Result<(), StorageError> {
    let actor = Actor::Client(grant.client_id.clone());
    if ledger.revoke_grant(&grant.id, &RevocationReason::RefreshTokenReuse, &actor, now)? {
        ledger.put_audit(&Event {
            at: now,
            name: Name::RefreshReuse,
            actor,
            target: Target::Grant(grant.id.clone()),
            reason: None,
            detail: serde_json::json!({ "generation": grant.generation }),
        })?;
    }
    Ok(())
}
