//! Tokens whose signature was good lately, so that the second sight of one costs a hash instead of
//! a signature check.
//!
//! What is remembered is what can never change about a token: that its bytes were signed by this
//! key, and what they say. Time, revocation and need are looked at each time, and the
//! key must still be held. Bounded, and free of locks: a row of four slots for each hash, each
//! slot swapped as a whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::{ArcSwapOption, Guard};
use aws_lc_rs::digest;

use crate::key::KeyId;
use crate::probe::Probes;
use crate::{Claims, Digest};

/// Slots that a hash may lie in.
const WAYS: usize = 4;
/// Longer tokens are checked anew each time; ours have 1 kB.
const MAX_BYTES: usize = 4096;

pub(crate) const DEFAULT_TOKENS: usize = 8192;

/// A token that was good but for what may change.
#[derive(Clone)]
pub(crate) struct Good {
    pub(crate) kid: String,
    pub(crate) key: KeyId,
    /// What a record that revokes the key looks like.
    pub(crate) revoked_by: Digest,
    pub(crate) claims: Claims,
    pub(crate) probes: Probes,
}

pub(crate) struct Seen {
    /// SHA-256 of the whole token, signature included.
    hash: [u8; 32],
    pub(crate) good: Good,
}

/// The tokens remembered.
pub(crate) struct Memory {
    slots: Box<[ArcSwapOption<Seen>]>,
    /// Where the next token goes whose row is full, and which row is swept next.
    turn: AtomicUsize,
}

/// The place of one token, whether something is there or not.
pub(crate) struct Place<'a> {
    memory: &'a Memory,
    hash: [u8; 32],
}

impl Memory {
    /// Room for about so many tokens, and never more than four times as many; 0 remembers none.
    /// Half of the slots stay free as a rule, so that few tokens find their row full.
    pub(crate) fn with_room_for(tokens: usize) -> Self {
        let slots = match tokens {
            0 => 0,
            tokens => (2 * tokens).max(WAYS).next_power_of_two(),
        };
        Self {
            slots: (0..slots).map(|_| ArcSwapOption::empty()).collect(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Where a token is or would be; `None` if it is not remembered on principle.
    pub(crate) fn place(&self, token: &str) -> Option<Place<'_>> {
        if self.slots.is_empty() || token.len() > MAX_BYTES {
            return None;
        }
        let hashed = digest::digest(&digest::SHA256, token.as_bytes());
        let hash = hashed.as_ref().try_into().ok()?;
        Some(Place { memory: self, hash })
    }

    fn row(&self, number: usize) -> &[ArcSwapOption<Seen>] {
        let rows = self.slots.len() / WAYS;
        let first = (number % rows) * WAYS;
        &self.slots[first..first + WAYS]
    }

    /// How many tokens are remembered, those over included.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| slot.load().is_some())
            .count()
    }
}

impl Place<'_> {
    pub(crate) fn find(&self) -> Option<Guard<Option<Arc<Seen>>>> {
        let slots = self.slots().iter();
        slots
            .map(ArcSwapOption::load)
            .find(|slot| slot.as_ref().is_some_and(|seen| seen.hash == self.hash))
    }

    /// Remembers. What is over by `now` makes room first, here and in one other row, so that what
    /// nobody asks for again does not stay.
    pub(crate) fn remember(&self, good: Good, now: u64) {
        let turn = self.memory.turn.fetch_add(1, Ordering::Relaxed);
        let is_over = |slot: &ArcSwapOption<Seen>| {
            let seen = slot.load();
            seen.as_ref()
                .is_some_and(|seen| seen.good.claims.exp <= now)
        };
        for slot in self.memory.row(turn).iter().filter(|slot| is_over(slot)) {
            slot.store(None);
        }
        let slots = self.slots();
        let free = |slot: &&ArcSwapOption<Seen>| slot.load().is_none() || is_over(slot);
        let slot = slots.iter().find(free).unwrap_or(&slots[turn % WAYS]);
        slot.store(Some(Arc::new(Seen {
            hash: self.hash,
            good,
        })));
    }

    /// Forgets, whoever asked for it.
    pub(crate) fn forget(&self) {
        for slot in self.slots() {
            if slot
                .load()
                .as_ref()
                .is_some_and(|seen| seen.hash == self.hash)
            {
                slot.store(None);
            }
        }
    }

    fn slots(&self) -> &[ArcSwapOption<Seen>] {
        let number = u64::from_be_bytes(std::array::from_fn(|at| self.hash[at]));
        // Whatever of the number is cut off, the rest is as random.
        #[allow(clippy::cast_possible_truncation)]
        self.memory.row(number as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Jwk, Key, Kind};

    fn claims(exp: u64) -> Claims {
        let json = format!(
            r#"{{"iss":"i","sub":"u","aud":"a","client_id":"c","iat":1,"exp":{exp},"jti":"j","rev":"1.1"}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    /// The key of RFC 7515 §A.3.
    fn key() -> KeyId {
        let json = r#"{"kty":"EC","use":"sig","alg":"ES256","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
        let jwk: Jwk = serde_json::from_str(json).unwrap();
        Key::parse(&jwk).unwrap().id()
    }

    fn remember(memory: &Memory, token: &str, exp: u64, now: u64) {
        let place = memory.place(token).unwrap();
        let claims = claims(exp);
        let good = Good {
            kid: "k".into(),
            key: key(),
            revoked_by: Digest::of(Kind::Key, "k"),
            probes: Probes::of(&claims),
            claims,
        };
        place.remember(good, now);
    }

    fn remembers(memory: &Memory, token: &str) -> bool {
        memory.place(token).unwrap().find().is_some()
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let memory = Memory::with_room_for(100);
        assert_eq!(memory.slots.len(), 256);
        for number in 0..1000 {
            let token = format!("token {number}");
            remember(&memory, &token, 100, 10);
            assert!(remembers(&memory, &token), "the newest always has a place");
        }
        assert!((200..=256).contains(&memory.len()), "{}", memory.len());
    }

    #[test]
    fn what_is_over_goes_though_nobody_asks_for_it() {
        let memory = Memory::with_room_for(64);
        for number in 0..40 {
            remember(&memory, &format!("old {number}"), 100, 10);
        }
        // One row is swept with each new token.
        for number in 0..32 {
            remember(&memory, &format!("new {number}"), 300, 100);
        }
        for number in 0..40 {
            assert!(!remembers(&memory, &format!("old {number}")));
        }
    }

    #[test]
    fn large_tokens_are_not_remembered() {
        let memory = Memory::with_room_for(100);
        assert!(memory.place(&"t".repeat(MAX_BYTES)).is_some());
        assert!(memory.place(&"t".repeat(MAX_BYTES + 1)).is_none());
        assert!(Memory::with_room_for(0).place("t").is_none());
    }

    #[test]
    fn a_token_can_be_forgotten() {
        let memory = Memory::with_room_for(100);
        remember(&memory, "a", 100, 10);
        remember(&memory, "b", 100, 10);
        memory.place("a").unwrap().forget();
        assert!(!remembers(&memory, "a") && remembers(&memory, "b"));
    }
}
