//! Storage: one [`Store`] over SQLite and Postgres, from one code. Fulfils what
//! [`crate::oauth::Ledger`] asks for.

mod admins;
mod audit;
mod authorizations;
mod clients;
mod codes;
#[allow(missing_docs)]
mod connection;
mod consents;
mod grants;
mod janitor;
mod keys;
mod ledger;
mod pool;
mod resources;
mod revocations;
#[allow(missing_docs)]
mod schema;
mod sessions;
mod throttles;
mod tokens;
mod users;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};

use diesel::connection::SimpleConnection;
use diesel::{Connection as _, RunQueryDsl};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

pub use crate::oauth::ledger::Failure as Error;
pub use audit::{SEALED_AT_ONCE, Seal};
use connection::AnyConnection;
use pool::Pool;
pub use pool::{Claim, OpenError};
use writer::Writer;

/// The open transaction of one request.
pub struct Transaction<'a>(&'a mut AnyConnection);

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    // SQLite has one writer; Postgres needs none.
    writer: Option<Writer>,
}

const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
#[cfg(feature = "postgres")]
const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// How the schema of the database stands to the one of this binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schema {
    /// The same.
    Current,
    /// Some migrations are missing, by name.
    Older(Vec<String>),
    /// A later version migrated it, by name.
    Newer(Vec<String>),
}

impl Store {
    /// Opens the database that `url` names: `sqlite:PATH` or `postgres://…`.
    ///
    /// # Errors
    /// One sentence: unreachable, not readable, or in use by another server.
    pub fn open(url: &str, pool_size: u32) -> Result<Self, OpenError> {
        let pool = Pool::open(url, pool_size)?;
        let writer = if pool.is_sqlite() {
            Some(Writer::start(pool.connect()?))
        } else {
            None
        };
        Ok(Self { pool, writer })
    }

    /// Whether it is the embedded one.
    pub fn is_sqlite(&self) -> bool {
        self.writer.is_some()
    }

    /// Runs `work` in one transaction and commits; rolls back if it fails. A refusal that must be
    /// remembered is an `Ok`.
    ///
    /// # Errors
    /// What `work` failed with, or the commit.
    pub async fn transaction<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        if let Some(writer) = &self.writer {
            return writer.run(work).await;
        }
        self.blocking(move |connection| transact(connection, work))
            .await
    }

    /// Runs single reads, outside any transaction.
    ///
    /// # Errors
    /// What `work` failed with.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.blocking(move |connection| work(&mut Transaction(connection)))
            .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let pool = self.pool.clone();
        let run = move || {
            let mut pooled = pool.get()?;
            let outcome = work(&mut pooled.connection);
            pooled.lost = matches!(outcome, Err(Error::Unavailable(_)));
            outcome
        };
        tokio::task::spawn_blocking(run)
            .await
            .map_err(|error| Error::Statement(error.to_string()))?
    }

    /// Whether the database answers, for readiness.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        self.blocking(|connection| Ok(connection.batch_execute("SELECT 1")?))
            .await
    }

    /// Compares the schema with the one of this binary.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn schema(&self) -> Result<Schema, OpenError> {
        let mut connection = self.pool.connect()?;
        let broken = |error: Box<dyn std::error::Error + Send + Sync>| {
            OpenError::Unavailable(error.to_string())
        };
        let (pending, applied, known) = match &mut connection {
            AnyConnection::Sqlite(inner) => state_of(inner, SQLITE).map_err(broken)?,
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(inner) => state_of(inner, POSTGRES).map_err(broken)?,
        };
        let strangers: Vec<String> = applied
            .into_iter()
            .filter(|version| !known.contains(version))
            .collect();
        Ok(match (strangers.is_empty(), pending.is_empty()) {
            (false, _) => Schema::Newer(strangers),
            (true, false) => Schema::Older(pending),
            (true, true) => Schema::Current,
        })
    }

    /// Brings the schema up to date: one node migrates, the others wait.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn migrate(&self) -> Result<Vec<String>, OpenError> {
        let mut connection = self.pool.connect()?;
        let run = match &mut connection {
            AnyConnection::Sqlite(inner) => apply(inner, SQLITE),
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(inner) => {
                pool::with_migration_lock(inner, |inner| apply(inner, POSTGRES))
            }
        };
        run.map_err(|error| OpenError::Unavailable(format!("migration failed: {error}")))
    }
}

/// One transaction, or a savepoint inside one. A panic rolls it back like any failure: it must not take
/// the connection from everybody else.
fn transact<T>(
    connection: &mut AnyConnection,
    work: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    connection.transaction(|connection| {
        catch_unwind(AssertUnwindSafe(|| work(&mut Transaction(connection))))
            .unwrap_or_else(|_| Err(Error::Statement("the transaction panicked".to_owned())))
    })
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

/// Pending migrations, applied versions, known versions.
type MigrationState = (Vec<String>, Vec<String>, Vec<String>);

fn state_of<DB, C>(
    connection: &mut C,
    migrations: EmbeddedMigrations,
) -> Result<MigrationState, Boxed>
where
    DB: diesel::backend::Backend,
    C: MigrationHarness<DB>,
    EmbeddedMigrations: diesel::migration::MigrationSource<DB>,
{
    use diesel::migration::MigrationSource;
    let known = MigrationSource::<DB>::migrations(&migrations)?;
    let known: Vec<String> = known
        .iter()
        .map(|m| m.name().version().to_string())
        .collect();
    let applied: Vec<String> = connection
        .applied_migrations()?
        .iter()
        .map(ToString::to_string)
        .collect();
    let pending = known
        .iter()
        .filter(|version| !applied.contains(version))
        .cloned()
        .collect();
    Ok((pending, applied, known))
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
            other => Self::Statement(other.to_string()),
        }
    }
}

/// Fails a row that contradicts itself, by table, column and id.
fn unreadable(table: &'static str, column: &'static str, id: &str) -> Error {
    Error::Row {
        table,
        column,
        id: id.to_owned(),
    }
}

/// A JSON list of texts.
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
    /// The feed epoch, which grants inherit.
    ///
    /// # Errors
    /// [`Error`].
    pub fn feed_epoch(&mut self) -> Result<i64, Error> {
        use diesel::QueryDsl;
        Ok(schema::feed_head::table
            .select(schema::feed_head::epoch)
            .first(self.0)?)
    }
}
