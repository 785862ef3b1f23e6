//! Timestamps and the clock. This is the only module that reads the time of the system.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat};

/// A point in time: microseconds since 1970-01-01T00:00:00Z. The database stores the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Creates a timestamp from microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Creates a timestamp from seconds since the epoch, as in JWT claims (RFC 7519 §2, NumericDate).
    pub const fn from_secs(secs: u64) -> Self {
        Self((secs as i64).saturating_mul(1_000_000))
    }

    /// Returns microseconds since the epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Returns milliseconds since the epoch, rounded down; 0 before it.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0 / 1_000).unwrap_or(0)
    }

    /// Returns whole seconds since the epoch, rounded down; 0 before it.
    pub fn secs(self) -> u64 {
        u64::try_from(self.0 / 1_000_000).unwrap_or(0)
    }

    /// Returns the time from `earlier` to this timestamp, or zero if `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Timestamp;
    fn add(self, by: Duration) -> Timestamp {
        Self(
            self.0
                .saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)),
        )
    }
}

impl std::ops::Sub<Duration> for Timestamp {
    type Output = Timestamp;
    fn sub(self, by: Duration) -> Timestamp {
        Self(
            self.0
                .saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)),
        )
    }
}

impl Timestamp {
    /// Formats as RFC 3339 in UTC, to the millisecond.
    pub fn precise(self) -> String {
        DateTime::from_timestamp_micros(self.0).map_or_else(
            || self.to_string(),
            |at| at.to_rfc3339_opts(SecondsFormat::Millis, true),
        )
    }
}

/// Formats as RFC 3339 in UTC, to the second.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_timestamp_micros(self.0) {
            Some(at) => f.write_str(&at.to_rfc3339_opts(SecondsFormat::Secs, true)),
            None => write!(f, "{} µs", self.0),
        }
    }
}

/// The source of the current time: the system, or a value that a test sets.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The system's wall clock.
    System,
    /// A clock that changes only by [`Clock::advance`].
    Settable(Arc<AtomicI64>),
    /// A settable clock with an error: the common time, and the difference in microseconds.
    Skewed(Arc<AtomicI64>, Arc<AtomicI64>),
    /// A clock that is corrected by a number of microseconds, because the time of the database is authoritative.
    Corrected(Box<Clock>, Arc<AtomicI64>),
}

/// A reading of a monotonic clock, which does not depend on changes of the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uptime(Duration);

impl Uptime {
    /// Returns the time from `earlier` to this reading, or zero if `earlier` is later.
    pub fn since(self, earlier: Uptime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Clock {
    /// Creates a settable clock that shows `start`.
    pub fn settable(start: Timestamp) -> Self {
        Self::Settable(Arc::new(AtomicI64::new(start.micros())))
    }

    /// Returns the current time. One request reads it once.
    #[allow(clippy::disallowed_methods)] // The only place where it is allowed.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp(chrono::Utc::now().timestamp_micros()),
            Self::Settable(at) => Timestamp(at.load(Ordering::SeqCst)),
            Self::Skewed(at, off) => {
                Timestamp(at.load(Ordering::SeqCst) + off.load(Ordering::SeqCst))
            }
            Self::Corrected(clock, by) => Timestamp(
                clock
                    .now()
                    .micros()
                    .saturating_add(by.load(Ordering::Relaxed)),
            ),
        }
    }

    /// Reads the monotonic clock.
    #[allow(clippy::disallowed_methods)] // The only place where it is allowed.
    pub fn uptime(&self) -> Uptime {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        match self {
            Self::System => Uptime(START.elapsed()),
            Self::Settable(at) | Self::Skewed(at, _) => Uptime(Duration::from_micros(
                u64::try_from(at.load(Ordering::SeqCst)).unwrap_or(0),
            )),
            Self::Corrected(clock, _) => clock.uptime(),
        }
    }

    /// Returns the middle between `before` and now. A settable clock does not run, so its current value is returned.
    pub fn halfway(&self, before: Timestamp) -> Timestamp {
        let now = self.now();
        match self {
            Self::System => Timestamp((before.0 + now.0) / 2),
            Self::Settable(_) | Self::Skewed(..) => now,
            Self::Corrected(clock, _) => clock.halfway(before),
        }
    }

    /// Returns the time of the database, which the caller `measured`. A settable clock also sets the time of the
    /// database.
    pub fn database(&self, measured: Timestamp) -> Timestamp {
        match self {
            Self::System => measured,
            Self::Settable(at) | Self::Skewed(at, _) => Timestamp(at.load(Ordering::SeqCst)),
            Self::Corrected(clock, _) => clock.database(measured),
        }
    }

    /// Moves a settable clock forward. Has no effect on the clock of the system.
    pub fn advance(&self, by: Duration) {
        match self {
            Self::Settable(at) | Self::Skewed(at, _) => {
                at.fetch_add(
                    i64::try_from(by.as_micros()).unwrap_or(i64::MAX),
                    Ordering::SeqCst,
                );
            }
            Self::Corrected(clock, _) => clock.advance(by),
            Self::System => {}
        }
    }

    /// Returns the same clock, which [`Clock::correct`] can correct.
    #[must_use]
    pub fn correctable(self) -> Self {
        match self {
            corrected @ Self::Corrected(..) => corrected,
            raw => Self::Corrected(Box::new(raw), Arc::default()),
        }
    }

    /// Returns the clock without its correction.
    pub fn raw(&self) -> &Self {
        match self {
            Self::Corrected(clock, _) => clock,
            raw => raw,
        }
    }

    /// Sets the correction of a correctable clock to `micros` microseconds.
    pub fn correct(&self, micros: i64) {
        if let Self::Corrected(_, by) = self {
            by.store(micros, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamp_rounds_down_and_prints_as_rfc_3339() {
        let at = Timestamp::from_micros(1_763_752_800_999_999);
        assert_eq!(at.secs(), 1_763_752_800);
        assert_eq!(at.to_string(), "2025-11-21T19:20:00Z");
        assert_eq!(Timestamp::from_micros(-5).secs(), 0);
    }

    #[test]
    fn settable_clock_changes_only_by_advance() {
        let clock = Clock::settable(Timestamp::from_secs(10));
        assert_eq!(clock.now(), clock.now());
        clock.advance(Duration::from_secs(5));
        assert_eq!(clock.now().secs(), 15);
    }

    #[test]
    fn correction_changes_time_but_not_uptime() {
        let common = Arc::new(AtomicI64::new(10_000_000));
        let difference = Arc::new(AtomicI64::new(3_000_000));
        let clock = Clock::Skewed(common, difference).correctable();
        let start = clock.uptime();
        assert_eq!(clock.now().secs(), 13);
        clock.correct(-3_000_000);
        assert_eq!((clock.now().secs(), clock.raw().now().secs()), (10, 13));
        assert_eq!(clock.uptime(), start);
        clock.advance(Duration::from_secs(5));
        assert_eq!(clock.uptime().since(start), Duration::from_secs(5));
        assert_eq!(clock.database(Timestamp::from_secs(1)).secs(), 15);
        assert!(Clock::System.uptime() <= Clock::System.uptime());
    }
}
