//! What operators do, with the real binary, on SQLite and on Postgres.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../fixtures/mod.rs"]
mod fixtures;

mod alerts;
mod audit;
mod canary;
mod lines;
mod manager;
mod metrics;
mod reload;
mod stop;
mod tokens;
#[cfg(feature = "otel")]
mod traces;

use fixtures::{installation, site};

/// The same test on both databases.
#[macro_export]
macro_rules! both {
    ($(#[$meta:meta])* fn $name:ident($installation:ident: Installation) $body:block) => {
        $(#[$meta])*
        mod $name {
            use super::*;

            fn test($installation: $crate::installation::Installation) $body

            #[test]
            fn on_sqlite() {
                test($crate::installation::Installation::new());
            }

            #[test]
            fn on_postgres() {
                test($crate::installation::Installation::on_postgres());
            }
        }
    };
}
