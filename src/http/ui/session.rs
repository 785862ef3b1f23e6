//! The session of the browser that sends a request.

use actix_web::HttpRequest;

use crate::accounts::session::{Factor, Session};
use crate::accounts::sign_in::CompletedFactors;
use crate::accounts::user::{User, Username};
use crate::app::App;
use crate::db::{self, Transaction};
use crate::http::error::HandlerError;
use crate::http::extract::{self, CookieKind};
use crate::id::{Sid, UserId};
use crate::secret::Secret;
use crate::time::Timestamp;

/// The user who is signed in to a browser.
pub(in crate::http) struct SignedInUser {
    pub(super) session: Session,
    pub(super) username: Username,
}

impl SignedInUser {
    /// Returns the user of the session cookie, whether or not the session is expired.
    pub(super) async fn of_cookie(
        request: &HttpRequest,
        app: &App,
    ) -> Result<Option<Self>, HandlerError> {
        if CookieKind::Session.read(request, app).is_none() {
            return Ok(None);
        }
        Ok(Self::of_cookie_with(request, app, |_, _| Ok(())).await?.0)
    }

    /// Does the same as [`of_cookie`](Self::of_cookie), and loads more for the page in the same read.
    pub(super) async fn of_cookie_with<T: Send + 'static>(
        request: &HttpRequest,
        app: &App,
        load: impl FnOnce(&mut Transaction<'_>, Option<&Session>) -> Result<T, db::Error>
        + Send
        + 'static,
    ) -> Result<(Option<Self>, T), HandlerError> {
        let cookie = CookieKind::Session.read(request, app);
        let cookie = cookie.map(|cookie| cookie.hash());
        let read = app.page_store.read(move |tx| {
            let found = match cookie {
                Some(cookie) => tx.find_session(&cookie)?,
                None => None,
            };
            let loaded = load(tx, found.as_ref().map(|(session, _)| session))?;
            Ok((found, loaded))
        });
        let (found, loaded) = read.await?;
        let user = found.map(|(session, username)| Self { session, username });
        Ok((user, loaded))
    }

    /// Returns the user of the session cookie if the session is not expired, with what `load` returns about
    /// the user. A cookie without a session is logged.
    pub(super) async fn find_with<T: Send + 'static>(
        request: &HttpRequest,
        app: &App,
        now: Timestamp,
        load: impl FnOnce(&mut Transaction<'_>, &UserId) -> Result<T, db::Error> + Send + 'static,
    ) -> Result<Option<(Self, T)>, HandlerError> {
        if CookieKind::Session.read(request, app).is_none() {
            extract::log_unknown_session(request, app);
            return Ok(None);
        }
        let found = Self::of_cookie_with(request, app, |tx, session| {
            let user = session.map(|session| &session.login.user_id);
            user.map(|user| load(tx, user)).transpose()
        });
        let (Some(user), Some(loaded)) = found.await? else {
            extract::log_unknown_session(request, app);
            return Ok(None);
        };
        let idle = app.config.login.session_idle.0;
        Ok((!user.session.is_expired(idle, now)).then_some((user, loaded)))
    }

    /// Returns the `sid` to which the CSRF tokens of the user's forms belong.
    pub(super) fn sid(&self) -> &str {
        self.session.login.sid.as_str()
    }
}

/// Creates the session of a user whose password was verified, under a new cookie.
pub(super) fn password_session(app: &App, user: &User, cookie: &Secret, now: Timestamp) -> Session {
    let authentication = CompletedFactors::first(Factor::Password).authentication();
    let lifetime = app.config.login.session_absolute.0;
    let sid = Sid::new(&app.entropy, now);
    authentication.session(user, sid, cookie.hash(), lifetime, now)
}
