//! What a proxy is told: 200 with an identity, 401, 403 or 503. Nothing else, since proxies turn
//! other answers into faults of their own.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE};
use portcullis_verifier::{Claims, Rejected};

use crate::asked::Unasked;
use crate::path::Unclear;
use crate::route::Unlisted;

/// After how many seconds to try again while there are no keys yet.
const RETRY_SECS: u64 = 2;

/// Who makes a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// `X-Portcullis-` and what follows, each with its value.
    headers: Vec<(&'static str, String)>,
}

impl Identity {
    /// From the claims of a good token. A value that would not come through a header as it is
    /// makes the token useless here.
    pub fn of(claims: Claims) -> Result<Self, Rejected> {
        let values = [
            ("X-Portcullis-Subject", "sub", claims.sub),
            ("X-Portcullis-Client", "client_id", claims.client_id),
            ("X-Portcullis-Scope", "scope", claims.scope),
            // Empty where there is none: proxies overwrite with what is there, and some leave alone,
            // or fill with a text of their own, what is not.
            ("X-Portcullis-Acr", "acr", claims.acr.unwrap_or_default()),
        ];
        let mut headers = Vec::with_capacity(values.len());
        for (header, claim, value) in values {
            let is_plain = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
            let may_be_empty = matches!(claim, "scope" | "acr");
            // Spaces at the ends are lost on the way (RFC 9110 §5.5), so another's name remains.
            if !is_plain || value.trim() != value || (value.is_empty() && !may_be_empty) {
                return Err(Rejected::Claims(claim));
            }
            headers.push((header, value));
        }
        Ok(Self { headers })
    }
}

/// Why a request may not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its token will not do; the realm says for what.
    Token(Rejected, String),
    /// It is not clear what is asked for.
    Asked(Unasked),
    /// Its method has no plain name.
    Method,
    /// Its path has more than one reading.
    Path(Unclear),
    /// No rule is about it.
    Unlisted(Unlisted),
    /// There are no keys yet.
    Starting,
}

impl Refusal {
    /// The status of the answer.
    pub fn status(&self) -> u16 {
        match self {
            // The proxies know no 400 here.
            Self::Token(Rejected::Request, _) => 401,
            Self::Token(rejected, _) => rejected.status(),
            Self::Starting => 503,
            _ => 403,
        }
    }

    /// In one word, for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Token(rejected, _) => rejected.reason(),
            Self::Asked(Unasked::Headers) => "headers",
            Self::Asked(Unasked::Forged) => "forged",
            Self::Asked(Unasked::Override) => "override",
            Self::Asked(Unasked::Upgrade) => "upgrade",
            Self::Asked(Unasked::Proxy) => "proxy",
            Self::Method | Self::Unlisted(Unlisted::Method) => "method",
            Self::Path(_) | Self::Unlisted(Unlisted::Ambiguous) | Self::Asked(Unasked::Bytes) => {
                "path"
            }
            Self::Unlisted(Unlisted::Path) => "unlisted",
            Self::Starting => "starting",
        }
    }

    /// Whether an operator should look at it: somebody tries something, or a proxy is set up wrong.
    pub fn is_suspicious(&self) -> bool {
        match self {
            Self::Token(..) | Self::Starting | Self::Method => false,
            Self::Unlisted(unlisted) => *unlisted == Unlisted::Ambiguous,
            Self::Asked(_) | Self::Path(_) => true,
        }
    }
}

/// The answer to a proxy; never to be kept.
pub fn response(answer: Result<Identity, Refusal>) -> HttpResponse {
    let refusal = match answer {
        Ok(identity) => {
            let mut answer = HttpResponse::Ok();
            answer.insert_header((CACHE_CONTROL, "no-store"));
            for header in identity.headers {
                answer.insert_header(header);
            }
            return answer.finish();
        }
        Err(refusal) => refusal,
    };
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let mut answer = HttpResponse::build(status);
    answer.insert_header((CACHE_CONTROL, "no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        answer.insert_header((RETRY_AFTER, RETRY_SECS));
    }
    let body = match &refusal {
        Refusal::Token(rejected, realm) => {
            if status != StatusCode::SERVICE_UNAVAILABLE {
                answer.insert_header((WWW_AUTHENTICATE, rejected.www_authenticate(realm)));
            }
            rejected.body()
        }
        Refusal::Starting => Rejected::Unavailable.body(),
        _ => r#"{"error":"access_denied","error_description":"This request is not allowed here"}"#
            .to_owned(),
    };
    if body.is_empty() {
        return answer.finish();
    }
    answer.content_type("application/json").body(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(more: &str) -> Claims {
        toml::from_str(&format!(
            "iss='i'\naud='a'\nclient_id='shop'\niat=1\nexp=2\njti='j'\nrev='1.1.1'\n{more}"
        ))
        .unwrap()
    }

    #[test]
    fn an_identity_comes_through_a_header_as_it_is() {
        let identity = Identity::of(claims("sub='alice'\nscope='a b'\nacr='2'")).unwrap();
        let expected = [
            ("X-Portcullis-Subject", "alice"),
            ("X-Portcullis-Client", "shop"),
            ("X-Portcullis-Scope", "a b"),
            ("X-Portcullis-Acr", "2"),
        ];
        let expected = expected.map(|(name, value)| (name, value.to_owned()));
        assert_eq!(identity.headers, expected);
        let without = Identity::of(claims("sub='alice'")).unwrap();
        assert_eq!(without.headers[2], ("X-Portcullis-Scope", String::new()));
        assert_eq!(without.headers[3], ("X-Portcullis-Acr", String::new()));
        for (bad, claim) in [
            ("sub=''", "sub"),
            ("sub='alice '", "sub"),
            ("sub=' alice'", "sub"),
            ("sub='älice'", "sub"),
            (r#"sub="a\r\nX-Portcullis-Subject: b""#, "sub"),
            ("sub='a'\nscope='ü'", "scope"),
            ("sub='a'\nacr='2 '", "acr"),
        ] {
            assert_eq!(
                Identity::of(claims(bad)),
                Err(Rejected::Claims(claim)),
                "{bad}"
            );
        }
    }

    #[test]
    fn proxies_are_told_what_they_know() {
        let token = |rejected| Refusal::Token(rejected, "orders".into());
        for (refusal, status) in [
            (token(Rejected::Missing), 401),
            (token(Rejected::Request), 401),
            (token(Rejected::TooLarge), 401),
            (token(Rejected::Revoked), 401),
            (token(Rejected::Scope { needed: "a".into() }), 403),
            (token(Rejected::Stale), 503),
            (token(Rejected::Unavailable), 503),
            (Refusal::Starting, 503),
            (Refusal::Method, 403),
            (Refusal::Asked(Unasked::Forged), 403),
            (Refusal::Asked(Unasked::Upgrade), 403),
            (Refusal::Path(Unclear::Segment), 403),
            (Refusal::Unlisted(Unlisted::Path), 403),
        ] {
            let answer = response(Err(refusal.clone()));
            assert_eq!(answer.status().as_u16(), status, "{refusal:?}");
            assert_eq!(answer.headers().contains_key(RETRY_AFTER), status == 503);
            let challenged = answer.headers().contains_key(WWW_AUTHENTICATE);
            let of_token = matches!(refusal, Refusal::Token(..));
            assert_eq!(challenged, of_token && status != 503, "{refusal:?}");
        }
    }
}
