//! `portcullis-guard`: forward authentication for services behind a reverse proxy.
//!
//! The proxy asks the guard about each request. The guard decides from memory whether the request's
//! access token is valid, and applies every revocation that it has received.
//!
//! | File | Contents |
//! |---|---|
//! | `settings.rs`, `address.rs`, `duration.rs` | settings, and the types of their values |
//! | `route.rs`, `path.rs` | the token that a request needs; paths without ambiguity |
//! | `asked.rs`, `answer.rs` | requests of a proxy, and the responses to them |
//! | `guard.rs` | the decision |
//! | `issuer.rs` | the connection to the issuer |
//! | `server.rs` | the HTTP listener |
//! | `line.rs`, `writer.rs` | JSON log lines, and the thread that writes them |
//!
//! `interpretations.rs` tests that services with other path parsers serve no other route.

#![forbid(unsafe_code)]

mod address;
mod answer;
mod asked;
mod connections;
mod duration;
mod guard;
#[cfg(test)]
mod interpretations;
mod issuer;
mod line;
mod path;
mod route;
mod server;
mod settings;
mod writer;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use actix_web::dev::{Server, ServerHandle};
use actix_web::rt::{System, spawn};
use actix_web::web::Data;
use clap::Parser;
use portcullis_verifier::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::address::Address;
use crate::guard::Guard;
use crate::line::JsonLine;
use crate::server::Socket;
use crate::settings::{Format, Log, Settings};
use crate::writer::LogWriter;

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
    System::new().block_on(serve(settings))
}

/// Reports every error that prevents a start and can be found without the issuer.
fn check_settings(arguments: &Arguments, settings: &Settings) -> Result<(), Exit> {
    let result = issuer::verifier_builder(settings).check();
    result.map_err(|error| Exit::settings(error.to_string()))?;
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
    let json = match log.format {
        Format::Json => true,
        Format::Pretty => false,
        Format::Auto => !std::io::stderr().is_terminal(),
    };
    // A closed or blocked stderr must not stop the guard.
    let stderr = LogWriter::start();
    let lines = fmt::layer()
        .with_writer(move || stderr)
        .log_internal_errors(false);
    let lines = if json {
        lines.event_format(JsonLine).boxed()
    } else {
        lines.compact().boxed()
    };
    let filtered = lines.with_filter(log.level.0.clone());
    tracing_subscriber::registry().with(filtered).init();
}

async fn serve(settings: Settings) -> Result<(), Exit> {
    let signals = ShutdownSignals::install()?;
    let builder = issuer::verifier_builder(&settings);
    let guard = Data::new(Guard::new(settings.routes));
    let server = server::bind(&guard, &settings.listen)?;
    let socket = match &settings.listen {
        Address::Unix(path) => Socket::at(path),
        Address::Tcp(..) => None,
    };
    let (stopping, handle) = (guard.clone(), server.handle());
    spawn(async move { signals.shut_down(&stopping, &handle).await });
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

/// Handlers of SIGTERM and SIGINT, in effect as soon as this value exists.
struct ShutdownSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl ShutdownSignals {
    fn install() -> Result<Self, Exit> {
        let install = |kind| {
            signal(kind).map_err(|error| Exit {
                code: 1,
                message: format!("cannot install the signal handlers: {error}"),
            })
        };
        Ok(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for a signal and shuts the server down gracefully. A second signal stops it at once.
    async fn shut_down(mut self, guard: &Guard, handle: &ServerHandle) {
        self.recv().await;
        tracing::info!(event = "guard.stopping");
        guard.begin_shutdown();
        tokio::select! {
            () = handle.stop(true) => {}
            () = self.recv() => handle.stop(false).await,
        }
    }
}
