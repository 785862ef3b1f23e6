//! `/.well-known/openid-configuration`, `/.well-known/oauth-authorization-server` and the JWKS: ready
//! bytes, no database.

use actix_web::http::header;
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};

use crate::app::App;
use crate::http::error;
use crate::keys::Use;

/// How long caches may keep published keys.
const KEY_CACHING: &str = "public, max-age=300, stale-while-revalidate=60, stale-if-error=86400";

/// `GET` of the metadata (RFC 8414 §3, OIDC Discovery §4).
pub async fn metadata(request: HttpRequest, app: Data<App>) -> HttpResponse {
    let (bytes, etag) = app.metadata();
    public(&request, bytes, etag, "public, max-age=300")
}

/// `GET` of the keys (RFC 7517 §5).
pub async fn jwks(request: HttpRequest, app: Data<App>) -> HttpResponse {
    published(&request, &app, Use::Token)
}

/// The keys of a use, unless nobody has confirmed them for too long.
pub(in crate::http) fn published(request: &HttpRequest, app: &App, use_: Use) -> HttpResponse {
    let keys = match app.key_manager.publishing() {
        Ok(keys) => keys,
        Err(stale) => return error::json(request, &stale.into()),
    };
    let published = keys.published(use_);
    public(request, &published.bytes, &published.etag, KEY_CACHING)
}

/// Public JSON with a strong entity tag, for every origin.
fn public(request: &HttpRequest, bytes: &Bytes, etag: &str, caching: &str) -> HttpResponse {
    let known = request
        .headers()
        .get_all(header::IF_NONE_MATCH)
        .any(|value| {
            value.to_str().is_ok_and(|tags| {
                tags.split(',')
                    .map(str::trim)
                    .any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
            })
        });
    let mut response = if known {
        HttpResponse::NotModified()
    } else {
        HttpResponse::Ok()
    };
    response
        .insert_header((header::ETAG, etag))
        .insert_header((header::CACHE_CONTROL, caching))
        .insert_header((header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"))
        .insert_header(("Cross-Origin-Resource-Policy", "cross-origin"));
    if known {
        return response.finish();
    }
    response
        .insert_header((header::CONTENT_TYPE, "application/json"))
        .body(bytes.clone())
}
