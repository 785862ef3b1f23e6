//! JSON log lines with the field names of the server: `ts` (RFC 3339), `level`, the fields of the
//! event, `target` and `message`.

use std::fmt;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Formats each event as one JSON object per line (RFC 8259).
pub struct JsonLine;

/// The fields of an event.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let mut fields = Fields::default();
        fields.insert("ts", timestamp);
        fields.insert("level", level);
        event.record(&mut fields);
        fields.insert("target", event.metadata().target());
        writeln!(writer, "{}", Value::Object(fields.0))
    }
}

impl Fields {
    fn insert(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field.name(), format!("{value:?}"));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn json_line_has_the_field_names_of_the_server() {
        let buffer = Buffer::default();
        let (output, writer) = (buffer.clone(), move || buffer.clone());
        let lines = tracing_subscriber::fmt()
            .event_format(JsonLine)
            .with_writer(writer);
        tracing::subscriber::with_default(lines.finish(), || {
            tracing::warn!(event = "guard.refused", status = 401, reason = "a\n\"b", cause = ?Some(1), "no");
        });
        let text = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "warn");
        assert_eq!(line["event"], "guard.refused");
        assert_eq!(line["status"], 401);
        assert_eq!(line["reason"], "a\n\"b");
        assert_eq!(line["cause"], "Some(1)");
        assert_eq!(line["message"], "no");
        assert_eq!(line["target"], "portcullis_guard::line::tests");
        assert!(line["ts"].as_str().unwrap().ends_with('Z'));
        let names: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(names.len(), 8, "{names:?}");
    }
}
