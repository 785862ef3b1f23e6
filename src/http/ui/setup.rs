//! `/setup`: the first administrator chooses a user name and a password. The one-time link is exchanged for a cookie
//! at once, so that it does not remain in the address bar, the history or a `Referer`.

use actix_web::http::StatusCode;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::accounts::password::Password;
use crate::accounts::user::{User, Username};
use crate::admin::{self, AdminError, Context, first_admin};
use crate::app::App;
use crate::audit::Actor;
use crate::config::limits::LOGIN_HINT_CHARS;
use crate::db;
use crate::http::assets::{Assets, Frame};
use crate::http::error::{self, ACCOUNT, ErrorPage, HandlerError};
use crate::http::extract::{self, CookieKind};
use crate::http::response::{PagePolicy, add_cookie, page, see_other};
use crate::http::ui::form::{CsrfForm, TOO_MANY_SIGN_INS, sentence};
use crate::http::ui::session::password_session;
use crate::oauth::Detail;
use crate::secret::Secret;

#[derive(Template)]
#[template(path = "setup.html")]
struct SetupPage<'a> {
    frame: &'a Frame,
    csrf: String,
    username: String,
    error: Option<Problem>,
}

/// Why a field was rejected.
struct Problem {
    field: &'static str,
    text: String,
}

impl SetupPage<'_> {
    fn is_wrong(&self, field: &str) -> bool {
        self.error
            .as_ref()
            .is_some_and(|error| error.field == field)
    }
}

/// The purpose of this page's CSRF tokens.
const PURPOSE: &str = "setup";

/// Handles `GET /setup?token=…`, and `GET /setup`, which shows the form.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let shown = match extract::query(&request)
        .map(|query| query.one("token").map(|t| t.map(Secret::from_text)))
    {
        Ok(Ok(Some(link))) => exchange(&request, &app, &link).await,
        Ok(Ok(None)) => find_browser(&request, &app)
            .await
            .map(|browser| show(&app, &assets, &browser, "", None)),
        _ => Err(ErrorPage::SETUP_LINK.into()),
    };
    shown.unwrap_or_else(|error| error.respond(&request, &app, &assets))
}

/// Handles `POST /setup`.
pub async fn post(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    form: CsrfForm,
) -> HttpResponse {
    match set_up(&request, &app, &assets, &form).await {
        Ok(response) => response,
        Err(error) => error.respond(&request, &app, &assets),
    }
}

/// Exchanges the link, which works once, for a new cookie.
async fn exchange(
    request: &HttpRequest,
    app: &App,
    link: &Secret,
) -> Result<HttpResponse, HandlerError> {
    let browser = Secret::opaque(&app.entropy);
    let (hash, cookie, now) = (link.hash(), browser.hash(), app.clock.now());
    // Once there is an administrator, a guess costs no write transaction.
    if app.page_store.read(move |tx| tx.has_admin(now)).await? {
        return Err(ErrorPage::SETUP_LINK.into());
    }
    let ctx = Context::new(Actor::System, app.entropy.clone(), now);
    let opened = admin::execute(&app.page_store, ctx, move |tx, ctx| {
        first_admin::open_link(tx, ctx, &hash, &cookie)
    });
    if !opened.await? {
        return Err(ErrorPage::SETUP_LINK.into());
    }
    error::note(request, "admin.bootstrap", "link");
    let mut response = see_other("/setup");
    add_cookie(&mut response, &CookieKind::Interaction.keep(app, &browser));
    Ok(response)
}

/// Returns the cookie of a browser that opened a valid link, as long as there is no administrator.
async fn find_browser(request: &HttpRequest, app: &App) -> Result<Secret, HandlerError> {
    let browser = CookieKind::Interaction.read(request, app);
    let browser = browser.ok_or(ErrorPage::SETUP_LINK)?;
    let (hash, now) = (browser.hash(), app.clock.now());
    let open = app
        .page_store
        .read(move |tx| Ok(tx.has_setup_link(&hash, now)? && !tx.has_admin(now)?));
    match open.await? {
        true => Ok(browser),
        false => Err(ErrorPage::SETUP_LINK.into()),
    }
}

fn show(
    app: &App,
    assets: &Assets,
    browser: &Secret,
    typed: &str,
    error: Option<Problem>,
) -> HttpResponse {
    let template = SetupPage {
        frame: &assets.frame,
        csrf: app.secret.form_token(browser.expose(), PURPOSE),
        username: typed.chars().take(LOGIN_HINT_CHARS).collect(),
        error,
    };
    let mut response = page(StatusCode::OK, &template, &PagePolicy::default());
    add_cookie(&mut response, &CookieKind::Interaction.keep(app, browser));
    response
}

async fn set_up(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
    form: &CsrfForm,
) -> Result<HttpResponse, HandlerError> {
    // 1. The form was issued to this browser.
    let browser = find_browser(request, app).await?;
    form.token()?.verify(app, browser.expose(), PURPOSE)?;
    // 2. The user name and the password are acceptable.
    // Verbatim, because a password manager may leave a tab at the end, which `trim` removes like other space.
    let typed = form.verbatim("username")?.trim();
    let password = form.verbatim("password")?;
    let repeated = form.verbatim("repeat")?;
    let reject = |field, text: String| {
        let problem = Some(Problem { field, text });
        show(app, assets, &browser, typed, problem)
    };
    let Some(username) = Username::parse(typed) else {
        return Ok(reject(
            "username",
            "This cannot be a user name. Use letters, digits, dots and hyphens.".to_owned(),
        ));
    };
    if password != repeated {
        let text = "The two passwords are not the same.".to_owned();
        return Ok(reject("password", text));
    }
    let product = &app.config.branding.product;
    let password = match Password::parse_new(password, &username, product) {
        Ok(password) => password,
        Err(error) => return Ok(reject("password", sentence(&error))),
    };
    let Ok(phc) = app.password_hash(password).await else {
        let busy = Detail::new("login.busy", "hashing");
        error::refused(request, "503", busy, None);
        let mut response = reject("password", TOO_MANY_SIGN_INS.to_owned());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        error::retry_after(&mut response, error::BUSY_RETRY);
        return Ok(response);
    };
    // 3. The administrator and the session are created in one transaction.
    let now = app.clock.now();
    let user = User::new(username, &app.entropy, now);
    let cookie = Secret::opaque(&app.entropy);
    let session = password_session(app, &user, &cookie, now);
    let hash = browser.hash();
    let actor = Actor::User(user.id.clone());
    let ctx = Context::new(actor, app.entropy.clone(), now);
    let created = admin::execute(&app.page_store, ctx, move |tx, ctx| {
        first_admin::set_up(tx, ctx, &hash, (&user, &phc), &session)
    });
    match created.await {
        Ok(()) => {}
        Err(AdminError::Exists { .. }) => {
            return Ok(reject(
                "username",
                "An account with this name exists already.".to_owned(),
            ));
        }
        Err(AdminError::Unchanged(_) | AdminError::Storage(db::Error::Duplicate(_))) => {
            return Err(ErrorPage::SETUP_LINK.into());
        }
        Err(error) => return Err(error.into()),
    }
    error::note(request, "admin.bootstrap", "setup");
    let mut response = see_other(ACCOUNT);
    add_cookie(&mut response, &CookieKind::Session.keep(app, &cookie));
    Ok(response)
}
