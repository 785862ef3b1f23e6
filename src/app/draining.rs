//! The signal that a graceful shutdown has begun.

use std::sync::Arc;

use tokio::sync::watch;

/// Signals a graceful shutdown: readiness fails, responses close their connection, and event streams end,
/// which wait for [`Draining::begun`]. Clones share the same signal.
#[derive(Clone, Debug)]
pub struct Draining(Arc<watch::Sender<bool>>);

impl Default for Draining {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Draining {
    /// Starts draining. It cannot be undone.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    /// Returns whether draining has begun.
    pub fn is_on(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until draining begins.
    pub async fn begun(&self) {
        // The sender lives as long as this value, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|draining| *draining).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn early_and_late_waiters_are_notified() {
        let draining = Draining::default();
        assert!(!draining.is_on());
        let early = tokio::spawn({
            let draining = draining.clone();
            async move { draining.begun().await }
        });
        draining.begin();
        early.await.unwrap();
        draining.begun().await;
        assert!(draining.is_on());
    }
}
