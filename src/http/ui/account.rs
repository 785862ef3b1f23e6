//! `/account`: who is signed in here, what they allowed whom, and the way out. `/` leads to it.

use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::accounts::consent::Consent;
use crate::accounts::session::Login;
use crate::app::App;
use crate::audit::{Actor, Event, Name, Target};
use crate::db::{Error, Transaction};
use crate::http::assets::Assets;
use crate::http::authorization_context::HandlerError;
use crate::http::error::{self, ErrorPage};
use crate::http::extract::{self, CookieKind};
use crate::http::response::{Frame, PagePolicy, page, see_other};
use crate::http::ui::logout;
use crate::id::{ConsentId, UserId};
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

/// What an application may do.
struct Application {
    id: String,
    name: String,
    scope: String,
    since: String,
}

impl Application {
    fn of((consent, name): (Consent, String)) -> Self {
        Self {
            id: consent.id.into_string(),
            name,
            scope: consent.scope,
            since: consent.granted_at.to_string().chars().take(10).collect(),
        }
    }
}

/// What is said to somebody who may administer.
struct Administrator {
    /// Until when, if not for good.
    until: Option<String>,
    /// Whether nobody may for good.
    alone: bool,
    /// Whether no application is registered yet.
    first_steps: bool,
}

/// `2026-12-02 20:26 UTC`.
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

/// `GET /`.
pub async fn home() -> HttpResponse {
    see_other("/account")
}

/// What a form token of this page is for.
const PURPOSE: &str = "account";

/// Who is signed in, and what there is to say to them.
struct Person {
    login: Login,
    username: String,
    admin: Option<Administrator>,
    consents: Vec<Application>,
}

/// The person of a living session, if there is one.
async fn person(request: &HttpRequest, app: &App) -> Result<Option<Person>, HandlerError> {
    let hash = CookieKind::Session
        .read(request, app)
        .map(|cookie| cookie.hash());
    let (idle, now) = (app.config.login.session_idle.0, app.clock.now());
    let found = app.store.read(move |tx| {
        let found = hash.map(|hash| tx.find_session(&hash)).transpose()?;
        let Some((session, name)) = found.flatten() else {
            return Ok(None);
        };
        let user = &session.login.user_id;
        let admin = Administrator::of(user, tx, now)?;
        let consents = tx.list_consents(user, now)?;
        Ok(Some((session, name, admin, consents)))
    });
    let Some((session, name, admin, consents)) = found.await? else {
        extract::log_unknown_session(request, app);
        return Ok(None);
    };
    Ok((!session.is_over(idle, now)).then(|| Person {
        login: session.login,
        username: name.as_str().to_owned(),
        admin,
        consents: consents.into_iter().map(Application::of).collect(),
    }))
}

/// `GET /account`.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let person = match person(&request, &app).await {
        Ok(person) => person,
        Err(stop) => return stop.respond(&request, &app, &assets),
    };
    let token = |purpose| {
        let sid = person.as_ref().map(|person| person.login.sid.as_str());
        sid.map_or_else(String::new, |sid| app.secret.form_token(sid, purpose))
    };
    let (csrf, withdraw) = (token(logout::PURPOSE), token(PURPOSE));
    let (username, admin, consents) = match person {
        Some(person) => (Some(person.username), person.admin, person.consents),
        None => (None, None, Vec::new()),
    };
    page(
        StatusCode::OK,
        &AccountPage {
            frame: &assets.frame,
            username,
            admin,
            consents,
            csrf,
            withdraw,
        },
        &PagePolicy::default(),
    )
}

/// `POST /account`: takes back what an application was allowed.
pub async fn post(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    body: Payload,
) -> HttpResponse {
    match withdraw(&request, &app, body).await {
        Ok(response) => response,
        Err(stop) => stop.respond(&request, &app, &assets),
    }
}

async fn withdraw(
    request: &HttpRequest,
    app: &App,
    body: Payload,
) -> Result<HttpResponse, HandlerError> {
    // 1. The form is ours, and this login's.
    let form = extract::own_form(request, app, body)
        .await
        .map_err(HandlerError::ErrorPage)?;
    let bad_form = |_| HandlerError::ErrorPage(ErrorPage::BAD_FORM);
    let token = form.one("csrf").map_err(bad_form)?.unwrap_or_default();
    let forged = || HandlerError::ErrorPage(ErrorPage::FORGED);
    let login = person(request, app).await?.ok_or_else(forged)?.login;
    if !app.secret.accepts_form(token, login.sid.as_str(), PURPOSE) {
        return Err(forged());
    }
    // 2. The consent is theirs. One that was withdrawn before stays so.
    let id = form.one("consent").map_err(bad_form)?;
    let id = ConsentId::from(id.ok_or(HandlerError::ErrorPage(ErrorPage::BAD_FORM))?);
    let now = app.clock.now();
    let ended = app.store.transaction(move |tx| {
        let Some(client) = tx.withdraw_consent(&id, &login.user_id, now)? else {
            return Ok(false);
        };
        tx.put_audit(&Event {
            at: now,
            name: Name::ConsentRevoked,
            actor: Actor::User(login.user_id.clone()),
            target: Target::Client(client),
            reason: None,
            detail: serde_json::json!({}),
        })?;
        Ok(true)
    });
    if ended.await? {
        error::note(request, "consent.revoked", "account");
    }
    Ok(see_other("/account"))
}
