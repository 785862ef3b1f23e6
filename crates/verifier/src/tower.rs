//! tower: a layer that guards the services behind it, such as the routes of axum.
//!
//! Who brings no token that will do is answered as RFC 6750 §3 wants it. Behind the layer a request
//! has the token's [`Claims`] among its extensions.
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

/// Guards services: each request must bring a token in its `Authorization` header (RFC 6750 §2.1).
///
/// The header is the only place that is looked at; a token in the query (§2.3) does not count. A
/// token that is bound to a key (`cnf`) is refused: as a bearer token it comes without the proof
/// (RFC 9449 §7.2).
#[derive(Clone, Debug)]
pub struct RequireToken {
    verifier: Verifier,
    need: Arc<Need>,
}

impl RequireToken {
    /// A layer for services that need this of a token.
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

/// A service behind [`RequireToken`].
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
        // The one that said that it is ready serves this request; a clone may not be.
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
                Err(rejected) => Ok(answer(&rejected)),
            }
        })
    }
}

fn answer<R: From<String>>(rejected: &Rejected) -> Response<R> {
    tracing::debug!(reason = %rejected, "request refused");
    let body = rejected.body();
    let is_empty = body.is_empty();
    let mut answer = Response::new(R::from(body));
    *answer.status_mut() =
        StatusCode::from_u16(rejected.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !is_empty {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let challenge = match rejected.retry_after_secs() {
        Some(seconds) => (RETRY_AFTER, seconds.to_string()),
        None => (WWW_AUTHENTICATE, rejected.www_authenticate(REALM)),
    };
    // Visible ASCII, all of it.
    if let Ok(value) = HeaderValue::from_str(&challenge.1) {
        headers.insert(challenge.0, value);
    }
    answer
}
