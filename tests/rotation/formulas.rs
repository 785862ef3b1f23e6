//! Properties of the key states and formulas, over random settings, clocks and changes.

use std::time::Duration;

use portcullis::config;
use portcullis::config::limits::{CLOCK_SKEW, KEY_CHANGE_SEEN, LONGEST_SIGNED, PRIVATE_HALF_KEPT};
use portcullis::keys::rotation::{
    Change, Rotation, Schedule, State, in_jwks, private_half_is_due, signer, state,
};
use portcullis::keys::{Alg, SigningKey, Use};
use portcullis::time::Timestamp;
use proptest::prelude::*;

const MICRO: Duration = Duration::from_micros(1);

fn start() -> Timestamp {
    Timestamp::from_secs(1_800_000_000)
}

/// Settings that the configuration accepts.
fn schedules() -> impl Strategy<Value = Schedule> {
    let hours = |hours: u64| Duration::from_secs(hours * 3_600);
    (25..100_u64, 0..40_u64, 1..100_u64).prop_map(move |(cache, notice, more)| {
        let mut keys = config::Keys {
            verifier_cache: config::HumanDuration(hours(cache)),
            notice: config::HumanDuration(hours(notice * 24)),
            ..config::Keys::default()
        };
        let every = keys.lead().0 + hours(24 * more);
        keys.rotate_every = config::HumanDuration(every.min(hours(24 * 180)));
        Schedule::of(&keys)
    })
}

/// An event in the history of a ring.
#[derive(Clone, Copy, Debug)]
enum Happens {
    KeyManager,
    Rotate,
    RevokeSigner,
    RevokeStandby,
    RevokeNth(usize),
    RevokeAll,
}

/// Generates an ordinary history: time passes, the key manager runs late or often, an operator rotates early.
fn ordinary() -> impl Strategy<Value = Vec<(u64, Happens)>> {
    let what = prop_oneof![5 => Just(Happens::KeyManager), 1 => Just(Happens::Rotate)];
    prop::collection::vec((waits(), what), 1..40)
}

fn troubled() -> impl Strategy<Value = Vec<(u64, Happens)>> {
    let what = prop_oneof![
        5 => Just(Happens::KeyManager),
        1 => Just(Happens::Rotate),
        1 => Just(Happens::RevokeSigner),
        1 => Just(Happens::RevokeStandby),
        1 => (0..6_usize).prop_map(Happens::RevokeNth),
        1 => Just(Happens::RevokeAll),
    ];
    prop::collection::vec((waits(), what), 1..40)
}

/// Generates a number of seconds: within the overlap, within the lifetime of a cache, or weeks.
fn waits() -> impl Strategy<Value = u64> {
    prop_oneof![0..130_u64, 0..200_000_u64, 0..10_000_000_u64]
}

/// A ring whose keys change by the rules.
struct Life {
    schedule: Schedule,
    now: Timestamp,
    ring: Vec<SigningKey>,
}

impl Life {
    fn begin(schedule: Schedule) -> Self {
        let mut life = Self {
            schedule,
            now: start(),
            ring: Vec::new(),
        };
        life.keep();
        life.keep();
        life
    }

    fn change(&self) -> Change {
        let newest = self.ring.iter().map(|key| key.generation).max();
        Change::of(&self.ring, newest.unwrap_or(0), self.schedule, self.now)
    }

    fn apply(&mut self, change: Change) {
        self.ring = change.ring;
        for made in change.made {
            self.ring.push(SigningKey {
                kid: format!("k{}", made.generation),
                issuer: "https://op.example".to_owned(),
                use_: Use::Token,
                alg: Alg::ES256,
                generation: made.generation,
                public_jwk: String::new(),
                sealed: String::new(),
                publish_at: made.publish_at,
                activate_at: made.activate_at,
                retire_at: made.retire_at,
                remove_at: made.remove_at,
                revoked_at: None,
                revoke_reason: None,
                created_at: self.now,
            });
        }
    }

    fn keep(&mut self) {
        if self.change().lacks_standby() {
            self.apply(self.change().add());
            assert!(
                !self.change().lacks_standby() || self.ring.len() == 1,
                "a second run changes nothing"
            );
        }
    }

    fn kid(&self, wanted: impl Fn(&SigningKey) -> bool) -> Option<String> {
        self.ring
            .iter()
            .rev()
            .find(|key| wanted(key))
            .map(|key| key.kid.clone())
    }

    fn happens(&mut self, what: Happens) {
        let now = self.now;
        match what {
            Happens::KeyManager => self.keep(),
            Happens::Rotate => self.apply(self.change().bring_forward(Rotation::Scheduled)),
            Happens::RevokeSigner => {
                let kid = self.signer().map(|key| key.kid.clone());
                self.revoke(kid);
            }
            Happens::RevokeStandby => {
                self.revoke(self.kid(|key| state(key, now) == State::Published));
            }
            Happens::RevokeNth(n) => self.revoke(self.ring.get(n).map(|key| key.kid.clone())),
            Happens::RevokeAll => self.apply(self.change().revoke_all("test")),
        }
    }

    fn revoke(&mut self, kid: Option<String>) {
        if let Some(kid) = kid {
            self.apply(self.change().revoke(&kid, "test"));
        }
    }

    fn signer(&self) -> Option<&SigningKey> {
        signer(&self.ring, self.now)
    }

    /// Checks the constraints of the database on every row, and that past values did not change.
    fn check_rows(&self, before: &[SigningKey]) {
        for key in &self.ring {
            assert!(key.publish_at <= key.activate_at, "{key:?}");
            if let Some(retire_at) = key.retire_at {
                assert!(key.activate_at <= retire_at, "{key:?}");
                assert!(key.remove_at.is_some_and(|at| retire_at <= at), "{key:?}");
            }
        }
        for old in before {
            let new = self.ring.iter().find(|key| key.kid == old.kid).unwrap();
            assert_eq!(
                (old.publish_at, old.generation),
                (new.publish_at, new.generation)
            );
            if old.revoked_at.is_some() {
                assert_eq!(old, new, "a removed key does not change");
            }
            for (then, now) in [
                (Some(old.activate_at), Some(new.activate_at)),
                (old.retire_at, new.retire_at),
                (old.remove_at, new.remove_at),
            ] {
                if then.is_some_and(|then| then <= self.now) {
                    assert_eq!(then, now, "past timestamps do not change");
                }
            }
        }
    }

    /// Returns every instant near now at which something may change.
    fn instants(&self) -> Vec<Timestamp> {
        let edges = self
            .ring
            .iter()
            .flat_map(|key| [Some(key.activate_at), key.retire_at, key.remove_at]);
        let around = edges.flatten().flat_map(|at| [at - MICRO, at, at + MICRO]);
        around
            .chain([self.now])
            .filter(|at| *at >= self.now)
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Exactly one key signs at each instant, now and on all days to come if every key manager stopped now.
    #[test]
    fn exactly_one_key_signs_in_any_history(schedule in schedules(), story in troubled()) {
        let mut life = Life::begin(schedule);
        for (wait, what) in story {
            life.now = life.now + Duration::from_secs(wait);
            let before = life.ring.clone();
            life.happens(what);
            life.check_rows(&before);
            for at in life.instants() {
                let best = signer(&life.ring, at);
                prop_assert!(best.is_some(), "no key signs at {at} after {what:?}");
                let best = best.unwrap();
                prop_assert!(best.revoked_at.is_none());
                prop_assert!(in_jwks(state(best, at)));
                let newer_active = life.ring.iter().filter(|key| {
                    state(key, at) == State::Active && key.generation > best.generation
                });
                prop_assert_eq!(newer_active.count(), 0);
            }
        }
    }

    /// A verifier that caches the keys for at most C, with clocks up to S apart, never receives a token whose
    /// key it lacks: keys are neither announced too late nor removed too early.
    #[test]
    fn every_cache_contains_the_key_of_every_valid_token(schedule in schedules(), story in ordinary()) {
        let mut life = Life::begin(schedule);
        for (wait, what) in story {
            life.now = life.now + Duration::from_secs(wait);
            // Time passes before a node reads the keys. The signer of that moment signs.
            for at in [life.now - Duration::from_secs(wait / 2), life.now] {
                let signed_by = signer(&life.ring, at).unwrap();
                let first = signed_by.generation == 1;
                // The oldest copy that may be in use when the token is signed …
                let fetched = at - schedule.verifier_cache - KEY_CHANGE_SEEN;
                prop_assert!(first || signed_by.publish_at <= fetched, "{:?} at {}", signed_by, at);
                // … and the newest one that may be in use when it expires.
                let dead = at + LONGEST_SIGNED + CLOCK_SKEW;
                prop_assert!(in_jwks(state(signed_by, dead)) || state(signed_by, dead) == State::Active);
                prop_assert!(signed_by.remove_at.is_none_or(|gone| gone >= dead));
            }
            life.happens(what);
        }
    }

    /// The private key is kept for one hour after its last signature, and not longer.
    #[test]
    fn private_key_is_deleted_after_its_last_use(schedule in schedules(), story in troubled()) {
        let mut life = Life::begin(schedule);
        let mut destroyed: Vec<String> = Vec::new();
        for (wait, what) in story {
            life.now = life.now + Duration::from_secs(wait);
            life.happens(what);
            for key in &life.ring {
                if private_half_is_due(key, life.now) && !destroyed.contains(&key.kid) {
                    let rests = key.revoked_at.is_some()
                        || key.retire_at.unwrap() + PRIVATE_HALF_KEPT <= life.now;
                    prop_assert!(rests);
                    destroyed.push(key.kid.clone());
                }
            }
            for at in life.instants() {
                let best = signer(&life.ring, at).unwrap();
                prop_assert!(!destroyed.contains(&best.kid), "{} signs without its private half", best.kid);
            }
        }
    }

    /// A clock that ran ahead for a while and was corrected adds at most one key version.
    #[test]
    fn wrong_clock_adds_at_most_one_key_version(
        schedule in schedules(), ahead in 0..40_000_000_u64, day in 0..100_u64,
    ) {
        let mut life = Life::begin(schedule);
        life.now = life.now + Duration::from_secs(day * 86_400);
        life.keep();
        let (real, before) = (life.now, life.ring.len());
        life.now = real + Duration::from_secs(ahead);
        for _ in 0..3 {
            life.keep();
        }
        prop_assert!(life.ring.len() <= before + 1);
        life.now = real;
        for at in life.instants() {
            prop_assert!(signer(&life.ring, at).is_some());
        }
        for _ in 0..3 {
            life.keep();
        }
        prop_assert!(life.ring.len() <= before + 1);
    }
}

/// All orders of the four instants, with now before, on and after each.
#[test]
fn key_state_depends_only_on_row_and_clock() {
    let at = |secs: u64| start() + Duration::from_secs(secs);
    let mut life = Life::begin(Schedule::of(&config::Keys::default()));
    let key = &mut life.ring[0];
    (key.publish_at, key.activate_at) = (at(0), at(10));
    (key.retire_at, key.remove_at) = (Some(at(20)), Some(at(30)));
    let table = [
        (0, State::Published),
        (9, State::Published),
        (10, State::Active),
        (19, State::Active),
        (20, State::Retiring),
        (29, State::Retiring),
        (30, State::Archived),
        (9_999_999, State::Archived),
    ];
    for (secs, expected) in table {
        assert_eq!(state(key, at(secs)), expected, "at {secs}");
        let mut revoked = key.clone();
        revoked.revoked_at = Some(at(9_999));
        assert_eq!(
            state(&revoked, at(secs)),
            State::Revoked,
            "a revocation applies at once, whatever its timestamp"
        );
    }
    (key.retire_at, key.remove_at) = (None, None);
    assert_eq!(
        state(key, at(9_999_999)),
        State::Active,
        "a late run breaks nothing"
    );
}

#[test]
fn rotation_defaults_match_the_documented_table() {
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let schedule = Schedule::of(&config::Keys::default());
    assert_eq!((schedule.rotate_every, schedule.lead), (days(90), days(7)));
    let life = Life::begin(schedule);
    let [first, second] = life.ring.as_slice() else {
        panic!("a signer and its standby");
    };
    assert_eq!(
        (first.publish_at, first.activate_at),
        (start() - CLOCK_SKEW, start() - CLOCK_SKEW)
    );
    assert_eq!(second.publish_at, start());
    assert_eq!(second.activate_at, first.activate_at + days(90));
    let retire = second.activate_at + Duration::from_secs(65);
    assert_eq!(first.retire_at, Some(retire));
    let verify_only = Duration::from_secs(3_600 + 25 * 3_600 + 65);
    assert_eq!(first.remove_at, Some(retire + verify_only));
}
