//! `/oauth2/introspect`: RFC 7662.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Map, Value};

use crate::app::App;
use crate::http::oauth::token::{self, HandlerError};
use crate::id::GrantId;
use crate::oauth::introspection::{self, IntrospectionRequest};
use crate::oauth::ledger::StorageError;
use crate::oauth::{Detail, Error};

/// `POST /oauth2/introspect`: a JSON answer, whatever `Accept` says; signed ones (RFC 9701) are not
/// offered. No CORS: a resource server is no browser.
pub async fn post(request: HttpRequest, app: Data<App>, body: Payload) -> HttpResponse {
    match introspect(&request, &app, body).await {
        Ok(told) => HttpResponse::Ok()
            .insert_header(("Cache-Control", "no-store"))
            .json(told),
        Err(stop) => stop.respond(&request),
    }
}

async fn introspect(
    request: &HttpRequest,
    app: &App,
    body: Payload,
) -> Result<Map<String, Value>, HandlerError> {
    // 1. Parse, prove the resource server, read the token.
    let now = app.clock.now();
    let (form, proven) = token::authenticated_client(request, app, body, now).await?;
    let presented = IntrospectionRequest::read(&form, &proven, &app.secret, app.verifier(), now)?;
    // 2. Whether anything ended it.
    let (issuer, store) = (app.issuer.as_str(), &app.store);
    match presented {
        IntrospectionRequest::Inactive => Ok(introspection::inactive()),
        IntrospectionRequest::Access(claims) => {
            let stands = app.is_token_active(&claims).await.map_err(degraded)?;
            if stands {
                return Ok(introspection::access(&claims));
            }
            let grant = claims.grant_id.as_deref().map(GrantId::from);
            token::check_lost(app, grant.as_ref()).await?;
            Ok(introspection::inactive())
        }
        IntrospectionRequest::Refresh(grant, generation) => {
            let id = grant.clone();
            let found = store.read(move |tx| tx.find_active_grant(&id, now));
            let found = found.await.map_err(degraded)?;
            match &found {
                None => token::check_lost(app, Some(&grant)).await?,
                Some(found) if found.generation < generation => {
                    app.note_restored("refresh").await.map_err(degraded)?;
                }
                Some(_) => {}
            }
            let found = found.as_ref();
            Ok(introspection::refresh(found, generation, &proven, issuer))
        }
    }
}

/// Never "active" from doubtful state: 503.
fn degraded(failure: StorageError) -> Error {
    Error {
        detail: Detail::high("introspection.degraded", "storage"),
        ..failure.into()
    }
}
