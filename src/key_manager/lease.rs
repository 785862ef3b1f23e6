//! The lease on the keys: a node signs tokens only while it has recently confirmed that no key was revoked.
//! The lease requires reads and writes, because a stale server also answers reads.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::config::limits::{KEY_LEASE, LEASE_WAIT};
use crate::time::{Clock, Timestamp, Uptime};

/// An instant by both clocks of a node. While a machine is suspended, its uptime pauses and its wall clock
/// does not.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    wall: Timestamp,
    up: Uptime,
}

impl Reading {
    /// Reads both clocks.
    pub fn of(clock: &Clock) -> Self {
        Self {
            wall: clock.now(),
            up: clock.uptime(),
        }
    }

    /// Returns the earlier of two instants of one node.
    fn earlier(self, other: Self) -> Self {
        if other.up < self.up { other } else { self }
    }

    /// Returns whether this instant is later than another one by more than the lease.
    fn is_past(self, earlier: Self) -> bool {
        self.up.since(earlier.up) > KEY_LEASE || self.wall.since(earlier.wall) > KEY_LEASE
    }
}

/// The time from which the keys are known to be current.
pub(super) struct Lease {
    /// The earlier of the last successful poll and the last write of this node.
    renewed_at: watch::Sender<Reading>,
    /// When the last committed write of this node started; `None` before the first one.
    written: Mutex<Option<Reading>>,
}

impl Lease {
    pub(super) fn starting_at(at: Reading) -> Self {
        Self {
            renewed_at: watch::Sender::new(at),
            written: Mutex::default(),
        }
    }

    /// Renews the lease after a poll that started at `asked` and was applied.
    pub(super) fn renew(&self, asked: Reading) {
        if let Some(written) = self.written() {
            self.renewed_at.send_replace(asked.earlier(written));
        }
    }

    /// Records that the database accepted a write that started at `started`.
    pub(super) fn record_write(&self, started: Reading) {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
    }

    /// Returns the age of the last write of this node; `None` before the first one.
    pub(super) fn write_age(&self, clock: &Clock) -> Option<Duration> {
        self.written()
            .map(|written| clock.uptime().since(written.up))
    }

    fn written(&self) -> Option<Reading> {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_valid(&self, clock: &Clock) -> bool {
        !Reading::of(clock).is_past(*self.renewed_at.borrow())
    }

    /// Returns whether the lease is valid, after waiting up to [`LEASE_WAIT`] for the next poll: after a
    /// suspension of the machine a poll is in progress.
    pub(super) async fn is_valid_soon(&self, clock: &Clock) -> bool {
        if self.is_valid(clock) {
            return true;
        }
        let mut renewals = self.renewed_at.subscribe();
        let renewed = renewals.wait_for(|asked| !Reading::of(clock).is_past(*asked));
        tokio::time::timeout(LEASE_WAIT, renewed)
            .await
            .is_ok_and(|renewed| renewed.is_ok())
    }

    /// Returns how long ago the database last confirmed the keys.
    pub(super) fn age(&self, clock: &Clock) -> Duration {
        clock.uptime().since(self.renewed_at.borrow().up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    #[test]
    fn lease_lasts_thirty_seconds_by_either_clock() {
        let (world, off) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
        let clock = Clock::Skewed(world, Arc::clone(&off));
        let lease = Lease::starting_at(Reading::of(&clock));
        clock.advance(Duration::from_secs(30));
        assert!(lease.is_valid(&clock));
        clock.advance(Duration::from_secs(1));
        assert!(!lease.is_valid(&clock));
        lease.record_write(Reading::of(&clock));
        lease.renew(Reading::of(&clock));
        assert!(lease.is_valid(&clock));
        off.store(31_000_000, Ordering::SeqCst);
        assert!(!lease.is_valid(&clock), "only the wall clock advanced");
    }

    #[test]
    fn polls_without_own_write_do_not_renew_lease() {
        let clock = Clock::settable(Timestamp::from_secs(1));
        let lease = Lease::starting_at(Reading::of(&clock));
        assert_eq!(lease.write_age(&clock), None);
        lease.record_write(Reading::of(&clock));
        for _ in 0..30 {
            clock.advance(Duration::from_secs(1));
            lease.renew(Reading::of(&clock));
            assert!(lease.is_valid(&clock));
        }
        assert_eq!(lease.write_age(&clock), Some(KEY_LEASE));
        clock.advance(Duration::from_secs(1));
        lease.renew(Reading::of(&clock));
        assert!(!lease.is_valid(&clock));
        // A write without a poll renews nothing: a key may have been revoked.
        lease.record_write(Reading::of(&clock));
        assert!(!lease.is_valid(&clock));
        lease.renew(Reading::of(&clock));
        assert!(lease.is_valid(&clock));
    }
}
