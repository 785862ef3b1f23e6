//! Maintenance of the keys, which every node performs: the first keys, next keys, and the destruction of
//! private halves.

use super::table::{KeyManagerError, KeyTable, TRIES};
use super::write::{Act, KeyWrite};
use crate::keys::rotation::{Change, private_half_is_due, signer};
use crate::keys::{KeyError, SealedSecret, ServerSecret};

impl KeyTable {
    /// Creates what a first start, a new algorithm or a new key set lacks: a server secret, and in each ring
    /// without a signer a signing key and the next key. Both are published before the node is ready, so that
    /// an emergency rotation never has to wait for caches that lack the next key.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn begin(&self, act: &Act) -> Result<(), KeyManagerError> {
        let begin = |change: Change| match signer(&change.ring, act.now) {
            Some(_) => change,
            None => change.add().add(),
        };
        self.add_first_secret(act).await?;
        for ring in self.rings() {
            self.change(*ring, act, begin).await?;
        }
        Ok(())
    }

    /// Adds each missing next key, and destroys private halves that are no longer needed. Returns whether
    /// anything changed. Idempotent.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn maintain(&self, act: &Act) -> Result<bool, KeyManagerError> {
        let mut changed = false;
        for ring in self.rings() {
            let add = |change: Change| match change.lacks_standby() {
                true => change.add(),
                false => change,
            };
            changed |= !self.change(*ring, act, add).await?.is_empty();
        }
        Ok(self.destroy(act).await? || changed)
    }

    /// Adds a server secret, which is used for new MACs from then on.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn add_secret(&self, act: &Act) -> Result<(), KeyManagerError> {
        for _ in 0..TRIES {
            let rows = self.read(act.now).await?.secrets;
            if self.try_add_secret(&rows, act).await? {
                return Ok(());
            }
        }
        Err(KeyManagerError::Overtaken)
    }

    /// Adds a server secret unless there is one.
    async fn add_first_secret(&self, act: &Act) -> Result<(), KeyManagerError> {
        for _ in 0..TRIES {
            let rows = self.read(act.now).await?.secrets;
            if !rows.is_empty() || self.try_add_secret(&rows, act).await? {
                return Ok(());
            }
        }
        Err(KeyManagerError::Overtaken)
    }

    async fn try_add_secret(
        &self,
        rows: &[SealedSecret],
        act: &Act,
    ) -> Result<bool, KeyManagerError> {
        let mut write = KeyWrite::default();
        write.create_secret(self.next_secret(rows, act)?, act);
        Ok(self.write(write, act).await?.is_some())
    }

    pub(super) fn next_secret(
        &self,
        rows: &[SealedSecret],
        act: &Act,
    ) -> Result<SealedSecret, KeyError> {
        let next = rows.last().map_or(1, |last| last.generation + 1);
        ServerSecret::generate(next, &self.keychain(), self.entropy(), act.now)
    }

    async fn destroy(&self, act: &Act) -> Result<bool, KeyManagerError> {
        let (snapshot, keychain) = (self.read(act.now).await?, self.keychain());
        let mut changed = false;
        for key in &snapshot.keys {
            let has_private_half = || {
                key.open(&keychain)
                    .is_ok_and(|opened| opened.private.is_some())
            };
            if !private_half_is_due(key, act.now) || !has_private_half() {
                continue;
            }
            let mut write = KeyWrite::default();
            write.destroy(key, key.destroyed(&keychain, self.entropy())?, act);
            changed |= self.write(write, act).await?.is_some();
        }
        Ok(changed)
    }
}
