//! The stop: readiness says no, load balancers get time to see it, what runs is finished, what was
//! written down is sealed. Nobody who honours readiness sees a failed request.

use std::time::Duration;

use actix_web::rt::time::timeout;
use actix_web::web::Data;
use anyhow::Context;
use portcullis_runtime::ShutdownSignals;
use tokio::task::JoinHandle;

use super::super::audit;
use super::manager::{self, State};
use crate::app::{App, StartError};
use crate::http::Listeners;

/// How long the last acknowledgements, seals and the mark may take.
const LAST_WRITES: Duration = Duration::from_secs(2);
/// The same for the mark alone after a second signal.
const LAST_MARK: Duration = Duration::from_millis(500);
/// How long statements that still run and the last checkpoint may take.
const LAST_CLOSE: Duration = Duration::from_secs(5);

/// What a node does beside answering; it ends with the node.
#[derive(Default)]
pub struct Background(Vec<JoinHandle<()>>);

impl Background {
    /// One more.
    pub fn run(&mut self, task: impl Future<Output = ()> + 'static) {
        self.0.push(actix_web::rt::spawn(task));
    }

    async fn end(self) {
        for task in self.0 {
            task.abort();
            // Cancelled, as wanted.
            let _ = task.await;
        }
    }
}

/// Serves until a signal, then stops in order; a second signal stops at once.
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
    // 1. Nothing new is sent here, if somebody looks.
    let times = &app.config.shutdown;
    app.draining.begin();
    manager::tell(&[State::Stopping]);
    tracing::info!(event = "server.draining", reason = "signal", delay = %times.delay, drain = %times.drain);
    let delay = times.delay.0;
    let orderly = async {
        // 2. Whoever sends requests here gets time to look.
        tokio::time::sleep(delay).await;
        tracing::info!(event = "server.stopping", reason = "signal");
        // 3. No new connections; what runs is finished, or cut off after its time.
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
    // Dropped while it runs, it hangs up on everybody.
    drop(running);
    tasks.end().await;
    // 4. What only this node knows is written down, and the database is closed. A second signal leaves
    //    the seals to the next node.
    write_down(&app, hurried).await;
    let closed = close(&app).await;
    match hurried {
        true => tracing::warn!(event = "server.stopped", reason = "second_signal"),
        false => tracing::info!(event = "server.stopped", reason = "signal"),
    }
    closed
}

/// Writes what periodic tasks would have written later: acknowledgements, seals of the audit log, and
/// the mark of the feed.
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
        let written = async {
            app.write_acks().await;
            audit::seal(app).await
        };
        match timeout(LAST_WRITES, written).await {
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

/// Closes the database, so that after exit code 0 an embedded one is whole in its one file. A connection
/// to PostgreSQL that is not closed in time leaves nothing behind.
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
    let why =
        format!("{why}; what was answered is in the write-ahead log beside the database file");
    Err(StartError::Unavailable(why).into())
}
