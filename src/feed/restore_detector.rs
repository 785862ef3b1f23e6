//! Detects a database that was restored from an older copy: by high-water marks beside the KEK, and by
//! grants that the database lacks.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::feed_position::FeedPosition;
use super::high_water_mark::{HighWaterMark, kek_since};
use crate::config::limits::{CLOCK_SKEW, HEARTBEAT_EVERY};
use crate::db::{self, Head, Store};
use crate::id::GrantId;
use crate::time::{Clock, Timestamp};

/// A KEK file that is older than this was created for an earlier database.
const FIRST_START: Duration = Duration::from_secs(3_600);
/// A mark that is further behind its database was not written by the last server on it.
const MARK_BEHIND: Duration = Duration::from_secs(60);
/// How long downtimes are kept: no grant has a longer lifetime.
const DOWNTIME_KEPT: Duration = Duration::from_secs(400 * 86_400);

/// Collects evidence that the database of a node was restored.
pub struct RestoreDetector {
    store: Store,
    clock: Clock,
    keks: Vec<String>,
    mark: Option<HighWaterMark>,
    downtimes: Downtimes,
    mark_state: Mutex<MarkState>,
}

/// Times in which no server ran on this database, as far as this node knows.
#[derive(Default)]
struct Downtimes(Mutex<Vec<(Timestamp, Timestamp)>>);

#[derive(Default)]
struct MarkState {
    /// Epoch and number of the last write.
    last: Option<(u64, u64)>,
    failing: bool,
}

impl Downtimes {
    fn replace(&self, downtimes: Vec<(Timestamp, Timestamp)>) {
        *self.lock() = downtimes;
    }

    /// Returns whether an instant lies within a downtime. Ids carry milliseconds, so both ends are
    /// excluded.
    fn include(&self, at: Timestamp) -> bool {
        let at = at.millis();
        self.lock()
            .iter()
            .any(|(from, to)| (from.millis() + 1..to.millis()).contains(&at))
    }

    /// Returns whether a downtime ends after `now`, so that a clock was ahead when it was recorded.
    fn end_after(&self, now: Timestamp) -> bool {
        self.lock().iter().any(|(_, to)| *to > now)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Timestamp, Timestamp)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RestoreDetector {
    /// Creates the detector of a database, which the id of its first server secret identifies. `keks`
    /// are the configured KEKs.
    pub fn new(store: Store, clock: Clock, keks: &[String], database: Option<&str>) -> Self {
        Self {
            store,
            clock,
            keks: keks.to_vec(),
            mark: database.and_then(|id| HighWaterMark::beside(keks, id)),
            downtimes: Downtimes::default(),
            mark_state: Mutex::default(),
        }
    }

    /// Warns that the database is empty if this machine has the KEK or the mark of another one: the database
    /// was deleted, or `database.url` names a different one.
    pub fn warn_of_empty_database(&self) {
        let kek = kek_since(&self.keks);
        let kek = kek.filter(|since| self.clock.now().since(*since) >= FIRST_START);
        match (
            self.mark.as_ref().and_then(HighWaterMark::newest_of_others),
            kek,
        ) {
            (Some(last), _) => {
                tracing::warn!(event = "db.unfamiliar", reason = "empty_beside_mark", last = %last, "the database is empty, but a mark beside the KEK belongs to another database; if that database was lost, stop this server and restore a backup (`portcullis restore`)");
            }
            (None, Some(since)) => {
                tracing::warn!(event = "db.unfamiliar", reason = "empty_beside_kek", kek_since = %since, "the database is empty, but the KEK is older; if there was a database before, stop this server and restore a backup (`portcullis restore`)");
            }
            (None, None) => {}
        }
    }

    /// Compares the database with its mark at start, before the node issues anything, and records
    /// since when no server ran on the database.
    ///
    /// # Errors
    /// [`db::Error`].
    pub async fn check(&self, head: &Head) -> Result<(), db::Error> {
        let database = FeedPosition::of(head);
        let marked = self.mark.as_ref().and_then(HighWaterMark::read);
        if marked.is_some_and(|marked| marked.is_ahead_of(&database)) {
            self.note(head.epoch, "mark").await?;
        }
        // With several nodes on several machines each has a mark, and the starting node may have been
        // stopped for a long time.
        if self.store.is_sqlite()
            && self.mark.is_some()
            && database.beat > Timestamp::from_micros(0)
        {
            warn_of_mark(marked, database.beat);
        }
        self.record_downtime(head).await
    }

    /// Records for every node that the database was restored from an older copy. Nothing is issued
    /// until `recover`.
    ///
    /// # Errors
    /// [`db::Error`].
    pub async fn note(&self, epoch: i64, reason: &'static str) -> Result<(), db::Error> {
        let now = self.clock.now();
        let is_first = self
            .store
            .transaction(move |tx| tx.put_restored(epoch, now));
        if is_first.await? {
            tracing::error!(
                event = "db.restored",
                severity = "critical",
                reason,
                "the database was restored from an older copy; nothing is issued until `portcullis recover`"
            );
        }
        Ok(())
    }

    /// Returns whether the database lacks a grant that was created in this feed epoch while no server
    /// ran on the database.
    ///
    /// # Errors
    /// [`db::Error`].
    pub async fn is_lost(&self, grant: &GrantId, epoch: u64) -> Result<bool, db::Error> {
        let Some(created_at) = grant.made_at() else {
            return Ok(false);
        };
        // A recovery revoked all older grants. An epoch is the second of its recovery.
        if created_at.secs() <= epoch || !self.downtimes.include(created_at) {
            return Ok(false);
        }
        let id = grant.clone();
        Ok(!self.store.read(move |tx| tx.has_grant(&id)).await?)
    }

    /// Removes the present from the recorded downtimes after a clock that was ahead was corrected.
    pub async fn trim_downtimes(&self) {
        let now = self.clock.now();
        if !self.downtimes.end_after(now) {
            return;
        }
        let trimmed = self.store.transaction(move |tx| {
            tx.trim_downtimes(now)?;
            tx.list_downtimes()
        });
        match trimmed.await {
            Ok(downtimes) => self.downtimes.replace(downtimes),
            // The next call tries again.
            Err(error) => tracing::warn!(event = "storage.error", reason = "downtimes", %error),
        }
    }

    /// Moves the mark to a position. A new heartbeat alone is not flushed to disk.
    pub async fn move_mark(&self, position: FeedPosition) {
        let Some(mark) = self.mark.clone() else {
            return;
        };
        let (is_new, failing) = {
            let reached = (position.epoch, position.seq);
            let mut state = self.lock_mark_state();
            let is_new = state.last.replace(reached) != Some(reached);
            (is_new, state.failing)
        };
        let failing = write_mark(mark, position, is_new, failing).await;
        self.lock_mark_state().failing = failing;
    }

    /// Writes and flushes the mark before the node exits.
    pub async fn write_mark(&self, position: FeedPosition) {
        if let Some(mark) = self.mark.clone() {
            write_mark(mark, position, true, false).await;
        }
    }

    fn lock_mark_state(&self) -> MutexGuard<'_, MarkState> {
        self.mark_state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that no server has run since a server last wrote to the database. On PostgreSQL other nodes
    /// whose clocks differ may be running, so only a longer downtime counts.
    async fn record_downtime(&self, head: &Head) -> Result<(), db::Error> {
        let now = head
            .database
            .map_or_else(|| self.clock.now(), |at| self.clock.database(at));
        let slack = match self.store.is_sqlite() {
            true => Duration::ZERO,
            false => CLOCK_SKEW,
        };
        let downtimes = self.store.transaction(move |tx| {
            tx.trim_downtimes(now)?;
            if let Some(alive) = tx.last_alive()?
                && alive + slack < now - slack
            {
                tx.put_downtime((alive + slack, now - slack), now - DOWNTIME_KEPT)?;
            }
            tx.list_downtimes()
        });
        self.downtimes.replace(downtimes.await?);
        Ok(())
    }
}

fn warn_of_mark(marked: Option<FeedPosition>, beat: Timestamp) {
    match marked {
        None => {
            tracing::warn!(
                event = "db.unfamiliar",
                reason = "no_mark",
                "there is no mark of this database beside the KEK; if the database was restored from a copy, run `portcullis recover`"
            );
        }
        Some(marked) if beat.since(marked.beat) > MARK_BEHIND => {
            tracing::warn!(event = "db.unfamiliar", reason = "old_mark", mark = %marked.beat, database = %beat, "the mark of this database beside the KEK is older than the database; if the database was restored from a copy, run `portcullis recover`");
        }
        Some(_) => {}
    }
}

/// Moves the mark of a database to its present position, for a command that changed the database.
///
/// # Errors
/// [`db::Error`]. A mark that cannot be written is skipped; `serve` reports that.
pub async fn mark_database(keks: &[String], store: &Store) -> Result<(), db::Error> {
    let (head, mark) = read_with_mark(keks, store).await?;
    if let Some(mark) = mark.filter(|_| head.restored_at.is_none()) {
        write_mark(mark, FeedPosition::of(&head), true, true).await;
    }
    Ok(())
}

/// Returns whether another server moves the mark of this database: the mark is ahead of the database
/// and recent.
///
/// # Errors
/// [`db::Error`].
pub async fn is_marked_by_another(
    keks: &[String],
    store: &Store,
    clock: &Clock,
) -> Result<bool, db::Error> {
    let (head, mark) = read_with_mark(keks, store).await?;
    let marked = mark.and_then(|mark| mark.read());
    let now = clock.now();
    Ok(marked.is_some_and(|marked| {
        marked.is_ahead_of(&FeedPosition::of(&head)) && now.since(marked.beat) < 5 * HEARTBEAT_EVERY
    }))
}

async fn read_with_mark(
    keks: &[String],
    store: &Store,
) -> Result<(Head, Option<HighWaterMark>), db::Error> {
    let (head, secrets) = store
        .read(|tx| Ok((tx.read_head()?, tx.list_server_secrets()?)))
        .await?;
    let first = secrets.first();
    Ok((
        head,
        first.and_then(|first| HighWaterMark::beside(keks, &first.id)),
    ))
}

/// Writes a mark and returns whether that failed. Logs a failure unless the last write failed too.
async fn write_mark(
    mark: HighWaterMark,
    position: FeedPosition,
    durable: bool,
    failing: bool,
) -> bool {
    let written = tokio::task::spawn_blocking(move || mark.write(&position, durable)).await;
    match written {
        Ok(Err(error)) if !failing => {
            tracing::info!(event = "feed.unmarked", reason = "file", %error, "the position of the feed cannot be stored beside the KEK; a restored database is detected by other evidence only");
            true
        }
        Ok(Err(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downtimes_include_what_lies_strictly_within() {
        let at = |millis: u64| Timestamp::from_micros(i64::try_from(millis).unwrap() * 1_000 + 999);
        let downtimes = Downtimes::default();
        assert!(!downtimes.include(at(5)));
        downtimes.replace(vec![(at(10), at(20)), (at(40), at(41))]);
        for (millis, inside) in [
            (9, false),
            (10, false),
            (11, true),
            (19, true),
            (20, false),
            (40, false),
        ] {
            assert_eq!(downtimes.include(at(millis)), inside, "{millis}");
        }
        assert!(downtimes.end_after(at(40)) && !downtimes.end_after(at(41)));
    }
}
