//! Revocations by an administrator.

use serde_json::json;

use super::context::{AdminError, Context};
use crate::audit::{Name, RevocationReason, Target};
use crate::db::Transaction;
use crate::id::{ClientId, GrantId, Sid, UserId};
use crate::time::Timestamp;

/// The object of a revocation.
#[derive(Clone, Debug)]
pub enum Revocation {
    /// An access token, by its `jti`, until it expires.
    Token(String, Timestamp),
    /// A session and its grants except offline ones.
    Session(Sid),
    /// A grant and its tokens.
    Grant(GrantId),
    /// Everything that a user holds, or what one client holds of the user.
    User(UserId, Option<ClientId>),
    /// Everything that a client holds.
    Client(ClientId),
}

impl Revocation {
    /// Returns the target of the audit event.
    pub fn target(&self) -> Target {
        match self.clone() {
            Self::Token(jti, _) => Target::Token(jti),
            Self::Session(sid) => Target::Session(sid),
            Self::Grant(id) => Target::Grant(id),
            Self::User(id, _) => Target::User(id),
            Self::Client(id) => Target::Client(id),
        }
    }
}

/// The result of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// It is revoked now.
    Now,
    /// It was already revoked.
    Before,
    /// It never existed.
    Unknown,
}

/// Revokes something. The reason of the context is stored in the record.
///
/// # Errors
/// [`AdminError::Storage`].
pub fn revoke(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    what: &Revocation,
) -> Result<Revoked, AdminError> {
    let reason = &RevocationReason::stated(ctx.reason.as_deref());
    let (actor, now) = (&ctx.actor, ctx.now);
    let changed = match what {
        Revocation::Token(jti, expires_at) => {
            tx.revoke_token(jti, *expires_at, reason, actor, now)?;
            true
        }
        Revocation::Session(sid) => tx.revoke_session(sid, reason, actor, now)?,
        Revocation::Grant(id) => tx.revoke_grant(id, reason, actor, now)?,
        Revocation::Client(id) => tx.revoke_all_for_client(id, reason, actor, now)?,
        Revocation::User(id, Some(client)) => {
            tx.revoke_grants_of(id, client, reason, actor, now)? > 0
        }
        Revocation::User(id, None) => {
            tx.revoke_all_for_user(id, reason, actor, now)?;
            true
        }
    };
    if !changed {
        let is_known = match what {
            Revocation::Client(_) => false,
            Revocation::Session(sid) => tx.has_session(sid)?,
            Revocation::Grant(id) => tx.has_grant(id)?,
            Revocation::Token(..) | Revocation::User(..) => true,
        };
        return Ok(match is_known {
            true => Revoked::Before,
            false => Revoked::Unknown,
        });
    }
    let client = match what {
        Revocation::User(_, client) => client.as_ref().map(ClientId::as_str),
        _ => None,
    };
    let detail = json!({ "client": client });
    ctx.record(tx, Name::RevocationDone, what.target(), detail)?;
    Ok(Revoked::Now)
}
