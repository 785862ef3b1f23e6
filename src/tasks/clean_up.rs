//! Clean-up: every node removes rows that are no longer needed.

use std::sync::Arc;

use crate::config::limits::{CLEAN_UP_BATCH, CLEAN_UP_EVERY};
use crate::db::{self, SWEEPS, Store, Sweep};
use crate::key_manager::KeyManager;
use crate::time::Clock;

/// Removes rows of each kind once a minute while the clocks are stable, in batches. Never returns.
pub async fn run(store: Store, clock: Clock, key_manager: Arc<KeyManager>) {
    let mut minute = tokio::time::interval(CLEAN_UP_EVERY);
    loop {
        minute.tick().await;
        if key_manager.is_stable() {
            // The failure of one kind does not stop the others.
            for (kind, sweep) in SWEEPS {
                clean_up(&store, &clock, kind, sweep).await;
            }
        }
    }
}

async fn clean_up(store: &Store, clock: &Clock, kind: &str, sweep: Sweep) {
    let started = clock.uptime();
    let (mut rows, mut batches) = (0, 0);
    let outcome = sweep_all(store, clock, sweep, |removed| {
        rows += removed;
        batches += 1;
    })
    .await;
    if rows > 0 {
        let took = clock.uptime().since(started).as_millis();
        let took_ms = u64::try_from(took).unwrap_or(u64::MAX);
        tracing::info!(event = "gc.done", reason = kind, rows, batches, took_ms);
    }
    if let Err(error) = outcome {
        tracing::error!(event = "storage.error", reason = "clean_up", severity = "high", kind, %error);
    }
}

/// Removes batches until one is not full, and reports the size of each. After each batch it pauses for
/// as long as the batch took, so that clean-up uses at most half of the database's time.
async fn sweep_all(
    store: &Store,
    clock: &Clock,
    sweep: Sweep,
    mut report: impl FnMut(usize),
) -> Result<(), db::Error> {
    let now = clock.now();
    loop {
        let started = clock.uptime();
        let rows = store
            .transaction(move |tx| tx.sweep_in_turn(sweep, now))
            .await?;
        report(rows);
        if i64::try_from(rows).is_ok_and(|rows| rows < CLEAN_UP_BATCH) {
            return Ok(());
        }
        tokio::time::sleep(clock.uptime().since(started)).await;
    }
}
