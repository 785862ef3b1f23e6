//! The lease: a node signs tokens only while it knows that no key was revoked meanwhile.

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

    /// Whether this instant is later than another one by more than the lease.
    fn is_past(self, earlier: Self) -> bool {
        self.up.since(earlier.up) > KEY_LEASE || self.wall.since(earlier.wall) > KEY_LEASE
    }
}

/// Since when the keys are known to be the right ones.
pub(super) struct Lease(watch::Sender<Reading>);

impl Lease {
    pub(super) fn begun(at: Reading) -> Self {
        Self(watch::Sender::new(at))
    }

    /// A poll that was asked at `asked` found nothing that we do not know.
    pub(super) fn renew(&self, asked: Reading) {
        self.0.send_replace(asked);
    }

    pub(super) fn holds(&self, clock: &Clock) -> bool {
        !Reading::of(clock).is_past(*self.0.borrow())
    }

    /// Waits a little for the next poll: after a pause of the machine it is under way already.
    pub(super) async fn waits(&self, clock: &Clock) -> bool {
        if self.holds(clock) {
            return true;
        }
        let mut renewals = self.0.subscribe();
        let renewed = renewals.wait_for(|asked| !Reading::of(clock).is_past(*asked));
        tokio::time::timeout(LEASE_WAIT, renewed)
            .await
            .is_ok_and(|renewed| renewed.is_ok())
    }

    /// How long ago the last good poll was.
    pub(super) fn age(&self, clock: &Clock) -> std::time::Duration {
        clock.uptime().since(self.0.borrow().up)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_lease_lasts_thirty_seconds_by_either_clock() {
        let (world, off) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
        let clock = Clock::Skewed(world, Arc::clone(&off));
        let lease = Lease::begun(Reading::of(&clock));
        clock.advance(Duration::from_secs(30));
        assert!(lease.holds(&clock));
        clock.advance(Duration::from_secs(1));
        assert!(!lease.holds(&clock));
        lease.renew(Reading::of(&clock));
        assert!(lease.holds(&clock));
        off.store(31_000_000, Ordering::SeqCst);
        assert!(!lease.holds(&clock), "the wall clock went on alone");
    }
}
