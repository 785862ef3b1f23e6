//! What operators do, with the real binary, on SQLite and on Postgres.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../cast/place.rs"]
#[allow(dead_code)]
mod place;
#[path = "../cast/postgres.rs"]
#[allow(dead_code)]
mod postgres;

mod audit;

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
