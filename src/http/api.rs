//! Responses of the endpoints that programs call.

use actix_web::http::header;
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse};

use crate::app::App;
use crate::http::error::{self, ErrorPage};
use crate::http::server::rate_limit::{self, TooMany};
use crate::keys::Use;
use crate::oauth::Error;

/// How long caches may keep published keys.
const KEY_CACHING: &str = "public, max-age=300, stale-while-revalidate=60, stale-if-error=86400";

/// An error response of an endpoint that programs call.
pub(in crate::http) enum HandlerError {
    ErrorPage(ErrorPage),
    Error(Error),
    TooMany(TooMany),
}

impl HandlerError {
    pub(in crate::http) fn respond(self, request: &HttpRequest) -> HttpResponse {
        if let Some(too_many) = rate_limit::beyond(request) {
            return too_many.json(request);
        }
        match self {
            Self::Error(error) => error::json(request, &error),
            Self::ErrorPage(page) => error::json_error_page(request, page),
            Self::TooMany(too_many) => too_many.json(request),
        }
    }
}

impl<E: Into<Error>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Responds with the public keys of a use, unless this node has not confirmed them for too long.
pub(in crate::http) fn published_keys(request: &HttpRequest, app: &App, use_: Use) -> HttpResponse {
    let keys = match app.key_manager.publishing() {
        Ok(keys) => keys,
        Err(error) => return error::json(request, &error.into()),
    };
    let published = keys.published(use_);
    public_json(request, &published.bytes, &published.etag, KEY_CACHING)
}

/// Responds with public JSON and a strong entity tag.
pub(in crate::http) fn public_json(
    request: &HttpRequest,
    bytes: &Bytes,
    etag: &str,
    caching: &str,
) -> HttpResponse {
    let mut tags = request.headers().get_all(header::IF_NONE_MATCH);
    let is_current = tags.any(|value| {
        value.to_str().is_ok_and(|tags| {
            tags.split(',')
                .map(str::trim)
                .any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
        })
    });
    let mut response = if is_current {
        HttpResponse::NotModified()
    } else {
        HttpResponse::Ok()
    };
    response
        .insert_header((header::ETAG, etag))
        .insert_header((header::CACHE_CONTROL, caching))
        .insert_header(("Cross-Origin-Resource-Policy", "cross-origin"));
    if is_current {
        return response.finish();
    }
    response
        .insert_header((header::CONTENT_TYPE, "application/json"))
        .body(bytes.clone())
}
