//! What every node does for the feed: one poll of the database for keys, clients and records; numbers
//! for what waits; a heartbeat each second.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::{App, StartError};
use crate::config::limits::{
    BEAT_AGE, HEARTBEAT_EVERY, KEEP_EVERY, POLL_EVERY, POLL_TIME, RESOURCE_ACCESS_CAP,
};
use crate::db::{self, Head};
use crate::feed::Taken;
use crate::key_manager::{KeyManagerError, Poll, Reading};
use crate::oauth::ledger::StorageError;

/// Heartbeats between two looks for records that have expired.
const PRUNE_EVERY: u32 = 30;

/// What the tasks of a node tell each other.
pub(super) struct Signals {
    /// Records wait for numbers, or the beat is old.
    waiting: tokio::sync::Notify,
    /// Numbers were given.
    numbered: tokio::sync::Notify,
    /// This node has read new records, so its mark is behind.
    pub(super) moved: tokio::sync::Notify,
    /// The version of clients and resources that was seen last.
    config_version: AtomicI64,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            waiting: tokio::sync::Notify::default(),
            numbered: tokio::sync::Notify::default(),
            moved: tokio::sync::Notify::default(),
            // None that a database has.
            config_version: AtomicI64::new(-1),
        }
    }
}

impl App {
    /// Follows the database until this node ends: keys, clients, records.
    pub async fn follow(&self) {
        tokio::join!(
            self.poll_for_ever(),
            self.number(),
            self.beat(),
            self.keep_mark()
        );
    }

    /// One poll: takes what has changed, and tells it on.
    ///
    /// # Errors
    /// [`KeyManagerError`]; then the lease on the keys runs on, and what this node says of the feed grows old.
    pub async fn poll(&self) -> Result<(), KeyManagerError> {
        let _turn = self.feed.turn().await;
        if self.key_manager.is_write_due() {
            // A database that went back must be noticed before a write of this node moves its beat on.
            let head = self.read_head().await?;
            self.take(&head).await?;
        }
        // Whatever comes of it, news is read: a database that takes no writes still has some.
        let written = self.write_if_due().await;
        let begun = Poll::begun(&self.clock);
        let head = self.read_head().await?;
        if self.is_due(&head) {
            self.signals.waiting.notify_one();
        }
        self.follow_registrations(head.config_version).await?;
        // Neither stands in the other's way.
        let keys = self.key_manager.follow(begun, &head).await;
        self.take(&head).await?;
        self.feed.publish(&self.keys())?;
        keys?;
        Ok(written?)
    }

    async fn read_head(&self) -> Result<Head, db::Error> {
        let read = self.store.read(|tx| tx.read_head());
        let read = tokio::time::timeout(POLL_TIME, read).await;
        read.map_err(|_| db::Error::Unavailable("a query timed out".to_owned()))?
    }

    /// Takes the records up to `head`, or notes that the database went back.
    async fn take(&self, head: &Head) -> Result<(), KeyManagerError> {
        match self.feed.take(head, &self.store).await? {
            Taken::Behind => self.note_restored(head.epoch, "behind").await?,
            Taken::Records => self.signals.moved.notify_one(),
            Taken::Beat => {}
        }
        Ok(())
    }

    /// Proves every few seconds that the database takes writes of this node, by a sequencer round: it
    /// moves the beat. SQLite writes nothing for an update that changes nothing, so that would prove
    /// nothing. A node that numbers anyway writes nothing more.
    async fn write_if_due(&self) -> Result<(), db::Error> {
        if !self.key_manager.is_write_due() {
            return Ok(());
        }
        let written = tokio::time::timeout(POLL_TIME, self.number_waiting()).await;
        written.map_err(|_| db::Error::Unavailable("a write timed out".to_owned()))?
    }

    /// Numbers what waits, until nothing does. Any node may, and the command line.
    ///
    /// # Errors
    /// [`db::Error`]; another node, or the next round, does it.
    pub async fn number_waiting(&self) -> Result<(), db::Error> {
        let (clock, begun) = (self.clock.clone(), Reading::of(&self.clock));
        number(&self.store, clock).await?;
        self.key_manager.record_write(begun);
        self.signals.numbered.notify_one();
        Ok(())
    }

    /// Records evidence that the database was restored from an older copy, and stops issuing at this
    /// node before it returns.
    ///
    /// # Errors
    /// [`db::Error`].
    pub async fn proven_restored(&self, reason: &'static str) -> Result<(), db::Error> {
        let here = self.feed.place().map_or(0, |here| here.epoch);
        self.note_restored(i64::try_from(here).unwrap_or(i64::MAX), reason)
            .await?;
        // A poll that fails changes nothing; the next one reads it as every other node does.
        let _ = self.poll().await;
        Ok(())
    }

    /// Writes down, and says, that the database went back in time. Until `recover` nothing is issued.
    pub(super) async fn note_restored(
        &self,
        epoch: i64,
        reason: &'static str,
    ) -> Result<(), db::Error> {
        let now = self.clock.now();
        let first = self
            .store
            .transaction(move |tx| tx.put_restored(epoch, now));
        if first.await? {
            tracing::error!(
                event = "db.restored",
                severity = "critical",
                reason,
                "the database was restored from an older copy; nothing is issued until `portcullis recover`"
            );
        }
        Ok(())
    }

    fn is_due(&self, head: &Head) -> bool {
        let now = head
            .database
            .map_or_else(|| self.clock.now(), |at| self.clock.database(at));
        head.waiting || now.since(head.beat) >= BEAT_AGE
    }

    /// Forgets clients and resources when some of them changed, and says whose streams may go on.
    async fn follow_registrations(&self, version: i64) -> Result<(), db::Error> {
        if self.signals.config_version.load(Ordering::SeqCst) == version {
            return Ok(());
        }
        self.registrations.forget();
        // With no stream open, too: one that is being opened listens, and does not count yet.
        let subscribers = self.store.read(|tx| tx.list_subscribers()).await?;
        self.feed.streams.keep(subscribers.into_iter().collect());
        // Only now: what failed is tried again with the next poll.
        self.signals.config_version.store(version, Ordering::SeqCst);
        Ok(())
    }

    async fn poll_for_ever(&self) {
        let mut turn = tokio::time::interval(POLL_EVERY);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tokio::select! {
                _ = turn.tick() => {}
                () = self.signals.numbered.notified() => {}
            }
            let polled = self.poll().await;
            match &polled {
                Err(error) if !failing => {
                    tracing::error!(event = "node.degraded", severity = "high", reason = "poll", %error, "the database does not answer or takes no writes; tokens are signed for 30 s more, and the feed grows old");
                }
                Ok(()) if failing => tracing::info!(event = "node.recovered", reason = "poll"),
                _ => {}
            }
            failing = polled.is_err();
        }
    }

    /// Gives numbers until this node ends. A round that fails is tried again with the next poll.
    async fn number(&self) {
        let mut failing = false;
        loop {
            tokio::select! {
                () = self.signals.waiting.notified() => {}
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

    /// What is due each second: a heartbeat and the acknowledgements.
    async fn beat(&self) {
        let mut turn = tokio::time::interval(HEARTBEAT_EVERY);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut beats = 0_u32;
        loop {
            turn.tick().await;
            if let Err(error) = self.feed.beat(&self.keys()) {
                tracing::error!(event = "key.unusable", severity = "high", reason = "feed", %error);
            }
            self.write_acks().await;
            beats = beats.wrapping_add(1);
            if beats.is_multiple_of(PRUNE_EVERY) {
                self.feed.prune();
            }
        }
    }

    /// Writes down what subscribers have acknowledged.
    pub async fn write_acks(&self) {
        let acks = self.feed.acks.to_write();
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

    /// Says how long access tokens of this node may live, and looks whether the database went back while
    /// no node was there.
    pub(super) async fn begin_feed(&self) -> Result<(), StartError> {
        self.require_max_token_ttl().await?;
        let head = self.store.read(|tx| tx.read_head()).await?;
        self.check_restored(&head).await?;
        self.poll().await?;
        Ok(())
    }

    /// Keeps saying it, until this node ends.
    pub async fn publish_max_token_ttl(&self) {
        loop {
            tokio::time::sleep(KEEP_EVERY).await;
            if let Err(error) = self.require_max_token_ttl().await {
                tracing::warn!(event = "storage.error", reason = "longest_life", %error);
            }
        }
    }

    async fn require_max_token_ttl(&self) -> Result<(), db::Error> {
        let (own, now) = (self.config.tokens.access.0, self.clock.now());
        let need = move |tx: &mut db::Transaction<'_>| {
            let asked = tx.longest_resource_life()?.unwrap_or(Duration::ZERO);
            tx.require_max_token_ttl(own.max(asked).min(RESOURCE_ACCESS_CAP), now)
        };
        self.store.transaction(need).await
    }
}

/// Numbers what waits, until nothing does.
///
/// # Errors
/// [`db::Error`].
pub async fn number(store: &db::Store, clock: crate::time::Clock) -> Result<(), StorageError> {
    loop {
        let clock = clock.clone();
        if !store
            .transaction(move |tx| tx.number_revocations(&clock))
            .await?
        {
            return Ok(());
        }
    }
}
