//! What operators do, with the real binary, on SQLite and on Postgres.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../cast/mod.rs"]
mod cast;

mod alarms;
mod audit;
mod canary;
mod figures;
mod lines;
mod manager;
mod reload;
mod stop;
mod tokens;
#[cfg(feature = "otel")]
mod traces;

use cast::{place, site};

/// The same test on both databases.
#[macro_export]
macro_rules! both {
    ($(#[$meta:meta])* fn $name:ident($place:ident: Place) $body:block) => {
        $(#[$meta])*
        mod $name {
            use super::*;

            fn test($place: $crate::place::Place) $body

            #[test]
            fn on_sqlite() {
                test($crate::place::Place::new());
            }

            #[test]
            fn on_postgres() {
                test($crate::place::Place::on_postgres());
            }
        }
    };
}
