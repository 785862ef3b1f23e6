//! The subscriber layer that writes log events to stderr.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::line::{Fields, Line};
use crate::writer;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Text for a terminal.
    Pretty {
        /// Whether the level is colored.
        color: bool,
    },
}

/// Writes each event as one line, through the [writer].
pub struct LogLines {
    /// The format of the lines.
    pub format: LogFormat,
    /// The value of the field `node` of JSON lines. If `None`, lines have no such field.
    pub node: Option<String>,
    /// Returns the current time as RFC 3339, for the field `ts`.
    pub timestamp: Box<dyn Fn() -> String + Send + Sync>,
    /// Receives the fields of every event, for example to count it.
    pub observe: fn(&Fields),
}

impl fmt::Debug for LogLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogLines").finish_non_exhaustive()
    }
}

impl<S: Subscriber> Layer<S> for LogLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let fields = Fields::of(event);
        (self.observe)(&fields);
        let line = Line {
            timestamp: (self.timestamp)(),
            level: *event.metadata().level(),
            node: self.node.as_deref(),
            target: fields
                .target
                .as_deref()
                .unwrap_or(event.metadata().target()),
            fields: &fields,
        };
        let text = match self.format {
            LogFormat::Json => line.json(),
            LogFormat::Pretty { color } => line.pretty(color),
        };
        writer::push(text, writer::LineKind::of_target(line.target));
    }
}
