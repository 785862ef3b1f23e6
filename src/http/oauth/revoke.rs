//! `/oauth2/revoke`: RFC 7009.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};

use crate::app::App;
use crate::http::api::HandlerError;
use crate::http::error;
use crate::http::oauth::client_auth::authenticate_form;
use crate::http::oauth::restored;
use crate::oauth::revocation::{self, RevocationRequest};

/// Handles `POST /oauth2/revoke`. Responds with 200 and an empty body after the commit.
pub async fn post(request: HttpRequest, app: Data<App>, body: Payload) -> HttpResponse {
    match revoke(&request, &app, body).await {
        Ok(()) => HttpResponse::Ok()
            .insert_header(("Cache-Control", "no-store"))
            .finish(),
        Err(error) => error.respond(&request),
    }
}

async fn revoke(request: &HttpRequest, app: &App, body: Payload) -> Result<(), HandlerError> {
    // 1. Authenticate the client and parse the request.
    let now = app.clock.now();
    let (form, client) = authenticate_form(request, app, body, now).await?;
    let revocation = RevocationRequest::read(&form, &app.secret, app.verifier(), now)?;
    if let RevocationRequest::Refresh(grant) = &revocation {
        restored::check_lost_grant(app, Some(grant)).await?;
    }
    // 2. Revoke the token in one transaction.
    app.store
        .transaction(move |tx| revocation::revoke(&revocation, &client, tx, now))
        .await??;
    error::note(request, "revocation.done", "token");
    Ok(())
}
