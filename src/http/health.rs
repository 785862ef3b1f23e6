//! Health and version, on the management listener.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde_json::json;

use crate::app::App;

/// `GET /livez`: the process answers. It never touches the database.
pub async fn live() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header(("Cache-Control", "no-store"))
        .json(json!({ "status": "ok" }))
}

/// `GET /readyz`: the database answers, and every ring has a signer.
pub async fn ready(app: Data<App>) -> HttpResponse {
    let database = app.store.ping().await.is_ok();
    let keys = app.keeper.can_sign() && app.keeper.lease_holds();
    let word = |good: bool| if good { "ok" } else { "failed" };
    let mut response = if database && keys {
        HttpResponse::Ok()
    } else {
        HttpResponse::ServiceUnavailable()
    };
    response
        .insert_header(("Cache-Control", "no-store"))
        .json(json!({
            "status": word(database && keys),
            "checks": { "database": word(database), "keys": word(keys) },
        }))
}

/// `GET /version`.
pub async fn version() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "name": "portcullis", "version": env!("CARGO_PKG_VERSION") }))
}
