//! Checks of the key-encrypting keys and of the rotation of signing keys.

use super::{Finding, fail, ok, warn};
use crate::app::key_table;
use crate::cli::command::{clock, entropy};
use crate::config::Config;
use crate::db::Store;
use crate::key_manager::{KeyTable, Snapshot};
use crate::keys::rotation::{Change, State, signer, state};
use crate::keys::{Keychain, Ring, ServerSecrets};
use crate::time::Timestamp;

/// Delay of a rotation that shows that no key manager is running (1 d). It adds the next key long before.
const LATE: std::time::Duration = std::time::Duration::from_secs(86_400);

pub async fn check(config: &Config, store: Option<&Store>) -> Vec<Finding> {
    let keychain = match Keychain::read(&config.keys.kek) {
        Ok(keychain) => keychain,
        // The first start creates a KEK for a new embedded database.
        Err(error) if store.is_none() && config.database_url().starts_with("sqlite:") => {
            return vec![warn(
                "KEK",
                format!("{error}, or let the first start create it"),
            )];
        }
        Err(error) => return vec![fail("KEK", error.to_string())],
    };
    let Some(store) = store else {
        return vec![ok("KEK", "readable")];
    };
    let now = clock().now();
    let table = match key_table(config, store, &entropy()).await {
        Ok(table) => table,
        Err(error) => return vec![fail("KEK", error.to_string())],
    };
    let snapshot = match table.read(now).await {
        Ok(snapshot) => snapshot,
        Err(error) => return vec![fail("keys", error.to_string())],
    };
    let mut findings = vec![kek(&snapshot, &keychain), rows(&snapshot, &keychain, now)];
    for ring in table.rings() {
        findings.push(rotation(*ring, &snapshot, &table, now));
    }
    findings
}

fn kek(snapshot: &Snapshot, keychain: &Keychain) -> Finding {
    if let Err(error) = snapshot.check_keks(keychain) {
        let what = format!("{error}: put it back into `keys.kek`");
        return fail("KEK", what);
    }
    let keks = snapshot.keks();
    let old: usize = keks
        .iter()
        .filter(|(kek, _)| kek.as_str() != keychain.first())
        .map(|(_, rows)| rows)
        .sum();
    match old {
        0 => ok(
            "KEK",
            format!("encrypts all {} values", keks.values().sum::<usize>()),
        ),
        old => warn(
            "KEK",
            format!(
                "{old} values are not encrypted under the first key of `keys.kek`: run `portcullis keys rewrap`"
            ),
        ),
    }
}

/// Opens every row. A node that starts without a signing key or a server secret because its row was changed cannot
/// issue anything.
fn rows(snapshot: &Snapshot, keychain: &Keychain, now: Timestamp) -> Finding {
    let keys = snapshot
        .keys
        .iter()
        .filter(|key| key.open(keychain).is_err());
    let mut corrupt: Vec<String> = keys
        .map(|key| {
            format!(
                "{} generation {}, kid {}",
                key.ring(),
                key.generation,
                key.kid
            )
        })
        .collect();
    if !snapshot.secrets.is_empty()
        && let Err(error) = ServerSecrets::open(&snapshot.secrets, keychain, now)
    {
        corrupt.push(error.to_string());
    }
    if corrupt.is_empty() {
        return ok("keys", "every row opens");
    }
    fail(
        "keys",
        format!(
            "these rows were changed and are not used: {}; run `portcullis keys revoke KID` for each, and find out who can write to the database",
            corrupt.join("; ")
        ),
    )
}

fn rotation(ring: Ring, snapshot: &Snapshot, table: &KeyTable, now: Timestamp) -> Finding {
    let keys: Vec<_> = ring.among(&snapshot.keys).cloned().collect();
    let Some(signing) = signer(&keys, now) else {
        return match snapshot.keys.is_empty() {
            true => warn(
                "rotation",
                format!("{ring}: no key yet; the first start creates it"),
            ),
            false => fail(
                "rotation",
                format!("{ring}: no key signs: run `portcullis keys rotate`"),
            ),
        };
    };
    let schedule = table.schedule();
    let due = signing.activate_at + schedule.rotate_every;
    let newest = keys.iter().map(|key| key.generation).max().unwrap_or(0);
    let has_next = !Change::of(&keys, newest, *schedule, now).lacks_standby();
    if now > due + LATE {
        return fail(
            "rotation",
            format!(
                "{ring}: overdue since {due}: start a server on this database, or run `portcullis keys rotate`"
            ),
        );
    }
    if !has_next || state(signing, now) != State::Active {
        return warn(
            "rotation",
            format!("{ring}: there is no next key; a running server creates one within a minute"),
        );
    }
    ok(
        "rotation",
        format!("{ring}: signs until {due}, the next key is published"),
    )
}
