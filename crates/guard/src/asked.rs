//! The request that a proxy asks about: its method, its target, and the headers that it must not
//! have.

use actix_web::HttpRequest;
use actix_web::http::header::{HeaderMap, HeaderValue};

/// Policy: maximum size of the names and values of a request's headers, in bytes.
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// Policy: maximum number of headers in a request.
const MAX_HEADERS: usize = 100;

/// Prefix of the headers that only the guard sets.
const IDENTITY_PREFIX: &str = "x-portcullis-";

/// Headers that make some services serve another method or path than the request's own.
const OVERRIDES: [&str; 8] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-envoy-original-path",
    "x-original-method",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];

/// The request that a proxy asks about.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The request's method.
    pub method: &'a str,
    /// Path and query, as the proxy received them.
    pub target: &'a str,
}

/// Why a request is refused before its route is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// There are more headers, or longer ones, than a legitimate request has.
    Headers,
    /// A header that only the guard sets, or a `Connection` that has the next hop drop one.
    Forged,
    /// A header that makes some services serve another request.
    Override,
    /// An upgrade to a protocol other than WebSocket. The guard would not see the requests that are
    /// sent over it.
    Upgrade,
    /// The proxy did not send the method or the target, or the caller sent its own as well.
    Proxy,
    /// The method or the target is not text (RFC 9110 §5.5).
    Bytes,
}

impl<'a> Asked<'a> {
    /// Reads a request to `/check`: the method and the target are in `X-Forwarded-Method` and
    /// `X-Forwarded-Uri`.
    pub fn forwarded(request: &'a HttpRequest) -> Result<Self, RequestError> {
        let headers = request.headers();
        check_headers(headers)?;
        Ok(Self {
            method: single_value(headers, "x-forwarded-method")?,
            target: single_value(headers, "x-forwarded-uri")?,
        })
    }

    /// Reads a request to `/envoy/…`: the method is the request's own, and its target follows
    /// `prefix`.
    pub fn prefixed(request: &'a HttpRequest, prefix: &str) -> Result<Self, RequestError> {
        check_headers(request.headers())?;
        let target = request.uri().path_and_query().map(|target| target.as_str());
        Ok(Self {
            method: request.method().as_str(),
            target: target
                .and_then(|target| target.strip_prefix(prefix))
                .ok_or(RequestError::Proxy)?,
        })
    }
}

fn check_headers(headers: &HeaderMap) -> Result<(), RequestError> {
    let bytes = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    if headers.len() > MAX_HEADERS || bytes.sum::<usize>() > MAX_HEADER_BYTES {
        return Err(RequestError::Headers);
    }
    let mut fields = headers.iter();
    fields.try_for_each(|(name, value)| check_header(name.as_str(), value))
}

fn check_header(name: &str, value: &HeaderValue) -> Result<(), RequestError> {
    // CGI, WSGI and similar interfaces do not distinguish `_` from `-`, and some of them do not
    // distinguish any other punctuation from it either.
    let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    match name.as_str() {
        name if name.starts_with(IDENTITY_PREFIX) => Err(RequestError::Forged),
        name if OVERRIDES.contains(&name) => Err(RequestError::Override),
        // The next hop drops the headers that `Connection` names (RFC 9110 §7.6.1).
        "connection" if names_identity_header(value) => Err(RequestError::Forged),
        // Part of an upgrade to `h2c` (RFC 7540 §3.2), a tunnel for requests that the guard would
        // not see.
        "http2-settings" => Err(RequestError::Upgrade),
        "upgrade" if !value.as_bytes().eq_ignore_ascii_case(b"websocket") => {
            Err(RequestError::Upgrade)
        }
        _ => Ok(()),
    }
}

fn names_identity_header(value: &HeaderValue) -> bool {
    let value = value.as_bytes().to_ascii_lowercase();
    let name = b"portcullis";
    value.windows(name.len()).any(|window| window == name)
}

/// Returns the value of a header that must be present exactly once.
fn single_value<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, RequestError> {
    let mut values = headers.get_all(name);
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| RequestError::Bytes),
        _ => Err(RequestError::Proxy),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn check(headers: &[(&str, &str)]) -> Result<(String, String), RequestError> {
        let start = TestRequest::get().uri("/check");
        let request = headers
            .iter()
            .fold(start, |request, header| request.append_header(*header));
        let request = request.to_http_request();
        let asked = Asked::forwarded(&request)?;
        Ok((asked.method.to_owned(), asked.target.to_owned()))
    }

    const GET: (&str, &str) = ("X-Forwarded-Method", "GET");
    const ORDERS: (&str, &str) = ("X-Forwarded-Uri", "/orders?x=1");

    #[test]
    fn forwarded_method_and_uri_must_be_present_exactly_once() {
        let expected = Ok(("GET".to_owned(), "/orders?x=1".to_owned()));
        assert_eq!(check(&[GET, ORDERS]), expected);
        for headers in [
            &[GET][..],
            &[ORDERS],
            &[GET, ORDERS, ORDERS],
            &[GET, GET, ORDERS],
        ] {
            assert_eq!(check(headers), Err(RequestError::Proxy), "{headers:?}");
        }
        let bytes = [GET, ("X-Forwarded-Uri", "/\u{e9}")];
        assert_eq!(check(&bytes), Err(RequestError::Bytes));
    }

    #[test]
    fn identity_headers_are_refused_in_any_spelling() {
        for forged in [
            "X-Portcullis-Subject",
            "x-portcullis-acr",
            "X_Portcullis_Subject",
            "X-Portcullis_Scope",
            "X-PORTCULLIS-ANYTHING",
            "X.Portcullis.Subject",
            "X*Portcullis*Subject",
            "X-Portcullis~Subject",
            "x'portcullis|acr",
        ] {
            let result = check(&[GET, ORDERS, (forged, "")]);
            assert_eq!(result, Err(RequestError::Forged), "{forged}");
        }
        assert!(check(&[GET, ORDERS, ("X-Portcullis", "1")]).is_ok());
    }

    #[test]
    fn override_headers_are_refused_in_any_spelling() {
        for name in [
            "X-HTTP-Method-Override",
            "X_HTTP_Method_Override",
            "X.HTTP.Method.Override",
            "X!Original+URL",
            "X-Original-URL",
            "X-Original-URI",
            "X-Original-Method",
            "X-Envoy-Original-Path",
            "X-Rewrite-URL",
        ] {
            let result = check(&[GET, ORDERS, (name, "/admin")]);
            assert_eq!(result, Err(RequestError::Override), "{name}");
        }
    }

    #[test]
    fn upgrade_is_refused_unless_websocket() {
        for (name, value) in [
            ("Upgrade", "h2c"),
            ("Upgrade", "websocket, h2c"),
            ("Upgrade", "TLS/1.3"),
            ("Upgrade", ""),
            ("HTTP2-Settings", "AAMAAABkAAQAoAAAAAIAAAAA"),
            ("HTTP2-Settings", ""),
        ] {
            let result = check(&[GET, ORDERS, (name, value)]);
            assert_eq!(result, Err(RequestError::Upgrade), "{name}: {value}");
        }
        let two = [GET, ORDERS, ("Upgrade", "websocket"), ("Upgrade", "h2c")];
        assert_eq!(check(&two), Err(RequestError::Upgrade));
        for value in ["websocket", "WebSocket"] {
            assert!(check(&[GET, ORDERS, ("Upgrade", value)]).is_ok(), "{value}");
        }
    }

    #[test]
    fn connection_header_naming_identity_is_refused() {
        for value in [
            "X-Portcullis-Subject",
            "close, x-PORTCULLIS-acr",
            "x_portcullis_scope",
        ] {
            let result = check(&[GET, ORDERS, ("Connection", value)]);
            assert_eq!(result, Err(RequestError::Forged), "{value}");
        }
        let two = [("Connection", "close"), ("Connection", "X-Portcullis-Acr")];
        assert_eq!(
            check(&[GET, ORDERS, two[0], two[1]]),
            Err(RequestError::Forged)
        );
        assert!(check(&[GET, ORDERS, ("Connection", "keep-alive, Upgrade")]).is_ok());
    }

    #[test]
    fn oversized_header_blocks_are_refused() {
        let long = "a".repeat(MAX_HEADER_BYTES);
        assert_eq!(
            check(&[GET, ORDERS, ("Cookie", &long)]),
            Err(RequestError::Headers)
        );
        let many: Vec<_> = [GET, ORDERS]
            .into_iter()
            .chain(std::iter::repeat_n(("Cookie", "a"), MAX_HEADERS))
            .collect();
        assert_eq!(check(&many), Err(RequestError::Headers));
        assert!(check(&many[..MAX_HEADERS]).is_ok());
    }

    #[test]
    fn envoy_prefix_is_stripped_from_target() {
        let request = TestRequest::delete()
            .uri("/envoy/orders/7?x")
            .to_http_request();
        let asked = Asked {
            method: "DELETE",
            target: "/orders/7?x",
        };
        assert_eq!(Asked::prefixed(&request, "/envoy"), Ok(asked));
    }
}
