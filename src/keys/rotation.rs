//! Rotation. The state of a key is a pure function of its row and the clock, so no job changes states. Each change of
//! a ring is a pure function of its rows, the settings and the clock.

use std::time::Duration;

use super::signing_key::{SigningKey, Timetable};
use crate::config;
use crate::config::limits::{CLOCK_SKEW, KEY_CHANGE_SEEN, LONGEST_SIGNED, PRIVATE_HALF_KEPT};
use crate::time::Timestamp;

/// The state of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Revoked: it is not published, does not sign and is not used for verification.
    Revoked,
    /// In the JWKS, but not signing yet.
    Published,
    /// Signs, if it is the newest active key of its ring.
    Active,
    /// In the JWKS for the verification of earlier signatures, no longer signing.
    Retiring,
    /// No longer in the JWKS.
    Archived,
}

impl State {
    /// Returns the name in logs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Published => "published",
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Archived => "archived",
        }
    }
}

/// Returns the state of a key.
pub fn state(key: &SigningKey, now: Timestamp) -> State {
    if key.revoked_at.is_some() {
        State::Revoked
    } else if now < key.activate_at {
        State::Published
    } else if key.retire_at.is_none_or(|at| now < at) {
        State::Active
    } else if key.remove_at.is_none_or(|at| now < at) {
        State::Retiring
    } else {
        State::Archived
    }
}

/// Returns whether the JWKS contains keys in this state.
pub fn in_jwks(state: State) -> bool {
    matches!(state, State::Published | State::Active | State::Retiring)
}

/// Returns the key of a ring that signs: its highest active generation, or else its highest published one.
pub fn signer<'k>(
    ring: impl IntoIterator<Item = &'k SigningKey>,
    now: Timestamp,
) -> Option<&'k SigningKey> {
    ring.into_iter()
        .filter_map(|key| match state(key, now) {
            State::Active => Some((1, key)),
            State::Published => Some((0, key)),
            _ => None,
        })
        .max_by_key(|(active, key)| (*active, key.generation))
        .map(|(_, key)| key)
}

/// Returns the next instant after `now` at which a key changes its state.
pub fn next_change<'k>(
    keys: impl IntoIterator<Item = &'k SigningKey>,
    now: Timestamp,
) -> Option<Timestamp> {
    keys.into_iter()
        .filter(|key| key.revoked_at.is_none())
        .flat_map(|key| [Some(key.activate_at), key.retire_at, key.remove_at])
        .flatten()
        .filter(|at| *at > now)
        .min()
}

/// Returns whether the private key is to be destroyed: one hour after its last signature, or when it is revoked.
pub fn private_half_is_due(key: &SigningKey, now: Timestamp) -> bool {
    key.revoked_at.is_some()
        || key
            .retire_at
            .is_some_and(|at| now >= at + PRIVATE_HALF_KEPT)
}

/// The waiting times of a rotation, from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// How long a key signs.
    pub rotate_every: Duration,
    /// How long a key is published before it signs.
    pub lead: Duration,
    /// The maximum time for which a verifier may cache a JWKS.
    pub verifier_cache: Duration,
}

impl Schedule {
    /// Reads the waiting times from the configuration.
    pub fn of(keys: &config::Keys) -> Self {
        Self {
            rotate_every: keys.rotate_every.0,
            lead: keys.lead().0,
            verifier_cache: keys.verifier_cache.0,
        }
    }

    /// Returns when every cache contains a key that is published at `publish_at`: after C + S + P.
    pub fn known_everywhere(&self, publish_at: Timestamp) -> Timestamp {
        publish_at + self.verifier_cache + CLOCK_SKEW + KEY_CHANGE_SEEN
    }

    /// Returns when a key stops signing if its successor starts at `successor`. Both are active for S + P.
    pub fn retire_at(&self, successor: Timestamp) -> Timestamp {
        successor + CLOCK_SKEW + KEY_CHANGE_SEEN
    }

    /// Returns when a key leaves the JWKS: A + C + S + P after it stopped signing.
    pub fn remove_at(&self, retire_at: Timestamp) -> Timestamp {
        retire_at + LONGEST_SIGNED + self.verifier_cache + CLOCK_SKEW + KEY_CHANGE_SEEN
    }
}

/// When the next key of a ring starts to sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// As soon as every cache of the key document contains it.
    Scheduled,
    /// Now: verifiers with an older key document reject its tokens until they fetch a new one.
    Immediate,
}

/// A planned change of one ring: its rows after the change, and the keys to be generated.
#[derive(Clone, Debug)]
pub struct Change {
    /// All usable rows of the ring after the change, ordered by generation.
    pub ring: Vec<SigningKey>,
    /// The keys to be generated, in order.
    pub made: Vec<Timetable>,
    schedule: Schedule,
    now: Timestamp,
    next_generation: i64,
}

impl Change {
    /// Creates an empty change. `sound` are the rows of one ring that open. `newest` is the highest generation that the
    /// ring ever had, whether its row opens or not.
    pub fn of(sound: &[SigningKey], newest: i64, schedule: Schedule, now: Timestamp) -> Self {
        let mut ring = sound.to_vec();
        ring.sort_by_key(|key| key.generation);
        Self {
            ring,
            made: Vec::new(),
            schedule,
            now,
            next_generation: newest + 1,
        }
    }

    /// Returns whether the ring needs a next key: the newest key is missing, revoked, or already signing.
    pub fn lacks_standby(&self) -> bool {
        let Some(newest) = self.ring.iter().rev().find(|key| key.revoked_at.is_none()) else {
            return true;
        };
        match state(newest, self.now) {
            State::Published => {
                signer(&self.ring, self.now).is_some_and(|signer| signer.kid == newest.kid)
            }
            _ => true,
        }
    }

    /// Adds a generation. It starts to sign R after its predecessor started, but not before every cache contains it.
    /// In a ring without a signer it signs at once.
    #[must_use]
    pub fn add(mut self) -> Self {
        let now = self.now;
        let last = self.last_activation();
        let published_before = self.made.last().map(|made| made.activate_at);
        let (publish_at, activate_at) = match published_before.or(last) {
            Some(activate_at) => (
                now,
                (activate_at + self.schedule.rotate_every).max(now + self.schedule.lead),
            ),
            None => (now - CLOCK_SKEW, now - CLOCK_SKEW),
        };
        let retire_at = self.schedule.retire_at(activate_at);
        let remove_at = self.schedule.remove_at(retire_at);
        if let Some(made) = self.made.last_mut() {
            (made.retire_at, made.remove_at) = (Some(retire_at), Some(remove_at));
        }
        self.made.push(Timetable {
            generation: self.next_generation,
            publish_at,
            activate_at,
            retire_at: None,
            remove_at: None,
        });
        self.next_generation += 1;
        self.link()
    }

    /// Activates the next key early.
    #[must_use]
    pub fn bring_forward(mut self, rotation: Rotation) -> Self {
        let (now, schedule) = (self.now, self.schedule);
        let earliest = |key: &SigningKey| match rotation {
            Rotation::Immediate => now.max(key.publish_at),
            Rotation::Scheduled => schedule
                .known_everywhere(key.publish_at)
                .max(now + KEY_CHANGE_SEEN),
        };
        if let Some(next) = self.next_key() {
            next.activate_at = next.activate_at.min(earliest(next));
        }
        self.link()
    }

    /// Revokes a key, and adds a next key if none is left.
    #[must_use]
    pub fn revoke(self, kid: &str, reason: &str) -> Self {
        let change = self.end(kid, reason);
        if change.lacks_standby() {
            change.add()
        } else {
            change
        }
    }

    /// Revokes a key without adding one. If it was the signer, the next key signs at once, because caches already
    /// contain it.
    #[must_use]
    pub fn end(mut self, kid: &str, reason: &str) -> Self {
        let now = self.now;
        let was_signer = signer(&self.ring, now).is_some_and(|signer| signer.kid == kid);
        self.mark_revoked(reason, |key| key.kid == kid);
        if was_signer && let Some(next) = self.next_key() {
            let begins = (now - CLOCK_SKEW).max(next.publish_at);
            next.activate_at = next.activate_at.min(begins);
        }
        self.link()
    }

    /// Revokes every key of the ring. Adds a key that signs at once, and a next key.
    #[must_use]
    pub fn revoke_all(self, reason: &str) -> Self {
        self.end_all(reason).add().add()
    }

    /// Revokes every key of the ring without adding one.
    #[must_use]
    pub fn end_all(mut self, reason: &str) -> Self {
        self.mark_revoked(reason, |_| true);
        self
    }

    fn mark_revoked(&mut self, reason: &str, which: impl Fn(&SigningKey) -> bool) {
        let now = self.now;
        for key in self.ring.iter_mut().filter(|key| which(key)) {
            key.revoked_at.get_or_insert(now);
            key.revoke_reason.get_or_insert_with(|| reason.to_owned());
        }
    }

    /// Returns the next key that will sign.
    fn next_key(&mut self) -> Option<&mut SigningKey> {
        let now = self.now;
        self.ring
            .iter_mut()
            .find(|key| state(key, now) == State::Published)
    }

    /// Returns when the newest active or published key starts to sign. `None` if no key can sign.
    fn last_activation(&self) -> Option<Timestamp> {
        let can_sign =
            |key: &&SigningKey| matches!(state(key, self.now), State::Active | State::Published);
        let newest = self.ring.iter().rev().find(can_sign)?;
        Some(newest.activate_at)
    }

    /// Sets the end of every active or published key to S + P after the start of its successor. Instants in the past do
    /// not change.
    fn link(mut self) -> Self {
        let (now, schedule) = (self.now, self.schedule);
        let mut successor = self.made.first().map(|made| made.activate_at);
        for key in self.ring.iter_mut().rev() {
            if matches!(state(key, now), State::Active | State::Published) {
                if let Some(begins) = successor {
                    let retire_at = schedule.retire_at(begins.max(key.activate_at));
                    key.retire_at = Some(retire_at);
                    key.remove_at = Some(schedule.remove_at(retire_at));
                }
                successor = Some(key.activate_at);
            }
        }
        self
    }
}
