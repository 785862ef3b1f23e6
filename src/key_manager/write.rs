//! A prepared change of the key table, with its audit events.

use serde_json::{Value, json};

use crate::audit::{Actor, Event, Name, RevocationReason, Target};
use crate::db::{Error, Transaction};
use crate::keys::{SealedSecret, SigningKey};
use crate::time::Timestamp;

/// The actor and the instant of a change.
#[derive(Clone, Debug)]
pub struct Act {
    /// The server itself or an operator.
    pub actor: Actor,
    /// The instant of the change.
    pub now: Timestamp,
}

/// A prepared change of the table, which is written atomically.
#[derive(Default)]
pub struct KeyWrite {
    /// The sealed value that the row must still have, and the new row.
    swaps: Vec<(String, SigningKey)>,
    inserts: Vec<SigningKey>,
    secrets: Vec<(Option<String>, SealedSecret)>,
    /// Kid and reason.
    records: Vec<(String, String)>,
    events: Vec<Event>,
}

impl KeyWrite {
    /// Returns whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.swaps.is_empty() && self.inserts.is_empty() && self.secrets.is_empty()
    }

    /// Returns the new rows.
    pub fn inserts(&self) -> &[SigningKey] {
        &self.inserts
    }

    /// Returns the changed rows.
    pub fn changes(&self) -> impl Iterator<Item = &SigningKey> {
        self.swaps.iter().map(|(_, key)| key)
    }

    /// Adds a key.
    pub(super) fn create(&mut self, key: SigningKey, act: &Act) {
        self.note(act, Name::KeyCreated, target(&key), None, about(&key));
        self.inserts.push(key);
    }

    /// Changes a row.
    pub(super) fn swap(&mut self, old: &SigningKey, new: SigningKey) {
        self.swaps.push((old.sealed.clone(), new));
    }

    /// Revokes a key.
    pub(super) fn revoke(&mut self, old: &SigningKey, new: SigningKey, act: &Act) {
        let reason = new.revoke_reason.clone().unwrap_or_default();
        let why = Some(reason.as_str());
        self.note(act, Name::KeyRevoked, target(&new), why, about(&new));
        self.block(&new.kid, &reason);
        self.swap(old, new);
    }

    /// Destroys the private half of a key.
    pub(super) fn destroy(&mut self, old: &SigningKey, new: SigningKey, act: &Act) {
        self.note(act, Name::KeyDestroyed, target(old), None, about(old));
        self.swap(old, new);
    }

    /// Adds the revocation record of a kid, once.
    pub(super) fn block(&mut self, kid: &str, reason: &str) {
        if self.records.iter().any(|(known, _)| known == kid) {
            return;
        }
        self.records.push((kid.to_owned(), reason.to_owned()));
    }

    /// Adds a server secret.
    pub(super) fn create_secret(&mut self, secret: SealedSecret, act: &Act) {
        let target = Target::ServerSecret(secret.generation);
        self.note(act, Name::KeyCreated, target, None, json!({}));
        self.secrets.push((None, secret));
    }

    /// Changes the row of a server secret.
    pub(super) fn swap_secret(&mut self, old: &SealedSecret, new: SealedSecret) {
        self.secrets.push((Some(old.sealed.clone()), new));
    }

    /// Adds an audit event.
    pub(super) fn note(
        &mut self,
        act: &Act,
        name: Name,
        target: Target,
        reason: Option<&str>,
        detail: Value,
    ) {
        self.events.push(Event {
            at: act.now,
            name,
            actor: act.actor.clone(),
            target,
            reason: reason.map(str::to_owned),
            detail,
        });
    }

    /// Adds the content of another change.
    pub(super) fn append(&mut self, other: Self) {
        self.swaps.extend(other.swaps);
        self.inserts.extend(other.inserts);
        self.secrets.extend(other.secrets);
        self.records.extend(other.records);
        self.events.extend(other.events);
    }

    /// Writes the change in an open transaction.
    ///
    /// # Errors
    /// [`Error::Overtaken`], [`Error::Duplicate`] if another change was faster; then the transaction must be
    /// rolled back.
    pub fn run(&self, tx: &mut Transaction<'_>, act: &Act) -> Result<(), Error> {
        // Always in this order, by generation, so that concurrent writers cannot deadlock.
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
            let reason = RevocationReason::Stated(reason.clone());
            tx.block_key(kid, &reason, &act.actor, act.now)?;
        }
        for event in &self.events {
            tx.put_audit(event)?;
        }
        tx.raise_keys_version()
    }
}

fn target(key: &SigningKey) -> Target {
    Target::Key(key.kid.clone())
}

fn about(key: &SigningKey) -> Value {
    json!({
        "use": key.use_.as_str(), "alg": key.alg.name(), "generation": key.generation,
        "publish_at": key.publish_at.micros(), "activate_at": key.activate_at.micros(),
        "retire_at": key.retire_at.map(Timestamp::micros), "remove_at": key.remove_at.map(Timestamp::micros),
    })
}
