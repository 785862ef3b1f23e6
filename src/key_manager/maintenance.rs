//! What every node does to the keys by itself: the first ones, standbys, and the end of private halves.

use super::table::{KeyManagerError, KeyTable, TRIES};
use super::write::{Act, KeyWrite};
use crate::keys::rotation::{Change, private_half_is_due, signer};
use crate::keys::{KeyError, SealedSecret, ServerSecret};

impl KeyTable {
    /// Makes what a first start lacks: the first server secret, and a key that signs in each ring.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn begin(&self, act: &Act) -> Result<(), KeyManagerError> {
        let begin = |change: Change| match signer(&change.ring, act.now) {
            Some(_) => change,
            None => change.add(),
        };
        if self.read(act.now).await?.secrets.is_empty() {
            self.add_secret(act, true).await?;
        }
        for ring in self.rings() {
            self.change(*ring, act, begin).await?;
        }
        Ok(())
    }

    /// Adds each missing standby, and destroys private halves that have done their work. Idempotent.
    /// Says whether anything changed.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn keep(&self, act: &Act) -> Result<bool, KeyManagerError> {
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

    /// Adds a server secret; `first` adds none to one that is there.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn add_secret(&self, act: &Act, first: bool) -> Result<(), KeyManagerError> {
        for _ in 0..TRIES {
            let rows = self.read(act.now).await?.secrets;
            if first && !rows.is_empty() {
                return Ok(());
            }
            let mut write = KeyWrite::default();
            write.create_secret(self.next_secret(&rows, act)?, act);
            if self.write(write, act).await?.is_some() {
                return Ok(());
            }
        }
        Err(KeyManagerError::Overtaken)
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
            let holds_one = || {
                key.open(&keychain)
                    .is_ok_and(|opened| opened.private.is_some())
            };
            if !private_half_is_due(key, act.now) || !holds_one() {
                continue;
            }
            let mut write = KeyWrite::default();
            write.destroy(key, key.destroyed(&keychain, self.entropy())?, act);
            changed |= self.write(write, act).await?.is_some();
        }
        Ok(changed)
    }
}
