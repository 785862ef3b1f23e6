//! A key, a ring or everything may have leaked: keys that end at once, and what takes their place.

use super::table::{KeyManagerError, KeyTable};
use super::write::{Act, KeyWrite};
use crate::keys::rotation::Change;
use crate::keys::{Ring, SigningKey};
use crate::time::Timestamp;

impl KeyTable {
    /// Ends a key everywhere: see `Change::revoke`. A key that was revoked before stays as it is.
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
        // A ring that the configuration leaves out gets no successor.
        let kept = self.rings().contains(&ring);
        self.change_with(ring, Some(kid), act, |change| match kept {
            true => change.revoke(kid, reason),
            false => change.end(kid, reason),
        })
        .await
    }

    /// Ends every key of a ring, standby included. One that is kept gets fresh ones.
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

    /// Prepares the end of every key of every ring, with fresh ones and a fresh server secret: for a
    /// transaction that does more, such as a recovery. To be written as soon as it is made.
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
        // Some records may be lost with the rest: one for every key that ever was.
        for key in &snapshot.keys {
            write.block(&key.kid, reason);
        }
        write.create_secret(self.next_secret(&snapshot.secrets, act)?, act);
        Ok(write)
    }

    /// The ring of a key.
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
