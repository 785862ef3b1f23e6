//! Sign-in with a password.

use actix_web::HttpRequest;

use super::attempt::AdmittedAttempt;
use crate::accounts::password::{Password, is_outdated};
use crate::accounts::user::{User, Username};
use crate::admin::sessions::{self, Rehash, SignInResult, VerifiedSignIn};
use crate::admin::{self, AdminError, Context};
use crate::app::App;
use crate::audit::Actor;
use crate::http::error::{ErrorPage, HandlerError};
use crate::http::extract::CookieKind;
use crate::http::ui::session::password_session;
use crate::id::AuthorizationId;
use crate::secret::Secret;

/// Result of a sign-in whose password was checked.
pub(super) enum SignInOutcome {
    /// A session is stored; this is its cookie.
    SignedIn(Secret),
    /// The password was not checked, because too many wait to be hashed.
    Busy,
    /// The reason for the log. The response does not contain it.
    Failed(&'static str),
}

/// Checks the password and opens the session.
pub(super) async fn sign_in(
    request: &HttpRequest,
    app: &App,
    authorization: &AuthorizationId,
    username: Option<Username>,
    password: Password,
    attempt: &AdmittedAttempt,
    device: &Secret,
) -> Result<SignInOutcome, HandlerError> {
    let (user, rehash) = match verify(app, username, password).await? {
        Verdict::Right(verified) => *verified,
        Verdict::Wrong => return Ok(SignInOutcome::Failed("credentials")),
        Verdict::Busy => return Ok(SignInOutcome::Busy),
    };
    let (now, cookie) = (app.clock.now(), Secret::opaque(&app.entropy));
    let (attempt, account) = attempt.buckets(&user.id);
    let verified = VerifiedSignIn {
        authorization: authorization.clone(),
        session: password_session(app, &user, &cookie, now),
        old_cookie: CookieKind::Session
            .read(request, app)
            .map(|cookie| cookie.hash()),
        device: device.hash(),
        rehash,
        attempt,
        account,
    };
    let ctx = Context::new(Actor::User(user.id), app.entropy.clone(), now);
    let opened = admin::execute(&app.page_store, ctx, move |tx, ctx| {
        sessions::sign_in(tx, ctx, &verified)
    });
    match opened.await {
        Ok(SignInResult::SignedIn) => Ok(SignInOutcome::SignedIn(cookie)),
        Ok(SignInResult::EpochChanged) => Ok(SignInOutcome::Failed("epoch")),
        Err(AdminError::Unchanged(_)) => Err(ErrorPage::ALREADY_DONE.into()),
        Err(error) => Err(error.into()),
    }
}

/// Result of the check of a password.
enum Verdict {
    /// The user, with a new hash if the cost of the stored one is outdated.
    Right(Box<(User, Option<Rehash>)>),
    /// The password is wrong, or the account does not exist or is locked.
    Wrong,
    /// Too many passwords wait to be hashed.
    Busy,
}

/// Checks the password of the user of this name. Does the same work for a name that does not exist.
async fn verify(
    app: &App,
    username: Option<Username>,
    password: Password,
) -> Result<Verdict, HandlerError> {
    let found = match username {
        Some(username) => {
            let find = app
                .page_store
                .read(move |tx| tx.find_credentials(&username));
            find.await?
        }
        None => None,
    };
    let (user, phc) = found.map_or((None, None), |(user, phc)| (Some(user), phc));
    let outdated = phc
        .clone()
        .filter(|phc| is_outdated(phc, &app.config.login.argon2));
    let Ok((password, is_right)) = app.password_matches(password, phc).await else {
        return Ok(Verdict::Busy);
    };
    let Some(user) = user.filter(|user| is_right && user.disabled_at.is_none()) else {
        return Ok(Verdict::Wrong);
    };
    let rehash = match outdated {
        Some(old) => match app.password_hash(password).await {
            Ok(new) => Some(Rehash { old, new }),
            Err(_) => return Ok(Verdict::Busy),
        },
        None => None,
    };
    Ok(Verdict::Right(Box::new((user, rehash))))
}
