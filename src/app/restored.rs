//! A database that was restored from an older copy: the marks that remember how far it was, and the
//! evidence that clients bring.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::App;
use crate::config::limits::{CLOCK_SKEW, HEARTBEAT_EVERY};
use crate::db::{self, Head};
use crate::feed::{FeedPosition, HighWaterMark, kek_since};
use crate::id::GrantId;
use crate::key_manager::KeyManagerError;
use crate::time::{Clock, Timestamp};

/// A KEK that is older belongs to a database that was there before.
const FIRST_START: Duration = Duration::from_secs(3_600);
/// A mark that is further behind its database was not written by the last server on it.
const MARK_BEHIND: Duration = Duration::from_secs(60);
/// How long downtimes are kept: no grant lives longer.
const DOWNTIME_KEPT: Duration = Duration::from_secs(400 * 86_400);

/// The times in which no server ran on this database, as far as a start of this node knows.
#[derive(Default)]
pub(super) struct Downtimes(Mutex<Vec<(Timestamp, Timestamp)>>);

impl Downtimes {
    fn replace(&self, known: Vec<(Timestamp, Timestamp)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// Whether a moment lies within one of them. Ids carry milliseconds, so both ends are left out.
    fn include(&self, at: Timestamp) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = at.millis();
        known
            .iter()
            .any(|(began, ended)| (began.millis() + 1..ended.millis()).contains(&at))
    }

    /// Whether one of them ends after `now`, so that a clock must have been ahead when it was recorded.
    fn end_after(&self, now: Timestamp) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|(_, ended)| *ended > now)
    }
}

impl App {
    /// Warns when the database is empty although this machine knows another one: it was deleted, or
    /// `database.url` leads elsewhere.
    pub(super) fn warn_of_empty_database(&self) {
        let kek = kek_since(&self.config.keys.kek);
        let kek = kek.filter(|since| self.clock.now().since(*since) >= FIRST_START);
        match (
            self.mark.as_ref().and_then(HighWaterMark::newest_of_others),
            kek,
        ) {
            (Some(last), _) => {
                tracing::warn!(event = "db.unfamiliar", reason = "empty_beside_mark", last = %last, "the database is empty, and a mark beside the KEK is of another one; if that was lost, stop this server and restore a backup (`portcullis restore`)");
            }
            (None, Some(since)) => {
                tracing::warn!(event = "db.unfamiliar", reason = "empty_beside_kek", kek_since = %since, "the database is empty, and the KEK is older; if there was a database before, stop this server and restore a backup (`portcullis restore`)");
            }
            (None, None) => {}
        }
    }

    /// Compares the database with its mark at a start, before anything is issued, and records since
    /// when no server ran on it.
    pub(super) async fn check_restored(&self, head: &Head) -> Result<(), db::Error> {
        let (mark, here) = (self.mark.as_ref(), FeedPosition::of(head));
        let marked = mark.and_then(HighWaterMark::read);
        if marked.is_some_and(|marked| marked.is_ahead_of(&here)) {
            self.note_restored(head.epoch, "mark").await?;
        }
        // Of several nodes on several machines, each has a mark, and the one that starts may have been
        // away for long.
        if self.store.is_sqlite() && mark.is_some() && here.beat > Timestamp::from_micros(0) {
            self.warn_of_mark(marked, here.beat);
        }
        self.record_downtime(head).await
    }

    fn warn_of_mark(&self, marked: Option<FeedPosition>, beat: Timestamp) {
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

    /// Records that no server ran since the database was last written to by one. On PostgreSQL other
    /// nodes may be running, with clocks that differ, so only a longer time counts.
    async fn record_downtime(&self, head: &Head) -> Result<(), db::Error> {
        let now = head
            .database
            .map_or_else(|| self.clock.now(), |at| self.clock.database(at));
        let slack = match self.store.is_sqlite() {
            true => Duration::ZERO,
            false => CLOCK_SKEW,
        };
        let known = self.store.transaction(move |tx| {
            tx.trim_downtimes(now)?;
            if let Some(alive) = tx.last_alive()?
                && alive + slack < now - slack
            {
                tx.put_downtime((alive + slack, now - slack), now - DOWNTIME_KEPT)?;
            }
            tx.list_downtimes()
        });
        self.downtimes.replace(known.await?);
        Ok(())
    }

    /// Records evidence that the database was restored if it lacks a grant that was made while no
    /// server ran on it. The caller got the id from a value that this server signed or made a MAC of.
    /// Returns whether it did.
    ///
    /// A grant that is missing proves nothing by itself: clean-up removes what has ended.
    ///
    /// # Errors
    /// [`db::Error`].
    pub async fn note_lost_grant(&self, grant: &GrantId) -> Result<bool, db::Error> {
        let (Some(made_at), Some(here)) = (grant.made_at(), self.feed.place()) else {
            return Ok(false);
        };
        // What was lost before a recovery is dead already. An epoch is the second of its recovery.
        if made_at.secs() <= here.epoch || !self.downtimes.include(made_at) {
            return Ok(false);
        }
        let id = grant.clone();
        if self.store.read(move |tx| tx.has_grant(&id)).await? {
            return Ok(false);
        }
        self.proven_restored("grant").await?;
        Ok(true)
    }

    /// Keeps the mark until this node ends: at once when records were numbered, else each second.
    pub(super) async fn keep_mark(&self) {
        let mut turn = tokio::time::interval(HEARTBEAT_EVERY);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        let mut last = None;
        loop {
            tokio::select! {
                _ = turn.tick() => {}
                () = self.signals.moved.notified() => {}
            }
            self.trim_downtimes().await;
            let Some((mark, place)) = self.to_mark() else {
                continue;
            };
            // A beat alone is not worth a flush each second.
            let position = (place.epoch, place.seq);
            let durable = last.replace(position) != Some(position);
            failing = move_mark(mark, place, durable, failing).await;
        }
    }

    /// Numbers what waits and moves the mark there: the last step of a node's work on the feed.
    ///
    /// # Errors
    /// [`KeyManagerError`]; then the mark is where the last poll found the database.
    pub async fn settle_feed(&self) -> Result<(), KeyManagerError> {
        let is_stable = async {
            self.number_waiting().await?;
            self.poll().await
        };
        let is_stable = is_stable.await;
        if let Some((mark, place)) = self.to_mark() {
            move_mark(mark, place, true, false).await;
        }
        is_stable
    }

    fn to_mark(&self) -> Option<(HighWaterMark, FeedPosition)> {
        let place = self.feed.place().filter(|_| !self.feed.is_restored())?;
        Some((self.mark.clone()?, place))
    }

    /// Takes the present out of the recorded downtimes after a clock that was ahead was put right.
    async fn trim_downtimes(&self) {
        let now = self.clock.now();
        // All nodes share the recorded downtimes: a node whose own clock is wrong must not cut them.
        if !self.key_manager.clock_ready() || !self.downtimes.end_after(now) {
            return;
        }
        let known = self.store.transaction(move |tx| {
            tx.trim_downtimes(now)?;
            tx.list_downtimes()
        });
        match known.await {
            Ok(known) => self.downtimes.replace(known),
            // The next turn tries again.
            Err(error) => tracing::warn!(event = "storage.error", reason = "downtimes", %error),
        }
    }
}

/// Moves the mark of a database to where it is, for a command that changed it.
///
/// # Errors
/// [`db::Error`]. A mark that cannot be written is skipped; `serve` reports that.
pub async fn mark_database(
    config: &crate::config::Config,
    store: &db::Store,
) -> Result<(), db::Error> {
    let (head, secrets) = store
        .read(|tx| Ok((tx.read_head()?, tx.list_server_secrets()?)))
        .await?;
    let mark = secrets
        .first()
        .and_then(|first| HighWaterMark::beside(&config.keys.kek, &first.id));
    if let Some(mark) = mark.filter(|_| head.restored_at.is_none()) {
        move_mark(mark, FeedPosition::of(&head), true, true).await;
    }
    Ok(())
}

/// Returns whether it failed, and says so unless it did before.
async fn move_mark(mark: HighWaterMark, place: FeedPosition, durable: bool, failing: bool) -> bool {
    let written = tokio::task::spawn_blocking(move || mark.write(&place, durable)).await;
    match written {
        Ok(Err(error)) if !failing => {
            tracing::info!(event = "feed.unmarked", reason = "file", %error, "how far the feed is cannot be kept beside the KEK; a restored database is noticed by other signs");
            true
        }
        Ok(Err(_)) => true,
        _ => false,
    }
}

/// Whether another server moves the mark of this database: it is ahead of the database, and fresh.
///
/// # Errors
/// [`db::Error`].
pub async fn marked_by_another(
    config: &crate::config::Config,
    store: &db::Store,
    clock: &Clock,
) -> Result<bool, db::Error> {
    let (head, secrets) = store
        .read(|tx| Ok((tx.read_head()?, tx.list_server_secrets()?)))
        .await?;
    let marked = secrets
        .first()
        .and_then(|first| HighWaterMark::beside(&config.keys.kek, &first.id))
        .and_then(|mark| mark.read());
    let now = clock.now();
    Ok(marked.is_some_and(|marked| {
        marked.is_ahead_of(&FeedPosition::of(&head)) && now.since(marked.beat) < 5 * HEARTBEAT_EVERY
    }))
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
