//! OTLP over HTTP: a thread sends batches of spans. If the collector does not respond, spans are dropped.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor,
};

use super::Span;
use crate::config::Telemetry;
use crate::time::Timestamp;

/// Maximum time of a request to the collector.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time that [`flush`] waits.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

static PROCESSOR: OnceLock<BatchSpanProcessor> = OnceLock::new();

/// Starts sending spans. Must not be called within a runtime.
///
/// # Errors
/// A message if the client of the collector cannot be created.
pub fn start(telemetry: &Telemetry) -> Result<(), String> {
    let Some(endpoint) = &telemetry.endpoint else {
        return Ok(());
    };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .with_timeout(TIMEOUT)
        .build()
        .map_err(|error| error.to_string())?;
    let mut processor = BatchSpanProcessor::builder(exporter).build();
    let resource = Resource::builder_empty()
        .with_service_name(telemetry.service_name.clone())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    processor.set_resource(&resource);
    let _ = PROCESSOR.set(processor);
    Ok(())
}

/// Returns whether spans are sent.
pub fn is_on() -> bool {
    PROCESSOR.get().is_some()
}

/// Queues a span.
pub fn record(span: Span) {
    let Some(processor) = PROCESSOR.get() else {
        return;
    };
    let (Ok(trace), Ok(own)) = (
        TraceId::from_hex(&span.trace_id),
        SpanId::from_hex(&span.span_id),
    ) else {
        return;
    };
    let parent = span.parent_id.as_deref();
    let parent = parent.and_then(|id| SpanId::from_hex(id).ok());
    // Semantic conventions of OpenTelemetry for HTTP servers.
    let mut attributes = vec![
        KeyValue::new("http.request.method", span.method),
        KeyValue::new("http.route", span.route.clone()),
        KeyValue::new("http.response.status_code", i64::from(span.status)),
        KeyValue::new("portcullis.request_id", span.request_id),
    ];
    attributes.extend(
        span.client_id
            .map(|id| KeyValue::new("portcullis.client_id", id)),
    );
    let start = to_system_time(span.begun);
    processor.on_end(SpanData {
        span_context: SpanContext::new(
            trace,
            own,
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        ),
        parent_span_id: parent.unwrap_or(SpanId::INVALID),
        parent_span_is_remote: parent.is_some(),
        span_kind: SpanKind::Server,
        name: format!("{} {}", span.method, span.route).into(),
        start_time: start,
        end_time: start + span.took,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: if span.status >= 500 {
            Status::error("")
        } else {
            Status::Unset
        },
        instrumentation_scope: InstrumentationScope::builder("portcullis").build(),
    });
}

/// Sends the queued spans, for at most two seconds. Must not be called within a runtime.
pub fn flush() {
    if let Some(processor) = PROCESSOR.get() {
        // Spans are lost if the collector does not respond.
        let _ = processor.shutdown_with_timeout(FLUSH_TIMEOUT);
    }
}

fn to_system_time(at: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(at.micros()).unwrap_or(0))
}
