//! A tower layer that protects services, such as the routes of axum.
//!
//! A request without an acceptable token receives an error response according to RFC 6750 §3. The
//! inner service finds the token's [`Claims`] in the extensions of the request.
//!
//! ```
//! use axum::routing::{get, post};
//! use axum::{Extension, Router};
//! use portcullis_verifier::tower::RequireToken;
//! use portcullis_verifier::{Claims, MaxAge, Need, Verifier};
//!
//! async fn orders(Extension(caller): Extension<Claims>) -> String {
//!     format!("orders of {}", caller.sub)
//! }
//!
//! async fn pay(Extension(caller): Extension<Claims>) -> String {
//!     format!("{} has paid", caller.sub)
//! }
//!
//! fn app(verifier: Verifier) -> Router {
//!     let read = RequireToken::new(verifier.clone(), Need::scope("orders:read"));
//!     let payment = Need::scope("payments:write").acr(["2"]).max_age(MaxAge::STRICT);
//!     Router::new()
//!         .route("/orders", get(orders).layer(read))
//!         .route("/payments", post(pay).layer(RequireToken::new(verifier, payment)))
//! }
//! ```

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderValue, Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use crate::bearer::{REALM, bearer};
use crate::{Claims, Need, Rejected, Verifier};

/// A layer that requires a valid token in the `Authorization` header of each request (RFC 6750
/// §2.1).
///
/// A token in the query (§2.3) is ignored. A token that is bound to a key (`cnf`) is rejected,
/// because a bearer token comes without proof of possession (RFC 9449 §7.2).
#[derive(Clone, Debug)]
pub struct RequireToken {
    verifier: Verifier,
    need: Arc<Need>,
}

impl RequireToken {
    /// Creates a layer that requires tokens to meet `need`.
    pub fn new(verifier: Verifier, need: Need) -> Self {
        Self {
            verifier,
            need: Arc::new(need),
        }
    }

    async fn authorize(&self, headers: &HeaderMap) -> Result<Claims, Rejected> {
        let values = headers.get_all(AUTHORIZATION).iter();
        let token = bearer(values.map(|value| value.to_str().ok()))?;
        let claims = self
            .verifier
            .verify_or_introspect(token, &self.need)
            .await?;
        match claims.cnf {
            None => Ok(claims),
            Some(_) => Err(Rejected::Claims("cnf")),
        }
    }
}

impl<S> Layer<S> for RequireToken {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            inner,
            guard: self.clone(),
        }
    }
}

/// A service protected by [`RequireToken`].
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    guard: RequireToken,
}

impl<S, B, R> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: From<String>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The instance that `poll_ready` was called on must serve the request, because a clone may
        // not be ready.
        let next = self.inner.clone();
        let mut ready = mem::replace(&mut self.inner, next);
        let guard = self.guard.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            match guard.authorize(&head.headers).await {
                Ok(claims) => {
                    head.extensions.insert(claims);
                    ready.call(Request::from_parts(head, body)).await
                }
                Err(rejected) => Ok(error_response(&rejected)),
            }
        })
    }
}

fn error_response<R: From<String>>(rejected: &Rejected) -> Response<R> {
    tracing::debug!(reason = %rejected, "request rejected");
    let body = rejected.body();
    let is_empty = body.is_empty();
    let mut response = Response::new(R::from(body));
    *response.status_mut() =
        StatusCode::from_u16(rejected.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !is_empty {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let challenge = match rejected.retry_after_secs() {
        Some(seconds) => (RETRY_AFTER, seconds.to_string()),
        None => (WWW_AUTHENTICATE, rejected.www_authenticate(REALM)),
    };
    // Never fails, because the value is printable ASCII.
    if let Ok(value) = HeaderValue::from_str(&challenge.1) {
        headers.insert(challenge.0, value);
    }
    response
}
