//! `keys list`: shows the keys, and the timeline of each ring.

use serde_json::{Value, json};

use super::super::{Output, block_on, open, table};
use super::timeline;
use crate::cli::command::clock;
use crate::config::Config;
use crate::keys::rotation::{Schedule, State, signer, state};
use crate::keys::{Keychain, Ring, SigningKey};
use crate::time::Timestamp;

/// The state of a row that does not open: no node publishes it or signs with it.
const CORRUPT: &str = "corrupt";

pub fn run(config: &Config, format: Output) -> anyhow::Result<()> {
    let (store, issuer) = (open(config)?, config.issuer()?.to_string());
    let keys = block_on(async { Ok(store.read(move |tx| tx.list_keys(&issuer)).await?) })?;
    let now = clock().now();
    let keychain = match Keychain::read(&config.keys.kek) {
        Ok(keychain) => Some(keychain),
        Err(error) => {
            eprintln!(
                "portcullis: the rows were not opened, so a corrupt one is not shown: {error}"
            );
            None
        }
    };
    let opens = |key: &&SigningKey| {
        let opened = keychain.as_ref().map(|keychain| key.open(keychain));
        !matches!(opened, Some(Err(_)))
    };
    let (sound, corrupt): (Vec<&SigningKey>, Vec<&SigningKey>) = keys.iter().partition(opens);
    let sound: Vec<SigningKey> = sound.into_iter().cloned().collect();
    let is_corrupt = |key: &SigningKey| corrupt.iter().any(|corrupt| corrupt.kid == key.kid);
    let rows: Vec<Vec<String>> = keys
        .iter()
        .map(|key| {
            let mut row = row(key, &sound, now);
            if is_corrupt(key) {
                CORRUPT.clone_into(&mut row[2]);
            }
            row
        })
        .collect();
    let values: Vec<Value> = keys
        .iter()
        .map(|key| {
            let mut value = view(key, &sound, now);
            if is_corrupt(key) {
                value["state"] = CORRUPT.into();
            }
            value
        })
        .collect();
    let columns = [
        "ring",
        "generation",
        "state",
        "signs from",
        "until",
        "in the JWKS until",
        "kid",
    ];
    table::print(format, &columns, &rows, &values.into());
    if format == Output::Table {
        print!(
            "{}",
            timeline::draw(&sound, &Schedule::of(&config.keys), now)
        );
    }
    Ok(())
}

/// Returns the state of a key in one word.
pub(super) fn word(key: &SigningKey, all: &[SigningKey], now: Timestamp) -> &'static str {
    match state(key, now) {
        State::Active | State::Published
            if signer(key.ring().among(all), now).is_some_and(|signer| signer.kid == key.kid) =>
        {
            "signing"
        }
        other => other.name(),
    }
}

fn row(key: &SigningKey, all: &[SigningKey], now: Timestamp) -> Vec<String> {
    let or_open = |at: Option<Timestamp>| at.map_or_else(|| "–".to_owned(), |at| at.to_string());
    vec![
        key.ring().to_string(),
        key.generation.to_string(),
        word(key, all, now).to_owned(),
        key.activate_at.to_string(),
        or_open(key.retire_at),
        or_open(key.remove_at),
        key.kid.clone(),
    ]
}

/// Returns a key as JSON.
pub(super) fn view(key: &SigningKey, all: &[SigningKey], now: Timestamp) -> Value {
    let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let Ring { use_, alg } = key.ring();
    json!({
        "kid": key.kid, "use": use_.as_str(), "alg": alg.name(), "generation": key.generation,
        "state": word(key, all, now), "publish_at": key.publish_at.to_string(),
        "activate_at": key.activate_at.to_string(), "retire_at": text(key.retire_at),
        "remove_at": text(key.remove_at), "revoked_at": text(key.revoked_at),
        "revoke_reason": key.revoke_reason,
    })
}
