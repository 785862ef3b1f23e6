//! The stop: readiness says no, load balancers get time to see it, what runs is finished, what was
//! written down is sealed. Nobody who honours readiness sees a failed request.

use std::time::Duration;

use actix_web::rt::time::timeout;
use actix_web::web::Data;
use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use super::super::audit;
use super::manager::{self, State};
use crate::app::App;
use crate::http::Listeners;

/// How long the last acknowledgements and seals may take.
const LAST_SEALS: Duration = Duration::from_secs(2);

/// The signals that stop a server. Caught from the moment on when this is made.
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Catches SIGTERM and Ctrl-C.
    pub fn catch() -> anyhow::Result<Self> {
        let catch = |kind| signal(kind).context("signals cannot be caught");
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

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
    mut signals: StopSignals,
    tasks: Background,
) -> anyhow::Result<()> {
    let handle = listeners.handle();
    let mut running = Box::pin(listeners.run());
    tokio::select! {
        outcome = &mut running => return outcome.context("the server failed"),
        () = signals.next() => {}
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
        () = signals.next() => true,
    };
    // Dropped while it runs, it hangs up on everybody.
    drop(running);
    tasks.end().await;
    // 4. What was written down is sealed, now rather than by the next node.
    if hurried {
        tracing::warn!(event = "server.stopped", reason = "second_signal");
        return Ok(());
    }
    let written = async {
        app.write_acks().await;
        audit::seal(&app).await
    };
    match timeout(LAST_SEALS, written).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::error!(event = "audit.unsealed", reason = "storage", severity = "high", %error);
        }
        Err(_) => {
            tracing::error!(event = "audit.unsealed", reason = "slow", severity = "high");
        }
    }
    tracing::info!(event = "server.stopped", reason = "signal");
    Ok(())
}
