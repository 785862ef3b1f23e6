//! Background work for the revocation feed: polls of the database, the sequencer, a heartbeat each
//! second, and the high-water mark.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior};

use crate::config::limits::{
    BEAT_AGE, HEARTBEAT_EVERY, KEEP_EVERY, POLL_EVERY, POLL_TIME, POLLS_UNFOLLOWED,
    RESOURCE_ACCESS_CAP,
};
use crate::db::{self, Head, Registrations, Store};
use crate::feed::{Feed, RestoreDetector, Taken, number_revocations};
use crate::id::GrantId;
use crate::key_manager::{KeyManager, KeyManagerError, Poll, Reading};
use crate::time::Clock;

/// Heartbeats between two removals of expired records.
const PRUNE_EVERY: u32 = 30;

/// Keeps a node up to date with its database: keys, clients and revocation records.
pub struct FeedTask {
    store: Store,
    clock: Clock,
    feed: Arc<Feed>,
    key_manager: Arc<KeyManager>,
    registrations: Arc<Registrations>,
    restores: RestoreDetector,
    /// Lifetime of access tokens by configuration.
    access_ttl: Duration,
    /// Records wait for numbers, or the database's heartbeat is old.
    number_now: Notify,
    /// Records were numbered.
    numbered: Notify,
    /// New records were read, so the high-water mark is behind.
    advanced: Notify,
    /// The last seen version of clients and resources.
    config_version: AtomicI64,
}

/// What a [`FeedTask`] works with.
pub struct Parts {
    /// The database.
    pub store: Store,
    /// The clock of the node.
    pub clock: Clock,
    /// The feed that is kept up to date.
    pub feed: Arc<Feed>,
    /// The key manager that is kept up to date.
    pub key_manager: Arc<KeyManager>,
    /// The cache that is emptied when a registration changes.
    pub registrations: Arc<Registrations>,
    /// Detection of a restored database.
    pub restores: RestoreDetector,
    /// Lifetime of access tokens by configuration.
    pub access_ttl: Duration,
}

impl FeedTask {
    /// Publishes the longest token lifetime of this node, looks for evidence of a restored database,
    /// and polls for the first time.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn start(parts: Parts) -> Result<Self, KeyManagerError> {
        let Parts {
            store,
            clock,
            feed,
            key_manager,
            registrations,
            restores,
            access_ttl,
        } = parts;
        let task = Self {
            store,
            clock,
            feed,
            key_manager,
            registrations,
            restores,
            access_ttl,
            number_now: Notify::default(),
            numbered: Notify::default(),
            advanced: Notify::default(),
            // No database has this version.
            config_version: AtomicI64::new(-1),
        };
        task.require_max_token_ttl().await?;
        let head = task.store.read(|tx| tx.read_head()).await?;
        task.restores.check(&head).await?;
        task.poll().await?;
        Ok(task)
    }

    /// Follows the database. Never returns.
    pub async fn run(&self) {
        tokio::join!(
            self.run_polls(),
            self.run_sequencer(),
            self.run_heartbeats(),
            self.run_mark()
        );
    }

    /// Publishes the longest token lifetime of this node every minute. Never returns.
    pub async fn publish_max_token_ttl(&self) {
        loop {
            tokio::time::sleep(KEEP_EVERY).await;
            if let Err(error) = self.require_max_token_ttl().await {
                tracing::warn!(event = "storage.error", reason = "longest_life", %error);
            }
        }
    }

    /// Polls the database once and applies what changed.
    ///
    /// # Errors
    /// [`KeyManagerError`]; then the lease on the keys is not renewed and the feed becomes stale.
    pub async fn poll(&self) -> Result<(), KeyManagerError> {
        let _turn = self.feed.turn().await;
        if self.key_manager.is_write_due() {
            // A restored database must be detected before a write of this node advances its heartbeat.
            let head = self.read_head().await?;
            self.take(&head).await?;
        }
        // A failed write does not stop the poll: a database that accepts no writes can still be read.
        let written = self.write_if_due().await;
        let started = Poll::started(&self.clock);
        let head = self.read_head().await?;
        if self.is_sequencer_due(&head) {
            self.number_now.notify_one();
        }
        self.follow_registrations(head.config_version).await?;
        // A failure of the keys does not stop the feed.
        let keys = self.key_manager.follow(started, &head).await;
        self.take(&head).await?;
        self.feed.publish(&self.key_manager.view())?;
        keys?;
        Ok(written?)
    }

    /// Numbers records until none is left without a number.
    ///
    /// # Errors
    /// [`db::Error`]; another node or the next round does it.
    pub async fn number_waiting(&self) -> Result<(), db::Error> {
        let started = Reading::of(&self.clock);
        number_revocations(&self.store, &self.clock).await?;
        self.key_manager.record_write(started);
        self.numbered.notify_one();
        Ok(())
    }

    /// Numbers waiting records and moves the high-water mark up to them: the last step before the
    /// node exits.
    ///
    /// # Errors
    /// [`KeyManagerError`]; then the mark is at the position of the last successful poll.
    pub async fn settle(&self) -> Result<(), KeyManagerError> {
        let settle = async {
            self.number_waiting().await?;
            self.poll().await
        };
        let settled = settle.await;
        if let Some(position) = self.feed.markable_position() {
            self.restores.write_mark(position).await;
        }
        settled
    }

    /// Records evidence that the database was restored from an older copy. This node has stopped
    /// issuing tokens when the function returns.
    ///
    /// # Errors
    /// [`db::Error`].
    pub async fn note_restored(&self, reason: &'static str) -> Result<(), db::Error> {
        let epoch = self.feed.position().map_or(0, |here| here.epoch);
        let epoch = i64::try_from(epoch).unwrap_or(i64::MAX);
        self.restores.note(epoch, reason).await?;
        // If this poll fails, the next one reads the flag, as on every other node.
        let _ = self.poll().await;
        Ok(())
    }

    /// Records evidence that the database was restored if it lacks a grant that was created while no
    /// server ran on it. The caller took the id from a value that this server had signed or
    /// authenticated with a MAC. Returns whether it recorded something.
    ///
    /// A missing grant alone proves nothing, because clean-up removes inactive grants.
    ///
    /// # Errors
    /// [`db::Error`].
    pub async fn note_lost_grant(&self, grant: &GrantId) -> Result<bool, db::Error> {
        let Some(here) = self.feed.position() else {
            return Ok(false);
        };
        let is_lost = self.restores.is_lost(grant, here.epoch).await?;
        if is_lost {
            self.note_restored("grant").await?;
        }
        Ok(is_lost)
    }

    /// Stores new acknowledgements of subscribers in the database.
    pub async fn write_acks(&self) {
        let acks = self.feed.acks.take_unwritten();
        if acks.is_empty() {
            return;
        }
        let written = acks.clone();
        let outcome = self.store.transaction(move |tx| {
            for ack in &written {
                tx.put_ack(ack)?;
            }
            Ok(())
        });
        if let Err(error) = outcome.await {
            self.feed.acks.put_back(&acks);
            tracing::warn!(event = "storage.error", reason = "acks", %error);
        }
    }

    async fn read_head(&self) -> Result<Head, db::Error> {
        let read = self.store.read(|tx| tx.read_head());
        let read = tokio::time::timeout(POLL_TIME, read).await;
        read.map_err(|_| db::Error::Unavailable("a query timed out".to_owned()))?
    }

    /// Reads the records up to `head`, or records that the database is behind this node.
    async fn take(&self, head: &Head) -> Result<(), KeyManagerError> {
        match self.feed.take(head, &self.store).await? {
            Taken::Behind => self.restores.note(head.epoch, "behind").await?,
            Taken::Records => self.advanced.notify_one(),
            Taken::Beat => {}
        }
        Ok(())
    }

    /// Proves every few seconds that the database accepts writes of this node, by a sequencer round,
    /// which advances the heartbeat. An update that changes nothing would prove nothing, because
    /// SQLite does not write it. A node that numbers records anyway needs no further write.
    async fn write_if_due(&self) -> Result<(), db::Error> {
        if !self.key_manager.is_write_due() {
            return Ok(());
        }
        let written = tokio::time::timeout(POLL_TIME, self.number_waiting()).await;
        written.map_err(|_| db::Error::Unavailable("a write timed out".to_owned()))?
    }

    fn is_sequencer_due(&self, head: &Head) -> bool {
        let now = head
            .database
            .map_or_else(|| self.clock.now(), |at| self.clock.database(at));
        head.waiting || now.since(head.beat) >= BEAT_AGE
    }

    /// Empties the cache of registrations after a change, and determines which streams may continue.
    async fn follow_registrations(&self, version: i64) -> Result<(), db::Error> {
        if self.config_version.load(Ordering::SeqCst) == version {
            return Ok(());
        }
        self.registrations.clear();
        // Also without open streams: one that is being opened already listens and is not counted yet.
        let subscribers = self.store.read(|tx| tx.list_subscribers()).await?;
        self.feed.streams.keep(subscribers.into_iter().collect());
        // Last, so that the next poll retries what failed.
        self.config_version.store(version, Ordering::SeqCst);
        Ok(())
    }

    async fn run_polls(&self) {
        let mut turn = interval(POLL_EVERY);
        let (mut failing, mut ticks) = (false, 0_u32);
        loop {
            tokio::select! {
                _ = turn.tick() => {
                    ticks = ticks.wrapping_add(1);
                    // Without a service that waits, a change may be read later: this node itself asks the
                    // database before it reports a token as active.
                    if !self.feed.is_followed() && !ticks.is_multiple_of(POLLS_UNFOLLOWED) {
                        continue;
                    }
                }
                () = self.numbered.notified() => {}
            }
            let polled = self.poll().await;
            match &polled {
                Err(error) if !failing => {
                    tracing::error!(event = "node.degraded", severity = "high", reason = "poll", %error, "the database does not respond or accepts no writes; tokens are signed for 30 s more, and the feed becomes stale");
                }
                Ok(()) if failing => tracing::info!(event = "node.recovered", reason = "poll"),
                _ => {}
            }
            failing = polled.is_err();
        }
    }

    /// Numbers records when some wait. The next poll retries a failed round.
    async fn run_sequencer(&self) {
        let mut failing = false;
        loop {
            tokio::select! {
                () = self.number_now.notified() => {}
                () = self.store.revoked() => {}
            }
            let numbered = self.number_waiting().await;
            if let Err(error) = &numbered
                && !failing
            {
                tracing::warn!(event = "storage.error", reason = "sequencer", severity = "high", %error);
            }
            failing = numbered.is_err();
        }
    }

    async fn run_heartbeats(&self) {
        let mut turn = interval(HEARTBEAT_EVERY);
        let mut beats = 0_u32;
        loop {
            turn.tick().await;
            if let Err(error) = self.feed.beat(&self.key_manager.view()) {
                tracing::error!(event = "key.unusable", severity = "high", reason = "feed", %error);
            }
            self.write_acks().await;
            beats = beats.wrapping_add(1);
            if beats.is_multiple_of(PRUNE_EVERY) {
                self.feed.prune();
            }
        }
    }

    /// Moves the high-water mark as soon as records were numbered, and each second.
    async fn run_mark(&self) {
        let mut turn = interval(HEARTBEAT_EVERY);
        loop {
            tokio::select! {
                _ = turn.tick() => {}
                () = self.advanced.notified() => {}
            }
            // All nodes share the recorded downtimes: a node whose own clock is wrong must not trim them.
            if self.key_manager.clock_ready() {
                self.restores.trim_downtimes().await;
            }
            if let Some(position) = self.feed.markable_position() {
                self.restores.move_mark(position).await;
            }
        }
    }

    async fn require_max_token_ttl(&self) -> Result<(), db::Error> {
        let (own, now) = (self.access_ttl, self.clock.now());
        let require = move |tx: &mut db::Transaction<'_>| {
            let resources = tx.max_resource_access_ttl()?.unwrap_or(Duration::ZERO);
            tx.require_max_token_ttl(own.max(resources).min(RESOURCE_ACCESS_CAP), now)
        };
        self.store.transaction(require).await
    }
}

fn interval(period: Duration) -> Interval {
    let mut turn = tokio::time::interval(period);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    turn
}
