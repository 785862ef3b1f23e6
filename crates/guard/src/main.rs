//! `portcullis-guard`: forward authentication beside a proxy. The proxy asks about each request;
//! the guard says whether its token may pass, from memory, with every revocation that is known.
//!
//! | File | |
//! |---|---|
//! | `settings.rs`, `address.rs`, `span.rs` | what an operator sets |
//! | `route.rs`, `path.rs` | which token a request needs, and paths that have one reading |
//! | `asked.rs`, `answer.rs` | what a proxy asks, what it is told |
//! | `guard.rs` | the decision |
//! | `issuer.rs` | the way to the issuer |
//! | `server.rs` | the listener |
//! | `line.rs`, `writer.rs` | a log line for machines, and the thread that writes it |

#![forbid(unsafe_code)]

mod address;
mod answer;
mod asked;
mod connections;
mod guard;
mod issuer;
mod line;
mod path;
#[cfg(test)]
mod readings;
mod route;
mod server;
mod settings;
mod span;
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
use crate::writer::Lines;

/// Forward authentication for services behind a proxy: accepts the access tokens of a Portcullis
/// server, and refuses revoked ones within a second.
#[derive(Parser)]
#[command(name = "portcullis-guard", version)]
struct Arguments {
    /// The settings, with the routes.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/portcullis/guard.toml"
    )]
    config: PathBuf,
    /// Check the settings, and do nothing else.
    #[arg(long)]
    check: bool,
}

/// An end that is no success.
#[derive(Debug)]
struct Exit {
    /// 1 failed, 77 not permitted, 78 settings are wrong.
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
            writer::say(&format!("portcullis-guard: {}", exit.message.trim_end()));
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
        return check(arguments, &settings);
    }
    start_log(&settings.log);
    System::new().block_on(serve(settings))
}

/// Everything that a start refuses before it asks the issuer.
fn check(arguments: &Arguments, settings: &Settings) -> Result<(), Exit> {
    let refused = issuer::describe(settings).check();
    refused.map_err(|error| Exit::settings(error.to_string()))?;
    let routes = match settings.routes.len() {
        1 => "1 route".to_owned(),
        many => format!("{many} routes"),
    };
    let (file, issuer) = (arguments.config.display(), &settings.issuer);
    println!(
        "{file} is right: {routes}, tokens of {issuer}, asked at {}",
        settings.listen
    );
    Ok(())
}

/// Logs to stderr: JSON lines, or readable on a terminal.
fn start_log(log: &Log) {
    let json = match log.format {
        Format::Json => true,
        Format::Pretty => false,
        Format::Auto => !std::io::stderr().is_terminal(),
    };
    // A log that nobody reads any more must not take the guard down.
    let stderr = Lines::start();
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
    let signals = StopSignals::catch()?;
    let builder = issuer::describe(&settings);
    let guard = Data::new(Guard::new(settings.routes));
    let server = server::bind(&guard, &settings.listen)?;
    let socket = match &settings.listen {
        Address::Unix(path) => Socket::at(path),
        Address::Tcp(..) => None,
    };
    let (stopped, handle) = (guard.clone(), server.handle());
    spawn(async move { signals.stop(&stopped, &handle).await });
    let outcome = serve_from_the_start(server, builder, &guard).await;
    if let Some(socket) = socket {
        socket.remove();
    }
    outcome
}

/// Answers while the issuer is looked for, and from then on.
async fn serve_from_the_start(
    mut server: Server,
    builder: Builder,
    guard: &Guard,
) -> Result<(), Exit> {
    let failed = |error| Exit {
        code: 1,
        message: format!("the server failed: {error}"),
    };
    let verifier = tokio::select! {
        served = &mut server => return served.map_err(failed),
        reached = issuer::reach(builder) => reached?,
    };
    tracing::info!(event = "guard.started", issuer = verifier.issuer());
    guard.begin(verifier);
    server.await.map_err(failed)
}

/// The signals that end a guard. Caught from the moment on when this is made.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn catch() -> Result<Self, Exit> {
        let catch = |kind| {
            signal(kind).map_err(|error| Exit {
                code: 1,
                message: format!("signals cannot be caught: {error}"),
            })
        };
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Finishes what runs; a second signal stops at once.
    async fn stop(mut self, guard: &Guard, handle: &ServerHandle) {
        self.next().await;
        tracing::info!(event = "guard.stopping");
        guard.stop();
        tokio::select! {
            () = handle.stop(true) => {}
            () = self.next() => handle.stop(false).await,
        }
    }
}
