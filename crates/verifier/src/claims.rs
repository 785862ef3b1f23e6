//! RFC 9068: the claims of an access token. The server mints with this very type.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_json::{Map, Value};

use crate::{Rejected, Rev};

/// The claims of an access token (RFC 9068 §2.2). All instants are whole seconds since the Unix
/// epoch (RFC 7519 §2, NumericDate); a fraction is refused.
///
/// A member that appears twice is an error (RFC 7515 §5.2); members that are not listed here are
/// ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The issuer that signed the token.
    pub iss: String,
    /// The user, or the client itself where no user took part.
    pub sub: String,
    /// The one resource server that the token is for. On the wire a string, or an array of exactly
    /// one string; we mint a string.
    #[serde(deserialize_with = "single_audience")]
    pub aud: String,
    /// The client that the token was issued to (RFC 8693 §4.3).
    pub client_id: String,
    /// The granted scope: words with single spaces between them (RFC 8693 §4.2); see
    /// [`scopes`](Claims::scopes).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scope: String,
    /// When the token was issued.
    pub iat: u64,
    /// When the token ends: from this second on it is refused.
    pub exp: u64,
    /// When the token begins. Checked where another issuer sets it; never minted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// The token's own id.
    pub jti: String,
    /// The epochs at which the authorization behind the token began.
    pub rev: Rev,
    /// The grant behind the token; with a user only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant_id: Option<String>,
    /// The user's session; absent where the grant outlives the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
    /// When the user last authenticated (OpenID Connect Core §2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_time: Option<u64>,
    /// How the user authenticated (OpenID Connect Core §2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acr: Option<String>,
    /// The user's roles, where the resource asks for them (RFC 9068 §2.2.3.1).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// The user's groups, where the resource asks for them (RFC 9068 §2.2.3.1).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// The user's entitlements, where the resource asks for them (RFC 9068 §2.2.3.1).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entitlements: Vec<String>,
    /// The key that the token is bound to (RFC 7800 §3.1). A token that has one is worth nothing
    /// without a proof of that key. [`Verifier::verify`](crate::Verifier::verify) does not ask for
    /// the proof, its caller must; the extractor for bearer tokens refuses such tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Confirmation>,
}

impl Claims {
    /// The words of the granted scope, in their order.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scope.split(' ').filter(|word| !word.is_empty())
    }

    /// Whether `scope`, a single word, was granted. Words are compared byte for byte
    /// (RFC 6749 §3.3).
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes().any(|granted| granted == scope)
    }

    /// Asks for one more scope after verification.
    ///
    /// # Errors
    ///
    /// [`Rejected::Scope`] (403) if the token was not granted it.
    pub fn require(&self, scope: &str) -> Result<(), Rejected> {
        if self.has_scope(scope) {
            Ok(())
        } else {
            Err(Rejected::Scope {
                needed: scope.to_owned(),
            })
        }
    }
}

impl Claims {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Rejected> {
        // A derived struct would also accept an array of its members.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(Rejected::Malformed);
        }
        serde_json::from_slice(json).map_err(|error| match error.classify() {
            Category::Data => Rejected::Claims(culprit(json)),
            _ => Rejected::Malformed,
        })
    }
}

/// Which claim is wrong, for the log. Reads the JSON once more, which only a refused token pays.
fn culprit(json: &[u8]) -> &'static str {
    let Ok(members) = serde_json::from_slice::<Map<String, Value>>(json) else {
        return "all";
    };
    let claim = |name| members.get(name);
    let text = |name| claim(name).is_some_and(Value::is_string);
    let seconds = |name| claim(name).is_some_and(Value::is_u64);
    [
        ("iss", text("iss")),
        ("sub", text("sub")),
        (
            "aud",
            claim("aud").is_some_and(|aud| single_audience(aud).is_ok()),
        ),
        ("client_id", text("client_id")),
        ("iat", seconds("iat")),
        ("exp", seconds("exp")),
        ("nbf", claim("nbf").is_none() || seconds("nbf")),
        ("jti", text("jti")),
        (
            "rev",
            claim("rev").is_some_and(|rev| Rev::deserialize(rev).is_ok()),
        ),
    ]
    .into_iter()
    .find_map(|(name, good)| (!good).then_some(name))
    .unwrap_or("another, or one that appears twice")
}

/// The key that a token is bound to (RFC 7800 §3.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// RFC 7638 SHA-256 thumbprint of the DPoP key, base64url (RFC 9449 §6.1).
    pub jkt: String,
    /// SHA-256 of the client's certificate, base64url (RFC 8705 §3.1).
    #[serde(rename = "x5t#S256", default, skip_serializing_if = "Option::is_none")]
    pub x5t_s256: Option<String>,
}

/// RFC 7519 §4.1.3 allows a string or an array. An array of two would make the token good at two
/// places, and whoever holds it at one could use it at the other; so only an array of one passes.
fn single_audience<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Single;
    impl<'de> Visitor<'de> for Single {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or an array of exactly one string")
        }
        fn visit_str<E: de::Error>(self, audience: &str) -> Result<String, E> {
            Ok(audience.to_owned())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<String, A::Error> {
            let first = list
                .next_element()?
                .ok_or_else(|| de::Error::invalid_length(0, &self))?;
            match list.next_element::<de::IgnoredAny>()? {
                None => Ok(first),
                Some(_) => Err(de::Error::invalid_length(2, &self)),
            }
        }
    }
    deserializer.deserialize_any(Single)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER_TOKEN: &str = r#"{"iss":"https://id.example","sub":"u1","aud":"https://api.example","client_id":"c1","scope":"orders:read orders:write","iat":1000,"exp":1300,"jti":"j1","rev":"1.2.3","grant_id":"g1","sid":"s1","auth_time":900,"acr":"1"}"#;

    fn parse(json: &str) -> Result<Claims, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn claims_survive_the_wire_unchanged() {
        let claims = parse(USER_TOKEN).unwrap();
        assert_eq!(serde_json::to_string(&claims).unwrap(), USER_TOKEN);
    }

    #[test]
    fn scopes_are_words() {
        let claims = parse(USER_TOKEN).unwrap();
        assert_eq!(
            claims.scopes().collect::<Vec<_>>(),
            ["orders:read", "orders:write"]
        );
        assert!(claims.has_scope("orders:read"));
        assert!(!claims.has_scope("orders"));
        assert!(!claims.has_scope("orders:read orders:write"));
        assert!(!claims.has_scope(""));
    }

    #[test]
    fn an_audience_is_one_string_however_it_is_written() {
        let aud = |value| USER_TOKEN.replace(r#""https://api.example""#, value);
        assert_eq!(parse(&aud(r#"["a"]"#)).unwrap().aud, "a");
        for hostile in [
            r#"["a","b"]"#,
            "[]",
            "[1]",
            r#"[["a"]]"#,
            "null",
            "7",
            r#"{"a":1}"#,
        ] {
            assert!(parse(&aud(hostile)).is_err(), "{hostile}");
        }
    }

    #[test]
    fn a_member_may_not_appear_twice() {
        let twice = USER_TOKEN.replace(r#""sub":"u1""#, r#""sub":"u1","sub":"admin""#);
        assert!(
            parse(&twice)
                .unwrap_err()
                .to_string()
                .contains("duplicate field")
        );
    }

    #[test]
    fn a_number_is_a_json_integer() {
        for hostile in [
            r#""1300""#,
            "1e400",
            "1300.0",
            "1.3e3",
            "-1",
            "18446744073709551616",
            "null",
        ] {
            let json = USER_TOKEN.replace(r#""exp":1300"#, &format!(r#""exp":{hostile}"#));
            assert!(parse(&json).is_err(), "{hostile}");
        }
    }
}
