//! Formats an event as one line. Text of an attacker cannot leave its field: control characters are
//! escaped, and a field has at most 256 characters.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

/// Maximum number of characters of a field.
const FIELD_CHARS: usize = 256;

/// The fields of an event, in the order in which they were recorded.
#[derive(Default)]
pub struct Fields {
    values: Vec<(&'static str, Value)>,
    message: Option<String>,
    /// The target of an event of the crate `log`, which records it as a field.
    pub(crate) target: Option<String>,
}

enum Value {
    Text(String),
    /// A number or a boolean, which is written without quotation marks.
    Plain(String),
}

/// An event and its circumstances.
pub(crate) struct Line<'a> {
    pub(crate) timestamp: String,
    pub(crate) level: Level,
    pub(crate) node: Option<&'a str>,
    pub(crate) target: &'a str,
    pub(crate) fields: &'a Fields,
}

impl Fields {
    pub(crate) fn of(event: &Event<'_>) -> Self {
        let mut fields = Self::default();
        event.record(&mut fields);
        fields
    }

    /// Returns the value of a text field.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.iter().find_map(|(field, value)| match value {
            Value::Text(text) if *field == name => Some(text.as_str()),
            _ => None,
        })
    }

    fn insert(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::Text(text)) => self.message = Some(text),
            ("log.target", Value::Text(text)) => self.target = Some(text),
            (name, _) if name.starts_with("log.") => {}
            (name, value) => self.values.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, Value::Text(clip(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, Value::Text(clip(&format!("{value:?}"))));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, Value::Plain(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, Value::Plain(value.to_string()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, Value::Plain(value.to_string()));
    }
}

impl Line<'_> {
    /// Returns a JSON object with `ts`, `level`, the fields of the event, `node`, `target` and `message`.
    pub(crate) fn json(&self) -> String {
        let mut line = String::with_capacity(384);
        let (timestamp, level) = (&self.timestamp, lower_case(self.level));
        let _ = write!(line, "{{\"ts\":\"{timestamp}\",\"level\":\"{level}\"");
        let values = self.fields.values.iter().map(|(name, value)| match value {
            Value::Text(text) => (*name, text.as_str(), true),
            Value::Plain(text) => (*name, text.as_str(), false),
        });
        let common = [
            ("node", self.node),
            ("target", Some(self.target)),
            ("message", self.fields.message.as_deref()),
        ];
        let common = common
            .into_iter()
            .filter_map(|(name, text)| Some((name, text?, true)));
        // A field without a value says nothing.
        let present = |(_, text, _): &(&str, &str, bool)| !text.is_empty();
        for (name, text, is_quoted) in values.chain(common).filter(present) {
            let quote = if is_quoted { "\"" } else { "" };
            let _ = write!(line, ",\"{name}\":{quote}");
            escape(&mut line, text);
            line.push_str(quote);
        }
        line.push_str("}\n");
        line
    }

    /// Returns time, level, event and message, followed by the other fields as `name=value`.
    pub(crate) fn pretty(&self, color: bool) -> String {
        let mut line = String::with_capacity(256);
        let (on, off) = match (color, self.level) {
            (false, _) => ("", ""),
            (true, Level::ERROR) => ("\x1b[31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
            (true, _) => ("\x1b[2m", "\x1b[0m"),
        };
        let (timestamp, level) = (&self.timestamp, self.level.as_str());
        let _ = write!(line, "{timestamp} {on}{level:>5}{off}");
        let event = self.fields.text("event").unwrap_or(self.target);
        for text in [Some(event), self.fields.message.as_deref()]
            .into_iter()
            .flatten()
        {
            line.push(' ');
            escape(&mut line, text);
        }
        for (name, value) in self
            .fields
            .values
            .iter()
            .filter(|(name, _)| *name != "event")
        {
            let (Value::Text(text) | Value::Plain(text)) = value;
            if text.is_empty() {
                continue;
            }
            let quote = if text.contains(' ') { "\"" } else { "" };
            let _ = write!(line, " {name}={quote}");
            escape(&mut line, text);
            line.push_str(quote);
        }
        line.push('\n');
        line
    }
}

fn lower_case(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn clip(text: &str) -> String {
    match text.char_indices().nth(FIELD_CHARS) {
        None => text.to_owned(),
        Some(_) => {
            let start = text.chars().take(FIELD_CHARS - 1);
            start.chain(['…']).collect()
        }
    }
}

/// Appends the contents of a JSON string (RFC 8259 §7). In addition to the characters that JSON requires,
/// escapes all that move the cursor of a terminal, break a line, or change the direction of text.
fn escape(line: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '"' | '\\' => line.extend(['\\', c]),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if is_hidden(c) => {
                let _ = write!(line, "\\u{:04x}", u32::from(c));
            }
            c => line.push(c),
        }
    }
}

/// Returns whether a terminal does not show `c` as a character: a control character, or one that changes the layout of
/// text.
pub fn is_hidden(c: char) -> bool {
    c.is_control() || changes_layout(c)
}

/// Returns whether `c` is a line or paragraph separator, a directional mark or override, or the byte order
/// mark.
fn changes_layout(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        let fields = Fields {
            values: vec![
                ("event", Value::Text("login.failed".to_owned())),
                ("reason", Value::Text(clip(text))),
                ("took_us", Value::Plain("7".to_owned())),
            ],
            message: None,
            target: None,
        };
        let line = Line {
            timestamp: "2025-11-21T19:20:00.123Z".to_owned(),
            level: Level::WARN,
            node: Some("web1/7"),
            target: "portcullis",
            fields: &fields,
        };
        assert_eq!(line.pretty(false).matches('\n').count(), 1);
        assert!(!line.pretty(false).contains('\x1b'));
        line.json()
    }

    #[test]
    fn json_line_is_one_object_for_hostile_text() {
        assert_eq!(
            line("x"),
            "{\"ts\":\"2025-11-21T19:20:00.123Z\",\"level\":\"warn\",\"event\":\"login.failed\",\"reason\":\"x\",\
             \"took_us\":7,\"node\":\"web1/7\",\"target\":\"portcullis\"}\n"
        );
        for text in [
            "x\r\n{\"level\":\"info\"}",
            "\u{1b}[2J",
            "a\u{2028}b\u{202e}c",
            "\"\\\0\u{7f}\u{9b}",
            "ünï",
        ] {
            let line = line(text);
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            let unescaped = line
                .trim_end()
                .chars()
                .find(|c| c.is_control() || changes_layout(*c));
            assert_eq!(unescaped, None, "{line}");
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(parsed["reason"], text);
        }
    }

    #[test]
    fn log_lines_have_no_empty_fields() {
        assert!(!line("").contains("reason"));
    }

    #[test]
    fn field_is_truncated_to_256_characters() {
        let parsed: serde_json::Value = serde_json::from_str(&line(&"ä".repeat(100_000))).unwrap();
        let text = parsed["reason"].as_str().unwrap();
        assert_eq!(text.chars().count(), 256);
        assert!(text.ends_with("ä…"));
    }
}
