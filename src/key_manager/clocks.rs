//! Detects clock skew between node and database. A skewed node stops issuing tokens; until the clocks have
//! agreed for an hour, it changes no keys and removes no rows.

use std::time::Duration;

use crate::config::limits::{
    CLOCK_OFF_STOPS, CLOCK_OFF_WARNS, CLOCK_READY_AFTER, CLOCKS_AGREE_FOR, DATABASE_BEHIND,
};
use crate::time::{Timestamp, Uptime};

/// The clocks at one poll.
#[derive(Clone, Copy, Debug)]
pub struct ClockSample {
    /// The node's own clock, uncorrected, in the middle of the poll.
    pub node: Timestamp,
    /// The database's clock.
    pub database: Timestamp,
    /// The heartbeat of the feed, which is a past time of the database's clock.
    pub beat: Timestamp,
    /// The monotonic clock of the node.
    pub up: Uptime,
}

/// A disagreement of the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The node's clock is off by more than a minute.
    NodeOff,
    /// The database's clock jumped.
    DatabaseJumped,
    /// The database's clock is behind its own heartbeat.
    DatabaseBehind,
}

impl Fault {
    /// Returns the reason for the log.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NodeOff => "node_clock",
            Self::DatabaseJumped => "database_jumped",
            Self::DatabaseBehind => "database_behind",
        }
    }
}

/// Compares the clocks at each poll.
#[derive(Debug, Default)]
pub struct ClockMonitor {
    last: Option<ClockSample>,
    fault: Option<Fault>,
    /// When the clocks last disagreed; `None`: never.
    disagreed: Option<Uptime>,
    warned: bool,
}

impl ClockMonitor {
    /// Records a sample. Returns the fault that starts (`true`) or ends (`false`) with it.
    pub fn record(&mut self, sample: ClockSample) -> Option<(Fault, bool)> {
        let fault = self.fault_of(&sample);
        let before = std::mem::replace(&mut self.fault, fault);
        if fault.is_some() {
            self.disagreed = Some(sample.up);
        }
        self.last = Some(sample);
        match (before, fault) {
            (before, Some(fault)) if before != Some(fault) => Some((fault, true)),
            (Some(before), None) => Some((before, false)),
            _ => None,
        }
    }

    /// Returns whether the clocks agree, so that this node may issue tokens.
    pub fn agree(&self) -> bool {
        self.fault.is_none()
    }

    /// Returns whether the clocks have agreed for a few seconds, for readiness.
    pub fn ready(&self, up: Uptime) -> bool {
        self.agreed_for(CLOCK_READY_AFTER, up)
    }

    /// Returns whether the clocks have agreed long enough to change keys and remove rows.
    pub fn is_stable(&self, up: Uptime) -> bool {
        self.agreed_for(CLOCKS_AGREE_FOR, up)
    }

    fn agreed_for(&self, span: Duration, up: Uptime) -> bool {
        self.fault.is_none() && self.disagreed.is_none_or(|then| up.since(then) >= span)
    }

    /// Returns the offset of the database's clock from the node's, in microseconds; 0 while they disagree.
    pub fn correction(&self) -> i64 {
        match self.last {
            Some(sample) if self.fault.is_none() => sample.database.micros() - sample.node.micros(),
            _ => 0,
        }
    }

    /// Returns the skew if it needs a warning now and did not before.
    pub fn warns(&mut self) -> Option<Duration> {
        let off = self
            .last
            .map(|sample| apart(sample.node, sample.database))
            .filter(|off| *off > CLOCK_OFF_WARNS);
        let warned = std::mem::replace(&mut self.warned, off.is_some());
        off.filter(|_| !warned)
    }

    fn fault_of(&self, sample: &ClockSample) -> Option<Fault> {
        if apart(sample.node, sample.database) > CLOCK_OFF_STOPS {
            return Some(Fault::NodeOff);
        }
        if sample.beat.since(sample.database) > DATABASE_BEHIND {
            return Some(Fault::DatabaseBehind);
        }
        let last = self.last?;
        let passed = last.database + sample.up.since(last.up);
        (apart(passed, sample.database) > CLOCK_OFF_STOPS).then_some(Fault::DatabaseJumped)
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

    /// The clocks of a node and its database, which a test can set independently.
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
    fn skewed_node_stops_and_becomes_stable_an_hour_after_correction() {
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
        // The node becomes ready a few seconds after the fault was last detected.
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
    fn common_jump_is_detected_by_monotonic_clock() {
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
    fn database_behind_its_heartbeat_stops_issuing() {
        let mut scene = Scene::new();
        for clock in [&scene.node, &scene.database] {
            clock.store(998_600_000_000, Ordering::SeqCst);
        }
        assert_eq!(scene.after(1), Some((Fault::DatabaseBehind, true)));
        assert!(!scene.clocks.agree());
    }

    #[test]
    fn small_skew_is_corrected_and_warned_of_once() {
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
