//! `/setup`: the first administrator sets a name and a password. The one-time link is exchanged at once
//! for a cookie, so that it does not stay in the address bar, the history or a `Referer`.

use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::accounts::password::{Password, Unusable, Weak};
use crate::accounts::user::{User, Username};
use crate::admin::{self, AdminError, Context, first_admin};
use crate::app::App;
use crate::audit::Actor;
use crate::config::limits::LOGIN_HINT_CHARS;
use crate::db;
use crate::http::assets::Assets;
use crate::http::authorization_context::HandlerError;
use crate::http::error::{self, ErrorPage};
use crate::http::extract::{self, CookieKind};
use crate::http::response::{Frame, PagePolicy, page, see_other};
use crate::http::ui::login::fresh_session;
use crate::secret::Secret;

#[derive(Template)]
#[template(path = "setup.html")]
struct SetupPage<'a> {
    frame: &'a Frame,
    csrf: String,
    username: String,
    error: Option<Problem>,
}

/// Why nobody was made: which field, and what to say.
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

/// What a form token of this page is for.
const PURPOSE: &str = "setup";

/// `GET /setup?token=…`, and the page itself.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let shown = match extract::query(&request)
        .map(|query| query.one("token").map(|t| t.map(Secret::from_text)))
    {
        Ok(Ok(Some(link))) => exchange(&request, &app, &link).await,
        Ok(Ok(None)) => match opened(&request, &app).await {
            Ok(browser) => Ok(show(&app, &assets, &browser, "", None)),
            Err(stop) => Err(stop),
        },
        _ => Err(HandlerError::ErrorPage(ErrorPage::SETUP_LINK)),
    };
    shown.unwrap_or_else(|stop| stop.respond(&request, &app, &assets))
}

/// `POST /setup`.
pub async fn post(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    body: Payload,
) -> HttpResponse {
    match set_up(&request, &app, &assets, body).await {
        Ok(response) => response,
        Err(stop) => stop.respond(&request, &app, &assets),
    }
}

/// Exchanges the link, which works once, for a cookie that this browser never had before.
async fn exchange(
    request: &HttpRequest,
    app: &App,
    link: &Secret,
) -> Result<HttpResponse, HandlerError> {
    let browser = Secret::opaque(&app.entropy);
    let (hash, cookie, now) = (link.hash(), browser.hash(), app.clock.now());
    // Once there is one, a stranger's guess costs no writer.
    if app.store.read(move |tx| tx.has_admin(now)).await? {
        return Err(HandlerError::ErrorPage(ErrorPage::SETUP_LINK));
    }
    let ctx = Context::new(Actor::System, app.entropy.clone(), now);
    let opened = admin::execute(&app.store, ctx, move |tx, ctx| {
        first_admin::open_link(tx, ctx, &hash, &cookie)
    });
    if !opened.await? {
        return Err(HandlerError::ErrorPage(ErrorPage::SETUP_LINK));
    }
    error::note(request, "admin.bootstrap", "link");
    let mut response = see_other("/setup");
    if let Err(error) = response.add_cookie(&CookieKind::Interaction.keep(app, &browser)) {
        tracing::error!(event = "http.cookie", %error);
    }
    Ok(response)
}

/// The browser that opened a link which is still good, while there is no administrator.
async fn opened(request: &HttpRequest, app: &App) -> Result<Secret, HandlerError> {
    let closed = || HandlerError::ErrorPage(ErrorPage::SETUP_LINK);
    let browser = CookieKind::Interaction
        .read(request, app)
        .ok_or_else(closed)?;
    let (hash, now) = (browser.hash(), app.clock.now());
    let open = app
        .store
        .read(move |tx| Ok(tx.has_setup_link(&hash, now)? && !tx.has_admin(now)?));
    match open.await? {
        true => Ok(browser),
        false => Err(closed()),
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
    // Ten minutes from here.
    if let Err(error) = response.add_cookie(&CookieKind::Interaction.keep(app, browser)) {
        tracing::error!(event = "http.cookie", %error);
    }
    response
}

async fn set_up(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
    body: Payload,
) -> Result<HttpResponse, HandlerError> {
    // 1. The form is ours, and this browser's.
    let form = extract::own_form(request, app, body)
        .await
        .map_err(HandlerError::ErrorPage)?;
    let browser = opened(request, app).await?;
    let bad_form = |_| HandlerError::ErrorPage(ErrorPage::BAD_FORM);
    let token = form.one("csrf").map_err(bad_form)?.unwrap_or_default();
    if !app.secret.accepts_form(token, browser.expose(), PURPOSE) {
        return Err(HandlerError::ErrorPage(ErrorPage::FORGED));
    }
    // 2. A name and a password that may be.
    let typed = form.one("username").map_err(bad_form)?.unwrap_or_default();
    let password = form.verbatim("password").map_err(bad_form)?;
    let repeated = form.verbatim("repeat").map_err(bad_form)?;
    let again = |field, text: String| {
        Ok(show(
            app,
            assets,
            &browser,
            typed,
            Some(Problem { field, text }),
        ))
    };
    let Some(username) = Username::parse(typed) else {
        return again(
            "username",
            "This cannot be a user name. Letters, digits, dots and hyphens always can.".to_owned(),
        );
    };
    if password != repeated {
        return again("password", "The two passwords are not the same.".to_owned());
    }
    let password = match checked(password, &username, &app.config.branding.product) {
        Ok(password) => password,
        Err(why) => return again("password", why),
    };
    let busy = |_| HandlerError::ErrorPage(ErrorPage::BUSY);
    let phc = app.password_hash(password).await.map_err(busy)?;
    // 3. One administrator, and a login; all of it once.
    let now = app.clock.now();
    let user = User::new(username, &app.entropy, now);
    let cookie = Secret::opaque(&app.entropy);
    let session = fresh_session(app, &user, &cookie, now);
    let hash = browser.hash();
    let actor = Actor::User(user.id.clone());
    let ctx = Context::new(actor, app.entropy.clone(), now);
    let made = admin::execute(&app.store, ctx, move |tx, ctx| {
        first_admin::set_up(tx, ctx, &hash, (&user, &phc), &session)
    });
    match made.await {
        Ok(()) => {}
        Err(AdminError::Exists { .. }) => {
            return again(
                "username",
                "There is an account of this name already.".to_owned(),
            );
        }
        Err(AdminError::Unchanged(_) | AdminError::Storage(db::Error::Duplicate(_))) => {
            return Err(HandlerError::ErrorPage(ErrorPage::SETUP_LINK));
        }
        Err(error) => return Err(error.into()),
    }
    error::note(request, "admin.bootstrap", "setup");
    let mut response = see_other("/account");
    if let Err(error) = response.add_cookie(&CookieKind::Session.keep(app, &cookie)) {
        tracing::error!(event = "http.cookie", %error);
    }
    Ok(response)
}

fn checked(typed: &str, user: &Username, product: &str) -> Result<Password, String> {
    let password = Password::parse(typed).map_err(|unusable| match unusable {
        Unusable::TooLong => "A password has at most 1024 bytes.".to_owned(),
        Unusable::Nul => "A password has no NUL character.".to_owned(),
    })?;
    password.check_new(user, product).map_err(|weak| {
        match weak {
            Weak::Short => "The password needs at least 15 characters.",
            Weak::Name => "This password is little more than a name. Choose something unrelated.",
            Weak::Common => {
                "This password is easy to guess. Choose several unrelated words, or let a password manager make one."
            }
        }
        .to_owned()
    })?;
    Ok(password)
}
