//! `/account`: who is signed in here, and the way out. `/` leads to it.

use actix_web::http::StatusCode;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use super::answer::{Allowed, Frame, page, see_other};
use super::assets::Assets;
use super::authorize::Stop;
use super::extract::{self, Jar};
use super::logout;
use crate::app::App;
use crate::db::{Error, Transaction};
use crate::id::UserId;
use crate::time::Timestamp;

#[derive(Template)]
#[template(path = "account.html")]
struct AccountPage<'a> {
    frame: &'a Frame,
    username: Option<String>,
    admin: Option<Administrator>,
    csrf: String,
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

impl Administrator {
    fn of(user: &UserId, tx: &mut Transaction<'_>, now: Timestamp) -> Result<Option<Self>, Error> {
        let mut admins = tx.list_admins()?;
        admins.retain(|admin| admin.is_live(now));
        let Some(own) = admins.iter().find(|admin| admin.user_id == *user) else {
            return Ok(None);
        };
        Ok(Some(Self {
            until: own.expires_at.map(|at| at.to_string()),
            alone: admins.iter().all(|admin| admin.expires_at.is_some()),
            first_steps: !tx.has_clients()?,
        }))
    }
}

/// `GET /`.
pub async fn home() -> HttpResponse {
    see_other("/account")
}

/// `GET /account`.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let hash = Jar::Session
        .read(&request, &app)
        .map(|cookie| cookie.hash());
    let (idle, now) = (app.config.login.session_idle.0, app.clock.now());
    let found = app.store.read(move |tx| {
        let found = hash.map(|hash| tx.find_session(&hash)).transpose()?;
        let Some((session, name)) = found.flatten() else {
            return Ok(None);
        };
        let admin = Administrator::of(&session.login.user_id, tx, now)?;
        Ok(Some((session, name, admin)))
    });
    let session = match found.await {
        Ok(session) => session,
        Err(error) => return Stop::from(error).respond(&request, &app, &assets),
    };
    if session.is_none() {
        extract::log_stranger(&request, &app);
    }
    let living = session.filter(|(session, ..)| !session.is_over(idle, now));
    let csrf = living.as_ref().map_or_else(String::new, |(session, ..)| {
        app.secret
            .form_token(session.login.sid.as_str(), logout::PURPOSE)
    });
    let (username, admin) = match living {
        Some((_, name, admin)) => (Some(name.as_str().to_owned()), admin),
        None => (None, None),
    };
    page(
        StatusCode::OK,
        &AccountPage {
            frame: &assets.frame,
            username,
            admin,
            csrf,
        },
        &Allowed::default(),
    )
}
