//! The commands, one file per verb. They print data to stdout and logs to stderr, and read secrets from a
//! prompt or stdin.

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
mod request;
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
use crate::checks;
use crate::cli::command::entropy;
use crate::config::{self as configuration, Config, ConfigError, Overrides};
use crate::db::{self, Store};
use crate::log;

/// OAuth 2.0 and OpenID Connect authorization server.
#[derive(Parser)]
#[command(name = "portcullis", version, about, arg_required_else_help = true)]
struct Arguments {
    /// Configuration file (TOML). Repeatable: later files override earlier ones.
    #[arg(long, global = true, value_name = "FILE")]
    config: Vec<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the server.
    Serve(serve::Arguments),
    /// Start a demo: a server with an empty embedded database, a user, an application and an API.
    Demo(demo::Arguments),
    /// Show the link that creates the first administrator.
    Setup(setup::Arguments),
    /// Migrate the database schema, or show its state.
    Migrate(migrate::Arguments),
    /// Register, change and show applications.
    Client(client::Arguments),
    /// Register, change and show APIs (resource servers).
    Resource(resource::Arguments),
    /// Manage users, their passwords and their sessions.
    User(user::Arguments),
    /// Show what a token is and whether it is active.
    Token(token::Arguments),
    /// Show, plan, rotate, revoke and import signing keys, and manage the keys that encrypt them.
    Keys(keys::Arguments),
    /// Revoke a token, a session, a grant, or everything of a user or client.
    Revoke(revoke::Arguments),
    /// Show the subscribers of the revocation feed.
    Feed(feed::Arguments),
    /// Revoke everything that is in doubt after the database was restored from an older copy.
    Recover(recover::Arguments),
    /// Copy the embedded database to a new file while servers and commands use it.
    Backup(backup::Arguments),
    /// Replace the embedded database with a copy. No server issues anything from it until `recover`.
    Restore(restore::Arguments),
    /// Check whether the server of this configuration is ready. The exit code is 0 if it is.
    Healthcheck(healthcheck::Arguments),
    /// Verify the seals of the audit log, or follow it.
    Audit(audit::Arguments),
    /// Create and change applications, APIs, scopes and users as described in files.
    Apply(apply::Arguments),
    /// Check the configuration, or show every value and its source.
    Config(config::Arguments),
    /// Find the common mistakes: issuer, TLS, database, clock, keys, proxies, listeners.
    Doctor(doctor::Arguments),
}

/// Format of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table.
    #[default]
    Table,
    /// JSON.
    Json,
}

impl Output {
    /// Prints a value as JSON, or the text.
    fn print(self, value: &serde_json::Value, text: impl std::fmt::Display) {
        match self {
            Self::Json => println!("{}", table::json(value)),
            Self::Table => println!("{text}"),
        }
    }
}

/// An error with its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Exit {
    code: u8,
    message: String,
}

/// An invalid value: the field, as files name it, and what is wrong.
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
    fn from(error: UsageError) -> Self {
        Exit {
            code: 2,
            message: error.to_string(),
        }
        .into()
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    if let Err(error) = dumps::forbid() {
        eprintln!("portcullis: cannot prevent memory dumps of this process: {error}");
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

/// Returns the exit code of an error. Scripts and service managers rely on these codes.
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
        Verb::Setup(arguments) => setup::run(&arguments, &load(&overrides)?),
        Verb::Migrate(arguments) => migrate::run(&arguments, &load(&overrides)?),
        Verb::Client(arguments) => client::run(&arguments, &load(&overrides)?),
        Verb::Resource(arguments) => resource::run(&arguments, &load(&overrides)?),
        Verb::User(arguments) => user::run(&arguments, &load(&overrides)?),
        Verb::Token(arguments) => token::run(&arguments, &load(&overrides)?),
        Verb::Keys(arguments) => keys::run(&arguments, || load(&overrides)),
        Verb::Revoke(arguments) => revoke::run(&arguments, &load(&overrides)?),
        Verb::Feed(arguments) => feed::run(&arguments, &load(&overrides)?),
        Verb::Recover(arguments) => recover::run(&arguments, &load(&overrides)?),
        Verb::Backup(arguments) => backup::run(&arguments, &load(&overrides)?),
        Verb::Restore(arguments) => restore::run(&arguments, &load(&overrides)?),
        Verb::Healthcheck(arguments) => healthcheck::run(&arguments, &load(&overrides)?),
        Verb::Audit(arguments) => audit::run(&arguments, &load(&overrides)?),
        Verb::Apply(arguments) => apply::run(&arguments, &load(&overrides)?),
        Verb::Config(arguments) => {
            load(&overrides)?;
            config::run(&arguments, &overrides)
        }
        Verb::Doctor(arguments) => doctor::run(&arguments, &overrides),
    }
}

fn load(overrides: &Overrides) -> anyhow::Result<Config> {
    let environment = configuration::environment()?;
    let config = configuration::load(overrides, environment.clone())?;
    log::start(&config.log, command::clock());
    warn_of_ignored(&environment);
    Ok(config)
}

/// Warns of variables that look like settings and are not read.
fn warn_of_ignored(environment: &[(String, String)]) {
    for ignored in configuration::ignored_variables(environment) {
        tracing::warn!(
            event = "config.ignored",
            reason = "spelling",
            variable = ignored.name,
            "this variable is not read; did you mean {}?",
            ignored.expected
        );
    }
}

/// Opens the database of a command. An embedded database must exist: otherwise a command that is run in the wrong
/// directory would create an empty one.
fn open(config: &Config) -> anyhow::Result<Store> {
    let url = config.database_url();
    if let Some(path) = url.strip_prefix("sqlite:")
        && !std::path::Path::new(path).exists()
    {
        let place = std::path::absolute(path).unwrap_or_else(|_| path.into());
        return Err(StartError::Configuration(format!(
"there is no database at {}; run this command in the directory of the server, with its configuration",
            place.display()
        ))
        .into());
    }
    open_or_create(config)
}

/// Opens the database of a command that may run before the first start of a server. The schema must be the one
/// of this binary.
fn open_or_create(config: &Config) -> anyhow::Result<Store> {
    let store = app::open(config, entropy())?;
    checks::schema(config, &store)?;
    Ok(store)
}

/// Runs the asynchronous work of a command.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(work)
}

/// Reads a secret from stdin (one line) or, on a terminal, from a prompt that does not show it.
fn read_secret(prompt: &str, from_stdin: bool) -> anyhow::Result<String> {
    if from_stdin {
        let mut text = String::new();
        std::io::stdin()
            .take(64 * 1024)
            .read_to_string(&mut text)
            .context("cannot read stdin")?;
        return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Exit {
            code: 2,
            message: "the prompt needs a terminal; pass --password-stdin".into(),
        }
        .into());
    }
    rpassword::prompt_password(prompt).context("cannot read from the terminal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kid_may_begin_with_hyphens() {
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
