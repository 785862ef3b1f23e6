//! What a verifier counts, for the service's own metrics.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::{Position, Rejected};

/// A snapshot of a verifier's counters and gauges; see [`Verifier::metrics`].
/// Its `Display` is the text that Prometheus reads.
///
/// [`Verifier::metrics`]: crate::Verifier::metrics
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Metrics {
    /// Refusals since the start, by [`Rejected::reason`]; reasons that did not occur are not there.
    pub rejected: BTreeMap<&'static str, u64>,
    /// How old the news of revocations is; `None` without a feed, or before its first good frame.
    pub feed_age: Option<Duration>,
    /// What was applied of the feed.
    pub feed_position: Option<Position>,
    /// Records in force.
    pub records: usize,
    /// Memory that they take.
    pub record_bytes: usize,
    /// Frames that were refused, by the name of their log event.
    pub frames_refused: BTreeMap<&'static str, u64>,
    /// Times that the feed was connected to anew.
    pub reconnects: u64,
    /// Calls of the introspection endpoint.
    pub introspections: u64,
    /// Whether tokens may pass here however old the news is.
    pub fail_open: bool,
    /// Tokens that passed with news over 60 s old.
    pub failed_open: u64,
}

/// The events of [`Refused`](crate::feed::Refused).
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
            rejected: occurred(&Rejected::REASONS, &self.rejected),
            frames_refused: occurred(&FRAME_EVENTS, &self.frames),
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
        .find(|(known, _)| **known == name);
    if let Some((_, counter)) = counter {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn occurred(names: &[&'static str], counters: &[AtomicU64]) -> BTreeMap<&'static str, u64> {
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
    fn what_is_counted_is_told() {
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
    fn without_news_no_age_is_told() {
        assert!(!Metrics::default().to_string().contains("age_seconds"));
    }
}
