//! Seals audit events after their commit, copies each sealed event to the log, and keeps the newest head of the
//! chain beside the KEK.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::audit::{Chronology, Name};
use crate::db::{self, SEALED_AT_ONCE, Seal, Store};
use crate::feed::{AuditHead, AuditMark};
use crate::keys::ServerSecrets;
use crate::secret::base64url;

/// How often each node looks for unsealed events: half of the documented delay.
const SEAL_EVERY: Duration = Duration::from_millis(500);

/// Seals the events of a database.
pub struct AuditSealer {
    store: Store,
    secrets: Arc<ServerSecrets>,
    mark: Option<AuditMark>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The number of the last head that was compared with the mark.
    seen: Option<i64>,
    /// The order of the events that this node sealed.
    order: Chronology,
    is_tampered: bool,
    is_unmarked: bool,
}

impl AuditSealer {
    /// Creates the sealer of a database, which the id of its first server secret identifies. `keks` are the
    /// configured KEKs.
    pub fn new(
        store: Store,
        secrets: Arc<ServerSecrets>,
        keks: &[String],
        database: Option<&str>,
    ) -> Self {
        Self {
            store,
            secrets,
            mark: database.and_then(|id| AuditMark::beside(keks, id)),
            state: Mutex::default(),
        }
    }

    /// Seals new events twice a second. Never returns.
    pub async fn run(&self) {
        let mut ticks = tokio::time::interval(SEAL_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            ticks.tick().await;
            let sealed = self.seal_all().await;
            if let Err(error) = &sealed
                && !failing
            {
                // Once per outage, not twice a second.
                tracing::error!(event = "audit.unsealed", reason = "storage", severity = "high", %error);
            }
            failing = sealed.is_err();
        }
    }

    /// Seals every event that has no seal, and moves the mark to the newest head.
    ///
    /// # Errors
    /// [`db::Error`].
    pub async fn seal_all(&self) -> Result<(), db::Error> {
        let read = self
            .store
            .read(|tx| Ok((tx.has_unsealed_audit()?, tx.last_seal()?)));
        let (mut is_waiting, head) = read.await?;
        if !is_waiting {
            return self.move_mark(head.as_ref()).await;
        }
        while is_waiting {
            let secrets = Arc::clone(&self.secrets);
            let sealed = self.store.transaction(move |tx| tx.seal_audit(&secrets));
            let sealed = sealed.await?;
            sealed.iter().for_each(log);
            self.report_backdated(&sealed);
            is_waiting = i64::try_from(sealed.len()).is_ok_and(|count| count == SEALED_AT_ONCE);
        }
        // Read afterwards, because another task or node may have sealed the events.
        let head = self.store.read(|tx| tx.last_seal()).await?;
        self.move_mark(head.as_ref()).await
    }

    /// Logs events that are dated before earlier ones.
    fn report_backdated(&self, sealed: &[Seal]) {
        let mut state = self.lock();
        for row in sealed.iter().filter_map(|seal| seal.row.as_ref()) {
            if state.order.is_late(row) {
                tracing::error!(event = "audit.tampered", reason = "backdated", severity = "critical", id = row.id, name = row.name, at = %row.at, "an event was sealed that is dated before earlier events; see `portcullis audit verify`");
            }
        }
    }

    /// Moves the mark to a head if the chain contains the head that the mark names. Otherwise the mark stays,
    /// as evidence of what was removed.
    async fn move_mark(&self, head: Option<&Seal>) -> Result<(), db::Error> {
        let Some(mark) = self.mark.clone() else {
            return Ok(());
        };
        let seq = head.map_or(0, |head| head.seq);
        if self.lock().seen == Some(seq) {
            return Ok(());
        }
        // The folder may be on a slow disk.
        let read = mark.clone();
        let Ok(marked) = tokio::task::spawn_blocking(move || read.read()).await else {
            return Ok(());
        };
        let is_in_chain = match marked {
            None => true,
            Some(marked) => {
                let is_in_chain = self
                    .store
                    .read(move |tx| tx.continues_head(marked.seq, &marked.seal, marked.at));
                is_in_chain.await?
            }
        };
        if !is_in_chain {
            self.lock().seen = Some(seq);
            if !std::mem::replace(&mut self.lock().is_tampered, true) {
                tracing::error!(
                    event = "audit.tampered",
                    reason = "mark",
                    severity = "critical",
                    "the audit log lacks events that this machine has seen; see `portcullis audit verify`"
                );
            }
            return Ok(());
        }
        let Some((head, row)) = head.and_then(|head| Some((head, head.row.as_ref()?))) else {
            return Ok(());
        };
        let head = AuditHead {
            seq: head.seq,
            seal: base64url(&head.mac),
            at: row.at,
        };
        let Ok(written) = tokio::task::spawn_blocking(move || mark.write(&head)).await else {
            return Ok(());
        };
        let mut state = self.lock();
        (state.seen, state.is_tampered) = (Some(seq), false);
        if let Err(error) = &written
            && !state.is_unmarked
        {
            tracing::info!(event = "audit.unmarked", reason = "file", %error, "the head of the audit log cannot be stored beside the KEK; keep the head that `portcullis audit verify` prints");
        }
        state.is_unmarked = written.is_err();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies an event to the log, under the target `audit`.
fn log(seal: &Seal) {
    let Some(row) = &seal.row else { return };
    tracing::info!(
        target: "audit",
        event = row.name.as_str(),
        reason = row.reason.as_deref(),
        severity = (row.name == Name::KeyRevoked.as_str()).then_some("critical"),
        actor = row.actor.as_str(),
        object = row.target.as_str(),
        at = %row.at,
        seq = seal.seq,
        seal = base64url(&seal.mac).as_str(),
    );
}
