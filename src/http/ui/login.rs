//! `/login`: the page and its form. What happened is recorded, and the authorization goes on at
//! `/oauth2/authorize`.

mod session;

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::accounts::password::{Password, Unusable, is_outdated};
use crate::accounts::throttle::{self, ACCOUNT_AND_ADDRESS, Attempt, Verdict};
use crate::accounts::user::{User, Username};
use crate::app::App;
use crate::config::limits::LOGIN_HINT_CHARS;
use crate::http::assets::Assets;
use crate::http::authorization_context::{self, AuthorizationContext, HandlerError, dispatcher};
use crate::http::error::{self, ErrorPage};
use crate::http::extract::{self, Browser, CookieKind};
use crate::http::response::{Frame, PagePolicy, continue_to, page, see_other};
use crate::http::server::access_log;
use crate::http::server::client_address::ClientAddress;
use crate::http::server::rate_limit::whole_seconds;
use crate::id::AuthorizationId;
use crate::metrics::LOGINS;
use crate::oauth::Detail;
use crate::oauth::request::next_action::NextAction;
use crate::oauth::request::params::Params;
use crate::secret::{Secret, base64url};
pub(in crate::http) use session::fresh_session;
use session::{Proof, Renewal, begin_session};

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage<'a> {
    frame: &'a Frame,
    authorization: String,
    csrf: String,
    client: Option<String>,
    username: String,
    error: Option<String>,
    reauthenticate: bool,
    policy_uri: Option<String>,
    tos_uri: Option<String>,
}

/// What a form token of this page is for.
const PURPOSE: &str = "login";

/// `GET /login?authorization=ID`.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let id = match extract::query(&request).map(|query| {
        query
            .one("authorization")
            .map(|id| id.map(AuthorizationId::from))
    }) {
        Ok(Ok(Some(id))) => id,
        _ => return error::error_page(&request, &app, &assets, ErrorPage::NO_START),
    };
    let browser = Browser::of(&request, &app);
    match pending(&request, &app, &id, &browser).await {
        Ok(Some(pending)) => show(&app, &assets, &id, &browser, &pending, None),
        Ok(None) => see_other(&dispatcher(&id)),
        Err(stop) => stop.respond(&request, &app, &assets),
    }
}

/// `POST /login`.
pub async fn post(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    body: Payload,
) -> HttpResponse {
    match sign_in(&request, &app, &assets, body).await {
        Ok(response) => response,
        Err(stop) => stop.respond_to_form(&request, &app, &assets),
    }
}

/// The open authorization. `None` when it is to be refused, which a login would not change: the dispatcher
/// says so to the client. Where no login is due, one is still welcome: with another account, for instance.
async fn pending(
    request: &HttpRequest,
    app: &App,
    id: &AuthorizationId,
    browser: &Browser,
) -> Result<Option<AuthorizationContext>, HandlerError> {
    let now = app.clock.now();
    let begun = authorization_context::open(app, id, browser, now).await?;
    let params = Params::parse(begun.params.as_bytes())
        .map_err(|_| HandlerError::ErrorPage(ErrorPage::TOO_MANY_FIELDS))?;
    let pending =
        authorization_context::load_authorization_request(request, app, &params, now).await?;
    let is_refused = matches!(
        pending.next_action(Some(&begun), now),
        NextAction::Refuse(_)
    );
    Ok((!is_refused).then_some(pending))
}

fn show(
    app: &App,
    assets: &Assets,
    id: &AuthorizationId,
    browser: &Browser,
    pending: &AuthorizationContext,
    failed: Option<(&str, String)>,
) -> HttpResponse {
    let request = &pending.request;
    let known = pending
        .stored
        .session
        .as_ref()
        .map(|(_, username)| username.as_str().to_owned());
    let hint = request
        .login_hint
        .as_ref()
        .map(|hint| hint.chars().take(LOGIN_HINT_CHARS).collect());
    let template = LoginPage {
        frame: &assets.frame,
        authorization: id.to_string(),
        csrf: app.secret.form_token(browser.secret.expose(), PURPOSE),
        client: Some(request.client.name.clone()),
        reauthenticate: known.is_some(),
        username: failed
            .as_ref()
            .map(|(typed, _)| (*typed).to_owned())
            .or(hint)
            .or(known)
            .unwrap_or_default(),
        error: failed.map(|(_, message)| message),
        policy_uri: request.client.policy_uri.clone(),
        tos_uri: request.client.tos_uri.clone(),
    };
    let allowed = PagePolicy {
        popup: true,
        ..PagePolicy::default()
    };
    page(StatusCode::OK, &template, &allowed)
}

async fn sign_in(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
    body: Payload,
) -> Result<HttpResponse, HandlerError> {
    // 1. The form is ours, and this browser's.
    let form = extract::own_form(request, app, body)
        .await
        .map_err(HandlerError::ErrorPage)?;
    let bad_form = |_| HandlerError::ErrorPage(ErrorPage::BAD_FORM);
    let browser = Browser::of(request, app);
    let token = form.one("csrf").map_err(bad_form)?.unwrap_or_default();
    if browser.fresh
        || !app
            .secret
            .accepts_form(token, browser.secret.expose(), PURPOSE)
    {
        return Err(HandlerError::ErrorPage(ErrorPage::FORGED));
    }
    // 2. The authorization is open, and this browser's.
    let id = form
        .one("authorization")
        .map_err(bad_form)?
        .map(AuthorizationId::from);
    let id = id.ok_or(HandlerError::ErrorPage(ErrorPage::OTHER_BROWSER))?;
    let Some(pending) = pending(request, app, &id, &browser).await? else {
        return Ok(continue_to(&dispatcher(&id), assets));
    };
    // 3. The person is who they say.
    // As typed: a tab that a password manager or a paste leaves at its end is cut off with other space.
    let typed = form.verbatim("username").map_err(bad_form)?.trim();
    let password = form.verbatim("password").map_err(bad_form)?;
    let password = Password::parse(password).map_err(|unusable| {
        HandlerError::ErrorPage(match unusable {
            Unusable::TooLong => ErrorPage::PASSWORD_TOO_LONG,
            Unusable::Nul => ErrorPage::PASSWORD_WITH_NUL,
        })
    })?;
    let username = Username::parse(typed);
    let name = username.as_ref().map_or("", Username::as_str);
    let user_ref = app.secret.user_ref(name);
    access_log::name_person(request, &user_ref);
    let shown: String = typed.chars().take(LOGIN_HINT_CHARS).collect();
    let device = CookieKind::Device.read(request, app);
    let (attempt, verdict) = admit(request, app, username.clone(), device.as_ref()).await?;
    match verdict {
        Verdict::Admitted => {}
        Verdict::Busy => {
            count("unavailable");
            let detail = Detail::new("login.busy", "in_progress");
            return Err(HandlerError::ErrorPage(ErrorPage::BUSY.because(detail)));
        }
        too_many_attempts_page => {
            let (reason, wait, advice) = throttled(too_many_attempts_page);
            let detail = Detail::new("login.throttled", reason);
            error::refused(request, "429", detail, None);
            count("throttled");
            let message =
                format!("Too many failed sign-ins. The password was not checked. {advice}");
            let failed = Some((shown.as_str(), message));
            let mut response = show(app, assets, &id, &browser, &pending, failed);
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            error::retry_after(&mut response, wait);
            return Ok(response);
        }
    }
    let authenticated = match authenticate(app, username, password).await {
        Ok(authenticated) => authenticated,
        Err(stop) => return Err(refund(app, &attempt, stop).await),
    };
    // 4. A new session id, always.
    let device = device.unwrap_or_else(|| Secret::opaque(&app.entropy));
    let mut reason = "credentials";
    let mut begun = None;
    if let Some((user, renewal)) = authenticated {
        let proof = Proof {
            attempt: attempt.clone(),
            account: throttle::account(&user_ref, Some(&user.id)),
            device: device.hash(),
            renewal,
        };
        begun = match begin_session(request, app, id.clone(), user, proof).await {
            Ok(begun) => begun,
            Err(stop) => return Err(refund(app, &attempt, stop).await),
        };
        reason = "epoch";
    }
    let Some(cookie) = begun else {
        let spray = record_failure(app, attempt).await?;
        error::log(request, Detail::new("login.failed", reason), None);
        count("failed");
        if spray {
            error::log(request, Detail::high("login.spray", "network"), None);
        }
        let failed = Some((shown.as_str(), "Invalid user name or password".to_owned()));
        return Ok(show(app, assets, &id, &browser, &pending, failed));
    };
    count("success");
    error::note(request, "session.rotated", "login");
    if pending.stored.session.is_some() {
        error::note(request, "login.reauth", "login");
    }
    let mut response = continue_to(&dispatcher(&id), assets);
    for (jar, value) in [
        (CookieKind::Session, &cookie),
        (CookieKind::Device, &device),
    ] {
        if let Err(error) = response.add_cookie(&jar.keep(app, value)) {
            tracing::error!(event = "http.cookie", %error);
        }
    }
    Ok(response)
}

fn count(result: &'static str) {
    LOGINS.count(["password".into(), result.into()]);
}

/// Gives back the room of an attempt that was not evaluated, or whose session could not be written, and
/// returns `stop`. If the database is away, the attempt counts as abandoned.
async fn refund(app: &App, attempt: &Attempt, stop: HandlerError) -> HandlerError {
    count("unavailable");
    let attempt = attempt.clone();
    let refunded = app.store.transaction(move |tx| tx.refund_attempt(&attempt));
    if let Err(error) = refunded.await {
        tracing::warn!(event = "storage.error", reason = "throttle", %error);
    }
    stop
}

/// Counts a failed attempt before it is answered. Returns whether its network has spent the last of its
/// free failures.
async fn record_failure(app: &App, attempt: Attempt) -> Result<bool, HandlerError> {
    let clock = app.clock.clone();
    let counted = app.store.transaction(move |tx| {
        let now = tx.database_time(&clock)?;
        tx.record_failure(&attempt, now)
    });
    Ok(counted.await?)
}

/// Whether this attempt may be evaluated. It takes the room of a failure while its outcome is open.
async fn admit(
    request: &HttpRequest,
    app: &App,
    username: Option<Username>,
    device: Option<&Secret>,
) -> Result<(Attempt, Verdict), HandlerError> {
    let (clock, address) = (app.clock.clone(), ClientAddress::of(request));
    let name = username.as_ref().map_or("", Username::as_str);
    let person = app.secret.user_ref(name);
    let device = device.map(Secret::hash);
    let admitted = app.store.transaction(move |tx| {
        let now = tx.database_time(&clock)?;
        let known = match &device {
            Some(device) => tx.is_known_device(device, username.as_ref(), now)?,
            None => false,
        };
        let user = match &username {
            Some(username) => tx.find_user_id(username)?,
            None => None,
        };
        let attempt = match &device {
            Some(device) if known => {
                let device = base64url(device.as_bytes());
                Attempt::from_known_device(&person, user.as_ref(), &device)
            }
            _ => Attempt::from_anywhere(&person, user.as_ref(), address),
        };
        let verdict = tx.admit(&attempt, now)?;
        Ok((attempt, verdict))
    });
    Ok(admitted.await?)
}

/// What is said of a try that comes too early: the private reason, the wait, the advice.
fn throttled(verdict: Verdict) -> (&'static str, Duration, String) {
    let Verdict::Wait(wait) = verdict else {
        return (
            "in_a_row",
            ACCOUNT_AND_ADDRESS.most,
            "Use a browser that signed in before, or ask for a new password.".to_owned(),
        );
    };
    let seconds = whole_seconds(wait);
    let wait_for = match seconds {
        1 => "a second".to_owned(),
        2..=90 => format!("{seconds} seconds"),
        _ => format!("{} minutes", seconds.div_ceil(60)),
    };
    let advice = format!("Wait {wait_for}, then try again.");
    ("wait", wait, advice)
}

/// The person of a name and password, with a new hash where the cost of the stored one is outdated. The
/// same work is done for a name that does not exist.
async fn authenticate(
    app: &App,
    username: Option<Username>,
    password: Password,
) -> Result<Option<(User, Option<Renewal>)>, HandlerError> {
    let found = match username {
        Some(username) => {
            app.store
                .read(move |tx| tx.find_credentials(&username))
                .await?
        }
        None => None,
    };
    let (user, phc) = found.map_or((None, None), |(user, phc)| (Some(user), phc));
    let outdated = phc
        .clone()
        .filter(|phc| is_outdated(phc, &app.config.login.argon2));
    let busy = |_| HandlerError::ErrorPage(ErrorPage::BUSY);
    let (password, right) = app.password_matches(password, phc).await.map_err(busy)?;
    let Some(user) = user.filter(|user| right && user.disabled_at.is_none()) else {
        return Ok(None);
    };
    let renewal = match outdated {
        Some(old) => {
            let new = app.password_hash(password).await.map_err(busy)?;
            Some(Renewal { old, new })
        }
        None => None,
    };
    Ok(Some((user, renewal)))
}
