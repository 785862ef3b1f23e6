//! Token revocation: RFC 7009. Both kinds of tokens, honest answers: an unknown or dead token is
//! fine, another client's is not.

use portcullis_verifier::{Claims, Need, Verifier};

use super::client_auth::AuthenticatedClient;
use super::error::{Description, Detail, Error};
use super::ledger::{Ledger, StorageError};
use super::request::params::Params;
use crate::audit::{Actor, Event, Name, RevocationReason, Target};
use crate::id::GrantId;
use crate::keys::ServerSecrets;
use crate::oauth::token::refuse;
use crate::time::Timestamp;

/// What the token turned out to be, before anything is looked up.
#[derive(Debug)]
pub enum RevocationRequest {
    /// A refresh token of ours.
    Refresh(GrantId),
    /// An access token of ours that has not expired.
    Access(Box<Claims>),
    /// Nothing that could still be used.
    Dead,
}

impl RevocationRequest {
    /// Reads `token` of the form (§2.1). The hint about its type is not needed.
    ///
    /// # Errors
    /// `invalid_request`.
    pub fn read(
        form: &Params,
        secret: &ServerSecrets,
        verifier: &Verifier,
        now: Timestamp,
    ) -> Result<Self, Error> {
        if let Some(problem) = form.first_problem() {
            return Err(refuse(problem));
        }
        let token = form.one("token").map_err(refuse)?;
        let token = token.ok_or_else(|| {
            let detail = Detail::new("token.rejected", "token").described(Description::TOKEN);
            Error::invalid_request(detail)
        })?;
        if let Some((grant, _)) = secret.read_refresh_token(token) {
            return Ok(Self::Refresh(grant));
        }
        let claims = verifier.verify_at(token, &Need::any(), now.secs());
        Ok(claims.map_or(Self::Dead, |claims| Self::Access(Box::new(claims))))
    }
}

/// Ends what the token stands for: the grant of a refresh token, an access token alone.
///
/// # Errors
/// [`StorageError`]; `invalid_request` inside, for another client's token (§2.1).
pub fn revoke(
    presented: &RevocationRequest,
    proven: &AuthenticatedClient,
    ledger: &mut dyn Ledger,
    now: Timestamp,
) -> Result<Result<(), Error>, StorageError> {
    let client = proven.client();
    let actor = Actor::Client(client.id.clone());
    let denied = Detail::new("revocation.denied", "client").described(Description::OTHER_CLIENT);
    let denied = || Error::invalid_request(denied);
    match presented {
        RevocationRequest::Dead => {}
        RevocationRequest::Refresh(id) => {
            if let Some(grant) = ledger.find_active_grant(id, now)? {
                if grant.client_id != client.id {
                    return Ok(Err(denied()));
                }
                if ledger.revoke_grant(&grant.id, &RevocationReason::Revoked, &actor, now)? {
                    done(ledger, actor, Target::Grant(grant.id), now)?;
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
            done(ledger, actor, Target::Token(claims.jti.clone()), now)?;
        }
    }
    Ok(Ok(()))
}

fn done(
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
