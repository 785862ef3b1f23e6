//! Whether this node is being stopped.

use std::sync::Arc;

use tokio::sync::watch;

/// The one signal that a node is on its way out. Readiness says no, answers close their connection,
/// and whatever goes on for long (event streams) waits for [`Draining::begun`] and ends. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Draining(Arc<watch::Sender<bool>>);

impl Default for Draining {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Draining {
    /// From now on this node ends. It never goes back.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    /// Whether it has begun.
    pub fn is_on(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it begins, or at once when it has begun.
    pub async fn begun(&self) {
        // The sender lives as long as this value, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|draining| *draining).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_waits_is_told_and_whoever_comes_later_too() {
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
