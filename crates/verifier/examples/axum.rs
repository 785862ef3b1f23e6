//! A protected service with axum: `GET /orders` requires an active token with the scope
//! `orders:read`.

use std::env;

use axum::routing::get;
use axum::{Extension, Router};
use portcullis_verifier::tower::RequireToken;
use portcullis_verifier::{Claims, Need, Verifier};
use tokio::net::TcpListener;

async fn orders(Extension(caller): Extension<Claims>) -> String {
    format!("the orders of {}\n", caller.sub)
}

/// Returns the routes.
pub fn routes(verifier: Verifier) -> Router {
    let read = RequireToken::new(verifier, Need::scope("orders:read"));
    Router::new().route("/orders", get(orders).layer(read))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut verifier = Verifier::builder("http://localhost:8080", "http://localhost:8081");
    // ID and secret of a client with the permission `revocations`.
    if let (Ok(id), Ok(secret)) = (env::var("SUBSCRIBER"), env::var("SUBSCRIBER_SECRET")) {
        verifier = verifier.subscriber(id, secret);
    }
    let listener = TcpListener::bind("localhost:8081").await?;
    axum::serve(listener, routes(verifier.start().await?)).await?;
    Ok(())
}
