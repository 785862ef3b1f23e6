//! Responses to a proxy: 200 with the caller's identity, 401, 403 or 503. No other status is used,
//! because proxies turn other responses into errors of their own.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE};
use portcullis_verifier::{Claims, Rejected};

use crate::asked::RequestError;
use crate::path::PathError;
use crate::route::RouteError;

/// `Retry-After` of 503 responses, in seconds.
const RETRY_AFTER_SECS: u64 = 2;

/// The caller of a request, in the form of headers for the service.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// Names (`X-Portcullis-…`) and values.
    headers: Vec<(&'static str, String)>,
}

impl Identity {
    /// Creates the identity from the claims of a valid token.
    ///
    /// # Errors
    /// [`Rejected::Claims`] if a claim is missing or would not survive unchanged in a header.
    pub fn from_claims(claims: Claims) -> Result<Self, Rejected> {
        let values = [
            ("X-Portcullis-Subject", "sub", claims.sub),
            ("X-Portcullis-Client", "client_id", claims.client_id),
            ("X-Portcullis-Scope", "scope", claims.scope),
            // Always present, and empty if the token has no `acr`. Proxies overwrite the caller's
            // header with the guard's. If the guard sent none, some proxies would keep the caller's
            // or insert a placeholder.
            ("X-Portcullis-Acr", "acr", claims.acr.unwrap_or_default()),
        ];
        let mut headers = Vec::with_capacity(values.len());
        for (header, claim, value) in values {
            let is_plain = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
            let may_be_empty = matches!(claim, "scope" | "acr");
            // Leading and trailing spaces are stripped on the way (RFC 9110 §5.5), so the service
            // would see the name of another user.
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
    /// The token was rejected. The string is the realm of the challenge.
    Token(Rejected, String),
    /// The proxy did not name the request properly, or the request has a header that is not allowed.
    Request(RequestError),
    /// The method is not written in capitals.
    Method,
    /// The path could be interpreted in more than one way.
    Path(PathError),
    /// No route applies.
    Route(RouteError),
    /// The issuer's keys have not been fetched yet.
    Starting,
}

impl Refusal {
    /// Returns the status code of the response.
    pub fn status(&self) -> u16 {
        match self {
            // Proxies do not expect 400 from forward authentication.
            Self::Token(Rejected::Request, _) => 401,
            Self::Token(rejected, _) => rejected.status(),
            Self::Starting => 503,
            _ => 403,
        }
    }

    /// Returns the reason as one word, for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Token(rejected, _) => rejected.reason(),
            Self::Request(RequestError::Headers) => "headers",
            Self::Request(RequestError::Forged) => "forged",
            Self::Request(RequestError::Override) => "override",
            Self::Request(RequestError::Upgrade) => "upgrade",
            Self::Request(RequestError::Proxy) => "proxy",
            Self::Method | Self::Route(RouteError::Method) => "method",
            Self::Path(_)
            | Self::Route(RouteError::Ambiguous)
            | Self::Request(RequestError::Bytes) => "path",
            Self::Route(RouteError::Path) => "unlisted",
            Self::Starting => "starting",
        }
    }

    /// Returns whether the cause is likely an attack or a misconfigured proxy, so that an operator
    /// should look at it.
    pub fn is_suspicious(&self) -> bool {
        match self {
            Self::Token(..) | Self::Starting | Self::Method => false,
            Self::Route(error) => *error == RouteError::Ambiguous,
            Self::Request(_) | Self::Path(_) => true,
        }
    }
}

/// Builds the response to a proxy. It must not be cached.
pub fn response(decision: Result<Identity, Refusal>) -> HttpResponse {
    let refusal = match decision {
        Ok(identity) => {
            let mut response = HttpResponse::Ok();
            response.insert_header((CACHE_CONTROL, "no-store"));
            for header in identity.headers {
                response.insert_header(header);
            }
            return response.finish();
        }
        Err(refusal) => refusal,
    };
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let mut response = HttpResponse::build(status);
    response.insert_header((CACHE_CONTROL, "no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.insert_header((RETRY_AFTER, RETRY_AFTER_SECS));
    }
    let body = match &refusal {
        Refusal::Token(rejected, realm) => {
            if status != StatusCode::SERVICE_UNAVAILABLE {
                response.insert_header((WWW_AUTHENTICATE, rejected.www_authenticate(realm)));
            }
            rejected.body()
        }
        Refusal::Starting => Rejected::Unavailable.body(),
        _ => r#"{"error":"access_denied","error_description":"This request is not allowed here"}"#
            .to_owned(),
    };
    if body.is_empty() {
        return response.finish();
    }
    response.content_type("application/json").body(body)
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
    fn identity_headers_match_claims_or_token_is_rejected() {
        let identity = Identity::from_claims(claims("sub='alice'\nscope='a b'\nacr='2'")).unwrap();
        let expected = [
            ("X-Portcullis-Subject", "alice"),
            ("X-Portcullis-Client", "shop"),
            ("X-Portcullis-Scope", "a b"),
            ("X-Portcullis-Acr", "2"),
        ];
        let expected = expected.map(|(name, value)| (name, value.to_owned()));
        assert_eq!(identity.headers, expected);
        let without = Identity::from_claims(claims("sub='alice'")).unwrap();
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
                Identity::from_claims(claims(bad)),
                Err(Rejected::Claims(claim)),
                "{bad}"
            );
        }
    }

    #[test]
    fn refusals_use_only_statuses_that_proxies_expect() {
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
            (Refusal::Request(RequestError::Forged), 403),
            (Refusal::Request(RequestError::Upgrade), 403),
            (Refusal::Path(PathError::Segment), 403),
            (Refusal::Route(RouteError::Path), 403),
        ] {
            let response = response(Err(refusal.clone()));
            assert_eq!(response.status().as_u16(), status, "{refusal:?}");
            assert_eq!(response.headers().contains_key(RETRY_AFTER), status == 503);
            let challenged = response.headers().contains_key(WWW_AUTHENTICATE);
            let is_token = matches!(refusal, Refusal::Token(..));
            assert_eq!(challenged, is_token && status != 503, "{refusal:?}");
        }
    }
}
