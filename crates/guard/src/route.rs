//! Routes: the token that a request needs, by its path and method.

use std::fmt;
use std::time::Duration;

use portcullis_runtime::HumanDuration;
use portcullis_verifier::{MaxAge, Need};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::path::{Path, Prefix, PrefixMatch};

/// One rule of the section `routes`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The beginning of the path, in whole segments.
    pub prefix: Prefix,
    /// The methods that the rule applies to. If absent, it applies to every method that no other rule
    /// with the same prefix names, except `TRACE` and `CONNECT`.
    pub methods: Option<Vec<Method>>,
    /// The `aud` of the service's tokens.
    pub audience: Audience,
    /// Scopes that must all have been granted.
    #[serde(default)]
    pub scopes: Vec<ScopeToken>,
    /// Maximum age of the revocation data.
    #[serde(default)]
    pub max_age: MaxFeedAge,
    /// Accepted authentication context classes. If empty, every class is accepted.
    #[serde(default)]
    pub acr: Vec<ScopeToken>,
    /// Maximum time since the user authenticated.
    pub authenticated_within: Option<WholeSeconds>,
}

impl Route {
    /// Returns the requirements on a token.
    pub fn need(&self) -> Need {
        let mut need = Need::any()
            .audience(self.audience.0.clone())
            .acr(self.acr.iter().map(|acr| acr.0.clone()))
            .max_age(self.max_age.0);
        for scope in &self.scopes {
            need = need.and(scope.0.clone());
        }
        match self.authenticated_within {
            Some(WholeSeconds(within)) => need.authenticated_within(within),
            None => need,
        }
    }
}

/// A duration in whole seconds, such as `5m` or `30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct WholeSeconds(pub Duration);

impl TryFrom<String> for WholeSeconds {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let duration = text.parse().ok().map(|HumanDuration(duration)| duration);
        let whole = duration.filter(|duration| duration.subsec_nanos() == 0);
        whole.map(Self).ok_or_else(|| {
            format!("invalid duration `{text}`; expected a value such as 30s, 5m, 12h or 90d")
        })
    }
}

/// All rules. The rules of the longest prefix that matches a path apply to it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "Vec<Route>")]
pub struct Routes(Vec<Route>);

/// Why no rule applies to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// No prefix matches the path.
    Path,
    /// The longest matching prefix has no rule for the method.
    Method,
    /// Some services would match the path to a longer prefix.
    Ambiguous,
}

/// Methods that a rule must name: `TRACE` returns the request with its credentials (RFC 9110 §9.3.8), and `CONNECT` is
/// a tunnel (§9.3.6).
const DIAGNOSTIC: [&str; 2] = ["TRACE", "CONNECT"];

impl Routes {
    /// Returns the rule for a request and its index.
    pub fn find(&self, method: &str, path: &Path<'_>) -> Result<(usize, &Route), RouteError> {
        let longest = |expected: PrefixMatch| {
            let found = self
                .0
                .iter()
                .filter(|route| path.matches(&route.prefix) == expected);
            found.map(|route| route.prefix.len()).max()
        };
        let length = longest(PrefixMatch::Exact);
        if longest(PrefixMatch::Possible) > length {
            return Err(RouteError::Ambiguous);
        }
        let length = length.ok_or(RouteError::Path)?;
        let with_prefix = || {
            let routes = self.0.iter().enumerate();
            routes.filter(|(_, route)| {
                route.prefix.len() == length && path.matches(&route.prefix) == PrefixMatch::Exact
            })
        };
        let named = with_prefix().find(|(_, route)| route.names(method));
        let any = || with_prefix().find(|(_, route)| route.methods.is_none());
        let found = named.or_else(|| any().filter(|_| !DIAGNOSTIC.contains(&method)));
        found.ok_or(RouteError::Method)
    }

    /// Iterates over the rules in their configured order.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.0.iter()
    }

    /// Returns the number of rules.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Route {
    fn names(&self, method: &str) -> bool {
        let methods = self.methods.iter().flatten();
        methods.into_iter().any(|named| named.0 == method)
    }

    /// Returns whether a request could match both rules with equal precedence.
    fn overlaps(&self, other: &Self) -> bool {
        let methods = match (&self.methods, &other.methods) {
            (None, None) => true,
            (Some(methods), _) => methods.iter().any(|method| other.names(&method.0)),
            (None, Some(_)) => false,
        };
        self.prefix == other.prefix && methods
    }
}

impl TryFrom<Vec<Route>> for Routes {
    type Error = String;

    fn try_from(routes: Vec<Route>) -> Result<Self, String> {
        for (at, route) in routes.iter().enumerate() {
            if route.methods.as_ref().is_some_and(Vec::is_empty) {
                return Err(format!(
                    "route `{}`: `methods` must not be empty",
                    route.prefix
                ));
            }
            if routes[..at].iter().any(|other| other.overlaps(route)) {
                return Err(format!(
                    "two routes with the prefix `{}` apply to the same method",
                    route.prefix
                ));
            }
        }
        Ok(Self(routes))
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(D::Error::custom)
    }
}

/// A method (RFC 9110 §9.1) in capital letters, as are all registered methods.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Method(String);

impl Method {
    /// Returns whether `text` is written in capital letters and `-` only, so that all services
    /// interpret it in the same way.
    pub fn is_valid(text: &str) -> bool {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte == b'-')
    }
}

impl TryFrom<String> for Method {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if !Self::is_valid(&text) {
            return Err(format!(
                "invalid method `{text}`; expected capital letters, such as GET"
            ));
        }
        Ok(Self(text))
    }
}

/// A non-empty audience.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Audience(String);

impl TryFrom<String> for Audience {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the audience must not be empty".to_owned());
        }
        Ok(Self(text))
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A value with the syntax of a scope token (RFC 6749 §3.3): one scope, or one authentication
/// context class. It contains no space.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ScopeToken(String);

impl TryFrom<String> for ScopeToken {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_allowed = |byte: u8| byte.is_ascii_graphic() && !b"\"\\".contains(&byte);
        if text.is_empty() || !text.bytes().all(is_allowed) {
            return Err(format!(
                "`{text}` is not a single value; expected a list such as [\"one\", \"two\"]"
            ));
        }
        Ok(Self(text))
    }
}

/// `max_age`: `standard` (60 s), `strict` (3 s), `fail_open` (any age), or a duration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct MaxFeedAge(pub MaxAge);

impl TryFrom<String> for MaxFeedAge {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let max_age = match text.as_str() {
            "standard" => MaxAge::STANDARD,
            "strict" => MaxAge::STRICT,
            "fail_open" => MaxAge::FAIL_OPEN,
            duration => {
                let WholeSeconds(duration) = duration.to_owned().try_into().map_err(|_| {
                    format!(
                        "invalid age `{text}`; expected standard, strict, fail_open or a duration \
                         such as 10s"
                    )
                })?;
                MaxAge::secs(duration.as_secs())
            }
        };
        Ok(Self(max_age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = r#"
        [[routes]]
        prefix = "/"
        audience = "shop"
        [[routes]]
        prefix = "/orders"
        methods = ["GET", "HEAD"]
        audience = "orders"
        scopes = ["orders:read"]
        [[routes]]
        prefix = "/orders"
        audience = "orders"
        scopes = ["orders:write"]
        [[routes]]
        prefix = "/orders/archive"
        methods = ["GET"]
        audience = "archive"
        max_age = "strict"
    "#;

    #[derive(Debug, Deserialize)]
    struct File {
        routes: Routes,
    }

    fn routes(text: &str) -> Result<Routes, String> {
        let file: Result<File, _> = toml::from_str(text);
        file.map(|file| file.routes)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn longest_prefix_wins_without_fallback_to_shorter() {
        let routes = routes(ROUTES).unwrap();
        let find = |method: &str, target: &str| {
            let path = Path::parse(target).unwrap();
            routes.find(method, &path).map(|(at, _)| at)
        };
        for (method, target, expected) in [
            ("GET", "/", Ok(0)),
            ("POST", "/cart", Ok(0)),
            ("GET", "/orders/7", Ok(1)),
            ("HEAD", "/orders", Ok(1)),
            ("POST", "/orders", Ok(2)),
            ("PURGE", "/orders", Ok(2)),
            ("GET", "/orders/archive/1", Ok(3)),
            ("POST", "/orders/archive", Err(RouteError::Method)),
            ("HEAD", "/orders/archive", Err(RouteError::Method)),
            ("GET", "/orders/ARCHIVE", Err(RouteError::Ambiguous)),
            ("GET", "/Orders", Err(RouteError::Ambiguous)),
            ("GET", "/orders.json", Err(RouteError::Ambiguous)),
            ("GET", "/orders/archive.zip", Err(RouteError::Ambiguous)),
            ("GET", "/orders/7/ARCHIVE", Ok(1)),
            ("GET", "/ordered", Ok(0)),
        ] {
            assert_eq!(find(method, target), expected, "{method} {target}");
        }
    }

    #[test]
    fn unlisted_paths_have_no_route() {
        let routes = routes("[[routes]]\nprefix = \"/a\"\naudience = \"a\"").unwrap();
        let find = |target| {
            routes
                .find("GET", &Path::parse(target).unwrap())
                .map(|(at, _)| at)
        };
        assert_eq!(find("/a"), Ok(0));
        assert_eq!(find("/b"), Err(RouteError::Path));
        assert_eq!(find("/A"), Err(RouteError::Ambiguous));
        assert_eq!(find("/"), Err(RouteError::Path));
        for method in ["TRACE", "CONNECT"] {
            let path = Path::parse("/a").unwrap();
            let found = routes.find(method, &path).map(|(at, _)| at);
            assert_eq!(found, Err(RouteError::Method), "{method}");
        }
    }

    #[test]
    fn prefixes_that_differ_by_a_dot_are_distinct() {
        let routes = routes(
            "[[routes]]\nprefix = \"/v1\"\naudience = \"a\"\n[[routes]]\nprefix = \"/v1.2\"\naudience = \"a\"",
        )
        .unwrap();
        let find = |target| {
            routes
                .find("GET", &Path::parse(target).unwrap())
                .map(|(at, _)| at)
        };
        assert_eq!((find("/v1/x"), find("/v1.2/x")), (Ok(0), Ok(1)));
        assert_eq!(find("/v1.3"), Err(RouteError::Ambiguous));
    }

    #[test]
    fn invalid_routes_are_rejected_with_position() {
        let route = "[[routes]]\nprefix = \"/a\"\naudience = \"a\"\n";
        for (more, expected) in [
            ("scops = [\"x\"]", "unknown field `scops`"),
            ("prefix = \"a\"", "duplicate key"),
            ("scopes = [\"a b\"]", "`a b` is not a single value"),
            ("scopes = \"a\"", "line 4"),
            ("methods = [\"get\"]", "expected capital letters"),
            ("methods = []", "`methods` must not be empty"),
            ("max_age = \"soon\"", "invalid age `soon`"),
            ("max_age = 60", "line 4"),
            ("authenticated_within = \"5\"", "invalid duration `5`"),
            (
                route,
                "two routes with the prefix `/a` apply to the same method",
            ),
        ] {
            let error = routes(&format!("{route}{more}")).unwrap_err();
            assert!(error.contains(expected), "{more}: {error}");
        }
        let twice = format!("{route}methods = [\"GET\", \"PUT\"]\n{route}methods = [\"PUT\"]");
        assert!(routes(&twice).is_err());
        for lacking in ["[[routes]]\nprefix = \"/\"", "[[routes]]\naudience = \"a\""] {
            assert!(routes(lacking).unwrap_err().contains("missing field"));
        }
    }
}
