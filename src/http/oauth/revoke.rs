//! `/oauth2/revoke`: RFC 7009.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};

use crate::app::App;
use crate::http::error;
use crate::http::oauth::cors;
use crate::http::oauth::token::{self, HandlerError};
use crate::oauth::revocation::{self, RevocationRequest};

/// `POST /oauth2/revoke`: 200 with an empty body once the revocation is committed.
pub async fn post(request: HttpRequest, app: Data<App>, body: Payload) -> HttpResponse {
    let mut response = match revoke(&request, &app, body).await {
        Ok(()) => HttpResponse::Ok()
            .insert_header(("Cache-Control", "no-store"))
            .finish(),
        Err(stop) => stop.respond(&request),
    };
    cors::allow(&request, &app, &mut response).await;
    response
}

async fn revoke(request: &HttpRequest, app: &App, body: Payload) -> Result<(), HandlerError> {
    // 1. Parse, and prove the client.
    let now = app.clock.now();
    let (form, proven) = token::authenticated_client(request, app, body, now).await?;
    let presented = RevocationRequest::read(&form, &app.secret, app.verifier(), now)?;
    if let RevocationRequest::Refresh(grant) = &presented {
        token::check_lost(app, Some(grant)).await?;
    }
    // 2. End it, in one transaction.
    app.store
        .transaction(move |tx| revocation::revoke(&presented, &proven, tx, now))
        .await??;
    error::note(request, "revocation.done", "token");
    Ok(())
}
