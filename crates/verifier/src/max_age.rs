//! The maximum age of the revocation data at which tokens are accepted.

use std::time::Duration;

use crate::Need;

/// The maximum age of the revocation data at which tokens are accepted. If the data is older, the
/// verifier introspects the token if introspection is enabled, and otherwise rejects it with 503.
/// Values are ordered from strict to lax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MaxAge(
    /// Whole seconds. `u64::MAX` means unlimited.
    u64,
);

impl MaxAge {
    /// 60 s, the default.
    pub const STANDARD: Self = Self(60);
    /// 3 s, for actions that must not be possible after a revocation, such as payments.
    pub const STRICT: Self = Self(3);
    /// Unlimited: tokens are accepted even without any revocation data. This favours availability
    /// over revocation. It has an effect only if the subscriber's registration allows it, which the
    /// issuer audits.
    pub const FAIL_OPEN: Self = Self(u64::MAX);

    /// Creates a limit of `secs` seconds. The limit is reduced to what the subscriber's
    /// registration allows, which is at most the lifetime of an access token.
    pub const fn secs(secs: u64) -> Self {
        // `u64::MAX` is reserved for "unlimited".
        Self(if secs == u64::MAX { secs - 1 } else { secs })
    }

    /// Returns the number of seconds, or `None` if the age is unlimited.
    pub const fn as_secs(self) -> Option<u64> {
        if self.0 == u64::MAX {
            None
        } else {
            Some(self.0)
        }
    }

    /// Creates a limit from a number of seconds of which `u64::MAX` means unlimited.
    pub(crate) const fn from_raw(secs: u64) -> Self {
        Self(secs)
    }

    /// Returns the number of seconds, or `u64::MAX` if the age is unlimited.
    pub(crate) const fn to_raw(self) -> u64 {
        self.0
    }

    /// Returns whether revocation data of this age is acceptable. An age of `None` means that no
    /// data has arrived.
    pub(crate) fn allows(self, age: Option<Duration>) -> bool {
        match (self.as_secs(), age) {
            (None, _) => true,
            (Some(secs), Some(age)) => age <= Duration::from_secs(secs),
            (Some(_), None) => false,
        }
    }
}

impl Default for MaxAge {
    fn default() -> Self {
        Self::STANDARD
    }
}

impl From<Option<u64>> for MaxAge {
    fn from(secs: Option<u64>) -> Self {
        secs.map_or(Self::FAIL_OPEN, Self::secs)
    }
}

/// The configured maximum ages.
#[derive(Clone, Debug)]
pub(crate) struct MaxAges {
    /// Limits for a scope, or for all scopes with a prefix if the pattern ends with `*`.
    by_scope: Vec<(String, MaxAge)>,
    /// The limit for requests that no pattern matches.
    pub(crate) default: MaxAge,
}

impl Default for MaxAges {
    fn default() -> Self {
        Self {
            by_scope: Vec::new(),
            default: MaxAge::STANDARD,
        }
    }
}

impl MaxAges {
    pub(crate) fn add(&mut self, pattern: String, max_age: MaxAge) {
        self.by_scope.push((pattern, max_age));
    }

    /// Returns the strictest limit that applies to `need` or one of its scopes.
    pub(crate) fn for_need(&self, need: &Need) -> MaxAge {
        let by_scope = need.scopes().flat_map(|scope| {
            let matching = self
                .by_scope
                .iter()
                .filter(move |(pattern, _)| matches_scope(pattern, scope));
            matching.map(|(_, max_age)| *max_age)
        });
        let strictest = by_scope.chain(need.own_max_age()).min();
        strictest.unwrap_or(self.default)
    }

    /// Returns the laxest configured limit.
    pub(crate) fn longest(&self) -> MaxAge {
        let by_scope = self.by_scope.iter().map(|(_, max_age)| *max_age);
        by_scope.fold(self.default, MaxAge::max)
    }
}

fn matches_scope(pattern: &str, scope: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => scope.starts_with(prefix),
        None => scope == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_ordered_from_strict_to_lax() {
        assert!(MaxAge::STRICT < MaxAge::STANDARD && MaxAge::STANDARD < MaxAge::FAIL_OPEN);
        assert!(MaxAge::secs(u64::MAX) < MaxAge::FAIL_OPEN);
        assert_eq!(MaxAge::default(), MaxAge::STANDARD);
    }

    #[test]
    fn age_is_compared_to_the_microsecond() {
        let age = |us| Some(Duration::from_micros(us));
        assert!(MaxAge::STRICT.allows(age(3_000_000)));
        assert!(!MaxAge::STRICT.allows(age(3_000_001)));
        assert!(!MaxAge::secs(0).allows(age(1)));
    }

    #[test]
    fn only_fail_open_allows_missing_data() {
        assert!(!MaxAge::secs(u64::MAX).allows(None));
        assert!(MaxAge::FAIL_OPEN.allows(None));
        assert_eq!(MaxAge::FAIL_OPEN.as_secs(), None);
        assert_eq!(MaxAge::from(None), MaxAge::FAIL_OPEN);
        assert_eq!(MaxAge::from(Some(7)).as_secs(), Some(7));
    }

    #[test]
    fn strictest_matching_limit_applies() {
        let mut ages = MaxAges::default();
        ages.add("payments:*".into(), MaxAge::STRICT);
        ages.add("news".into(), MaxAge::secs(300));
        let lax = Need::scope("news").max_age(MaxAge::secs(120));
        for (need, expected) in [
            (Need::any(), MaxAge::STANDARD),
            (Need::scope("orders"), MaxAge::STANDARD),
            (Need::scope("payments:write"), MaxAge::STRICT),
            (Need::scope("payments"), MaxAge::STANDARD),
            (Need::scope("news"), MaxAge::secs(300)),
            (Need::scope("newsletter"), MaxAge::STANDARD),
            (Need::scope("news").and("payments:read"), MaxAge::STRICT),
            (Need::one_of(["news", "payments:read"]), MaxAge::STRICT),
            (lax, MaxAge::secs(120)),
            (Need::any().max_age(MaxAge::FAIL_OPEN), MaxAge::FAIL_OPEN),
        ] {
            assert_eq!(ages.for_need(&need), expected, "{need:?}");
        }
        assert_eq!(ages.longest(), MaxAge::secs(300));
    }
}
