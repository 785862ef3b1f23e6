//! Sessions of users.

use serde_json::json;

use super::context::{AdminError, Context};
use crate::audit::{Name, Target};
use crate::db::Transaction;
use crate::id::{Sid, UserId};

/// Ends one session of a user, and its grants but for offline ones.
///
/// # Errors
/// [`AdminError::Unchanged`] if the user has no such session, or it ended before.
pub fn end(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    user: &UserId,
    sid: &Sid,
) -> Result<(), AdminError> {
    let sessions = tx.list_sessions(user)?;
    let is_own = sessions.iter().any(|session| session.login.sid == *sid);
    let reason = ctx.reason.as_deref().unwrap_or("revoked");
    if !is_own || !tx.end_session(sid, reason, &ctx.actor.to_string(), ctx.now)? {
        return Err(AdminError::Unchanged(sid.to_string()));
    }
    let target = Target::Session(sid.clone());
    ctx.record(tx, Name::SessionEnded, target, json!({}))?;
    Ok(())
}
