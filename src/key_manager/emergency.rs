//! Immediate revocation of a key, a ring or all keys that may have leaked, and their replacement.

use super::table::{KeyManagerError, KeyTable};
use super::write::{Act, KeyWrite};
use crate::keys::rotation::Change;
use crate::keys::{Ring, SigningKey};
use crate::time::Timestamp;

impl KeyTable {
    /// Revokes a key; see `Change::revoke`. A key that is already revoked is not changed.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn revoke(
        &self,
        kid: &str,
        reason: &str,
        act: &Act,
    ) -> Result<KeyWrite, KeyManagerError> {
        let ring = self.ring_of(kid, act.now).await?;
        // A ring that the configuration omits gets no new key.
        let kept = self.rings().contains(&ring);
        self.change_with(ring, Some(kid), act, |change| match kept {
            true => change.revoke(kid, reason),
            false => change.end(kid, reason),
        })
        .await
    }

    /// Revokes every key of a ring, including the next key. A configured ring gets new keys.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn revoke_ring(
        &self,
        ring: Ring,
        reason: &str,
        act: &Act,
    ) -> Result<KeyWrite, KeyManagerError> {
        let kept = self.rings().contains(&ring);
        self.change_with(ring, None, act, |change| end_ring(change, kept, reason))
            .await
    }

    /// Prepares the revocation of every key of every ring, with new keys and a new server secret, for a
    /// larger transaction such as a recovery. The caller must write it without delay.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn renewal(&self, reason: &str, act: &Act) -> Result<KeyWrite, KeyManagerError> {
        let snapshot = self.read(act.now).await?;
        let mut rings: Vec<Ring> = self.rings().to_vec();
        for key in &snapshot.keys {
            if !rings.contains(&key.ring()) {
                rings.push(key.ring());
            }
        }
        let mut write = KeyWrite::default();
        for ring in rings {
            let all: Vec<SigningKey> = ring.among(&snapshot.keys).cloned().collect();
            let newest = all.iter().map(|key| key.generation).max().unwrap_or(0);
            let change = Change::of(&all, newest, *self.schedule(), act.now);
            let change = end_ring(change, self.rings().contains(&ring), reason);
            write.append(self.prepare(&snapshot, ring, change, act).await?);
        }
        // Earlier records may be lost, so every key gets one.
        for key in &snapshot.keys {
            write.block(&key.kid, reason);
        }
        write.create_secret(self.next_secret(&snapshot.secrets, act)?, act);
        Ok(write)
    }

    /// Returns the ring of a key.
    ///
    /// # Errors
    /// [`KeyManagerError::NoSuchKey`].
    pub async fn ring_of(&self, kid: &str, now: Timestamp) -> Result<Ring, KeyManagerError> {
        let keys = self.read(now).await?.keys;
        let key = keys.iter().find(|key| key.kid == kid);
        key.map(SigningKey::ring)
            .ok_or_else(|| KeyManagerError::NoSuchKey(kid.to_owned()))
    }
}

fn end_ring(change: Change, kept: bool, reason: &str) -> Change {
    match kept {
        true => change.revoke_all(reason),
        false => change.end_all(reason),
    }
}
