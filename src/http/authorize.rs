//! `/oauth2/authorize`: RFC 6749 §3.1, §4.1; OIDC Core §3.1.2. One dispatcher; the pages of login and
//! consent record what happened and come back here.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};

use super::access;
use super::answer::{deliver, see_other};
use super::assets::Assets;
use super::client_address::ClientAddress;
use super::error::{self, Notice};
use super::extract::{self, Browser, Jar, Unread};
use super::limits;
use crate::accounts::consent::Consent;
use crate::accounts::session::Session;
use crate::accounts::user::Username;
use crate::app::App;
use crate::db::{self, Transaction};
use crate::id::{AuthorizationId, ClientId, ConsentId};
use crate::oauth::authorize::{self as rules, Refused, Request, Surroundings};
use crate::oauth::callback::{Callback, Delivery};
use crate::oauth::client::GrantType;
use crate::oauth::grants::authorization_code::Code;
use crate::oauth::grants::{Given, Grant};
use crate::oauth::id_token::Hint;
use crate::oauth::next_step::{Authorization, Stage, Step, next};
use crate::oauth::params::Params;
use crate::oauth::scope::Scope;
use crate::oauth::{Detail, Error};
use crate::secret::Hash;
use crate::time::Timestamp;

/// `GET`: begins an authorization, or goes on with the one that `authorization` names.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let Ok(params) = extract::query(&request) else {
        return error::notice(&request, &app, &assets, Notice::TOO_MANY_FIELDS);
    };
    let browser = Browser::of(&request, &app);
    let outcome = match params.one("authorization") {
        Ok(Some(id)) => resume(&request, &app, AuthorizationId::from(id), &browser).await,
        _ => begin(&request, &app, &params, &browser).await,
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
        Ok(id) => see_other(&format!("/oauth2/authorize?authorization={id}")),
        Err(stop) => stop.respond(&request, &app, &assets),
    }
}

/// Why the dispatcher stops without a next page.
pub(super) enum Stop {
    Notice(Notice),
    Refused(Refused),
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Refused(Refused::Page(error))
    }
}

impl From<db::Error> for Stop {
    fn from(error: db::Error) -> Self {
        Error::from(error).into()
    }
}

impl Stop {
    pub(super) fn respond(self, request: &HttpRequest, app: &App, assets: &Assets) -> HttpResponse {
        match self {
            Self::Notice(notice) => error::notice(request, app, assets, notice),
            Self::Refused(Refused::Page(error)) => error::protocol_page(request, assets, &error),
            Self::Refused(Refused::Callback(callback, refusal)) => {
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
        if let Err(error) = response.add_cookie(&Jar::Interaction.keep(app, &browser.secret)) {
            tracing::error!(event = "http.cookie", %error);
        }
        response
    }
}

/// What is stored about whoever makes a request.
pub(super) struct Stored {
    pub(super) session: Option<(Session, Username)>,
    pub(super) consent: Option<Consent>,
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
pub(super) struct Pending {
    pub(super) request: Request,
    pub(super) stored: Stored,
    feed_epoch: i64,
}

/// Loads and checks a request; refusals are where RFC 6749 §4.1.2.1 wants them.
pub(super) async fn pend(
    http: &HttpRequest,
    app: &App,
    params: &Params,
    now: Timestamp,
) -> Result<Pending, Stop> {
    // 1. The client, and where the answer may go.
    let client_id = rules::client_id(params)?;
    let known = app.registrations.find(&app.store, &client_id, now).await?;
    let client = known.as_ref().map(|known| known.client.clone());
    let (client, callback) = rules::callback(params, client)?;
    access::name_client(http, &client_id);
    // 2. Everything else.
    let keys = app.keys();
    let around = Surroundings {
        resources: known.as_ref().map_or(&[], |known| &known.resources),
        hint: &|token| Hint::read(token, &keys, app.issuer.as_str()).map(|hint| hint.user_id),
    };
    let request = rules::validate(params, client, callback, &around)?;
    // 3. Who asks.
    let mut stored = match Jar::Session.read(http, app).map(|cookie| cookie.hash()) {
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
        extract::log_stranger(http, app);
    }
    expire(http, app, &mut stored, now).await?;
    if let Some((_, username)) = &stored.session {
        access::name_person(http, &app.secret.user_ref(username.as_str()));
    }
    Ok(Pending {
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
) -> Result<(), Stop> {
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

async fn begin(
    http: &HttpRequest,
    app: &App,
    params: &Params,
    browser: &Browser,
) -> Result<Next, Stop> {
    let now = app.clock.now();
    let pending = pend(http, app, params, now).await?;
    let login = pending
        .stored
        .session
        .as_ref()
        .map(|(session, _)| &session.login);
    // 3. The next step.
    match next(
        &pending.request,
        None,
        login,
        pending.stored.consent.as_ref(),
        now,
    ) {
        Step::Refuse(error) => Err(refuse(&pending.request.callback, error)),
        Step::Answer { scope, consent_id } => {
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
            put(http, app, begun, now).await?;
            Ok(if matches!(step, Step::Login) {
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
) -> Result<Next, Stop> {
    let now = app.clock.now();
    let begun = open(app, &id, browser, now).await?;
    let params = Params::parse(begun.params.as_bytes())
        .map_err(|_| Stop::Notice(Notice::TOO_MANY_FIELDS))?;
    let pending = pend(http, app, &params, now).await?;
    let login = pending
        .stored
        .session
        .as_ref()
        .map(|(session, _)| &session.login);
    match next(
        &pending.request,
        Some(&begun),
        login,
        pending.stored.consent.as_ref(),
        now,
    ) {
        Step::Login => Ok(Next::Login(id)),
        Step::Consent => Ok(Next::Consent(id)),
        Step::Refuse(error) => {
            let taken = app
                .store
                .transaction(move |tx| tx.take_authorization(&id, now))
                .await?;
            Err(if taken {
                refuse(&pending.request.callback, error)
            } else {
                Stop::Notice(Notice::ALREADY_DONE)
            })
        }
        Step::Answer { scope, consent_id } => {
            answer(app, pending, Some(id), scope, consent_id, now).await
        }
    }
}

/// An authorization that this browser began, still open.
pub(super) async fn open(
    app: &App,
    id: &AuthorizationId,
    browser: &Browser,
    now: Timestamp,
) -> Result<Authorization, Stop> {
    let wanted = id.clone();
    let found = app
        .store
        .read(move |tx| tx.find_authorization(&wanted))
        .await?;
    let begun = found.ok_or(Stop::Notice(Notice::OTHER_BROWSER))?;
    match &begun.browser {
        Some(bound) if bound.matches(&browser.hash()) => {}
        Some(_) => return Err(Stop::Notice(Notice::OTHER_BROWSER)),
        None => {
            let (id, hash) = (id.clone(), browser.hash());
            if !app
                .store
                .transaction(move |tx| tx.bind_authorization(&id, &hash))
                .await?
            {
                return Err(Stop::Notice(Notice::OTHER_BROWSER));
            }
        }
    }
    if begun.taken_at.is_some() {
        return Err(Stop::Notice(Notice::ALREADY_DONE));
    }
    if now >= begun.expires_at {
        return Err(Stop::Notice(Notice::TOO_LATE));
    }
    Ok(begun)
}

/// Takes the authorization, writes grant and code, and answers: one transaction.
async fn answer(
    app: &App,
    pending: Pending,
    id: Option<AuthorizationId>,
    scope: Scope,
    consent_id: Option<ConsentId>,
    now: Timestamp,
) -> Result<Next, Stop> {
    let Pending {
        request,
        stored,
        feed_epoch,
    } = pending;
    let Some((session, _)) = stored.session else {
        return Err(Stop::Notice(Notice::NO_START));
    };
    let given = Given {
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
    let is_family = request.client.may_use(GrantType::RefreshToken);
    let taken = app.store.transaction(move |tx| {
        if let Some(id) = id
            && !tx.take_authorization(&id, now)?
        {
            return Ok(false);
        }
        tx.put_grant(&grant)?;
        tx.put_code(&code)?;
        if is_family {
            tx.end_surplus_grants(&grant, now)?;
        }
        tx.touch_session(&session, now)?;
        Ok(true)
    });
    if !taken.await? {
        return Err(Stop::Notice(Notice::ALREADY_DONE));
    }
    Ok(Next::Deliver(
        request.callback.answer(&secret, app.issuer.as_str()),
    ))
}

async fn store(http: &HttpRequest, app: &App, body: Payload) -> Result<AuthorizationId, Stop> {
    let too_many = |_| Stop::Notice(Notice::TOO_MANY_FIELDS);
    let query = extract::query(http).map_err(too_many)?;
    let (params, text) =
        extract::form_and_text(http, body)
            .await
            .map_err(|unread| match unread {
                Unread::Notice(notice) => Stop::Notice(notice),
                Unread::NotAForm => Stop::Notice(Notice::BAD_FORM),
            })?;
    // RFC 6749 §3.1: a parameter stands once, wherever it stands.
    if rules::KNOWN
        .iter()
        .any(|name| query.has(name) && params.has(name))
    {
        return Err(crate::oauth::Error::from(crate::oauth::params::Problem::Duplicate).into());
    }
    let now = app.clock.now();
    let pending = pend(http, app, &params, now).await?;
    let begun = authorization(app, &pending.request, &text, None, now);
    let id = begun.id.clone();
    put(http, app, begun, now).await?;
    Ok(id)
}

async fn put(
    http: &HttpRequest,
    app: &App,
    begun: Authorization,
    now: Timestamp,
) -> Result<(), db::Error> {
    let network = limits::source(ClientAddress::of(http));
    let count = limits::is_time_to_count(http);
    let put = app.store.transaction(move |tx| {
        tx.put_authorization(&begun, &network)?;
        if count {
            tx.cap_authorizations(now)?;
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
        stage: Stage::Begun,
        scope: None,
        created_at: now,
        expires_at: now + app.config.login.authorization.0,
        taken_at: None,
    }
}

fn refuse(callback: &Callback, error: Error) -> Stop {
    Stop::Refused(Refused::Callback(Box::new(callback.clone()), error))
}
