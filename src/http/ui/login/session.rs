//! The session that a right password begins.

use actix_web::HttpRequest;

use crate::accounts::session::{ACR_PASSWORD, Login, Session};
use crate::accounts::throttle::{Attempt, Bucket};
use crate::accounts::user::User;
use crate::app::App;
use crate::audit::{Actor, Event, Name, RevocationReason, Target};
use crate::db;
use crate::http::authorization_context::HandlerError;
use crate::http::error::ErrorPage;
use crate::http::extract::CookieKind;
use crate::id::{AuthorizationId, Sid};
use crate::secret::{Hash, Secret};
use crate::time::Timestamp;

/// What a right password leaves to be written down.
pub(in crate::http) struct Proof {
    pub attempt: Attempt,
    pub account: Bucket,
    pub device: Hash,
    /// A hash that replaces one of outdated cost.
    pub renewal: Option<Renewal>,
}

/// Two hashes of one password.
pub(in crate::http) struct Renewal {
    /// The stored hash that the password was verified against.
    pub old: String,
    /// The hash at the configured cost.
    pub new: String,
}

/// Result of the transaction that begins a session.
enum Begun {
    /// The session is stored, and the authorization goes on in it.
    Session,
    /// The authorization is no longer open.
    AlreadyDone,
    /// The user's auth epoch is not the one under which the password was verified.
    EpochChanged,
}

/// Writes the session of a verified password and returns its cookie. Returns `None`, and writes no
/// session, when the user was cut off since the password was read, as by a new password.
pub(in crate::http) async fn begin_session(
    request: &HttpRequest,
    app: &App,
    id: AuthorizationId,
    user: User,
    proof: Proof,
) -> Result<Option<Secret>, HandlerError> {
    let now = app.clock.now();
    let cookie = Secret::opaque(&app.entropy);
    let old = CookieKind::Session
        .read(request, app)
        .map(|cookie| cookie.hash());
    let session = fresh_session(app, &user, &cookie, now);
    let begun = app.store.transaction(move |tx| {
        // The password was hashed outside of this transaction, so both statements have a condition: a
        // password that was set meanwhile stays, and ends this sign-in. Its hash is locked before its
        // user, in the order of `user set-password`.
        if let Some(Renewal { old, new }) = &proof.renewal {
            tx.renew_password_hash(&user.id, old, new)?;
        }
        if !tx.holds_auth_epoch(&user.id, user.auth_epoch)? {
            return Ok(Begun::EpochChanged);
        }
        tx.put_known_device(&proof.device, &user.id, now)?;
        let sid = replace(tx, old.as_ref(), &session, now)?;
        tx.put_audit(&Event {
            at: now,
            name: Name::SessionBegun,
            actor: Actor::User(user.id.clone()),
            target: Target::Session(sid.clone()),
            reason: None,
            detail: serde_json::json!({ "acr": session.login.acr, "amr": session.login.amr }),
        })?;
        let open = tx.record_login(&id, (&user.id, &sid), now)?;
        // Last, since all sign-ins from one network wait for its row.
        tx.record_success(&proof.attempt, &proof.account)?;
        if !open {
            // The browser does not get the new cookie, so its session keeps the old one.
            tx.undo();
            return Ok(Begun::AlreadyDone);
        }
        Ok(Begun::Session)
    });
    match begun.await? {
        Begun::Session => Ok(Some(cookie)),
        Begun::AlreadyDone => Err(HandlerError::ErrorPage(ErrorPage::ALREADY_DONE)),
        Begun::EpochChanged => Ok(None),
    }
}

/// The login of somebody who just proved a password, under a cookie that nobody had before.
pub(in crate::http) fn fresh_session(
    app: &App,
    user: &User,
    cookie: &Secret,
    now: Timestamp,
) -> Session {
    Session {
        id_hash: cookie.hash(),
        login: Login {
            sid: Sid::new(&app.entropy, now),
            user_id: user.id.clone(),
            user_epoch: user.auth_epoch,
            auth_time: now,
            acr: ACR_PASSWORD.to_owned(),
            amr: vec!["pwd".to_owned()],
        },
        seen_at: now,
        expires_at: now + app.config.login.session_absolute.0,
    }
}

/// Puts the new session in the place of the browser's old one. The same person keeps the `sid`, so
/// that what was granted in it lives on; another person's login ends.
fn replace(
    tx: &mut db::Transaction<'_>,
    old: Option<&Hash>,
    new: &Session,
    now: Timestamp,
) -> Result<Sid, db::Error> {
    if let Some(old) = old
        && let Some((standing, _)) = tx.find_session(old)?
    {
        if standing.login.user_id == new.login.user_id && tx.renew_session(old, new)? {
            return Ok(standing.login.sid);
        }
        let reason = RevocationReason::AnotherUser;
        if tx.revoke_session(&standing.login.sid, &reason, &Actor::System, now)? {
            tx.put_audit(&Event {
                at: now,
                name: Name::SessionEnded,
                actor: Actor::User(new.login.user_id.clone()),
                target: Target::Session(standing.login.sid.clone()),
                reason: Some(reason.as_str().to_owned()),
                detail: serde_json::json!({}),
            })?;
        }
    }
    tx.put_session(new)?;
    let reason = RevocationReason::TooManySessions;
    for surplus in tx.revoke_surplus_sessions(new, now)? {
        tx.put_audit(&Event {
            at: now,
            name: Name::SessionEnded,
            actor: Actor::System,
            target: Target::Session(surplus),
            reason: Some(reason.as_str().to_owned()),
            detail: serde_json::json!({}),
        })?;
    }
    Ok(new.login.sid.clone())
}
