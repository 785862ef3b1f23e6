//! `portcullis-guard`: forward authentication for services behind a reverse proxy.
//!
//! The proxy asks the guard about each request. The guard decides from memory whether the request's
//! access token is valid, and applies every revocation that it has received.
//!
//! | File | Contents |
//! |---|---|
//! | `settings.rs` | settings, and the types of their values |
//! | `route.rs`, `path.rs` | the token that a request needs; paths without ambiguity |
//! | `asked.rs`, `answer.rs` | requests of a proxy, and the responses to them |
//! | `guard.rs` | the decision |
//! | `issuer.rs` | the connection to the issuer |
//! | `server.rs` | the HTTP listener |
//!
//! Log lines, durations, addresses and shutdown signals come from `portcullis-runtime`.
//!
//! `interpretations.rs` tests that services with other path parsers serve no other route.

#![forbid(unsafe_code)]

mod answer;
mod asked;
mod connections;
mod guard;
#[cfg(test)]
mod interpretations;
mod issuer;
mod path;
mod route;
mod server;
mod settings;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use actix_web::dev::{Server, ServerHandle};
use actix_web::rt::{System, spawn};
use actix_web::web::Data;
use clap::Parser;
use portcullis_runtime::{Address, LogFormat, LogLines, ShutdownSignals, writer};
use portcullis_verifier::Builder;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::guard::{DROPPED_LINES, Guard};
use crate::server::Socket;
use crate::settings::{Format, Log, Settings};

/// Capacity of the log queue, in lines of about 200 bytes.
const LOG_QUEUE_LINES: usize = 4096;

/// Forward authentication for services behind a reverse proxy: accepts the access tokens of a
/// Portcullis server and refuses revoked ones within a second.
#[derive(Parser)]
#[command(name = "portcullis-guard", version)]
struct Arguments {
    /// Settings file, including the routes.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/portcullis/guard.toml"
    )]
    config: PathBuf,
    /// Check the settings and exit.
    #[arg(long)]
    check: bool,
}

/// A failure that ends the process.
#[derive(Debug)]
struct Exit {
    /// Exit code: 1 general failure, 77 permission denied, 78 invalid settings.
    code: u8,
    message: String,
}

impl Exit {
    fn settings(message: String) -> Self {
        Self { code: 78, message }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let code = match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            writer::write_last_line(&format!("portcullis-guard: {}", exit.message.trim_end()));
            ExitCode::from(exit.code)
        }
    };
    writer::flush();
    code
}

fn run(arguments: &Arguments) -> Result<(), Exit> {
    let settings =
        Settings::load(&arguments.config, std::env::vars_os()).map_err(Exit::settings)?;
    if arguments.check {
        return check_settings(arguments, &settings);
    }
    start_log(&settings.log);
    for (variable, expected) in &settings.ignored {
        tracing::warn!(
            event = "guard.ignored",
            variable,
            "this variable is not read; did you mean {expected}?"
        );
    }
    System::new().block_on(serve(settings))
}

/// Reports every error that prevents a start and can be found without the issuer.
fn check_settings(arguments: &Arguments, settings: &Settings) -> Result<(), Exit> {
    let result = issuer::verifier_builder(settings).check();
    result.map_err(|error| Exit::settings(error.to_string()))?;
    for (variable, expected) in &settings.ignored {
        writer::write_last_line(&format!(
            "portcullis-guard: warning: {variable} is not read; did you mean {expected}?"
        ));
    }
    let routes = match settings.routes.len() {
        1 => "1 route".to_owned(),
        count => format!("{count} routes"),
    };
    let (file, issuer) = (arguments.config.display(), &settings.issuer);
    println!(
        "{file} is valid: {routes}, tokens of {issuer}, listening at {}",
        settings.listen
    );
    Ok(())
}

/// Starts logging to stderr, as JSON lines or in a human-readable format.
fn start_log(log: &Log) {
    let terminal = std::io::stderr().is_terminal();
    let pretty = LogFormat::Pretty {
        color: terminal && std::env::var_os("NO_COLOR").is_none(),
    };
    writer::start(writer::Settings {
        lines: LOG_QUEUE_LINES,
        bytes: usize::MAX,
        access_bytes: usize::MAX,
        count_dropped: |_| {
            DROPPED_LINES.fetch_add(1, Ordering::Relaxed);
        },
        report_dropped: |lines| {
            tracing::error!(event = "log.dropped", reason = "slow_reader", lines);
        },
    });
    let lines = LogLines {
        format: match log.format {
            Format::Pretty => pretty,
            Format::Auto if terminal => pretty,
            Format::Json | Format::Auto => LogFormat::Json,
        },
        node: None,
        timestamp: Box::new(timestamp),
        observe: |_| {},
    };
    let filtered = lines.with_filter(log.level.0.clone());
    tracing_subscriber::registry().with(filtered).init();
}

/// Returns the current time as RFC 3339 in UTC.
fn timestamp() -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

async fn serve(settings: Settings) -> Result<(), Exit> {
    let signals = ShutdownSignals::install().map_err(|error| Exit {
        code: 1,
        message: format!("cannot install the signal handlers: {error}"),
    })?;
    let builder = issuer::verifier_builder(&settings);
    let guard = Data::new(Guard::new(settings.routes));
    let server = server::bind(&guard, &settings.listen)?;
    let socket = match &settings.listen {
        Address::Unix(path) => Socket::at(path),
        Address::Tcp { .. } => None,
    };
    let (stopping, handle) = (guard.clone(), server.handle());
    spawn(async move { shut_down(signals, &stopping, &handle).await });
    let result = run_server(server, builder, &guard).await;
    if let Some(socket) = socket {
        socket.remove();
    }
    result
}

/// Serves requests while the verifier starts and after it has started.
async fn run_server(mut server: Server, builder: Builder, guard: &Guard) -> Result<(), Exit> {
    let failed = |error| Exit {
        code: 1,
        message: format!("the server failed: {error}"),
    };
    let verifier = tokio::select! {
        result = &mut server => return result.map_err(failed),
        result = issuer::start_verifier(builder) => result?,
    };
    tracing::info!(event = "guard.started", issuer = verifier.issuer());
    guard.set_verifier(verifier);
    server.await.map_err(failed)
}

/// Waits for a signal and shuts the server down gracefully. A second signal stops it at once.
async fn shut_down(mut signals: ShutdownSignals, guard: &Guard, handle: &ServerHandle) {
    signals.recv().await;
    tracing::info!(event = "guard.stopping");
    guard.begin_shutdown();
    tokio::select! {
        () = handle.stop(true) => {}
        () = signals.recv() => handle.stop(false).await,
    }
}
