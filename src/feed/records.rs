//! The revocation records in the memory of a node, and the frames that streams read.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use portcullis_verifier::{Frame, Position, Record};

use super::feed_position::FeedPosition;
use crate::config::limits::{FRAME_RECORDS, RECENT_BYTES};
use crate::time::Timestamp;

/// A signed frame.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Compact JWS.
    pub jws: String,
    /// The position of a subscriber that has applied it.
    pub position: Position,
    /// Whether it completes the data, so that no frame follows.
    pub is_complete: bool,
}

/// A frame that was sent to the streams.
pub(super) struct Sent {
    after: u64,
    last: u64,
    event: Bytes,
}

/// The next step of a stream.
pub enum Next {
    /// There is nothing new.
    Nothing,
    /// An event, and the position of a subscriber that has applied it.
    Event(Bytes, Position),
    /// The stream is behind the oldest frame in memory.
    Behind,
    /// The feed is not available, so the stream ends.
    Over,
}

/// The records and recent frames in memory.
#[derive(Default)]
pub(super) struct RecordTail {
    pub(super) position: Option<FeedPosition>,
    /// In the order of their numbers. Expired records are removed periodically.
    pub(super) records: VecDeque<(u64, Record)>,
    /// Frames with records, the newest last.
    pub(super) recent: VecDeque<Arc<Sent>>,
    pub(super) recent_bytes: usize,
    /// The newest heartbeat, and how many there were.
    pub(super) heartbeat: Option<Arc<Sent>>,
    pub(super) beats: u64,
    /// The last number that was published to the streams.
    pub(super) published: u64,
}

impl RecordTail {
    pub(super) fn is_in(&self, epoch: u64) -> bool {
        self.position
            .is_some_and(|position| position.epoch == epoch)
    }

    /// Returns the next step of a stream at the position `at` that has read `beats` heartbeats.
    pub(super) fn next(&self, at: Position, beats: &mut u64) -> Next {
        let Some(position) = self.position else {
            return Next::Over;
        };
        if at.epoch != position.epoch || at.seq > position.seq {
            return Next::Behind;
        }
        // Records that are not published yet will be sent to all streams at once.
        if at.seq < self.published {
            let next = self
                .recent
                .iter()
                .find(|sent| sent.after <= at.seq && sent.last > at.seq);
            return match next {
                Some(sent) => Next::Event(sent.event.clone(), sent.position(&position)),
                None => Next::Behind,
            };
        }
        if *beats == self.beats {
            return Next::Nothing;
        }
        *beats = self.beats;
        match &self.heartbeat {
            Some(sent) if sent.last == at.seq => Next::Event(sent.event.clone(), at),
            _ => Next::Nothing,
        }
    }

    /// Returns the unexpired records after a number, as many as one frame holds, and the number up to which
    /// they are complete.
    pub(super) fn live_after(&self, after: u64, now: Timestamp) -> (Vec<Record>, u64) {
        let now = u32::try_from(now.secs()).unwrap_or(u32::MAX);
        let from = self.records.partition_point(|(seq, _)| *seq <= after);
        let mut live = self
            .records
            .range(from..)
            .filter(|(_, record)| record.expires > now);
        let mut last = after;
        let mut records = Vec::new();
        for (seq, record) in live.by_ref().take(FRAME_RECORDS) {
            last = *seq;
            records.push(*record);
        }
        if live.next().is_none() {
            last = self.position.map_or(after, |position| position.seq);
        }
        (records, last)
    }

    pub(super) fn keep(&mut self, sent: Sent) {
        self.recent_bytes += sent.event.len();
        self.recent.push_back(Arc::new(sent));
        while self.recent_bytes > RECENT_BYTES && self.recent.len() > 1 {
            let gone = self.recent.pop_front();
            self.recent_bytes -= gone.map_or(0, |sent| sent.event.len());
        }
    }
}

impl Sent {
    pub(super) fn of(frame: &Frame, jws: String) -> Self {
        Self {
            after: frame.after,
            last: frame.last,
            event: event(&Signed {
                jws,
                position: frame.position(),
                is_complete: frame.as_of_us.is_some(),
            }),
        }
    }

    fn position(&self, position: &FeedPosition) -> Position {
        Position {
            seq: self.last,
            ..position.stream_position()
        }
    }
}

/// Formats a frame as a server-sent event (HTML Living Standard §9.2).
pub fn event(signed: &Signed) -> Bytes {
    format!("id: {}\ndata: {}\n\n", signed.position, signed.jws).into()
}
