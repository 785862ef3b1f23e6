//! A protected service with actix-web: `GET /orders` requires an active token with the scope
//! `orders:read`.

use std::env;

use actix_web::{App, HttpServer, web};
use portcullis_verifier::actix::Authorized;
use portcullis_verifier::{Rejected, Verifier};

async fn orders(caller: Authorized) -> Result<String, Rejected> {
    caller.require("orders:read")?;
    Ok(format!("the orders of {}\n", caller.sub))
}

/// Adds the routes. The app must have a [`Verifier`] in its app data.
pub fn routes(app: &mut web::ServiceConfig) {
    app.route("/orders", web::get().to(orders));
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut verifier = Verifier::builder("http://localhost:8080", "http://localhost:8081");
    // ID and secret of a client with the permission `revocations`.
    if let (Ok(id), Ok(secret)) = (env::var("SUBSCRIBER"), env::var("SUBSCRIBER_SECRET")) {
        verifier = verifier.subscriber(id, secret);
    }
    let verifier = web::Data::new(verifier.start().await?);
    HttpServer::new(move || App::new().app_data(verifier.clone()).configure(routes))
        .bind("localhost:8081")?
        .run()
        .await?;
    Ok(())
}
