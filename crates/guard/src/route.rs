//! Routes: which token a request needs, by its path and method.

use std::fmt;

use portcullis_verifier::{MaxAge, Need};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::path::{Below, Path, Prefix};
use crate::span::Span;

/// Section `routes`: one rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The beginning of the path, in whole segments.
    pub prefix: Prefix,
    /// The methods that this rule is about; all that no other rule of the prefix names, if absent.
    pub methods: Option<Vec<Method>>,
    /// The `aud` of the tokens that are meant for the service.
    pub audience: Audience,
    /// All of these must have been granted.
    #[serde(default)]
    pub scopes: Vec<Word>,
    /// How old the news of revocations may be.
    #[serde(default)]
    pub max_age: Freshness,
    /// Authentication context classes of which the login must be one.
    #[serde(default)]
    pub acr: Vec<Word>,
    /// How long ago the login may be.
    pub authenticated_within: Option<Span>,
}

impl Route {
    /// What this asks of a token.
    pub fn need(&self) -> Need {
        let mut need = Need::any()
            .audience(self.audience.0.clone())
            .acr(self.acr.iter().map(|acr| acr.0.clone()))
            .max_age(self.max_age.0);
        for scope in &self.scopes {
            need = need.and(scope.0.clone());
        }
        match self.authenticated_within {
            Some(Span(within)) => need.authenticated_within(within),
            None => need,
        }
    }
}

/// All rules. A path belongs to the longest prefix that it lies below.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "Vec<Route>")]
pub struct Routes(Vec<Route>);

/// Why there is no rule for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlisted {
    /// No prefix covers the path.
    Path,
    /// The prefix that covers it has no rule for the method.
    Method,
    /// Some services would read the path as one below a longer prefix.
    Ambiguous,
}

impl Routes {
    /// The rule for a request.
    pub fn find(&self, method: &str, path: &Path<'_>) -> Result<(usize, &Route), Unlisted> {
        let longest = |below: Below| {
            let found = self
                .0
                .iter()
                .filter(|route| path.below(&route.prefix) == below);
            found.map(|route| route.prefix.len()).max()
        };
        let length = longest(Below::Yes);
        if longest(Below::Perhaps) > length {
            return Err(Unlisted::Ambiguous);
        }
        let length = length.ok_or(Unlisted::Path)?;
        let of_prefix = || {
            let routes = self.0.iter().enumerate();
            routes.filter(|(_, route)| {
                route.prefix.len() == length && path.below(&route.prefix) == Below::Yes
            })
        };
        let named = of_prefix().find(|(_, route)| route.names(method));
        let found = named.or_else(|| of_prefix().find(|(_, route)| route.methods.is_none()));
        found.ok_or(Unlisted::Method)
    }

    /// All rules, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.0.iter()
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Route {
    fn names(&self, method: &str) -> bool {
        let methods = self.methods.iter().flatten();
        methods.into_iter().any(|named| named.0 == method)
    }

    /// Whether a request could belong to both.
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
                return Err(format!("the route `{}` names no method", route.prefix));
            }
            if routes[..at].iter().any(|other| other.overlaps(route)) {
                return Err(format!(
                    "two routes `{}` are about the same method",
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

/// A method (RFC 9110 §9.1) in capitals, as all that are registered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Method(String);

impl Method {
    /// Whether services agree on what it is.
    pub fn is_plain(text: &str) -> bool {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte == b'-')
    }
}

impl TryFrom<String> for Method {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if !Self::is_plain(&text) {
            return Err(format!("`{text}` is no method; write it in capitals"));
        }
        Ok(Self(text))
    }
}

/// An audience; not empty.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Audience(String);

impl TryFrom<String> for Audience {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an audience is not empty".to_owned());
        }
        Ok(Self(text))
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One word without a space: a scope (RFC 6749 §3.3) or an authentication context class.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Word(String);

impl TryFrom<String> for Word {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_word = |byte: u8| byte.is_ascii_graphic() && !b"\"\\".contains(&byte);
        if text.is_empty() || !text.bytes().all(is_word) {
            return Err(format!(
                "`{text}` is not one word; write [\"one\", \"two\"]"
            ));
        }
        Ok(Self(text))
    }
}

/// `max_age`: `standard` (60 s), `strict` (3 s), `fail_open`, or a duration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Freshness(pub MaxAge);

impl TryFrom<String> for Freshness {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let max_age = match text.as_str() {
            "standard" => MaxAge::STANDARD,
            "strict" => MaxAge::STRICT,
            "fail_open" => MaxAge::FAIL_OPEN,
            duration => {
                let Span(duration) = duration.parse().map_err(|_| {
                    format!("`{text}` is no age; write standard, strict, fail_open or 10s")
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
    fn the_longest_prefix_counts_and_never_a_shorter_one() {
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
            ("POST", "/orders/archive", Err(Unlisted::Method)),
            ("HEAD", "/orders/archive", Err(Unlisted::Method)),
            ("GET", "/orders/ARCHIVE", Err(Unlisted::Ambiguous)),
            ("GET", "/Orders", Err(Unlisted::Ambiguous)),
            ("GET", "/orders.json", Err(Unlisted::Ambiguous)),
            ("GET", "/orders/archive.zip", Err(Unlisted::Ambiguous)),
            ("GET", "/orders/7/ARCHIVE", Ok(1)),
            ("GET", "/ordered", Ok(0)),
        ] {
            assert_eq!(find(method, target), expected, "{method} {target}");
        }
    }

    #[test]
    fn without_a_prefix_nothing_is_listed() {
        let routes = routes("[[routes]]\nprefix = \"/a\"\naudience = \"a\"").unwrap();
        let find = |target| {
            routes
                .find("GET", &Path::parse(target).unwrap())
                .map(|(at, _)| at)
        };
        assert_eq!(find("/a"), Ok(0));
        assert_eq!(find("/b"), Err(Unlisted::Path));
        assert_eq!(find("/A"), Err(Unlisted::Ambiguous));
        assert_eq!(find("/"), Err(Unlisted::Path));
    }

    #[test]
    fn prefixes_that_differ_by_a_dot_are_two() {
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
        assert_eq!(find("/v1.3"), Err(Unlisted::Ambiguous));
    }

    #[test]
    fn wrong_routes_are_refused_where_they_stand() {
        let route = "[[routes]]\nprefix = \"/a\"\naudience = \"a\"\n";
        for (more, named) in [
            ("scops = [\"x\"]", "unknown field `scops`"),
            ("prefix = \"a\"", "duplicate key"),
            ("scopes = [\"a b\"]", "`a b` is not one word"),
            ("scopes = \"a\"", "line 4"),
            ("methods = [\"get\"]", "write it in capitals"),
            ("methods = []", "names no method"),
            ("max_age = \"soon\"", "`soon` is no age"),
            ("max_age = 60", "line 4"),
            ("authenticated_within = \"5\"", "`5` is no duration"),
            (route, "two routes `/a` are about the same method"),
        ] {
            let refused = routes(&format!("{route}{more}")).unwrap_err();
            assert!(refused.contains(named), "{more}: {refused}");
        }
        let twice = format!("{route}methods = [\"GET\", \"PUT\"]\n{route}methods = [\"PUT\"]");
        assert!(routes(&twice).is_err());
        for lacking in ["[[routes]]\nprefix = \"/\"", "[[routes]]\naudience = \"a\""] {
            assert!(routes(lacking).unwrap_err().contains("missing field"));
        }
    }
}
