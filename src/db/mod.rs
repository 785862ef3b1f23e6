//! Storage: a [`Store`] over SQLite or PostgreSQL. Implements [`crate::oauth::Ledger`].

#[macro_use]
mod active_grant;
#[allow(missing_docs)]
#[macro_use]
mod connection;

mod acks;
mod admins;
mod audit;
mod authorizations;
mod client_row;
mod client_secrets;
mod clients;
mod codes;
mod consents;
mod copy;
mod downtimes;
mod feed;
mod grants;
mod janitor;
mod keys;
mod ledger;
mod logout_notifications;
mod pool;
mod prepared;
mod registrations;
mod resources;
mod revocations;
#[allow(missing_docs)]
mod schema;
mod served_issuer;
mod sessions;
mod throttles;
mod tokens;
mod used_assertions;
mod users;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use diesel::{Connection as _, RunQueryDsl};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

pub use crate::oauth::ledger::StorageError as Error;
pub use acks::Acknowledged;
pub use audit::{SEALED_AT_ONCE, Seal};
use connection::AnyConnection;
pub use copy::{Copied, CopyError, fold_log, mark_restored, verify};
pub use feed::{Head, Recovered};
pub use janitor::{SWEEPS, Sweep};
pub use logout_notifications::{Ended, LogoutNotification};
pub use pool::{Claim, OpenError, PoolMetrics};
use pool::{Lane, Pool};
pub use registrations::Registrations;
pub use revocations::Record;
use tokio::sync::Notify;
use writer::Writer;

use crate::secret::Entropy;

/// An open transaction.
pub struct Transaction<'a> {
    connection: &'a mut AnyConnection,
    /// For the ids of rows that have no id of their own.
    entropy: &'a Entropy,
    /// Whether it inserted a revocation record.
    has_revoked: bool,
    /// Whether it is rolled back although it succeeds.
    is_undone: bool,
}

impl<'a> Transaction<'a> {
    fn new(connection: &'a mut AnyConnection, entropy: &'a Entropy) -> Self {
        Self {
            connection,
            entropy,
            has_revoked: false,
            is_undone: false,
        }
    }
}

/// The database. Clones share the same connections.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    lane: Lane,
    // Present for SQLite, which allows one writer at a time.
    writer: Option<Writer>,
    entropy: Entropy,
    revoked: Arc<Notify>,
}

const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
#[cfg(feature = "postgres")]
const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// The schema of the database, compared with the one of this binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schema {
    /// The schemas are the same.
    Current,
    /// The database lacks these migrations.
    Older(Vec<String>),
    /// A later version of the program applied these migrations.
    Newer(Vec<String>),
}

impl Store {
    /// Opens the database that `url` names: `sqlite:PATH` or `postgres://…`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(url: &str, pool_size: u32, entropy: Entropy) -> Result<Self, OpenError> {
        let pool = Pool::open(url, pool_size)?;
        let writer = if pool.is_sqlite() {
            Some(Writer::start(pool.connect()?, entropy.clone()))
        } else {
            None
        };
        Ok(Self {
            pool,
            lane: Lane::Clients,
            writer,
            entropy,
            revoked: Arc::default(),
        })
    }

    /// Returns the same database for the work of the node itself, which has connections of its own.
    #[must_use]
    pub fn for_node(&self) -> Self {
        Self {
            lane: Lane::Node,
            ..self.clone()
        }
    }

    /// Returns the same database for pages and sign-ins, which leave connections to the requests of clients.
    /// Fails with [`Error::Busy`] when none becomes free in time.
    #[must_use]
    pub fn for_pages(&self) -> Self {
        Self {
            lane: Lane::Pages,
            ..self.clone()
        }
    }

    /// Returns how many pages wait for a connection.
    pub fn waiting_pages(&self) -> usize {
        self.pool.waiting_pages()
    }

    /// Returns whether the database is embedded.
    pub fn is_sqlite(&self) -> bool {
        self.writer.is_some()
    }

    /// Runs `work` in one transaction. Commits on `Ok` and rolls back on `Err`, so a refusal whose changes
    /// must be kept is an `Ok`.
    ///
    /// # Errors
    /// The error of `work` or of the commit.
    pub async fn transaction<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let outcome = match &self.writer {
            Some(writer) => writer.run(work).await,
            None => {
                let entropy = self.entropy.clone();
                self.blocking(move |connection| transact(connection, &entropy, work))
                    .await
            }
        };
        let (value, revoked) = outcome?;
        if revoked {
            self.revoked.notify_one();
        }
        Ok(value)
    }

    /// Waits until a transaction of this node has inserted a revocation record, so that it can be numbered
    /// before the next poll.
    pub async fn revoked(&self) {
        self.revoked.notified().await;
    }

    /// Runs single reads outside a transaction.
    ///
    /// # Errors
    /// The error of `work`.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let entropy = self.entropy.clone();
        self.blocking(move |connection| work(&mut Transaction::new(connection, &entropy)))
            .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (pool, turn) = (self.pool.clone(), self.pool.turn(self.lane).await?);
        let run = move || {
            let _turn = turn;
            let mut pooled = pool.get()?;
            let outcome = work(&mut pooled.connection);
            if matches!(outcome, Err(Error::Unavailable(_))) {
                pool.discard(&pooled);
            }
            outcome
        };
        tokio::task::spawn_blocking(run)
            .await
            .map_err(|error| Error::Statement(error.to_string()))?
    }

    /// Closes every connection once the running calls are complete. An embedded database is then complete in
    /// a single file, unless another process has it open. Later calls fail.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the write-ahead log of an embedded database could not be moved into
    /// its file.
    pub async fn close(&self) -> Result<(), Error> {
        self.pool.close().await;
        // Last, so that SQLite removes the log with the connection.
        match &self.writer {
            Some(writer) => writer.close().await,
            None => Ok(()),
        }
    }

    /// Returns the metrics of the connection pool.
    pub fn pool_metrics(&self) -> PoolMetrics {
        self.pool.metrics()
    }

    /// Returns whether the database has the newest migration of this binary, for readiness. Fails if the
    /// database accepts no writes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn has_schema(&self) -> Result<bool, Error> {
        #[derive(diesel::QueryableByName)]
        struct Count {
            #[diesel(sql_type = diesel::sql_types::BigInt)]
            n: i64,
        }
        let newest = newest_migration().map_err(|error| Error::Statement(error.to_string()))?;
        self.blocking(move |connection| {
            pool::check_writable(connection)?;
            let query = "SELECT count(*) AS n FROM __diesel_schema_migrations WHERE version = $1";
            let query = diesel::sql_query(query).bind::<diesel::sql_types::Text, _>(newest);
            let count: Count = query.get_result(connection)?;
            Ok(count.n == 1)
        })
        .await
    }

    /// Compares the schema with the one of this binary.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn schema(&self) -> Result<Schema, OpenError> {
        let mut connection = self.pool.connect()?;
        let broken = |error: Boxed| OpenError::Unavailable(error.to_string());
        let known = match &connection {
            AnyConnection::Sqlite(_) => names::<diesel::sqlite::Sqlite>(&SQLITE),
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(_) => names::<diesel::pg::Pg>(&POSTGRES),
        }
        .map_err(broken)?;
        let applied = applied(&mut connection).map_err(broken)?;
        let pending: Vec<String> = known
            .iter()
            .filter(|version| !applied.contains(version))
            .cloned()
            .collect();
        let unknown: Vec<String> = applied
            .into_iter()
            .filter(|version| !known.contains(version))
            .collect();
        Ok(match (unknown.is_empty(), pending.is_empty()) {
            (false, _) => Schema::Newer(unknown),
            (true, false) => Schema::Older(pending),
            (true, true) => Schema::Current,
        })
    }

    /// Applies missing migrations and returns their names. One node migrates at a time.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn migrate(&self) -> Result<Vec<String>, OpenError> {
        let mut connection = self.pool.connect()?;
        let run = match &mut connection {
            // The lock is the one of every writer.
            AnyConnection::Sqlite(inner) => {
                inner.immediate_transaction(|inner| apply(inner, SQLITE))
            }
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(inner) => {
                pool::with_migration_lock(inner, |inner| apply(inner, POSTGRES))
            }
        };
        run.map_err(|error| {
            OpenError::Unavailable(format!("migration failed: {}", pool::one_line(&error)))
        })
    }
}

/// Runs a transaction, or a savepoint inside one, and returns whether it revoked something. A panic rolls
/// it back like an error, so that the connection stays usable.
fn transact<T>(
    connection: &mut AnyConnection,
    entropy: &Entropy,
    work: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error>,
) -> Result<(T, bool), Error> {
    let mut undone = None;
    let outcome = connection.transaction(|connection| {
        let mut tx = Transaction::new(connection, entropy);
        let value = catch_unwind(AssertUnwindSafe(|| work(&mut tx)))
            .unwrap_or_else(|_| Err(Error::Statement("the transaction panicked".to_owned())))?;
        if tx.is_undone {
            undone = Some(value);
            return Err(Error::Statement("undone".to_owned()));
        }
        Ok((value, tx.has_revoked))
    });
    match undone {
        Some(value) => Ok((value, false)),
        None => outcome,
    }
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

fn apply<DB, C>(connection: &mut C, migrations: EmbeddedMigrations) -> Result<Vec<String>, Boxed>
where
    DB: diesel::backend::Backend,
    C: MigrationHarness<DB> + diesel::Connection<Backend = DB>,
    EmbeddedMigrations: diesel::migration::MigrationSource<DB>,
{
    let versions = connection.run_pending_migrations(migrations)?;
    Ok(versions.iter().map(ToString::to_string).collect())
}

/// Returns the version of the last migration, which is the same for both databases.
fn newest_migration() -> Result<String, Boxed> {
    let known = names::<diesel::sqlite::Sqlite>(&SQLITE)?;
    Ok(known.into_iter().max().unwrap_or_default())
}

/// Returns the versions of the migrations in this binary.
fn names<DB: diesel::backend::Backend>(
    migrations: &EmbeddedMigrations,
) -> Result<Vec<String>, Boxed>
where
    EmbeddedMigrations: diesel::migration::MigrationSource<DB>,
{
    use diesel::migration::MigrationSource;
    let known = MigrationSource::<DB>::migrations(migrations)?;
    let versions = known.iter().map(|m| m.name().version().to_string());
    Ok(versions.collect())
}

/// Returns the versions of the applied migrations. Diesel's own function creates a missing table, which
/// the role of a running server may not do.
fn applied(connection: &mut AnyConnection) -> Result<Vec<String>, Boxed> {
    #[derive(diesel::QueryableByName)]
    struct Version {
        #[diesel(sql_type = diesel::sql_types::Text)]
        version: String,
    }
    let table = match connection {
        AnyConnection::Sqlite(_) => {
            "SELECT name AS version FROM sqlite_master WHERE name = '__diesel_schema_migrations'"
        }
        #[cfg(feature = "postgres")]
        AnyConnection::Postgres(_) => {
            "SELECT oid::text AS version FROM pg_class WHERE oid = to_regclass('__diesel_schema_migrations')"
        }
    };
    let found: Vec<Version> = diesel::sql_query(table).load(connection)?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let applied = "SELECT version FROM __diesel_schema_migrations ORDER BY version";
    let applied: Vec<Version> = diesel::sql_query(applied).load(connection)?;
    Ok(applied.into_iter().map(|row| row.version).collect())
}

impl From<diesel::result::Error> for Error {
    fn from(error: diesel::result::Error) -> Self {
        use diesel::result::DatabaseErrorKind as Kind;
        use diesel::result::Error as Diesel;
        match error {
            Diesel::DatabaseError(Kind::UniqueViolation, info) => {
                Self::Duplicate(info.message().to_owned())
            }
            Diesel::DatabaseError(Kind::ClosedConnection | Kind::UnableToSendCommand, info) => {
                Self::Unavailable(info.message().to_owned())
            }
            // SQLSTATE 25006: this is not the primary server, or no longer.
            Diesel::DatabaseError(Kind::ReadOnlyTransaction, _) => pool::read_only(),
            other => Self::Statement(other.to_string()),
        }
    }
}

/// Returns the error for a value that cannot be parsed.
fn unreadable(table: &'static str, column: &'static str, id: &str) -> Error {
    Error::Row {
        table,
        column,
        id: id.to_owned(),
    }
}

/// Parses a JSON list of strings.
fn list(
    table: &'static str,
    column: &'static str,
    id: &str,
    text: &str,
) -> Result<Vec<String>, Error> {
    serde_json::from_str(text).map_err(|_| unreadable(table, column, id))
}

fn to_list(texts: &[String]) -> String {
    serde_json::Value::from(texts.to_vec()).to_string()
}

impl Transaction<'_> {
    /// Makes this transaction roll back at its end and return its result nevertheless.
    pub fn undo(&mut self) {
        self.is_undone = true;
    }

    /// Locks the row that `query` selects by the text `id`, if the database has row locks, so that the next
    /// read sees the last committed change.
    fn lock_row(&mut self, query: &'static str, id: &str) -> Result<(), Error> {
        #[cfg(feature = "postgres")]
        if let AnyConnection::Postgres(inner) = &mut *self.connection {
            let query = diesel::sql_query(query);
            query
                .bind::<diesel::sql_types::Text, _>(id)
                .execute(inner)?;
        }
        #[cfg(not(feature = "postgres"))]
        let _ = (query, id);
        Ok(())
    }

    /// Returns the feed epoch, which is stored in new grants.
    ///
    /// # Errors
    /// [`Error`].
    pub fn feed_epoch(&mut self) -> Result<i64, Error> {
        use diesel::QueryDsl;
        Ok(schema::feed_head::table
            .select(schema::feed_head::epoch)
            .first(self.connection)?)
    }
}
