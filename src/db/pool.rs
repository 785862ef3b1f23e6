//! Connections: which database a URL names, how each connection is set up, and the pool.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use diesel::Connection as _;
use diesel::SqliteConnection;
use diesel::connection::SimpleConnection;

use super::{AnyConnection, Error};
use crate::config::limits::POOL_WAIT;

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not there, or refuses us.
    #[error("{0}")]
    Unavailable(String),
    /// The configuration names something that cannot be used.
    #[error("{0}")]
    Configuration(String),
}

#[derive(Clone)]
pub(super) struct Pool {
    connections: r2d2::Pool<Manager>,
    manager: Manager,
}

/// Opens connections of exactly one backend, so that its real error is the one that is shown.
#[derive(Clone, Debug)]
pub(super) enum Manager {
    Sqlite(PathBuf),
    #[cfg(feature = "postgres")]
    Postgres(String),
}

/// A connection of the pool.
pub(super) struct Pooled {
    pub(super) connection: AnyConnection,
    /// Whether its server is gone: diesel does not tell, and such a connection must not be lent again.
    pub(super) lost: bool,
}

impl Pool {
    pub(super) fn open(url: &str, size: u32) -> Result<Self, OpenError> {
        let manager = Manager::of(url)?;
        // The first connection is made here, so that what is wrong is said at once and in full.
        drop(manager.establish()?);
        let connections = r2d2::Pool::builder()
            .max_size(size)
            .min_idle(Some(0))
            .connection_timeout(POOL_WAIT)
            .test_on_check_out(false)
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .build_unchecked(manager.clone());
        Ok(Self {
            connections,
            manager,
        })
    }

    pub(super) fn is_sqlite(&self) -> bool {
        matches!(self.manager, Manager::Sqlite(_))
    }

    /// A connection of one's own, beside the pool.
    pub(super) fn connect(&self) -> Result<AnyConnection, OpenError> {
        self.manager.establish()
    }

    pub(super) fn get(&self) -> Result<r2d2::PooledConnection<Manager>, Error> {
        self.connections
            .get()
            .map_err(|error| Error::Unavailable(error.to_string()))
    }
}

impl Manager {
    fn of(url: &str) -> Result<Self, OpenError> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            create_file(Path::new(path))?;
            return Ok(Self::Sqlite(PathBuf::from(path)));
        }
        #[cfg(feature = "postgres")]
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres(url.to_owned()));
        }
        Err(OpenError::Configuration(
            "configuration key `database.url`: this binary was built without PostgreSQL; use sqlite:PATH, or build with the feature `postgres`"
                .to_owned(),
        ))
    }

    fn establish(&self) -> Result<AnyConnection, OpenError> {
        match self {
            Self::Sqlite(path) => sqlite(path).map_err(|error| {
                OpenError::Unavailable(format!(
                    "the database file {} cannot be used: {error}",
                    path.display()
                ))
            }),
            #[cfg(feature = "postgres")]
            Self::Postgres(url) => postgres(url).map_err(|error| {
                OpenError::Unavailable(format!(
                    "PostgreSQL cannot be reached: {}",
                    one_line(&error)
                ))
            }),
        }
    }
}

impl r2d2::ManageConnection for Manager {
    type Connection = Pooled;
    type Error = OpenError;

    fn connect(&self) -> Result<Pooled, OpenError> {
        Ok(Pooled {
            connection: self.establish()?,
            lost: false,
        })
    }

    fn is_valid(&self, pooled: &mut Pooled) -> Result<(), OpenError> {
        pooled
            .connection
            .batch_execute("SELECT 1")
            .map_err(|error| OpenError::Unavailable(error.to_string()))
    }

    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        use diesel::r2d2::R2D2Connection;
        let broken = match &mut pooled.connection {
            AnyConnection::Sqlite(inner) => inner.is_broken(),
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(inner) => inner.is_broken(),
        };
        pooled.lost || broken
    }
}

/// WAL for readers beside the writer; `FULL`, since a power cut must lose nothing that was answered.
fn sqlite(path: &Path) -> Result<AnyConnection, Box<dyn std::error::Error>> {
    let mut connection = SqliteConnection::establish(&path.to_string_lossy())?;
    connection.batch_execute(
        "PRAGMA busy_timeout = 5000;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = ON;",
    )?;
    Ok(AnyConnection::Sqlite(connection))
}

/// A frozen node must hold no lock for long: every wait is bounded.
#[cfg(feature = "postgres")]
fn postgres(url: &str) -> Result<AnyConnection, Box<dyn std::error::Error>> {
    let mut connection = diesel::PgConnection::establish(url)?;
    connection.batch_execute(
        "SET statement_timeout = '2s';
         SET lock_timeout = '1s';
         SET idle_in_transaction_session_timeout = '2s';
         SET tcp_user_timeout = '5s';
         SET client_min_messages = warning;",
    )?;
    Ok(AnyConnection::Postgres(connection))
}

/// Runs `migrate` in one transaction under a lock, so that one node migrates and the others wait.
#[cfg(feature = "postgres")]
pub(super) fn with_migration_lock<T>(
    connection: &mut diesel::PgConnection,
    migrate: impl FnOnce(&mut diesel::PgConnection) -> Result<T, super::Boxed>,
) -> Result<T, super::Boxed> {
    connection.transaction(|connection| {
        connection.batch_execute(
            "SET LOCAL statement_timeout = 0;
             SET LOCAL lock_timeout = 0;
             SELECT pg_advisory_xact_lock(7093640191);",
        )?;
        migrate(connection)
    })
}

#[cfg(feature = "postgres")]
fn one_line(error: &dyn std::fmt::Display) -> String {
    error
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn create_file(path: &Path) -> Result<(), OpenError> {
    let failed = |error: std::io::Error| {
        OpenError::Unavailable(format!(
            "the database file {} cannot be made: {error}",
            path.display()
        ))
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop).map_err(failed)
}

/// One server's claim on an embedded database; given up when dropped or when the process ends.
#[derive(Debug)]
pub struct Claim {
    _lock: Option<File>,
}

impl Claim {
    /// Claims the database that `url` names; on Postgres any number of servers may.
    ///
    /// # Errors
    /// [`OpenError::Unavailable`] when another server has it.
    pub fn on(url: &str) -> Result<Self, OpenError> {
        let Some(path) = url.strip_prefix("sqlite:") else {
            return Ok(Self { _lock: None });
        };
        create_file(Path::new(path))?;
        let lock_path = format!("{path}.lock");
        let failed = |why: String| OpenError::Unavailable(why);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&lock_path)
            .map_err(|error| failed(format!("{lock_path}: {error}")))?;
        file.try_lock().map_err(|_| {
            failed(format!("another server is using {path}; an embedded database serves one node, use PostgreSQL for several"))
        })?;
        Ok(Self { _lock: Some(file) })
    }
}
