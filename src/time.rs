//! Instants and the clock: the only module that reads the system's time.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat};

/// An instant: microseconds since 1970-01-01T00:00:00Z. The database stores the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From whole seconds since the epoch, as JWT claims carry them (RFC 7519 §2, NumericDate).
    pub const fn from_secs(secs: u64) -> Self {
        Self((secs as i64).saturating_mul(1_000_000))
    }

    /// Microseconds since the epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Milliseconds since the epoch, rounded down; 0 before it.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0 / 1_000).unwrap_or(0)
    }

    /// Whole seconds since the epoch, rounded down; 0 before it.
    pub fn secs(self) -> u64 {
        u64::try_from(self.0 / 1_000_000).unwrap_or(0)
    }

    /// The time from `earlier` to this instant; zero when `earlier` is later.
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
    /// RFC 3339 in UTC, to the millisecond.
    pub fn precise(self) -> String {
        DateTime::from_timestamp_micros(self.0).map_or_else(
            || self.to_string(),
            |at| at.to_rfc3339_opts(SecondsFormat::Millis, true),
        )
    }
}

/// RFC 3339 in UTC, to the second.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_timestamp_micros(self.0) {
            Some(at) => f.write_str(&at.to_rfc3339_opts(SecondsFormat::Secs, true)),
            None => write!(f, "{} µs", self.0),
        }
    }
}

/// Where "now" comes from: the system, or a value that a test moves.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The system's wall clock.
    System,
    /// A clock that stands still until [`Clock::advance`] moves it.
    Settable(Arc<AtomicI64>),
    /// A settable clock that is wrong: so many microseconds off the one that all others go by.
    Skewed(Arc<AtomicI64>, Arc<AtomicI64>),
    /// A clock that is put right by so many microseconds, since the database's counts.
    Corrected(Box<Clock>, Arc<AtomicI64>),
}

/// How long this machine has been up: it only grows, whatever is done to the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uptime(Duration);

impl Uptime {
    /// The time from `earlier` to this reading; zero when `earlier` is later.
    pub fn since(self, earlier: Uptime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Clock {
    /// A clock that stands at `start`.
    pub fn settable(start: Timestamp) -> Self {
        Self::Settable(Arc::new(AtomicI64::new(start.micros())))
    }

    /// The present instant. One request reads it once.
    #[allow(clippy::disallowed_methods)] // the one place that may
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

    /// A reading of the clock that only grows.
    #[allow(clippy::disallowed_methods)] // the one place that may
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

    /// The reading in the middle between `before` and now. A settable clock stands still but for the
    /// moment in which it is set, so what it shows now counts.
    pub fn halfway(&self, before: Timestamp) -> Timestamp {
        let now = self.now();
        match self {
            Self::System => Timestamp((before.0 + now.0) / 2),
            Self::Settable(_) | Self::Skewed(..) => now,
            Self::Corrected(clock, _) => clock.halfway(before),
        }
    }

    /// What the database's clock shows, which somebody `measured`. A settable clock sets the whole
    /// world's, and that of the database with it.
    pub fn database(&self, measured: Timestamp) -> Timestamp {
        match self {
            Self::System => measured,
            Self::Settable(at) | Self::Skewed(at, _) => Timestamp(at.load(Ordering::SeqCst)),
            Self::Corrected(clock, _) => clock.database(measured),
        }
    }

    /// Moves a settable clock forward; the system's clock cannot be moved and stays.
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

    /// The same clock, to be put right by [`Clock::correct`].
    #[must_use]
    pub fn correctable(self) -> Self {
        match self {
            corrected @ Self::Corrected(..) => corrected,
            raw => Self::Corrected(Box::new(raw), Arc::default()),
        }
    }

    /// The clock as it runs by itself, without its correction.
    pub fn raw(&self) -> &Self {
        match self {
            Self::Corrected(clock, _) => clock,
            raw => raw,
        }
    }

    /// Puts a correctable clock right: from now on it shows `micros` more than it does by itself.
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
    fn an_instant_counts_whole_seconds_down_and_prints_as_rfc_3339() {
        let at = Timestamp::from_micros(1_763_752_800_999_999);
        assert_eq!(at.secs(), 1_763_752_800);
        assert_eq!(at.to_string(), "2025-11-21T19:20:00Z");
        assert_eq!(Timestamp::from_micros(-5).secs(), 0);
    }

    #[test]
    fn a_settable_clock_moves_only_when_told() {
        let clock = Clock::settable(Timestamp::from_secs(10));
        assert_eq!(clock.now(), clock.now());
        clock.advance(Duration::from_secs(5));
        assert_eq!(clock.now().secs(), 15);
    }

    #[test]
    fn a_wrong_clock_is_put_right_and_the_uptime_does_not_care() {
        let world = Arc::new(AtomicI64::new(10_000_000));
        let off = Arc::new(AtomicI64::new(3_000_000));
        let clock = Clock::Skewed(world, off).correctable();
        let up = clock.uptime();
        assert_eq!(clock.now().secs(), 13);
        clock.correct(-3_000_000);
        assert_eq!((clock.now().secs(), clock.raw().now().secs()), (10, 13));
        assert_eq!(clock.uptime(), up);
        clock.advance(Duration::from_secs(5));
        assert_eq!(clock.uptime().since(up), Duration::from_secs(5));
        assert_eq!(clock.database(Timestamp::from_secs(1)).secs(), 15);
        assert!(Clock::System.uptime() <= Clock::System.uptime());
    }
}
