//! `/oauth2/token`: RFC 6749 §3.2. Parse, prove, decide in one transaction, sign after the commit.

use std::net::IpAddr;

use actix_web::web::{self, Data, Payload};
use actix_web::{HttpRequest, HttpResponse};

use crate::accounts::throttle;
use crate::app::App;
use crate::http::error::{self, ErrorPage};
use crate::http::extract::{self, FormError};
use crate::http::oauth::cors;
use crate::http::server::access_log;
use crate::http::server::client_address::ClientAddress;
use crate::http::server::rate_limit::{self, TooMany};
use crate::id::GrantId;
use crate::metrics::TOKENS_ISSUED;
use crate::oauth::client_auth::{self, AuthenticatedClient};
use crate::oauth::grants::refresh_token::Refresh;
use crate::oauth::issue::{self, TokenResponse};
use crate::oauth::ledger::StorageError;
use crate::oauth::request::params::Params;
use crate::oauth::token::{self, TokenRequest};
use crate::oauth::{Code, Description, Detail, Error};
use crate::time::Timestamp;

/// `POST /oauth2/token`.
pub async fn post(request: HttpRequest, app: Data<App>, body: Payload) -> HttpResponse {
    let mut response = match answer(&request, app.clone(), body).await {
        Ok(tokens) => HttpResponse::Ok()
            .insert_header(("Cache-Control", "no-store"))
            .json(tokens),
        Err(stop) => stop.respond(&request),
    };
    cors::allow(&request, &app, &mut response).await;
    response
}

/// Why an endpoint that programs call gives nothing.
pub(in crate::http) enum HandlerError {
    ErrorPage(ErrorPage),
    Error(Error),
    TooMany(TooMany),
}

impl HandlerError {
    pub(in crate::http) fn respond(self, request: &HttpRequest) -> HttpResponse {
        match self {
            Self::Error(error) => error::json(request, &error),
            Self::ErrorPage(notice) => error::json_error_page(request, notice),
            Self::TooMany(too_many) => too_many.json(request),
        }
    }
}

impl<E: Into<Error>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Nothing is issued from doubtful state: 503, and nothing was used up.
fn storage(failure: StorageError) -> Error {
    Error {
        detail: Detail::high("token.storage_error", "storage"),
        ..failure.into()
    }
}

/// Refuses to say anything of a token that shows that the database was restored from an older copy.
pub(in crate::http) async fn check_lost(app: &App, grant: Option<&GrantId>) -> Result<(), Error> {
    match grant {
        Some(grant) if app.note_lost_grant(grant).await? => Err(Error {
            code: Code::TemporarilyUnavailable,
            detail: Refresh::Lost.into(),
            source: None,
        }),
        _ => Ok(()),
    }
}

/// The form of a request, and the client that proved who it is. Secrets do not belong into a URL
/// (RFC 6749 §2.3.1), so nothing is taken from one.
pub(in crate::http) async fn authenticated_client(
    request: &HttpRequest,
    app: &App,
    body: Payload,
    now: Timestamp,
) -> Result<(Params, AuthenticatedClient), HandlerError> {
    let rejected = |reason, description| {
        let detail = Detail::new("token.rejected", reason).described(description);
        HandlerError::Error(Error::invalid_request(detail))
    };
    if !request.query_string().is_empty() {
        return Err(rejected("query", Description::IN_QUERY));
    }
    let form = extract::form(request, body)
        .await
        .map_err(|unread| match unread {
            FormError::ErrorPage(notice) => HandlerError::ErrorPage(notice),
            FormError::NotAForm => rejected("content_type", Description::CONTENT_TYPE),
        })?;
    let proven = authenticate(request, app, &form, now).await?;
    access_log::name_client(request, &proven.client().id);
    if proven.client().is_confidential() {
        rate_limit::charge_client(request, &proven.client().id).map_err(HandlerError::TooMany)?;
    }
    Ok((form, proven))
}

/// The client that proved who it is, by the header or the form.
pub(in crate::http) async fn authenticate(
    request: &HttpRequest,
    app: &App,
    form: &Params,
    now: Timestamp,
) -> Result<AuthenticatedClient, HandlerError> {
    let presented = client_auth::present(&extract::authorization(request), form)?;
    match recognise(app, &presented, ClientAddress::of(request), now).await? {
        Ok(proven) => Ok(proven),
        Err(refused) => Err(count_failure(request, app, refused).await),
    }
}

/// Finds out who it is. What is remembered may be some seconds old: enough to let a client in, never to
/// turn it away.
async fn recognise(
    app: &App,
    presented: &client_auth::ClientCredentials,
    address: IpAddr,
    now: Timestamp,
) -> Result<Result<AuthenticatedClient, Error>, HandlerError> {
    if let Some(known) = app.registrations.recall(&presented.client_id, now)
        && let Ok(proven) = client_auth::authenticate(presented, Some(known), address, now)
    {
        return Ok(Ok(proven));
    }
    let known = app
        .registrations
        .read(&app.store, &presented.client_id, now);
    let proven = client_auth::authenticate(presented, known.await.map_err(storage)?, address, now);
    if let Ok(proven) = &proven {
        note_use(app, proven, now);
    }
    Ok(proven)
}

/// Counts a client that fails to authenticate, and answers 429 when its address fails too often
/// (policy §4). A right secret passes all the same: those that we make cannot be guessed.
async fn count_failure(request: &HttpRequest, app: &App, refused: Error) -> HandlerError {
    let bucket = throttle::failed_client(ClientAddress::of(request));
    let clock = app.clock.clone();
    let counted = app.store.transaction(move |tx| {
        let now = tx.database_time(&clock)?;
        tx.count_failure(&bucket, now)
    });
    match counted.await {
        Ok(None) => HandlerError::Error(refused),
        Ok(Some(wait)) => {
            // The refusal itself is seen, too.
            error::refused(request, refused.code.as_str(), refused.detail, None);
            HandlerError::TooMany(TooMany::failures(wait))
        }
        Err(failure) => HandlerError::Error(storage(failure)),
    }
}

/// Writes down that a secret is in use, beside the request. It happens when a client is read anew and
/// its last note is an hour old, so it costs nothing on the hot path.
fn note_use(app: &App, proven: &AuthenticatedClient, now: Timestamp) {
    if let Some(secret) = proven.secret_to_note() {
        let (store, secret) = (app.store.clone(), secret.to_owned());
        actix_web::rt::spawn(async move {
            let noted = store.transaction(move |tx| tx.touch_client_secret(&secret, now));
            if let Err(error) = noted.await {
                tracing::warn!(event = "storage.error", reason = "client_secret", %error);
            }
        });
    }
}

async fn answer(
    request: &HttpRequest,
    app: Data<App>,
    body: Payload,
) -> Result<TokenResponse, HandlerError> {
    // 1. Parse, and prove the client.
    //    Without keys to sign with nothing is used up.
    app.signing_keys().await?;
    let now = app.clock.now();
    let (form, proven) = authenticated_client(request, &app, body, now).await?;
    let wanted = TokenRequest::parse(&form)?;
    let kind = if proven.client().is_confidential() {
        "confidential"
    } else {
        "public"
    };
    let issued = [wanted.grant_type().as_str().into(), kind.into()];
    let refreshed = match form.one("refresh_token") {
        Ok(Some(token)) => app.secret.read_refresh_token(token).map(|(grant, _)| grant),
        _ => None,
    };
    if let Some(grant) = &refreshed {
        rate_limit::admit_refresh(request, grant).map_err(HandlerError::TooMany)?;
    }
    // 2. Decide, remember, commit.
    let node = app.clone();
    let decided = match token::decide_alone(&wanted, &proven, app.mint(now)) {
        Some(decided) => decided?,
        None => {
            let decide = app
                .store
                .transaction(move |tx| token::decide(&wanted, &proven, tx, node.mint(now)));
            let decided = decide.await.map_err(storage)?;
            if let Err(refused) = &decided {
                if refused.detail == Refresh::Ahead.into() {
                    app.note_restored("refresh").await.map_err(storage)?;
                }
                if let Some(grant) = &refreshed
                    && refused.detail == Refresh::GrantEnded.into()
                    && app.note_lost_grant(grant).await.map_err(storage)?
                {
                    return Err(Error::invalid_grant(Refresh::Lost).into());
                }
            }
            decided?
        }
    };
    if decided.replayed_within_grace {
        error::note(request, "token.refresh_grace", "again");
    }
    if let Some(grant) = &refreshed {
        rate_limit::charge_refresh(request, grant);
    }
    // 3. Sign: RSA off the event loop.
    let keys = app.signing_keys().await?;
    let minted = web::block(move || issue::sign(decided, &keys))
        .await
        .map_err(Error::unsigned)?
        .map_err(HandlerError::Error)?;
    TOKENS_ISSUED.count(issued);
    Ok(minted)
}
