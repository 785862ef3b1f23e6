//! RFC 7515 §7.1, compact serialisation: a token taken apart, before anything in it is believed.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

use crate::{Algorithm, Rejected};

/// What a JWS must be before its header is believed.
pub(crate) struct Form {
    /// The values of `typ` that pass, in any case (RFC 7515 §4.1.9).
    pub(crate) types: &'static [&'static str],
    pub(crate) max_bytes: usize,
}

/// RFC 9068 §4: no other kind of JWT passes as an access token.
pub(crate) const ACCESS_TOKEN: Form = Form {
    types: &["at+jwt", "application/at+jwt"],
    // Sixteen times the largest token that we mint; proxies allow no longer header either.
    max_bytes: 16 * 1024,
};

/// A token whose size, form and header are right, and nothing more.
pub(crate) struct Unverified<'a> {
    /// The first two parts with their dot.
    signed: &'a str,
    /// The third part, still encoded.
    signature: &'a str,
    payload: Vec<u8>,
    algorithm: Algorithm,
    kid: String,
}

impl<'a> Unverified<'a> {
    pub(crate) fn parse(
        token: &'a str,
        allowed: &[Algorithm],
        form: &Form,
    ) -> Result<Self, Rejected> {
        if token.is_empty() {
            return Err(Rejected::Missing);
        }
        if token.len() > form.max_bytes {
            return Err(Rejected::TooLarge);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Rejected::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Rejected::Malformed)?;
        let header = strict_base64url(header)?;
        let payload = strict_base64url(payload)?;
        let header = Header::parse(&header)?;
        let algorithm = header.accepted(allowed, form)?;
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

    /// The claims' JSON: not to be believed before the signature is checked.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Empty where the header has none, and no key is found by that name.
    pub(crate) fn kid(&self) -> &str {
        &self.kid
    }
}

/// No padding, no whitespace, no bits after the end (RFC 7515 §2): one token, one spelling. A dot
/// is not in the alphabet, so a fourth part fails here.
fn strict_base64url(part: &str) -> Result<Vec<u8>, Rejected> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| Rejected::Malformed)
}

/// The members of a JOSE header that we look at (RFC 7515 §4.1); one that is missing is empty.
/// `jku`, `x5u`, `x5c` and `jwk` are not among them: a token does not say which key to trust
/// (RFC 8725 §3.10).
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow, default)]
    alg: Cow<'a, str>,
    #[serde(borrow, default)]
    typ: Cow<'a, str>,
    #[serde(borrow, default)]
    kid: Cow<'a, str>,
    #[serde(default, rename = "crit", deserialize_with = "present")]
    has_crit: bool,
}

impl<'a> Header<'a> {
    fn parse(json: &'a [u8]) -> Result<Self, Rejected> {
        // A derived struct would also accept an array of its members.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(Rejected::Malformed);
        }
        serde_json::from_slice(json).map_err(|_| Rejected::Malformed)
    }

    fn accepted(&self, allowed: &[Algorithm], form: &Form) -> Result<Algorithm, Rejected> {
        let algorithm = Algorithm::from_name(&self.alg)
            .filter(|algorithm| allowed.contains(algorithm))
            .ok_or(Rejected::Algorithm)?;
        let named = |typ: &&str| self.typ.eq_ignore_ascii_case(typ);
        if !form.types.iter().any(named) {
            return Err(Rejected::Type);
        }
        // RFC 7515 §4.1.11: we understand no extension, so any critical one is refused.
        if self.has_crit {
            return Err(Rejected::Malformed);
        }
        Ok(algorithm)
    }
}

/// True for any value, `null` too.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_header(json: &str) -> Result<(), Rejected> {
        let token = format!("{}.e30.AA", URL_SAFE_NO_PAD.encode(json));
        Unverified::parse(&token, &[Algorithm::ES256], &ACCESS_TOKEN).map(|_| ())
    }

    #[test]
    fn only_an_allowed_algorithm_passes() {
        assert_eq!(
            with_header(r#"{"alg":"ES256","typ":"at+jwt","kid":"k"}"#),
            Ok(())
        );
        for alg in [
            "none", "None", "nOnE", "", "HS256", "HS384", "HS512", "PS256", "ES384", "es256",
            "RS256",
        ] {
            let header = format!(r#"{{"alg":"{alg}","typ":"at+jwt","kid":"k"}}"#);
            assert_eq!(with_header(&header), Err(Rejected::Algorithm), "{alg}");
        }
        assert_eq!(with_header(r#"{"typ":"at+jwt"}"#), Err(Rejected::Algorithm));
        assert_eq!(
            with_header(r#"{"alg":["ES256"],"typ":"at+jwt"}"#),
            Err(Rejected::Malformed)
        );
    }

    #[test]
    fn only_an_access_token_passes() {
        for typ in [
            "at+jwt",
            "AT+JWT",
            "application/at+jwt",
            "Application/At+Jwt",
        ] {
            assert_eq!(
                with_header(&format!(r#"{{"alg":"ES256","typ":"{typ}"}}"#)),
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
            assert_eq!(with_header(&header), Err(Rejected::Type), "{typ}");
        }
        assert_eq!(with_header(r#"{"alg":"ES256"}"#), Err(Rejected::Type));
    }

    #[test]
    fn any_crit_is_refused() {
        for crit in [r#"["b64"]"#, r#"["exp"]"#, "[]", "null", r#""b64""#] {
            let header = format!(r#"{{"alg":"ES256","typ":"at+jwt","crit":{crit},"b64":false}}"#);
            assert_eq!(with_header(&header), Err(Rejected::Malformed), "{crit}");
        }
    }

    #[test]
    fn a_header_is_one_object_without_duplicates() {
        for hostile in [
            r#"{"alg":"ES256","alg":"ES256","typ":"at+jwt"}"#,
            r#"{"alg":"ES256","typ":"JWT","typ":"at+jwt"}"#,
            r#"{"alg":"ES256","typ":"at+jwt","kid":"a","kid":"b"}"#,
            r#"["ES256","at+jwt","k"]"#,
            r#"{"alg":"ES256","typ":"at+jwt"} {}"#,
            r#"{"alg":"ES256","typ":"at+jwt","kid":7}"#,
            "",
        ] {
            assert_eq!(with_header(hostile), Err(Rejected::Malformed), "{hostile}");
        }
    }

    #[test]
    fn a_token_has_three_parts_of_strict_base64url() {
        let parse =
            |token: &str| Unverified::parse(token, &[Algorithm::ES256], &ACCESS_TOKEN).map(|_| ());
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
            format!("{header}.e31.AA"), // bits after the end
            format!("{header}. e30.AA"),
            format!("{header}.e+0.AA"),
            "..".to_owned(),
        ] {
            assert_eq!(parse(&hostile), Err(Rejected::Malformed), "{hostile}");
        }
    }

    #[test]
    fn size_is_looked_at_first() {
        let parse = |bytes| {
            let token = "!".repeat(bytes);
            Unverified::parse(&token, &[], &ACCESS_TOKEN).map(|_| ())
        };
        assert_eq!(parse(16 * 1024 + 1), Err(Rejected::TooLarge));
        assert_eq!(parse(16 * 1024), Err(Rejected::Malformed));
    }
}
