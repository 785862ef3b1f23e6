//! Rotation: the state of a key is a pure function of its row and the clock, and each change of a
//! ring a pure function of its rows, the settings and the clock. No job moves a key.

use std::time::Duration;

use super::signing_key::{SigningKey, Timetable};
use crate::config;
use crate::config::limits::{CLOCK_SKEW, KEY_CHANGE_SEEN, LONGEST_SIGNED, PRIVATE_HALF_KEPT};
use crate::time::Timestamp;

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Compromised: signs nothing, verifies nothing, is not published.
    Revoked,
    /// Known to caches, not yet signing.
    Published,
    /// May sign, if it is the newest of its ring.
    Active,
    /// Verifies what it signed; signs no more.
    Retiring,
    /// Gone from the JWKS.
    Archived,
}

impl State {
    /// The word for it, in logs and on the command line.
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

/// The state of `key` at `now`.
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

/// Whether the JWKS holds a key in this state.
pub fn in_jwks(state: State) -> bool {
    matches!(state, State::Published | State::Active | State::Retiring)
}

/// The signer of one ring: its highest active generation, or else its highest published one.
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

/// The next instant after `now` at which the state of a key changes by itself.
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

/// Whether the private half has done its work: an hour after the key signed last.
pub fn private_half_is_due(key: &SigningKey, now: Timestamp) -> bool {
    key.revoked_at.is_some()
        || key
            .retire_at
            .is_some_and(|at| now >= at + PRIVATE_HALF_KEPT)
}

/// The waiting times, computed from the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// How long a key signs.
    pub rotate_every: Duration,
    /// How long a key is published before it signs.
    pub lead: Duration,
    /// The longest time that a verifier may keep a JWKS.
    pub verifier_cache: Duration,
}

impl Schedule {
    /// The waiting times of a configuration.
    pub fn of(keys: &config::Keys) -> Self {
        Self {
            rotate_every: keys.rotate_every.0,
            lead: keys.lead().0,
            verifier_cache: keys.verifier_cache.0,
        }
    }

    /// When every cache holds a key that is published at `publish_at`: C + S + P later.
    pub fn known_everywhere(&self, publish_at: Timestamp) -> Timestamp {
        publish_at + self.verifier_cache + CLOCK_SKEW + KEY_CHANGE_SEEN
    }

    /// When a key stops signing whose successor begins at `successor`: both are active for S + P.
    pub fn retire_at(&self, successor: Timestamp) -> Timestamp {
        successor + CLOCK_SKEW + KEY_CHANGE_SEEN
    }

    /// When a key leaves the JWKS: A + C + S + P after it stopped signing.
    pub fn remove_at(&self, retire_at: Timestamp) -> Timestamp {
        retire_at + LONGEST_SIGNED + self.verifier_cache + CLOCK_SKEW + KEY_CHANGE_SEEN
    }
}

/// A change of one ring, before anything of it is done: rows as they shall be, and keys to be made.
#[derive(Clone, Debug)]
pub struct Change {
    /// All rows of the ring that can be used, as they stand after the change; by generation.
    pub ring: Vec<SigningKey>,
    /// The keys that it needs, in order.
    pub made: Vec<Timetable>,
    schedule: Schedule,
    now: Timestamp,
    next_generation: i64,
}

impl Change {
    /// Nothing changes yet. `sound` are the rows of one ring that open; `newest` is the highest
    /// generation that the ring ever had, whether it opens or not.
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

    /// Whether the ring lacks a standby: its newest key is missing, dead, or signs already.
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

    /// Adds a generation. It signs R after its predecessor began, but never before every cache knows
    /// it; in a ring without a signer it signs at once, since waiting would help nobody.
    #[must_use]
    pub fn add(mut self) -> Self {
        let now = self.now;
        let last = self.last_that_will_sign();
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

    /// Lets the standby sign as soon as every cache knows it, or, `at_once`, now.
    #[must_use]
    pub fn bring_forward(mut self, at_once: bool) -> Self {
        let (now, schedule) = (self.now, self.schedule);
        let earliest = |key: &SigningKey| match at_once {
            true => now.max(key.publish_at),
            false => schedule
                .known_everywhere(key.publish_at)
                .max(now + KEY_CHANGE_SEEN),
        };
        if let Some(standby) = self.standby() {
            standby.activate_at = standby.activate_at.min(earliest(standby));
        }
        self.link()
    }

    /// Takes a key out of use for good, and adds a standby if none is left.
    #[must_use]
    pub fn revoke(self, kid: &str, reason: &str) -> Self {
        let change = self.end(kid, reason);
        if change.lacks_standby() {
            change.add()
        } else {
            change
        }
    }

    /// Takes a key out of use for good. If it was the signer, the standby signs at once: caches have
    /// known it for long.
    #[must_use]
    pub fn end(mut self, kid: &str, reason: &str) -> Self {
        let now = self.now;
        let was_signer = signer(&self.ring, now).is_some_and(|signer| signer.kid == kid);
        self.mark_revoked(reason, |key| key.kid == kid);
        if was_signer && let Some(standby) = self.standby() {
            let begins = (now - CLOCK_SKEW).max(standby.publish_at);
            standby.activate_at = standby.activate_at.min(begins);
        }
        self.link()
    }

    /// Takes every key of the ring out of use. A fresh one signs at once, and has its standby.
    #[must_use]
    pub fn revoke_all(self, reason: &str) -> Self {
        self.end_all(reason).add().add()
    }

    /// Takes every key of the ring out of use.
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

    /// The next key that will sign.
    fn standby(&mut self) -> Option<&mut SigningKey> {
        let now = self.now;
        self.ring
            .iter_mut()
            .find(|key| state(key, now) == State::Published)
    }

    /// When the newest key begins that signs or will; `None` when nothing of the ring can sign.
    fn last_that_will_sign(&self) -> Option<Timestamp> {
        let living =
            |key: &&SigningKey| matches!(state(key, self.now), State::Active | State::Published);
        let newest = self.ring.iter().rev().find(living)?;
        Some(newest.activate_at)
    }

    /// Lets each key that still signs or will stop S + P after its successor begins. Instants that
    /// have passed stay as they are.
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
