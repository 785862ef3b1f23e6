//! Traces (OpenTelemetry): one span per request, with the ids of its log lines. Without the feature `otel`, nothing is
//! sent.

#[cfg(feature = "otel")]
mod otlp;

use std::time::Duration;

#[cfg(not(feature = "otel"))]
use crate::config::Telemetry;
use crate::time::Timestamp;

/// A request with its response. Contains no query, secret or user name.
#[derive(Clone, Debug)]
pub struct Span {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits: the span of this request.
    pub span_id: String,
    /// 16 hexadecimal digits: the span of the reverse proxy.
    pub parent_id: Option<String>,
    /// When the request arrived.
    pub begun: Timestamp,
    /// Time until the response began.
    pub took: Duration,
    /// The request method.
    pub method: &'static str,
    /// The pattern of the route.
    pub route: String,
    /// The status of the response.
    pub status: u16,
    /// The request id in the log.
    pub request_id: String,
    /// The registered client that sent the request, or that it is about.
    pub client_id: Option<String>,
}

#[cfg(feature = "otel")]
pub use otlp::{flush, is_on, record, start};

/// Starts sending spans. Must not be called within a runtime.
///
/// # Errors
/// A message if a collector is configured, because this binary does not support it.
#[cfg(not(feature = "otel"))]
pub fn start(telemetry: &Telemetry) -> Result<(), String> {
    match telemetry.endpoint {
        None => Ok(()),
        Some(_) => Err("this binary was built without the feature `otel`".to_owned()),
    }
}

/// Returns whether spans are sent.
#[cfg(not(feature = "otel"))]
pub const fn is_on() -> bool {
    false
}

/// Queues a span.
#[cfg(not(feature = "otel"))]
pub fn record(_: Span) {}

/// Sends the queued spans, for at most two seconds. Must not be called within a runtime.
#[cfg(not(feature = "otel"))]
pub fn flush() {}
