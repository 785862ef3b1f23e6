//! How old the news of revocations may be before a token is no longer accepted on its strength.

use std::time::Duration;

use crate::Need;

/// The longest age of the revocation feed at which tokens are accepted. Older: the verifier
/// introspects where it was asked to, or answers 503. Ordered from strict to lax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MaxAge(
    /// Whole seconds; the largest number stands for no limit.
    u64,
);

impl MaxAge {
    /// 60 s: what holds unless something else is said.
    pub const STANDARD: Self = Self(60);
    /// 3 s: for what must not happen after a revocation, such as payments.
    pub const STRICT: Self = Self(3);
    /// Whatever the age, also without any news at all: availability before revocation. Counts only
    /// where the subscriber's registration allows it; the issuer audits it.
    pub const FAIL_OPEN: Self = Self(u64::MAX);

    /// That many seconds. More than the registration allows counts as what it allows, at most the
    /// life of an access token.
    pub const fn secs(secs: u64) -> Self {
        // All ones mean something else, and nobody waits that long.
        Self(if secs == u64::MAX { secs - 1 } else { secs })
    }

    /// The number of seconds; `None` where there is no limit.
    pub const fn as_secs(self) -> Option<u64> {
        if self.0 == u64::MAX {
            None
        } else {
            Some(self.0)
        }
    }

    /// From seconds of which the largest number stands for no limit.
    pub(crate) const fn from_form(secs: u64) -> Self {
        Self(secs)
    }

    /// Whether news of this age is young enough.
    pub(crate) fn covers(self, age: Option<Duration>) -> bool {
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

/// What the builder said about scopes.
#[derive(Clone, Debug)]
pub(crate) struct MaxAges {
    /// A scope, or with `*` at its end whatever begins so.
    by_scope: Vec<(String, MaxAge)>,
    /// Where nothing else is said.
    pub(crate) otherwise: MaxAge,
}

impl Default for MaxAges {
    fn default() -> Self {
        Self {
            by_scope: Vec::new(),
            otherwise: MaxAge::STANDARD,
        }
    }
}

impl MaxAges {
    pub(crate) fn add(&mut self, scopes: String, max_age: MaxAge) {
        self.by_scope.push((scopes, max_age));
    }

    /// The strictest of what was said about this need and its scopes.
    pub(crate) fn of(&self, need: &Need) -> MaxAge {
        let by_scope = need.scopes().flat_map(|scope| {
            let about = self
                .by_scope
                .iter()
                .filter(move |(scopes, _)| covers(scopes, scope));
            about.map(|(_, max_age)| *max_age)
        });
        let strictest = by_scope.chain(need.own_max_age()).min();
        strictest.unwrap_or(self.otherwise)
    }

    /// The laxest that was said.
    pub(crate) fn longest(&self) -> MaxAge {
        let by_scope = self.by_scope.iter().map(|(_, max_age)| *max_age);
        by_scope.fold(self.otherwise, MaxAge::max)
    }
}

fn covers(pattern: &str, scope: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => scope.starts_with(start),
        None => scope == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_is_less_than_lax() {
        assert!(MaxAge::STRICT < MaxAge::STANDARD && MaxAge::STANDARD < MaxAge::FAIL_OPEN);
        assert!(MaxAge::secs(u64::MAX) < MaxAge::FAIL_OPEN);
        assert_eq!(MaxAge::default(), MaxAge::STANDARD);
    }

    #[test]
    fn an_age_counts_to_the_microsecond() {
        let age = |us| Some(Duration::from_micros(us));
        assert!(MaxAge::STRICT.covers(age(3_000_000)));
        assert!(!MaxAge::STRICT.covers(age(3_000_001)));
        assert!(!MaxAge::secs(0).covers(age(1)));
    }

    #[test]
    fn without_news_only_fail_open_accepts() {
        assert!(!MaxAge::secs(u64::MAX).covers(None));
        assert!(MaxAge::FAIL_OPEN.covers(None));
        assert_eq!(MaxAge::FAIL_OPEN.as_secs(), None);
        assert_eq!(MaxAge::from(None), MaxAge::FAIL_OPEN);
        assert_eq!(MaxAge::from(Some(7)).as_secs(), Some(7));
    }

    #[test]
    fn the_strictest_of_what_was_said_counts() {
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
            assert_eq!(ages.of(&need), expected, "{need:?}");
        }
        assert_eq!(ages.longest(), MaxAge::secs(300));
    }
}
