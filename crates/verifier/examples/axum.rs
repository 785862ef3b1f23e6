//! A guarded service: `GET /orders` for whoever brings a token with the scope `orders:read`.
//!
//! With `PORTCULLIS_SUBSCRIBER` and `PORTCULLIS_SECRET`, the id and secret of a client with the
//! permission `revocations`, it also follows the revocation feed.

use std::env;

use axum::routing::get;
use axum::{Extension, Router};
use portcullis_verifier::tower::RequireToken;
use portcullis_verifier::{Claims, Need, Verifier};
use tokio::net::TcpListener;

async fn orders(Extension(caller): Extension<Claims>) -> String {
    format!("the orders of {}\n", caller.sub)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut verifier = Verifier::builder("http://localhost:8080", "http://localhost:8081");
    if let (Ok(id), Ok(secret)) = (
        env::var("PORTCULLIS_SUBSCRIBER"),
        env::var("PORTCULLIS_SECRET"),
    ) {
        verifier = verifier.subscriber(id, secret);
    }
    let guard = RequireToken::new(verifier.start().await?, Need::scope("orders:read"));
    let app = Router::new().route("/orders", get(orders).layer(guard));
    axum::serve(TcpListener::bind("localhost:8081").await?, app).await?;
    Ok(())
}
