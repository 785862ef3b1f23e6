//! The refresh token grant: RFC 6749 §6, RFC 9700 §4.14. A token is a grant, a generation and a MAC;
//! nothing is stored per token. A refresh is one conditional UPDATE. A client that lost the answer
//! gets the same successor again for a while; any other reuse ends the grant.

use std::time::Duration;

use super::Grant;
use crate::audit::{Actor, Event, Name, RevocationReason, Target};
use crate::id::GrantId;
use crate::oauth::client::Client;
use crate::oauth::client_auth::AuthenticatedClient;
use crate::oauth::error::{Description, Detail, Error};
use crate::oauth::issue::{PendingTokens, TokenGrant, TokenIssuer};
use crate::oauth::ledger::{Ledger, StorageError};
use crate::oauth::request::params::Params;
use crate::oauth::request::scope::Scope;
use crate::oauth::resource::Resource;
use crate::oauth::token::refuse;
use crate::secret::Secret;
use crate::time::Timestamp;

/// What the client brought.
#[derive(Clone, Debug)]
pub struct RefreshRequest {
    token: Secret,
    scope: Option<Scope>,
}

impl RefreshRequest {
    /// Parses the form of §6.
    ///
    /// # Errors
    /// `invalid_request`, `invalid_scope`.
    pub fn parse(form: &Params) -> Result<Self, Error> {
        let token = form.one("refresh_token").map_err(refuse)?;
        let scope = form.one("scope").map_err(refuse)?;
        Ok(Self {
            token: Secret::from_text(
                token.ok_or_else(|| Error::invalid_request(Refresh::Missing))?,
            ),
            scope: scope
                .map(Scope::parse)
                .transpose()
                .map_err(|_| Error::invalid_scope(Refresh::Scope))?,
        })
    }
}

/// How long the same successor is given again, and how long an unused grant lives.
#[derive(Clone, Copy, Debug)]
pub struct RefreshLifetimes {
    /// Over at once when the successor is used.
    pub grace: Duration,
    /// From now on.
    pub idle: Duration,
}

/// Why a refresh token buys nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// None was sent.
    Missing,
    /// Something else of ours, or nothing of ours at all: refresh tokens have their own prefix.
    Kind,
    /// Not one of ours.
    Unknown,
    /// The grant ended, or what it rests on did.
    GrantEnded,
    /// The grant rested too long, or is as old as a grant may be.
    Expired,
    /// Another client's.
    OtherClient,
    /// Used before, and its successor too, or too long ago: the grant ends.
    Reused,
    /// Ahead of what is stored: the database went back.
    Ahead,
    /// Of a grant that the database cannot have forgotten: it went back.
    Lost,
    /// More than was granted, or nothing that the client is still registered for.
    Scope,
}

impl From<Refresh> for Detail {
    fn from(refresh: Refresh) -> Self {
        match refresh {
            Refresh::Missing => {
                Detail::new("token.rejected", "refresh_token").described(Description::REFRESH_TOKEN)
            }
            Refresh::Kind => Detail::new("token.rejected", "kind"),
            Refresh::Unknown => Detail::new("token.rejected", "unknown"),
            Refresh::GrantEnded => Detail::new("token.rejected", "grant_ended"),
            Refresh::Expired => Detail::new("token.expired", "grant"),
            Refresh::OtherClient => Detail::new("token.rejected", "client"),
            Refresh::Reused => Detail::high("token.refresh_reuse", "reused"),
            Refresh::Ahead => Detail::high("db.restored", "refresh_ahead"),
            Refresh::Lost => Detail::high("db.restored", "grant_lost"),
            Refresh::Scope => Detail::new("token.rejected", "scope"),
        }
    }
}

/// Rotates a grant's refresh token.
///
/// # Errors
/// [`StorageError`]; a refusal is an `Ok(Err(…))` and commits.
pub fn rotate(
    presented: &RefreshRequest,
    resource: Option<&str>,
    proven: &AuthenticatedClient,
    ledger: &mut dyn Ledger,
    mint: TokenIssuer<'_>,
) -> Result<Result<PendingTokens, Error>, StorageError> {
    let client = proven.client();
    // 1. The MAC, before anything is looked up: a wrong one is an unknown token.
    let Some((grant_id, generation)) = mint.secret.read_refresh_token(presented.token.expose())
    else {
        return Ok(Err(Error::invalid_grant(
            if presented.token.is_refresh_token() {
                Refresh::Unknown
            } else {
                Refresh::Kind
            },
        )));
    };
    // 2. One conditional statement; a request that loses the race reads the present state of the grant.
    let idle_until = mint.now + mint.refresh.idle;
    let rotated = ledger.rotate_grant(&grant_id, generation, &client.id, idle_until, mint.now)?;
    let successor = generation + 1;
    let again = rotated.is_none();
    let grant = match rotated {
        Some(grant) => grant,
        None => match retried(&grant_id, successor, client, ledger, mint)? {
            Ok(grant) => grant,
            Err(reason) => return Ok(Err(Error::invalid_grant(reason))),
        },
    };
    // 3. What is asked for is part of what was granted, and the client is still registered for it. A
    //    refusal costs the client nothing: the token stays the live one.
    let (scope, resource) = match allowed(&grant, presented, resource, proven) {
        Ok(allowed) => allowed,
        Err(error) => {
            ledger.undo();
            return Ok(Err(error));
        }
    };
    let mut decided = mint.for_grant(TokenGrant {
        grant: &grant,
        scope: &scope,
        resource,
        nonce: None,
        id_alg: client.id_token_alg,
        generation: Some(successor),
    });
    decided.replayed_within_grace = again;
    Ok(Ok(decided))
}

/// Returns scope and audience of the new token: of what the request asks for, the part that was granted
/// and that the client is still registered for.
fn allowed<'p>(
    grant: &Grant,
    presented: &RefreshRequest,
    resource: Option<&str>,
    proven: &'p AuthenticatedClient,
) -> Result<(Scope, Option<&'p Resource>), Error> {
    let asked = presented.scope.as_ref().unwrap_or(&grant.scope);
    if !asked.is_within(&grant.scope) {
        return Err(Error::invalid_scope(Refresh::Scope));
    }
    let within = grant.within(proven.client(), proven.resources());
    let within = within.ok_or_else(|| Error::invalid_grant(Refresh::Scope))?;
    let scope = asked.retain(|token| within.scope.contains(token));
    Ok((scope, within.audience(resource)?))
}

/// Why a grant does not stand.
fn inactive_reason(
    id: &GrantId,
    ledger: &mut dyn Ledger,
    now: Timestamp,
) -> Result<Refresh, StorageError> {
    Ok(if ledger.is_expired(id, now)? {
        Refresh::Expired
    } else {
        Refresh::GrantEnded
    })
}

/// Whether a token that was not the live one may have its successor once more.
fn retried(
    grant_id: &GrantId,
    successor: i64,
    client: &Client,
    ledger: &mut dyn Ledger,
    mint: TokenIssuer<'_>,
) -> Result<Result<Grant, Refresh>, StorageError> {
    let Some(grant) = ledger.find_active_grant(grant_id, mint.now)? else {
        return Ok(Err(inactive_reason(grant_id, ledger, mint.now)?));
    };
    if grant.client_id != client.id {
        return Ok(Err(Refresh::OtherClient));
    }
    if grant.generation < successor {
        return Ok(Err(Refresh::Ahead));
    }
    // In both directions: a clock that was set back does not open the window again.
    let (now, then) = (mint.now, grant.rotated_at);
    let within_grace = now.since(then).max(then.since(now)) < mint.refresh.grace;
    if grant.generation == successor && within_grace {
        return Ok(Ok(grant));
    }
    end(&grant, ledger, mint.now)?;
    Ok(Err(Refresh::Reused))
}

/// RFC 9700 §4.14.2: somebody else has a token of this grant.
fn end(grant: &Grant, ledger: &mut dyn Ledger, now: Timestamp) -> Result<(), StorageError> {
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
