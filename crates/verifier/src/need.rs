//! The requirements of a request for its token: an audience (RFC 9068 §4), scopes (RFC 6750 §3.1),
//! how and when the user authenticated (RFC 9470), and the maximum age of the revocation data.

use std::borrow::Cow;
use std::time::Duration;

use crate::{Claims, MaxAge, Rejected};

type Str = Cow<'static, str>;

/// The requirements of a request for its token.
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
    audience: Option<Str>,
    scopes: Vec<Str>,
    /// Lists of scopes, of each of which at least one is required.
    alternatives: Vec<Vec<Str>>,
    acr: Vec<Str>,
    authenticated_within: Option<Duration>,
    max_age: Option<MaxAge>,
}

impl Need {
    /// Requires only a valid token.
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

    /// Requires this scope, a single one (RFC 6749 §3.3).
    pub fn scope(scope: impl Into<Cow<'static, str>>) -> Self {
        Self::any().and(scope)
    }

    /// Requires at least one of these scopes. If the token has none of them, the response tells the
    /// caller to request the first one. An empty list rejects every token.
    pub fn one_of<S: Into<Cow<'static, str>>>(scopes: impl IntoIterator<Item = S>) -> Self {
        Self::any().and_one_of(scopes)
    }

    /// Also requires this audience, compared byte for byte. This is for verifiers that serve
    /// several APIs, and so accept [any audience](crate::Builder::any_audience) by default.
    #[must_use]
    pub fn audience(mut self, audience: impl Into<Cow<'static, str>>) -> Self {
        self.audience = Some(audience.into());
        self
    }

    /// Also requires this scope.
    #[must_use]
    pub fn and(mut self, scope: impl Into<Cow<'static, str>>) -> Self {
        self.scopes.push(scope.into());
        self
    }

    /// Also requires at least one of these scopes; see [`one_of`](Self::one_of).
    #[must_use]
    pub fn and_one_of<S: Into<Cow<'static, str>>>(
        mut self,
        scopes: impl IntoIterator<Item = S>,
    ) -> Self {
        let scopes = scopes.into_iter().map(Into::into).collect();
        self.alternatives.push(scopes);
        self
    }

    /// Also requires one of these authentication context classes, listed in order of preference
    /// (RFC 9470 §3, `acr_values`). A token without `acr` does not meet the requirement.
    #[must_use]
    pub fn acr<S: Into<Cow<'static, str>>>(mut self, values: impl IntoIterator<Item = S>) -> Self {
        self.acr = values.into_iter().map(Into::into).collect();
        self
    }

    /// Also requires that the user authenticated at most this long ago, in whole seconds
    /// (RFC 9470 §3, `max_age`). A token without `auth_time` does not meet the requirement.
    #[must_use]
    pub fn authenticated_within(mut self, age: Duration) -> Self {
        self.authenticated_within = Some(age);
        self
    }

    /// Also limits the age of the revocation data. If the [builder](crate::Builder::max_age) limits
    /// it for one of the scopes, the stricter limit applies.
    #[must_use]
    pub fn max_age(mut self, max_age: MaxAge) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// Returns the maximum age that was set by [`max_age`](Self::max_age).
    pub(crate) fn own_max_age(&self) -> Option<MaxAge> {
        self.max_age
    }

    /// Returns all scopes that are required, alternatives included.
    pub(crate) fn scopes(&self) -> impl Iterator<Item = &str> {
        let alternatives = self.alternatives.iter().flatten();
        self.scopes.iter().chain(alternatives).map(AsRef::as_ref)
    }

    /// Checks the audience (RFC 9068 §4).
    pub(crate) fn check_audience(&self, claims: &Claims) -> Result<(), Rejected> {
        match &self.audience {
            Some(audience) if claims.aud != *audience => Err(Rejected::Audience),
            _ => Ok(()),
        }
    }

    /// Checks the scopes and the authentication of the user. Scopes come first, because another
    /// login does not help a user who lacks a scope.
    pub(crate) fn check(&self, claims: &Claims, now: u64) -> Result<(), Rejected> {
        if !self.has_scopes(claims) {
            return Err(Rejected::Scope {
                needed: self.challenge_scope(),
            });
        }
        if !self.has_acr(claims) || !self.is_recent(claims, now) {
            return Err(Rejected::StepUp {
                acr_values: self.acr.join(" "),
                max_age: self.authenticated_within.map(|age| age.as_secs()),
            });
        }
        Ok(())
    }

    fn has_scopes(&self, claims: &Claims) -> bool {
        let has = |scope: &Str| claims.has_scope(scope);
        self.scopes.iter().all(has)
            && self
                .alternatives
                .iter()
                .all(|scopes| scopes.iter().any(has))
    }

    /// Returns a set of scopes that would be sufficient (RFC 6750 §3, `scope`).
    fn challenge_scope(&self) -> String {
        let mut needed: Vec<&str> = Vec::new();
        let first = self.alternatives.iter().filter_map(|scopes| scopes.first());
        for scope in self.scopes.iter().chain(first) {
            if !needed.contains(&scope.as_ref()) {
                needed.push(scope);
            }
        }
        needed.join(" ")
    }

    fn has_acr(&self, claims: &Claims) -> bool {
        self.acr.is_empty()
            || claims
                .acr
                .as_ref()
                .is_some_and(|acr| self.acr.iter().any(|accepted| accepted == acr))
    }

    fn is_recent(&self, claims: &Claims, now: u64) -> bool {
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

    fn needed_scope(need: &Need) -> String {
        match need.check(&claims(), NOW) {
            Err(Rejected::Scope { needed }) => needed,
            other => panic!("{other:?}"),
        }
    }

    fn needs_step_up(need: &Need, claims: &Claims) -> bool {
        match need.check(claims, NOW) {
            Ok(()) => false,
            Err(Rejected::StepUp { .. }) => true,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_scopes_and_one_alternative_of_each_list_suffice() {
        for met in [
            Need::any(),
            Need::scope("email").and("orders:read"),
            Need::one_of(["orders:admin", "orders:read"]),
            Need::scope("email").and_one_of(["orders:admin", "orders:read"]),
            Need::one_of(["a", "email"]).and_one_of(["b", "orders:read"]),
        ] {
            assert_eq!(met.check(&claims(), NOW), Ok(()), "{met:?}");
        }
    }

    #[test]
    fn challenge_names_sufficient_scopes() {
        assert_eq!(needed_scope(&Need::scope("email").and("a")), "email a");
        assert_eq!(needed_scope(&Need::one_of(["a", "b"])), "a");
        assert_eq!(
            needed_scope(&Need::scope("a").and_one_of(["a", "b"]).and_one_of(["c"])),
            "a c"
        );
        assert_eq!(needed_scope(&Need::one_of(Vec::<String>::new())), "");
    }

    #[test]
    fn acr_must_be_one_of_the_accepted_classes() {
        let none = Claims {
            acr: None,
            ..claims()
        };
        assert!(!needs_step_up(&Need::any().acr(["1", "2"]), &claims()));
        assert!(needs_step_up(&Need::any().acr(["3"]), &claims()));
        assert!(needs_step_up(&Need::any().acr(["1", "2"]), &none));
        assert!(!needs_step_up(&Need::any(), &none));
    }

    #[test]
    fn authentication_age_is_compared_to_the_second() {
        let within = |secs| Need::any().authenticated_within(Duration::from_secs(secs));
        let none = Claims {
            auth_time: None,
            ..claims()
        };
        assert!(!needs_step_up(&within(60), &claims()));
        assert!(needs_step_up(&within(59), &claims()));
        assert!(needs_step_up(&within(u64::MAX), &none));
        let refused = within(59).acr(["2", "3"]).check(&claims(), NOW);
        let expected = Rejected::StepUp {
            acr_values: "2 3".into(),
            max_age: Some(59),
        };
        assert_eq!(refused, Err(expected));
    }

    #[test]
    fn audience_is_compared_byte_for_byte() {
        assert_eq!(Need::any().check_audience(&claims()), Ok(()));
        assert_eq!(Need::any().audience("a").check_audience(&claims()), Ok(()));
        for other in ["", "A", "a/", "b"] {
            let refused = Need::any().audience(other).check_audience(&claims());
            assert_eq!(refused, Err(Rejected::Audience), "{other}");
        }
    }

    #[test]
    fn scope_is_checked_before_authentication() {
        let need = Need::scope("a").acr(["3"]);
        assert_eq!(needed_scope(&need), "a");
    }
}
