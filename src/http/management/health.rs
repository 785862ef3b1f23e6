//! Health and version, on the management listener.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde_json::json;
use tokio::time::timeout;

use crate::app::App;
use crate::config::limits::READY_TIME;

/// `GET /livez`: the process answers. It never touches the database.
pub async fn live() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header(("Cache-Control", "no-store"))
        .json(json!({ "status": "ok" }))
}

/// `GET /readyz`: the database accepts writes and has our schema, this node wrote to it lately and agrees
/// with it about the time, every ring has a signer, the feed goes on, and the node is not on its way out.
/// Each reason of [`App::may_change_state`] has its check here.
pub async fn ready(app: Data<App>) -> HttpResponse {
    // A network that swallows packets does not say that the database is away.
    let schema = timeout(READY_TIME, app.store.has_schema()).await;
    let schema = schema.ok().and_then(Result::ok);
    let (database, schema) = (schema.is_some(), schema.unwrap_or(false));
    let keys = app.key_manager.can_sign() && app.key_manager.lease_holds();
    let feed = app.feed.place().is_some() && !app.feed.is_restored();
    let (clock, write) = (app.key_manager.clock_ready(), app.key_manager.can_write());
    let serving = !app.draining.is_on();
    let word = |good: bool| if good { "ok" } else { "failed" };
    let status = match (
        database && schema && keys && feed && clock && write,
        serving,
    ) {
        (_, false) => "draining",
        (good, true) => word(good),
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
                "database": word(database),
                "schema": word(schema),
                "keys": word(keys),
                "feed": word(feed),
                "clock": word(clock),
                "write": word(write),
                "serving": word(serving),
            },
        }))
}

/// `GET /version`.
pub async fn version() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "name": "portcullis", "version": env!("CARGO_PKG_VERSION") }))
}
