//! The key manager: maintenance of the keys, their lease, and the key view of a node. It runs in every
//! node; there is no leader.

mod clocks;
mod emergency;
mod kek_file;
mod lease;
mod maintenance;
mod metrics;
mod plan;
mod rewrap;
mod snapshot;
mod table;
mod write;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use portcullis_verifier::Verifier;

use crate::audit::Actor;
use crate::config::limits::{KEY_VIEW_AGE, KEYS_PUBLISHED, WRITE_AGE, WRITE_EVERY};
use crate::db;
use crate::keys::rotation::state;
use crate::keys::{KeyError, KeyView, ServerSecrets, Use};
use crate::time::{Clock, Timestamp};

pub use crate::keys::rotation::Rotation;
pub use clocks::{ClockMonitor, ClockSample, Fault};
pub use kek_file::write_kek;
pub use lease::Reading;
pub use metrics::{KeyMetrics, KeySetMetrics};
pub use rewrap::{RemainingSecrets, Rewrapped};
pub use snapshot::Snapshot;
pub use table::{KeyManagerError, KeyTable};
pub use write::{Act, KeyWrite};

use lease::Lease;

/// The smallest change of the clock correction that is applied, in microseconds.
const CORRECTION_STEP: i64 = 250_000;

/// The keys of a node and their lease.
pub struct KeyManager {
    table: KeyTable,
    clock: Clock,
    view: ArcSwap<KeyView>,
    secrets: Arc<ServerSecrets>,
    verifier: Verifier,
    /// The number of values sealed under each KEK.
    keks: ArcSwap<BTreeMap<String, usize>>,
    /// The version of the table in the view.
    version: AtomicI64,
    /// Allows one refresh at a time, so that an older result never replaces a newer one.
    refreshing: tokio::sync::Mutex<()>,
    lease: Lease,
    clocks: Mutex<ClockMonitor>,
}

/// The start of a poll, before the database is queried.
#[derive(Clone, Copy, Debug)]
pub struct Poll {
    asked: Reading,
    node: Timestamp,
}

impl Poll {
    /// Reads the clocks of the node.
    pub fn started(clock: &Clock) -> Self {
        Self {
            asked: Reading::of(clock),
            node: clock.raw().now(),
        }
    }
}

impl KeyManager {
    /// Checks the stored keys, creates what a first start lacks, and builds the first view.
    ///
    /// # Errors
    /// [`KeyManagerError`]. Nothing is created if a value is sealed under a KEK that is not configured, or if
    /// the newest server secret does not open.
    pub async fn start(
        table: KeyTable,
        clock: Clock,
        verifier: impl FnOnce(&KeyView) -> Result<Verifier, String>,
    ) -> Result<Self, KeyManagerError> {
        let asked = Reading::of(&clock);
        let now = clock.now();
        let stored = table.read(now).await?;
        stored.check_keks(&table.keychain())?;
        if !stored.secrets.is_empty() {
            ServerSecrets::open(&stored.secrets, &table.keychain(), now)?;
        }
        table
            .begin(&Act {
                actor: Actor::System,
                now,
            })
            .await?;
        let rows = table.read(now).await?;
        let keychain = table.keychain();
        let view = KeyView::build(&rows.keys, &rows.blocked, &keychain, None, now)?;
        report(None, &view, now);
        let broken = |why| KeyManagerError::Keys(KeyError::Generate(why));
        Ok(Self {
            secrets: Arc::new(ServerSecrets::open(&rows.secrets, &keychain, now)?),
            verifier: verifier(&view).map_err(broken)?,
            view: ArcSwap::from_pointee(view),
            keks: ArcSwap::from_pointee(rows.keks()),
            version: AtomicI64::new(rows.version),
            refreshing: tokio::sync::Mutex::default(),
            lease: Lease::starting_at(asked),
            clocks: Mutex::default(),
            table,
            clock,
        })
    }

    /// Returns the key table.
    pub fn table(&self) -> &KeyTable {
        &self.table
    }

    /// Returns the current key view.
    pub fn view(&self) -> Arc<KeyView> {
        self.view.load_full()
    }

    /// Returns the server secrets.
    pub fn secrets(&self) -> Arc<ServerSecrets> {
        Arc::clone(&self.secrets)
    }

    /// Returns the verifier of access tokens of this issuer, for any audience.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Checks that the clocks of node and database agree, and that the database accepted a write of this
    /// node and confirmed its keys in the last 30 s.
    ///
    /// # Errors
    /// [`KeyError::NoLease`], [`KeyError::Clock`].
    pub async fn check(&self) -> Result<(), KeyError> {
        if !self.clocks().agree() {
            return Err(KeyError::Clock);
        }
        match self.lease.is_valid_soon(&self.clock).await {
            true => Ok(()),
            false => Err(KeyError::NoLease),
        }
    }

    /// Returns the key view for publication, at most a day after the database last confirmed it.
    ///
    /// # Errors
    /// [`KeyError::NoLease`].
    pub fn publishing(&self) -> Result<Arc<KeyView>, KeyError> {
        match self.lease.age(&self.clock) <= KEYS_PUBLISHED {
            true => Ok(self.view()),
            false => Err(KeyError::NoLease),
        }
    }

    /// Records that the database accepted a write of this node that started at `started`.
    pub fn record_write(&self, started: Reading) {
        self.lease.record_write(started);
    }

    /// Returns the age of the last write of this node; `None` before the first one.
    pub fn write_age(&self) -> Option<Duration> {
        self.lease.write_age(&self.clock)
    }

    /// Returns whether it is time to prove again that this node can write.
    pub fn is_write_due(&self) -> bool {
        self.write_age().is_none_or(|age| age >= WRITE_EVERY)
    }

    /// Returns whether the last write of this node is recent enough for readiness.
    pub fn can_write(&self) -> bool {
        self.write_age().is_some_and(|age| age <= WRITE_AGE)
    }

    /// Returns whether the clocks have agreed for a few seconds, for readiness.
    pub fn clock_ready(&self) -> bool {
        self.clocks().ready(self.clock.uptime())
    }

    /// Returns whether the last successful poll and the last write of this node are recent enough to sign
    /// tokens.
    pub fn lease_holds(&self) -> bool {
        self.lease.is_valid(&self.clock)
    }

    /// Returns whether every ring has a signing key.
    pub fn can_sign(&self) -> bool {
        self.view.load().can_sign(self.table.rings())
    }

    /// Returns whether the clocks have agreed long enough to change keys and remove rows.
    pub fn is_stable(&self) -> bool {
        self.clocks().is_stable(self.clock.uptime())
    }

    /// Applies a poll: compares the clocks; refreshes the view if the table changed, if a key changes its
    /// state now, or if the view is a minute old; then renews the lease.
    ///
    /// # Errors
    /// [`KeyManagerError`]; then the lease is not renewed.
    pub async fn follow(&self, poll: Poll, head: &db::Head) -> Result<(), KeyManagerError> {
        if let Some(measured) = head.database {
            // An embedded database has no clock of its own.
            self.record(ClockSample {
                node: self.clock.raw().halfway(poll.node),
                database: self.clock.database(measured),
                beat: head.beat,
                up: self.clock.uptime(),
            });
        }
        let (view, now) = (self.view.load_full(), self.clock.now());
        let changed = head.keys_version != self.version.load(Ordering::SeqCst);
        let due = view.next_change().is_some_and(|at| now >= at);
        // After the clock went back, the view is from the future.
        let old = now.since(view.built_at()) >= KEY_VIEW_AGE || now < view.built_at();
        if changed || due || old {
            self.refresh().await?;
        }
        self.lease.renew(poll.asked);
        Ok(())
    }

    /// Records a sample of the clocks: warns, corrects the clock, or stops this node from issuing.
    pub fn record(&self, sample: ClockSample) {
        let mut clocks = self.clocks();
        match clocks.record(sample) {
            Some((fault, true)) => {
                tracing::error!(event = "node.degraded", severity = "high", reason = fault.reason(), node_time = %sample.node, database = %sample.database, "this node issues nothing until its clock and the database's agree");
            }
            Some((fault, false)) => {
                tracing::warn!(
                    event = "node.recovered",
                    reason = fault.reason(),
                    "the clocks agree again; key maintenance and clean-up pause for an hour"
                );
            }
            None => {}
        }
        if let Some(off) = clocks.warns() {
            tracing::warn!(
                event = "node.skew",
                reason = "clock",
                ?off,
                "this node's clock is off"
            );
        }
        let correction = clocks.correction();
        drop(clocks);
        let made = self.clock.now().micros() - self.clock.raw().now().micros();
        if (correction - made).abs() >= CORRECTION_STEP {
            self.clock.correct(correction);
        }
    }

    /// Reads the table and replaces the view, the server secrets and the keys of the verifier.
    ///
    /// # Errors
    /// [`KeyManagerError`]; then nothing is replaced.
    pub async fn refresh(&self) -> Result<(), KeyManagerError> {
        let _alone = self.refreshing.lock().await;
        let now = self.clock.now();
        let rows = self.table.read(now).await?;
        let (last, keychain) = (self.view.load_full(), self.table.keychain());
        let view = KeyView::build(&rows.keys, &rows.blocked, &keychain, Some(&last), now)?;
        if let Err(error) = self.secrets.replace(&rows.secrets, &keychain, now) {
            tracing::error!(event = "key.corrupt", reason = "unusable", severity = "critical", %error, "the server secrets are not replaced");
        }
        if let Err(error) = self.verifier.replace_keys(&view.published(Use::Token).set) {
            tracing::error!(event = "key.corrupt", reason = "unusable", severity = "critical", %error, "no key is left to verify with");
        }
        report(Some(&last), &view, now);
        self.view.store(Arc::new(view));
        self.keks.store(Arc::new(rows.keks()));
        self.version.store(rows.version, Ordering::SeqCst);
        Ok(())
    }

    /// Creates missing next keys and destroys private halves that are no longer needed, if the clocks are
    /// stable.
    ///
    /// # Errors
    /// [`KeyManagerError`]; another node, or the next round, does it.
    pub async fn run_maintenance(&self) -> Result<(), KeyManagerError> {
        if !self.is_stable() {
            return Ok(());
        }
        let now = self.clock.now();
        if self
            .table
            .maintain(&Act {
                actor: Actor::System,
                now,
            })
            .await?
        {
            self.refresh().await?;
        }
        Ok(())
    }

    fn clocks(&self) -> MutexGuard<'_, ClockMonitor> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs the differences from the last view.
fn report(last: Option<&KeyView>, view: &KeyView, now: Timestamp) {
    for (kid, (_, error)) in view.corrupt() {
        if last.is_none_or(|last| !last.corrupt().contains_key(kid)) {
            tracing::error!(
                event = "key.corrupt",
                reason = "unusable",
                severity = "critical",
                kid,
                error,
                "a signing key is not used"
            );
        }
    }
    let Some(last) = last else { return };
    for key in view.rows() {
        let ring = key.ring();
        if view.signer(ring) == Some(&key.kid) && last.signer(ring) != Some(&key.kid) {
            tracing::info!(event = "key.rotated", kid = key.kid, ring = %ring, generation = key.generation);
        }
        let before = last.rows().find(|old| old.kid == key.kid);
        let before = before.map(|old| state(old, last.built_at()));
        let after = state(key, now);
        if before != Some(after) {
            tracing::info!(event = "key.state", kid = key.kid, ring = %ring, generation = key.generation, state = after.name());
        }
    }
    for removed in last.rows() {
        if view.rows().all(|key| key.kid != removed.kid) {
            tracing::info!(event = "key.state", kid = removed.kid, ring = %removed.ring(), generation = removed.generation, state = "revoked");
        }
    }
}

impl From<KeyManagerError> for db::Error {
    fn from(error: KeyManagerError) -> Self {
        match error {
            KeyManagerError::Database(error) => error,
            other => Self::Statement(other.to_string()),
        }
    }
}
