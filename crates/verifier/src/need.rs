//! What a request needs of its token: an audience (RFC 9068 §4), scopes (RFC 6750 §3.1), how and
//! when the user authenticated (RFC 9470), and how old the news of revocations may be.

use std::borrow::Cow;
use std::time::Duration;

use crate::{Claims, MaxAge, Rejected};

type Word = Cow<'static, str>;

/// What a request needs of the token that it brings.
///
/// ```
/// # use portcullis_verifier::{MaxAge, Need};
/// # use std::time::Duration;
/// let read = Need::scope("orders:read");
/// let either = Need::one_of(["orders:read", "orders:admin"]);
/// let pay = Need::scope("payments:write")
///     .acr(["2"])
///     .authenticated_within(Duration::from_secs(300))
///     .max_age(MaxAge::STRICT);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    audience: Option<Word>,
    scopes: Vec<Word>,
    /// Of each list, one scope.
    alternatives: Vec<Vec<Word>>,
    acr: Vec<Word>,
    authenticated_within: Option<Duration>,
    max_age: Option<MaxAge>,
}

impl Need {
    /// Any valid token.
    pub const fn any() -> Self {
        Self {
            audience: None,
            scopes: Vec::new(),
            alternatives: Vec::new(),
            acr: Vec::new(),
            authenticated_within: None,
            max_age: None,
        }
    }

    /// A token that was granted this scope, a single word (RFC 6749 §3.3).
    pub fn scope(scope: impl Into<Cow<'static, str>>) -> Self {
        Self::any().and(scope)
    }

    /// A token that was granted at least one of these scopes. The first is the one that a caller
    /// without any of them is told to ask for. Of an empty list no token has one.
    pub fn one_of<S: Into<Cow<'static, str>>>(scopes: impl IntoIterator<Item = S>) -> Self {
        Self::any().and_one_of(scopes)
    }

    /// And a token that is meant for this audience, compared byte for byte. For a verifier that
    /// stands before several services, and so accepts [any](crate::Builder::any_audience).
    #[must_use]
    pub fn audience(mut self, audience: impl Into<Cow<'static, str>>) -> Self {
        self.audience = Some(audience.into());
        self
    }

    /// And this scope too.
    #[must_use]
    pub fn and(mut self, scope: impl Into<Cow<'static, str>>) -> Self {
        self.scopes.push(scope.into());
        self
    }

    /// And one of these scopes too; see [`one_of`](Self::one_of).
    #[must_use]
    pub fn and_one_of<S: Into<Cow<'static, str>>>(
        mut self,
        scopes: impl IntoIterator<Item = S>,
    ) -> Self {
        let scopes = scopes.into_iter().map(Into::into).collect();
        self.alternatives.push(scopes);
        self
    }

    /// And a login of one of these authentication context classes, the preferred one first
    /// (RFC 9470 §3, `acr_values`). A token without `acr` has none.
    #[must_use]
    pub fn acr<S: Into<Cow<'static, str>>>(mut self, values: impl IntoIterator<Item = S>) -> Self {
        self.acr = values.into_iter().map(Into::into).collect();
        self
    }

    /// And a login no longer ago than this, in whole seconds (RFC 9470 §3, `max_age`). A token
    /// without `auth_time` has none.
    #[must_use]
    pub fn authenticated_within(mut self, age: Duration) -> Self {
        self.authenticated_within = Some(age);
        self
    }

    /// And news of revocations no older than this. Of this and what the
    /// [builder](crate::Builder::max_age) says about the scopes the strictest counts.
    #[must_use]
    pub fn max_age(mut self, max_age: MaxAge) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// How old the news may be, if this says so.
    pub(crate) fn own_max_age(&self) -> Option<MaxAge> {
        self.max_age
    }

    /// Every scope that this speaks of.
    pub(crate) fn scopes(&self) -> impl Iterator<Item = &str> {
        let alternatives = self.alternatives.iter().flatten();
        self.scopes.iter().chain(alternatives).map(AsRef::as_ref)
    }

    /// RFC 9068 §4.
    pub(crate) fn is_for(&self, claims: &Claims) -> Result<(), Rejected> {
        match &self.audience {
            Some(audience) if claims.aud != *audience => Err(Rejected::Audience),
            _ => Ok(()),
        }
    }

    /// Scopes first: who lacks one is not helped by another login.
    pub(crate) fn met_by(&self, claims: &Claims, now: u64) -> Result<(), Rejected> {
        if !self.granted(claims) {
            return Err(Rejected::Scope {
                needed: self.challenge(),
            });
        }
        if !self.recognised(claims) || !self.recent(claims, now) {
            return Err(Rejected::StepUp {
                acr_values: self.acr.join(" "),
                max_age: self.authenticated_within.map(|age| age.as_secs()),
            });
        }
        Ok(())
    }

    fn granted(&self, claims: &Claims) -> bool {
        let has = |scope: &Word| claims.has_scope(scope);
        self.scopes.iter().all(has)
            && self
                .alternatives
                .iter()
                .all(|scopes| scopes.iter().any(has))
    }

    /// A set of scopes that would do (RFC 6750 §3, `scope`).
    fn challenge(&self) -> String {
        let mut words: Vec<&str> = Vec::new();
        let first = self.alternatives.iter().filter_map(|scopes| scopes.first());
        for scope in self.scopes.iter().chain(first) {
            if !words.contains(&scope.as_ref()) {
                words.push(scope);
            }
        }
        words.join(" ")
    }

    fn recognised(&self, claims: &Claims) -> bool {
        self.acr.is_empty()
            || claims
                .acr
                .as_ref()
                .is_some_and(|acr| self.acr.iter().any(|wanted| wanted == acr))
    }

    fn recent(&self, claims: &Claims, now: u64) -> bool {
        let Some(within) = self.authenticated_within else {
            return true;
        };
        claims
            .auth_time
            .is_some_and(|then| now.saturating_sub(then) <= within.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn claims() -> Claims {
        let json = format!(
            r#"{{"iss":"i","sub":"u","aud":"a","client_id":"c","scope":"orders:read email","iat":{NOW},"exp":{},"jti":"j","rev":"1.1.1","auth_time":{},"acr":"2"}}"#,
            NOW + 300,
            NOW - 60
        );
        serde_json::from_str(&json).unwrap()
    }

    fn lacks(need: &Need) -> String {
        match need.met_by(&claims(), NOW) {
            Err(Rejected::Scope { needed }) => needed,
            other => panic!("{other:?}"),
        }
    }

    fn steps_up(need: &Need, claims: &Claims) -> bool {
        match need.met_by(claims, NOW) {
            Ok(()) => false,
            Err(Rejected::StepUp { .. }) => true,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_of_some_and_one_of_others() {
        for met in [
            Need::any(),
            Need::scope("email").and("orders:read"),
            Need::one_of(["orders:admin", "orders:read"]),
            Need::scope("email").and_one_of(["orders:admin", "orders:read"]),
            Need::one_of(["a", "email"]).and_one_of(["b", "orders:read"]),
        ] {
            assert_eq!(met.met_by(&claims(), NOW), Ok(()), "{met:?}");
        }
    }

    #[test]
    fn what_is_lacking_is_told_as_a_set_that_would_do() {
        assert_eq!(lacks(&Need::scope("email").and("a")), "email a");
        assert_eq!(lacks(&Need::one_of(["a", "b"])), "a");
        assert_eq!(
            lacks(&Need::scope("a").and_one_of(["a", "b"]).and_one_of(["c"])),
            "a c"
        );
        assert_eq!(lacks(&Need::one_of(Vec::<String>::new())), "");
    }

    #[test]
    fn a_login_is_of_a_class_that_was_named() {
        let none = Claims {
            acr: None,
            ..claims()
        };
        assert!(!steps_up(&Need::any().acr(["1", "2"]), &claims()));
        assert!(steps_up(&Need::any().acr(["3"]), &claims()));
        assert!(steps_up(&Need::any().acr(["1", "2"]), &none));
        assert!(!steps_up(&Need::any(), &none));
    }

    #[test]
    fn a_login_is_recent_to_the_second() {
        let within = |secs| Need::any().authenticated_within(Duration::from_secs(secs));
        let none = Claims {
            auth_time: None,
            ..claims()
        };
        assert!(!steps_up(&within(60), &claims()));
        assert!(steps_up(&within(59), &claims()));
        assert!(steps_up(&within(u64::MAX), &none));
        let refused = within(59).acr(["2", "3"]).met_by(&claims(), NOW);
        let expected = Rejected::StepUp {
            acr_values: "2 3".into(),
            max_age: Some(59),
        };
        assert_eq!(refused, Err(expected));
    }

    #[test]
    fn an_audience_is_compared_byte_for_byte() {
        assert_eq!(Need::any().is_for(&claims()), Ok(()));
        assert_eq!(Need::any().audience("a").is_for(&claims()), Ok(()));
        for other in ["", "A", "a/", "b"] {
            let refused = Need::any().audience(other).is_for(&claims());
            assert_eq!(refused, Err(Rejected::Audience), "{other}");
        }
    }

    #[test]
    fn a_scope_comes_before_a_login() {
        let need = Need::scope("a").acr(["3"]);
        assert_eq!(lacks(&need), "a");
    }
}
