//! The key table, and everything that is ever done to it. Any node, and the command line, may: a
//! change is prepared outside the database, and written by compare-and-swap in one transaction.
//! Whoever is overtaken drops what he made, reads again and decides anew.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::json;

use crate::audit::{Event, Name};
use crate::config::Config;
use crate::db::{self, Error, Store, Transaction};
use crate::keys::rotation::{Change, Schedule, private_half_is_due, signer};
use crate::keys::{
    Alg, Generated, KeyError, KeySource, Keychain, Ring, SealedSecret, ServerSecret, SigningKey,
};
use crate::secret::Entropy;
use crate::time::Timestamp;

/// How often a change that was overtaken is prepared anew.
const TRIES: usize = 10;

/// Why keys were not changed, or a node has none.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// Of the database.
    #[error(transparent)]
    Database(#[from] db::Error),
    /// Of the keys themselves.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// There is no such key.
    #[error("no signing key of this issuer has the kid {0}")]
    NoSuchKey(String),
    /// It is there already.
    #[error("this key is known already")]
    KnownKey,
    /// A ring that is not configured, or has no key.
    #[error("there is no ring {0}")]
    NoSuchRing(String),
    /// Others were always faster.
    #[error("others change the keys at the same time; try again")]
    Overtaken,
}

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
            let kek = crate::keys::seal::kek_id(sealed);
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
            *keks.entry(crate::keys::seal::kek_id(sealed)).or_default() += 1;
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
    fn ring(&self, ring: Ring, keychain: &Keychain) -> (Vec<SigningKey>, i64) {
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

/// Who changes keys, when.
#[derive(Clone, Debug)]
pub struct Act {
    /// `node` or `cli`.
    pub actor: &'static str,
    /// The instant that the change goes by.
    pub now: Timestamp,
}

/// A prepared change of the table: written as a whole or not at all.
#[derive(Default)]
pub struct KeyWrite {
    swaps: Vec<(String, SigningKey)>,
    inserts: Vec<SigningKey>,
    secrets: Vec<(Option<String>, SealedSecret)>,
    /// Kid and reason.
    records: Vec<(String, String)>,
    events: Vec<Event>,
}

impl KeyWrite {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.swaps.is_empty() && self.inserts.is_empty() && self.secrets.is_empty()
    }

    /// The rows that it makes.
    pub fn inserts(&self) -> &[SigningKey] {
        &self.inserts
    }

    /// The rows that it changes, as they will be.
    pub fn changes(&self) -> impl Iterator<Item = &SigningKey> {
        self.swaps.iter().map(|(_, key)| key)
    }

    pub(super) fn swap(&mut self, old: &SigningKey, new: SigningKey) {
        self.swaps.push((old.sealed.clone(), new));
    }

    pub(super) fn swap_secret(&mut self, old: &SealedSecret, new: SealedSecret) {
        self.secrets.push((Some(old.sealed.clone()), new));
    }

    pub(super) fn note(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Writes it in an open transaction.
    ///
    /// # Errors
    /// [`Error::Overtaken`], [`Error::Duplicate`]: somebody was faster, and all must be rolled back.
    pub fn run(&self, tx: &mut Transaction<'_>, act: &Act) -> Result<(), Error> {
        // Always in this order, by generation: two writers wait for each other and never in a ring.
        for (old, new) in &self.swaps {
            tx.swap_key(old, new)?;
        }
        for key in &self.inserts {
            tx.put_key(key)?;
        }
        for (old, new) in &self.secrets {
            match old {
                Some(old) => tx.swap_server_secret(old, new)?,
                None => tx.put_server_secret(new)?,
            }
        }
        for (kid, reason) in &self.records {
            tx.block_key(kid, reason, act.actor, act.now)?;
        }
        for event in &self.events {
            tx.put_audit(event)?;
        }
        tx.raise_keys_version()
    }
}

/// The table and what is needed to change it.
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
    /// The table of a configuration.
    pub fn new(
        config: &Config,
        issuer: &str,
        store: Store,
        keychain: Keychain,
        source: KeySource,
        entropy: Entropy,
    ) -> Self {
        let algs = config.keys.algorithms.iter();
        let token = algs
            .filter_map(|name| Alg::from_name(name))
            .map(Ring::token);
        Self {
            store,
            issuer: issuer.to_owned(),
            schedule: Schedule::of(&config.keys),
            rings: token.chain([Ring::FEED]).collect(),
            source,
            keychain: Arc::new(ArcSwap::from_pointee(keychain)),
            entropy,
        }
    }

    /// The rings that are kept.
    pub fn rings(&self) -> &[Ring] {
        &self.rings
    }

    /// The waiting times.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The KEKs.
    pub fn keychain(&self) -> Arc<Keychain> {
        self.keychain.load_full()
    }

    /// Takes other KEKs, after a change of the configuration.
    ///
    /// # Errors
    /// [`KeyError::UnknownKek`] when a value is sealed under one that is no longer there; then the
    /// old ones stay.
    pub async fn replace_keychain(&self, keychain: Keychain, now: Timestamp) -> Result<(), Failed> {
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
                // First: rows that are newer than their version are only read once more.
                version: tx.keys_version()?,
                keys: tx.list_keys(&issuer)?,
                secrets: tx.list_server_secrets()?,
                blocked: tx.list_blocked_kids(now)?,
            })
        };
        self.store.read(snapshot).await
    }

    /// Makes what a first start lacks: the first server secret, and a key that signs in each ring.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn begin(&self, act: &Act) -> Result<(), Failed> {
        let begin = |change: Change| match signer(&change.ring, act.now) {
            Some(_) => change,
            None => change.add(),
        };
        if self.read(act.now).await?.secrets.is_empty() {
            self.add_secret(act, true).await?;
        }
        for ring in &self.rings {
            self.change(*ring, act, begin).await?;
        }
        Ok(())
    }

    /// Adds each missing standby, and destroys private halves that have done their work. Idempotent.
    /// Says whether anything changed.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn keep(&self, act: &Act) -> Result<bool, Failed> {
        let mut changed = false;
        for ring in &self.rings {
            let add = |change: Change| match change.lacks_standby() {
                true => change.add(),
                false => change,
            };
            changed |= !self.change(*ring, act, add).await?.is_empty();
        }
        Ok(self.destroy(act).await? || changed)
    }

    /// Lets the standby of a ring sign as soon as every cache knows it, or at once.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn rotate(&self, ring: Ring, at_once: bool, act: &Act) -> Result<KeyWrite, Failed> {
        self.change(ring, act, |change| forward(change, at_once))
            .await
    }

    /// Ends a key everywhere: see `Change::revoke`. A key that was revoked before stays as it is.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn revoke(&self, kid: &str, reason: &str, act: &Act) -> Result<KeyWrite, Failed> {
        let ring = self.ring_of(kid, act.now).await?;
        self.change_with(ring, Some(kid), act, |change| change.revoke(kid, reason))
            .await
    }

    /// Ends every key of a ring, standby included.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn revoke_ring(
        &self,
        ring: Ring,
        reason: &str,
        act: &Act,
    ) -> Result<KeyWrite, Failed> {
        self.change_with(ring, None, act, |change| change.revoke_all(reason))
            .await
    }

    /// Prepares the end of every key of every ring, with fresh ones and a fresh server secret: for a
    /// transaction that does more, such as a recovery. To be written as soon as it is made.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn renewal(&self, reason: &str, act: &Act) -> Result<KeyWrite, Failed> {
        let snapshot = self.read(act.now).await?;
        let mut rings: Vec<Ring> = self.rings.clone();
        for key in &snapshot.keys {
            if !rings.contains(&key.ring()) {
                rings.push(key.ring());
            }
        }
        let mut write = KeyWrite::default();
        for ring in rings {
            let all: Vec<SigningKey> = ring.among(&snapshot.keys).cloned().collect();
            let newest = all.iter().map(|key| key.generation).max().unwrap_or(0);
            let change = Change::of(&all, newest, self.schedule, act.now).revoke_all(reason);
            let part = self.prepare(&snapshot, ring, change, act).await?;
            write.swaps.extend(part.swaps);
            write.inserts.extend(part.inserts);
            write.events.extend(part.events);
        }
        // Some records may be lost with the rest: one for every key that ever was.
        let every = snapshot.keys.iter();
        write.records = every
            .map(|key| (key.kid.clone(), reason.to_owned()))
            .collect();
        let next = snapshot
            .secrets
            .last()
            .map_or(1, |last| last.generation + 1);
        let secret = ServerSecret::generate(next, &self.keychain(), &self.entropy, act.now)?;
        write.secrets.push((None, secret));
        Ok(write)
    }

    /// Takes a private key (PKCS#8, PEM) as the next standby of its ring.
    ///
    /// # Errors
    /// [`KeyError::Refused`] for one that is not good enough, [`Failed::KnownKey`].
    pub async fn import(&self, pem: &str, act: &Act) -> Result<KeyWrite, Failed> {
        let taken = match Generated::from_pem(pem) {
            Ok(pair) => self.take(pair, act).await,
            Err(error) => Err(error.into()),
        };
        taken.inspect_err(|error| tracing::warn!(event = "key.rejected", reason = %error))
    }

    async fn take(&self, pair: Generated, act: &Act) -> Result<KeyWrite, Failed> {
        let ring = Ring::token(pair.alg());
        let kid = pair.public().thumbprint();
        if !self.rings.contains(&ring) {
            return Err(Failed::NoSuchRing(ring.to_string()));
        }
        let with = Self {
            source: KeySource::from_fn(move |_, _| Ok(pair.clone())),
            ..self.clone()
        };
        for _ in 0..TRIES {
            let known = self.read(act.now).await?.keys;
            if known.iter().any(|key| key.kid == kid) {
                return Err(Failed::KnownKey);
            }
            if let Some(write) = with.try_change(ring, None, act, &Change::add).await? {
                return Ok(write);
            }
        }
        Err(Failed::Overtaken)
    }

    /// Adds a server secret; `first` adds none to one that is there.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn add_secret(&self, act: &Act, first: bool) -> Result<(), Failed> {
        for _ in 0..TRIES {
            let rows = self.read(act.now).await?.secrets;
            if first && !rows.is_empty() {
                return Ok(());
            }
            let next = rows.last().map_or(1, |last| last.generation + 1);
            let secret = ServerSecret::generate(next, &self.keychain(), &self.entropy, act.now)?;
            let write = KeyWrite {
                events: vec![event(
                    act,
                    Name::KeyCreated,
                    &format!("server_secret:{next}"),
                    None,
                    json!({}),
                )],
                secrets: vec![(None, secret)],
                ..KeyWrite::default()
            };
            if self.write(write, act).await?.is_some() {
                return Ok(());
            }
        }
        Err(Failed::Overtaken)
    }

    /// What a change would do, without doing any of it: the usable rows of the ring before and after.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn plan(
        &self,
        ring: Ring,
        act: &Act,
        change: impl FnOnce(Change) -> Change,
    ) -> Result<(Change, Change), Failed> {
        let snapshot = self.read(act.now).await?;
        let (sound, newest) = snapshot.ring(ring, &self.keychain());
        let before = Change::of(&sound, newest, self.schedule, act.now);
        Ok((before.clone(), change(before)))
    }

    /// The ring of a key.
    ///
    /// # Errors
    /// [`Failed::NoSuchKey`].
    pub async fn ring_of(&self, kid: &str, now: Timestamp) -> Result<Ring, Failed> {
        let keys = self.read(now).await?.keys;
        let key = keys.iter().find(|key| key.kid == kid);
        key.map(SigningKey::ring)
            .ok_or_else(|| Failed::NoSuchKey(kid.to_owned()))
    }

    async fn change(
        &self,
        ring: Ring,
        act: &Act,
        change: impl Fn(Change) -> Change,
    ) -> Result<KeyWrite, Failed> {
        self.change_with(ring, None, act, change).await
    }

    async fn change_with(
        &self,
        ring: Ring,
        also: Option<&str>,
        act: &Act,
        change: impl Fn(Change) -> Change,
    ) -> Result<KeyWrite, Failed> {
        for _ in 0..TRIES {
            if let Some(write) = self.try_change(ring, also, act, &change).await? {
                return Ok(write);
            }
        }
        Err(Failed::Overtaken)
    }

    /// One try: `None` when somebody else was faster. `also` is a key that counts although its row
    /// may not open.
    async fn try_change(
        &self,
        ring: Ring,
        also: Option<&str>,
        act: &Act,
        change: &impl Fn(Change) -> Change,
    ) -> Result<Option<KeyWrite>, Failed> {
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

    /// Makes the keys and seals the rows of a change, outside any transaction.
    async fn prepare(
        &self,
        snapshot: &Snapshot,
        ring: Ring,
        change: Change,
        act: &Act,
    ) -> Result<KeyWrite, Failed> {
        let keychain = self.keychain();
        let mut write = KeyWrite::default();
        for key in &change.ring {
            let Some(old) = snapshot.keys.iter().find(|old| old.kid == key.kid) else {
                continue;
            };
            if old == key {
                continue;
            }
            let new = match (old.revoked_at, key.revoked_at) {
                (None, Some(_)) => {
                    let reason = key.revoke_reason.clone().unwrap_or_default();
                    write.events.push(revoked(key, act, &reason));
                    write.records.push((key.kid.clone(), reason));
                    key.destroyed(&keychain, &self.entropy)?
                }
                _ => old.resealed(key, &keychain, &self.entropy)?,
            };
            write.swaps.push((old.sealed.clone(), new));
        }
        for at in &change.made {
            let (source, generation) = (self.source.clone(), at.generation);
            let pair = tokio::task::spawn_blocking(move || source.make(ring.alg, generation))
                .await
                .map_err(|error| KeyError::Generate(error.to_string()))??;
            let with = (&*keychain, &self.entropy);
            let key = SigningKey::new(&pair, &self.issuer, ring.use_, at, with, act.now)?;
            write.events.push(created(&key, act));
            write.inserts.push(key);
        }
        Ok(write)
    }

    /// Writes; `None` when somebody else was faster.
    async fn write(&self, write: KeyWrite, act: &Act) -> Result<Option<KeyWrite>, Failed> {
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

    async fn destroy(&self, act: &Act) -> Result<bool, Failed> {
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
            let empty = key.destroyed(&keychain, &self.entropy)?;
            let target = format!("key:{}", key.kid);
            let write = KeyWrite {
                swaps: vec![(key.sealed.clone(), empty)],
                events: vec![event(act, Name::KeyDestroyed, &target, None, about(key))],
                ..KeyWrite::default()
            };
            changed |= self.write(write, act).await?.is_some();
        }
        Ok(changed)
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn entropy(&self) -> &Entropy {
        &self.entropy
    }
}

fn forward(change: Change, at_once: bool) -> Change {
    let change = match change.lacks_standby() {
        true => change.add(),
        false => change,
    };
    change.bring_forward(at_once)
}

fn about(key: &SigningKey) -> serde_json::Value {
    json!({
        "use": key.use_.as_str(), "alg": key.alg.name(), "generation": key.generation,
        "publish_at": key.publish_at.micros(), "activate_at": key.activate_at.micros(),
        "retire_at": key.retire_at.map(Timestamp::micros), "remove_at": key.remove_at.map(Timestamp::micros),
    })
}

fn created(key: &SigningKey, act: &Act) -> Event {
    event(
        act,
        Name::KeyCreated,
        &format!("key:{}", key.kid),
        None,
        about(key),
    )
}

fn revoked(key: &SigningKey, act: &Act, reason: &str) -> Event {
    let target = format!("key:{}", key.kid);
    event(act, Name::KeyRevoked, &target, Some(reason), about(key))
}

pub(super) fn event(
    act: &Act,
    name: Name,
    target: &str,
    reason: Option<&str>,
    detail: serde_json::Value,
) -> Event {
    Event {
        at: act.now,
        name,
        actor: act.actor.to_owned(),
        target: target.to_owned(),
        reason: reason.map(str::to_owned),
        detail,
    }
}
