//! CORS (policy §8): every response of a route that browser scripts need carries its headers, whatever its status. A
//! script that may not read a 429 sees a network error instead, and cannot know when to retry.

use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse};

use crate::app::App;

/// The response headers that scripts may read: when to retry, and why a token was rejected.
const EXPOSED: &str = "retry-after, www-authenticate, x-request-id, ratelimit-limit, ratelimit-remaining, ratelimit-reset";
/// The request headers that a preflight allows if it names none.
const USUAL_HEADERS: &str = "authorization, content-type";
/// Longest list of request headers that a preflight allows.
const REQUEST_HEADERS_BYTES: usize = 1024;

/// Whose scripts may read the responses of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    /// Every origin, without credentials: the response is public.
    Everyone,
    /// The exact origins that clients registered.
    RegisteredOrigins,
}

impl Readers {
    /// Returns the readers of a path; `None` for a route without CORS.
    pub(super) fn of(path: &str) -> Option<Self> {
        match path {
            "/oauth2/token" | "/oauth2/revoke" | "/oauth2/userinfo" => {
                Some(Self::RegisteredOrigins)
            }
            "/oauth2/jwks"
            | "/.well-known/jwks.json"
            | "/.well-known/openid-configuration"
            | "/.well-known/oauth-authorization-server"
            | "/revocations/jwks" => Some(Self::Everyone),
            _ => None,
        }
    }

    /// Sets the headers of a response.
    pub(super) async fn describe(
        self,
        request: &HttpRequest,
        app: &App,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) {
        let Some(origin) = self.allowed_origin(request, app, headers).await else {
            return;
        };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(EXPOSED),
        );
        if request.method() != Method::OPTIONS || !status.is_success() {
            return;
        }
        let methods = match self {
            Self::Everyone => "GET, HEAD",
            Self::RegisteredOrigins => "GET, POST",
        };
        let values = [
            (
                header::ACCESS_CONTROL_ALLOW_METHODS,
                HeaderValue::from_static(methods),
            ),
            (
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                requested_headers(request.headers()),
            ),
            (
                header::ACCESS_CONTROL_MAX_AGE,
                HeaderValue::from_static("600"),
            ),
        ];
        for (name, value) in values {
            headers.insert(name, value);
        }
    }

    async fn allowed_origin(
        self,
        request: &HttpRequest,
        app: &App,
        headers: &mut HeaderMap,
    ) -> Option<HeaderValue> {
        if self == Self::Everyone {
            return Some(HeaderValue::from_static("*"));
        }
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        let origin = request.headers().get(header::ORIGIN)?;
        let now = app.clock.now();
        let known = app
            .registrations
            .is_cors_origin(&app.store, origin.to_str().ok()?, now);
        known.await.then(|| origin.clone())
    }
}

/// Answers a preflight request. [`Readers::describe`] adds the headers; an unregistered origin receives none.
pub(in crate::http) async fn preflight() -> HttpResponse {
    HttpResponse::NoContent().finish()
}

/// Returns the request headers that a preflight names. The origin is allowed, so it may send them: tracing libraries
/// and protocols above OAuth add headers that this server ignores. A list that is malformed or too long is not repeated.
fn requested_headers(headers: &HeaderMap) -> HeaderValue {
    let usual = HeaderValue::from_static(USUAL_HEADERS);
    let mut lists = headers.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS);
    let (Some(list), None) = (lists.next(), lists.next()) else {
        return usual;
    };
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~, ".contains(b);
    let is_repeated = !list.is_empty()
        && list.len() <= REQUEST_HEADERS_BYTES
        && list.as_bytes().iter().all(is_token);
    match is_repeated {
        true => list.clone(),
        false => usual,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preflight_repeats_only_valid_header_names() {
        let answer = |list: &str| {
            let mut headers = HeaderMap::new();
            let list = HeaderValue::from_str(list).unwrap();
            headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, list);
            requested_headers(&headers).to_str().unwrap().to_owned()
        };
        let known = "traceparent,sentry-trace, x-requested-with,dpop";
        assert_eq!(answer(known), known);
        let long = "a".repeat(REQUEST_HEADERS_BYTES + 1);
        for odd in ["", "a: b", "a;b", "\"a\"", "a\u{9}b", &long] {
            assert_eq!(answer(odd), USUAL_HEADERS, "{odd}");
        }
        assert_eq!(requested_headers(&HeaderMap::new()), USUAL_HEADERS);
    }
}
