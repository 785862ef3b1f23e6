//! Parsing of a JWS in compact serialization (RFC 7515 §7.1), before its signature is verified.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

use crate::claims::is_nested_too_deep;
use crate::{Algorithm, Rejected};

/// Requirements for a kind of JWS.
pub(crate) struct JwsProfile {
    /// The accepted values of `typ`, compared without regard to case (RFC 7515 §4.1.9).
    pub(crate) types: &'static [&'static str],
    pub(crate) max_bytes: usize,
}

/// The profile of access tokens. No other kind of JWT is accepted as an access token (RFC 9068 §4).
pub(crate) const ACCESS_TOKEN: JwsProfile = JwsProfile {
    types: &["at+jwt", "application/at+jwt"],
    // Sixteen times the size of the largest token that the server issues. Proxies do not allow
    // longer headers either.
    max_bytes: 16 * 1024,
};

/// A JWS with valid size, format and header, whose signature has not been verified.
pub(crate) struct UnverifiedJws<'a> {
    /// The first two parts, including the dot between them.
    signed: &'a str,
    /// The third part in base64url.
    signature: &'a str,
    payload: Vec<u8>,
    algorithm: Algorithm,
    kid: String,
}

impl<'a> UnverifiedJws<'a> {
    pub(crate) fn parse(
        token: &'a str,
        allowed: &[Algorithm],
        profile: &JwsProfile,
    ) -> Result<Self, Rejected> {
        if token.is_empty() {
            return Err(Rejected::Missing);
        }
        if token.len() > profile.max_bytes {
            return Err(Rejected::TooLarge);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Rejected::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Rejected::Malformed)?;
        let header = decode_base64url(header)?;
        let payload = decode_base64url(payload)?;
        let header = Header::parse(&header)?;
        let algorithm = header.check(allowed, profile)?;
        let kid = header.kid.into_owned();
        Ok(Self {
            signed,
            signature,
            payload,
            algorithm,
            kid,
        })
    }

    pub(crate) fn signed(&self) -> &[u8] {
        self.signed.as_bytes()
    }

    pub(crate) fn signature(&self) -> &str {
        self.signature
    }

    /// Returns the JSON of the claims. The caller must verify the signature before it uses them.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the `kid`. It is empty if the header has none, and no key has an empty `kid`.
    pub(crate) fn kid(&self) -> &str {
        &self.kid
    }
}

/// Decodes base64url without padding, whitespace or non-zero trailing bits (RFC 7515 §2), so that
/// each token has exactly one spelling. A dot is not in the alphabet, so a token of four parts is
/// rejected here.
fn decode_base64url(part: &str) -> Result<Vec<u8>, Rejected> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| Rejected::Malformed)
}

/// The members of a JOSE header that are used (RFC 7515 §4.1). A missing member is empty. `jku`,
/// `x5u`, `x5c` and `jwk` are ignored, because a token must not determine which key is trusted (RFC
/// 8725 §3.10).
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow, default)]
    alg: Cow<'a, str>,
    #[serde(borrow, default)]
    typ: Cow<'a, str>,
    #[serde(borrow, default)]
    kid: Cow<'a, str>,
    #[serde(default, rename = "crit", deserialize_with = "is_present")]
    has_crit: bool,
}

impl<'a> Header<'a> {
    fn parse(json: &'a [u8]) -> Result<Self, Rejected> {
        // The derived `Deserialize` would also accept an array of the members.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(Rejected::Malformed);
        }
        if is_nested_too_deep(json) {
            return Err(Rejected::Malformed);
        }
        serde_json::from_slice(json).map_err(|_| Rejected::Malformed)
    }

    /// Checks the members, and returns the algorithm.
    fn check(&self, allowed: &[Algorithm], profile: &JwsProfile) -> Result<Algorithm, Rejected> {
        let algorithm = Algorithm::from_name(&self.alg)
            .filter(|algorithm| allowed.contains(algorithm))
            .ok_or(Rejected::Algorithm)?;
        let is_typ = |typ: &&str| self.typ.eq_ignore_ascii_case(typ);
        if !profile.types.iter().any(is_typ) {
            return Err(Rejected::Type);
        }
        // No extensions are supported, so every critical one is rejected (RFC 7515 §4.1.11).
        if self.has_crit {
            return Err(Rejected::Malformed);
        }
        Ok(algorithm)
    }
}

/// Deserializes any value, including `null`, as `true`.
fn is_present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_header(json: &str) -> Result<(), Rejected> {
        let token = format!("{}.e30.AA", URL_SAFE_NO_PAD.encode(json));
        UnverifiedJws::parse(&token, &[Algorithm::ES256], &ACCESS_TOKEN).map(|_| ())
    }

    #[test]
    fn only_allowed_algorithms_are_accepted() {
        assert_eq!(
            parse_header(r#"{"alg":"ES256","typ":"at+jwt","kid":"k"}"#),
            Ok(())
        );
        for alg in [
            "none", "None", "nOnE", "", "HS256", "HS384", "HS512", "PS256", "ES384", "es256",
            "RS256",
        ] {
            let header = format!(r#"{{"alg":"{alg}","typ":"at+jwt","kid":"k"}}"#);
            assert_eq!(parse_header(&header), Err(Rejected::Algorithm), "{alg}");
        }
        assert_eq!(
            parse_header(r#"{"typ":"at+jwt"}"#),
            Err(Rejected::Algorithm)
        );
        assert_eq!(
            parse_header(r#"{"alg":["ES256"],"typ":"at+jwt"}"#),
            Err(Rejected::Malformed)
        );
    }

    #[test]
    fn only_access_token_types_are_accepted() {
        for typ in [
            "at+jwt",
            "AT+JWT",
            "application/at+jwt",
            "Application/At+Jwt",
        ] {
            assert_eq!(
                parse_header(&format!(r#"{{"alg":"ES256","typ":"{typ}"}}"#)),
                Ok(()),
                "{typ}"
            );
        }
        for typ in [
            "",
            "JWT",
            "logout+jwt",
            "dpop+jwt",
            "oauth-authz-req+jwt",
            "at+jwt ",
            "text/at+jwt",
        ] {
            let header = format!(r#"{{"alg":"ES256","typ":"{typ}"}}"#);
            assert_eq!(parse_header(&header), Err(Rejected::Type), "{typ}");
        }
        assert_eq!(parse_header(r#"{"alg":"ES256"}"#), Err(Rejected::Type));
    }

    #[test]
    fn crit_is_rejected() {
        for crit in [r#"["b64"]"#, r#"["exp"]"#, "[]", "null", r#""b64""#] {
            let header = format!(r#"{{"alg":"ES256","typ":"at+jwt","crit":{crit},"b64":false}}"#);
            assert_eq!(parse_header(&header), Err(Rejected::Malformed), "{crit}");
        }
    }

    #[test]
    fn header_must_be_one_object_without_duplicates() {
        for hostile in [
            r#"{"alg":"ES256","alg":"ES256","typ":"at+jwt"}"#,
            r#"{"alg":"ES256","typ":"JWT","typ":"at+jwt"}"#,
            r#"{"alg":"ES256","typ":"at+jwt","kid":"a","kid":"b"}"#,
            r#"["ES256","at+jwt","k"]"#,
            r#"{"alg":"ES256","typ":"at+jwt"} {}"#,
            r#"{"alg":"ES256","typ":"at+jwt","kid":7}"#,
            "",
        ] {
            assert_eq!(parse_header(hostile), Err(Rejected::Malformed), "{hostile}");
        }
    }

    #[test]
    fn token_must_be_three_parts_of_strict_base64url() {
        let parse = |token: &str| {
            UnverifiedJws::parse(token, &[Algorithm::ES256], &ACCESS_TOKEN).map(|_| ())
        };
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","typ":"at+jwt"}"#);
        assert_eq!(parse(&format!("{header}.e30.AA")), Ok(()));
        assert_eq!(parse(""), Err(Rejected::Missing));
        for hostile in [
            header.clone(),
            format!("{header}.e30"),
            format!("{header}.e30.AA.AA"),
            format!("{header}.e30.AA.AA.AA"),
            format!("{header}=.e30.AA"),
            format!("{header}.e30=.AA"),
            format!("{header}.e31.AA"), // non-zero trailing bits
            format!("{header}. e30.AA"),
            format!("{header}.e+0.AA"),
            "..".to_owned(),
        ] {
            assert_eq!(parse(&hostile), Err(Rejected::Malformed), "{hostile}");
        }
    }

    #[test]
    fn size_is_checked_first() {
        let parse = |bytes| {
            let token = "!".repeat(bytes);
            UnverifiedJws::parse(&token, &[], &ACCESS_TOKEN).map(|_| ())
        };
        assert_eq!(parse(16 * 1024 + 1), Err(Rejected::TooLarge));
        assert_eq!(parse(16 * 1024), Err(Rejected::Malformed));
    }
}
