//! `/oauth2/end_session`: OpenID Connect RP-Initiated Logout, and the logout button of this server's pages.

use actix_web::http::{Method, StatusCode};
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::accounts::session::Login;
use crate::admin::{self, AdminError, Context, sessions};
use crate::app::App;
use crate::audit::{Actor, RevocationReason};
use crate::http::assets::{Assets, Frame};
use crate::http::error::{self, ErrorPage, HandlerError};
use crate::http::extract::{self, CookieKind};
use crate::http::response::{PagePolicy, add_cookie, continue_to, page, see_other};
use crate::http::server::access_log;
use crate::http::ui::form;
use crate::http::ui::session::SignedInUser;
use crate::id::{ClientId, Sid};
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
    /// Whether this request ended a session. Otherwise there was none.
    ended: bool,
}

/// Longest request that is repeated by GET, whose URL is limited to 8 KiB.
const QUERY_BYTES: usize = 7 * 1024;

/// The purpose of the CSRF tokens of logout forms.
pub(in crate::http) const PURPOSE: &str = "logout";

/// Handles `GET`: logs out at once if the ID token hint belongs to this session, and asks the user otherwise. Without a
/// session of the browser there is nothing to confirm, and the session that the hint names ends.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let Ok(params) = extract::query(&request) else {
        return error::error_page(&request, &assets, ErrorPage::TOO_MANY_FIELDS);
    };
    respond(&request, &app, &assets, &params).await
}

/// Handles `POST`: does the same as [`get`], and accepts the user's confirmation.
pub async fn post(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    body: Payload,
) -> HttpResponse {
    match extract::form(&request, body).await {
        Ok(form) => respond(&request, &app, &assets, &form).await,
        Err(error) => error::error_page(&request, &assets, error.into()),
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
        Err(error) => error.respond(request, app, assets),
    }
}

async fn log_out(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
    params: &Params,
) -> Result<HttpResponse, HandlerError> {
    // 1. The client that requests the logout, and the session.
    let logout = LogoutRequest::parse(params).map_err(rejected)?;
    let read = |token| Hint::read(token, &app.keys(), app.issuer.as_str());
    let hint = logout.id_token_hint.and_then(read);
    if logout.id_token_hint.is_some() && hint.is_none() {
        error::log(request, UNREADABLE_HINT, None);
    }
    let client_id = logout.requested_by(hint.as_ref()).map_err(rejected)?;
    let loaded = SignedInUser::of_cookie_with(request, app, move |tx, _| match client_id {
        Some(id) => tx.find_client(&id),
        None => Ok(None),
    });
    let (user, client) = loaded.await?;
    if let Some(client) = &client {
        access_log::name_client(request, &client.id);
    }
    let to = match logout.destination(client.as_ref()) {
        // §4: a request with an invalid hint does not lead back to the client, which would take it for a logout.
        Ok(_) if logout.id_token_hint.is_some() && hint.is_none() => None,
        Ok(to) => to,
        Err(refused) => {
            error::log_error(request, &refused);
            None
        }
    };
    let is_confirmed = params.has("csrf");
    let by_form = request.method() == Method::POST;
    if user.is_none() && by_form && !is_confirmed && !extract::is_same_origin(request, app) {
        // Browsers send no cookie with the POST of another site, so the session is unknown. With a GET they send
        // it, and the user can be asked.
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(logout.fields())
            .finish();
        if query.len() <= QUERY_BYTES {
            return Ok(see_other(&format!("/oauth2/end_session?{query}")));
        }
    }
    let answer = Answer {
        to,
        by_form: by_form && is_browser(request),
    };
    // 2. Without a session of the browser, a back end may have sent the request. The hint, which this server
    //    signed, says which session it means.
    let Some(user) = user else {
        extract::log_unknown_session(request, app);
        let ended = match hint {
            Some(hint) => end_hinted(app, hint).await?,
            None => false,
        };
        if ended {
            error::note(request, "session.ended", "hint");
        }
        return Ok(answer.respond(request, app, assets, ended));
    };
    // 3. A hint of this session, or the user's confirmation. Otherwise the user is asked.
    let is_hinted = hint
        .as_ref()
        .is_some_and(|hint| hint.sid.as_deref() == Some(user.sid()));
    if is_confirmed {
        form::verify_params(request, app, params, user.sid(), PURPOSE)?;
    } else if !is_hinted {
        error::note(request, "logout.confirm", "asked");
        let question = Question {
            logout: &logout,
            user: &user,
            client: client.as_ref(),
        };
        return Ok(question.ask(app, assets));
    }
    // 4. The session ends, and with it its grants.
    let sid = user.session.login.sid.clone();
    end(app, user.session.login).await?;
    app.logout_notifier.session_ended(&sid).await;
    error::note(request, "session.ended", "logout");
    Ok(answer.respond(request, app, assets, true))
}

/// Returns the error page of an invalid logout request. The session remains active.
fn rejected(error: impl Into<Detail>) -> HandlerError {
    HandlerError::ErrorPage(ErrorPage::LOGOUT.with_detail(error.into()))
}

/// The logout that the user is asked to confirm.
struct Question<'a> {
    logout: &'a LogoutRequest<'a>,
    user: &'a SignedInUser,
    client: Option<&'a Client>,
}

impl Question<'_> {
    fn ask(&self, app: &App, assets: &Assets) -> HttpResponse {
        let template = LogoutPage {
            frame: &assets.frame,
            csrf: app.secret.form_token(self.user.sid(), PURPOSE),
            username: Some(self.user.username.as_str().to_owned()),
            client: self.client.map(|client| client.name.clone()),
            fields: self.logout.fields(),
        };
        page(StatusCode::OK, &template, &PagePolicy::default())
    }
}

async fn end(app: &App, login: Login) -> Result<(), HandlerError> {
    let now = app.clock.now();
    let ctx = Context::new(Actor::User(login.user_id), app.entropy.clone(), now);
    let ended = admin::execute(&app.page_store, ctx, move |tx, ctx| {
        sessions::log_out(tx, ctx, &login.sid)
    });
    match ended.await {
        // Another request may have ended the session.
        Ok(()) | Err(AdminError::Unchanged(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Ends the session that a hint names, at the request of the client that the hint was issued to. Returns `false` if
/// there is no such session, or it ended before.
async fn end_hinted(app: &App, hint: Hint) -> Result<bool, HandlerError> {
    let Hint {
        user_id,
        client_id,
        sid: Some(sid),
    } = hint
    else {
        return Ok(false);
    };
    let (sid, client_id) = (Sid::from(sid), ClientId::from(client_id));
    let (now, ended_sid) = (app.clock.now(), sid.clone());
    let ctx = Context::new(Actor::Client(client_id), app.entropy.clone(), now)
        .with_reason(RevocationReason::Logout.as_str());
    let ended = admin::execute(&app.page_store, ctx, move |tx, ctx| {
        sessions::end(tx, ctx, &user_id, &sid)
    });
    match ended.await {
        Ok(()) => {
            app.logout_notifier.session_ended(&ended_sid).await;
            Ok(true)
        }
        Err(AdminError::Unchanged(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether a browser sent the form. Browsers name its origin, back ends do not.
fn is_browser(request: &HttpRequest) -> bool {
    let headers = request.headers();
    headers.contains_key("origin") || headers.contains_key("sec-fetch-site")
}

/// The response after a logout.
struct Answer {
    /// Where the browser goes.
    to: Option<String>,
    /// Whether a browser sent a form, whose response does not redirect.
    by_form: bool,
}

impl Answer {
    /// `ended`: whether a session ended. Otherwise there was none, and the page says so.
    fn respond(
        &self,
        request: &HttpRequest,
        app: &App,
        assets: &Assets,
        ended: bool,
    ) -> HttpResponse {
        let mut response = match self.to.as_deref() {
            Some(to) if self.by_form => continue_to(to, assets),
            Some(to) => see_other(to),
            None => page(
                StatusCode::OK,
                &SignedOut {
                    frame: &assets.frame,
                    ended,
                },
                &PagePolicy::default(),
            ),
        };
        let headers = response.headers_mut();
        headers.insert(
            actix_web::http::header::HeaderName::from_static("clear-site-data"),
            actix_web::http::header::HeaderValue::from_static("\"cache\",\"storage\""),
        );
        // A cookie that was not sent may belong to a session that has not ended: browsers send none with the form of
        // another site.
        if CookieKind::Session.is_sent(request, app) {
            add_cookie(&mut response, &CookieKind::Session.forget(app));
        }
        response
    }
}
