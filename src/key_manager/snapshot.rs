//! A snapshot of the key table.

use std::collections::{BTreeMap, HashSet};

use crate::keys::seal::kek_id;
use crate::keys::{KeyError, Keychain, Ring, SealedSecret, SigningKey};

/// The rows of the key table at one instant.
pub struct Snapshot {
    /// The version of the keys, read before the rows.
    pub version: i64,
    /// All signing keys of the issuer.
    pub keys: Vec<SigningKey>,
    /// All server secrets, the oldest first.
    pub secrets: Vec<SealedSecret>,
    /// The kids of revoked keys.
    pub blocked: HashSet<String>,
}

impl Snapshot {
    /// Fails if a value is sealed under a KEK that is not configured; then no new value may be created.
    ///
    /// # Errors
    /// [`KeyError::UnknownKek`].
    pub fn check_keks(&self, keychain: &Keychain) -> Result<(), KeyError> {
        for (table, id, sealed) in self.sealed() {
            let kek = kek_id(sealed);
            // A value that names no KEK is a corrupt row, not a missing KEK.
            if !kek.is_empty() && !keychain.knows(&kek) {
                let what = format!("{table} {id}");
                return Err(KeyError::UnknownKek { what, kek });
            }
        }
        Ok(())
    }

    /// Returns the number of values sealed under each KEK.
    pub fn keks(&self) -> BTreeMap<String, usize> {
        let mut keks = BTreeMap::new();
        for (_, _, sealed) in self.sealed() {
            *keks.entry(kek_id(sealed)).or_default() += 1;
        }
        keks
    }

    /// Returns every sealed value: table, id, text.
    fn sealed(&self) -> impl Iterator<Item = (&'static str, &str, &str)> {
        let keys = self.keys.iter();
        let keys = keys.map(|key| ("signing_keys", key.kid.as_str(), key.sealed.as_str()));
        let secrets = self.secrets.iter();
        keys.chain(secrets.map(|row| ("server_secrets", row.id.as_str(), row.sealed.as_str())))
    }

    /// Returns the keys of a ring that open and are not revoked, and its highest generation.
    pub(super) fn ring(&self, ring: Ring, keychain: &Keychain) -> (Vec<SigningKey>, i64) {
        let all: Vec<&SigningKey> = ring.among(&self.keys).collect();
        let newest = all.iter().map(|key| key.generation).max().unwrap_or(0);
        let usable = all
            .into_iter()
            .filter(|key| !self.blocked.contains(&key.kid) && key.open(keychain).is_ok())
            .cloned()
            .collect();
        (usable, newest)
    }
}
