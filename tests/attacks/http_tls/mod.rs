//! Rows of the catalogue: TLS, the HTTP layer, and the headers of every response.

pub mod answers;
pub mod handshakes;
pub mod logs;
pub mod requests;
pub mod sockets;

use portcullis::config::Config;

use crate::Stage;
use crate::fixtures::{Server, tls};

/// Starts a server with TLS, after `change` has edited its configuration.
pub async fn encrypted(stage: &Stage, change: impl FnOnce(&mut Config)) -> Server {
    Server::with(stage.db(), |config| {
        tls::switch_on(config);
        config.limits.per_ip = 1_000_000;
        change(config);
    })
    .await
}

pub fn address(server: &Server) -> String {
    let base = server.base.as_str();
    base.rsplit("//").next().unwrap().to_owned()
}

/// Runs blocking work on another thread, so that the server keeps running.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    actix_web::rt::task::spawn_blocking(work).await.unwrap()
}
