//! Set-up of the log: one JSON object per line on stderr, or text on a terminal.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;

use portcullis_runtime::writer::{self, LineKind};
use portcullis_runtime::{Fields, LogFormat, LogLines};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{Format, Log};
use crate::metrics::{EVENTS, LOG_DROPPED, alerts};
use crate::time::Clock;

pub use portcullis_runtime::writer::{ACCESS, flush};

/// Number of queued bytes from which access lines are dropped (1 MiB).
const ACCESS_QUEUE_BYTES: usize = 1024 * 1024;
/// Number of queued bytes from which all lines are dropped (8 MiB).
const QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// Suppresses messages of actix that the server logs itself: starts, stops and unreadable requests.
const QUIET: &str = "actix_server=warn,actix_http::h1::dispatcher=off";

static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts the log of this process. Later calls have no effect.
pub fn start(log: &Log, clock: Clock) {
    let Ok(filter) = filter(&log.level) else {
        return;
    };
    let terminal = std::io::stderr().is_terminal();
    let pretty = LogFormat::Pretty {
        color: terminal && std::env::var_os("NO_COLOR").is_none(),
    };
    let lines = LogLines {
        format: match log.format {
            Format::Pretty => pretty,
            Format::Auto if terminal => pretty,
            Format::Json | Format::Auto => LogFormat::Json,
        },
        node: Some(node()),
        timestamp: Box::new(move || clock.now().precise()),
        observe: count_alert,
    };
    writer::start(writer::Settings {
        lines: usize::MAX,
        bytes: QUEUE_BYTES,
        access_bytes: ACCESS_QUEUE_BYTES,
        count_dropped,
        report_dropped,
    });
    let (filter, handle) = reload::Layer::new(filter);
    let log = tracing_subscriber::registry().with(filter).with(lines);
    if log.try_init().is_ok() {
        let _ = LEVEL.set(handle);
        std::panic::set_hook(Box::new(log_panic));
    }
}

/// Changes the level of the running log.
///
/// # Errors
/// A message about an invalid level; the previous level remains in effect.
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

/// Returns the host name and process id, which identify this process among all nodes.
fn node() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    format!("{name}/{}", std::process::id())
}

/// Logs a panic as one line. The message is included only if it is a fixed text, because a formatted
/// message may contain secrets.
fn log_panic(info: &PanicHookInfo<'_>) {
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

fn count_dropped(kind: LineKind) {
    let kind = match kind {
        LineKind::Access => "access",
        LineKind::Event => "event",
    };
    LOG_DROPPED.count([kind.into()]);
}

fn report_dropped(lines: u64) {
    tracing::error!(
        event = "log.dropped",
        reason = "slow_reader",
        severity = "high",
        lines,
        "log lines were dropped because the reader of stderr is too slow"
    );
}

/// Counts events of high and critical severity.
fn count_alert(fields: &Fields) {
    let severity = fields
        .text("severity")
        .filter(|severity| ["high", "critical"].contains(severity));
    let (Some(severity), Some(event)) = (severity, fields.text("event")) else {
        return;
    };
    match alerts().find(|alert| *alert == (event, severity)) {
        Some((event, severity)) => EVENTS.count([event.into(), severity.into()]),
        None => EVENTS.count([event.to_owned().into(), severity.to_owned().into()]),
    }
}
