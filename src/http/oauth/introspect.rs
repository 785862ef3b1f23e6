//! `/oauth2/introspect`: RFC 7662.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Map, Value};

use crate::app::App;
use crate::http::api::HandlerError;
use crate::http::oauth::client_auth::authenticate_form;
use crate::http::oauth::restored::check_lost_grant;
use crate::id::GrantId;
use crate::oauth::introspection::{self, IntrospectionRequest};
use crate::oauth::{Detail, Error, StorageError};

/// Handles `POST /oauth2/introspect`. The response is JSON whatever `Accept` says, because signed responses (RFC
/// 9701) are not supported. There is no CORS, because a resource server is not a browser.
pub async fn post(request: HttpRequest, app: Data<App>, body: Payload) -> HttpResponse {
    match introspect(&request, &app, body).await {
        Ok(response) => HttpResponse::Ok()
            .insert_header(("Cache-Control", "no-store"))
            .json(response),
        Err(error) => error.respond(&request),
    }
}

async fn introspect(
    request: &HttpRequest,
    app: &App,
    body: Payload,
) -> Result<Map<String, Value>, HandlerError> {
    // 1. Authenticate the resource server and read the token.
    let now = app.clock.now();
    let (form, client) = authenticate_form(request, app, body, now).await?;
    let token = IntrospectionRequest::read(&form, &client, &app.secret, app.verifier(), now)?;
    // 2. Determine whether it is active.
    match token {
        IntrospectionRequest::Inactive => Ok(introspection::inactive()),
        IntrospectionRequest::Access(claims) => {
            if app.is_token_active(&claims).await.map_err(degraded)? {
                return Ok(introspection::access(&claims));
            }
            let grant = claims.grant_id.as_deref().map(GrantId::from);
            check_lost_grant(app, grant.as_ref()).await?;
            Ok(introspection::inactive())
        }
        IntrospectionRequest::Refresh(grant_id, generation) => {
            let id = grant_id.clone();
            let grant = app.store.read(move |tx| tx.find_active_grant(&id, now));
            let grant = grant.await.map_err(degraded)?;
            match &grant {
                None => check_lost_grant(app, Some(&grant_id)).await?,
                Some(grant) if grant.generation < generation => {
                    app.note_restored("refresh").await.map_err(degraded)?;
                }
                Some(_) => {}
            }
            let issuer = app.issuer.as_str();
            Ok(introspection::refresh(
                grant.as_ref(),
                generation,
                &client,
                issuer,
            ))
        }
    }
}

/// Returns the error of a failed look-up: 503, because a token must not be reported as active without one.
fn degraded(error: StorageError) -> Error {
    Error {
        detail: Detail::high("introspection.degraded", "storage"),
        ..error.into()
    }
}
