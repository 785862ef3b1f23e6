//! Rows of the catalogue: TLS, the HTTP layer, and the headers of every answer.

pub mod answers;
pub mod handshakes;
pub mod logs;
pub mod requests;
pub mod sockets;

use portcullis::config::Config;

use crate::Stage;
use crate::fixtures::{Server, tls};

/// A server that speaks TLS itself, with settings changed first.
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

/// Blocking work beside the server.
pub async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    actix_web::rt::task::spawn_blocking(work).await.unwrap()
}
