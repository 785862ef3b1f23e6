//! SQLite's one writer: a thread that runs the waiting transactions together, a savepoint each,
//! commits once, then answers them all. One fsync for all of them, and no lock errors.

use std::sync::mpsc;

use diesel::connection::{AnsiTransactionManager, TransactionManager};
use tokio::sync::oneshot;

use super::{AnyConnection, Error, Transaction, transact};

/// Transactions that share one commit, at most.
const GROUP: usize = 256;

/// Runs inside the group's transaction, and returns what answers its caller after the commit.
type Job = Box<dyn FnOnce(&mut AnyConnection) -> Answer + Send>;
type Answer = Box<dyn FnOnce(&Result<(), String>) + Send>;

#[derive(Clone)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
}

impl Writer {
    pub(super) fn start(connection: AnyConnection) -> Self {
        let (jobs, waiting) = mpsc::channel();
        // It ends when the last sender is dropped.
        std::thread::spawn(move || run_groups(connection, &waiting));
        Self { jobs }
    }

    /// What `work` made, and whether it put a record on the blocklist.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<(T, bool), Error> {
        let (reply, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let outcome = transact(connection, work);
            Box::new(move |commit: &Result<(), String>| {
                let outcome = match commit {
                    Ok(()) => outcome,
                    Err(why) => Err(Error::Statement(format!("commit failed: {why}"))),
                };
                // The caller may have gone; the work is done all the same.
                let _ = reply.send(outcome);
            })
        });
        let gone = || Error::Unavailable("the writer has stopped".to_owned());
        self.jobs.send(job).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

fn run_groups(mut connection: AnyConnection, waiting: &mpsc::Receiver<Job>) {
    while let Ok(first) = waiting.recv() {
        let group: Vec<Job> = std::iter::once(first)
            .chain(waiting.try_iter().take(GROUP - 1))
            .collect();
        if let Err(why) = begin(&mut connection) {
            let refused = Err(why);
            for job in group {
                // Without a transaction the job must not run; its answer is made of nothing else.
                drop_unrun(job, &refused);
            }
            continue;
        }
        let answers: Vec<Answer> = group.into_iter().map(|job| job(&mut connection)).collect();
        let committed = commit(&mut connection);
        for answer in answers {
            answer(&committed);
        }
    }
}

/// The caller sees the writer's channel close, which is "unavailable".
fn drop_unrun(job: Job, refused: &Result<(), String>) {
    tracing::error!(event = "storage.error", reason = "begin", severity = "high", error = ?refused, "the embedded database refuses a transaction");
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
