//! The revocation feed of one node: the live records in memory, and signed frames made of them.
//!
//! The database says how far the feed is; [`Feed::take`] follows it and [`Feed::publish`] tells the
//! streams. A frame says: these are all live records with `after` < number ≤ `last`. One signature
//! serves all subscribers that stand at or behind `after` and need nothing before it; for whoever is
//! further behind, frames are made from memory.

mod acks;
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

use records::{RecordTail, Sent};

pub use acks::{Acks, TooManyInstances};
pub use feed_position::FeedPosition;
pub use records::{Next, Signed, event};
pub use restore_detector::{RestoreDetector, is_marked_by_another, mark_database};
pub use sequencer::number_revocations;
pub use streams::{Standing, Stream, Streams, TooManyStreams};

/// RecordTail that one statement of the tail brings, at most.
const TAIL: i64 = 20_000;

/// What following the database found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Nothing but the beat.
    Beat,
    /// New records.
    Records,
    /// The database is behind what this node has seen: it was restored from an older copy.
    Behind,
}

/// Why there are no frames.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The database was never read, or went back in time.
    #[error("the feed is not ready")]
    Feed,
    /// They cannot be signed.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// The feed of a node.
pub struct Feed {
    issuer: String,
    clock: Clock,
    known: Mutex<RecordTail>,
    news: watch::Sender<u64>,
    restored: AtomicBool,
    /// One poll at a time, so that an older one never looks like a database that went back.
    polling: tokio::sync::Mutex<()>,
    /// Its open event streams.
    pub streams: Streams,
    /// What its subscribers said.
    pub acks: Acks,
}

impl Feed {
    /// A feed that knows nothing yet.
    pub fn new(issuer: &str, clock: Clock) -> Self {
        Self {
            issuer: issuer.to_owned(),
            known: Mutex::default(),
            news: watch::Sender::new(0),
            restored: AtomicBool::new(false),
            polling: tokio::sync::Mutex::default(),
            streams: Streams::default(),
            acks: Acks::new(clock.clone()),
            clock,
        }
    }

    /// A turn to read the head and take it.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.polling.lock().await
    }

    /// Follows the database to where `head` says it is. Within one [`Feed::turn`].
    ///
    /// # Errors
    /// [`Error`]; then this node stays where it was, and what it says grows old.
    pub async fn take(&self, head: &Head, store: &Store) -> Result<Taken, Error> {
        let there = FeedPosition::of(head);
        let here = self.lock().place;
        let behind = here.is_some_and(|here| here.is_ahead_of(&there));
        if behind || head.restored_at.is_some() {
            if !self.restored.swap(true, Ordering::SeqCst) {
                self.tell();
            }
            return Ok(match head.restored_at {
                Some(_) => Taken::Beat,
                None => Taken::Behind,
            });
        }
        let same_epoch = here.filter(|here| here.epoch == there.epoch);
        let mut after = same_epoch.map_or(0, |here| here.seq);
        let mut tail = VecDeque::new();
        while after < there.seq {
            let span = (signed(after), head.seq);
            let epoch = head.epoch;
            let page = store
                .read(move |tx| tx.list_records(epoch, span, TAIL))
                .await?;
            let Some((last, _)) = page.last() else { break };
            after = number(*last);
            tail.extend(page.into_iter().map(|(seq, record)| (number(seq), record)));
        }
        let mut known = self.lock();
        if same_epoch.is_none() {
            *known = RecordTail {
                told: if here.is_none() { there.seq } else { 0 },
                beats: known.beats,
                ..RecordTail::default()
            };
        }
        let news = !tail.is_empty();
        known.records.append(&mut tail);
        known.place = Some(there);
        drop(known);
        if self.restored.swap(false, Ordering::SeqCst) {
            self.tell();
        }
        Ok(if news { Taken::Records } else { Taken::Beat })
    }

    /// Whether the database went back in time, and nobody has recovered it yet.
    pub fn is_restored(&self) -> bool {
        self.restored.load(Ordering::SeqCst)
    }

    /// Where this node stands.
    pub fn place(&self) -> Option<FeedPosition> {
        self.lock().place
    }

    /// How many records are in memory.
    pub fn live_records(&self) -> usize {
        self.lock().records.len()
    }

    /// Changes whenever streams have something new to read.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Tells the streams what is new since they were told.
    ///
    /// # Errors
    /// [`KeyError`]; then it is told with the next success.
    pub fn publish(&self, keys: &KeyView) -> Result<(), KeyError> {
        while let Some(made) = self.untold(keys) {
            // Streams read on while it is signed; somebody else may tell the same meanwhile.
            let sent = Sent::of(&made, self.sign(&made, keys)?);
            let mut known = self.lock();
            if known.told == made.after && known.is_in(made.epoch) {
                known.told = made.last;
                known.keep(sent);
                drop(known);
                self.tell();
            }
        }
        Ok(())
    }

    /// The next frame that the streams were not told.
    fn untold(&self, keys: &KeyView) -> Option<Frame> {
        let known = self.lock();
        let place = known.place?;
        (known.told < place.seq).then(|| self.frame(&known, known.told, keys))
    }

    /// Tells the streams that this node is still there, and how far it is.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn beat(&self, keys: &KeyView) -> Result<(), KeyError> {
        if self.is_restored() {
            return Ok(());
        }
        self.publish(keys)?;
        let made = {
            let known = self.lock();
            let Some(place) = known.place else {
                return Ok(());
            };
            self.frame(&known, place.seq, keys)
        };
        let sent = Sent::of(&made, self.sign(&made, keys)?);
        let mut known = self.lock();
        if known.is_in(made.epoch) {
            known.heartbeat = Some(Arc::new(sent));
            known.beats += 1;
        }
        drop(known);
        self.tell();
        Ok(())
    }

    /// Leaves out what has expired: by the beat, since a clock of ours that jumps ahead for a moment
    /// must not cost a record that tokens still need.
    pub fn prune(&self) {
        let mut known = self.lock();
        let Some(place) = known.place else { return };
        let now = u32::try_from(place.beat.secs()).unwrap_or(u32::MAX);
        known.records.retain(|(_, record)| record.expires > now);
    }

    /// What a stream at `at`, which has seen so many heartbeats, reads next.
    pub fn next(&self, at: Position, beats: &mut u64) -> Next {
        if self.is_restored() {
            return Next::Over;
        }
        self.lock().next(at, beats)
    }

    /// One frame with live records after `after`. It says up to when nothing is missing, unless more
    /// must follow.
    ///
    /// # Errors
    /// [`FeedError`].
    pub fn frame_after(&self, after: Position, keys: &KeyView) -> Result<Signed, FeedError> {
        let made = {
            let known = self.lock();
            let place = known.place.filter(|_| !self.is_restored());
            let place = place.ok_or(FeedError::Feed)?;
            let after = if after.epoch == place.epoch {
                after.seq.min(place.seq)
            } else {
                0
            };
            self.frame(&known, after, keys)
        };
        Ok(Signed {
            jws: self.sign(&made, keys)?,
            position: made.position(),
        })
    }

    /// The frame after `after`: as many live records as one holds, or none.
    fn frame(&self, known: &RecordTail, after: u64, keys: &KeyView) -> Frame {
        let now = self.clock.now();
        let place = known.place.unwrap_or(FeedPosition {
            epoch: 0,
            seq: after,
            beat: now,
        });
        let (records, last) = known.live_after(after, now);
        Frame {
            iss: self.issuer.clone(),
            v: FRAME_VERSION,
            iat: now.secs(),
            exp: now.secs() + FRAME_LIFE_SECS,
            epoch: place.epoch,
            after,
            last,
            records: Records(records),
            at_us: number(now.micros()),
            as_of_us: (last == place.seq).then(|| number(place.beat.micros())),
            jwks_etag: keys.published(Use::Token).etag.clone(),
        }
    }

    fn sign(&self, frame: &Frame, keys: &KeyView) -> Result<String, KeyError> {
        keys.sign_frame(FRAME_TYP, frame)
    }

    fn tell(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, RecordTail> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Epochs, numbers and instants of the database are never negative.
fn number(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or(0)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use portcullis_verifier::Record;

    use super::feed_position::tests::place;
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn a_clock_that_jumps_ahead_costs_no_record() {
        let clock = Clock::settable(Timestamp::from_secs(1_000));
        let feed = Feed::new("https://id.example", clock.clone());
        let record = Record::new(portcullis_verifier::Kind::Session, "one", 0, 1_500);
        feed.lock().place = Some(place(1, 1, 1_000_000_000));
        feed.lock().records.push_back((1, record));
        clock.advance(std::time::Duration::from_secs(3_600));
        feed.prune();
        assert_eq!(feed.live_records(), 1);
        feed.lock().place = Some(place(1, 1, 1_500_000_000));
        feed.prune();
        assert_eq!(feed.live_records(), 0);
    }

    /// Between the reading of records and their frame, a stream waits and makes none of its own.
    #[test]
    fn what_was_not_told_yet_is_waited_for() {
        let feed = Feed::new(
            "https://id.example",
            Clock::settable(Timestamp::from_secs(1_000)),
        );
        *feed.lock() = RecordTail {
            place: Some(place(1, 5, 1_000_000_000)),
            told: 3,
            ..RecordTail::default()
        };
        let next = |seq| feed.next(Position { epoch: 1, seq }, &mut 0);
        assert!(matches!(next(3), Next::Nothing));
        assert!(matches!(next(4), Next::Nothing));
        assert!(matches!(next(2), Next::Behind));
    }
}
