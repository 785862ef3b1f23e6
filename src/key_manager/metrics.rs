//! The figures that an operator watches, as plain values.

use std::collections::BTreeMap;
use std::time::Duration;

use super::KeyManager;
use crate::keys::Ring;
use crate::keys::rotation::{State, state};

/// One ring.
#[derive(Clone, Debug)]
pub struct KeySetMetrics {
    /// Which.
    pub ring: Ring,
    /// How long its signer has been signing; alarm over R + 1 d.
    pub age: Option<Duration>,
    /// Seconds until the next key signs, negative when that is overdue; alarm below 0 for an hour.
    pub next_rotation_secs: Option<i64>,
    /// Whether a standby is published; alarm when not for 10 minutes.
    pub standby: bool,
    /// Rows that do not open; alarm above 0.
    pub corrupt: usize,
}

/// All that is to be known of the keys.
#[derive(Clone, Debug)]
pub struct KeyMetrics {
    /// By ring.
    pub rings: Vec<KeySetMetrics>,
    /// How many values stand under each KEK; alarm when one that is not `first_kek` has any for 7 d.
    pub kek_values: BTreeMap<String, usize>,
    /// The KEK that seals.
    pub first_kek: String,
    /// Since the last good poll; alarm over 5 s.
    pub view_age: Duration,
}

impl KeyManager {
    /// The figures of this moment, from memory.
    pub fn metrics(&self) -> KeyMetrics {
        let (view, now) = (self.view(), self.clock.now());
        let rotate_every = self.table.schedule().rotate_every;
        let ring = |ring: &Ring| {
            let keys: Vec<_> = ring.among(view.rows()).collect();
            let signer = keys.iter().find(|key| view.signer(*ring) == Some(&key.kid));
            // The standby says when it begins; without one it should begin R after the signer did.
            let standby = keys.iter().filter(|key| {
                state(key, now) == State::Published && view.signer(*ring) != Some(&key.kid)
            });
            let begins = standby.map(|key| key.activate_at).min();
            let next = begins.or_else(|| signer.map(|key| key.activate_at + rotate_every));
            KeySetMetrics {
                ring: *ring,
                age: signer.map(|key| now.since(key.activate_at)),
                next_rotation_secs: next.map(|at| (at.micros() - now.micros()) / 1_000_000),
                standby: begins.is_some(),
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
