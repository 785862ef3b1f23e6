//! `keys`: manages signing keys, server secrets and the keys that encrypt them.

mod change;
mod list;
mod plan;
mod timeline;

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use serde_json::json;

use super::{Exit, Output, block_on, open};
use crate::app::key_table;
use crate::cli::command::{clock, entropy, operator};
use crate::config::Config;
use crate::key_manager::{Act, KeyManagerError, KeyTable, write_kek};
use crate::keys::{Alg, Ring, Use};
use crate::time::Timestamp;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List all signing keys of the issuer, their state, and the schedule of the next year.
    List,
    /// Show what the key manager will do, or what a change would do. Changes nothing.
    Plan(plan::Arguments),
    /// Let the next key sign as soon as every cache has it. After a leak, use `revoke` instead.
    Rotate(change::Rotate),
    /// Revoke a leaked key everywhere, at once and permanently. The next key signs in its place.
    Revoke(change::Revoke),
    /// Import a private key (PKCS#8, PEM) as the next key of its ring.
    Import {
        /// The file.
        file: PathBuf,
    },
    /// Encrypt every value again under the first key-encrypting key of `keys.kek`.
    Rewrap,
    /// Create a key-encrypting key in a new file that only its owner can read.
    GenerateKek {
        /// The file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Succeed without a change if the file exists.
        #[arg(long)]
        if_missing: bool,
    },
}

pub fn run(
    arguments: &Arguments,
    config: impl FnOnce() -> anyhow::Result<Config>,
    format: Output,
) -> anyhow::Result<()> {
    match &arguments.action {
        Action::GenerateKek { out, if_missing } => generate_kek(out, *if_missing, format),
        Action::List => list::run(&config()?, format),
        Action::Plan(arguments) => plan::run(arguments, &config()?, format),
        Action::Rotate(arguments) => change::rotate(arguments, &config()?, format),
        Action::Revoke(arguments) => change::revoke(arguments, &config()?, format),
        Action::Import { file } => change::import(file, &config()?, format),
        Action::Rewrap => change::rewrap(&config()?, format),
    }
}

fn generate_kek(out: &std::path::Path, if_missing: bool, format: Output) -> anyhow::Result<()> {
    let file = out.display().to_string();
    match (out.exists(), if_missing) {
        (true, true) => {
            let text = format!("{file} exists already; nothing was changed.");
            format.print(&json!({ "file": file, "created": false }), text);
            return Ok(());
        }
        (true, false) => {
            return Err(Exit {
                code: 2,
                message: format!("{file} exists already; to keep it, pass --if-missing"),
            }
            .into());
        }
        (false, _) => {}
    }
    write_kek(out, &entropy()).map_err(|message| Exit { code: 1, message })?;
    let text = format!(
        "A key-encrypting key was created in {file}. Keep a copy of it apart from the backups of the database."
    );
    format.print(&json!({ "file": file, "created": true }), text);
    Ok(())
}

/// Returns the key table of a configuration. Fails if it is empty: commands change keys, only a server creates the
/// first ones.
fn table(config: &Config) -> anyhow::Result<KeyTable> {
    let store = open(config)?;
    block_on(async {
        let table = key_table(config, &store, &entropy()).await?;
        let snapshot = table.read(clock().now()).await?;
        snapshot
            .check_keks(&table.keychain())
            .map_err(crate::app::StartError::from)?;
        if snapshot.keys.is_empty() {
            return Err(failure(
                "there are no keys yet; the server creates them at its first start",
            ));
        }
        Ok(table)
    })
}

/// Returns the actor and the time of a change by this command.
fn act() -> Act {
    Act {
        actor: operator(),
        now: clock().now(),
    }
}

fn failure(message: impl Into<String>) -> anyhow::Error {
    let message = message.into();
    Exit { code: 1, message }.into()
}

/// Parses a ring, such as `token/ES256`.
fn ring(text: &str) -> Result<Ring, String> {
    let parsed = text.split_once('/').and_then(|(use_, alg)| {
        Some(Ring {
            use_: Use::parse(use_)?,
            alg: Alg::from_name(alg)?,
        })
    });
    parsed.ok_or_else(|| {
        format!("invalid ring `{text}`; expected token/ES256, token/RS256 or feed/ES256")
    })
}

/// Parses a time in RFC 3339, such as 2027-01-31T12:00:00Z.
fn instant(text: &str) -> Result<Timestamp, String> {
    chrono::DateTime::parse_from_rfc3339(text)
        .map(|at| Timestamp::from_micros(at.timestamp_micros()))
        .map_err(|_| {
            format!("invalid time `{text}`; expected a value such as 2027-01-31T12:00:00Z")
        })
}

/// Describes a time relative to `now`: `in 19 h`, `3 d ago`.
fn distance(at: Timestamp, now: Timestamp) -> String {
    let words = |duration: std::time::Duration| {
        let secs = duration.as_secs();
        match secs {
            0..120 => format!("{secs} s"),
            120..7_200 => format!("{} min", secs / 60),
            7_200..172_800 => format!("{} h", secs / 3_600),
            _ => format!("{} d", secs / 86_400),
        }
    };
    if at >= now {
        format!("in {}", words(at.since(now)))
    } else {
        format!("{} ago", words(now.since(at)))
    }
}

impl From<KeyManagerError> for Exit {
    fn from(error: KeyManagerError) -> Self {
        let code = match &error {
            KeyManagerError::Database(crate::db::Error::Unavailable(_)) => 69,
            KeyManagerError::Keys(crate::keys::KeyError::UnknownKek { .. }) => 78,
            _ => 1,
        };
        let message = error.to_string();
        Self { code, message }
    }
}

/// Runs an operation of the key manager, and converts its error to an [`Exit`].
fn perform<T>(work: impl Future<Output = Result<T, KeyManagerError>>) -> anyhow::Result<T> {
    block_on(async { Ok(work.await.map_err(Exit::from)?) }).context("the keys were not changed")
}
