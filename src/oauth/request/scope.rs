//! Scope: RFC 6749 §3.3. Unlike oxide-auth's scope, which is a set, it keeps the requested order.

use std::fmt;

use oxide_auth::primitives::scope::Scope as Set;

use crate::config::limits::{SCOPE_BYTES, SCOPE_ITEMS};

/// Scopes that describe the user rather than an API (OIDC Core §5.4, §11).
pub const IDENTITY: [&str; 6] = [
    "openid",
    "profile",
    "email",
    "address",
    "phone",
    "offline_access",
];

/// An ordered set of scope tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope(Vec<String>);

/// The text is not a scope, or it exceeds a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Scope {
    /// Parses a space-separated list. Repeated tokens count once.
    ///
    /// # Errors
    /// [`Malformed`] for characters outside §3.3, more than 1,024 bytes or more than 32 tokens.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if text.len() > SCOPE_BYTES || text.parse::<Set>().is_err() {
            return Err(Malformed);
        }
        let mut tokens: Vec<String> = Vec::new();
        for token in text.split(' ').filter(|token| !token.is_empty()) {
            if tokens.iter().all(|known| known != token) {
                tokens.push(token.to_owned());
            }
        }
        if tokens.len() > SCOPE_ITEMS {
            return Err(Malformed);
        }
        Ok(Self(tokens))
    }

    /// Returns whether it contains the token.
    pub fn contains(&self, token: &str) -> bool {
        self.0.iter().any(|known| known == token)
    }

    /// Returns whether `other` contains every token.
    pub fn is_within(&self, other: &Scope) -> bool {
        self.set() <= other.set()
    }

    /// Returns the tokens for which `keep` returns `true`, in order.
    #[must_use]
    pub fn retain(&self, keep: impl Fn(&str) -> bool) -> Self {
        Self(self.0.iter().filter(|token| keep(token)).cloned().collect())
    }

    /// Returns the tokens of this scope, followed by the additional ones of `other`.
    #[must_use]
    pub fn union(&self, other: &Scope) -> Self {
        let more = other.0.iter().filter(|token| !self.contains(token));
        Self(self.0.iter().chain(more).cloned().collect())
    }

    /// Returns the tokens in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Returns whether it has no token.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the scope as a type of oxide-auth.
    pub fn set(&self) -> Set {
        // `parse` checked the same rules.
        self.to_string().parse().unwrap_or_else(|_| unreachable!())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(text: &str) -> Scope {
        Scope::parse(text).unwrap()
    }

    #[test]
    fn parse_keeps_the_order_and_drops_duplicates() {
        assert_eq!(scope("b a  b c").to_string(), "b a c");
        assert_eq!(scope("a").union(&scope("b a")).to_string(), "a b");
    }

    #[test]
    fn is_within_tests_for_a_subset() {
        assert!(scope("a b").is_within(&scope("b c a")));
        assert!(!scope("a d").is_within(&scope("b c a")));
        assert!(scope("").is_within(&scope("a")));
    }

    #[test]
    fn parse_rejects_other_characters_and_sizes() {
        for bad in ["a\"b", "a\\b", "ä", "a\tb"] {
            assert_eq!(Scope::parse(bad), Err(Malformed), "{bad}");
        }
        assert!(Scope::parse(&"a".repeat(1_024)).is_ok());
        assert!(Scope::parse(&"a".repeat(1_025)).is_err());
        let tokens = |n: usize| {
            (0..n)
                .map(|i| format!("s{i}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert!(Scope::parse(&tokens(32)).is_ok());
        assert!(Scope::parse(&tokens(33)).is_err());
    }
}
