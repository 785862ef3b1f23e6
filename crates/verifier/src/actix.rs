//! An extractor for actix-web that protects routes. It requires a [`Verifier`] as `web::Data` of
//! the app. A [`Need`] can be set as `app_data` of a resource, a scope or the app, of which the
//! innermost applies.
//!
//! ```
//! use actix_web::{App, web};
//! use portcullis_verifier::{MaxAge, Need, Verifier};
//! use portcullis_verifier::Rejected;
//! use portcullis_verifier::actix::Authorized;
//!
//! async fn orders(caller: Authorized) -> Result<String, Rejected> {
//!     caller.require("orders:read")?;
//!     Ok(format!("orders of {}", caller.sub))
//! }
//!
//! async fn pay(caller: Authorized) -> String {
//!     format!("{} has paid", caller.sub)
//! }
//!
//! # fn app(verifier: Verifier) {
//! let need = Need::scope("payments:write").acr(["2"]).max_age(MaxAge::STRICT);
//! App::new()
//!     .app_data(web::Data::new(verifier))
//!     .route("/orders", web::get().to(orders))
//!     .service(web::resource("/payments").app_data(need).route(web::post().to(pay)));
//! # }
//! ```

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::{
    AUTHORIZATION, CACHE_CONTROL, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE,
};
use actix_web::{FromRequest, HttpRequest, HttpResponse, ResponseError, error, web};

use crate::bearer::{REALM, bearer};
use crate::{Claims, Need, Rejected, Verifier};

/// The claims of the token in the request's `Authorization` header (RFC 6750 §2.1). A handler with
/// this argument is only called if the token is valid.
///
/// A token in the query (§2.3) is ignored. A token that is bound to a key (`cnf`) is rejected,
/// because a bearer token comes without proof of possession (RFC 9449 §7.2).
#[derive(Clone, Debug)]
pub struct Authorized(pub Claims);

impl Deref for Authorized {
    type Target = Claims;

    fn deref(&self) -> &Claims {
        &self.0
    }
}

impl FromRequest for Authorized {
    type Error = actix_web::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Self::Error>>>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            let Some(verifier) = request.app_data::<web::Data<Verifier>>() else {
                tracing::error!("missing `web::Data<Verifier>` in the app data");
                return Err(error::ErrorInternalServerError("Internal Server Error"));
            };
            let any = Need::any();
            let need = request.app_data::<Need>().unwrap_or(&any);
            Ok(authorize(verifier, need, request.headers()).await?)
        })
    }
}

async fn authorize(
    verifier: &Verifier,
    need: &Need,
    headers: &HeaderMap,
) -> Result<Authorized, Rejected> {
    let values = headers.get_all(AUTHORIZATION);
    let token = bearer(values.map(|value| value.to_str().ok()))?;
    let claims = verifier.verify_or_introspect(token, need).await?;
    match claims.cnf {
        None => Ok(Authorized(claims)),
        Some(_) => Err(Rejected::Claims("cnf")),
    }
}

impl ResponseError for Rejected {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        tracing::debug!(reason = %self, "request rejected");
        let mut response = HttpResponse::build(self.status_code());
        response.insert_header((CACHE_CONTROL, "no-store"));
        match self.retry_after_secs() {
            Some(seconds) => response.insert_header((RETRY_AFTER, seconds)),
            None => response.insert_header((WWW_AUTHENTICATE, self.www_authenticate(REALM))),
        };
        match self.body() {
            empty if empty.is_empty() => response.finish(),
            json => response.content_type("application/json").body(json),
        }
    }
}
