//! Clean-up: what is dead goes, on every node.

use actix_web::web::Data;

use crate::app::App;
use crate::config::limits::{CLEAN_UP_BATCH, CLEAN_UP_EVERY};
use crate::db::{self, SWEEPS, Sweep};

/// Removes what is dead, a batch a minute, and at once again while batches are full.
pub async fn for_ever(app: Data<App>) {
    let mut minute = tokio::time::interval(CLEAN_UP_EVERY);
    loop {
        minute.tick().await;
        if app.key_manager.is_stable() {
            // A kind that fails keeps none of the others.
            for (kind, sweep) in SWEEPS {
                clean_up(&app, kind, sweep).await;
            }
        }
    }
}

async fn clean_up(app: &App, kind: &str, sweep: Sweep) {
    let begun = app.clock.uptime();
    let (mut rows, mut batches) = (0, 0);
    let outcome = sweep_all(app, sweep, |removed| {
        rows += removed;
        batches += 1;
    })
    .await;
    if rows > 0 {
        let took = app.clock.uptime().since(begun).as_millis();
        let took_ms = u64::try_from(took).unwrap_or(u64::MAX);
        tracing::info!(event = "gc.done", reason = kind, rows, batches, took_ms);
    }
    if let Err(error) = outcome {
        tracing::error!(event = "storage.error", reason = "clean_up", severity = "high", kind, %error);
    }
}

/// Until a batch is not full; tells of each. Between two of them everybody else gets as much time.
async fn sweep_all(
    app: &App,
    sweep: Sweep,
    mut removed: impl FnMut(usize),
) -> Result<(), db::Error> {
    let now = app.clock.now();
    loop {
        let begun = app.clock.uptime();
        let batch = app
            .store
            .transaction(move |tx| tx.sweep_in_turn(sweep, now));
        let rows = batch.await?;
        removed(rows);
        if i64::try_from(rows).is_ok_and(|rows| rows < CLEAN_UP_BATCH) {
            return Ok(());
        }
        tokio::time::sleep(app.clock.uptime().since(begun)).await;
    }
}
