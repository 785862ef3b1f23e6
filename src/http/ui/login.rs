//! `/login`: the page and its form. A sign-in is recorded, and the authorization continues at `/oauth2/authorize`.

mod attempt;
mod password;

use actix_web::http::StatusCode;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::accounts::password::{Password, PasswordError};
use crate::accounts::user::Username;
use crate::app::App;
use crate::config::limits::LOGIN_HINT_CHARS;
use crate::http::assets::{Assets, Frame};
use crate::http::authorization_context::{self, AuthorizationContext, HandlerError, dispatcher};
use crate::http::error::{self, ErrorPage};
use crate::http::extract::{Browser, CookieKind};
use crate::http::response::{PagePolicy, add_cookie, continue_to, page, see_other};
use crate::http::server::access_log;
use crate::http::ui::form::CsrfForm;
use crate::id::AuthorizationId;
use crate::oauth::Detail;
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
    reauthenticate: bool,
    policy_uri: Option<String>,
    tos_uri: Option<String>,
}

/// The purpose of this page's CSRF tokens.
const PURPOSE: &str = "login";

/// Handles `GET /login?authorization=ID`.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let id = match authorization_context::id_in_query(&request) {
        Ok(id) => id,
        Err(page) => return error::error_page(&request, &assets, page),
    };
    let browser = Browser::of(&request, &app);
    match load(&request, &app, &id, &browser).await {
        Ok(Some(context)) => show(&app, &assets, &id, &browser, &context, None),
        Ok(None) => see_other(&dispatcher(&id)),
        Err(error) => error.respond(&request, &app, &assets),
    }
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

/// Loads the open authorization. Returns `None` if the client gets an error, which a sign-in would not change; the
/// dispatcher sends it. Where no sign-in is required, one is accepted nevertheless: with another account, for
/// instance.
async fn load(
    request: &HttpRequest,
    app: &App,
    id: &AuthorizationId,
    browser: &Browser,
) -> Result<Option<AuthorizationContext>, HandlerError> {
    let now = app.clock.now();
    let (context, authorization) =
        authorization_context::resume(request, app, id, browser, now).await?;
    let is_refused = matches!(
        context.next_action(Some(&authorization), now),
        NextAction::Refuse(_)
    );
    Ok((!is_refused).then_some(context))
}

/// Renders the page, after a failed sign-in with the typed user name and a message.
fn show(
    app: &App,
    assets: &Assets,
    id: &AuthorizationId,
    browser: &Browser,
    context: &AuthorizationContext,
    failed: Option<(&str, String)>,
) -> HttpResponse {
    let request = &context.request;
    let session = context.stored.session.as_ref();
    let signed_in = session.map(|(_, username)| username.as_str().to_owned());
    let hint = request
        .login_hint
        .as_ref()
        .map(|hint| hint.chars().take(LOGIN_HINT_CHARS).collect());
    let (typed, error) = failed.unzip();
    let template = LoginPage {
        frame: &assets.frame,
        authorization: id.to_string(),
        csrf: app.secret.form_token(browser.secret.expose(), PURPOSE),
        client: Some(request.client.name.clone()),
        reauthenticate: signed_in.is_some(),
        username: typed
            .map(str::to_owned)
            .or(hint)
            .or(signed_in)
            .unwrap_or_default(),
        error,
        policy_uri: request.client.policy_uri.clone(),
        tos_uri: request.client.tos_uri.clone(),
    };
    let policy = PagePolicy {
        popup: true,
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
    let password = Password::parse(form.verbatim("password")?).map_err(|error| match error {
        PasswordError::TooLong => ErrorPage::PASSWORD_TOO_LONG,
        PasswordError::Nul => ErrorPage::PASSWORD_WITH_NUL,
    })?;
    let username = Username::parse(typed);
    // A text that cannot be a user name has counters of its own as well.
    let name = username.as_ref().map_or(typed, Username::as_str);
    let user_ref = app.secret.user_ref(name);
    access_log::name_user(request, &user_ref);
    let device = CookieKind::Device.read(request, app);
    let shown: String = typed.chars().take(LOGIN_HINT_CHARS).collect();
    let fail = |message| {
        let failed = Some((shown.as_str(), message));
        show(app, assets, &id, &browser, &context, failed)
    };
    let admitted =
        AdmittedAttempt::admit(request, app, username.as_ref(), user_ref, device.as_ref());
    let attempt = match admitted.await? {
        Admission::Admitted(attempt) => attempt,
        Admission::Busy => {
            count("unavailable");
            let detail = Detail::new("login.busy", "in_progress");
            return Err(ErrorPage::BUSY.with_detail(detail).into());
        }
        Admission::Throttled(throttled) => {
            count("throttled");
            let detail = Detail::new("login.throttled", throttled.reason);
            error::refused(request, "429", detail, None);
            let mut response = fail(format!(
                "Too many failed sign-ins. The password was not checked. {}",
                throttled.advice
            ));
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
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
        Ok(SignInOutcome::Failed(reason)) => {
            let is_spray = attempt.record_failure(app).await?;
            error::log(request, Detail::new("login.failed", reason), None);
            count("failed");
            if is_spray {
                error::log(request, Detail::high("login.spray", "network"), None);
            }
            return Ok(fail("Invalid user name or password".to_owned()));
        }
        Err(error) => {
            count("unavailable");
            attempt.refund(app).await;
            return Err(error);
        }
    };
    count("success");
    error::note(request, "session.rotated", "login");
    if context.stored.session.is_some() {
        error::note(request, "login.reauth", "login");
    }
    let mut response = continue_to(&dispatcher(&id), assets);
    add_cookie(&mut response, &CookieKind::Session.keep(app, &cookie));
    add_cookie(&mut response, &CookieKind::Device.keep(app, &device));
    Ok(response)
}
