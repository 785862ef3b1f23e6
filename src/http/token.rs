//! `/oauth2/token`: RFC 6749 §3.2. Parse, prove, decide in one transaction, sign after the commit.

use actix_web::web::{self, Data, Payload};
use actix_web::{HttpRequest, HttpResponse};

use super::cors;
use super::error::{self, Notice};
use super::extract::{self, Unread};
use crate::app::App;
use crate::oauth::client_auth;
use crate::oauth::issue::{self, TokenResponse};
use crate::oauth::ledger::Failure;
use crate::oauth::token::{self, Request};
use crate::oauth::{Detail, Error};

/// `POST /oauth2/token`.
pub async fn post(request: HttpRequest, app: Data<App>, body: Payload) -> HttpResponse {
    let mut response = match answer(&request, app.clone(), body).await {
        Ok(tokens) => HttpResponse::Ok()
            .insert_header(("Cache-Control", "no-store"))
            .json(tokens),
        Err(Stop::Error(error)) => error::json(&request, &error),
        Err(Stop::Notice(notice)) => error::json_notice(&request, notice),
    };
    cors::allow(&request, &app, &mut response).await;
    response
}

enum Stop {
    Notice(Notice),
    Error(Error),
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

async fn answer(
    request: &HttpRequest,
    app: Data<App>,
    body: Payload,
) -> Result<TokenResponse, Stop> {
    // 1. Parse. Secrets do not belong into a URL (RFC 6749 §2.3.1), so nothing is taken from one.
    let rejected = |reason| {
        Stop::Error(Error::invalid_request(Detail::new(
            "token.rejected",
            reason,
        )))
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
    let now = app.clock.now();
    let presented = client_auth::present(&extract::authorization(request), &form)?;
    // 2. Prove the client.
    let id = presented.client_id.clone();
    let client = app
        .store
        .read(move |tx| tx.find_client(&id))
        .await
        .map_err(storage)?;
    let proven = client_auth::prove(&presented, client, now)?;
    let wanted = Request::parse(&form)?;
    // 3. Decide, remember, commit.
    let node = app.clone();
    let decided = app
        .store
        .transaction(move |tx| token::decide(&wanted, &proven, tx, node.mint(now)))
        .await
        .map_err(storage)??;
    // 4. Sign: RSA off the event loop.
    let keys = app.keys();
    web::block(move || issue::mint(decided, &keys))
        .await
        .map_err(|error| Error {
            code: crate::oauth::Code::TemporarilyUnavailable,
            detail: Detail::high("key.unusable", "blocking"),
            source: Some(Box::new(error)),
        })?
        .map_err(Stop::Error)
}
