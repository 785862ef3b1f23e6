//! The session of the browser that sends a request.

use actix_web::HttpRequest;

use crate::accounts::session::{Factor, Session};
use crate::accounts::sign_in::CompletedFactors;
use crate::accounts::user::{User, Username};
use crate::app::App;
use crate::http::error::HandlerError;
use crate::http::extract::{self, CookieKind};
use crate::id::Sid;
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
        let Some(cookie) = CookieKind::Session.read(request, app) else {
            return Ok(None);
        };
        let found = app.store.read(move |tx| tx.find_session(&cookie.hash()));
        let found = found.await?;
        Ok(found.map(|(session, username)| Self { session, username }))
    }

    /// Returns the user of the session cookie if the session is not expired. A cookie without a session is
    /// logged.
    pub(super) async fn find(
        request: &HttpRequest,
        app: &App,
        now: Timestamp,
    ) -> Result<Option<Self>, HandlerError> {
        let user = Self::of_cookie(request, app).await?;
        if user.is_none() {
            extract::log_unknown_session(request, app);
        }
        let idle = app.config.login.session_idle.0;
        Ok(user.filter(|user| !user.session.is_expired(idle, now)))
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
