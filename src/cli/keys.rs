//! `keys list`, `keys generate-kek`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Exit, Output, block_on, open, table};
use crate::app::write_kek;
use crate::config::Config;
use crate::keys::SigningKey;
use crate::keys::rotation::{State, signer, state};
use crate::secret::Entropy;
use crate::time::{Clock, Timestamp};

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
    /// All signing keys of the issuer and how they stand.
    List,
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
    match &arguments.action {
        Action::GenerateKek { out, if_missing } => {
            if *if_missing && out.exists() {
                return Ok(());
            }
            write_kek(out, &Entropy::system()).map_err(|message| Exit { code: 1, message })?;
            println!(
                "A key-encrypting key is in {}. Keep a copy apart from the database's backups.",
                out.display()
            );
            Ok(())
        }
        Action::List => {
            let config = config()?;
            let (store, issuer) = (open(&config)?, config.issuer()?.to_string());
            let keys = block_on(async { Ok(store.read(move |tx| tx.list_keys(&issuer)).await?) })?;
            let now = Clock::System.now();
            let rows: Vec<Vec<String>> = keys.iter().map(|key| row(key, &keys, now)).collect();
            let values: Vec<Value> = keys.iter().map(|key| view(key, &keys, now)).collect();
            table::print(
                arguments.format,
                &["use", "alg", "generation", "state", "active since", "kid"],
                &rows,
                &values.into(),
            );
            Ok(())
        }
    }
}

fn word(key: &SigningKey, all: &[SigningKey], now: Timestamp) -> &'static str {
    let ring = all
        .iter()
        .filter(|other| other.use_ == key.use_ && other.alg == key.alg);
    match state(key, now) {
        State::Active if signer(ring, now).is_some_and(|signer| signer.kid == key.kid) => "signing",
        State::Active => "active",
        State::Published => "published",
        State::Retiring => "retiring",
        State::Archived => "archived",
        State::Revoked => "revoked",
    }
}

fn row(key: &SigningKey, all: &[SigningKey], now: Timestamp) -> Vec<String> {
    vec![
        key.use_.as_str().to_owned(),
        key.alg.name().to_owned(),
        key.generation.to_string(),
        word(key, all, now).to_owned(),
        key.activate_at.to_string(),
        key.kid.clone(),
    ]
}

fn view(key: &SigningKey, all: &[SigningKey], now: Timestamp) -> Value {
    json!({
        "kid": key.kid, "use": key.use_.as_str(), "alg": key.alg.name(), "generation": key.generation,
        "state": word(key, all, now), "publish_at": key.publish_at.to_string(),
        "activate_at": key.activate_at.to_string(), "retire_at": key.retire_at.map(|at| at.to_string()),
        "remove_at": key.remove_at.map(|at| at.to_string()),
    })
}
