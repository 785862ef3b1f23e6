//! Positions in the feed. A node that is ahead of its database shows that the database lost data.

use portcullis_verifier::Position;

use crate::db::Head;
use crate::time::Timestamp;

/// The position of a node, a database or a high-water mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FeedPosition {
    /// Feed epoch.
    pub epoch: u64,
    /// The number of the last record in this epoch.
    pub seq: u64,
    /// Every record that was committed before this instant is included.
    pub beat: Timestamp,
}

impl FeedPosition {
    /// Returns the position of the database.
    pub fn of(head: &Head) -> Self {
        Self {
            epoch: number(head.epoch),
            seq: number(head.seq),
            beat: head.beat,
        }
    }

    /// Returns whether a database at `other` has lost something that this position includes. In a healthy
    /// database, number and heartbeat only grow within an epoch, and epochs only grow.
    pub fn is_ahead_of(&self, other: &Self) -> bool {
        match self.epoch.cmp(&other.epoch) {
            std::cmp::Ordering::Equal => self.seq > other.seq || self.beat > other.beat,
            order => order.is_gt(),
        }
    }

    pub(super) fn stream_position(&self) -> Position {
        Position {
            epoch: self.epoch,
            seq: self.seq,
        }
    }
}

/// Converts an epoch, a number or an instant of the database, which are never negative.
pub(super) fn number(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or(0)
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn position(epoch: u64, seq: u64, beat: i64) -> FeedPosition {
        FeedPosition {
            epoch,
            seq,
            beat: Timestamp::from_micros(beat),
        }
    }

    #[test]
    fn database_that_lost_anything_is_behind() {
        let here = position(2, 10, 500);
        for behind in [
            position(2, 9, 600),
            position(2, 11, 499),
            position(1, 99, 999),
        ] {
            assert!(here.is_ahead_of(&behind), "{behind:?}");
        }
        for good in [
            position(2, 10, 500),
            position(2, 11, 501),
            position(3, 0, 0),
        ] {
            assert!(!here.is_ahead_of(&good), "{good:?}");
        }
    }
}
