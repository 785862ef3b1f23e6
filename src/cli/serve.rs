//! `serve`: runs the server.

mod manager;
mod reload;
mod stop;

use std::io::{ErrorKind, IsTerminal};
use std::net::ToSocketAddrs;
use std::time::Duration;

use actix_web::web::Data;
use anyhow::Context;
use portcullis_runtime::ShutdownSignals;

use super::Exit;
use crate::app::{App, StartError};
use crate::config::limits::DATABASE_WAIT;
use crate::config::{self, Address, Config, Listen, Overrides};
use crate::http::{BindError, Listeners};
use crate::secret::Entropy;
use crate::time::Clock;
use crate::{log, metrics, telemetry};

pub use stop::{Background, run_until_stopped};

/// The first and the longest pause between two attempts to reach the database.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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
    // A huge page is resident as a whole although little of it is in use.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let config = super::load(&overrides)?;
    log_settings(&overrides)?;
    check_free(&config.listen)?;
    metrics::begin();
    if let Err(why) = telemetry::start(&config.telemetry) {
        tracing::warn!(
            event = "telemetry.unavailable",
            reason = "start",
            error = why,
            "no traces are sent"
        );
    }
    let outcome = actix_web::rt::System::new().block_on(serve(config, overrides));
    telemetry::flush();
    outcome
}

/// Logs the issuer, the database and every value that is not a default, with its source.
fn log_settings(overrides: &Overrides) -> anyhow::Result<()> {
    let settings = config::settings(overrides, config::environment()?)?;
    let is_logged = |setting: &config::Setting| {
        setting.is_set() || ["issuer", "database.url"].contains(&setting.key.as_str())
    };
    for setting in settings.into_iter().filter(is_logged) {
        let value = match &setting.value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        tracing::info!(
            event = "config.value",
            reason = "start",
            key = setting.key,
            value,
            source = setting.source
        );
    }
    Ok(())
}

async fn serve(config: Config, overrides: Overrides) -> anyhow::Result<()> {
    // Before waiting for the database, because an uncaught SIGHUP ends the process.
    let hangups = reload::catch()?;
    let app = Data::new(start(config).await?);
    let signals = ShutdownSignals::install().context("cannot install the signal handlers")?;
    let listeners = bind(&app)?;
    warn_of_relaxations(&app);
    let invitation = invite_administrator(&app).await?;
    let (listen, management) = listeners.shown();
    tracing::info!(
        event = "server.started",
        reason = "command",
        version = env!("CARGO_PKG_VERSION"),
        issuer = app.issuer.as_str(),
        listen,
        management,
        database = if app.store.is_sqlite() {
            "sqlite"
        } else {
            "postgres"
        },
    );
    if let Some(link) = invitation {
        let life = app.config.bootstrap.link;
        // Last, so that no line of the start scrolls it away.
        log::flush();
        eprintln!(
            "\nThere is no administrator yet. Open this address within {life} to create one; it works once:\n\n  {link}\n"
        );
    }
    let mut tasks = background(&app);
    tasks.run(reload::on_hangup(
        hangups,
        app.clone(),
        listeners.limits(),
        overrides,
    ));
    tasks.run(manager::watchdog());
    manager::notify(&[manager::READY]);
    run_until_stopped(app, listeners, signals, tasks).await
}

/// Returns the link that creates the first administrator, if one is needed and stderr is a terminal. Other outputs
/// are logs, which are stored and read by others. The audit events of the start are logged before it returns.
async fn invite_administrator(app: &App) -> Result<Option<String>, StartError> {
    if !std::io::stderr().is_terminal() {
        if !app.ensure_admin().await? {
            tracing::warn!(
                event = "admin.none",
                reason = "start",
                "there is no administrator yet; `portcullis setup link` shows an address to create one"
            );
        }
        return Ok(None);
    }
    let link = app.bootstrap().await?;
    app.write_acks_and_seals().await?;
    Ok(link)
}

/// Starts the node. Waits for a database server that is not available yet, with growing pauses.
async fn start(config: Config) -> Result<App, StartError> {
    let (clock, mut pause) = (Clock::System, FIRST_PAUSE);
    let begun = clock.uptime();
    loop {
        let app = App::start(config.clone(), clock.clone(), Entropy::system()).await;
        let waited = clock.uptime().since(begun);
        match app {
            Err(StartError::Unavailable(why))
                if is_server(&config.database_url()) && waited + pause <= DATABASE_WAIT =>
            {
                tracing::warn!(event = "storage.awaited", reason = "start", error = why);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// Returns whether the database is a server, which may start later than this one.
fn is_server(url: &str) -> bool {
    !url.starts_with("sqlite:")
}

/// Starts the background tasks of the node.
pub fn background(app: &App) -> Background {
    let mut tasks = Background::default();
    app.tasks().into_iter().for_each(|task| tasks.run(task));
    tasks
}

/// Warns of settings that are less strict than the default, and of a missing `http.trusted_proxies`.
fn warn_of_relaxations(app: &App) {
    warn_of_limits(&app.config.limits);
    let (listen, http) = (&app.config.listen, &app.config.http);
    if app.issuer.is_https() && listen.tls.files().is_none() && http.trusted_proxies.is_empty() {
        tracing::warn!(
            event = "http.proxy_undeclared",
            reason = "trusted_proxies",
            "the issuer is https and this listener is not, so there must be a proxy before it; until `http.trusted_proxies` names the proxy, all users share its address and its limits"
        );
    }
}

fn warn_of_limits(limits: &config::Limits) {
    for loose in limits.loosened() {
        tracing::warn!(
            event = "limits.raised",
            reason = "configured",
            limit = loose
        );
    }
}

/// Binds the listeners of the configuration.
pub fn bind(app: &Data<App>) -> anyhow::Result<Listeners> {
    let listen = &app.config.listen;
    Listeners::bind(app, &listen.public, &listen.management).map_err(|error| match &error {
        BindError::Address(address, io) => cannot_listen(listen, address, io),
        BindError::Tls(_) => Exit {
            code: 78,
            message: error.to_string(),
        }
        .into(),
    })
}

/// Fails if another program listens on an address, before a database or a key is created for this server.
fn check_free(listen: &Listen) -> anyhow::Result<()> {
    for address in [&listen.public, &listen.management] {
        let Some(port) = address.port() else { continue };
        // A name that cannot be resolved fails when the listener is bound.
        let resolved = (address.bare_host(), port).to_socket_addrs();
        for resolved in resolved.into_iter().flatten() {
            match std::net::TcpListener::bind(resolved) {
                Err(io) if io.kind() == ErrorKind::AddrInUse => {
                    return Err(cannot_listen(listen, address, &io));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn cannot_listen(listen: &Listen, address: &Address, io: &std::io::Error) -> anyhow::Error {
    let why = match io.kind() {
        ErrorKind::AddrInUse => "another program is listening there".to_owned(),
        _ => io.to_string(),
    };
    let advice = match *address == listen.management {
        true => "set another address with `listen.management`",
        false => "choose another address with `--listen`, `listen.public` or PORT",
    };
    Exit {
        code: 1,
        message: format!("cannot listen on {address}: {why}; {advice}"),
    }
    .into()
}
