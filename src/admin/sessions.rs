//! Sessions of users.

use serde_json::json;

use super::context::{AdminError, Context};
use crate::audit::{Name, RevocationReason, Target};
use crate::db::Transaction;
use crate::id::{Sid, UserId};

/// Revokes one session of a user, and its grants except offline ones.
///
/// # Errors
/// [`AdminError::Unchanged`] if the user has no such session, or it was revoked before.
pub fn end(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    user: &UserId,
    sid: &Sid,
) -> Result<(), AdminError> {
    let sessions = tx.list_sessions(user)?;
    let is_own = sessions.iter().any(|session| session.login.sid == *sid);
    let reason = RevocationReason::stated(ctx.reason.as_deref());
    if !is_own || !tx.revoke_session(sid, &reason, &ctx.actor, ctx.now)? {
        return Err(AdminError::Unchanged(sid.to_string()));
    }
    let target = Target::Session(sid.clone());
    ctx.record(tx, Name::SessionEnded, target, json!({}))?;
    Ok(())
}
