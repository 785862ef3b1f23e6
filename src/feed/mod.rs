//! The revocation feed of a node: unexpired records in memory, and signed frames.
//!
//! [`Feed::take`] reads new records from the database and [`Feed::publish`] sends them to the streams. A
//! frame contains all unexpired records with `after` < number ≤ `last`. One signed frame serves all
//! subscribers whose position is between `after` and `last`; for subscribers that are further behind,
//! frames are created from memory.

mod acks;
mod audit_mark;
mod feed_position;
mod high_water_mark;
mod records;
mod restore_detector;
mod sequencer;
mod streams;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use portcullis_verifier::{FRAME_LIFE_SECS, FRAME_TYP, FRAME_VERSION, Frame, Position, Records};
use tokio::sync::watch;

use crate::db::{Error, Head, Store};
use crate::keys::{KeyError, KeyView, Use};
use crate::time::Clock;

use feed_position::{number, signed};
use records::{RecordTail, Sent};

pub use acks::{Acks, TooManyInstances};
pub use audit_mark::{AuditHead, AuditMark};
pub use feed_position::FeedPosition;
pub use records::{Next, Signed, event};
pub use restore_detector::{RestoreDetector, is_marked_by_another, mark_database};
pub use sequencer::number_revocations;
pub use streams::{ActiveSubscribers, Stream, Streams, TooManyStreams};

/// The maximum number of records that one statement reads.
const TAIL: i64 = 20_000;

/// The result of [`Feed::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Only the heartbeat advanced.
    Beat,
    /// There are new records.
    Records,
    /// The database is behind this node, so it was restored from an older copy.
    Behind,
}

/// Why no frame can be created.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The database has not been read yet, or was restored from an older copy.
    #[error("the feed is not ready")]
    Feed,
    /// The frame cannot be signed.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// The feed of a node.
pub struct Feed {
    issuer: String,
    clock: Clock,
    tail: Mutex<RecordTail>,
    changes: watch::Sender<u64>,
    restored: AtomicBool,
    /// Allows one poll at a time, so that an older result is not mistaken for a restored database.
    polling: tokio::sync::Mutex<()>,
    /// The open event streams.
    pub streams: Streams,
    /// The acknowledgements of subscribers.
    pub acks: Acks,
}

impl Feed {
    /// Creates a feed without records.
    pub fn new(issuer: &str, clock: Clock) -> Self {
        Self {
            issuer: issuer.to_owned(),
            tail: Mutex::default(),
            changes: watch::Sender::new(0),
            restored: AtomicBool::new(false),
            polling: tokio::sync::Mutex::default(),
            streams: Streams::default(),
            acks: Acks::new(clock.clone()),
            clock,
        }
    }

    /// Waits for the right to poll: to read the head and [`Feed::take`] it.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.polling.lock().await
    }

    /// Reads the records up to `head`. The caller holds the guard of [`Feed::turn`].
    ///
    /// # Errors
    /// [`Error`]; then the position of this node stays the same and its feed becomes stale.
    pub async fn take(&self, head: &Head, store: &Store) -> Result<Taken, Error> {
        let database = FeedPosition::of(head);
        let here = self.lock().position;
        let behind = here.is_some_and(|here| here.is_ahead_of(&database));
        if behind || head.restored_at.is_some() {
            if !self.restored.swap(true, Ordering::SeqCst) {
                // The node that found the evidence has logged it; the others learn of it here.
                if head.restored_at.is_some() {
                    tracing::error!(
                        event = "db.restored",
                        reason = "marked",
                        severity = "critical",
                        "the database is marked as restored from an older copy; nothing is issued until `portcullis recover`"
                    );
                }
                self.notify();
            }
            return Ok(match head.restored_at {
                Some(_) => Taken::Beat,
                None => Taken::Behind,
            });
        }
        let same_epoch = here.filter(|here| here.epoch == database.epoch);
        let mut after = same_epoch.map_or(0, |here| here.seq);
        let mut records = VecDeque::new();
        while after < database.seq {
            let span = (signed(after), head.seq);
            let epoch = head.epoch;
            let page = store
                .read(move |tx| tx.list_records(epoch, span, TAIL))
                .await?;
            let Some((last, _)) = page.last() else { break };
            after = number(*last);
            records.extend(page.into_iter().map(|(seq, record)| (number(seq), record)));
        }
        let mut tail = self.lock();
        if same_epoch.is_none() {
            *tail = RecordTail {
                published: if here.is_none() { database.seq } else { 0 },
                beats: tail.beats,
                ..RecordTail::default()
            };
        }
        let is_new = !records.is_empty();
        tail.records.append(&mut records);
        tail.position = Some(database);
        drop(tail);
        if self.restored.swap(false, Ordering::SeqCst) {
            self.notify();
        }
        Ok(if is_new { Taken::Records } else { Taken::Beat })
    }

    /// Returns whether the database was restored from an older copy and not recovered yet.
    pub fn is_restored(&self) -> bool {
        self.restored.load(Ordering::SeqCst)
    }

    /// Returns the position of this node; `None` before the first poll.
    pub fn position(&self) -> Option<FeedPosition> {
        self.lock().position
    }

    /// Returns the position to store as high-water mark; `None` while the database is restored.
    pub fn markable_position(&self) -> Option<FeedPosition> {
        self.position().filter(|_| !self.is_restored())
    }

    /// Returns the number of records in memory.
    pub fn live_records(&self) -> usize {
        self.lock().records.len()
    }

    /// Returns a receiver that changes when there is something new to read.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Returns whether a service waits for changes: by a stream, or by a request for the next frame.
    pub fn is_followed(&self) -> bool {
        self.changes.receiver_count() > 0
    }

    /// Sends new records to the streams.
    ///
    /// # Errors
    /// [`KeyError`]; then the next call sends them.
    pub fn publish(&self, keys: &KeyView) -> Result<(), KeyError> {
        while let Some(made) = self.unpublished(keys) {
            // The lock is not held during signing, so another task may publish the same records.
            let sent = Sent::of(&made, self.sign(&made, keys)?);
            let mut tail = self.lock();
            if tail.published == made.after && tail.is_in(made.epoch) {
                tail.published = made.last;
                tail.keep(sent);
                drop(tail);
                self.notify();
            }
        }
        Ok(())
    }

    /// Returns the next frame that was not published.
    fn unpublished(&self, keys: &KeyView) -> Option<Frame> {
        let tail = self.lock();
        let position = tail.position?;
        (tail.published < position.seq).then(|| self.frame(&tail, tail.published, keys))
    }

    /// Sends a heartbeat with the position of this node to the streams.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn beat(&self, keys: &KeyView) -> Result<(), KeyError> {
        if self.is_restored() {
            return Ok(());
        }
        self.publish(keys)?;
        let made = {
            let tail = self.lock();
            let Some(position) = tail.position else {
                return Ok(());
            };
            self.frame(&tail, position.seq, keys)
        };
        let sent = Sent::of(&made, self.sign(&made, keys)?);
        let mut tail = self.lock();
        if tail.is_in(made.epoch) {
            tail.heartbeat = Some(Arc::new(sent));
            tail.beats += 1;
        }
        drop(tail);
        self.notify();
        Ok(())
    }

    /// Removes expired records. Expiry is measured by the heartbeat of the database, because a node clock
    /// that jumps ahead must not remove a record that is still needed.
    pub fn prune(&self) {
        let mut tail = self.lock();
        let Some(position) = tail.position else {
            return;
        };
        let now = u32::try_from(position.beat.secs()).unwrap_or(u32::MAX);
        tail.records.retain(|(_, record)| record.expires > now);
    }

    /// Returns the next step of a stream at the position `at` that has read `beats` heartbeats.
    pub fn next(&self, at: Position, beats: &mut u64) -> Next {
        if self.is_restored() {
            return Next::Over;
        }
        self.lock().next(at, beats)
    }

    /// Returns a frame with unexpired records after `after`. It states the time up to which it is complete
    /// unless more frames follow.
    ///
    /// # Errors
    /// [`FeedError`].
    pub fn frame_after(&self, after: Position, keys: &KeyView) -> Result<Signed, FeedError> {
        let made = {
            let tail = self.lock();
            let position = tail.position.filter(|_| !self.is_restored());
            let position = position.ok_or(FeedError::Feed)?;
            let after = if after.epoch == position.epoch {
                after.seq.min(position.seq)
            } else {
                0
            };
            self.frame(&tail, after, keys)
        };
        Ok(Signed {
            jws: self.sign(&made, keys)?,
            position: made.position(),
            is_complete: made.as_of_us.is_some(),
        })
    }

    /// Creates the frame after `after`, with as many unexpired records as it can hold.
    fn frame(&self, tail: &RecordTail, after: u64, keys: &KeyView) -> Frame {
        let now = self.clock.now();
        let position = tail.position.unwrap_or(FeedPosition {
            epoch: 0,
            seq: after,
            beat: now,
        });
        let (records, last) = tail.live_after(after, now);
        Frame {
            iss: self.issuer.clone(),
            v: FRAME_VERSION,
            iat: now.secs(),
            exp: now.secs() + FRAME_LIFE_SECS,
            epoch: position.epoch,
            after,
            last,
            records: Records(records),
            at_us: number(now.micros()),
            as_of_us: (last == position.seq).then(|| number(position.beat.micros())),
            jwks_etag: keys.published(Use::Token).etag.clone(),
        }
    }

    fn sign(&self, frame: &Frame, keys: &KeyView) -> Result<String, KeyError> {
        keys.sign_frame(FRAME_TYP, frame)
    }

    fn notify(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, RecordTail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use portcullis_verifier::Record;

    use super::feed_position::tests::position;
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn clock_jump_removes_no_record() {
        let clock = Clock::settable(Timestamp::from_secs(1_000));
        let feed = Feed::new("https://id.example", clock.clone());
        let record = Record::new(portcullis_verifier::Kind::Session, "one", 0, 1_500);
        feed.lock().position = Some(position(1, 1, 1_000_000_000));
        feed.lock().records.push_back((1, record));
        clock.advance(std::time::Duration::from_secs(3_600));
        feed.prune();
        assert_eq!(feed.live_records(), 1);
        feed.lock().position = Some(position(1, 1, 1_500_000_000));
        feed.prune();
        assert_eq!(feed.live_records(), 0);
    }

    /// Until new records are published, a stream waits and creates no frame itself.
    #[test]
    fn stream_waits_for_unpublished_records() {
        let feed = Feed::new(
            "https://id.example",
            Clock::settable(Timestamp::from_secs(1_000)),
        );
        *feed.lock() = RecordTail {
            position: Some(position(1, 5, 1_000_000_000)),
            published: 3,
            ..RecordTail::default()
        };
        let next = |seq| feed.next(Position { epoch: 1, seq }, &mut 0);
        assert!(matches!(next(3), Next::Nothing));
        assert!(matches!(next(4), Next::Nothing));
        assert!(matches!(next(2), Next::Behind));
    }
}
