//! `/account`: the signed-in user, the clients that they allowed access, and logout; or a button to sign in.
//! `/` redirects to it.

use actix_web::http::StatusCode;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::accounts::consent::Consent;
use crate::admin::{self, AdminError, Context, consents};
use crate::app::App;
use crate::audit::Actor;
use crate::db::{Error, Transaction};
use crate::http::assets::{Assets, Frame};
use crate::http::error::{self, ACCOUNT, ErrorPage, HandlerError};
use crate::http::response::{PagePolicy, page, see_other};
use crate::http::ui::form::CsrfForm;
use crate::http::ui::logout;
use crate::http::ui::scopes::{ScopeLine, lines};
use crate::http::ui::session::SignedInUser;
use crate::id::{ConsentId, UserId};
use crate::oauth::request::scope::Scope;
use crate::time::Timestamp;

#[derive(Template)]
#[template(path = "account.html")]
struct AccountPage<'a> {
    frame: &'a Frame,
    username: Option<String>,
    admin: Option<Administrator>,
    consents: Vec<Application>,
    csrf: String,
    withdraw: String,
}

/// A client that the user allowed access.
struct Application {
    id: String,
    name: String,
    scopes: Vec<ScopeLine>,
    since: String,
}

impl Application {
    /// Returns the clients that a user allowed access.
    fn list(user: &UserId, tx: &mut Transaction<'_>, now: Timestamp) -> Result<Vec<Self>, Error> {
        let consents = tx.list_consents(user, now)?.into_iter();
        let allowed: Vec<(Consent, String, Scope)> = consents
            .map(|(consent, name)| {
                let scope = Scope::parse(&consent.scope).unwrap_or_default();
                (consent, name, scope)
            })
            .collect();
        let scopes = allowed.iter().map(|(_, _, scope)| scope);
        let all = scopes.fold(Scope::default(), |all, scope| all.union(scope));
        let described = tx.find_scope_descriptions(&all)?;
        let list = allowed.into_iter().map(|(consent, name, scope)| Self {
            id: consent.id.into_string(),
            name,
            scopes: lines(&scope, &described),
            since: consent.granted_at.to_string().chars().take(10).collect(),
        });
        Ok(list.collect())
    }
}

/// What an administrator is shown in addition.
struct Administrator {
    /// When the role expires, if it is temporary.
    until: Option<String>,
    /// Whether all administrators are temporary.
    alone: bool,
    /// Whether no client is registered yet.
    first_steps: bool,
}

/// Formats a time to the minute: `2026-12-02 20:26 UTC`.
fn to_the_minute(at: Timestamp) -> String {
    let text = at.to_string();
    let minute = text.get(..16).unwrap_or(&text);
    format!("{} UTC", minute.replace('T', " "))
}

impl Administrator {
    fn of(user: &UserId, tx: &mut Transaction<'_>, now: Timestamp) -> Result<Option<Self>, Error> {
        let mut admins = tx.list_admins()?;
        admins.retain(|admin| admin.is_live(now));
        let Some(own) = admins.iter().find(|admin| admin.user_id == *user) else {
            return Ok(None);
        };
        Ok(Some(Self {
            until: own.expires_at.map(to_the_minute),
            alone: admins.iter().all(|admin| admin.expires_at.is_some()),
            first_steps: !tx.has_clients()?,
        }))
    }
}

/// Handles `GET /`.
pub async fn home() -> HttpResponse {
    see_other(ACCOUNT)
}

/// The purpose of the CSRF tokens by which consents are withdrawn.
const PURPOSE: &str = "account";

/// Handles `GET /account`.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    match show(&request, &app, &assets).await {
        Ok(response) => response,
        Err(error) => error.respond(&request, &app, &assets),
    }
}

async fn show(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
) -> Result<HttpResponse, HandlerError> {
    let now = app.clock.now();
    let mut template = AccountPage {
        frame: &assets.frame,
        username: None,
        admin: None,
        consents: Vec::new(),
        csrf: String::new(),
        withdraw: String::new(),
    };
    let found = SignedInUser::find_with(request, app, now, move |tx, user| {
        let admin = Administrator::of(user, tx, now)?;
        Ok((admin, Application::list(user, tx, now)?))
    });
    if let Some((user, (admin, consents))) = found.await? {
        template.csrf = app.secret.form_token(user.sid(), logout::PURPOSE);
        template.withdraw = app.secret.form_token(user.sid(), PURPOSE);
        template.username = Some(user.username.as_str().to_owned());
        template.admin = admin;
        template.consents = consents;
    }
    Ok(page(StatusCode::OK, &template, &PagePolicy::default()))
}

/// Handles `POST /account`: withdraws a consent.
pub async fn post(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    form: CsrfForm,
) -> HttpResponse {
    match withdraw(&request, &app, &form).await {
        Ok(response) => response,
        Err(error) => error.respond(&request, &app, &assets),
    }
}

async fn withdraw(
    request: &HttpRequest,
    app: &App,
    form: &CsrfForm,
) -> Result<HttpResponse, HandlerError> {
    let (token, now) = (form.token()?, app.clock.now());
    let found = SignedInUser::find_with(request, app, now, |_, _| Ok(()));
    // The session has ended since the page was shown. The page offers to sign in.
    let Some((user, ())) = found.await? else {
        return Ok(see_other(ACCOUNT));
    };
    token.verify(app, user.sid(), PURPOSE)?;
    let id = ConsentId::from(form.one("consent")?.ok_or(ErrorPage::BAD_FORM)?);
    let user = user.session.login.user_id;
    let ctx = Context::new(Actor::User(user.clone()), app.entropy.clone(), now);
    let withdrawn = admin::execute(&app.page_store, ctx, move |tx, ctx| {
        consents::withdraw(tx, ctx, &user, &id)
    });
    match withdrawn.await {
        Ok(()) => error::note(request, "consent.revoked", "account"),
        // Withdrawn before, or the consent of another user.
        Err(AdminError::Unchanged(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(see_other(ACCOUNT))
}
