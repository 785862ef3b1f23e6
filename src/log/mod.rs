//! The log: one JSON object per line on stderr, or lines for people. Nothing waits for whoever reads it.

mod line;
mod writer;

use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;

use tracing::Subscriber;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::config::{Format, Log};
use crate::metrics::{ALARMS, EVENTS};
use crate::time::Clock;
use line::{Fields, Line};
pub use writer::flush;

/// The target of access lines; when nobody reads the log they are given up first.
pub const ACCESS: &str = "access";

/// What the web framework says of its own starts and stops, and of requests that cannot be read, we say
/// ourselves.
const QUIET: &str = "actix_server=warn,actix_http::h1::dispatcher=off";

static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts the log of this process. Only the first call does.
pub fn start(log: &Log) {
    let Ok(filter) = filter(&log.level) else {
        return;
    };
    let terminal = std::io::stderr().is_terminal();
    let lines = Lines {
        json: match log.format {
            Format::Json => true,
            Format::Pretty => false,
            Format::Auto => !terminal,
        },
        color: terminal && std::env::var_os("NO_COLOR").is_none(),
        node: node(),
        clock: Clock::System,
    };
    let (filter, handle) = reload::Layer::new(filter);
    let log = tracing_subscriber::registry().with(filter).with(lines);
    if log.try_init().is_ok() {
        let _ = LEVEL.set(handle);
        writer::start();
        std::panic::set_hook(Box::new(panicked));
    }
}

/// Takes another level from now on.
///
/// # Errors
/// A sentence; the old level stays.
pub fn set_level(level: &str) -> Result<(), String> {
    let filter = filter(level)?;
    match LEVEL.get() {
        Some(handle) => handle.reload(filter).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(format!("{QUIET},{level}")).map_err(|error| error.to_string())
}

/// This process among all nodes: the machine's name and the process id.
fn node() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    format!("{name}/{}", std::process::id())
}

/// A panic is one line like any other. What it says may hold anything, unless it is a fixed text.
fn panicked(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string);
    let said = info.payload().downcast_ref::<&'static str>();
    tracing::error!(
        event = "server.panicked",
        reason = "panic",
        severity = "high",
        place,
        said
    );
}

/// Writes every event as one line, and counts those that are alarms.
struct Lines {
    json: bool,
    color: bool,
    node: String,
    clock: Clock,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let fields = Fields::of(event);
        count(&fields);
        let line = Line {
            at: self.clock.now(),
            level: *event.metadata().level(),
            node: &self.node,
            target: fields
                .target
                .as_deref()
                .unwrap_or(event.metadata().target()),
            fields: &fields,
        };
        let text = match self.json {
            true => line.json(),
            false => line.pretty(self.color),
        };
        writer::push(text, line.target == ACCESS);
    }
}

fn count(fields: &Fields) {
    let alarm = fields
        .text("severity")
        .filter(|severity| ["high", "critical"].contains(severity));
    let (Some(severity), Some(event)) = (alarm, fields.text("event")) else {
        return;
    };
    match ALARMS.iter().find(|known| **known == (event, severity)) {
        Some((event, severity)) => EVENTS.count([(*event).into(), (*severity).into()]),
        None => EVENTS.count([event.to_owned().into(), severity.to_owned().into()]),
    }
}
