//! Maintenance of the keys: next keys are created and private halves destroyed when they are due.

use std::sync::Arc;

use crate::config::limits::KEEP_EVERY;
use crate::key_manager::KeyManager;
use crate::secret::Entropy;

/// Maintains the keys at start and then every minute or so. Never returns.
pub async fn run(key_manager: Arc<KeyManager>, entropy: Entropy) {
    loop {
        if let Err(error) = key_manager.run_maintenance().await {
            tracing::error!(event = "storage.error", reason = "keeper", severity = "high", %error);
        }
        // Up to 20 % longer, so that nodes do not do the same work at the same moment.
        let [jitter] = entropy.bytes::<1>();
        tokio::time::sleep(KEEP_EVERY + KEEP_EVERY * u32::from(jitter) / 1_280).await;
    }
}
