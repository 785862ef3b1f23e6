//! Seals audit events after their commit, and copies each sealed event to the log.

use std::sync::Arc;
use std::time::Duration;

use crate::audit::Name;
use crate::db::{self, SEALED_AT_ONCE, Seal, Store};
use crate::keys::ServerSecrets;
use crate::secret::base64url;

/// How often each node looks for unsealed events: half of the documented delay.
const SEAL_EVERY: Duration = Duration::from_millis(500);

/// Seals new events twice a second. Never returns.
pub async fn run(store: Store, secrets: Arc<ServerSecrets>) {
    let mut ticks = tokio::time::interval(SEAL_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        ticks.tick().await;
        let sealed = seal_all(&store, &secrets).await;
        if let Err(error) = &sealed
            && !failing
        {
            // Once per outage, not twice a second.
            tracing::error!(event = "audit.unsealed", reason = "storage", severity = "high", %error);
        }
        failing = sealed.is_err();
    }
}

/// Seals every event that has no seal.
///
/// # Errors
/// [`db::Error`].
pub async fn seal_all(store: &Store, secrets: &Arc<ServerSecrets>) -> Result<(), db::Error> {
    while store.read(|tx| tx.has_unsealed_audit()).await? {
        let secrets = Arc::clone(secrets);
        let sealed = store.transaction(move |tx| tx.seal_audit(&secrets)).await?;
        sealed.iter().for_each(log);
        if i64::try_from(sealed.len()).is_ok_and(|count| count < SEALED_AT_ONCE) {
            break;
        }
    }
    Ok(())
}

/// Copies an event to the log, under the target `audit`.
fn log(seal: &Seal) {
    let Some(row) = &seal.row else { return };
    tracing::info!(
        target: "audit",
        event = row.name.as_str(),
        reason = row.reason.as_deref().unwrap_or_default(),
        severity = (row.name == Name::KeyRevoked.as_str()).then_some("critical"),
        actor = row.actor.as_str(),
        object = row.target.as_str(),
        at = %row.at,
        seq = seal.seq,
        seal = base64url(&seal.mac).as_str(),
    );
}
