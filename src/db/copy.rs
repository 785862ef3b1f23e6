//! Copies of an embedded database: made while servers write to it, checked, and marked as restored.
//!
//! The files are not copied byte by byte, because a checkpoint between two reads moves pages from the
//! write-ahead log into a file that was read before (SQLite, "How To Corrupt An SQLite Database File"
//! §1.2).

use std::path::Path;

use diesel::connection::SimpleConnection;
use diesel::sql_types::{BigInt, Text};
use diesel::{Connection as _, QueryableByName, RunQueryDsl, SqliteConnection, sql_query};

use super::{AnyConnection, Error, OpenError, Store};
use crate::time::Timestamp;

/// Why a copy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The file is damaged, or refers to rows that it does not have.
    #[error("{0}")]
    Damaged(String),
    /// Another process has the file open.
    #[error("another process has the database open")]
    InUse,
    /// SQLite reported an error.
    #[error("{0}")]
    Failed(String),
}

impl From<diesel::result::Error> for CopyError {
    fn from(error: diesel::result::Error) -> Self {
        let message = error.to_string();
        match message.as_str() {
            message if message.contains("locked") => Self::InUse,
            "file is not a database" | "database disk image is malformed" => {
                Self::Damaged(message.clone())
            }
            _ => Self::Failed(message),
        }
    }
}

/// The state of a checked file.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// The feed epoch.
    pub epoch: i64,
    /// The last heartbeat.
    pub beat: Timestamp,
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    n: i64,
}

#[derive(QueryableByName)]
struct Head {
    #[diesel(sql_type = BigInt)]
    epoch: i64,
    #[diesel(sql_type = BigInt)]
    beat: i64,
}

impl Store {
    /// Writes a copy of an embedded database as it is at one instant into `file`, which must be empty
    /// or absent. Transactions continue meanwhile.
    ///
    /// # Errors
    /// [`CopyError`]; then `file` is incomplete.
    pub fn copy_to(&self, file: &str) -> Result<(), CopyError> {
        let connection = self.pool.connect();
        match connection.map_err(|error| CopyError::Failed(error.to_string()))? {
            AnyConnection::Sqlite(mut inner) => {
                let copy = sql_query("VACUUM INTO $1").bind::<Text, _>(file);
                copy.execute(&mut inner)?;
                Ok(())
            }
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(_) => Err(CopyError::Failed(
                "this is not an embedded database".to_owned(),
            )),
        }
    }

    /// Checks an embedded database for damage, less thoroughly than [`verify`], and returns the findings of
    /// SQLite.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn quick_check(&self) -> Result<Vec<String>, Error> {
        self.blocking(|connection| {
            let check = "SELECT quick_check AS line FROM pragma_quick_check LIMIT 5";
            let lines: Vec<Line> = sql_query(check).load(connection)?;
            Ok(lines
                .into_iter()
                .map(|row| row.line)
                .filter(|line| line != "ok")
                .collect())
        })
        .await
    }
}

/// Opens a file that no server uses, without changing its journal mode.
fn open(file: &Path) -> Result<SqliteConnection, CopyError> {
    let failed = |error: &dyn std::fmt::Display| CopyError::Failed(error.to_string());
    let mut connection =
        SqliteConnection::establish(&file.to_string_lossy()).map_err(|error| failed(&error))?;
    connection.batch_execute("PRAGMA synchronous = FULL")?;
    Ok(connection)
}

/// Checks a file that no server uses: every page and index, and every reference.
///
/// # Errors
/// [`CopyError::Damaged`].
pub fn verify(file: &Path) -> Result<Copied, CopyError> {
    let mut connection = open(file)?;
    let check = "SELECT integrity_check AS line FROM pragma_integrity_check LIMIT 5";
    let lines: Vec<Line> = sql_query(check).load(&mut connection)?;
    let findings: Vec<String> = lines
        .into_iter()
        .map(|row| row.line)
        .filter(|line| line != "ok")
        .collect();
    if !findings.is_empty() {
        return Err(CopyError::Damaged(findings.join("; ")));
    }
    let check = "SELECT count(*) AS n FROM pragma_foreign_key_check";
    let dangling: Count = sql_query(check).get_result(&mut connection)?;
    if dangling.n > 0 {
        let n = dangling.n;
        return Err(CopyError::Damaged(format!(
            "{n} row(s) refer to rows that are missing"
        )));
    }
    let head: Head = sql_query("SELECT epoch, beat FROM feed_head")
        .get_result(&mut connection)
        .map_err(|error| CopyError::Damaged(format!("not a database of portcullis: {error}")))?;
    Ok(Copied {
        epoch: head.epoch,
        beat: Timestamp::from_micros(head.beat),
    })
}

/// Marks a copy as restored from a backup, so that a node that starts on it issues nothing until
/// `recover`. A file with a schema older than the feed has no such mark.
///
/// # Errors
/// [`CopyError`].
pub fn mark_restored(file: &Path, now: Timestamp) -> Result<(), CopyError> {
    let mut connection = open(file)?;
    let mark = "UPDATE feed_head SET restored_at = $1 WHERE restored_at IS NULL";
    sql_query(mark)
        .bind::<BigInt, _>(now.micros())
        .execute(&mut connection)?;
    Ok(())
}

/// Moves the write-ahead log of a database into its file, so that the file is complete without the log.
///
/// # Errors
/// [`CopyError::InUse`] when another process has it open.
pub fn fold_log(file: &Path) -> Result<(), CopyError> {
    let mut connection = open(file)?;
    // Only the sole connection to a file may leave WAL mode; all others make this fail as locked.
    connection.batch_execute("PRAGMA journal_mode = DELETE")?;
    Ok(())
}

impl From<CopyError> for OpenError {
    fn from(error: CopyError) -> Self {
        Self::Unavailable(error.to_string())
    }
}
