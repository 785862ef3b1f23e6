//! Token revocation: RFC 7009, for access and refresh tokens. An unknown or invalid token is accepted; a token
//! of another client is rejected.

use portcullis_verifier::{Claims, Need, Verifier};

use super::client_auth::AuthenticatedClient;
use super::error::{Description, Error};
use super::ledger::{Ledger, Outcome, StorageError};
use super::macros::details;
use super::request::params::{Params, Problem};
use crate::audit::{Actor, Event, Name, RevocationReason, Target};
use crate::id::GrantId;
use crate::keys::ServerSecrets;
use crate::time::Timestamp;

/// The token to revoke, before any look-up.
#[derive(Debug)]
pub enum RevocationRequest {
    /// A refresh token of this server.
    Refresh(GrantId),
    /// An access token of this server that has not expired.
    Access(Box<Claims>),
    /// A value that cannot be used anyway.
    Invalid,
}

details! {
    enum Rejection {
        MissingToken => Detail::new("token.rejected", "token").described(Description::TOKEN),
        OtherClient =>
            Detail::new("revocation.denied", "client").described(Description::OTHER_CLIENT),
    }
}

impl RevocationRequest {
    /// Reads the parameter `token` (§2.1). `token_type_hint` is not needed.
    ///
    /// # Errors
    /// `invalid_request`.
    pub fn read(
        form: &Params,
        secret: &ServerSecrets,
        verifier: &Verifier,
        now: Timestamp,
    ) -> Result<Self, Error> {
        form.check_token_request()?;
        let token = form.one("token").map_err(Problem::in_token_request)?;
        let token = token.ok_or_else(|| Error::invalid_request(Rejection::MissingToken))?;
        if let Some((grant, _)) = secret.read_refresh_token(token) {
            return Ok(Self::Refresh(grant));
        }
        let claims = verifier.verify_at(token, &Need::any(), now.secs());
        Ok(claims.map_or(Self::Invalid, |claims| Self::Access(Box::new(claims))))
    }
}

/// Revokes an access token, or the grant of a refresh token.
///
/// # Errors
/// [`StorageError`]; the inner error is `invalid_request`, for a token of another client (§2.1).
pub fn revoke(
    request: &RevocationRequest,
    client: &AuthenticatedClient,
    ledger: &mut dyn Ledger,
    now: Timestamp,
) -> Outcome<()> {
    let client = client.client();
    let actor = Actor::Client(client.id.clone());
    let denied = || Error::invalid_request(Rejection::OtherClient);
    match request {
        RevocationRequest::Invalid => {}
        RevocationRequest::Refresh(id) => {
            if let Some(grant) = ledger.find_active_grant(id, now)? {
                if grant.client_id != client.id {
                    return Ok(Err(denied()));
                }
                if ledger.revoke_grant(&grant.id, &RevocationReason::Revoked, &actor, now)? {
                    audit(ledger, actor, Target::Grant(grant.id), now)?;
                }
            }
        }
        RevocationRequest::Access(claims) if claims.client_id != client.id.as_str() => {
            return Ok(Err(denied()));
        }
        RevocationRequest::Access(claims) => {
            ledger.revoke_token(
                &claims.jti,
                Timestamp::from_secs(claims.exp),
                &RevocationReason::Revoked,
                &actor,
                now,
            )?;
            audit(ledger, actor, Target::Token(claims.jti.clone()), now)?;
        }
    }
    Ok(Ok(()))
}

fn audit(
    ledger: &mut dyn Ledger,
    actor: Actor,
    target: Target,
    now: Timestamp,
) -> Result<(), StorageError> {
    ledger.put_audit(&Event {
        at: now,
        name: Name::RevocationDone,
        actor,
        target,
        reason: None,
        detail: serde_json::json!({}),
    })
}
