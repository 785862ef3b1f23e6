//! The session that a right password begins.

use actix_web::HttpRequest;

use crate::accounts::session::{ACR_PASSWORD, Login, Session};
use crate::accounts::throttle::{Attempt, Bucket};
use crate::accounts::user::User;
use crate::app::App;
use crate::audit::{Actor, Event, Name, Target};
use crate::db;
use crate::http::error::Notice;
use crate::http::extract::Jar;
use crate::http::pending::Stop;
use crate::id::{AuthorizationId, Sid};
use crate::secret::{Hash, Secret};
use crate::time::Timestamp;

/// What a right password leaves to be written down.
pub(super) struct Proof {
    pub attempt: Attempt,
    pub account: Bucket,
    pub device: Hash,
    /// A hash in the place of one with outdated cost.
    pub renewed: Option<String>,
}

pub(super) async fn begin_session(
    request: &HttpRequest,
    app: &App,
    id: AuthorizationId,
    user: User,
    proof: Proof,
) -> Result<Secret, Stop> {
    let now = app.clock.now();
    let cookie = Secret::opaque(&app.entropy);
    let old = Jar::Session.read(request, app).map(|cookie| cookie.hash());
    let session = fresh_session(app, &user, &cookie, now);
    let open = app.store.transaction(move |tx| {
        if let Some(phc) = proof.renewed {
            tx.put_password(&user.id, &phc, now)?;
        }
        tx.absolve(&proof.attempt, true, now)?;
        tx.end_series(&proof.account)?;
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
        tx.record_login(&id, (&user.id, &sid), now)
    });
    if !open.await? {
        return Err(Stop::Notice(Notice::ALREADY_DONE));
    }
    Ok(cookie)
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
        let why = "another person signed in";
        if tx.end_session(&standing.login.sid, why, "node", now)? {
            tx.put_audit(&Event {
                at: now,
                name: Name::SessionEnded,
                actor: Actor::User(new.login.user_id.clone()),
                target: Target::Session(standing.login.sid.clone()),
                reason: Some(why.to_owned()),
                detail: serde_json::json!({}),
            })?;
        }
    }
    tx.put_session(new)?;
    let why = "too many sessions";
    for surplus in tx.end_surplus_sessions(new, why, now)? {
        tx.put_audit(&Event {
            at: now,
            name: Name::SessionEnded,
            actor: Actor::System,
            target: Target::Session(surplus),
            reason: Some(why.to_owned()),
            detail: serde_json::json!({}),
        })?;
    }
    Ok(new.login.sid.clone())
}
