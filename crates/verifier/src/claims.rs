//! The claims of an access token (RFC 9068). The server issues its tokens with the same type.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_json::{Map, Value};

use crate::{Rejected, Rev};

/// The claims of an access token (RFC 9068 §2.2). All times are whole seconds since the Unix epoch
/// (RFC 7519 §2, NumericDate). Fractions are rejected.
///
/// A duplicate member is an error (RFC 7515 §5.2). Members that are not listed here are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Issuer of the token.
    pub iss: String,
    /// Identifier of the user, or of the client if no user took part.
    pub sub: String,
    /// The only resource server that the token is for. In JSON, it may be a string or an array of
    /// exactly one string. The server issues tokens with a string.
    #[serde(deserialize_with = "single_audience")]
    pub aud: String,
    /// Client that the token was issued to (RFC 8693 §4.3).
    pub client_id: String,
    /// Granted scopes, separated by single spaces (RFC 8693 §4.2); see [`scopes`](Claims::scopes).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scope: String,
    /// When the token was issued.
    pub iat: u64,
    /// When the token expires. It is not valid at this second or later.
    pub exp: u64,
    /// Time before which the token is not valid. The claim is checked if it is present, but the
    /// server does not issue tokens with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// Unique identifier of the token.
    pub jti: String,
    /// The epochs that were current when the token's authorization began.
    pub rev: Rev,
    /// The grant that the token was issued under. Present only if a user took part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant_id: Option<String>,
    /// The user's session. Absent if the grant outlives the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
    /// When the user last authenticated (OpenID Connect Core §2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_time: Option<u64>,
    /// Authentication context class of the user's last authentication (OpenID Connect Core §2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acr: Option<String>,
    /// The user's roles, if the resource is configured to receive them (RFC 9068 §2.2.3.1).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// The user's groups, if the resource is configured to receive them (RFC 9068 §2.2.3.1).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// The user's entitlements, if the resource is configured to receive them (RFC 9068 §2.2.3.1).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entitlements: Vec<String>,
    /// The key that the token is bound to (RFC 7800 §3.1). Such a token must not be accepted
    /// without a proof of possession of the key. [`Verifier::verify`](crate::Verifier::verify) does
    /// not check the proof, so its caller must. The integrations with web frameworks reject such
    /// tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Confirmation>,
}

impl Claims {
    /// Returns the granted scopes in their order.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scope.split(' ').filter(|scope| !scope.is_empty())
    }

    /// Returns whether `scope`, a single scope, was granted. Scopes are compared byte for byte
    /// (RFC 6749 §3.3).
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes().any(|granted| granted == scope)
    }

    /// Requires another scope after the verification.
    ///
    /// # Errors
    ///
    /// [`Rejected::Scope`] (403) if the scope was not granted.
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

/// Members nest at most this deep, those that are ignored included.
const MAX_DEPTH: usize = 8;

/// Returns whether arrays and objects nest deeper than [`MAX_DEPTH`]. The parser would accept far more in a
/// member that it ignores.
pub(crate) fn is_nested_too_deep(json: &[u8]) -> bool {
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_string,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

impl Claims {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Rejected> {
        if is_nested_too_deep(json) {
            return Err(Rejected::Malformed);
        }
        // A derived struct would also accept an array of its members.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(Rejected::Malformed);
        }
        serde_json::from_slice(json).map_err(|error| match error.classify() {
            Category::Data => Rejected::Claims(invalid_claim(json)),
            _ => Rejected::Malformed,
        })
    }
}

/// Returns the name of an invalid claim, for the log. Parses the JSON again, which costs time only
/// for rejected tokens.
fn invalid_claim(json: &[u8]) -> &'static str {
    let Ok(members) = serde_json::from_slice::<Map<String, Value>>(json) else {
        return "all";
    };
    let claim = |name| members.get(name);
    let is_text = |name| claim(name).is_some_and(Value::is_string);
    let is_time = |name| claim(name).is_some_and(Value::is_u64);
    [
        ("iss", is_text("iss")),
        ("sub", is_text("sub")),
        (
            "aud",
            claim("aud").is_some_and(|aud| single_audience(aud).is_ok()),
        ),
        ("client_id", is_text("client_id")),
        ("iat", is_time("iat")),
        ("exp", is_time("exp")),
        ("nbf", claim("nbf").is_none() || is_time("nbf")),
        ("jti", is_text("jti")),
        (
            "rev",
            claim("rev").is_some_and(|rev| Rev::deserialize(rev).is_ok()),
        ),
    ]
    .into_iter()
    .find_map(|(name, is_valid)| (!is_valid).then_some(name))
    .unwrap_or("other or duplicate")
}

/// The key that a token is bound to (RFC 7800 §3.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// SHA-256 thumbprint (RFC 7638) of the DPoP key, base64url (RFC 9449 §6.1).
    pub jkt: String,
    /// SHA-256 thumbprint of the client's certificate, base64url (RFC 8705 §3.1).
    #[serde(rename = "x5t#S256", default, skip_serializing_if = "Option::is_none")]
    pub x5t_s256: Option<String>,
}

/// Deserializes `aud`, which may be a string or an array (RFC 7519 §4.1.3). Only an array of
/// exactly one string is accepted. A token with two audiences would be valid at two resource
/// servers, and one of them could use the tokens that it receives at the other.
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
    fn claims_round_trip_unchanged() {
        let claims = parse(USER_TOKEN).unwrap();
        assert_eq!(serde_json::to_string(&claims).unwrap(), USER_TOKEN);
    }

    #[test]
    fn has_scope_matches_whole_scopes() {
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
    fn audience_must_be_exactly_one_string() {
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
    fn duplicate_member_is_rejected() {
        let twice = USER_TOKEN.replace(r#""sub":"u1""#, r#""sub":"u1","sub":"admin""#);
        assert!(
            parse(&twice)
                .unwrap_err()
                .to_string()
                .contains("duplicate field")
        );
    }

    #[test]
    fn times_must_be_json_integers() {
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

    #[test]
    fn ignored_members_nest_at_most_eight_deep() {
        let nested = |levels: usize| {
            let value = format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
            USER_TOKEN.replacen('{', &format!(r#"{{"x":{value},"#), 1)
        };
        let parse = |json: &str| Claims::parse(json.as_bytes());
        // The object of the claims is the first level.
        assert!(parse(&nested(7)).is_ok());
        for levels in [8, 3_000] {
            assert_eq!(parse(&nested(levels)), Err(Rejected::Malformed), "{levels}");
        }
        let text = USER_TOKEN.replacen('{', r#"{"x":"[[[[[[[[[\"[[[[[[[[[","#, 1);
        assert!(parse(&text).is_ok(), "brackets in a string do not nest");
    }
}
