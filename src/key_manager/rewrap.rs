//! `rewrap`: seals every value under the first KEK, so that the other KEKs can be destroyed.

use std::collections::BTreeMap;

use serde_json::json;

use super::table::{KeyManagerError, KeyTable, TRIES};
use super::write::{Act, KeyWrite};
use crate::audit::{Name, Target};
use crate::keys::seal::kek_id;
use crate::keys::{Keychain, SigningKey};
use crate::secret::Entropy;

/// The result of a rewrap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrapped {
    /// The first KEK.
    pub kek: String,
    /// The number of values that were resealed, by their former KEK.
    pub moved: BTreeMap<String, usize>,
    /// Values that remain under another KEK.
    pub left: Vec<RemainingSecrets>,
}

/// A value that could not be resealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemainingSecrets {
    /// Table and id.
    pub what: String,
    /// The KEK that its text names.
    pub kek: String,
    /// Why.
    pub why: String,
}

impl KeyTable {
    /// Reseals every value that is not under the first KEK, in one transaction. Each result is opened, and
    /// a signing key signs once as a test. May be interrupted and repeated.
    ///
    /// # Errors
    /// [`KeyManagerError`]; a value that does not open is reported in [`Rewrapped::left`].
    pub async fn rewrap(&self, act: &Act) -> Result<Rewrapped, KeyManagerError> {
        for _ in 0..TRIES {
            let snapshot = self.read(act.now).await?;
            let keychain = self.keychain();
            let mut done = Rewrapped {
                kek: keychain.first().to_owned(),
                ..Rewrapped::default()
            };
            let mut write = KeyWrite::default();
            for key in snapshot
                .keys
                .iter()
                .filter(|key| is_old(&key.sealed, &keychain))
            {
                match rewrapped(key, &keychain, self.entropy()) {
                    Ok(new) => {
                        done.count(&key.sealed);
                        write.swap(key, new);
                    }
                    Err(error) => done.leave(("signing_keys", &key.kid), &key.sealed, &error),
                }
            }
            for secret in snapshot
                .secrets
                .iter()
                .filter(|secret| is_old(&secret.sealed, &keychain))
            {
                match secret.resealed(&keychain, self.entropy()) {
                    Ok(new) => {
                        done.count(&secret.sealed);
                        write.swap_secret(secret, new);
                    }
                    Err(error) => {
                        done.leave(("server_secrets", &secret.id), &secret.sealed, &error)
                    }
                }
            }
            if write.is_empty() {
                return Ok(done);
            }
            let detail = json!({ "to": done.kek, "from": done.moved, "left": done.left.len() });
            write.note(act, Name::KeyRewrapped, Target::Keys, None, detail);
            if self.write(write, act).await?.is_some() {
                return Ok(done);
            }
        }
        Err(KeyManagerError::Overtaken)
    }
}

impl Rewrapped {
    fn count(&mut self, sealed: &str) {
        *self.moved.entry(kek_id(sealed)).or_default() += 1;
    }

    fn leave(&mut self, (table, id): (&str, &str), sealed: &str, why: &dyn std::fmt::Display) {
        self.left.push(RemainingSecrets {
            what: format!("{table} {id}"),
            kek: kek_id(sealed),
            why: why.to_string(),
        });
    }
}

fn is_old(sealed: &str, keychain: &Keychain) -> bool {
    kek_id(sealed) != keychain.first()
}

/// Returns the row sealed under the first KEK, after checking that it opens and that its key signs as before.
fn rewrapped(
    key: &SigningKey,
    keychain: &Keychain,
    entropy: &Entropy,
) -> Result<SigningKey, crate::keys::KeyError> {
    let before = key.open(keychain)?;
    let new = key.resealed(key, keychain, entropy)?;
    let after = new.open(keychain)?;
    after.self_test(&before, &key.kid)?;
    Ok(new)
}
