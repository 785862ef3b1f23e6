//! The lease: a node signs tokens only while it knows that no key was revoked meanwhile. A read alone
//! proves nothing, because a stale server answers it as well; so the lease needs an own write, too.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::config::limits::{KEY_LEASE, LEASE_WAIT};
use crate::time::{Clock, Timestamp, Uptime};

/// An instant by both clocks of a node. A machine that slept wakes up with an uptime that stood
/// still and a wall clock that did not.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    wall: Timestamp,
    up: Uptime,
}

impl Reading {
    /// Now.
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

    /// Whether this instant is later than another one by more than the lease.
    fn is_past(self, earlier: Self) -> bool {
        self.up.since(earlier.up) > KEY_LEASE || self.wall.since(earlier.wall) > KEY_LEASE
    }
}

/// Since when the keys are known to be the right ones.
pub(super) struct Lease {
    /// The earlier of the last good poll and the last own write.
    held: watch::Sender<Reading>,
    /// When the last committed write of this node began; `None` before the first one.
    written: Mutex<Option<Reading>>,
}

impl Lease {
    pub(super) fn begun(at: Reading) -> Self {
        Self {
            held: watch::Sender::new(at),
            written: Mutex::default(),
        }
    }

    /// A poll that was asked at `asked` found nothing that we do not know.
    pub(super) fn renew(&self, asked: Reading) {
        if let Some(written) = self.written() {
            self.held.send_replace(asked.earlier(written));
        }
    }

    /// Records that the database took a write that began at `begun`.
    pub(super) fn record_write(&self, begun: Reading) {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
    }

    /// Returns the age of the last own write; `None` before the first one.
    pub(super) fn write_age(&self, clock: &Clock) -> Option<Duration> {
        self.written()
            .map(|written| clock.uptime().since(written.up))
    }

    fn written(&self) -> Option<Reading> {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn holds(&self, clock: &Clock) -> bool {
        !Reading::of(clock).is_past(*self.held.borrow())
    }

    /// Waits a little for the next poll: after a pause of the machine it is under way already.
    pub(super) async fn waits(&self, clock: &Clock) -> bool {
        if self.holds(clock) {
            return true;
        }
        let mut renewals = self.held.subscribe();
        let renewed = renewals.wait_for(|asked| !Reading::of(clock).is_past(*asked));
        tokio::time::timeout(LEASE_WAIT, renewed)
            .await
            .is_ok_and(|renewed| renewed.is_ok())
    }

    /// Returns how long ago the database last confirmed the keys.
    pub(super) fn age(&self, clock: &Clock) -> Duration {
        clock.uptime().since(self.held.borrow().up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    #[test]
    fn a_lease_lasts_thirty_seconds_by_either_clock() {
        let (world, off) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
        let clock = Clock::Skewed(world, Arc::clone(&off));
        let lease = Lease::begun(Reading::of(&clock));
        clock.advance(Duration::from_secs(30));
        assert!(lease.holds(&clock));
        clock.advance(Duration::from_secs(1));
        assert!(!lease.holds(&clock));
        lease.record_write(Reading::of(&clock));
        lease.renew(Reading::of(&clock));
        assert!(lease.holds(&clock));
        off.store(31_000_000, Ordering::SeqCst);
        assert!(!lease.holds(&clock), "the wall clock went on alone");
    }

    #[test]
    fn polls_without_own_write_do_not_renew_lease() {
        let clock = Clock::settable(Timestamp::from_secs(1));
        let lease = Lease::begun(Reading::of(&clock));
        assert_eq!(lease.write_age(&clock), None);
        lease.record_write(Reading::of(&clock));
        for _ in 0..30 {
            clock.advance(Duration::from_secs(1));
            lease.renew(Reading::of(&clock));
            assert!(lease.holds(&clock));
        }
        assert_eq!(lease.write_age(&clock), Some(KEY_LEASE));
        clock.advance(Duration::from_secs(1));
        lease.renew(Reading::of(&clock));
        assert!(!lease.holds(&clock));
        // A write without a poll renews nothing: a key may have been revoked.
        lease.record_write(Reading::of(&clock));
        assert!(!lease.holds(&clock));
        lease.renew(Reading::of(&clock));
        assert!(lease.holds(&clock));
    }
}
