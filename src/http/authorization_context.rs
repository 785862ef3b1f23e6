//! A request for authorization under way, as the dispatcher and the pages of login and consent meet it: read
//! anew each time, with the session and the consent that there are by now.

use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse};

use crate::accounts::consent::Consent;
use crate::accounts::session::{Login, Session};
use crate::accounts::user::Username;
use crate::admin::AdminError;
use crate::app::App;
use crate::db::{self, Transaction};
use crate::http::assets::Assets;
use crate::http::error::{self, ErrorPage, Link};
use crate::http::extract::{self, Browser, CookieKind};
use crate::http::response::{continue_to, deliver};
use crate::http::server::access_log;
use crate::id::{AuthorizationId, ClientId};
use crate::oauth::client::Client;
use crate::oauth::issue::id_token::Hint;
use crate::oauth::request::authorize::{self as rules, AuthorizeError, Request, ValidationContext};
use crate::oauth::request::next_action::{Authorization, NextAction, next_action};
use crate::oauth::request::params::Params;
use crate::oauth::{Detail, Error};
use crate::secret::Hash;
use crate::time::Timestamp;

/// The address at which an authorization continues.
pub(in crate::http) fn dispatcher(id: &AuthorizationId) -> String {
    format!("/oauth2/authorize?authorization={id}")
}

/// The longest request that an expired authorization restarts with: a GET has 8 KiB for its address.
const RESTART_BYTES: usize = 7 * 1024;

/// Why there is no next page.
pub(in crate::http) enum HandlerError {
    ErrorPage(ErrorPage),
    /// A notice with a way on.
    Linked(ErrorPage, Box<Option<Link>>),
    AuthorizeError(AuthorizeError),
}

impl From<AuthorizeError> for HandlerError {
    fn from(refused: AuthorizeError) -> Self {
        Self::AuthorizeError(refused)
    }
}

impl From<Error> for HandlerError {
    fn from(error: Error) -> Self {
        Self::AuthorizeError(AuthorizeError::Page(error))
    }
}

impl From<db::Error> for HandlerError {
    fn from(error: db::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<AdminError> for HandlerError {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Storage(error) => error.into(),
            // Handlers answer the refusals that a user can correct; others mean a form that was altered.
            _ => Self::ErrorPage(ErrorPage::BAD_FORM),
        }
    }
}

impl HandlerError {
    /// Answers a form of this server: a refusal that the client is told leaves the origin like any other
    /// answer, by a page that continues.
    pub(in crate::http) fn respond_to_form(
        self,
        request: &HttpRequest,
        app: &App,
        assets: &Assets,
    ) -> HttpResponse {
        let response = self.respond(request, app, assets);
        let to = response.headers().get(LOCATION);
        match to.and_then(|to| to.to_str().ok()) {
            Some(to) => continue_to(to, assets),
            None => response,
        }
    }

    pub(in crate::http) fn respond(
        self,
        request: &HttpRequest,
        app: &App,
        assets: &Assets,
    ) -> HttpResponse {
        match self {
            Self::ErrorPage(notice) => error::error_page(request, app, assets, notice),
            Self::Linked(notice, link) => error::linked_error_page(request, assets, notice, *link),
            Self::AuthorizeError(AuthorizeError::Page(error)) => {
                error::protocol_page(request, assets, &error)
            }
            Self::AuthorizeError(AuthorizeError::Callback(callback, refusal)) => {
                error::refused(
                    request,
                    refusal.code.as_str(),
                    refusal.detail,
                    refusal.source.as_deref(),
                );
                deliver(callback.refuse(&refusal, app.issuer.as_str()), app, assets)
            }
        }
    }
}

/// What is stored about whoever makes a request.
pub(in crate::http) struct Stored {
    pub(in crate::http) session: Option<(Session, Username)>,
    pub(in crate::http) consent: Option<Consent>,
}

impl Stored {
    fn load(
        tx: &mut Transaction<'_>,
        client_id: &ClientId,
        cookie: &Hash,
    ) -> Result<Self, db::Error> {
        let session = tx.find_session(cookie)?;
        let consent = match &session {
            Some((session, _)) => tx.find_consent(&session.login.user_id, client_id)?,
            None => None,
        };
        Ok(Self { session, consent })
    }
}

/// A request that may be answered, with what is known about it.
pub(in crate::http) struct AuthorizationContext {
    pub(in crate::http) request: Request,
    pub(in crate::http) stored: Stored,
    /// The feed epoch when the client was read.
    pub(in crate::http) feed_epoch: i64,
}

impl AuthorizationContext {
    /// The login of the browser that asks.
    pub(in crate::http) fn login(&self) -> Option<&Login> {
        self.stored
            .session
            .as_ref()
            .map(|(session, _)| &session.login)
    }

    /// What the request needs next. Every handler that advances an authorization asks this first.
    pub(in crate::http) fn next_action(
        &self,
        begun: Option<&Authorization>,
        now: Timestamp,
    ) -> NextAction {
        let consent = self.stored.consent.as_ref();
        next_action(&self.request, begun, self.login(), consent, now)
    }
}

/// Loads and checks a request; refusals are where RFC 6749 §4.1.2.1 wants them.
pub(in crate::http) async fn load_authorization_request(
    http: &HttpRequest,
    app: &App,
    params: &Params,
    now: Timestamp,
) -> Result<AuthorizationContext, HandlerError> {
    // 1. The client, and where the answer may go.
    let client_id = rules::client_id(params)?;
    let known = app.registrations.find(&app.store, &client_id, now).await?;
    let client = known.as_ref().map(|known| known.client.clone());
    let (client, callback) = rules::callback(params, client)?;
    access_log::name_client(http, &client_id);
    // 2. Everything else.
    let keys = app.keys();
    let around = ValidationContext {
        resources: known.as_ref().map_or(&[], |known| &known.resources),
        hint: &|token| Hint::read(token, &keys, app.issuer.as_str()).map(|hint| hint.user_id),
    };
    let request = rules::validate(params, client, callback, &around)?;
    // 3. Who asks.
    let mut stored = match CookieKind::Session
        .read(http, app)
        .map(|cookie| cookie.hash())
    {
        Some(cookie) => {
            let stored = move |tx: &mut Transaction<'_>| Stored::load(tx, &client_id, &cookie);
            app.store.read(stored).await?
        }
        None => Stored {
            session: None,
            consent: None,
        },
    };
    if stored.session.is_none() {
        extract::log_unknown_session(http, app);
    }
    expire(http, app, &mut stored, now).await?;
    if let Some((_, username)) = &stored.session {
        access_log::name_person(http, &app.secret.user_ref(username.as_str()));
    }
    Ok(AuthorizationContext {
        feed_epoch: known.map_or(0, |known| known.feed_epoch),
        request,
        stored,
    })
}

/// Forgets a session that ran out of time.
async fn expire(
    http: &HttpRequest,
    app: &App,
    stored: &mut Stored,
    now: Timestamp,
) -> Result<(), HandlerError> {
    let idle = app.config.login.session_idle.0;
    if let Some((session, _)) = stored
        .session
        .take_if(|(session, _)| session.is_over(idle, now))
    {
        stored.consent = None;
        let limit = if now >= session.expires_at {
            "absolute"
        } else {
            "idle"
        };
        error::log(http, Detail::new("session.expired", limit), None);
        app.store
            .transaction(move |tx| tx.drop_expired_session(&session))
            .await?;
    }
    Ok(())
}

/// An authorization that this browser began, still open.
pub(in crate::http) async fn open(
    app: &App,
    id: &AuthorizationId,
    browser: &Browser,
    now: Timestamp,
) -> Result<Authorization, HandlerError> {
    let wanted = id.clone();
    let found = app
        .store
        .read(move |tx| tx.find_authorization(&wanted))
        .await?;
    let begun = found.ok_or(HandlerError::ErrorPage(ErrorPage::OTHER_BROWSER))?;
    match &begun.browser {
        Some(bound) if bound.matches(&browser.hash()) => {}
        Some(_) => return Err(HandlerError::ErrorPage(ErrorPage::OTHER_BROWSER)),
        None => {
            let (id, hash) = (id.clone(), browser.hash());
            if !app
                .store
                .transaction(move |tx| tx.bind_authorization(&id, &hash))
                .await?
            {
                return Err(HandlerError::ErrorPage(ErrorPage::OTHER_BROWSER));
            }
        }
    }
    if begun.taken_at.is_some() {
        let client = app.registrations.find(&app.store, &begun.client_id, now);
        let client = client.await?.map(|known| known.client.clone());
        let link = client.as_ref().and_then(|client| to_client(client, &begun));
        return Err(HandlerError::Linked(
            ErrorPage::ALREADY_DONE,
            Box::new(link),
        ));
    }
    if now >= begun.expires_at {
        return Err(HandlerError::Linked(
            ErrorPage::TOO_LATE,
            Box::new(restart(&begun)),
        ));
    }
    Ok(begun)
}

/// The request of an expired authorization once more, if it fits into an address.
fn restart(begun: &Authorization) -> Option<Link> {
    (begun.params.len() <= RESTART_BYTES).then(|| Link {
        label: "Start again".to_owned(),
        href: format!("/oauth2/authorize?{}", begun.params),
    })
}

/// The home page of the client of an authorization, or the site that its answer went to.
fn to_client(client: &Client, begun: &Authorization) -> Option<Link> {
    let site = || {
        let params = Params::parse(begun.params.as_bytes()).ok()?;
        let uri = params.one("redirect_uri").ok().flatten();
        let uri = uri.or(client.redirect_uris.first().map(String::as_str))?;
        // Only what the registration names, whatever the request said.
        let known = client.redirect_uris.iter().any(|known| known == uri);
        let url = url::Url::parse(uri).ok()?;
        (known && url.scheme() == "https").then(|| url.origin().ascii_serialization())
    };
    let href = client.client_uri.clone().or_else(site)?;
    Some(Link {
        label: format!("Go to {}", client.name),
        href,
    })
}
