//! The writer of an embedded database: a thread that runs waiting transactions together, each in a
//! savepoint, commits once and then returns all results. This needs one fsync for all of them and causes
//! no lock errors.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::{QueryableByName, RunQueryDsl};
use tokio::sync::oneshot;

use super::{AnyConnection, Error, Transaction, transact};
use crate::secret::Entropy;

/// The maximum number of transactions that share one commit.
const GROUP: usize = 256;

/// Runs inside the transaction of the group, and returns a function that sends the result after the commit.
type Job = Box<dyn FnOnce(&mut AnyConnection) -> Answer + Send>;
type Answer = Box<dyn FnOnce(&Result<(), String>) + Send>;

enum Message {
    Run(Job),
    /// Closes the connection after the jobs that were sent before, and reports the checkpoint.
    Close(oneshot::Sender<Result<(), String>>),
}

#[derive(Clone)]
pub(super) struct Writer {
    // Declared first, so dropped first: the thread ends when the last sender is dropped.
    messages: mpsc::Sender<Message>,
    entropy: Entropy,
    _thread: Arc<Thread>,
}

/// The writer's thread. A drop waits until its connection is closed, because a process that exits
/// earlier leaves the write-ahead log beside a database file that may not even have a table yet.
struct Thread(Option<JoinHandle<()>>);

impl Drop for Thread {
    fn drop(&mut self) {
        // A job may hold the last handle, and a thread cannot wait for itself.
        if let Some(handle) = self.0.take()
            && handle.thread().id() != std::thread::current().id()
        {
            // A panic of the thread was reported when it happened.
            let _ = handle.join();
        }
    }
}

impl Writer {
    pub(super) fn start(connection: AnyConnection, entropy: Entropy) -> Self {
        let (messages, waiting) = mpsc::channel();
        let handle = std::thread::spawn(move || run_groups(connection, &waiting));
        Self {
            messages,
            entropy,
            _thread: Arc::new(Thread(Some(handle))),
        }
    }

    /// Runs what was sent before, moves the write-ahead log into the database file and closes the
    /// connection. Later transactions fail.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the checkpoint failed: the log stays beside the file.
    pub(super) async fn close(&self) -> Result<(), Error> {
        let (reply, answered) = oneshot::channel();
        if self.messages.send(Message::Close(reply)).is_err() {
            // Closed before.
            return Ok(());
        }
        // Without an answer, another call closed it at the same moment.
        let closed = answered.await.unwrap_or(Ok(()));
        closed.map_err(|why| Error::Unavailable(format!("the last checkpoint failed: {why}")))
    }

    /// Returns the result of `work`, and whether it inserted a revocation record.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<(T, bool), Error> {
        let (reply, answered) = oneshot::channel();
        let entropy = self.entropy.clone();
        let job: Job = Box::new(move |connection| {
            let outcome = transact(connection, &entropy, work);
            Box::new(move |commit: &Result<(), String>| {
                let outcome = match commit {
                    Ok(()) => outcome,
                    Err(why) => Err(Error::Statement(format!("commit failed: {why}"))),
                };
                // The caller may have stopped waiting; the work is committed anyway.
                let _ = reply.send(outcome);
            })
        });
        let gone = || Error::Unavailable("the writer has stopped".to_owned());
        self.messages.send(Message::Run(job)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

fn run_groups(mut connection: AnyConnection, waiting: &mpsc::Receiver<Message>) {
    let mut end = None;
    while end.is_none()
        && let Ok(first) = waiting.recv()
    {
        let mut group = Vec::new();
        for message in std::iter::once(first).chain(waiting.try_iter()) {
            match message {
                Message::Run(job) => group.push(job),
                Message::Close(reply) => end = Some(reply),
            }
            if end.is_some() || group.len() == GROUP {
                break;
            }
        }
        run_group(&mut connection, group);
    }
    // SQLite itself makes a checkpoint when the last connection to a file is closed, but reports no
    // failure. When a server is running, a command leaves the log to that server.
    let Some(reply) = end else { return };
    let outcome = checkpoint(&mut connection);
    drop(connection);
    // The caller may have given up waiting.
    let _ = reply.send(outcome);
}

fn run_group(connection: &mut AnyConnection, group: Vec<Job>) {
    if group.is_empty() {
        return;
    }
    if let Err(why) = begin(connection) {
        let refused = Err(why);
        for job in group {
            // Without a transaction the job must not run.
            drop_unrun(job, &refused);
        }
        return;
    }
    let answers: Vec<Answer> = group.into_iter().map(|job| job(connection)).collect();
    let committed = commit(connection);
    for answer in answers {
        answer(&committed);
    }
}

/// Moves the whole log into the database file and empties it.
fn checkpoint(connection: &mut AnyConnection) -> Result<(), String> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Integer)]
        busy: i32,
    }
    let failed = |error: diesel::result::Error| error.to_string();
    // A command may be reading; even one that follows the audit log reads only briefly.
    connection
        .batch_execute("PRAGMA busy_timeout = 1000")
        .map_err(failed)?;
    let row: Row = diesel::sql_query("PRAGMA wal_checkpoint(TRUNCATE)")
        .get_result(connection)
        .map_err(failed)?;
    if row.busy != 0 {
        tracing::warn!(
            event = "storage.error",
            reason = "log_in_use",
            "another process reads the database, so its log stays beside the file; copy both, or use `portcullis backup`"
        );
    }
    Ok(())
}

/// Drops a job, so that its caller receives [`Error::Unavailable`].
fn drop_unrun(job: Job, refused: &Result<(), String>) {
    tracing::error!(event = "storage.error", reason = "begin", severity = "high", error = ?refused, "the embedded database rejected a transaction");
    drop(job);
}

fn begin(connection: &mut AnyConnection) -> Result<(), String> {
    match connection {
        AnyConnection::Sqlite(inner) => {
            AnsiTransactionManager::begin_transaction_sql(inner, "BEGIN IMMEDIATE")
        }
        #[cfg(feature = "postgres")]
        AnyConnection::Postgres(inner) => AnsiTransactionManager::begin_transaction(inner),
    }
    .map_err(|error| error.to_string())
}

fn commit(connection: &mut AnyConnection) -> Result<(), String> {
    let outcome = match connection {
        AnyConnection::Sqlite(inner) => AnsiTransactionManager::commit_transaction(inner),
        #[cfg(feature = "postgres")]
        AnyConnection::Postgres(inner) => AnsiTransactionManager::commit_transaction(inner),
    };
    outcome.map_err(|error| error.to_string())
}
