//! The key table and its changes, which any node and the command line may make. A change is prepared
//! outside the database and written by compare-and-swap in one transaction. If another change was faster,
//! the prepared change is discarded and prepared again from the new rows.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::snapshot::Snapshot;
use super::write::{Act, KeyWrite};
use crate::config::Config;
use crate::db::{self, Error, Store, Transaction};
use crate::keys::rotation::{Change, Schedule};
use crate::keys::{KeyError, KeySource, Keychain, Ring, SigningKey};
use crate::secret::Entropy;
use crate::time::Timestamp;

/// How often a change is prepared again after another change was faster.
pub(super) const TRIES: usize = 10;

/// Why keys were not changed, or a node has no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyManagerError {
    /// The database failed.
    #[error(transparent)]
    Database(#[from] db::Error),
    /// A key is unusable.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The key does not exist.
    #[error("no signing key of this issuer has the kid {0}")]
    NoSuchKey(String),
    /// The key already exists.
    #[error("this key exists already")]
    KnownKey,
    /// The ring is not configured, or has no key.
    #[error("there is no ring {0}")]
    NoSuchRing(String),
    /// Concurrent changes were faster each time.
    #[error("the keys are being changed concurrently; try again")]
    Overtaken,
}

/// The key table and everything that is needed to change it.
#[derive(Clone)]
pub struct KeyTable {
    store: Store,
    issuer: String,
    schedule: Schedule,
    rings: Vec<Ring>,
    source: KeySource,
    keychain: Arc<ArcSwap<Keychain>>,
    entropy: Entropy,
}

impl KeyTable {
    /// Creates the table of a configuration.
    pub fn new(
        config: &Config,
        issuer: &str,
        store: Store,
        keychain: Keychain,
        source: KeySource,
        entropy: Entropy,
    ) -> Self {
        Self {
            store,
            issuer: issuer.to_owned(),
            schedule: Schedule::of(&config.keys),
            rings: Ring::configured(&config.keys),
            source,
            keychain: Arc::new(ArcSwap::from_pointee(keychain)),
            entropy,
        }
    }

    /// Returns the configured rings.
    pub fn rings(&self) -> &[Ring] {
        &self.rings
    }

    /// Returns the schedule of rotations.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Returns the KEKs.
    pub fn keychain(&self) -> Arc<Keychain> {
        self.keychain.load_full()
    }

    /// Replaces the KEKs after a change of the configuration.
    ///
    /// # Errors
    /// [`KeyError::UnknownKek`] if a value is sealed under a KEK that is not in the new keychain; then the
    /// old KEKs stay.
    pub async fn replace_keychain(
        &self,
        keychain: Keychain,
        now: Timestamp,
    ) -> Result<(), KeyManagerError> {
        self.read(now).await?.check_keks(&keychain)?;
        self.keychain.store(Arc::new(keychain));
        Ok(())
    }

    /// Reads all rows.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn read(&self, now: Timestamp) -> Result<Snapshot, Error> {
        let issuer = self.issuer.clone();
        let snapshot = move |tx: &mut Transaction<'_>| {
            Ok(Snapshot {
                // Read first: if the rows are newer than the version, they are read once more.
                version: tx.keys_version()?,
                keys: tx.list_keys(&issuer)?,
                secrets: tx.list_server_secrets()?,
                blocked: tx.list_blocked_kids(now)?,
            })
        };
        self.store.read(snapshot).await
    }

    pub(super) async fn change(
        &self,
        ring: Ring,
        act: &Act,
        change: impl Fn(Change) -> Change,
    ) -> Result<KeyWrite, KeyManagerError> {
        self.change_with(ring, None, act, change).await
    }

    pub(super) async fn change_with(
        &self,
        ring: Ring,
        also: Option<&str>,
        act: &Act,
        change: impl Fn(Change) -> Change,
    ) -> Result<KeyWrite, KeyManagerError> {
        for _ in 0..TRIES {
            if let Some(write) = self.try_change(ring, also, act, &change).await? {
                return Ok(write);
            }
        }
        Err(KeyManagerError::Overtaken)
    }

    /// Tries a change once. Returns `None` if another change was faster. `also` names a key that is included
    /// even if its row does not open.
    pub(super) async fn try_change(
        &self,
        ring: Ring,
        also: Option<&str>,
        act: &Act,
        change: &impl Fn(Change) -> Change,
    ) -> Result<Option<KeyWrite>, KeyManagerError> {
        let snapshot = self.read(act.now).await?;
        let (mut rows, newest) = snapshot.ring(ring, &self.keychain());
        if let Some(kid) = also
            && rows.iter().all(|key| key.kid != kid)
        {
            let named = snapshot.keys.iter().filter(|key| key.kid == kid);
            rows.extend(named.cloned());
        }
        let change = change(Change::of(&rows, newest, self.schedule, act.now));
        let write = self.prepare(&snapshot, ring, change, act).await?;
        if write.is_empty() {
            return Ok(Some(write));
        }
        self.write(write, act).await
    }

    /// Generates the keys and seals the rows of a change, outside a transaction.
    pub(super) async fn prepare(
        &self,
        snapshot: &Snapshot,
        ring: Ring,
        change: Change,
        act: &Act,
    ) -> Result<KeyWrite, KeyManagerError> {
        let keychain = self.keychain();
        let mut write = KeyWrite::default();
        for key in &change.ring {
            let Some(old) = snapshot.keys.iter().find(|old| old.kid == key.kid) else {
                continue;
            };
            if old == key {
                continue;
            }
            match (old.revoked_at, key.revoked_at) {
                (None, Some(_)) => {
                    write.revoke(old, key.destroyed(&keychain, &self.entropy)?, act);
                }
                _ => write.swap(old, old.resealed(key, &keychain, &self.entropy)?),
            }
        }
        for at in &change.made {
            let (source, generation) = (self.source.clone(), at.generation);
            let pair = tokio::task::spawn_blocking(move || source.make(ring.alg, generation))
                .await
                .map_err(|error| KeyError::Generate(error.to_string()))??;
            let with = (&*keychain, &self.entropy);
            let key = SigningKey::new(&pair, &self.issuer, ring.use_, at, with, act.now)?;
            write.create(key, act);
        }
        Ok(write)
    }

    /// Writes a change. Returns `None` if another change was faster.
    pub(super) async fn write(
        &self,
        write: KeyWrite,
        act: &Act,
    ) -> Result<Option<KeyWrite>, KeyManagerError> {
        let act = act.clone();
        let written = self
            .store
            .transaction(move |tx| write.run(tx, &act).map(|()| write))
            .await;
        match written {
            Ok(write) => Ok(Some(write)),
            Err(Error::Overtaken(_) | Error::Duplicate(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the same table with another source of key pairs.
    pub(super) fn with_source(&self, source: KeySource) -> Self {
        Self {
            source,
            ..self.clone()
        }
    }

    pub(super) fn entropy(&self) -> &Entropy {
        &self.entropy
    }
}
