//! `/login`: the page and its form. A sign-in is recorded, and the authorization continues at `/oauth2/authorize`.
//! Without an authorization, a sign-in to the account page begins.

mod attempt;
mod password;

use actix_web::http::StatusCode;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::accounts::password::{Password, PasswordError};
use crate::accounts::session::Session;
use crate::accounts::user::Username;
use crate::app::App;
use crate::config::limits::LOGIN_HINT_CHARS;
use crate::http::assets::{Assets, Frame};
use crate::http::authorization_context::{
    self, HandlerError, Resumed, begin, dispatcher, load_stored, login_page,
};
use crate::http::error::{self, ACCOUNT, ErrorPage};
use crate::http::extract::{Browser, CookieKind};
use crate::http::response::{PagePolicy, add_cookie, continue_to, page, see_other};
use crate::http::server::access_log;
use crate::http::ui::form::{CsrfForm, TOO_MANY_SIGN_INS, sentence};
use crate::id::AuthorizationId;
use crate::oauth::Detail;
use crate::oauth::request::authorize::Request;
use crate::oauth::request::next_action::NextAction;
use crate::secret::Secret;
use attempt::{Admission, AdmittedAttempt, count};
use password::{SignInOutcome, sign_in};

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage<'a> {
    frame: &'a Frame,
    authorization: String,
    csrf: String,
    client: Option<String>,
    username: String,
    error: Option<String>,
    /// Whether the user who is signed in must sign in again.
    reauthenticate: bool,
    /// The user who is signed in, if another account is to be used.
    other: Option<String>,
    policy_uri: Option<String>,
    tos_uri: Option<String>,
}

/// The purpose of this page's CSRF tokens.
const PURPOSE: &str = "login";

/// Handles `GET /login?authorization=ID`, and `GET /login`, which starts a sign-in to the account page.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let browser = Browser::of(&request, &app);
    let shown = match authorization_context::id_in_query(&request) {
        Ok(Some(id)) => open(&request, &app, &assets, &id, &browser).await,
        Ok(None) => start(&request, &app, &browser).await,
        Err(page) => Err(page.into()),
    };
    shown.unwrap_or_else(|error| error.respond(&request, &app, &assets))
}

async fn open(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
    id: &AuthorizationId,
    browser: &Browser,
) -> Result<HttpResponse, HandlerError> {
    Ok(match load(request, app, id, browser).await? {
        // A sign-in to the account page is complete.
        Some(context) if context.request.is_none() && context.session.is_some() => {
            see_other(&dispatcher(id))
        }
        Some(context) => show(app, assets, id, browser, &context, None),
        None => see_other(&dispatcher(id)),
    })
}

/// Starts a sign-in to the account page, unless the user is signed in. The request does not choose where it ends.
async fn start(
    request: &HttpRequest,
    app: &App,
    browser: &Browser,
) -> Result<HttpResponse, HandlerError> {
    let now = app.clock.now();
    let stored = load_stored(request, app, None, now).await?;
    if stored.session.is_some() {
        return Ok(see_other(ACCOUNT));
    }
    let id = begin(request, app, None, Some(browser.hash()), now).await?;
    let mut response = see_other(&login_page(&id));
    add_cookie(
        &mut response,
        &CookieKind::Interaction.keep(app, &browser.secret),
    );
    Ok(response)
}

/// Handles `POST /login`.
pub async fn post(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    form: CsrfForm,
) -> HttpResponse {
    match submit(&request, &app, &assets, &form).await {
        Ok(response) => response,
        Err(error) => error.respond_to_form(&request, &app, &assets),
    }
}

/// What the page shows of an open authorization.
struct LoginContext {
    /// The request of the client. `None` for a sign-in to the account page.
    request: Option<Request>,
    session: Option<(Session, Username)>,
    /// Whether the request requires a sign-in of the user who is signed in. Otherwise they chose to use another
    /// account.
    is_due: bool,
}

/// Loads the open authorization. Returns `None` if the client gets an error, which a sign-in would not change; the
/// dispatcher sends it. Where no sign-in is required, one is accepted nevertheless: with another account, for
/// instance.
async fn load(
    request: &HttpRequest,
    app: &App,
    id: &AuthorizationId,
    browser: &Browser,
) -> Result<Option<LoginContext>, HandlerError> {
    let now = app.clock.now();
    let (context, authorization) =
        match authorization_context::resume(request, app, id, browser, now).await? {
            Resumed::Client(resumed) => *resumed,
            Resumed::Account(session) => {
                return Ok(Some(LoginContext {
                    request: None,
                    session,
                    is_due: true,
                }));
            }
        };
    let is_due = match context.next_action(Some(&authorization), now) {
        NextAction::Refuse(_) => return Ok(None),
        NextAction::Login => true,
        NextAction::Consent | NextAction::Answer { .. } => false,
    };
    Ok(Some(LoginContext {
        request: Some(context.request),
        session: context.stored.session,
        is_due,
    }))
}

/// A sign-in that failed and can be repeated on the page.
struct Failed {
    /// The user name, as it was typed.
    typed: String,
    /// Message to the user.
    message: String,
}

/// Renders the page.
fn show(
    app: &App,
    assets: &Assets,
    id: &AuthorizationId,
    browser: &Browser,
    context: &LoginContext,
    failed: Option<Failed>,
) -> HttpResponse {
    let request = context.request.as_ref();
    let client = request.map(|request| &request.client);
    let signed_in = context.session.as_ref();
    let signed_in = signed_in.map(|(_, username)| username.as_str().to_owned());
    let hint = request
        .and_then(|request| request.login_hint.as_ref())
        .map(|hint| hint.chars().take(LOGIN_HINT_CHARS).collect());
    let (reauthenticate, other) = match context.is_due {
        true => (signed_in, None),
        false => (None, signed_in),
    };
    let (typed, error) = failed.map(|failed| (failed.typed, failed.message)).unzip();
    let template = LoginPage {
        frame: &assets.frame,
        authorization: id.to_string(),
        csrf: app.secret.form_token(browser.secret.expose(), PURPOSE),
        client: client.map(|client| client.name.clone()),
        username: typed
            .or_else(|| hint.filter(|_| other.is_none()))
            .or_else(|| reauthenticate.clone())
            .unwrap_or_default(),
        reauthenticate: reauthenticate.is_some(),
        other,
        error,
        policy_uri: client.and_then(|client| client.policy_uri.clone()),
        tos_uri: client.and_then(|client| client.tos_uri.clone()),
    };
    let policy = PagePolicy {
        popup: request.is_some(),
        ..PagePolicy::default()
    };
    page(StatusCode::OK, &template, &policy)
}

async fn submit(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
    form: &CsrfForm,
) -> Result<HttpResponse, HandlerError> {
    // 1. The form was issued to this browser.
    let browser = Browser::of(request, app);
    let token = form.token()?;
    if browser.is_new {
        return Err(ErrorPage::FORGED.into());
    }
    token.verify(app, browser.secret.expose(), PURPOSE)?;
    // 2. The authorization is open and belongs to this browser.
    let id = form.one("authorization")?.map(AuthorizationId::from);
    let id = id.ok_or(ErrorPage::OTHER_BROWSER)?;
    let Some(context) = load(request, app, &id, &browser).await? else {
        return Ok(continue_to(&dispatcher(&id), assets));
    };
    // 3. The attempt is admitted.
    // Verbatim, because a password manager may leave a tab at the end, which `trim` removes like other space.
    let typed = form.verbatim("username")?.trim();
    let shown: String = typed.chars().take(LOGIN_HINT_CHARS).collect();
    let fail = |status, message: String| {
        let typed = shown.clone();
        let failed = Some(Failed { typed, message });
        let mut response = show(app, assets, &id, &browser, &context, failed);
        *response.status_mut() = status;
        response
    };
    let busy = |detail| {
        count("unavailable");
        error::refused(request, "503", detail, None);
        let mut response = fail(
            StatusCode::SERVICE_UNAVAILABLE,
            TOO_MANY_SIGN_INS.to_owned(),
        );
        error::retry_after(&mut response, error::BUSY_RETRY);
        response
    };
    let password = match Password::parse(form.verbatim("password")?) {
        Ok(password) => password,
        Err(error) => {
            let reason = match error {
                PasswordError::TooLong => "too_long",
                PasswordError::Nul => "nul",
            };
            error::refused(request, "400", Detail::new("login.failed", reason), None);
            return Ok(fail(StatusCode::BAD_REQUEST, sentence(&error)));
        }
    };
    let username = Username::parse(typed);
    // A text that cannot be a user name has counters of its own as well.
    let name = username.as_ref().map_or(typed, Username::as_str);
    let user_ref = app.secret.user_ref(name);
    access_log::name_user(request, &user_ref);
    let device = CookieKind::Device.read(request, app);
    let admitted =
        AdmittedAttempt::admit(request, app, username.as_ref(), user_ref, device.as_ref());
    let attempt = match admitted.await? {
        Admission::Admitted(attempt) => attempt,
        Admission::Busy => return Ok(busy(Detail::new("login.busy", "in_progress"))),
        Admission::Throttled(throttled) => {
            count("throttled");
            let detail = Detail::new("login.throttled", throttled.reason);
            error::refused(request, "429", detail, None);
            let mut response = fail(
                StatusCode::TOO_MANY_REQUESTS,
                format!(
                    "Too many failed sign-ins. The password was not checked. {}",
                    throttled.advice
                ),
            );
            error::retry_after(&mut response, throttled.retry_after);
            return Ok(response);
        }
    };
    // 4. The password is right, and a session begins, always with a new cookie. A device cookie that this server did
    //    not issue for this user is replaced, because the program that planted it would be known as the user's browser.
    let device = device
        .filter(|_| attempt.is_from_known_device())
        .unwrap_or_else(|| Secret::opaque(&app.entropy));
    let outcome = sign_in(request, app, &id, username, password, &attempt, &device);
    let cookie = match outcome.await {
        Ok(SignInOutcome::SignedIn(cookie)) => cookie,
        Ok(SignInOutcome::Busy) => {
            attempt.refund(app).await;
            return Ok(busy(Detail::new("login.busy", "hashing")));
        }
        Ok(SignInOutcome::Failed(reason)) => {
            let is_spray = attempt.record_failure(app).await?;
            error::log(request, Detail::new("login.failed", reason), None);
            count("failed");
            if is_spray {
                error::log(request, Detail::high("login.spray", "network"), None);
            }
            let message = "Invalid user name or password".to_owned();
            return Ok(fail(StatusCode::OK, message));
        }
        Err(error) => {
            count("unavailable");
            attempt.refund(app).await;
            return Err(error);
        }
    };
    count("success");
    error::note(request, "session.rotated", "login");
    if context.session.is_some() {
        error::note(request, "login.reauth", "login");
    }
    let mut response = continue_to(&dispatcher(&id), assets);
    add_cookie(&mut response, &CookieKind::Session.keep(app, &cookie));
    add_cookie(&mut response, &CookieKind::Device.keep(app, &device));
    Ok(response)
}
