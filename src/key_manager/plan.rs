//! Changes that an operator plans: an early rotation, and the import of a key.

use super::table::{KeyManagerError, KeyTable, TRIES};
use super::write::{Act, KeyWrite};
use crate::config::limits::JWKS_BYTES;
use crate::keys::rotation::{Change, Rotation, in_jwks, state};
use crate::keys::{Generated, KeyError, KeySource, Ring, Use};

/// Bytes of the largest JWK: an RSA key of 4096 bits with all its members.
const LARGEST_JWK: usize = 1_024;

impl KeyTable {
    /// Returns the usable rows of a ring before and after a change, without writing anything.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn plan(
        &self,
        ring: Ring,
        act: &Act,
        change: impl FnOnce(Change) -> Change,
    ) -> Result<(Change, Change), KeyManagerError> {
        let snapshot = self.read(act.now).await?;
        let (usable, newest) = snapshot.ring(ring, &self.keychain());
        let before = Change::of(&usable, newest, *self.schedule(), act.now);
        Ok((before.clone(), change(before)))
    }

    /// Brings forward the next rotation of a ring.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn rotate(
        &self,
        ring: Ring,
        rotation: Rotation,
        act: &Act,
    ) -> Result<KeyWrite, KeyManagerError> {
        self.change(ring, act, |change| forward(change, rotation))
            .await
    }

    /// Imports a private key (PKCS#8, PEM) as the next key of its ring.
    ///
    /// # Errors
    /// [`KeyError::Refused`] for a key that does not meet the requirements, [`KeyManagerError::KnownKey`].
    pub async fn import(&self, pem: &str, act: &Act) -> Result<KeyWrite, KeyManagerError> {
        let imported = match Generated::from_pem(pem) {
            Ok(pair) => self.add_imported(pair, act).await,
            Err(error) => Err(error.into()),
        };
        imported.inspect_err(|error| tracing::warn!(event = "key.rejected", reason = %error))
    }

    async fn add_imported(&self, pair: Generated, act: &Act) -> Result<KeyWrite, KeyManagerError> {
        let ring = Ring::token(pair.alg());
        let kid = pair.public().thumbprint();
        if !self.rings().contains(&ring) {
            return Err(KeyManagerError::NoSuchRing(ring.to_string()));
        }
        let with = self.with_source(KeySource::from_fn(move |_, _| Ok(pair.clone())));
        for _ in 0..TRIES {
            let keys = self.read(act.now).await?.keys;
            if keys.iter().any(|key| key.kid == kid) {
                return Err(KeyManagerError::KnownKey);
            }
            let published = keys
                .iter()
                .filter(|key| key.use_ == Use::Token && in_jwks(state(key, act.now)));
            let bytes = published.map(|key| key.public_jwk.len() + 1).sum::<usize>();
            if bytes + LARGEST_JWK > JWKS_BYTES {
                let why = "with this key the key document would exceed 16 KiB; wait until old keys are removed";
                return Err(KeyError::Refused(why).into());
            }
            if let Some(write) = with.try_change(ring, None, act, &Change::add).await? {
                return Ok(write);
            }
        }
        Err(KeyManagerError::Overtaken)
    }
}

fn forward(change: Change, rotation: Rotation) -> Change {
    let change = match change.lacks_standby() {
        true => change.add(),
        false => change,
    };
    change.bring_forward(rotation)
}
