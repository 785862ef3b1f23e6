//! The connection pool: selection of the database by URL, and the settings of each connection.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use diesel::Connection as _;
use diesel::SqliteConnection;
use diesel::connection::SimpleConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{AnyConnection, Error};
use crate::config::limits::{OPEN_WAITS, POOL_WAIT};
use crate::metrics::POOL_TIMEOUTS;

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be reached, or rejects the connection.
    #[error("{0}")]
    Unavailable(String),
    /// The configuration is unusable.
    #[error("{0}")]
    Configuration(String),
}

#[derive(Clone)]
pub(super) struct Pool {
    connections: r2d2::Pool<Connector>,
    connector: Connector,
    lanes: Arc<Lanes>,
}

/// Who uses a connection. No lane may occupy the whole pool, so that a burst in one does not stop the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// The node itself: polls, heartbeats, audit seals, keys, readiness. Some connections are for it alone.
    Node,
    /// Requests of clients and resource servers, and commands.
    Clients,
    /// Pages and sign-ins of users.
    Pages,
}

/// The permits of the lanes. A task that waits here blocks no thread.
struct Lanes {
    /// One permit for each connection.
    all: Arc<Semaphore>,
    /// The connections that are not reserved for the node.
    requests: Arc<Semaphore>,
    clients: Arc<Semaphore>,
    pages: Arc<Semaphore>,
    /// Pages that wait for a connection.
    waiting_pages: AtomicUsize,
}

impl Lanes {
    fn new(size: usize) -> Self {
        let permits = |n: usize| Arc::new(Semaphore::new(n.max(1)));
        // A node with one connection has nothing to reserve.
        let reserved = (size / 8).max(usize::from(size > 1));
        let requests = size - reserved;
        Self {
            all: permits(size),
            requests: permits(requests),
            clients: permits(requests - size / 8),
            pages: permits(requests - size / 4),
            waiting_pages: AtomicUsize::new(0),
        }
    }

    /// Returns the permits that a lane takes, in the order of taking.
    fn of(&self, lane: Lane) -> impl Iterator<Item = &Arc<Semaphore>> {
        let (own, shared) = match lane {
            Lane::Node => (None, None),
            Lane::Clients => (Some(&self.clients), Some(&self.requests)),
            Lane::Pages => (Some(&self.pages), Some(&self.requests)),
        };
        own.into_iter().chain(shared).chain([&self.all])
    }

    async fn take(&self, lane: Lane) -> Option<Turn> {
        let mut turn = Turn::default();
        for (taken, permits) in turn.permits.iter_mut().zip(self.of(lane)) {
            *taken = Some(Arc::clone(permits).acquire_owned().await.ok()?);
        }
        Some(turn)
    }
}

/// The right to use a connection, until it is dropped.
#[derive(Default)]
pub(super) struct Turn {
    permits: [Option<OwnedSemaphorePermit>; 3],
}

/// A place among the waiting pages, which is also given up when the browser disconnects.
struct WaitingPage<'a>(&'a AtomicUsize);

impl Drop for WaitingPage<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Metrics of the pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolMetrics {
    /// Connections that may be open.
    pub size: u32,
    /// Connections that are open.
    pub open: u32,
    /// Connections that are open and unused.
    pub idle: u32,
    /// Reads and transactions that hold a connection or are about to take one.
    pub busy: u32,
}

/// Opens connections of exactly one backend, so that the original error is shown.
#[derive(Clone, Debug)]
pub(super) enum Manager {
    Sqlite(PathBuf),
    #[cfg(feature = "postgres")]
    Postgres(String),
}

/// Opens the connections of the pool, and distinguishes those of a lost server from later ones.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    manager: Manager,
    /// Grows when the server is lost. A connection of an earlier generation is closed instead of used.
    generation: Arc<AtomicU64>,
    /// How many connections could not be opened.
    failures: Arc<AtomicU64>,
}

/// A connection of the pool.
pub(super) struct Pooled {
    pub(super) connection: AnyConnection,
    generation: u64,
}

impl Pool {
    pub(super) fn open(url: &str, size: u32) -> Result<Self, OpenError> {
        let manager = Manager::of(url)?;
        // Connect once here, so that an error is reported at once and in full.
        manager.check()?;
        let connector = Connector {
            manager,
            generation: Arc::default(),
            failures: Arc::default(),
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
            lanes: Arc::new(Lanes::new(size as usize)),
        })
    }

    pub(super) fn is_sqlite(&self) -> bool {
        matches!(self.connector.manager, Manager::Sqlite(_))
    }

    /// Opens a connection outside the pool.
    pub(super) fn connect(&self) -> Result<AnyConnection, OpenError> {
        self.connector.manager.establish()
    }

    /// Waits until a lane may use a connection.
    pub(super) async fn turn(&self, lane: Lane) -> Result<Turn, Error> {
        let _waiting = (lane == Lane::Pages).then(|| {
            self.lanes.waiting_pages.fetch_add(1, Ordering::SeqCst);
            WaitingPage(&self.lanes.waiting_pages)
        });
        let turn = timeout(POOL_WAIT, self.lanes.take(lane)).await;
        turn.ok().flatten().ok_or_else(|| {
            POOL_TIMEOUTS.count([]);
            match lane {
                Lane::Pages => Error::Busy,
                _ => Error::Unavailable("all connections are in use".to_owned()),
            }
        })
    }

    /// Returns how many pages wait for a connection.
    pub(super) fn waiting_pages(&self) -> usize {
        self.lanes.waiting_pages.load(Ordering::SeqCst)
    }

    pub(super) fn get(&self) -> Result<r2d2::PooledConnection<Connector>, Error> {
        let failures = || self.connector.failures.load(Ordering::SeqCst);
        let (before, mut waits) = (failures(), 0);
        loop {
            match self.connections.get() {
                // An idle connection of a lost server is closed when it is dropped.
                Ok(pooled) if pooled.generation == self.connector.generation() => {
                    return Ok(pooled);
                }
                Ok(_) => {}
                Err(error) => {
                    waits += 1;
                    // A loaded server needs longer to open a connection; one that refused it may refuse the next.
                    if waits == OPEN_WAITS || failures() != before {
                        POOL_TIMEOUTS.count([]);
                        return Err(Error::Unavailable(error.to_string()));
                    }
                }
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

    /// Stops handing out connections, waits for those in use, and closes all.
    pub(super) async fn close(&self) {
        // A connection in use holds a permit. The semaphore may be closed already.
        let turns = &self.lanes.all;
        let _all = turns.acquire_many(self.connections.max_size()).await;
        turns.close();
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
            busy: self.connections.max_size().saturating_sub(
                u32::try_from(self.lanes.all.available_permits()).unwrap_or(u32::MAX),
            ),
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

    /// Connects in the same way as a request.
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
                let message = one_line(&error);
                OpenError::Unavailable(explain(&message))
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
        // Read before connecting, because the server may be lost meanwhile.
        let generation = self.generation();
        let connection = self.manager.establish().inspect_err(|_| {
            self.failures.fetch_add(1, Ordering::SeqCst);
        })?;
        Ok(Pooled {
            connection,
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
        // diesel does not report a connection to a lost server.
        broken || pooled.generation != self.generation()
    }
}

/// Opens an SQLite connection. WAL allows readers beside the writer; `FULL` keeps every answered
/// transaction after a power failure.
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

/// Defaults for libpq, which the URL may override: how to detect a server that disappeared silently, and
/// which of several servers to use.
#[cfg(feature = "postgres")]
const LIBPQ_DEFAULTS: [(&str, &str); 6] = [
    ("connect_timeout", "5"),
    ("tcp_user_timeout", "5000"),
    ("keepalives_idle", "5"),
    ("keepalives_interval", "2"),
    ("keepalives_count", "3"),
    ("target_session_attrs", "read-write"),
];

/// libpq's message about a server that `target_session_attrs` excludes.
#[cfg(feature = "postgres")]
const READ_ONLY_SESSION: &str = "session is read-only";

/// Explains why a connection could not be opened. libpq reports no code for that, only what the server says.
#[cfg(feature = "postgres")]
fn explain(message: &str) -> String {
    if message.contains(READ_ONLY_SESSION) {
        format!(
            "PostgreSQL accepts no writes: {message}; `database.url` must lead to the primary server"
        )
    } else if message.contains("database \"") && message.contains("does not exist") {
        format!(
            "PostgreSQL does not have the database: {message}; create it, or correct its name in `database.url`"
        )
    } else if message.contains("FATAL:") {
        format!(
            "PostgreSQL refused the connection: {message}; check the user and password in `database.url`, and the server's limits and `pg_hba.conf`"
        )
    } else {
        format!("PostgreSQL cannot be reached: {message}")
    }
}

#[cfg(feature = "postgres")]
fn with_defaults(url: &str) -> String {
    let (_, query) = url.split_once('?').unwrap_or((url, ""));
    let is_set = |name: &str| {
        query
            .split('&')
            .any(|pair| pair.split('=').next() == Some(name))
    };
    let mut whole = url.to_owned();
    for (name, value) in LIBPQ_DEFAULTS.iter().filter(|(name, _)| !is_set(name)) {
        match whole.find('?') {
            None => whole.push('?'),
            Some(at) if at + 1 == whole.len() => {}
            Some(_) => whole.push('&'),
        }
        whole.extend([name, "=", value]);
    }
    whole
}

/// Opens a PostgreSQL connection. Every wait has a limit, on both sides, so that a frozen node holds no
/// lock for long.
#[cfg(feature = "postgres")]
fn postgres(url: &str) -> Result<AnyConnection, Box<dyn std::error::Error>> {
    let mut connection = diesel::PgConnection::establish(&with_defaults(url))?;
    connection.batch_execute(
        "SET statement_timeout = '2s';
         SET lock_timeout = '1s';
         SET idle_in_transaction_session_timeout = '2s';
         SET tcp_user_timeout = '5s';
         SET client_min_messages = warning;",
    )?;
    // The URL may allow any server, and the data of a standby may be old.
    if is_read_only(&mut connection)? {
        return Err(READ_ONLY_SESSION.into());
    }
    Ok(AnyConnection::Postgres(connection))
}

/// Returns whether the server rejects writes: a standby, or `default_transaction_read_only`.
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

/// Fails if the server of a connection rejects writes, so that the connection is not used again.
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

/// Returns the error of a server that accepts only reads.
pub(super) fn read_only() -> Error {
    Error::Unavailable("it is read-only: a standby, or `default_transaction_read_only`".to_owned())
}

/// Rejects a pooler in transaction mode, which shares one server connection between several client
/// connections: time limits, locks and prepared statements belong to a connection. Behind such a pooler,
/// both connections reach the same server process, or a different process than before.
#[cfg(feature = "postgres")]
fn are_apart(
    one: &mut diesel::PgConnection,
    other: &mut diesel::PgConnection,
) -> Result<(), OpenError> {
    let failed = |error: diesel::result::Error| {
        OpenError::Unavailable(format!(
            "PostgreSQL cannot be queried: {}",
            one_line(&error)
        ))
    };
    let first = (
        backend(one).map_err(failed)?,
        backend(other).map_err(failed)?,
    );
    let second = (
        backend(one).map_err(failed)?,
        backend(other).map_err(failed)?,
    );
    if first.0 != first.1 && first == second {
        return Ok(());
    }
    Err(OpenError::Configuration(
        "configuration key `database.url`: there is a pooler in transaction mode before PostgreSQL; connect to PostgreSQL directly, or set the pooler to session mode"
            .to_owned(),
    ))
}

/// Returns process id and start time of the server process. Runs in a transaction, because a pooler may
/// switch processes between transactions.
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
    // Processes of two servers may have the same id, but not the same start time.
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

/// Formats the error of a library without line breaks.
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
        false => "created",
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

/// Removes the permissions of group and others on a file of the database, if it exists.
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
    // The lock file is empty, so its mode needs no warning.
    if path.extension().is_none_or(|ext| ext != "lock") {
        tracing::warn!(event = "db.mode", severity = "high", path = %path.display(), mode = format!("{:o}", mode & 0o777), "the database was readable by other users; now only its owner can read it");
    }
    Ok(())
}

/// The exclusive claim of a server on an embedded database, released on drop and at process exit.
#[derive(Debug)]
pub struct Claim {
    _lock: Option<File>,
}

impl Claim {
    /// Claims the database of `url`. A PostgreSQL database needs no claim.
    ///
    /// # Errors
    /// [`OpenError::Unavailable`] if another server has claimed it.
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
    fn connection_errors_are_distinguished() {
        let server = "connection to server at \"db\" (192.0.2.1), port 5432 failed: ";
        for (said, meaning) in [
            (
                "Connection refused Is the server running on that host?",
                "cannot be reached",
            ),
            ("timeout expired", "cannot be reached"),
            (
                "FATAL:  password authentication failed for user \"p\"",
                "refused the connection",
            ),
            (
                "FATAL:  role \"p\" does not exist",
                "refused the connection",
            ),
            (
                "FATAL:  sorry, too many clients already",
                "refused the connection",
            ),
            (
                "FATAL:  database \"p\" does not exist",
                "does not have the database",
            ),
            ("session is read-only", "accepts no writes"),
        ] {
            let explained = explain(&format!("{server}{said}"));
            assert!(
                explained.starts_with(&format!("PostgreSQL {meaning}")),
                "{explained}"
            );
        }
    }

    #[test]
    fn url_parameters_override_libpq_defaults() {
        assert_eq!(
            with_defaults("postgres://db/x"),
            "postgres://db/x?connect_timeout=5&tcp_user_timeout=5000&keepalives_idle=5&keepalives_interval=2&keepalives_count=3&target_session_attrs=read-write"
        );
        assert_eq!(
            with_defaults(
                "postgres://db/x?sslmode=verify-full&connect_timeout=30&keepalives_idle=60"
            ),
            "postgres://db/x?sslmode=verify-full&connect_timeout=30&keepalives_idle=60&tcp_user_timeout=5000&keepalives_interval=2&keepalives_count=3&target_session_attrs=read-write"
        );
        let any = with_defaults("postgres://a:1,b:2/x?target_session_attrs=any");
        assert!(any.starts_with("postgres://a:1,b:2/x?target_session_attrs=any&"));
        assert!(!any.contains("read-write"));
    }
}
