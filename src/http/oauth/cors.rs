//! CORS: the endpoints that browser scripts need allow the exact origins that clients registered. Public metadata
//! allows `*` without credentials (policy §8).

use actix_web::http::header::{self, HeaderValue};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};

use crate::app::App;

/// The response headers that scripts may read: when to retry, and why a token was rejected.
const EXPOSED: &str = "retry-after, www-authenticate, x-request-id, ratelimit-limit, ratelimit-remaining, ratelimit-reset";

/// Handles a preflight request. An unregistered origin receives no CORS headers.
pub async fn preflight(request: HttpRequest, app: Data<App>) -> HttpResponse {
    let mut response = HttpResponse::NoContent().finish();
    allow(&request, &app, &mut response).await;
    if response
        .headers()
        .contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN)
    {
        let headers = response.headers_mut();
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("GET, POST"),
        );
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("authorization, content-type"),
        );
        headers.insert(
            header::ACCESS_CONTROL_MAX_AGE,
            HeaderValue::from_static("600"),
        );
    }
    response
}

/// Allows a registered origin to read the response.
pub async fn allow(request: &HttpRequest, app: &App, response: &mut HttpResponse) {
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = request.headers().get(header::ORIGIN) else {
        return;
    };
    let Ok(text) = origin.to_str().map(str::to_owned) else {
        return;
    };
    if matches!(
        app.store.read(move |tx| tx.is_cors_origin(&text)).await,
        Ok(true)
    ) {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(EXPOSED),
        );
    }
}
