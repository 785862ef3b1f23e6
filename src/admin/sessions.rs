//! Sessions of users. No other code stores a session.

use serde_json::json;

use super::context::{AdminError, Context};
use crate::accounts::session::Session;
use crate::accounts::throttle::{Attempt, Bucket};
use crate::audit::{Actor, Name, RevocationReason, Target};
use crate::db::Transaction;
use crate::id::{AuthorizationId, Sid, UserId};
use crate::secret::Hash;

/// A sign-in whose password was verified.
#[derive(Clone, Debug)]
pub struct VerifiedSignIn {
    /// The authorization that continues in the session.
    pub authorization: AuthorizationId,
    /// The session.
    pub session: Session,
    /// The cookie of the session that the browser has already, valid or not.
    pub old_cookie: Option<Hash>,
    /// The cookie by which the browser is known to throttling.
    pub device: Hash,
    /// The hash that replaces one of outdated cost.
    pub rehash: Option<Rehash>,
    /// The attempt, whose room in its buckets is returned.
    pub attempt: Attempt,
    /// The bucket that counts the account from any address.
    pub account: Bucket,
}

/// Two hashes of one password.
#[derive(Clone, Debug)]
pub struct Rehash {
    /// The stored hash that the password was verified against.
    pub old: String,
    /// The hash at the configured cost.
    pub new: String,
}

/// Result of [`sign_in`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignInResult {
    /// The session is stored, and the authorization continues in it.
    SignedIn,
    /// The user's auth epoch is not the one under which the password was verified: the password was replaced,
    /// for instance. There is no session.
    EpochChanged,
}

/// Opens the session of a sign-in and records it in its authorization.
///
/// # Errors
/// [`AdminError::Unchanged`] if the authorization is no longer open. The browser keeps its old session then.
pub fn sign_in(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    sign_in: &VerifiedSignIn,
) -> Result<SignInResult, AdminError> {
    let login = &sign_in.session.login;
    // The password was hashed before this transaction, so both statements have a condition: a password that
    // was set meanwhile remains, and prevents this sign-in. Its hash is locked before its user, in the order
    // of `user set-password`.
    if let Some(Rehash { old, new }) = &sign_in.rehash {
        tx.renew_password_hash(&login.user_id, old, new)?;
    }
    if !tx.holds_auth_epoch(&login.user_id, login.user_epoch)? {
        return Ok(SignInResult::EpochChanged);
    }
    tx.put_known_device(&sign_in.device, &login.user_id, ctx.now)?;
    let sid = open(tx, ctx, &sign_in.session, sign_in.old_cookie.as_ref())?;
    let is_open = tx.record_login(&sign_in.authorization, (&login.user_id, &sid), ctx.now)?;
    // Last, because all sign-ins from one network wait for its row.
    tx.record_success(&sign_in.attempt, &sign_in.account)?;
    match is_open {
        true => Ok(SignInResult::SignedIn),
        false => Err(AdminError::Unchanged(sign_in.authorization.to_string())),
    }
}

/// Opens a session in place of the one that the browser has, and ends the oldest sessions of a user who has too
/// many. A session of the same user keeps its `sid`, so that its grants stay active; a session of another user
/// ends. Returns the `sid`.
///
/// # Errors
/// [`AdminError::Storage`].
pub fn open(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    new: &Session,
    old_cookie: Option<&Hash>,
) -> Result<Sid, AdminError> {
    let sid = match renew(tx, ctx, new, old_cookie)? {
        Some(sid) => sid,
        None => {
            tx.put_session(new)?;
            let reason = RevocationReason::TooManySessions;
            let system = Context::new(Actor::System, ctx.entropy.clone(), ctx.now);
            let system = system.with_reason(reason.as_str());
            for surplus in tx.revoke_surplus_sessions(new, ctx.now)? {
                let target = Target::Session(surplus);
                system.record(tx, Name::SessionEnded, target, json!({}))?;
            }
            new.login.sid.clone()
        }
    };
    let target = Target::Session(sid.clone());
    let detail = json!({ "acr": new.login.acr.as_str(), "amr": new.login.amr.values() });
    ctx.record(tx, Name::SessionBegun, target, detail)?;
    Ok(sid)
}

/// Moves the browser's session to the new cookie if it belongs to the same user, and ends it otherwise.
fn renew(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    new: &Session,
    old_cookie: Option<&Hash>,
) -> Result<Option<Sid>, AdminError> {
    let Some(old_cookie) = old_cookie else {
        return Ok(None);
    };
    let Some((old, _)) = tx.find_session(old_cookie)? else {
        return Ok(None);
    };
    let sid = old.login.sid;
    if old.login.user_id == new.login.user_id && tx.renew_session(old_cookie, new)? {
        return Ok(Some(sid));
    }
    let reason = RevocationReason::AnotherUser;
    if tx.revoke_session(&sid, &reason, &Actor::System, ctx.now)? {
        let ctx = ctx.clone().with_reason(reason.as_str());
        ctx.record(tx, Name::SessionEnded, Target::Session(sid), json!({}))?;
    }
    Ok(None)
}

/// Revokes the session of a user who logs out, and its grants except offline ones.
///
/// # Errors
/// [`AdminError::Unchanged`] if it has already ended.
pub fn log_out(tx: &mut Transaction<'_>, ctx: &Context, sid: &Sid) -> Result<(), AdminError> {
    revoke_with(tx, ctx, sid, &RevocationReason::Logout)
}

/// Revokes one session of a user, and its grants except offline ones.
///
/// # Errors
/// [`AdminError::Unchanged`] if the user has no such session, or it was already revoked.
pub fn end(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    user: &UserId,
    sid: &Sid,
) -> Result<(), AdminError> {
    if !tx.is_session_of(user, sid)? {
        return Err(AdminError::Unchanged(sid.to_string()));
    }
    let reason = RevocationReason::stated(ctx.reason.as_deref());
    revoke_with(tx, ctx, sid, &reason)
}

/// Revokes a session. `reason` is stored in the revocation record.
fn revoke_with(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    sid: &Sid,
    reason: &RevocationReason,
) -> Result<(), AdminError> {
    if !tx.revoke_session(sid, reason, &ctx.actor, ctx.now)? {
        return Err(AdminError::Unchanged(sid.to_string()));
    }
    let target = Target::Session(sid.clone());
    ctx.record(tx, Name::SessionEnded, target, json!({}))?;
    Ok(())
}
