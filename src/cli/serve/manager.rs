//! What a service manager is told (sd_notify(3)): ready, reloading, stopping, alive. Without one nobody
//! is told anything.

use std::future::pending;

pub use sd_notify::NotifyState as State;

/// The node answers.
pub const READY: State<'static> = State::Ready;

/// Tells it; whoever cannot be told does without.
pub fn tell(states: &[State<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(event = "server.manager_deaf", reason = "notify", %error);
    }
}

/// Says twice in the time that it allows that this node's event loop turns.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return pending().await;
    };
    let mut turn = tokio::time::interval(limit / 2);
    loop {
        turn.tick().await;
        tell(&[State::Watchdog]);
    }
}
