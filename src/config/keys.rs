//! Section `keys`: signing keys, their schedule, and the key that encrypts them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::{CLOCK_SKEW, JWKS_CACHED, KEY_CHANGE_SEEN};
use super::{ConfigError, HumanDuration};

/// Minimum time between the creation of the next key and the start of its lead.
const SPARE: Duration = Duration::from_secs(86_400);
const MAX_ROTATION: HumanDuration = HumanDuration::secs(180 * 86_400);

/// Signing keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keys {
    /// The key-encrypting keys: `file:PATH` (mode 0600), `credential:NAME` (systemd) or `env:NAME`; 32 bytes
    /// in base64. The first encrypts, all decrypt.
    /// Default `["file:keys/kek"]`.
    pub kek: Vec<String>,
    /// Size of RSA keys: 2048 (default), 3072 or 4096 bits.
    pub rsa_bits: usize,
    /// Time that a key signs. Default 90d; at most 180d, at least a day more than the lead.
    pub rotate_every: HumanDuration,
    /// Time that a key is published before it signs, for operators who pin keys. Default 7d.
    pub notice: HumanDuration,
    /// Maximum time that a verifier caches the published keys. Default 25h, at least 24h and 5m.
    pub verifier_cache: HumanDuration,
    /// The algorithms of the token keys: `ES256`, `RS256` or both. Default both.
    pub algorithms: Vec<String>,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            kek: vec!["file:keys/kek".to_owned()],
            rsa_bits: 2_048,
            rotate_every: HumanDuration::secs(90 * 86_400),
            notice: HumanDuration::secs(7 * 86_400),
            verifier_cache: HumanDuration::secs(25 * 3_600),
            algorithms: vec!["ES256".to_owned(), "RS256".to_owned()],
        }
    }
}

impl Keys {
    /// Returns the time that a key is published before it signs: max(N, C + S + P).
    pub fn lead(&self) -> HumanDuration {
        let cached = self.verifier_cache.0 + CLOCK_SKEW + KEY_CHANGE_SEEN;
        HumanDuration(self.notice.0.max(cached))
    }

    /// Returns [`Keys::lead`] with its terms.
    pub fn lead_formula(&self) -> String {
        format!(
            "max(notice {}, verifier_cache {} + clock skew {} + poll {}) = {}",
            self.notice,
            self.verifier_cache,
            HumanDuration(CLOCK_SKEW).spelled(),
            HumanDuration(KEY_CHANGE_SEEN).spelled(),
            self.lead().spelled(),
        )
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.kek.is_empty() {
            return Err(ConfigError::key(
                "keys.kek",
                "must name at least one key-encrypting key",
            ));
        }
        if let Some(invalid) = self.kek.iter().find(|source| {
            !matches!(source.split_once(':'), Some(("file" | "credential" | "env", name)) if !name.is_empty())
        }) {
            return Err(ConfigError::key(
                "keys.kek",
                format!("expected file:PATH, credential:NAME or env:NAME, got `{invalid}`"),
            ));
        }
        if ![2_048, 3_072, 4_096].contains(&self.rsa_bits) {
            return Err(ConfigError::key(
                "keys.rsa_bits",
                "must be 2048, 3072 or 4096",
            ));
        }
        self.check_algorithms()?;
        self.check_schedule()
    }

    fn check_algorithms(&self) -> Result<(), ConfigError> {
        let refused = |why: String| Err(ConfigError::key("keys.algorithms", why));
        for (index, name) in self.algorithms.iter().enumerate() {
            if !["ES256", "RS256"].contains(&name.as_str()) {
                return refused(format!("`{name}` is neither ES256 nor RS256"));
            }
            if self.algorithms[..index].contains(name) {
                return refused(format!("names {name} twice"));
            }
        }
        if !self.algorithms.iter().any(|name| name == "ES256") {
            return refused("must contain ES256, which signs access tokens".to_owned());
        }
        Ok(())
    }

    fn check_schedule(&self) -> Result<(), ConfigError> {
        if self.verifier_cache.0 < JWKS_CACHED {
            return Err(ConfigError::key(
                "keys.verifier_cache",
                format!(
                    "{} is less than a cache may keep the keys: max-age 5m + stale-if-error 24h = {}",
                    self.verifier_cache,
                    HumanDuration(JWKS_CACHED),
                ),
            ));
        }
        let least = HumanDuration(self.lead().0.saturating_add(SPARE));
        if self.rotate_every < least || self.rotate_every > MAX_ROTATION {
            return Err(ConfigError::key(
                "keys.rotate_every",
                format!(
                    "{} is out of range; it must be at least lead + {} = {least} and at most {MAX_ROTATION}, where lead = {}",
                    self.rotate_every,
                    HumanDuration(SPARE),
                    self.lead_formula(),
                ),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut Keys)) -> String {
        let mut keys = Keys::default();
        change(&mut keys);
        keys.check()
            .err()
            .map(|refused| refused.0)
            .unwrap_or_default()
    }

    #[test]
    fn invalid_schedule_is_rejected_with_the_terms_of_the_formula() {
        assert_eq!(refusal(|_| {}), "");
        assert_eq!(
            refusal(|keys| keys.rotate_every = HumanDuration::secs(7 * 86_400)),
            "configuration key `keys.rotate_every`: 7d is out of range; it must be at least lead + 1d = 8d and at most 180d, \
             where lead = max(notice 7d, verifier_cache 25h + clock skew 1m + poll 5s) = 7d"
        );
        assert_eq!(
            refusal(|keys| keys.notice = HumanDuration::secs(90 * 86_400)),
            "configuration key `keys.rotate_every`: 90d is out of range; it must be at least lead + 1d = 91d and at most 180d, \
             where lead = max(notice 90d, verifier_cache 25h + clock skew 1m + poll 5s) = 90d"
        );
        assert_eq!(
            refusal(|keys| keys.verifier_cache = HumanDuration::secs(86_400)),
            "configuration key `keys.verifier_cache`: 1d is less than a cache may keep the keys: \
             max-age 5m + stale-if-error 24h = 1445m"
        );
        assert!(
            refusal(|keys| keys.rotate_every = HumanDuration::secs(181 * 86_400))
                .contains("at most 180d")
        );
    }

    #[test]
    fn lead_is_at_least_the_cache_time() {
        let keys = Keys {
            notice: HumanDuration::secs(0),
            ..Keys::default()
        };
        assert_eq!(keys.lead().0, Duration::from_secs(25 * 3_600 + 65));
    }

    #[test]
    fn algorithms_are_ours_and_hold_es256() {
        let list = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            refusal(|keys| keys.algorithms = names)
        };
        assert_eq!(list(&["ES256"]), "");
        assert!(list(&["RS256"]).ends_with("must contain ES256, which signs access tokens"));
        assert!(list(&["ES256", "HS256"]).ends_with("`HS256` is neither ES256 nor RS256"));
        assert!(list(&["ES256", "ES256"]).ends_with("names ES256 twice"));
    }
}
