//! How far a node is, and how far the database: whoever is ahead has seen something that the other forgot.

use portcullis_verifier::Position;

use super::number;
use crate::db::Head;
use crate::time::Timestamp;

/// How far a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FeedPosition {
    /// Feed epoch.
    pub epoch: u64,
    /// Records that were numbered in it.
    pub seq: u64,
    /// All that was committed before this instant is in memory.
    pub beat: Timestamp,
}

impl FeedPosition {
    /// Where the database stands.
    pub fn of(head: &Head) -> Self {
        Self {
            epoch: number(head.epoch),
            seq: number(head.seq),
            beat: head.beat,
        }
    }

    /// Whether a database that stands at `other` has forgotten something of this one. A database never
    /// goes back by itself: numbers and beat only grow within an epoch, and epochs only grow.
    pub fn is_ahead_of(&self, other: &Self) -> bool {
        match self.epoch.cmp(&other.epoch) {
            std::cmp::Ordering::Equal => self.seq > other.seq || self.beat > other.beat,
            order => order.is_gt(),
        }
    }

    pub(super) fn position(&self) -> Position {
        Position {
            epoch: self.epoch,
            seq: self.seq,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn place(epoch: u64, seq: u64, beat: i64) -> FeedPosition {
        FeedPosition {
            epoch,
            seq,
            beat: Timestamp::from_micros(beat),
        }
    }

    #[test]
    fn a_database_that_forgot_anything_is_behind() {
        let here = place(2, 10, 500);
        for behind in [place(2, 9, 600), place(2, 11, 499), place(1, 99, 999)] {
            assert!(here.is_ahead_of(&behind), "{behind:?}");
        }
        for good in [place(2, 10, 500), place(2, 11, 501), place(3, 0, 0)] {
            assert!(!here.is_ahead_of(&good), "{good:?}");
        }
    }
}
