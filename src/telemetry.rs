//! Traces (OpenTelemetry): one span per request, with the ids that its log lines carry. Without the
//! feature `otel` nothing is sent.

#[cfg(feature = "otel")]
mod otlp;

use std::time::Duration;

#[cfg(not(feature = "otel"))]
use crate::config::Telemetry;
use crate::time::Timestamp;

/// A request that was answered. Never a query, a secret or a name of a person.
#[derive(Clone, Debug)]
pub struct Span {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits: this request.
    pub span_id: String,
    /// 16 hexadecimal digits: the proxy's part in it.
    pub parent_id: Option<String>,
    /// When it came.
    pub begun: Timestamp,
    /// Until its answer began.
    pub took: Duration,
    /// The method.
    pub method: &'static str,
    /// The pattern of its route.
    pub route: String,
    /// The status of its answer.
    pub status: u16,
    /// Its id in the log.
    pub request_id: String,
    /// The registered client that it was from or about.
    pub client_id: Option<String>,
}

#[cfg(feature = "otel")]
pub use otlp::{flush, is_on, record, start};

/// Starts to send what is recorded. Not from within a runtime.
///
/// # Errors
/// A sentence, when a collector is named and this binary cannot speak to it.
#[cfg(not(feature = "otel"))]
pub fn start(telemetry: &Telemetry) -> Result<(), String> {
    match telemetry.endpoint {
        None => Ok(()),
        Some(_) => Err("this binary was built without the feature `otel`".to_owned()),
    }
}

/// Whether anything is sent.
#[cfg(not(feature = "otel"))]
pub const fn is_on() -> bool {
    false
}

/// Sends a span, some time later.
#[cfg(not(feature = "otel"))]
pub fn record(_: Span) {}

/// Sends what is still here, two seconds at most. Not from within a runtime.
#[cfg(not(feature = "otel"))]
pub fn flush() {}
