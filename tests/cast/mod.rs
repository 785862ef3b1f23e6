//! The cast of the stories: a server on either database with a clock to push forward, people with
//! browsers, clients, and an API that verifies.
#![allow(
    dead_code,
    unused_imports,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used
)]

pub mod backup;
pub mod browser;
pub mod client;
pub mod cluster;
pub mod journal;
pub mod log;
pub mod look;
pub mod place;
pub mod postgres;
pub mod proc;
pub mod raw;
pub mod relay;
pub mod server;
pub mod site;
pub mod timing;
pub mod tls;

pub use browser::{Answer, Browser};
pub use client::{Party, Tokens, VERIFIER, challenge};
pub use look::Look;
pub use server::{Db, ISSUER, Server};

/// Tells a story on SQLite and on Postgres.
#[macro_export]
macro_rules! story {
    ($(#[$meta:meta])* async fn $name:ident($server:ident: Server) $body:block) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            async fn story($server: $crate::cast::Server) $body

            #[actix_web::test]
            async fn on_sqlite() {
                story($crate::cast::Server::start($crate::cast::Db::Sqlite).await).await;
            }

            #[actix_web::test]
            async fn on_postgres() {
                story($crate::cast::Server::start($crate::cast::Db::Postgres).await).await;
            }
        }
    };
}
