//! `/oauth2/token`: RFC 6749 §3.2.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};

use crate::app::App;
use crate::http::api::HandlerError;
use crate::http::error;
use crate::http::oauth::client_auth::{authenticate_form, storage_error};
use crate::http::oauth::{restored, signing};
use crate::http::server::rate_limit;
use crate::id::GrantId;
use crate::metrics::TOKENS_ISSUED;
use crate::oauth::Error;
use crate::oauth::client_auth::AuthenticatedClient;
use crate::oauth::issue::{PendingTokens, TokenResponse};
use crate::oauth::request::params::Params;
use crate::oauth::token::TokenRequest;
use crate::time::Timestamp;

/// Handles `POST /oauth2/token`.
pub async fn post(request: HttpRequest, app: Data<App>, body: Payload) -> HttpResponse {
    match answer(&request, &app, body).await {
        Ok(tokens) => HttpResponse::Ok()
            .insert_header(("Cache-Control", "no-store"))
            .json(tokens),
        Err(error) => error.respond(&request),
    }
}

async fn answer(
    request: &HttpRequest,
    app: &Data<App>,
    body: Payload,
) -> Result<TokenResponse, HandlerError> {
    // 1. Without signing keys, no code and no refresh token is consumed.
    app.signing_keys().await?;
    // 2. Authenticate the client and parse the request.
    let now = app.clock.now();
    let (form, client) = authenticate_form(request, app, body, now).await?;
    let token_request = TokenRequest::parse(&form)?;
    let labels = metric_labels(&token_request, &client);
    let refreshed = admit_refresh(request, app, &form)?;
    // 3. Decide and commit.
    let tokens = issue(app, token_request, client, refreshed.as_ref(), now).await?;
    if tokens.replayed_within_grace {
        error::note(request, "token.refresh_grace", "again");
    }
    if let Some(grant) = &refreshed {
        rate_limit::charge_refresh(request, grant);
    }
    // 4. Sign.
    let response = sign(app, tokens).await?;
    TOKENS_ISSUED.count(labels);
    Ok(response)
}

/// Returns the labels of the metric: grant type and client type.
fn metric_labels(
    token_request: &TokenRequest,
    client: &AuthenticatedClient,
) -> [std::borrow::Cow<'static, str>; 2] {
    let client_type = match client.client().is_confidential() {
        true => "confidential",
        false => "public",
    };
    [
        token_request.grant_type().as_str().into(),
        client_type.into(),
    ]
}

/// Applies the rate limit per grant. Returns the grant of the refresh token, if the request contains a genuine one.
fn admit_refresh(
    request: &HttpRequest,
    app: &App,
    form: &Params,
) -> Result<Option<GrantId>, HandlerError> {
    let Ok(Some(token)) = form.one("refresh_token") else {
        return Ok(None);
    };
    let Some((grant, _)) = app.secret.read_refresh_token(token) else {
        return Ok(None);
    };
    rate_limit::admit_refresh(request, &grant).map_err(HandlerError::TooMany)?;
    Ok(Some(grant))
}

/// Decides the request, in one transaction if its grant needs the database.
async fn issue(
    app: &Data<App>,
    token_request: TokenRequest,
    client: AuthenticatedClient,
    refreshed: Option<&GrantId>,
    now: Timestamp,
) -> Result<PendingTokens, Error> {
    if let Some(decided) = token_request.issue_without_ledger(&client, app.token_issuer(now)) {
        return decided;
    }
    let node = app.clone();
    let decided = app
        .store
        .transaction(move |tx| token_request.issue(&client, tx, node.token_issuer(now)));
    match decided.await.map_err(storage_error)? {
        Ok(tokens) => Ok(tokens),
        Err(error) => {
            let error = restored::record_evidence(app, error, refreshed).await;
            Err(error.map_err(storage_error)?)
        }
    }
}

async fn sign(app: &App, tokens: PendingTokens) -> Result<TokenResponse, Error> {
    let keys = app.signing_keys().await?;
    signing::sign(tokens.needs_rsa(), move || tokens.sign(&keys)).await?
}
