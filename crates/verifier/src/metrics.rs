//! Metrics of a verifier, for export by the service.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::{Position, Rejected};

/// A snapshot of a verifier's counters and gauges; see [`Verifier::metrics`]. Its `Display` output
/// is in the Prometheus text format.
///
/// [`Verifier::metrics`]: crate::Verifier::metrics
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Metrics {
    /// Rejected tokens since the start, by [`Rejected::reason`]. Reasons that have not occurred are
    /// omitted.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Age of the revocation data. `None` without a subscription, or before the first complete
    /// data.
    pub feed_age: Option<Duration>,
    /// Position up to which the feed has been applied. `None` without a subscription, or before the
    /// first valid frame.
    pub feed_position: Option<Position>,
    /// Number of revocation records.
    pub records: usize,
    /// Memory that the records take, in bytes.
    pub record_bytes: usize,
    /// Rejected frames since the start, by the name of their log event. Events that have not
    /// occurred are omitted.
    pub frames_refused: BTreeMap<&'static str, u64>,
    /// Number of reconnections to the feed.
    pub reconnects: u64,
    /// Number of requests to the introspection endpoint.
    pub introspections: u64,
    /// Whether tokens may be accepted at any age of the revocation data.
    pub fail_open: bool,
    /// Number of tokens that were accepted although the revocation data was older than 60 s.
    pub failed_open: u64,
}

/// All events of [`FrameError`](crate::feed::FrameError).
const FRAME_EVENTS: [&str; 5] = [
    "feed.rejected",
    "feed.rollback",
    "feed.gap",
    "feed.skew",
    "feed.full",
];

/// The counters behind [`Metrics`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    rejected: [AtomicU64; Rejected::REASONS.len()],
    frames: [AtomicU64; FRAME_EVENTS.len()],
    reconnects: AtomicU64,
    introspections: AtomicU64,
    failed_open: AtomicU64,
}

impl Counters {
    pub(crate) fn rejected(&self, rejected: &Rejected) {
        count(&Rejected::REASONS, &self.rejected, rejected.reason());
    }

    pub(crate) fn frame_refused(&self, event: &str) {
        count(&FRAME_EVENTS, &self.frames, event);
    }

    pub(crate) fn reconnected(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn introspected(&self) {
        self.introspections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed_open(&self) {
        self.failed_open.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn metrics(&self) -> Metrics {
        Metrics {
            rejected: nonzero(&Rejected::REASONS, &self.rejected),
            frames_refused: nonzero(&FRAME_EVENTS, &self.frames),
            reconnects: self.reconnects.load(Ordering::Relaxed),
            introspections: self.introspections.load(Ordering::Relaxed),
            failed_open: self.failed_open.load(Ordering::Relaxed),
            ..Metrics::default()
        }
    }
}

fn count(names: &[&str], counters: &[AtomicU64], name: &str) {
    let counter = names
        .iter()
        .zip(counters)
        .find(|(candidate, _)| **candidate == name);
    if let Some((_, counter)) = counter {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns the counters that are not zero.
fn nonzero(names: &[&'static str], counters: &[AtomicU64]) -> BTreeMap<&'static str, u64> {
    let counts = counters
        .iter()
        .map(|counter| counter.load(Ordering::Relaxed));
    let counted = names.iter().copied().zip(counts);
    counted.filter(|(_, count)| *count > 0).collect()
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gauge = |name: &str, value: &dyn fmt::Display| {
            writeln!(f, "# TYPE portcullis_verifier_{name} gauge")?;
            writeln!(f, "portcullis_verifier_{name} {value}")
        };
        if let Some(age) = self.feed_age {
            gauge("feed_age_seconds", &age.as_secs_f64())?;
        }
        gauge("feed_live_records", &self.records)?;
        gauge("feed_record_bytes", &self.record_bytes)?;
        gauge("fail_open", &u8::from(self.fail_open))?;
        let mut counter = |name: &str, value: u64| {
            writeln!(f, "# TYPE portcullis_verifier_{name} counter")?;
            writeln!(f, "portcullis_verifier_{name} {value}")
        };
        counter("feed_reconnects_total", self.reconnects)?;
        counter("introspections_total", self.introspections)?;
        counter("failed_open_total", self.failed_open)?;
        let mut family = |name: &str, label: &str, counts: &BTreeMap<&str, u64>| {
            writeln!(f, "# TYPE portcullis_verifier_{name} counter")?;
            counts.iter().try_for_each(|(value, count)| {
                writeln!(
                    f,
                    r#"portcullis_verifier_{name}{{{label}="{value}"}} {count}"#
                )
            })
        };
        family("rejected_total", "reason", &self.rejected)?;
        family("frames_refused_total", "event", &self.frames_refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_exports_counters_and_gauges() {
        let counters = Counters::default();
        counters.rejected(&Rejected::Expired);
        counters.rejected(&Rejected::Expired);
        counters.rejected(&Rejected::Stale);
        counters.frame_refused("feed.gap");
        counters.introspected();
        let metrics = Metrics {
            feed_age: Some(Duration::from_millis(1500)),
            ..counters.metrics()
        };
        assert_eq!(metrics.rejected["expired"], 2);
        let text = metrics.to_string();
        for line in [
            "portcullis_verifier_feed_age_seconds 1.5\n",
            "portcullis_verifier_rejected_total{reason=\"expired\"} 2\n",
            "portcullis_verifier_rejected_total{reason=\"stale\"} 1\n",
            "portcullis_verifier_frames_refused_total{event=\"feed.gap\"} 1\n",
            "portcullis_verifier_introspections_total 1\n",
            "portcullis_verifier_fail_open 0\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn age_is_omitted_without_data() {
        assert!(!Metrics::default().to_string().contains("age_seconds"));
    }
}
