//! Commands: one file per verb. Data on stdout, logs on stderr, secrets from a prompt or stdin.

mod apply;
mod audit;
mod backup;
mod client;
mod command;
mod config;
mod demo;
mod doctor;
mod dumps;
mod feed;
mod healthcheck;
mod keys;
mod migrate;
mod propagation;
mod recover;
mod resource;
mod restore;
mod revoke;
mod serve;
mod setup;
mod table;
mod token;
mod user;

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};

use crate::app::{self, StartError};
use crate::config::{self as configuration, Config, ConfigError, Overrides};
use crate::db::{self, Schema, Store};
use crate::log;

/// OAuth 2.0 and OpenID Connect authorization server.
#[derive(Parser)]
#[command(name = "portcullis", version, about, arg_required_else_help = true)]
struct Arguments {
    /// Configuration file (TOML); may be given several times, later ones win.
    #[arg(long, global = true, value_name = "FILE")]
    config: Vec<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the server.
    Serve(serve::Arguments),
    /// Try it: a server on a fresh embedded database, a demo user, a demo application and a demo API.
    Demo(demo::Arguments),
    /// Show a link that makes the first administrator.
    Setup(setup::Arguments),
    /// Bring the database schema up to date, or show how it stands.
    Migrate(migrate::Arguments),
    /// Register and show applications.
    Client(client::Arguments),
    /// Register and show APIs (resource servers).
    Resource(resource::Arguments),
    /// Add people and set their passwords.
    User(user::Arguments),
    /// Say what a token is and whether it stands.
    Token(token::Arguments),
    /// Signing keys: show, plan, rotate, revoke, import; the keys that encrypt them.
    Keys(keys::Arguments),
    /// End a token, a session, a grant, or everything of a user or client.
    Revoke(revoke::Arguments),
    /// Who follows the revocation feed.
    Feed(feed::Arguments),
    /// After the database was restored from an older copy: end everything that is in doubt.
    Recover(recover::Arguments),
    /// Copy the embedded database into a new file, while servers and commands use it.
    Backup(backup::Arguments),
    /// Put a copy in the place of the embedded database. Nothing is issued until `recover`.
    Restore(restore::Arguments),
    /// Ask the server of this configuration whether it is ready; exit code 0 when it is.
    Healthcheck(healthcheck::Arguments),
    /// Check the seals of the audit log, or follow it.
    Audit(audit::Arguments),
    /// Make applications, APIs, scopes and people as files say.
    Apply(apply::Arguments),
    /// Check the configuration, or show every value and where it comes from.
    Config(config::Arguments),
    /// Find the common mistakes: issuer, TLS, database, clock, keys, proxies, listeners.
    Doctor(doctor::Arguments),
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Table,
    /// For scripts.
    Json,
}

impl Output {
    /// Prints the one or the other.
    fn say(self, value: &serde_json::Value, text: impl std::fmt::Display) {
        match self {
            Self::Json => println!("{value:#}"),
            Self::Table => println!("{text}"),
        }
    }
}

/// A failure with the exit code of its kind.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Exit {
    code: u8,
    message: String,
}

/// A value that cannot be what was given: the field, as files name it, and what is wrong with it.
#[derive(Debug)]
struct UsageError {
    field: &'static str,
    why: String,
}

impl UsageError {
    fn new(field: &'static str, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { field, why }
    }
}

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

impl From<UsageError> for anyhow::Error {
    fn from(wrong: UsageError) -> Self {
        Exit {
            code: 2,
            message: wrong.to_string(),
        }
        .into()
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    if let Err(error) = dumps::forbid() {
        eprintln!("portcullis: this system lets the memory of the process be dumped: {error}");
    }
    let arguments = Arguments::parse();
    let outcome = run(arguments);
    log::flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// The exit codes that scripts and service managers rely on.
fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(exit) = error.downcast_ref::<Exit>() {
        return exit.code;
    }
    if error.is::<ConfigError>() {
        return 78;
    }
    match error.downcast_ref::<StartError>() {
        Some(StartError::Configuration(_)) => 78,
        Some(StartError::Unavailable(_)) => 69,
        None if matches!(
            error.downcast_ref::<db::Error>(),
            Some(db::Error::Unavailable(_))
        ) =>
        {
            69
        }
        None => 1,
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let overrides = Overrides {
        files: arguments.config,
        values: Vec::new(),
    };
    match arguments.verb {
        Verb::Serve(arguments) => serve::run(&arguments, overrides),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Setup(arguments) => setup::run(&arguments, &configured(&overrides)?),
        Verb::Migrate(arguments) => migrate::run(&arguments, &configured(&overrides)?),
        Verb::Client(arguments) => client::run(&arguments, &configured(&overrides)?),
        Verb::Resource(arguments) => resource::run(&arguments, &configured(&overrides)?),
        Verb::User(arguments) => user::run(&arguments, &configured(&overrides)?),
        Verb::Token(arguments) => token::run(&arguments, &configured(&overrides)?),
        Verb::Keys(arguments) => keys::run(&arguments, || configured(&overrides)),
        Verb::Revoke(arguments) => revoke::run(&arguments, &configured(&overrides)?),
        Verb::Feed(arguments) => feed::run(&arguments, &configured(&overrides)?),
        Verb::Recover(arguments) => recover::run(&arguments, &configured(&overrides)?),
        Verb::Backup(arguments) => backup::run(&arguments, &configured(&overrides)?),
        Verb::Restore(arguments) => restore::run(&arguments, &configured(&overrides)?),
        Verb::Healthcheck(arguments) => healthcheck::run(&arguments, &configured(&overrides)?),
        Verb::Audit(arguments) => audit::run(&arguments, &configured(&overrides)?),
        Verb::Apply(arguments) => apply::run(&arguments, &configured(&overrides)?),
        Verb::Config(arguments) => config::run(&arguments, &overrides),
        Verb::Doctor(arguments) => doctor::run(&arguments, &overrides),
    }
}

fn configured(overrides: &Overrides) -> anyhow::Result<Config> {
    let config = configuration::load(overrides, configuration::environment()?)?;
    log::start(&config.log, command::clock());
    Ok(config)
}

/// The database for a command. An embedded one must be there: in another folder than the server's an
/// empty one would be made, and would answer.
fn open(config: &Config) -> anyhow::Result<Store> {
    let url = config.database_url();
    if let Some(path) = url.strip_prefix("sqlite:")
        && !std::path::Path::new(path).exists()
    {
        let place = std::path::absolute(path).unwrap_or_else(|_| path.into());
        return Err(StartError::Configuration(format!(
            "there is no database at {}; run this where the server runs, with its configuration",
            place.display()
        ))
        .into());
    }
    open_or_make(config)
}

/// The database for a command that adds to it, which may come before the first start of a server. The
/// schema must be this binary's.
fn open_or_make(config: &Config) -> anyhow::Result<Store> {
    let store = app::open(config)?;
    match store.schema().map_err(StartError::from)? {
        Schema::Current => {}
        Schema::Older(_) if config.database.auto_migrate.unwrap_or(store.is_sqlite()) => {
            store.migrate().map_err(StartError::from)?;
        }
        Schema::Older(_) => {
            return Err(StartError::Configuration(
                "the database schema is older than this binary; run `portcullis migrate up`".into(),
            )
            .into());
        }
        Schema::Newer(_) => {
            return Err(StartError::Configuration(
                "the database was migrated by a newer version of portcullis; run that version"
                    .into(),
            )
            .into());
        }
    }
    Ok(store)
}

/// A runtime for a command that is over when its work is.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime does not start")?
        .block_on(work)
}

/// A secret from stdin (one line) or, on a terminal, from a prompt that shows nothing.
fn read_secret(prompt: &str, from_stdin: bool) -> anyhow::Result<String> {
    if from_stdin {
        let mut text = String::new();
        std::io::stdin()
            .take(64 * 1024)
            .read_to_string(&mut text)
            .context("stdin cannot be read")?;
        return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Exit {
            code: 2,
            message: "there is no terminal to ask on; pass --password-stdin".into(),
        }
        .into());
    }
    rpassword::prompt_password(prompt).context("the terminal cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kid_may_begin_with_hyphens() {
        for kid in ["-SjDlVHGH3r", "-h-Vq", "--Ab", "-"] {
            for arguments in [
                vec!["keys", "revoke", kid, "--reason", "leaked", "--yes"],
                vec!["keys", "revoke", "--yes", "--reason", "leaked", kid],
                vec!["keys", "plan", "--if-revoke", kid],
            ] {
                let read = Arguments::try_parse_from(["portcullis"].iter().chain(&arguments));
                assert!(read.is_ok(), "{arguments:?}: {:?}", read.err());
            }
        }
    }
}
