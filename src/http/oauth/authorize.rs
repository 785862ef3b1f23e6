//! `/oauth2/authorize`: RFC 6749 §3.1, §4.1; OIDC Core §3.1.2. One dispatcher; the pages of login and
//! consent record what happened and come back here.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};

use crate::app::App;
use crate::db;
use crate::http::assets::Assets;
use crate::http::authorization_context::{
    AuthorizationContext, HandlerError, dispatcher, load_authorization_request, open,
};
use crate::http::error::{self, ErrorPage};
use crate::http::extract::{self, Browser, CookieKind, FormError};
use crate::http::navigation::Load;
use crate::http::response::{deliver, see_other};
use crate::http::server::client_address::ClientAddress;
use crate::http::server::rate_limit;
use crate::id::{AuthorizationId, ConsentId};
use crate::oauth::grants::authorization_code::Code;
use crate::oauth::grants::{Grant, NewGrant};
use crate::oauth::request::authorize::{self as rules, AuthorizeError, Request};
use crate::oauth::request::callback::{Callback, Delivery};
use crate::oauth::request::next_action::{Authorization, NextAction, Stage};
use crate::oauth::request::params::Params;
use crate::oauth::request::scope::Scope;
use crate::oauth::{Detail, Error};
use crate::secret::Hash;
use crate::time::Timestamp;

/// `GET`: begins an authorization, or goes on with the one that `authorization` names.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let load = Load::of(&request);
    if let Some(refusal) = load.refuse(&request, &assets) {
        return refusal;
    }
    let Ok(params) = extract::query(&request) else {
        return error::error_page(&request, &assets, ErrorPage::TOO_MANY_FIELDS);
    };
    let browser = Browser::of(&request, &app);
    let outcome = match params.one("authorization") {
        Ok(Some(id)) => resume(&request, &app, AuthorizationId::from(id), &browser, load).await,
        _ => begin(&request, &app, &params, &browser, load).await,
    };
    match outcome {
        Ok(next) => next.respond(&request, &app, &assets, &browser),
        Err(stop) => stop.respond(&request, &app, &assets),
    }
}

/// `HEAD`: nothing happens.
pub async fn head() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header(("Cache-Control", "no-store"))
        .finish()
}

/// `POST`: stores the request and goes on by GET. From another site the browser sends no `Lax`
/// cookie here, so nothing is decided yet and no cookie is touched.
pub async fn post(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    body: Payload,
) -> HttpResponse {
    match store(&request, &app, body).await {
        Ok(id) => see_other(&dispatcher(&id)),
        Err(stop) => stop.respond(&request, &app, &assets),
    }
}

/// Where the browser goes next.
enum Next {
    Login(AuthorizationId),
    Consent(AuthorizationId),
    Deliver(Delivery),
}

impl Next {
    fn respond(
        self,
        request: &HttpRequest,
        app: &App,
        assets: &Assets,
        browser: &Browser,
    ) -> HttpResponse {
        let page = match self {
            Self::Deliver(delivery) => {
                error::note(request, "authorization.answered", "code");
                return deliver(delivery, app, assets);
            }
            Self::Login(id) => format!("/login?authorization={id}"),
            Self::Consent(id) => format!("/consent?authorization={id}"),
        };
        let mut response = see_other(&page);
        // Set again each time, so that it lives ten minutes after the last authorization.
        if let Err(error) = response.add_cookie(&CookieKind::Interaction.keep(app, &browser.secret))
        {
            tracing::error!(event = "http.cookie", %error);
        }
        response
    }
}

async fn begin(
    http: &HttpRequest,
    app: &App,
    params: &Params,
    browser: &Browser,
    load: Load,
) -> Result<Next, HandlerError> {
    let now = app.clock.now();
    let pending = load_authorization_request(http, app, params, now).await?;
    allow_frame(load, &pending.request)?;
    // 3. The next step.
    match pending.next_action(None, now) {
        NextAction::Refuse(error) => Err(refuse(&pending.request.callback, error)),
        NextAction::Answer { scope, consent_id } => {
            answer(app, pending, None, scope, consent_id, now).await
        }
        step => {
            let begun = authorization(
                app,
                &pending.request,
                http.query_string(),
                Some(browser.hash()),
                now,
            );
            let id = begun.id.clone();
            put(http, app, begun).await?;
            Ok(if matches!(step, NextAction::Login) {
                Next::Login(id)
            } else {
                Next::Consent(id)
            })
        }
    }
}

async fn resume(
    http: &HttpRequest,
    app: &App,
    id: AuthorizationId,
    browser: &Browser,
    load: Load,
) -> Result<Next, HandlerError> {
    let now = app.clock.now();
    let begun = open(app, &id, browser, now).await?;
    let params = Params::parse(begun.params.as_bytes())
        .map_err(|_| HandlerError::ErrorPage(ErrorPage::TOO_MANY_FIELDS))?;
    let pending = load_authorization_request(http, app, &params, now).await?;
    allow_frame(load, &pending.request)?;
    match pending.next_action(Some(&begun), now) {
        NextAction::Login => Ok(Next::Login(id)),
        NextAction::Consent => Ok(Next::Consent(id)),
        NextAction::Refuse(error) => {
            let taken = app
                .store
                .transaction(move |tx| tx.take_authorization(&id, now))
                .await?;
            Err(if taken {
                refuse(&pending.request.callback, error)
            } else {
                HandlerError::ErrorPage(ErrorPage::ALREADY_DONE)
            })
        }
        NextAction::Answer { scope, consent_id } => {
            answer(app, pending, Some(id), scope, consent_id, now).await
        }
    }
}

/// Silent renewal (`prompt=none`) is the only request that a frame may make. On another site it is a
/// stranger's page, and no cookies are sent: the user counts as signed out there.
fn allow_frame(load: Load, request: &Request) -> Result<(), HandlerError> {
    match load {
        Load::Frame { .. } if !request.prompt.none => {
            Err(HandlerError::ErrorPage(ErrorPage::EMBEDDED))
        }
        Load::Frame {
            is_same_site: false,
        } => {
            let detail = Detail::new("authz.rejected", "cross_site_frame");
            Err(refuse(&request.callback, Error::login_required(detail)))
        }
        _ => Ok(()),
    }
}

/// Takes the authorization, writes grant and code, and answers: one transaction.
async fn answer(
    app: &App,
    pending: AuthorizationContext,
    id: Option<AuthorizationId>,
    scope: Scope,
    consent_id: Option<ConsentId>,
    now: Timestamp,
) -> Result<Next, HandlerError> {
    let AuthorizationContext {
        request,
        stored,
        feed_epoch,
    } = pending;
    let Some((session, _)) = stored.session else {
        return Err(HandlerError::ErrorPage(ErrorPage::NO_START));
    };
    let given = NewGrant {
        client: &request.client,
        login: &session.login,
        consent_id,
        scope,
        resources: request.resources.clone(),
        feed_epoch,
    };
    let grant = Grant::new(given, app.grant_life(), &app.entropy, now);
    let (secret, code) = Code::issue(
        &grant,
        &request,
        app.config.tokens.code.0,
        &app.entropy,
        now,
    );
    let taken = app.store.transaction(move |tx| {
        if let Some(id) = id
            && !tx.take_authorization(&id, now)?
        {
            return Ok(false);
        }
        tx.put_grant(&grant)?;
        tx.put_code(&code)?;
        tx.touch_session(&session, now)?;
        Ok(true)
    });
    if !taken.await? {
        return Err(HandlerError::ErrorPage(ErrorPage::ALREADY_DONE));
    }
    Ok(Next::Deliver(
        request.callback.answer(&secret, app.issuer.as_str()),
    ))
}

async fn store(
    http: &HttpRequest,
    app: &App,
    body: Payload,
) -> Result<AuthorizationId, HandlerError> {
    let too_many = |_| HandlerError::ErrorPage(ErrorPage::TOO_MANY_FIELDS);
    let query = extract::query(http).map_err(too_many)?;
    let (params, text) =
        extract::form_and_text(http, body)
            .await
            .map_err(|unread| match unread {
                FormError::ErrorPage(notice) => HandlerError::ErrorPage(notice),
                FormError::NotAForm => HandlerError::ErrorPage(ErrorPage::BAD_FORM),
            })?;
    // RFC 6749 §3.1: a parameter stands once, wherever it stands.
    if rules::KNOWN
        .iter()
        .any(|name| query.has(name) && params.has(name))
    {
        return Err(
            crate::oauth::Error::from(crate::oauth::request::params::Problem::Duplicate).into(),
        );
    }
    let now = app.clock.now();
    let pending = load_authorization_request(http, app, &params, now).await?;
    let begun = authorization(app, &pending.request, &text, None, now);
    let id = begun.id.clone();
    put(http, app, begun).await?;
    Ok(id)
}

async fn put(http: &HttpRequest, app: &App, begun: Authorization) -> Result<(), db::Error> {
    let network = rate_limit::source(ClientAddress::of(http));
    let count = rate_limit::is_time_to_count(http);
    let put = app.store.transaction(move |tx| {
        tx.put_authorization(&begun, &network)?;
        if count {
            tx.cap_authorizations()?;
        }
        Ok(())
    });
    put.await
}

fn authorization(
    app: &App,
    request: &Request,
    params: &str,
    browser: Option<Hash>,
    now: Timestamp,
) -> Authorization {
    Authorization {
        id: AuthorizationId::new(&app.entropy, now),
        client_id: request.client.id.clone(),
        params: params.to_owned(),
        browser,
        user_id: None,
        sid: None,
        login_sid: None,
        stage: Stage::Begun,
        scope: None,
        created_at: now,
        expires_at: now + app.config.login.authorization.0,
        taken_at: None,
    }
}

fn refuse(callback: &Callback, error: Error) -> HandlerError {
    HandlerError::AuthorizeError(AuthorizeError::Callback(Box::new(callback.clone()), error))
}
