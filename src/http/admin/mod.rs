//! Access to the admin API, on the management listener.

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

/// Admits only connections from `admin.allow`, whatever address the listener is bound to. Forwarding headers are
/// ignored.
///
/// # Errors
/// Those of the inner service.
pub async fn guard_network(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let is_allowed = request.app_data::<Data<App>>().is_some_and(|app| {
        let peer = client_address::peer(request.peer_addr());
        is_in(&app.config.admin.allow, peer)
    });
    if is_allowed {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    error::log(
        request.request(),
        Detail::new("admin.denied", "network"),
        None,
    );
    // RFC 9457.
    let response = HttpResponse::Forbidden()
        .insert_header(("Cache-Control", "no-store"))
        .insert_header(("Content-Type", "application/problem+json"))
        .body(r#"{"type":"about:blank","title":"Forbidden","status":403}"#);
    Ok(request.into_response(response))
}
