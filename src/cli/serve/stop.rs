//! Graceful shutdown: readiness fails, load balancers get time to notice, running requests are completed,
//! and audit events are sealed. Clients behind a load balancer that honours readiness see no failed request.

use std::time::Duration;

use actix_web::rt::time::timeout;
use actix_web::web::Data;
use anyhow::Context;
use portcullis_runtime::ShutdownSignals;
use tokio::task::JoinHandle;

use super::manager::{self, State};
use crate::app::{App, StartError};
use crate::http::Listeners;

/// The time limit for the last acknowledgements, seals and the mark.
const LAST_WRITES: Duration = Duration::from_secs(2);
/// The time limit for the mark after a second signal.
const LAST_MARK: Duration = Duration::from_millis(500);
/// The time limit for running statements and the last checkpoint.
const LAST_CLOSE: Duration = Duration::from_secs(5);

/// The background tasks of a node.
#[derive(Default)]
pub struct Background(Vec<JoinHandle<()>>);

impl Background {
    /// Starts a task.
    pub fn run(&mut self, task: impl Future<Output = ()> + 'static) {
        self.0.push(actix_web::rt::spawn(task));
    }

    async fn end(self) {
        for task in self.0 {
            task.abort();
            // The error is the cancellation.
            let _ = task.await;
        }
    }
}

/// Serves until a signal and then shuts down gracefully. A second signal stops at once.
pub async fn run_until_stopped(
    app: Data<App>,
    listeners: Listeners,
    mut signals: ShutdownSignals,
    tasks: Background,
) -> anyhow::Result<()> {
    let handle = listeners.handle();
    let mut running = Box::pin(listeners.run());
    tokio::select! {
        outcome = &mut running => return outcome.context("the server failed"),
        () = signals.recv() => {}
    }
    // 1. Readiness fails.
    let times = &app.config.shutdown;
    app.draining.begin();
    manager::notify(&[State::Stopping]);
    tracing::info!(event = "server.draining", reason = "signal", delay = %times.delay, drain = %times.drain);
    let delay = times.delay.0;
    let orderly = async {
        // 2. Load balancers get time to notice.
        tokio::time::sleep(delay).await;
        tracing::info!(event = "server.stopping", reason = "signal");
        // 3. Accept no new connections; complete running requests, or abort them after the drain time.
        handle.stop(true).await;
    };
    let stopped = async { tokio::join!(orderly, &mut running).1 };
    let hurried = tokio::select! {
        outcome = stopped => {
            outcome.context("the server failed")?;
            false
        }
        () = signals.recv() => true,
    };
    // Closes all connections if the server still runs.
    drop(running);
    tasks.end().await;
    // 4. Store what only this node holds, and close the database. After a second signal, the seals are left
    //    to the next node.
    write_down(&app, hurried).await;
    let closed = close(&app).await;
    match hurried {
        true => tracing::warn!(event = "server.stopped", reason = "second_signal"),
        false => tracing::info!(event = "server.stopped", reason = "signal"),
    }
    closed
}

/// Stores what periodic tasks would have stored later: acknowledgements, seals of the audit log, and the
/// high-water mark.
async fn write_down(app: &Data<App>, hurried: bool) {
    let marked = async {
        let limit = if hurried { LAST_MARK } else { LAST_WRITES };
        let why = match timeout(limit, app.settle_feed()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "timed out".to_owned(),
        };
        tracing::warn!(
            event = "feed.unmarked",
            reason = "stop",
            error = why,
            "the last revocations may be missing from the mark beside the KEK"
        );
    };
    let sealed = async {
        if hurried {
            return;
        }
        match timeout(LAST_WRITES, app.write_acks_and_seals()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(event = "audit.unsealed", reason = "storage", severity = "high", %error);
            }
            Err(_) => {
                tracing::error!(event = "audit.unsealed", reason = "slow", severity = "high");
            }
        }
    };
    tokio::join!(marked, sealed);
}

/// Closes the database, so that after exit code 0 an embedded database is complete in a single file. An open
/// connection to PostgreSQL at exit does no harm.
async fn close(app: &App) -> anyhow::Result<()> {
    let closed = timeout(LAST_CLOSE, app.store.close()).await;
    let why = match closed {
        Ok(Ok(())) => return Ok(()),
        Err(_) if !app.store.is_sqlite() => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the database is still in use".to_owned(),
    };
    tracing::error!(
        event = "storage.error",
        reason = "close",
        severity = "high",
        error = why
    );
    let why = format!("{why}; committed data is in the write-ahead log beside the database file");
    Err(StartError::Unavailable(why).into())
}
