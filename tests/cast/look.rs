//! A connection of the test's own, to look at a database and to change it behind everybody's back.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    n: i64,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    line: String,
}

/// On either database.
pub enum Look {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Look {
    /// At the database of a URL, `sqlite:` and a path or Postgres's.
    #[track_caller]
    pub fn at(url: &str) -> Self {
        let Some(path) = url.strip_prefix("sqlite:") else {
            return Self::Postgres(PgConnection::establish(url).unwrap());
        };
        let mut connection = SqliteConnection::establish(path).unwrap();
        // Whoever closes the file last merges its log, and all others wait so long.
        connection
            .batch_execute("PRAGMA busy_timeout = 5000")
            .unwrap();
        Self::Sqlite(connection)
    }

    /// At an embedded database.
    #[track_caller]
    pub fn at_file(path: &std::path::Path) -> Self {
        Self::at(&format!("sqlite:{}", path.display()))
    }

    /// How many rows a query counts: `SELECT count(*) AS n FROM …`.
    #[track_caller]
    pub fn count(&mut self, query: &str) -> i64 {
        let sql = diesel::sql_query(query);
        let count: QueryResult<Count> = match self {
            Self::Sqlite(connection) => sql.get_result(connection),
            Self::Postgres(connection) => sql.get_result(connection),
        };
        count.unwrap_or_else(|error| panic!("{query}: {error}")).n
    }

    /// The texts that a query selects as `line`.
    #[track_caller]
    pub fn lines(&mut self, query: &str) -> Vec<String> {
        let sql = diesel::sql_query(query);
        let rows: QueryResult<Vec<Row>> = match self {
            Self::Sqlite(connection) => sql.load(connection),
            Self::Postgres(connection) => sql.load(connection),
        };
        let rows = rows.unwrap_or_else(|error| panic!("{query}: {error}"));
        rows.into_iter().map(|row| row.line).collect()
    }

    /// Runs statements.
    #[track_caller]
    pub fn execute(&mut self, statements: &str) {
        let done = match self {
            Self::Sqlite(connection) => connection.batch_execute(statements),
            Self::Postgres(connection) => connection.batch_execute(statements),
        };
        done.unwrap_or_else(|error| panic!("{statements}: {error}"));
    }
}
