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

#[derive(Template)]
#[template(path = "account.html")]
struct AccountPage<'a> {
    frame: &'a Frame,
    username: Option<String>,
    csrf: String,
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
    let found = app
        .store
        .read(move |tx| hash.map(|hash| tx.find_session(&hash)).transpose());
    let session = match found.await {
        Ok(session) => session.flatten(),
        Err(error) => return Stop::from(error).respond(&request, &app, &assets),
    };
    if session.is_none() {
        extract::log_stranger(&request, &app);
    }
    let (idle, now) = (app.config.login.session_idle.0, app.clock.now());
    let living = session.filter(|(session, _)| !session.is_over(idle, now));
    let csrf = living.as_ref().map_or_else(String::new, |(session, _)| {
        app.secret
            .form_token(session.login.sid.as_str(), logout::PURPOSE)
    });
    let username = living.map(|(_, name)| name.as_str().to_owned());
    page(
        StatusCode::OK,
        &AccountPage {
            frame: &assets.frame,
            username,
            csrf,
        },
        &Allowed::default(),
    )
}
