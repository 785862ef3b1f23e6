//! Connections: which database a URL names, how each connection is set up, and the pool.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use diesel::Connection as _;
use diesel::SqliteConnection;
use diesel::connection::SimpleConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{AnyConnection, Error};
use crate::config::limits::POOL_WAIT;
use crate::metrics::POOL_TIMEOUTS;

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
    connections: r2d2::Pool<Connector>,
    connector: Connector,
    /// One for each connection. Whoever waits here costs no thread.
    turns: Arc<Semaphore>,
}

/// The pool at this moment.
#[derive(Clone, Copy, Debug)]
pub struct PoolMetrics {
    /// Connections that may be open.
    pub size: u32,
    /// Connections that are open.
    pub open: u32,
    /// Connections that are open and unused.
    pub idle: u32,
    /// Reads and transactions that hold a connection or are about to.
    pub busy: u32,
}

/// Opens connections of exactly one backend, so that its real error is the one that is shown.
#[derive(Clone, Debug)]
pub(super) enum Manager {
    Sqlite(PathBuf),
    #[cfg(feature = "postgres")]
    Postgres(String),
}

/// Opens the connections of the pool and tells those of a lost server from later ones.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    manager: Manager,
    /// Grows when the server is lost. A connection of an earlier generation is closed, not lent.
    generation: Arc<AtomicU64>,
}

/// A connection of the pool.
pub(super) struct Pooled {
    pub(super) connection: AnyConnection,
    generation: u64,
}

impl Pool {
    pub(super) fn open(url: &str, size: u32) -> Result<Self, OpenError> {
        let manager = Manager::of(url)?;
        // The first connections are made here, so that what is wrong is said at once and in full.
        manager.check()?;
        let connector = Connector {
            manager,
            generation: Arc::default(),
        };
        let connections = r2d2::Pool::builder()
            .max_size(size)
            .min_idle(Some(0))
            .connection_timeout(POOL_WAIT)
            .test_on_check_out(false)
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .build_unchecked(connector.clone());
        Ok(Self {
            connections,
            connector,
            turns: Arc::new(Semaphore::new(size as usize)),
        })
    }

    pub(super) fn is_sqlite(&self) -> bool {
        matches!(self.connector.manager, Manager::Sqlite(_))
    }

    /// A connection of one's own, beside the pool.
    pub(super) fn connect(&self) -> Result<AnyConnection, OpenError> {
        self.connector.manager.establish()
    }

    /// Waits for a connection to become free.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, Error> {
        let turn = timeout(POOL_WAIT, Arc::clone(&self.turns).acquire_owned()).await;
        turn.ok().and_then(Result::ok).ok_or_else(|| {
            POOL_TIMEOUTS.count([]);
            Error::Unavailable("all connections are in use".to_owned())
        })
    }

    pub(super) fn get(&self) -> Result<r2d2::PooledConnection<Connector>, Error> {
        loop {
            let pooled = self.connections.get().map_err(|error| {
                POOL_TIMEOUTS.count([]);
                Error::Unavailable(error.to_string())
            })?;
            // An idle connection of a lost server is closed when it is dropped.
            if pooled.generation == self.connector.generation() {
                return Ok(pooled);
            }
        }
    }

    /// Empties the pool: closes `pooled` and every connection that was opened before it was lost.
    /// After a failover the others lead to the same server, which is gone or read-only.
    pub(super) fn discard(&self, pooled: &Pooled) {
        let (lost, next) = (pooled.generation, pooled.generation + 1);
        // A failed exchange means that the pool was emptied already.
        let (generation, order) = (&self.connector.generation, Ordering::SeqCst);
        let _ = generation.compare_exchange(lost, next, order, order);
    }

    /// Lends no more connections, waits for those in use, and closes all.
    pub(super) async fn close(&self) {
        // A connection in use holds a permit. Already closed is as good.
        let _all = self.turns.acquire_many(self.connections.max_size()).await;
        self.turns.close();
        while let Some(idle) = self.connections.try_get() {
            self.discard(&idle);
        }
    }

    pub(super) fn metrics(&self) -> PoolMetrics {
        let state = self.connections.state();
        PoolMetrics {
            size: self.connections.max_size(),
            open: state.connections,
            idle: state.idle_connections,
            busy: self
                .connections
                .max_size()
                .saturating_sub(u32::try_from(self.turns.available_permits()).unwrap_or(u32::MAX)),
        }
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

    /// Connects as any request will.
    fn check(&self) -> Result<(), OpenError> {
        match self.establish()? {
            AnyConnection::Sqlite(_) => Ok(()),
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(mut one) => match self.establish()? {
                AnyConnection::Postgres(mut other) => are_apart(&mut one, &mut other),
                AnyConnection::Sqlite(_) => Ok(()),
            },
        }
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
                let said = one_line(&error);
                OpenError::Unavailable(match said.contains(READ_ONLY_SESSION) {
                    true => format!("PostgreSQL accepts no writes: {said}; `database.url` must lead to the primary server"),
                    false => format!("PostgreSQL cannot be reached: {said}"),
                })
            }),
        }
    }
}

impl Connector {
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }
}

impl r2d2::ManageConnection for Connector {
    type Connection = Pooled;
    type Error = OpenError;

    fn connect(&self) -> Result<Pooled, OpenError> {
        // Before the server is asked: it may be lost meanwhile.
        let generation = self.generation();
        Ok(Pooled {
            connection: self.manager.establish()?,
            generation,
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
        // diesel does not report a connection whose server is gone.
        broken || pooled.generation != self.generation()
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

/// How libpq finds out that its server is gone without a word, and which of several servers it takes,
/// unless the URL says otherwise.
#[cfg(feature = "postgres")]
const PATIENCE: [(&str, &str); 6] = [
    ("connect_timeout", "5"),
    ("tcp_user_timeout", "5000"),
    ("keepalives_idle", "5"),
    ("keepalives_interval", "2"),
    ("keepalives_count", "3"),
    ("target_session_attrs", "read-write"),
];

/// libpq's message about a server that `target_session_attrs` refuses.
#[cfg(feature = "postgres")]
const READ_ONLY_SESSION: &str = "session is read-only";

#[cfg(feature = "postgres")]
fn with_patience(url: &str) -> String {
    let (_, said) = url.split_once('?').unwrap_or((url, ""));
    let is_said = |name: &str| {
        said.split('&')
            .any(|pair| pair.split('=').next() == Some(name))
    };
    let mut whole = url.to_owned();
    for (name, value) in PATIENCE.iter().filter(|(name, _)| !is_said(name)) {
        match whole.find('?') {
            None => whole.push('?'),
            Some(at) if at + 1 == whole.len() => {}
            Some(_) => whole.push('&'),
        }
        whole.extend([name, "=", value]);
    }
    whole
}

/// A frozen node must hold no lock for long: every wait is bounded, here and at the server.
#[cfg(feature = "postgres")]
fn postgres(url: &str) -> Result<AnyConnection, Box<dyn std::error::Error>> {
    let mut connection = diesel::PgConnection::establish(&with_patience(url))?;
    connection.batch_execute(
        "SET statement_timeout = '2s';
         SET lock_timeout = '1s';
         SET idle_in_transaction_session_timeout = '2s';
         SET tcp_user_timeout = '5s';
         SET client_min_messages = warning;",
    )?;
    // The URL may allow any server, and a standby would answer reads with the state of yesterday.
    if is_read_only(&mut connection)? {
        return Err(READ_ONLY_SESSION.into());
    }
    Ok(AnyConnection::Postgres(connection))
}

/// Returns whether the server refuses writes: a standby, or `default_transaction_read_only`.
#[cfg(feature = "postgres")]
fn is_read_only(connection: &mut diesel::PgConnection) -> diesel::QueryResult<bool> {
    use diesel::RunQueryDsl;
    #[derive(diesel::QueryableByName)]
    struct Setting {
        #[diesel(sql_type = diesel::sql_types::Bool)]
        read_only: bool,
    }
    let query = "SELECT current_setting('transaction_read_only')::bool AS read_only";
    let setting: Setting = diesel::sql_query(query).get_result(connection)?;
    Ok(setting.read_only)
}

/// Fails on a connection whose server refuses writes, so that it is not lent again.
pub(super) fn check_writable(connection: &mut AnyConnection) -> Result<(), Error> {
    match connection {
        AnyConnection::Sqlite(_) => Ok(()),
        #[cfg(feature = "postgres")]
        AnyConnection::Postgres(inner) => match is_read_only(inner)? {
            true => Err(read_only()),
            false => Ok(()),
        },
    }
}

/// The error of a server that answers reads and refuses writes.
pub(super) fn read_only() -> Error {
    Error::Unavailable("it is read-only: a standby, or `default_transaction_read_only`".to_owned())
}

/// Refuses a pooler that lends one connection of the server to several of ours, a transaction each:
/// time limits, locks and prepared statements belong to a connection. Through such a pooler the same
/// server process answers both of ours, or another one than before.
#[cfg(feature = "postgres")]
fn are_apart(
    one: &mut diesel::PgConnection,
    other: &mut diesel::PgConnection,
) -> Result<(), OpenError> {
    let failed = |error: diesel::result::Error| {
        OpenError::Unavailable(format!("PostgreSQL cannot be asked: {}", one_line(&error)))
    };
    let first = (
        backend(one).map_err(failed)?,
        backend(other).map_err(failed)?,
    );
    let again = (
        backend(one).map_err(failed)?,
        backend(other).map_err(failed)?,
    );
    if first.0 != first.1 && first == again {
        return Ok(());
    }
    Err(OpenError::Configuration(
        "configuration key `database.url`: a pooler in transaction mode stands before PostgreSQL; connect to PostgreSQL itself, or set the pooler to session mode"
            .to_owned(),
    ))
}

/// Which process of which server answers. In a transaction, since a pooler may change it in between.
#[cfg(feature = "postgres")]
fn backend(connection: &mut diesel::PgConnection) -> diesel::QueryResult<(i32, i64)> {
    use diesel::RunQueryDsl;
    #[derive(diesel::QueryableByName)]
    struct Backend {
        #[diesel(sql_type = diesel::sql_types::Integer)]
        pid: i32,
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        since: i64,
    }
    // Numbers of processes are few: two servers may have one in common, but not its beginning.
    let query = "SELECT pid, (extract(epoch FROM backend_start) * 1000000)::bigint AS since FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let found: Backend =
        connection.transaction(|connection| diesel::sql_query(query).get_result(connection))?;
    Ok((found.pid, found.since))
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

/// What a library says, without its line breaks.
pub(super) fn one_line(error: &dyn std::fmt::Display) -> String {
    error
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn create_file(path: &Path) -> Result<(), OpenError> {
    let verb = match path.exists() {
        true => "written to",
        false => "made",
    };
    let failed = |error: std::io::Error| {
        OpenError::Unavailable(format!(
            "the database file {} cannot be {verb}: {error}",
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
    options.open(path).map(drop).map_err(failed)?;
    #[cfg(unix)]
    for beside in ["", "-wal", "-shm", ".lock"] {
        let mut name = path.as_os_str().to_owned();
        name.push(beside);
        close_to_others(Path::new(&name)).map_err(failed)?;
    }
    Ok(())
}

/// Takes every right of others on a file of the database, if it is there.
#[cfg(unix)]
fn close_to_others(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = match std::fs::metadata(path) {
        Ok(file) => file.permissions().mode(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if mode & 0o077 == 0 {
        return Ok(());
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    // The lock is empty, and nobody minds who reads it.
    if path.extension().is_none_or(|ext| ext != "lock") {
        tracing::warn!(event = "db.mode", severity = "high", path = %path.display(), mode = format!("{:o}", mode & 0o777), "the database could be read by others; now it is its owner's alone");
    }
    Ok(())
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

#[cfg(all(test, feature = "postgres"))]
mod tests {
    use super::*;

    #[test]
    fn what_a_url_says_of_time_limits_stands() {
        assert_eq!(
            with_patience("postgres://db/x"),
            "postgres://db/x?connect_timeout=5&tcp_user_timeout=5000&keepalives_idle=5&keepalives_interval=2&keepalives_count=3&target_session_attrs=read-write"
        );
        assert_eq!(
            with_patience(
                "postgres://db/x?sslmode=verify-full&connect_timeout=30&keepalives_idle=60"
            ),
            "postgres://db/x?sslmode=verify-full&connect_timeout=30&keepalives_idle=60&tcp_user_timeout=5000&keepalives_interval=2&keepalives_count=3&target_session_attrs=read-write"
        );
        let any = with_patience("postgres://a:1,b:2/x?target_session_attrs=any");
        assert!(any.starts_with("postgres://a:1,b:2/x?target_session_attrs=any&"));
        assert!(!any.contains("read-write"));
    }
}
