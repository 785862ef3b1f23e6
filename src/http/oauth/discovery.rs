//! `/.well-known/openid-configuration`, `/.well-known/oauth-authorization-server` and the JWKS. The bodies are
//! serialised in advance, so no request reads the database.

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};

use crate::app::App;
use crate::http::api::{public_json, published_keys};
use crate::keys::Use;

/// Responds with the metadata (RFC 8414 §3, OIDC Discovery §4).
pub async fn metadata(request: HttpRequest, app: Data<App>) -> HttpResponse {
    let (bytes, etag) = app.metadata();
    public_json(&request, bytes, etag, "public, max-age=300")
}

/// Responds with the public keys for tokens (RFC 7517 §5).
pub async fn jwks(request: HttpRequest, app: Data<App>) -> HttpResponse {
    published_keys(&request, &app, Use::Token)
}
