//! `serve`: the server.

use actix_web::web::Data;
use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, audit, start_log};
use crate::app::App;
use crate::config::limits::{CLEAN_UP_BATCH, CLEAN_UP_EVERY};
use crate::config::{self, Config, Overrides};
use crate::http::{BindError, Listeners};
use crate::secret::Entropy;
use crate::time::Clock;

#[derive(clap::Args)]
pub struct Arguments {
    /// The issuer, such as https://id.example.com (`issuer`).
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// The public address, host:port (`listen.public`).
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
}

pub fn run(arguments: &Arguments, mut overrides: Overrides) -> anyhow::Result<()> {
    overrides
        .values
        .extend(arguments.issuer.clone().map(|value| ("issuer", value)));
    overrides.values.extend(
        arguments
            .listen
            .clone()
            .map(|value| ("listen.public", value)),
    );
    let config = config::load(&overrides, std::env::vars())?;
    start_log(&config.log);
    actix_web::rt::System::new().block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let app = Data::new(App::start(config, Clock::System, Entropy::system()).await?);
    let signals = StopSignals::catch()?;
    let listeners = bind(&app)?;
    warn_of_relaxations(&app);
    if let Some(link) = app.bootstrap().await? {
        // For the eyes of whoever started it; no log keeps it.
        let life = app.config.bootstrap.link;
        eprintln!(
            "\nThere is no administrator yet. Open this address within {life} to make one; it works once:\n\n  {link}\n"
        );
    }
    tracing::info!(
        event = "server.started",
        version = env!("CARGO_PKG_VERSION"),
        issuer = app.issuer.as_str(),
        listen = %app.config.listen.public,
        management = %app.config.listen.management,
        database = if app.store.is_sqlite() { "sqlite" } else { "postgres" },
    );
    background(&app);
    run_until_stopped(listeners, signals).await
}

/// Starts what every node does beside answering.
pub fn background(app: &Data<App>) {
    let (poll, keep) = (app.clone(), app.clone());
    actix_web::rt::spawn(async move { poll.follow_keys().await });
    actix_web::rt::spawn(async move { keep.keep_keys().await });
    actix_web::rt::spawn(clean_up(app.clone()));
    actix_web::rt::spawn(audit::seal_for_ever(app.clone()));
}

/// What an operator set looser than the default, or left out, is told at each start.
fn warn_of_relaxations(app: &App) {
    for loose in app.config.limits.loosened() {
        tracing::warn!(
            event = "limits.raised",
            reason = "configured",
            limit = loose
        );
    }
    let (listen, http) = (&app.config.listen, &app.config.http);
    if app.issuer.is_https() && listen.tls.files().is_none() && http.trusted_proxies.is_empty() {
        tracing::warn!(
            event = "http.proxy_undeclared",
            reason = "trusted_proxies",
            "the issuer is https and this listener is not, so a proxy must stand in front; until `http.trusted_proxies` names it, all people share one address and its limits"
        );
    }
}

/// Removes what is dead, a batch a minute, and at once again while batches are full.
async fn clean_up(app: Data<App>) {
    let mut minute = tokio::time::interval(CLEAN_UP_EVERY);
    loop {
        minute.tick().await;
        if !app.keeper.settled() {
            continue;
        }
        let now = app.clock.now();
        loop {
            match app.store.transaction(move |tx| tx.sweep(now)).await {
                Ok(removed) if i64::try_from(removed).is_ok_and(|rows| rows >= CLEAN_UP_BATCH) => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::error!(event = "storage.error", reason = "clean_up", %error);
                    break;
                }
            }
        }
    }
}

/// Binds the listeners of the configuration.
pub fn bind(app: &Data<App>) -> anyhow::Result<Listeners> {
    let listen = &app.config.listen;
    Listeners::bind(app, &listen.public, &listen.management).map_err(|error| {
        let (code, message) = match &error {
            BindError::Address(address, io) if io.kind() == std::io::ErrorKind::AddrInUse => (
                1,
                format!("cannot listen on {address}: another program is listening there"),
            ),
            BindError::Address(..) => (1, error.to_string()),
            BindError::Tls(_) => (78, error.to_string()),
        };
        Exit { code, message }.into()
    })
}

/// The signals that stop a server. Caught from the moment on when this is made.
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Catches SIGTERM and Ctrl-C.
    pub fn catch() -> anyhow::Result<Self> {
        let catch = |kind| signal(kind).context("signals cannot be caught");
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
}

/// Serves until a signal, then finishes what runs; a second signal stops at once.
pub async fn run_until_stopped(
    listeners: Listeners,
    mut signals: StopSignals,
) -> anyhow::Result<()> {
    let handle = listeners.handle();
    actix_web::rt::spawn(async move {
        signals.next().await;
        tracing::info!(event = "server.stopping");
        tokio::select! {
            () = handle.stop(true) => {}
            () = signals.next() => handle.stop(false).await,
        }
    });
    listeners.run().await.context("the server failed")
}
