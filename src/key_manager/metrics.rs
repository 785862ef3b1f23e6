//! Metrics of the keys, as plain values.

use std::collections::BTreeMap;
use std::time::Duration;

use super::KeyManager;
use crate::keys::Ring;
use crate::keys::rotation::{State, state};

/// Metrics of a ring.
#[derive(Clone, Debug)]
pub struct KeySetMetrics {
    /// The ring.
    pub ring: Ring,
    /// How long its signing key has been signing. Alert above R + 1 d.
    pub age: Option<Duration>,
    /// Seconds until the next key signs, negative if overdue. Alert below 0 for an hour.
    pub next_rotation_secs: Option<i64>,
    /// Whether a next key is published. Alert if not for 10 minutes.
    pub standby: bool,
    /// The number of rows that do not open. Alert above 0.
    pub corrupt: usize,
}

/// Metrics of all keys.
#[derive(Clone, Debug)]
pub struct KeyMetrics {
    /// By ring.
    pub rings: Vec<KeySetMetrics>,
    /// The number of values sealed under each KEK. Alert if a KEK other than `first_kek` has any for 7 d.
    pub kek_values: BTreeMap<String, usize>,
    /// The KEK that seals new values.
    pub first_kek: String,
    /// Time since the last successful poll. Alert above 5 s.
    pub view_age: Duration,
}

impl KeyManager {
    /// Returns the current metrics, from memory.
    pub fn metrics(&self) -> KeyMetrics {
        let (view, now) = (self.view(), self.clock.now());
        let rotate_every = self.table.schedule().rotate_every;
        let ring = |ring: &Ring| {
            let keys: Vec<_> = ring.among(view.rows()).collect();
            let signer = keys.iter().find(|key| view.signer(*ring) == Some(&key.kid));
            // The next key states when it starts to sign; without one it should start R after the signer.
            let next_keys = keys.iter().filter(|key| {
                state(key, now) == State::Published && view.signer(*ring) != Some(&key.kid)
            });
            let starts = next_keys.map(|key| key.activate_at).min();
            let next = starts.or_else(|| signer.map(|key| key.activate_at + rotate_every));
            KeySetMetrics {
                ring: *ring,
                age: signer.map(|key| now.since(key.activate_at)),
                next_rotation_secs: next.map(|at| (at.micros() - now.micros()) / 1_000_000),
                standby: starts.is_some(),
                corrupt: view.corrupt_in(*ring),
            }
        };
        KeyMetrics {
            rings: self.table.rings().iter().map(ring).collect(),
            kek_values: self.keks.load().as_ref().clone(),
            first_kek: self.table.keychain().first().to_owned(),
            view_age: self.lease.age(&self.clock),
        }
    }
}
