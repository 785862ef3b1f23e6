//! The state of a key: a pure function of its row and the clock. No job moves a key.

use super::SigningKey;
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

#[cfg(test)]
mod tests {
    use super::super::{Alg, Use};
    use super::*;

    fn key(generation: i64, activate: u64, retire: Option<u64>, remove: Option<u64>) -> SigningKey {
        SigningKey {
            kid: format!("k{generation}"),
            issuer: "http://localhost:8080".into(),
            use_: Use::Token,
            alg: Alg::ES256,
            generation,
            public_jwk: String::new(),
            sealed: String::new(),
            publish_at: Timestamp::from_secs(0),
            activate_at: Timestamp::from_secs(activate),
            retire_at: retire.map(Timestamp::from_secs),
            remove_at: remove.map(Timestamp::from_secs),
            revoked_at: None,
            revoke_reason: None,
            created_at: Timestamp::from_secs(0),
        }
    }

    #[test]
    fn the_state_follows_the_clock() {
        let key = key(1, 10, Some(20), Some(30));
        let table = [
            (9, State::Published),
            (10, State::Active),
            (19, State::Active),
            (20, State::Retiring),
            (29, State::Retiring),
            (30, State::Archived),
        ];
        for (at, expected) in table {
            assert_eq!(state(&key, Timestamp::from_secs(at)), expected, "at {at}");
        }
        let mut revoked = key;
        revoked.revoked_at = Some(Timestamp::from_secs(1));
        assert_eq!(state(&revoked, Timestamp::from_secs(15)), State::Revoked);
        assert!(!in_jwks(State::Revoked) && !in_jwks(State::Archived) && in_jwks(State::Retiring));
    }

    #[test]
    fn exactly_one_key_signs_at_each_instant() {
        let ring = [key(1, 0, Some(25), Some(50)), key(2, 20, None, None)];
        let signer_at = |at| signer(&ring, Timestamp::from_secs(at)).map(|k| k.generation);
        assert_eq!(signer_at(0), Some(1));
        assert_eq!(signer_at(19), Some(1));
        assert_eq!(signer_at(20), Some(2));
        assert_eq!(signer_at(1_000), Some(2));
        let only_standby = [key(3, 500, None, None)];
        assert_eq!(
            signer(&only_standby, Timestamp::from_secs(1)).map(|k| k.generation),
            Some(3)
        );
    }
}
