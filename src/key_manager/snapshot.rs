//! The rows of the key table, read at one moment.

use std::collections::{BTreeMap, HashSet};

use crate::keys::seal::kek_id;
use crate::keys::{KeyError, Keychain, Ring, SealedSecret, SigningKey};

/// The rows, read at one moment.
pub struct Snapshot {
    /// The number that grows with each change, read before the rows.
    pub version: i64,
    /// All signing keys of the issuer.
    pub keys: Vec<SigningKey>,
    /// All server secrets, the oldest first.
    pub secrets: Vec<SealedSecret>,
    /// The kids on the blocklist.
    pub blocked: HashSet<String>,
}

impl Snapshot {
    /// Refuses a value whose KEK is not configured: nothing may be made beside it.
    ///
    /// # Errors
    /// [`KeyError::UnknownKek`].
    pub fn check_keks(&self, keychain: &Keychain) -> Result<(), KeyError> {
        for (table, id, sealed) in self.sealed() {
            let kek = kek_id(sealed);
            // What names no KEK at all is a broken row, not a missing key.
            if !kek.is_empty() && !keychain.knows(&kek) {
                let what = format!("{table} {id}");
                return Err(KeyError::UnknownKek { what, kek });
            }
        }
        Ok(())
    }

    /// How many values stand under each KEK.
    pub fn keks(&self) -> BTreeMap<String, usize> {
        let mut keks = BTreeMap::new();
        for (_, _, sealed) in self.sealed() {
            *keks.entry(kek_id(sealed)).or_default() += 1;
        }
        keks
    }

    /// Every sealed value: table, id, text.
    fn sealed(&self) -> impl Iterator<Item = (&'static str, &str, &str)> {
        let keys = self.keys.iter();
        let keys = keys.map(|key| ("signing_keys", key.kid.as_str(), key.sealed.as_str()));
        let secrets = self.secrets.iter();
        keys.chain(secrets.map(|row| ("server_secrets", row.id.as_str(), row.sealed.as_str())))
    }

    /// The keys of a ring that open and are not on the blocklist, and its highest generation.
    pub(super) fn ring(&self, ring: Ring, keychain: &Keychain) -> (Vec<SigningKey>, i64) {
        let all: Vec<&SigningKey> = ring.among(&self.keys).collect();
        let newest = all.iter().map(|key| key.generation).max().unwrap_or(0);
        let sound = all
            .into_iter()
            .filter(|key| !self.blocked.contains(&key.kid) && key.open(keychain).is_ok())
            .cloned()
            .collect();
        (sound, newest)
    }
}
