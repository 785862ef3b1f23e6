//! `/oauth2/authorize`: RFC 6749 §3.1, §4.1; OIDC Core §3.1.2. The pages for login and consent store the result and
//! return to this endpoint, which decides the next step.

use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};

use crate::accounts::session::Session;
use crate::app::App;
use crate::http::assets::Assets;
use crate::http::authorization_context::{
    self, AuthorizationContext, HandlerError, Resumed, begin, dispatcher,
    load_authorization_request, login_page,
};
use crate::http::error::{self, ACCOUNT, ErrorPage};
use crate::http::extract::{self, Browser, CookieKind, FormError};
use crate::http::navigation::Load;
use crate::http::response::{deliver, see_other};
use crate::id::{AuthorizationId, ConsentId};
use crate::oauth::Error;
use crate::oauth::code::Code;
use crate::oauth::grant::{Grant, NewGrant};
use crate::oauth::macros::details;
use crate::oauth::request::authorize::{self as rules, AuthorizeError, Request};
use crate::oauth::request::callback::{Callback, Delivery, ResponseMode};
use crate::oauth::request::next_action::NextAction;
use crate::oauth::request::params::{Params, Problem};
use crate::oauth::request::scope::Scope;
use crate::time::Timestamp;

/// Handles `GET`: starts an authorization, or continues the one that the parameter `authorization` names.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let load = Load::of(&request);
    if let Some(response) = load.refuse(&request, &assets) {
        return response;
    }
    let Ok(params) = extract::query(&request) else {
        return error::error_page(&request, &assets, ErrorPage::TOO_MANY_FIELDS);
    };
    let browser = Browser::of(&request, &app);
    let outcome = match params.one("authorization") {
        Ok(Some(id)) => resume(&request, &app, AuthorizationId::from(id), &browser, load).await,
        _ => start(&request, &app, &params, &browser, load).await,
    };
    match outcome {
        Ok(next) => next.respond(&request, &app, &assets, &browser),
        Err(error) => error.respond(&request, &app, &assets),
    }
}

/// Handles `HEAD`: responds with the status of [`get`] (RFC 9110 §9.3.2) and has no effect. There is no `Location`,
/// because the page to which GET redirects exists only afterwards.
pub async fn head(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let load = Load::of(&request);
    if let Some(response) = load.refuse(&request, &assets) {
        return response;
    }
    let Ok(params) = extract::query(&request) else {
        return error::error_page(&request, &assets, ErrorPage::TOO_MANY_FIELDS);
    };
    let browser = Browser::of(&request, &app);
    match status_of_get(&request, &app, &params, &browser, load).await {
        Ok(status) => HttpResponse::build(status)
            .insert_header(("Cache-Control", "no-store"))
            .finish(),
        Err(error) => error.respond(&request, &app, &assets),
    }
}

async fn status_of_get(
    http: &HttpRequest,
    app: &App,
    params: &Params,
    browser: &Browser,
    load: Load,
) -> Result<StatusCode, HandlerError> {
    let now = app.clock.now();
    let (context, action) = match params.one("authorization") {
        Ok(Some(id)) => {
            let id = AuthorizationId::from(id);
            match authorization_context::resume(http, app, &id, browser, now).await? {
                Resumed::Client(resumed) => {
                    let (context, authorization) = *resumed;
                    allow_frame(load, &context.request)?;
                    let action = context.next_action(Some(&authorization), now);
                    (context, action)
                }
                // Each step of a sign-in to the account page is a redirect.
                Resumed::Account(_) => {
                    refuse_frame(load)?;
                    return Ok(StatusCode::SEE_OTHER);
                }
            }
        }
        _ => {
            let context = load_authorization_request(http, app, params, now).await?;
            allow_frame(load, &context.request)?;
            let action = context.next_action(None, now);
            (context, action)
        }
    };
    let callback = &context.request.callback;
    match action {
        NextAction::Refuse(error) => Err(refuse(callback, error)),
        NextAction::Answer { .. } if callback.mode() == ResponseMode::FormPost => {
            Ok(StatusCode::OK)
        }
        NextAction::Answer { .. } | NextAction::Login | NextAction::Consent => {
            Ok(StatusCode::SEE_OTHER)
        }
    }
}

/// Handles `POST`: stores the request and redirects to GET. A browser sends no `Lax` cookie with a POST from another
/// site, so nothing is decided here and no cookie is set.
pub async fn post(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    body: Payload,
) -> HttpResponse {
    match store(&request, &app, body).await {
        Ok(id) => see_other(&dispatcher(&id)),
        Err(error) => error.respond(&request, &app, &assets),
    }
}

details! {
    enum Rejection {
        CrossSiteFrame => Detail::new("authz.rejected", "cross_site_frame"),
    }
}

/// The next page of the browser, or the response to the client.
enum Next {
    Login(AuthorizationId),
    Consent(AuthorizationId),
    Account,
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
            Self::Account => return see_other(ACCOUNT),
            Self::Login(id) => login_page(&id),
            Self::Consent(id) => format!("/consent?authorization={id}"),
        };
        let mut response = see_other(&page);
        // Set each time, so that it expires ten minutes after the last authorization.
        if let Err(error) = response.add_cookie(&CookieKind::Interaction.keep(app, &browser.secret))
        {
            tracing::error!(event = "http.cookie", %error);
        }
        response
    }
}

async fn start(
    http: &HttpRequest,
    app: &App,
    params: &Params,
    browser: &Browser,
    load: Load,
) -> Result<Next, HandlerError> {
    let now = app.clock.now();
    let context = load_authorization_request(http, app, params, now).await?;
    allow_frame(load, &context.request)?;
    match context.next_action(None, now) {
        NextAction::Refuse(error) => Err(refuse(&context.request.callback, error)),
        NextAction::Answer { scope, consent_id } => {
            answer(app, context, None, scope, consent_id, now).await
        }
        action => {
            let request = Some((&context.request, http.query_string()));
            let id = begin(http, app, request, Some(browser.hash()), now).await?;
            Ok(if matches!(action, NextAction::Login) {
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
    let (context, authorization) = match authorization_context::resume(http, app, &id, browser, now)
        .await?
    {
        Resumed::Client(resumed) => *resumed,
        Resumed::Account(session) => {
            return resume_account(app, id, session.map(|(session, _)| session), load, now).await;
        }
    };
    allow_frame(load, &context.request)?;
    match context.next_action(Some(&authorization), now) {
        NextAction::Login => Ok(Next::Login(id)),
        NextAction::Consent => Ok(Next::Consent(id)),
        NextAction::Refuse(error) => {
            let taken = app
                .page_store
                .transaction(move |tx| tx.take_authorization(&id, now))
                .await?;
            Err(if taken {
                refuse(&context.request.callback, error)
            } else {
                HandlerError::ErrorPage(ErrorPage::ALREADY_DONE)
            })
        }
        NextAction::Answer { scope, consent_id } => {
            answer(app, context, Some(id), scope, consent_id, now).await
        }
    }
}

/// Continues a sign-in that started at the account page. Any session completes it, because it grants nothing.
async fn resume_account(
    app: &App,
    id: AuthorizationId,
    session: Option<Session>,
    load: Load,
    now: Timestamp,
) -> Result<Next, HandlerError> {
    refuse_frame(load)?;
    let Some(session) = session else {
        return Ok(Next::Login(id));
    };
    let completed = app.page_store.transaction(move |tx| {
        // Another tab may have been first, which leads to the same page.
        tx.take_authorization(&id, now)?;
        tx.touch_session(&session, now)
    });
    completed.await?;
    Ok(Next::Account)
}

fn refuse_frame(load: Load) -> Result<(), HandlerError> {
    match load {
        Load::Frame { .. } => Err(HandlerError::ErrorPage(ErrorPage::EMBEDDED)),
        _ => Ok(()),
    }
}

/// Rejects requests in a frame, except silent renewal (`prompt=none`) in a frame of the same site. In a frame of
/// another site the browser sends no cookies, so the user counts as signed out.
fn allow_frame(load: Load, request: &Request) -> Result<(), HandlerError> {
    match load {
        Load::Frame { .. } if !request.prompt.none => {
            Err(HandlerError::ErrorPage(ErrorPage::EMBEDDED))
        }
        Load::Frame {
            is_same_site: false,
        } => {
            let error = Error::login_required(Rejection::CrossSiteFrame);
            Err(refuse(&request.callback, error))
        }
        _ => Ok(()),
    }
}

/// Consumes the authorization and stores grant and code in one transaction, then returns the response.
async fn answer(
    app: &App,
    context: AuthorizationContext,
    id: Option<AuthorizationId>,
    scope: Scope,
    consent_id: Option<ConsentId>,
    now: Timestamp,
) -> Result<Next, HandlerError> {
    let AuthorizationContext {
        request,
        stored,
        feed_epoch,
    } = context;
    let Some((session, _)) = stored.session else {
        return Err(HandlerError::ErrorPage(ErrorPage::NO_START));
    };
    let new = NewGrant {
        client_id: request.client.id.clone(),
        client_epoch: request.client.auth_epoch,
        login: &session.login,
        consent_id,
        resources: request.targets.audiences(&scope),
        scope,
        feed_epoch,
    };
    let grant = Grant::new(new, app.grant_lifetimes(), &app.entropy, now);
    let (secret, code) = Code::issue(
        &grant,
        &request,
        app.config.tokens.code.0,
        &app.entropy,
        now,
    );
    let taken = app.page_store.transaction(move |tx| {
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
    let (params, text) = extract::form_and_text(http, body)
        .await
        .map_err(|error| match error {
            FormError::ErrorPage(page) => HandlerError::ErrorPage(page),
            FormError::NotAForm => HandlerError::ErrorPage(ErrorPage::BAD_FORM),
        })?;
    // RFC 6749 §3.1: a parameter may occur once, in query and form together.
    if rules::KNOWN
        .iter()
        .any(|name| query.has(name) && params.has(name))
    {
        return Err(Error::from(Problem::Duplicate).into());
    }
    let now = app.clock.now();
    let context = load_authorization_request(http, app, &params, now).await?;
    let request = Some((&context.request, text.as_str()));
    Ok(begin(http, app, request, None, now).await?)
}

/// Returns an error that is sent to the redirect URI.
fn refuse(callback: &Callback, error: Error) -> HandlerError {
    HandlerError::AuthorizeError(AuthorizeError::Callback(Box::new(callback.clone()), error))
}
