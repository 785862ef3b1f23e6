//! The door of the admin API, on the management listener: from where anybody may come in at all.

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpResponse};

use crate::app::App;
use crate::config::is_in;
use crate::http::error;
use crate::http::server::client_address;
use crate::oauth::Detail;

/// Lets in who connects from `admin.allow`, whatever the listener is bound to. What a proxy says of
/// others does not count here.
///
/// # Errors
/// None of its own.
pub async fn door(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let allowed = request
        .app_data::<Data<App>>()
        .map(|app| app.config.admin.allow.clone())
        .unwrap_or_default();
    if is_in(&allowed, client_address::peer(request.peer_addr())) {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    error::log(
        request.request(),
        Detail::new("admin.denied", "network"),
        None,
    );
    // RFC 9457.
    let refusal = HttpResponse::Forbidden()
        .insert_header(("Cache-Control", "no-store"))
        .insert_header(("Content-Type", "application/problem+json"))
        .body(r#"{"type":"about:blank","title":"Forbidden","status":403}"#);
    Ok(request.into_response(refusal))
}
