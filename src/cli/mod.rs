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
mod issuer;
mod keys;
mod manual;
mod migrate;
mod propagation;
mod recover;
mod request;
mod resource;
mod restore;
mod revoke;
mod serve;
mod setup;
mod shown_once;
mod table;
mod token;
mod user;

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::accounts::FieldErrors;
use crate::app::{self, StartError};
use crate::checks;
use crate::cli::command::entropy;
use crate::config::{self as configuration, Config, ConfigError, Overrides};
use crate::db::{self, Store};
use crate::log;

/// OAuth 2.0 and OpenID Connect authorization server.
#[derive(Parser)]
#[command(name = "portcullis", version, about, arg_required_else_help = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// Configuration file (TOML). Repeatable: later files override earlier ones.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    config: Vec<PathBuf>,
    /// Format of the output: table or json [default: table].
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        hide_possible_values = true,
        help_heading = "Global options"
    )]
    format: Option<Output>,
}

const EXAMPLES: &str = "\
Examples:
  portcullis demo
  portcullis serve --issuer https://id.example.com
  portcullis --config portcullis.toml doctor

`portcullis COMMAND --help` shows the options of a command.";

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
    Doctor,
    /// Print a script that completes commands and options in a shell.
    Completion(manual::Completion),
    /// Print the manual page of portcullis or of one command (roff).
    Man(manual::Page),
}

impl Verb {
    /// Returns whether the command prints data that a program may read as JSON.
    fn prints_data(&self) -> bool {
        !matches!(
            self,
            Self::Serve(_) | Self::Demo(_) | Self::Completion(_) | Self::Man(_)
        )
    }
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

/// Returns the option that sets a field.
fn option_of(field: &str) -> String {
    let name = match field {
        "client_id" => "id",
        "client_name" => "name",
        "token_endpoint_auth_method" => "auth-method",
        "token_endpoint_auth_signing_alg" => "assertion-alg",
        "id_token_signed_response_alg" => "id-token-alg",
        "userinfo_signed_response_alg" => "userinfo-alg",
        "redirect_uris" => "redirect-uri",
        "grant_types" => "grant-type",
        "resources" => "resource",
        "cors_origins" => "cors-origin",
        "post_logout_redirect_uris" => "post-logout-redirect-uri",
        "allow_networks" => "allow-network",
        "deny_networks" => "deny-network",
        "claims" => "claim",
        other => other,
    };
    format!("--{}", name.replace('_', "-"))
}

/// Returns the error of invalid fields, each named by its option.
fn invalid(errors: &FieldErrors) -> Exit {
    let lines: Vec<String> = errors
        .0
        .iter()
        .map(|error| format!("{}: {}", option_of(error.field), error.message))
        .collect();
    Exit {
        code: 2,
        message: lines.join("\n"),
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
            message: format!("{}: {}", option_of(error.field), error.why),
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
    if arguments.format.is_some() && !arguments.verb.prints_data() {
        let message = "--format: this command prints no data".to_owned();
        return Err(Exit { code: 2, message }.into());
    }
    let output = arguments.format.unwrap_or_default();
    match arguments.verb {
        Verb::Serve(arguments) => serve::run(&arguments, overrides),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Setup(arguments) => setup::run(&arguments, &load(&overrides)?, output),
        Verb::Migrate(arguments) => migrate::run(&arguments, &load(&overrides)?, output),
        Verb::Client(arguments) => client::run(&arguments, &load(&overrides)?, output),
        Verb::Resource(arguments) => resource::run(&arguments, &load(&overrides)?, output),
        Verb::User(arguments) => user::run(&arguments, &load(&overrides)?, output),
        Verb::Token(arguments) => token::run(&arguments, &load(&overrides)?, output),
        Verb::Keys(arguments) => keys::run(&arguments, || load(&overrides), output),
        Verb::Revoke(arguments) => revoke::run(&arguments, &load(&overrides)?, output),
        Verb::Feed(arguments) => feed::run(&arguments, &load(&overrides)?, output),
        Verb::Recover(arguments) => recover::run(&arguments, &load(&overrides)?, output),
        Verb::Backup(arguments) => backup::run(&arguments, &load(&overrides)?, output),
        Verb::Restore(arguments) => restore::run(&arguments, &load(&overrides)?, output),
        Verb::Healthcheck(arguments) => healthcheck::run(&arguments, &load(&overrides)?, output),
        Verb::Audit(arguments) => audit::run(&arguments, &load(&overrides)?, output),
        Verb::Apply(arguments) => apply::run(&arguments, &load(&overrides)?, output),
        Verb::Config(arguments) => {
            load(&overrides)?;
            config::run(&arguments, &overrides, output)
        }
        Verb::Doctor => doctor::run(&overrides, output),
        Verb::Completion(completion) => completion.run(Arguments::command()),
        Verb::Man(page) => page.run(Arguments::command()),
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
    issuer::warn_of_another(config, &store)?;
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
            message: "the prompt needs a terminal; pass --password-stdin or --generate-password"
                .into(),
        }
        .into());
    }
    rpassword::prompt_password(prompt).context("cannot read from the terminal")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Returns the files below a folder with one of these extensions.
    fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let extension = path
                .extension()
                .and_then(|e| e.to_str())
                .unwrap_or_default();
            if path.is_dir() {
                found.extend(files(&path, extensions));
            } else if extensions.contains(&extension) {
                found.push(path);
            }
        }
        found
    }

    /// Every command that a message, a comment or a document names in backticks exists, with its options. A
    /// placeholder may replace a value.
    #[test]
    fn advised_commands_exist() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut all = files(&root.join("src"), &["rs"]);
        all.extend(files(&root.join("docs"), &["md", "yml"]));
        all.extend(files(&root.join("templates"), &["html"]));
        all.push(root.join("README.md"));
        let mut count = 0;
        for file in all {
            let text = std::fs::read_to_string(&file).unwrap();
            for quoted in text.split('`').skip(1).step_by(2) {
                let Some(command) = quoted.strip_prefix("portcullis ") else {
                    continue;
                };
                if command.contains(['\n', '…', '{', '|', '"', '\''])
                    || command.starts_with("COMMAND")
                {
                    continue;
                }
                // Options in brackets are optional.
                let command = command.replace(['[', ']'], "");
                let words = command.split_whitespace();
                let read = Arguments::try_parse_from(std::iter::once("portcullis").chain(words));
                let missing = clap::error::ErrorKind::MissingRequiredArgument;
                let partial = clap::error::ErrorKind::MissingSubcommand;
                let shown = clap::error::ErrorKind::DisplayHelp;
                let on_missing = clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
                if let Err(error) = read {
                    // A name of a command without its values is a reference to it.
                    let fine = [missing, partial, shown, on_missing].contains(&error.kind());
                    assert!(fine, "{}: `{quoted}`: {error}", file.display());
                }
                count += 1;
            }
        }
        assert!(count > 40, "only {count}");
    }

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
