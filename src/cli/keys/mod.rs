//! `keys`: signing keys, server secrets and the keys that encrypt them.

mod change;
mod list;
mod plan;
mod timeline;

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;

use super::{Exit, Output, block_on, open};
use crate::app::{key_table, write_kek};
use crate::audit::Actor;
use crate::cli::command::{clock, entropy};
use crate::config::Config;
use crate::key_manager::{Act, KeyManagerError, KeyTable};
use crate::keys::{Alg, Ring, Use};
use crate::time::Timestamp;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// How to print.
    #[arg(long, global = true, value_enum, default_value_t)]
    format: Output,
}

#[derive(Subcommand)]
enum Action {
    /// All signing keys of the issuer, how they stand, and the year to come.
    List,
    /// What the keeper will do, and what a change would do. Changes nothing.
    Plan(plan::Arguments),
    /// Let the standby sign as soon as every cache knows it. No answer to a leak: that is `revoke`.
    Rotate(change::Rotate),
    /// End a leaked key everywhere, at once and for good. The standby signs in its place.
    Revoke(change::Revoke),
    /// Take a private key (PKCS#8, PEM) as the next standby of its ring.
    Import {
        /// The file.
        file: PathBuf,
    },
    /// Seal every value anew under the first key-encrypting key of `keys.kek`.
    Rewrap,
    /// Make a key-encrypting key in a new file that its owner alone can read.
    GenerateKek {
        /// The file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// An existing file is fine and stays as it is.
        #[arg(long)]
        if_missing: bool,
    },
}

pub fn run(
    arguments: &Arguments,
    config: impl FnOnce() -> anyhow::Result<Config>,
) -> anyhow::Result<()> {
    let format = arguments.format;
    match &arguments.action {
        Action::GenerateKek { out, if_missing } => generate_kek(out, *if_missing),
        Action::List => list::run(&config()?, format),
        Action::Plan(arguments) => plan::run(arguments, &config()?, format),
        Action::Rotate(arguments) => change::rotate(arguments, &config()?, format),
        Action::Revoke(arguments) => change::revoke(arguments, &config()?, format),
        Action::Import { file } => change::import(file, &config()?, format),
        Action::Rewrap => change::rewrap(&config()?, format),
    }
}

fn generate_kek(out: &std::path::Path, if_missing: bool) -> anyhow::Result<()> {
    if if_missing && out.exists() {
        return Ok(());
    }
    write_kek(out, &entropy()).map_err(|message| Exit { code: 1, message })?;
    println!(
        "A key-encrypting key is in {}. Keep a copy apart from the database's backups.",
        out.display()
    );
    Ok(())
}

/// The key table of a configuration, which must have keys: commands change them, a server makes them.
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
                "there are no keys yet; the server makes them at its first start",
            ));
        }
        Ok(table)
    })
}

/// A change made here and now.
fn act() -> Act {
    Act {
        actor: Actor::Operator,
        now: clock().now(),
    }
}

fn failure(message: impl Into<String>) -> anyhow::Error {
    let message = message.into();
    Exit { code: 1, message }.into()
}

/// `token/ES256` as a ring.
fn ring(text: &str) -> Result<Ring, String> {
    let parsed = text.split_once('/').and_then(|(use_, alg)| {
        Some(Ring {
            use_: Use::parse(use_)?,
            alg: Alg::from_name(alg)?,
        })
    });
    parsed
        .ok_or_else(|| format!("`{text}` is no ring; write token/ES256, token/RS256 or feed/ES256"))
}

/// RFC 3339, such as 2027-01-31T12:00:00Z.
fn instant(text: &str) -> Result<Timestamp, String> {
    chrono::DateTime::parse_from_rfc3339(text)
        .map(|at| Timestamp::from_micros(at.timestamp_micros()))
        .map_err(|_| format!("`{text}` is no instant; write 2027-01-31T12:00:00Z"))
}

/// `in 19h`, `3d ago`.
fn distance(at: Timestamp, now: Timestamp) -> String {
    let words = |span: std::time::Duration| {
        let secs = span.as_secs();
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
    fn from(failed: KeyManagerError) -> Self {
        let code = match &failed {
            KeyManagerError::Database(crate::db::Error::Unavailable(_)) => 69,
            KeyManagerError::Keys(crate::keys::KeyError::UnknownKek { .. }) => 78,
            _ => 1,
        };
        let message = failed.to_string();
        Self { code, message }
    }
}

/// Runs a change; its failure has the exit code of its kind.
fn done<T>(work: impl Future<Output = Result<T, KeyManagerError>>) -> anyhow::Result<T> {
    block_on(async { Ok(work.await.map_err(Exit::from)?) }).context("the keys stay as they were")
}
