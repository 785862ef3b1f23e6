//! Health and version, on the management listener.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde_json::json;
use tokio::time::timeout;

use crate::app::App;
use crate::config::limits::READY_TIME;

/// Handles `GET /livez`: responds with 200 while the process runs. Does not access the database.
pub async fn live() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header(("Cache-Control", "no-store"))
        .json(json!({ "status": "ok" }))
}

/// Handles `GET /readyz`: responds with 200 if the database is reachable and has the expected schema, this node made a
/// write recently and its clock agrees with the database, every key set has a signing key, the feed is current, and
/// the node is not draining. Each error of [`App::may_change_state`] has a check here.
pub async fn ready(app: Data<App>) -> HttpResponse {
    // If the network drops packets, the query fails only by this timeout.
    let schema = timeout(READY_TIME, app.node_store.has_schema()).await;
    let schema = schema.ok().and_then(Result::ok);
    let (database, schema) = (schema.is_some(), schema.unwrap_or(false));
    let keys = app.key_manager.can_sign() && app.key_manager.lease_holds();
    let feed = app.feed.position().is_some() && !app.feed.is_restored();
    let (clock, write) = (app.key_manager.clock_ready(), app.key_manager.can_write());
    let serving = !app.draining.is_on();
    let check = |is_ok: bool| if is_ok { "ok" } else { "failed" };
    let status = match (
        database && schema && keys && feed && clock && write,
        serving,
    ) {
        (_, false) => "draining",
        (is_ok, true) => check(is_ok),
    };
    let mut response = if status == "ok" {
        HttpResponse::Ok()
    } else {
        HttpResponse::ServiceUnavailable()
    };
    response
        .insert_header(("Cache-Control", "no-store"))
        .json(json!({
            "status": status,
            "checks": {
                "database": check(database),
                "schema": check(schema),
                "keys": check(keys),
                "feed": check(feed),
                "clock": check(clock),
                "write": check(write),
                "serving": check(serving),
            },
        }))
}

/// Handles `GET /version`.
pub async fn version() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "name": "portcullis", "version": env!("CARGO_PKG_VERSION") }))
}
