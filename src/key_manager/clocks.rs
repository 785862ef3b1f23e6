//! Two clocks that must agree: the node's and the database's. While they do not, this node issues
//! nothing; until they have for an hour, it changes and removes nothing.

use std::time::Duration;

use crate::config::limits::{
    CLOCK_OFF_STOPS, CLOCK_OFF_WARNS, CLOCK_READY_AFTER, CLOCKS_AGREE_FOR, DATABASE_BEHIND,
};
use crate::time::{Timestamp, Uptime};

/// What one poll saw.
#[derive(Clone, Copy, Debug)]
pub struct ClockSample {
    /// The node's own clock, uncorrected, in the middle of the poll.
    pub node: Timestamp,
    /// The database's clock.
    pub database: Timestamp,
    /// What the feed's head says that the database's clock once showed.
    pub beat: Timestamp,
    /// The clock that only grows.
    pub up: Uptime,
}

/// What is wrong with the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The node is more than a minute off.
    NodeOff,
    /// The database's clock jumped.
    DatabaseJumped,
    /// The database's clock is behind what it once wrote.
    DatabaseBehind,
}

impl Fault {
    /// The reason in the log.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NodeOff => "node_clock",
            Self::DatabaseJumped => "database_jumped",
            Self::DatabaseBehind => "database_behind",
        }
    }
}

/// What the clocks looked like so far.
#[derive(Debug, Default)]
pub struct ClockMonitor {
    last: Option<ClockSample>,
    fault: Option<Fault>,
    /// When they last disagreed; `None`: never.
    disagreed: Option<Uptime>,
    warned: bool,
}

impl ClockMonitor {
    /// Takes a sight. The answer is the fault that begins or ends with it.
    pub fn record(&mut self, sight: ClockSample) -> Option<(Fault, bool)> {
        let fault = self.fault_of(&sight);
        let before = std::mem::replace(&mut self.fault, fault);
        if fault.is_some() {
            self.disagreed = Some(sight.up);
        }
        self.last = Some(sight);
        match (before, fault) {
            (before, Some(fault)) if before != Some(fault) => Some((fault, true)),
            (Some(before), None) => Some((before, false)),
            _ => None,
        }
    }

    /// Whether this node may issue.
    pub fn agree(&self) -> bool {
        self.fault.is_none()
    }

    /// Returns whether the clocks have agreed for a few seconds, for readiness.
    pub fn ready(&self, up: Uptime) -> bool {
        self.agreed_for(CLOCK_READY_AFTER, up)
    }

    /// Whether this node may change keys and remove rows.
    pub fn is_stable(&self, up: Uptime) -> bool {
        self.agreed_for(CLOCKS_AGREE_FOR, up)
    }

    fn agreed_for(&self, span: Duration, up: Uptime) -> bool {
        self.fault.is_none() && self.disagreed.is_none_or(|then| up.since(then) >= span)
    }

    /// What the node's clock lacks to the database's, in microseconds: 0 while they disagree.
    pub fn correction(&self) -> i64 {
        match self.last {
            Some(sight) if self.fault.is_none() => sight.database.micros() - sight.node.micros(),
            _ => 0,
        }
    }

    /// Whether the node is worth a warning now and was not before.
    pub fn warns(&mut self) -> Option<Duration> {
        let off = self
            .last
            .map(|sight| apart(sight.node, sight.database))
            .filter(|off| *off > CLOCK_OFF_WARNS);
        let warned = std::mem::replace(&mut self.warned, off.is_some());
        off.filter(|_| !warned)
    }

    fn fault_of(&self, sight: &ClockSample) -> Option<Fault> {
        if apart(sight.node, sight.database) > CLOCK_OFF_STOPS {
            return Some(Fault::NodeOff);
        }
        if sight.beat.since(sight.database) > DATABASE_BEHIND {
            return Some(Fault::DatabaseBehind);
        }
        let last = self.last?;
        let passed = last.database + sight.up.since(last.up);
        (apart(passed, sight.database) > CLOCK_OFF_STOPS).then_some(Fault::DatabaseJumped)
    }
}

fn apart(a: Timestamp, b: Timestamp) -> Duration {
    a.since(b).max(b.since(a))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::time::Clock;

    /// A node's clock beside the database's; both move by themselves, and jump when told.
    struct Scene {
        up: Clock,
        node: AtomicI64,
        database: AtomicI64,
        clocks: ClockMonitor,
    }

    impl Scene {
        fn new() -> Self {
            let scene = Self {
                up: Clock::Settable(Arc::new(AtomicI64::new(0))),
                node: AtomicI64::new(1_000_000_000_000),
                database: AtomicI64::new(1_000_000_000_000),
                clocks: ClockMonitor::default(),
            };
            assert!(scene.clocks.is_stable(scene.up.uptime()));
            scene
        }

        fn after(&mut self, secs: i64) -> Option<(Fault, bool)> {
            self.up.advance(Duration::from_secs(secs.unsigned_abs()));
            for clock in [&self.node, &self.database] {
                clock.fetch_add(secs * 1_000_000, Ordering::SeqCst);
            }
            self.clocks.record(ClockSample {
                node: Timestamp::from_micros(self.node.load(Ordering::SeqCst)),
                database: Timestamp::from_micros(self.database.load(Ordering::SeqCst)),
                beat: Timestamp::from_micros(999_000_000_000),
                up: self.up.uptime(),
            })
        }

        fn is_stable(&self) -> bool {
            self.clocks.is_stable(self.up.uptime())
        }
    }

    #[test]
    fn a_node_that_is_off_stops_and_rests_for_an_hour_after_it_is_right_again() {
        let mut scene = Scene::new();
        assert_eq!(scene.after(1), None);
        scene.node.fetch_add(86_400_000_000, Ordering::SeqCst);
        assert_eq!(scene.after(1), Some((Fault::NodeOff, true)));
        assert!(!scene.clocks.agree() && !scene.is_stable());
        assert!(!scene.clocks.ready(scene.up.uptime()));
        assert_eq!(scene.clocks.correction(), 0);
        scene.node.fetch_sub(86_400_000_000, Ordering::SeqCst);
        assert_eq!(scene.after(1), Some((Fault::NodeOff, false)));
        assert!(scene.clocks.agree() && !scene.is_stable());
        // Readiness comes back a few seconds after the fault was last seen.
        scene.after(3);
        assert!(!scene.clocks.ready(scene.up.uptime()));
        scene.after(1);
        assert!(scene.clocks.ready(scene.up.uptime()));
        scene.after(3_594);
        assert!(!scene.is_stable());
        scene.after(2);
        assert!(scene.is_stable());
    }

    #[test]
    fn both_clocks_jumping_together_are_seen_by_the_one_that_only_grows() {
        let mut scene = Scene::new();
        scene.after(1);
        for clock in [&scene.node, &scene.database] {
            clock.fetch_add(365 * 86_400_000_000, Ordering::SeqCst);
        }
        assert_eq!(scene.after(1), Some((Fault::DatabaseJumped, true)));
        assert_eq!(scene.after(1), Some((Fault::DatabaseJumped, false)));
        assert!(scene.clocks.agree() && !scene.is_stable());
    }

    #[test]
    fn a_database_behind_its_own_beat_stops_everybody() {
        let mut scene = Scene::new();
        for clock in [&scene.node, &scene.database] {
            clock.store(998_600_000_000, Ordering::SeqCst);
        }
        assert_eq!(scene.after(1), Some((Fault::DatabaseBehind, true)));
        assert!(!scene.clocks.agree());
    }

    #[test]
    fn a_few_seconds_are_put_right_and_warned_of_once() {
        let mut scene = Scene::new();
        scene.node.fetch_sub(7_000_000, Ordering::SeqCst);
        assert_eq!(scene.after(1), None);
        assert!(scene.clocks.agree());
        assert_eq!(scene.clocks.correction(), 7_000_000);
        assert_eq!(scene.clocks.warns(), Some(Duration::from_secs(7)));
        scene.after(1);
        assert_eq!(scene.clocks.warns(), None);
    }
}
