//! A guarded service: `GET /orders` for whoever brings a token with the scope `orders:read`.

use actix_web::{App, HttpServer, get, web};
use portcullis_verifier::actix::Authorized;
use portcullis_verifier::{Rejected, Verifier};

#[get("/orders")]
async fn orders(caller: Authorized) -> Result<String, Rejected> {
    caller.require("orders:read")?;
    Ok(format!("the orders of {}\n", caller.sub))
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let verifier = Verifier::builder("http://localhost:8080", "http://localhost:8081")
        .start()
        .await?;
    let verifier = web::Data::new(verifier);
    HttpServer::new(move || App::new().app_data(verifier.clone()).service(orders))
        .bind("localhost:8081")?
        .run()
        .await?;
    Ok(())
}
