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

/// `GET /readyz`: the database answers, every ring has a signer, and the feed
/// goes on.
pub async fn ready(app: Data<App>) -> HttpResponse {
    let database = app.store.ping().await.is_ok();
    let keys = app.keeper.can_sign() && app.keeper.lease_holds();
    let feed = app.feed.place().is_some() && !app.feed.is_restored();
    let word = |good: bool| if good { "ok" } else { "failed" };
    let mut response = if database && keys && feed {
        HttpResponse::Ok()
    } else {
        HttpResponse::ServiceUnavailable()
    };
    response
        .insert_header(("Cache-Control", "no-store"))
        .json(json!({
            "status": word(database && keys && feed),
            "checks": { "database": word(database), "keys": word(keys), "feed": word(feed) },
        }))
}

/// `GET /version`.
pub async fn version() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "name": "portcullis", "version": env!("CARGO_PKG_VERSION") }))
}
