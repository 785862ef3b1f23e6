//! `/oauth2/token`: RFC 6749 §3.2. Parse, prove, decide in one transaction, sign after the commit.

use actix_web::web::{self, Data, Payload};
use actix_web::{HttpRequest, HttpResponse};

use super::cors;
use super::error::{self, Notice};
use super::extract::{self, Unread};
use crate::app::App;
use crate::oauth::client_auth::{self, Proven};
use crate::oauth::issue::{self, TokenResponse};
use crate::oauth::ledger::Failure;
use crate::oauth::params::Params;
use crate::oauth::token::{self, Request};
use crate::oauth::{Detail, Error};
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
pub(super) enum Stop {
    Notice(Notice),
    Error(Error),
}

impl Stop {
    pub(super) fn respond(self, request: &HttpRequest) -> HttpResponse {
        match self {
            Self::Error(error) => error::json(request, &error),
            Self::Notice(notice) => error::json_notice(request, notice),
        }
    }
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Nothing is issued from doubtful state: 503, and nothing was used up.
fn storage(failure: Failure) -> Error {
    Error {
        detail: Detail::high("token.storage_error", "storage"),
        ..failure.into()
    }
}

/// The form of a request, and the client that proved who it is. Secrets do not belong into a URL
/// (RFC 6749 §2.3.1), so nothing is taken from one.
pub(super) async fn proven(
    request: &HttpRequest,
    app: &App,
    body: Payload,
    now: Timestamp,
) -> Result<(Params, Proven), Stop> {
    let rejected = |reason| {
        let detail = Detail::new("token.rejected", reason);
        Stop::Error(Error::invalid_request(detail))
    };
    if !request.query_string().is_empty() {
        return Err(rejected("query"));
    }
    let form = extract::form(request, body)
        .await
        .map_err(|unread| match unread {
            Unread::Notice(notice) => Stop::Notice(notice),
            Unread::NotAForm => rejected("content_type"),
        })?;
    let presented = client_auth::present(&extract::authorization(request), &form)?;
    // What is remembered may be some seconds old: enough to let a client in, never to turn it away.
    if let Some(known) = app.registrations.recall(&presented.client_id, now)
        && let Ok(proven) = client_auth::prove(&presented, Some(known), now)
    {
        return Ok((form, proven));
    }
    let known = app
        .registrations
        .read(&app.store, &presented.client_id, now);
    let proven = client_auth::prove(&presented, known.await.map_err(storage)?, now)?;
    note_use(app, &proven, now);
    Ok((form, proven))
}

/// Writes down that a secret is in use, beside the request. It happens when a client is read anew and
/// its last note is an hour old, so it costs nothing on the hot path.
fn note_use(app: &App, proven: &Proven, now: Timestamp) {
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
) -> Result<TokenResponse, Stop> {
    // 1. Parse, and prove the client.
    //    Without keys to sign with nothing is used up.
    app.signing_keys().await?;
    let now = app.clock.now();
    let (form, proven) = proven(request, &app, body, now).await?;
    let wanted = Request::parse(&form)?;
    // 2. Decide, remember, commit.
    let node = app.clone();
    let decided = match token::decide_alone(&wanted, &proven, app.mint(now)) {
        Some(decided) => decided?,
        None => app
            .store
            .transaction(move |tx| token::decide(&wanted, &proven, tx, node.mint(now)))
            .await
            .map_err(storage)??,
    };
    if decided.again {
        error::note(request, "token.refresh_grace", "again");
    }
    // 3. Sign: RSA off the event loop.
    let keys = app.signing_keys().await?;
    web::block(move || issue::mint(decided, &keys))
        .await
        .map_err(Error::unsigned)?
        .map_err(Stop::Error)
}
