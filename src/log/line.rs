//! One event as a line. Whatever a stranger sent stays within its field: control characters are
//! escaped, and no field is longer than 256 characters.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use crate::config::limits::LOG_FIELD_CHARS;
use crate::time::Timestamp;

/// The values of an event, in its order.
#[derive(Default)]
pub(super) struct Fields {
    values: Vec<(&'static str, Value)>,
    message: Option<String>,
    /// Of an event that came through the crate `log`, which keeps it in a field.
    pub(super) target: Option<String>,
}

enum Value {
    Text(String),
    /// Written as it is: a number or a truth value.
    Plain(String),
}

/// One line to be.
pub(super) struct Line<'a> {
    pub(super) at: Timestamp,
    pub(super) level: Level,
    pub(super) node: &'a str,
    pub(super) target: &'a str,
    pub(super) fields: &'a Fields,
}

impl Fields {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let mut fields = Self::default();
        event.record(&mut fields);
        fields
    }

    /// The text of a field.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.values.iter().find_map(|(known, value)| match value {
            Value::Text(text) if *known == name => Some(text.as_str()),
            _ => None,
        })
    }

    fn put(&mut self, field: &Field, value: Value) {
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
        self.put(field, Value::Text(clip(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::Text(clip(&format!("{value:?}"))));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Plain(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Plain(value.to_string()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Plain(value.to_string()));
    }
}

impl Line<'_> {
    /// `ts`, `level`, the event's own fields, `node`, `target`, `message`.
    pub(super) fn json(&self) -> String {
        let mut line = String::with_capacity(384);
        let (at, level) = (self.at.precise(), lower(self.level));
        let _ = write!(line, "{{\"ts\":\"{at}\",\"level\":\"{level}\"");
        let own = self.fields.values.iter().map(|(name, value)| match value {
            Value::Text(text) => (*name, text.as_str(), true),
            Value::Plain(text) => (*name, text.as_str(), false),
        });
        let around = [("node", self.node, true), ("target", self.target, true)];
        let message = self.fields.message.as_deref();
        let message = message.map(|text| ("message", text, true));
        for (name, text, quoted) in own.chain(around).chain(message) {
            let quote = if quoted { "\"" } else { "" };
            let _ = write!(line, ",\"{name}\":{quote}");
            escape(&mut line, text);
            line.push_str(quote);
        }
        line.push_str("}\n");
        line
    }

    /// Time, level, event, message, then the rest as `name=value`.
    pub(super) fn pretty(&self, color: bool) -> String {
        let mut line = String::with_capacity(256);
        let (on, off) = match (color, self.level) {
            (false, _) => ("", ""),
            (true, Level::ERROR) => ("\x1b[31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
            (true, _) => ("\x1b[2m", "\x1b[0m"),
        };
        let (at, level) = (self.at.precise(), self.level.as_str());
        let _ = write!(line, "{at} {on}{level:>5}{off}");
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
            let quote = if text.contains(' ') { "\"" } else { "" };
            let _ = write!(line, " {name}={quote}");
            escape(&mut line, text);
            line.push_str(quote);
        }
        line.push('\n');
        line
    }
}

fn lower(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn clip(text: &str) -> String {
    match text.char_indices().nth(LOG_FIELD_CHARS) {
        None => text.to_owned(),
        Some(_) => {
            let kept = text.chars().take(LOG_FIELD_CHARS - 1);
            kept.chain(['…']).collect()
        }
    }
}

/// The inside of a JSON string (RFC 8259 §7). Escaped beyond what JSON asks for: everything that moves
/// a terminal's cursor, breaks a line, or turns the direction of what follows.
fn escape(line: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '"' | '\\' => line.extend(['\\', c]),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if c.is_control() || turns(c) => {
                let _ = write!(line, "\\u{:04x}", u32::from(c));
            }
            c => line.push(c),
        }
    }
}

/// Line and paragraph separators, marks and overrides of direction, the byte order mark.
fn turns(c: char) -> bool {
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
            at: Timestamp::from_micros(1_763_752_800_123_456),
            level: Level::WARN,
            node: "web1/7",
            target: "portcullis",
            fields: &fields,
        };
        assert_eq!(line.pretty(false).matches('\n').count(), 1);
        assert!(!line.pretty(false).contains('\x1b'));
        line.json()
    }

    #[test]
    fn a_line_is_one_object_whatever_it_is_about() {
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
            let odd = line
                .trim_end()
                .chars()
                .find(|c| c.is_control() || turns(*c));
            assert_eq!(odd, None, "{line}");
            let read: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(read["reason"], text);
        }
    }

    #[test]
    fn a_field_has_at_most_256_characters() {
        let read: serde_json::Value = serde_json::from_str(&line(&"ä".repeat(100_000))).unwrap();
        let text = read["reason"].as_str().unwrap();
        assert_eq!(text.chars().count(), 256);
        assert!(text.ends_with("ä…"));
    }
}
