//! `/oauth2/end_session`: OpenID Connect RP-Initiated Logout, and the log-out button of our own pages.

use actix_web::http::{Method, StatusCode};
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::accounts::session::Session;
use crate::accounts::user::Username;
use crate::app::App;
use crate::audit::{Actor, Event, Name, Target};
use crate::http::assets::Assets;
use crate::http::authorization_context::HandlerError;
use crate::http::error::{self, ErrorPage};
use crate::http::extract::{self, CookieKind, FormError};
use crate::http::response::{Frame, PagePolicy, continue_to, page, see_other};
use crate::oauth::Detail;
use crate::oauth::client::Client;
use crate::oauth::issue::id_token::Hint;
use crate::oauth::logout::{LogoutRequest, UNREADABLE_HINT};
use crate::oauth::request::params::Params;

#[derive(Template)]
#[template(path = "logout.html")]
struct LogoutPage<'a> {
    frame: &'a Frame,
    csrf: String,
    username: Option<String>,
    client: Option<String>,
    fields: Vec<(String, String)>,
}

#[derive(Template)]
#[template(path = "signed_out.html")]
struct SignedOut<'a> {
    frame: &'a Frame,
}

/// The longest request that is repeated by GET, whose address may have 8 KiB.
const QUERY_BYTES: usize = 7 * 1024;

/// What a form token of the question is for.
pub(in crate::http) const PURPOSE: &str = "logout";

/// `GET`: logs out at once for a genuine hint of this login, else asks. Without a session there is nothing
/// to ask about.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let Ok(params) = extract::query(&request) else {
        return error::error_page(&request, &app, &assets, ErrorPage::TOO_MANY_FIELDS);
    };
    respond(&request, &app, &assets, &params).await
}

/// `POST`: the same, and the answer to the question.
pub async fn post(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    body: Payload,
) -> HttpResponse {
    match extract::form(&request, body).await {
        Ok(form) => respond(&request, &app, &assets, &form).await,
        Err(FormError::ErrorPage(notice)) => error::error_page(&request, &app, &assets, notice),
        Err(FormError::NotAForm) => error::error_page(&request, &app, &assets, ErrorPage::BAD_FORM),
    }
}

async fn respond(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
    params: &Params,
) -> HttpResponse {
    match log_out(request, app, assets, params).await {
        Ok(response) => response,
        Err(stop) => stop.respond(request, app, assets),
    }
}

async fn log_out(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
    params: &Params,
) -> Result<HttpResponse, HandlerError> {
    // 1. Which client asks, and for which session.
    let asked = LogoutRequest::parse(params).map_err(rejected)?;
    let read = |token| Hint::read(token, &app.keys(), app.issuer.as_str());
    let hint = asked.id_token_hint.and_then(read);
    if asked.id_token_hint.is_some() && hint.is_none() {
        error::log(request, UNREADABLE_HINT, None);
    }
    let client_id = asked.requested_by(hint.as_ref()).map_err(rejected)?;
    let cookie = CookieKind::Session.read(request, app);
    let hash = cookie.map(|cookie| cookie.hash());
    let loaded = app.store.read(move |tx| {
        let session = hash
            .map(|hash| tx.find_session(&hash))
            .transpose()?
            .flatten();
        let client = client_id
            .map(|id| tx.find_client(&id))
            .transpose()?
            .flatten();
        Ok((session, client))
    });
    let (session, client) = loaded.await?;
    let to = asked
        .destination(client.as_ref())
        .unwrap_or_else(|refused| {
            error::log(request, refused, None);
            None
        });
    let answered = params.has("csrf");
    let by_form = request.method() == Method::POST;
    if session.is_none() && by_form && !answered && !extract::is_same_origin(request, app) {
        // The POST of another site carries no cookie, so whether there is a session is not known. By
        // GET the cookie is sent, and the question can be asked.
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(asked.fields())
            .finish();
        if query.len() <= QUERY_BYTES {
            return Ok(see_other(&format!("/oauth2/end_session?{query}")));
        }
    }
    let Some((session, username)) = session else {
        extract::log_unknown_session(request, app);
        return Ok(done(app, assets, to.as_deref(), by_form));
    };
    // 2. A genuine hint of this very login, or the person's own answer; otherwise the question.
    let hinted = hint
        .as_ref()
        .is_some_and(|hint| hint.sid.as_deref() == Some(session.login.sid.as_str()));
    if answered && !extract::is_same_origin(request, app) {
        return Err(HandlerError::ErrorPage(ErrorPage::CROSS_SITE));
    }
    if answered
        && !app.secret.accepts_form(
            params.one("csrf").ok().flatten().unwrap_or_default(),
            session.login.sid.as_str(),
            PURPOSE,
        )
    {
        return Err(HandlerError::ErrorPage(ErrorPage::FORGED));
    }
    if !hinted && !answered {
        error::note(request, "logout.confirm", "asked");
        let question = Question {
            asked: &asked,
            sid: session.login.sid.as_str(),
            username: &username,
            client: client.as_ref(),
        };
        return Ok(question.ask(app, assets));
    }
    // 3. The session ends, and with it its grants.
    end(app, session).await?;
    error::note(request, "session.ended", "logout");
    Ok(done(app, assets, to.as_deref(), by_form))
}

/// The page of a logout request that is not understood. The session stays active.
fn rejected(error: impl Into<Detail>) -> HandlerError {
    HandlerError::ErrorPage(ErrorPage::LOGOUT.because(error.into()))
}

/// What the page asks about.
struct Question<'a> {
    asked: &'a LogoutRequest<'a>,
    sid: &'a str,
    username: &'a Username,
    client: Option<&'a Client>,
}

impl Question<'_> {
    fn ask(&self, app: &App, assets: &Assets) -> HttpResponse {
        let template = LogoutPage {
            frame: &assets.frame,
            csrf: app.secret.form_token(self.sid, PURPOSE),
            username: Some(self.username.as_str().to_owned()),
            client: self.client.map(|client| client.name.clone()),
            fields: self.asked.fields(),
        };
        page(StatusCode::OK, &template, &PagePolicy::default())
    }
}

async fn end(app: &App, session: Session) -> Result<(), HandlerError> {
    let now = app.clock.now();
    let ended = app.store.transaction(move |tx| {
        let actor = Actor::User(session.login.user_id.clone());
        if tx.end_session(&session.login.sid, "logout", &actor.to_string(), now)? {
            tx.put_audit(&Event {
                at: now,
                name: Name::SessionEnded,
                target: Target::Session(session.login.sid.clone()),
                actor,
                reason: None,
                detail: serde_json::json!({}),
            })?;
        }
        Ok(())
    });
    Ok(ended.await?)
}

fn done(app: &App, assets: &Assets, to: Option<&str>, by_form: bool) -> HttpResponse {
    let mut response = match to {
        Some(to) if by_form => continue_to(to, assets),
        Some(to) => see_other(to),
        None => page(
            StatusCode::OK,
            &SignedOut {
                frame: &assets.frame,
            },
            &PagePolicy::default(),
        ),
    };
    let headers = response.headers_mut();
    headers.insert(
        actix_web::http::header::HeaderName::from_static("clear-site-data"),
        actix_web::http::header::HeaderValue::from_static("\"cache\",\"storage\""),
    );
    if let Err(error) = response.add_cookie(&CookieKind::Session.forget(app)) {
        tracing::error!(event = "http.cookie", %error);
    }
    response
}
