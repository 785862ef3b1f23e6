//! A connection to either database, so that the same code serves both.

/// SQLite or PostgreSQL.
#[derive(diesel::MultiConnection)]
pub enum AnyConnection {
    /// Embedded.
    Sqlite(diesel::SqliteConnection),
    /// PostgreSQL.
    #[cfg(feature = "postgres")]
    Postgres(diesel::PgConnection),
}

/// Runs a query on the connection of its own backend. Through [`AnyConnection`] diesel builds the text of a query on
/// each call, which costs more than to execute a statement of a token request; on the backend's own connection it finds
/// the prepared statement by the type of the query.
macro_rules! on_own_backend {
    ($connection:expr, |$inner:ident| $work:expr) => {
        match &mut *$connection {
            $crate::db::connection::AnyConnection::Sqlite($inner) => $work,
            #[cfg(feature = "postgres")]
            $crate::db::connection::AnyConnection::Postgres($inner) => $work,
        }
    };
}
