//! Client authentication for the endpoints that clients call: RFC 6749 §2.3.

use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::web::Payload;

use crate::accounts::throttle;
use crate::app::App;
use crate::http::api::HandlerError;
use crate::http::error;
use crate::http::extract::{self, FormError};
use crate::http::server::access_log;
use crate::http::server::client_address::ClientAddress;
use crate::http::server::rate_limit::{self, TooMany};
use crate::oauth::client::Client;
use crate::oauth::client_auth::{self, AuthenticatedClient, ClientCredentials, Verified};
use crate::oauth::macros::details;
use crate::oauth::request::params::Params;
use crate::oauth::{Code, Description, Error, StorageError};
use crate::time::Timestamp;

details! {
    enum Rejection {
        Query => Detail::new("token.rejected", "query").described(Description::IN_QUERY),
        ContentType =>
            Detail::new("token.rejected", "content_type").described(Description::CONTENT_TYPE),
        Storage => Detail::high("token.storage_error", "storage"),
    }
}

/// Returns the error of a request that fails because of the database: 503. The transaction was rolled back, so
/// the client may retry.
pub(super) fn storage_error(error: StorageError) -> Error {
    Error {
        detail: Rejection::Storage.into(),
        ..error.into()
    }
}

/// Reads the form of a request and authenticates the client that sent it. A query is rejected, because a URL must
/// not contain secrets (RFC 6749 §2.3.1).
pub(super) async fn authenticate_form(
    request: &HttpRequest,
    app: &App,
    body: Payload,
    now: Timestamp,
) -> Result<(Params, AuthenticatedClient), HandlerError> {
    if !request.query_string().is_empty() {
        return Err(Error::invalid_request(Rejection::Query).into());
    }
    let form = extract::form(request, body)
        .await
        .map_err(|error| match error {
            FormError::ErrorPage(page) => HandlerError::ErrorPage(page),
            FormError::NotAForm => Error::invalid_request(Rejection::ContentType).into(),
        })?;
    let client = authenticate(request, app, &form, now).await?;
    access_log::name_client(request, &client.client().id);
    if client.client().is_confidential() {
        rate_limit::charge_client(request, &client.client().id).map_err(HandlerError::TooMany)?;
    } else if let Some(too_many) = rate_limit::beyond(request) {
        // Any caller can name a public client.
        return Err(HandlerError::TooMany(too_many));
    }
    Ok((form, client))
}

/// Authenticates the client of a request without a form.
pub(in crate::http) async fn authenticate_header(
    request: &HttpRequest,
    app: &App,
) -> Result<AuthenticatedClient, HandlerError> {
    authenticate(request, app, &Params::default(), app.clock.now()).await
}

async fn authenticate(
    request: &HttpRequest,
    app: &App,
    form: &Params,
    now: Timestamp,
) -> Result<AuthenticatedClient, HandlerError> {
    let credentials = client_auth::read_credentials(&extract::authorization(request), form);
    let verified = match credentials {
        Ok(credentials) => verify(request, app, credentials, now).await?,
        // Missing and malformed credentials are counted as well.
        Err(error) if error.code == Code::InvalidClient => Err(error),
        Err(error) => return Err(error.into()),
    };
    match verified {
        Ok(client) => Ok(client),
        Err(error) if rate_limit::beyond(request).is_some() => Err(error.into()),
        Err(error) => Err(count_failure(request, app, error).await),
    }
}

/// Verifies credentials. A cached registration may be some seconds old, so it is enough to accept a client but
/// not to reject it. Every rejection follows one statement that looks for the client, known or not, so that its time
/// does not tell which ids are registered.
async fn verify(
    request: &HttpRequest,
    app: &App,
    credentials: ClientCredentials,
    now: Timestamp,
) -> Result<Result<AuthenticatedClient, Error>, HandlerError> {
    let address = ClientAddress::known(request);
    let client_id = credentials.client_id.clone();
    let rules = Arc::clone(&app.assertion_rules);
    if let Some(cached) = app.registrations.recall(&client_id, now)
        && let Ok(verified) =
            client_auth::verify(&credentials, &cached.client, address, &rules, now)
    {
        let used = use_assertion(app, &verified).await?;
        return Ok(used.map(|()| verified.client(cached)));
    }
    rate_limit::admit_lookup(request).map_err(HandlerError::TooMany)?;
    let unknown = client_auth::unknown_client();
    let accepts =
        move |client: &Client| client_auth::verify(&credentials, client, address, &rules, now);
    let read = app
        .registrations
        .read_if(&app.store, &client_id, now, unknown, accepts);
    let (registration, verified) = match read.await.map_err(storage_error)? {
        Ok(accepted) => accepted,
        Err(error) => return Ok(Err(error)),
    };
    let used = use_assertion(app, &verified).await?;
    Ok(used.map(|()| {
        let client = verified.client(registration);
        touch_secret(app, &client, now);
        client
    }))
}

/// Records that the assertion of a request is used, if it has one. Fails if it was used before.
async fn use_assertion(app: &App, verified: &Verified) -> Result<Result<(), Error>, HandlerError> {
    let Some(assertion) = verified.used_assertion().cloned() else {
        return Ok(Ok(()));
    };
    let client_id = assertion.client_id.clone();
    let is_first = app
        .store
        .transaction(move |tx| tx.use_assertion(&assertion));
    match is_first.await.map_err(storage_error)? {
        true => Ok(Ok(())),
        false => Ok(Err(client_auth::used_before(&client_id))),
    }
}

/// Counts a failed client authentication. Responds with 429 if too many failures come from the address (policy §4).
/// A client with the correct secret is never blocked, because generated secrets cannot be guessed.
async fn count_failure(request: &HttpRequest, app: &App, error: Error) -> HandlerError {
    let bucket = throttle::failed_client(ClientAddress::of(request));
    let clock = app.clock.clone();
    let wait = app.store.transaction(move |tx| {
        let now = tx.database_time(&clock)?;
        tx.count_failure(&bucket, now)
    });
    match wait.await {
        Ok(None) => HandlerError::Error(error),
        Ok(Some(wait)) => {
            // The failed authentication is logged as well.
            error::refused_by_protocol(request, &error);
            HandlerError::TooMany(TooMany::failures(request, wait))
        }
        Err(failure) => HandlerError::Error(storage_error(failure)),
    }
}

/// Records in the background that a client secret is in use. This happens when the client is read from the database
/// and its last record is an hour old, so most requests do not do it.
fn touch_secret(app: &App, client: &AuthenticatedClient, now: Timestamp) {
    if let Some(secret) = client.secret_to_touch() {
        let (store, secret) = (app.store.clone(), secret.to_owned());
        actix_web::rt::spawn(async move {
            let touched = store.transaction(move |tx| tx.touch_client_secret(&secret, now));
            if let Err(error) = touched.await {
                tracing::warn!(event = "storage.error", reason = "client_secret", %error);
            }
        });
    }
}
