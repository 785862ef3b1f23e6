//! An authorization request with the session and the consent of the browser. The dispatcher and the pages of login and
//! consent load it for each request, because both may have changed since the last one.

use actix_web::HttpRequest;
use actix_web::http::Method;

use crate::accounts::consent::Consent;
use crate::accounts::session::{Login, Session};
use crate::accounts::user::Username;
use crate::app::App;
use crate::db::{self, Transaction};
pub(in crate::http) use crate::http::error::HandlerError;
use crate::http::error::{self, ErrorPage, Link};
use crate::http::extract::{self, Browser, CookieKind};
use crate::http::server::access_log;
use crate::http::server::client_address::ClientAddress;
use crate::http::server::rate_limit;
use crate::id::{AuthorizationId, ClientId};
use crate::oauth::Detail;
use crate::oauth::client::Client;
use crate::oauth::issue::id_token::Hint;
use crate::oauth::request::authorize::{self as rules, Request, ValidationContext};
use crate::oauth::request::next_action::{Authorization, NextAction, Stage, next_action};
use crate::oauth::request::params::Params;
use crate::secret::Hash;
use crate::time::Timestamp;

/// Returns the path at which an authorization continues.
pub(in crate::http) fn dispatcher(id: &AuthorizationId) -> String {
    format!("/oauth2/authorize?authorization={id}")
}

/// Returns the path of the page on which the user signs in for an authorization.
pub(in crate::http) fn login_page(id: &AuthorizationId) -> String {
    format!("{SIGN_IN}?authorization={id}")
}

/// The path that starts a sign-in to the account page.
const SIGN_IN: &str = "/login";

/// Longest request that the page of an expired authorization offers to restart. The URL of a GET is limited to 8 KiB.
const RESTART_BYTES: usize = 7 * 1024;

/// The stored state of the browser that sends a request.
pub(in crate::http) struct Stored {
    pub(in crate::http) session: Option<(Session, Username)>,
    pub(in crate::http) consent: Option<Consent>,
}

impl Stored {
    fn load(
        tx: &mut Transaction<'_>,
        client_id: Option<&ClientId>,
        cookie: &Hash,
    ) -> Result<Self, db::Error> {
        let session = tx.find_session(cookie)?;
        let consent = match (&session, client_id) {
            (Some((session, _)), Some(client_id)) => {
                tx.find_consent(&session.login.user_id, client_id)?
            }
            _ => None,
        };
        Ok(Self { session, consent })
    }
}

/// A valid authorization request with the state that it is decided on.
pub(in crate::http) struct AuthorizationContext {
    pub(in crate::http) request: Request,
    pub(in crate::http) stored: Stored,
    /// The epoch of the revocation feed when the client was read.
    pub(in crate::http) feed_epoch: i64,
}

impl AuthorizationContext {
    /// Returns the login of the browser.
    pub(in crate::http) fn login(&self) -> Option<&Login> {
        self.stored
            .session
            .as_ref()
            .map(|(session, _)| &session.login)
    }

    /// Returns what the request needs next. Every handler that advances an authorization calls this first.
    pub(in crate::http) fn next_action(
        &self,
        authorization: Option<&Authorization>,
        now: Timestamp,
    ) -> NextAction {
        let consent = self.stored.consent.as_ref();
        next_action(&self.request, authorization, self.login(), consent, now)
    }
}

/// Validates a request and loads its context. Errors are shown or redirected as RFC 6749 §4.1.2.1 requires.
pub(in crate::http) async fn load_authorization_request(
    http: &HttpRequest,
    app: &App,
    params: &Params,
    now: Timestamp,
) -> Result<AuthorizationContext, HandlerError> {
    // 1. The client and its callback.
    let client_id = rules::client_id(params)?;
    let known = app
        .registrations
        .find(&app.page_store, &client_id, now)
        .await?;
    let client = known.as_ref().map(|known| known.client.clone());
    if client.is_some() {
        access_log::name_client(http, &client_id);
    }
    let (client, callback) = rules::callback(params, client)?;
    // 2. All other parameters.
    let keys = app.keys();
    let context = ValidationContext {
        resources: known.as_ref().map_or(&[], |known| &known.resources),
        hint: &|token| Hint::read(token, &keys, app.issuer.as_str()).map(|hint| hint.user_id),
    };
    let request = rules::validate(params, client, callback, &context)?;
    // 3. The browser's session and consent.
    Ok(AuthorizationContext {
        feed_epoch: known.map_or(0, |known| known.feed_epoch),
        request,
        stored: load_stored(http, app, Some(client_id), now).await?,
    })
}

/// Loads the active session of the browser, and its user's consent to a client.
pub(in crate::http) async fn load_stored(
    http: &HttpRequest,
    app: &App,
    client_id: Option<ClientId>,
    now: Timestamp,
) -> Result<Stored, HandlerError> {
    let mut stored = match CookieKind::Session
        .read(http, app)
        .map(|cookie| cookie.hash())
    {
        Some(cookie) => {
            let stored =
                move |tx: &mut Transaction<'_>| Stored::load(tx, client_id.as_ref(), &cookie);
            app.page_store.read(stored).await?
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
        access_log::name_user(http, &app.secret.user_ref(username.as_str()));
    }
    Ok(stored)
}

/// Removes the session if it is expired.
async fn expire(
    http: &HttpRequest,
    app: &App,
    stored: &mut Stored,
    now: Timestamp,
) -> Result<(), HandlerError> {
    let idle = app.config.login.session_idle.0;
    if let Some((session, _)) = stored
        .session
        .take_if(|(session, _)| session.is_expired(idle, now))
    {
        stored.consent = None;
        let limit = if now >= session.expires_at {
            "absolute"
        } else {
            "idle"
        };
        error::log(http, Detail::new("session.expired", limit), None);
        app.page_store
            .transaction(move |tx| tx.drop_expired_session(&session))
            .await?;
    }
    Ok(())
}

/// Stores a new authorization: the request of a client, or a sign-in that starts at the account page.
pub(in crate::http) async fn begin(
    http: &HttpRequest,
    app: &App,
    request: Option<(&Request, &str)>,
    browser: Option<Hash>,
    now: Timestamp,
) -> Result<AuthorizationId, db::Error> {
    let authorization = Authorization {
        id: AuthorizationId::new(&app.entropy, now),
        client_id: request.map(|(request, _)| request.client.id.clone()),
        params: request.map_or_else(String::new, |(_, params)| params.to_owned()),
        browser,
        user_id: None,
        sid: None,
        login_sid: None,
        stage: Stage::Begun,
        scope: None,
        created_at: now,
        expires_at: now + app.config.login.authorization.0,
        taken_at: None,
    };
    let id = authorization.id.clone();
    let network = rate_limit::source(ClientAddress::of(http));
    let count = rate_limit::is_time_to_count(http);
    let put = app.page_store.transaction(move |tx| {
        tx.put_authorization(&authorization, &network)?;
        if count {
            tx.cap_authorizations()?;
        }
        Ok(())
    });
    put.await?;
    Ok(id)
}

/// Loads an authorization that this browser started and that is still open.
async fn open(
    app: &App,
    id: &AuthorizationId,
    browser: &Browser,
    method: &Method,
    now: Timestamp,
) -> Result<Authorization, HandlerError> {
    let wanted = id.clone();
    let found = app
        .page_store
        .read(move |tx| tx.find_authorization(&wanted))
        .await?;
    let authorization = found.ok_or(ErrorPage::OTHER_BROWSER)?;
    match &authorization.browser {
        Some(bound) if bound.matches(&browser.hash()) => {}
        Some(_) => return Err(ErrorPage::OTHER_BROWSER.into()),
        // HEAD has no effect. A browser without a cookie would be bound by a value that it never receives.
        None if method == Method::HEAD => {}
        None => {
            let (id, hash) = (id.clone(), browser.hash());
            if !app
                .page_store
                .transaction(move |tx| tx.bind_authorization(&id, &hash))
                .await?
            {
                return Err(ErrorPage::OTHER_BROWSER.into());
            }
        }
    }
    if authorization.taken_at.is_some() {
        // The account page shows whether the user is signed in, and offers to sign in.
        let Some(client_id) = &authorization.client_id else {
            return Err(HandlerError::Account);
        };
        let client = app.registrations.find(&app.page_store, client_id, now);
        let client = client.await?.map(|known| known.client.clone());
        let link = client
            .as_ref()
            .and_then(|client| to_client(client, &authorization));
        return Err(HandlerError::Linked(
            ErrorPage::ALREADY_DONE,
            Box::new(link),
        ));
    }
    if now >= authorization.expires_at {
        return Err(HandlerError::Linked(
            ErrorPage::TOO_LATE,
            Box::new(restart(&authorization)),
        ));
    }
    Ok(authorization)
}

/// Returns the authorization that the query of a page names, if it names one.
///
/// # Errors
/// [`ErrorPage::NO_START`] if it is repeated or malformed.
pub(in crate::http) fn id_in_query(
    http: &HttpRequest,
) -> Result<Option<AuthorizationId>, ErrorPage> {
    let query = extract::query(http).map_err(|_| ErrorPage::NO_START)?;
    let id = query
        .one("authorization")
        .map_err(|_| ErrorPage::NO_START)?;
    Ok(id.map(AuthorizationId::from))
}

/// An open authorization of this browser, with the state that it is decided on.
pub(in crate::http) enum Resumed {
    /// The request of a client.
    Client(Box<(AuthorizationContext, Authorization)>),
    /// A sign-in that started at the account page, with the session of the browser. It is complete as soon as there
    /// is one.
    Account(Option<(Session, Username)>),
}

/// Loads an open authorization of this browser and its context.
pub(in crate::http) async fn resume(
    http: &HttpRequest,
    app: &App,
    id: &AuthorizationId,
    browser: &Browser,
    now: Timestamp,
) -> Result<Resumed, HandlerError> {
    let authorization = open(app, id, browser, http.method(), now).await?;
    if authorization.client_id.is_none() {
        let stored = load_stored(http, app, None, now).await?;
        return Ok(Resumed::Account(stored.session));
    }
    let params =
        Params::parse(authorization.params.as_bytes()).map_err(|_| ErrorPage::TOO_MANY_FIELDS)?;
    let context = load_authorization_request(http, app, &params, now).await?;
    Ok(Resumed::Client(Box::new((context, authorization))))
}

/// Returns a link that repeats the request of an expired authorization, if it fits into a URL.
fn restart(authorization: &Authorization) -> Option<Link> {
    (authorization.params.len() <= RESTART_BYTES).then(|| Link {
        label: "Start again".to_owned(),
        href: match authorization.client_id {
            Some(_) => format!("/oauth2/authorize?{}", authorization.params),
            None => SIGN_IN.to_owned(),
        },
    })
}

/// Returns a link to the client's home page, or to the site that the response went to.
fn to_client(client: &Client, authorization: &Authorization) -> Option<Link> {
    let site = || {
        let params = Params::parse(authorization.params.as_bytes()).ok()?;
        let uri = params.one("redirect_uri").ok().flatten();
        let uri = uri.or(client.redirect_uris.first().map(String::as_str))?;
        // Only a registered URI, whatever the request contained.
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
