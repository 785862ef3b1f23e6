//! Notifications to a service manager (sd_notify(3)): ready, reloading, stopping, watchdog. Without a
//! service manager they have no effect.

use std::future::pending;

pub use sd_notify::NotifyState as State;

/// The node accepts requests.
pub const READY: State<'static> = State::Ready;

/// Sends notifications. A failure is logged and has no other effect.
pub fn notify(states: &[State<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(event = "server.manager_deaf", reason = "notify", %error);
    }
}

/// Sends two watchdog notifications in each watchdog period while the event loop runs.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return pending().await;
    };
    let mut turn = tokio::time::interval(limit / 2);
    loop {
        turn.tick().await;
        notify(&[State::Watchdog]);
    }
}
