//! The wall clock and the boot clock of a verifier. All other modules receive the time as a value.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The source of time of a verifier: the system, or a [`ManualClock`] in tests.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<ManualClock>);

impl Clock {
    /// Returns a clock that reads the system's time.
    pub const fn system() -> Self {
        Self(None)
    }

    /// Returns the wall-clock time in seconds since the Unix epoch.
    pub(crate) fn wall_secs(&self) -> u64 {
        self.wall_us() / 1_000_000
    }

    /// Returns the wall-clock time in microseconds since the Unix epoch. A clock that is set before
    /// the epoch returns 0, which is wrong but safe: no token is valid yet.
    pub(crate) fn wall_us(&self) -> u64 {
        match &self.0 {
            Some(manual) => manual.0.wall_us.load(Ordering::Relaxed),
            None => system_wall_us(),
        }
    }

    /// Returns the microseconds since an arbitrary instant, measured by a clock that cannot be set
    /// and that continues while the host is suspended.
    pub(crate) fn boot_us(&self) -> u64 {
        match &self.0 {
            Some(manual) => manual.0.boot_us.load(Ordering::Relaxed),
            None => system_boot_us(),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the only reader of the clock")]
fn system_wall_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, micros)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn system_boot_us() -> u64 {
    use rustix::time::{ClockId, clock_gettime};
    let since = clock_gettime(ClockId::Boottime);
    let whole = u64::try_from(since.tv_sec).unwrap_or(0);
    let rest = u64::try_from(since.tv_nsec).unwrap_or(0);
    whole * 1_000_000 + rest / 1000
}

/// Reads a monotonic clock that may stop while the host is suspended. The wall clock reveals the
/// suspension on these systems, because the age of the feed is the larger of the ages by both
/// clocks.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn system_boot_us() -> u64 {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    micros(START.get_or_init(Instant::now).elapsed())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A clock for tests that advances only when it is set. Clones share the same time.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<ManualTime>);

#[derive(Debug)]
struct ManualTime {
    wall_us: AtomicU64,
    boot_us: AtomicU64,
}

impl ManualClock {
    /// Clocks that show `secs` seconds since the Unix epoch.
    pub fn at(secs: u64) -> Self {
        Self(Arc::new(ManualTime {
            wall_us: AtomicU64::new(secs.saturating_mul(1_000_000)),
            boot_us: AtomicU64::new(1_000_000_000),
        }))
    }

    /// Advances the wall clock and the boot clock.
    pub fn advance(&self, by: Duration) {
        self.0.wall_us.fetch_add(micros(by), Ordering::Relaxed);
        self.0.boot_us.fetch_add(micros(by), Ordering::Relaxed);
    }

    /// Sets the wall clock, in seconds since the Unix epoch. The boot clock does not change.
    pub fn set_wall_secs(&self, secs: u64) {
        let us = secs.saturating_mul(1_000_000);
        self.0.wall_us.store(us, Ordering::Relaxed);
    }

    /// Returns the wall-clock time in microseconds since the Unix epoch.
    pub fn wall_us(&self) -> u64 {
        self.0.wall_us.load(Ordering::Relaxed)
    }
}

impl From<&ManualClock> for Clock {
    fn from(clock: &ManualClock) -> Self {
        Self(Some(clock.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_clocks_advance() {
        let clock = Clock::system();
        let (wall, boot) = (clock.wall_us(), clock.boot_us());
        assert!(clock.wall_secs() > 1_700_000_000);
        std::thread::sleep(Duration::from_millis(2));
        assert!(clock.wall_us() > wall && clock.boot_us() >= boot + 2000);
    }

    #[test]
    fn setting_wall_clock_keeps_boot_clock() {
        let manual = ManualClock::at(1000);
        let clock = Clock::from(&manual);
        let boot = clock.boot_us();
        manual.advance(Duration::from_secs(5));
        assert_eq!(
            (clock.wall_secs(), clock.boot_us()),
            (1005, boot + 5_000_000)
        );
        manual.set_wall_secs(7);
        assert_eq!((clock.wall_secs(), clock.boot_us()), (7, boot + 5_000_000));
    }
}
