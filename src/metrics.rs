//! The metrics of this process, and the page with them (Prometheus text format 0.0.4). A new counter is a line in
//! [`counters`]. A value that is measured when the page is requested is a [`Page::gauge`].

mod events;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use events::{EMBEDDED_EVENTS, LOG_EVENTS, LogEvent, alerts};

/// A label value. Label values come from small fixed sets, never from users, clients or requests.
pub type Label = Cow<'static, str>;

/// A counter with one value per combination of labels.
pub struct Counter<const N: usize> {
    name: &'static str,
    help: &'static str,
    labels: [&'static str; N],
    values: Mutex<BTreeMap<[Label; N], u64>>,
}

impl<const N: usize> Counter<N> {
    const fn new(name: &'static str, labels: [&'static str; N], help: &'static str) -> Self {
        Self {
            name,
            help,
            labels,
            values: Mutex::new(BTreeMap::new()),
        }
    }

    /// Increments the counter.
    pub fn count(&self, labels: [Label; N]) {
        self.add(labels, 1);
    }

    /// Adds `more` to the counter. Adding zero creates the series, so that its first increase is visible.
    pub fn add(&self, labels: [Label; N], more: u64) {
        *lock(&self.values).entry(labels).or_default() += more;
    }

    /// Returns the current value.
    pub fn value(&self, labels: [Label; N]) -> u64 {
        lock(&self.values).get(&labels).copied().unwrap_or_default()
    }

    fn print(&self, page: &mut Page) {
        let mut samples = page.family(self.name, self.help, "counter");
        for (values, count) in &*lock(&self.values) {
            let labels = self.labels.iter().copied().zip(values.iter().map(|v| &**v));
            samples.line("", labels, count);
        }
    }
}

/// The upper bounds of the buckets, in seconds.
const BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
];

/// A histogram of durations with one label.
pub struct Durations {
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: Mutex<BTreeMap<Label, Histogram>>,
}

#[derive(Clone, Copy, Default)]
struct Histogram {
    /// Number of values per bucket, not cumulative.
    buckets: [u64; BUCKETS.len()],
    count: u64,
    total: Duration,
}

impl Durations {
    const fn new(name: &'static str, label: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            label,
            values: Mutex::new(BTreeMap::new()),
        }
    }

    /// Records a duration.
    pub fn observe(&self, label: Label, took: Duration) {
        let mut values = lock(&self.values);
        let histogram = values.entry(label).or_default();
        let seconds = took.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|end| seconds <= *end) {
            histogram.buckets[bucket] += 1;
        }
        histogram.count += 1;
        histogram.total += took;
    }

    fn print(&self, page: &mut Page) {
        let mut samples = page.family(self.name, self.help, "histogram");
        for (value, histogram) in &*lock(&self.values) {
            let mut below = 0;
            for (end, count) in BUCKETS.iter().zip(histogram.buckets) {
                below += count;
                let end = end.to_string();
                samples.line(
                    "_bucket",
                    [(self.label, &**value), ("le", end.as_str())],
                    below,
                );
            }
            samples.line(
                "_bucket",
                [(self.label, &**value), ("le", "+Inf")],
                histogram.count,
            );
            let label = [(self.label, &**value)];
            samples.line("_sum", label, histogram.total.as_secs_f64());
            samples.line("_count", label, histogram.count);
        }
    }
}

macro_rules! counters {
    ($($static:ident: $kind:ty = $name:literal $labels:expr, $help:literal;)*) => {
        $(#[doc = concat!($help, " `", $name, "`.")]
        pub static $static: $kind = <$kind>::new($name, $labels, $help);)*

/// Returns the page with all counters. The caller adds the gauges.
        pub fn page() -> Page {
            let mut page = Page(String::with_capacity(16 * 1024));
            $($static.print(&mut page);)*
            page
        }
    };
}

counters! {
    HTTP_REQUESTS: Counter<3> = "portcullis_http_requests_total" ["route", "method", "status"], "Requests answered on the public listener";
    HTTP_DURATION: Durations = "portcullis_http_request_duration_seconds" "route", "Time until the response to a request began";
    TOKENS_ISSUED: Counter<2> = "portcullis_tokens_issued_total" ["grant", "client_type"], "Successful token responses";
    LOGINS: Counter<2> = "portcullis_login_total" ["method", "result"], "Sign-in attempts";
    REFUSED: Counter<3> = "portcullis_refused_total" ["endpoint", "code", "reason"], "Refusals, by public code and private reason";
    EVENTS: Counter<2> = "portcullis_events_total" ["event", "severity"], "Log events of high and critical severity";
    LOG_DROPPED: Counter<1> = "portcullis_log_dropped_total" ["kind"], "Log lines that were dropped because the reader of stderr is too slow";
    BACKCHANNEL_LOGOUTS: Counter<1> = "portcullis_backchannel_logouts_total" ["result"], "Attempts to tell a client that a session has ended";
    POOL_TIMEOUTS: Counter<0> = "portcullis_db_pool_timeouts_total" [], "Requests that got no database connection in time";
}

/// Creates every series whose labels are known in advance.
pub fn begin() {
    // Each has a series from the start, so that an alert detects its first occurrence.
    for (event, severity) in alerts() {
        EVENTS.add([event.into(), severity.into()], 0);
    }
    for kind in ["access", "event"] {
        LOG_DROPPED.add([kind.into()], 0);
    }
    for result in ["success", "failed", "throttled", "unavailable"] {
        LOGINS.add(["password".into(), result.into()], 0);
    }
    POOL_TIMEOUTS.add([], 0);
}

/// The page in the text format of Prometheus.
pub struct Page(String);

/// Appends the samples of one metric.
pub struct Samples<'a> {
    page: &'a mut String,
    name: &'a str,
}

impl Page {
    /// Adds a gauge. Its samples are added with [`Samples::sample`].
    pub fn gauge<'a>(&'a mut self, name: &'a str, help: &str) -> Samples<'a> {
        self.family(name, help, "gauge")
    }

    /// Adds a counter that is kept elsewhere, such as by the operating system.
    pub fn counter<'a>(&'a mut self, name: &'a str, help: &str) -> Samples<'a> {
        self.family(name, help, "counter")
    }

    fn family<'a>(&'a mut self, name: &'a str, help: &str, kind: &str) -> Samples<'a> {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}.\n# TYPE {name} {kind}");
        Samples {
            page: &mut self.0,
            name,
        }
    }

    /// Returns the text of the page.
    pub fn finish(self) -> String {
        self.0
    }
}

impl Samples<'_> {
    /// Adds a sample with its labels.
    pub fn sample<const N: usize>(
        &mut self,
        labels: [(&str, &str); N],
        value: impl std::fmt::Display,
    ) {
        self.line("", labels, value);
    }

    fn line<'l>(
        &mut self,
        suffix: &str,
        labels: impl IntoIterator<Item = (&'l str, &'l str)>,
        value: impl std::fmt::Display,
    ) {
        let (page, name) = (&mut *self.page, self.name);
        let _ = write!(page, "{name}{suffix}");
        let mut is_open = false;
        for (label, text) in labels {
            let before = if is_open { ',' } else { '{' };
            is_open = true;
            let _ = write!(page, "{before}{label}=\"");
            for c in text.chars() {
                match c {
                    '\\' | '"' => page.extend(['\\', c]),
                    '\n' => page.push_str("\\n"),
                    c => page.push(c),
                }
            }
            page.push('"');
        }
        if is_open {
            page.push('}');
        }
        let _ = writeln!(page, " {value}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_in_the_prometheus_text_format() {
        let mut page = Page(String::new());
        let counter = Counter::new("c_total", ["a", "b"], "Things");
        counter.count(["x".into(), "say \"\\\n".into()]);
        counter.add(["x".into(), "say \"\\\n".into()], 2);
        counter.print(&mut page);
        let durations = Durations::new("d_seconds", "route", "Times");
        durations.observe("/".into(), Duration::from_millis(3));
        durations.observe("/".into(), Duration::from_secs(60));
        durations.print(&mut page);
        page.gauge("g", "A value").sample([], 1.5);
        let text = page.finish();
        assert!(text.starts_with("# HELP c_total Things.\n# TYPE c_total counter\n"));
        assert!(
            text.contains("c_total{a=\"x\",b=\"say \\\"\\\\\\n\"} 3\n"),
            "{text}"
        );
        assert!(text.contains("d_seconds_bucket{route=\"/\",le=\"0.0025\"} 0\n"));
        assert!(text.contains("d_seconds_bucket{route=\"/\",le=\"0.005\"} 1\n"));
        assert!(text.contains("d_seconds_bucket{route=\"/\",le=\"5\"} 1\n"));
        assert!(text.contains("d_seconds_bucket{route=\"/\",le=\"+Inf\"} 2\n"));
        assert!(
            text.contains("d_seconds_sum{route=\"/\"} 60.003\nd_seconds_count{route=\"/\"} 2\n")
        );
        assert!(text.ends_with("# HELP g A value.\n# TYPE g gauge\ng 1.5\n"));
    }
}
