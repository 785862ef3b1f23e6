//! What a proxy asks about: the method and target of the request that it holds, and what that
//! request must not carry.

use actix_web::HttpRequest;
use actix_web::http::header::{HeaderMap, HeaderValue};

/// Policy: the header block of a request.
const MAX_HEADER_BYTES: usize = 32 * 1024;
const MAX_HEADERS: usize = 100;

/// The headers that this guard alone sets begin so.
const IDENTITY: &str = "x-portcullis-";

/// Headers by which some services serve another method or path than the request's own.
const OVERRIDES: [&str; 5] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
];

/// The request that somebody wants to make.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a str,
    /// Path and query, as they came to the proxy.
    pub target: &'a str,
}

/// Why it cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unasked {
    /// The headers are more than any honest request has.
    Headers,
    /// It carries a header that only this guard sets, or would have one dropped on the way.
    Forged,
    /// It would have the service serve another request.
    Override,
    /// It asks for another protocol than WebSocket, behind which nobody would be asked any more.
    Upgrade,
    /// The proxy did not say what it asks about, or somebody else did as well.
    Proxy,
    /// What it asks about is no text (RFC 9110 §5.5).
    Bytes,
}

impl<'a> Asked<'a> {
    /// `/check`: the proxy says it in `X-Forwarded-Method` and `X-Forwarded-Uri`.
    pub fn forwarded(request: &'a HttpRequest) -> Result<Self, Unasked> {
        let headers = request.headers();
        fit(headers)?;
        Ok(Self {
            method: only(headers, "x-forwarded-method")?,
            target: only(headers, "x-forwarded-uri")?,
        })
    }

    /// `/envoy/…`: the request itself, its path behind the prefix.
    pub fn prefixed(request: &'a HttpRequest, prefix: &str) -> Result<Self, Unasked> {
        fit(request.headers())?;
        let target = request.uri().path_and_query().map(|target| target.as_str());
        Ok(Self {
            method: request.method().as_str(),
            target: target
                .and_then(|target| target.strip_prefix(prefix))
                .ok_or(Unasked::Proxy)?,
        })
    }
}

fn fit(headers: &HeaderMap) -> Result<(), Unasked> {
    let bytes = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    if headers.len() > MAX_HEADERS || bytes.sum::<usize>() > MAX_HEADER_BYTES {
        return Err(Unasked::Headers);
    }
    let mut fields = headers.iter();
    fields.try_for_each(|(name, value)| harmless(name.as_str(), value))
}

fn harmless(name: &str, value: &HeaderValue) -> Result<(), Unasked> {
    // To CGI, WSGI and their kin `_` and `-` are one, and to some every sign is.
    let name = name.replace(|sign: char| !sign.is_ascii_alphanumeric(), "-");
    match name.as_str() {
        name if name.starts_with(IDENTITY) => Err(Unasked::Forged),
        name if OVERRIDES.contains(&name) => Err(Unasked::Override),
        // What it names is dropped by the next hop (RFC 9110 §7.6.1).
        "connection" if names_identity(value) => Err(Unasked::Forged),
        // Of `h2c` (RFC 7540 §3.2): a tunnel with requests of its own.
        "http2-settings" => Err(Unasked::Upgrade),
        "upgrade" if !value.as_bytes().eq_ignore_ascii_case(b"websocket") => Err(Unasked::Upgrade),
        _ => Ok(()),
    }
}

fn names_identity(value: &HeaderValue) -> bool {
    let value = value.as_bytes().to_ascii_lowercase();
    let sought = b"portcullis";
    value.windows(sought.len()).any(|found| found == sought)
}

/// The value of a header that is there exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Unasked> {
    let mut values = headers.get_all(name);
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| Unasked::Bytes),
        _ => Err(Unasked::Proxy),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn check(headers: &[(&str, &str)]) -> Result<(String, String), Unasked> {
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
    fn a_proxy_says_what_it_asks_about_once() {
        let expected = Ok(("GET".to_owned(), "/orders?x=1".to_owned()));
        assert_eq!(check(&[GET, ORDERS]), expected);
        for headers in [
            &[GET][..],
            &[ORDERS],
            &[GET, ORDERS, ORDERS],
            &[GET, GET, ORDERS],
        ] {
            assert_eq!(check(headers), Err(Unasked::Proxy), "{headers:?}");
        }
        let bytes = [GET, ("X-Forwarded-Uri", "/\u{e9}")];
        assert_eq!(check(&bytes), Err(Unasked::Bytes));
    }

    #[test]
    fn who_brings_an_identity_is_refused() {
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
            let refused = check(&[GET, ORDERS, (forged, "")]);
            assert_eq!(refused, Err(Unasked::Forged), "{forged}");
        }
        assert!(check(&[GET, ORDERS, ("X-Portcullis", "1")]).is_ok());
    }

    #[test]
    fn who_asks_for_another_request_is_refused() {
        for name in [
            "X-HTTP-Method-Override",
            "X_HTTP_Method_Override",
            "X.HTTP.Method.Override",
            "X!Original+URL",
            "X-Original-URL",
            "X-Rewrite-URL",
        ] {
            let refused = check(&[GET, ORDERS, (name, "/admin")]);
            assert_eq!(refused, Err(Unasked::Override), "{name}");
        }
    }

    #[test]
    fn who_asks_for_another_protocol_is_refused() {
        for (name, value) in [
            ("Upgrade", "h2c"),
            ("Upgrade", "websocket, h2c"),
            ("Upgrade", "TLS/1.3"),
            ("Upgrade", ""),
            ("HTTP2-Settings", "AAMAAABkAAQAoAAAAAIAAAAA"),
            ("HTTP2-Settings", ""),
        ] {
            let refused = check(&[GET, ORDERS, (name, value)]);
            assert_eq!(refused, Err(Unasked::Upgrade), "{name}: {value}");
        }
        let two = [GET, ORDERS, ("Upgrade", "websocket"), ("Upgrade", "h2c")];
        assert_eq!(check(&two), Err(Unasked::Upgrade));
        for value in ["websocket", "WebSocket"] {
            assert!(check(&[GET, ORDERS, ("Upgrade", value)]).is_ok(), "{value}");
        }
    }

    #[test]
    fn nobody_has_an_identity_dropped_on_the_way() {
        for value in [
            "X-Portcullis-Subject",
            "close, x-PORTCULLIS-acr",
            "x_portcullis_scope",
        ] {
            let refused = check(&[GET, ORDERS, ("Connection", value)]);
            assert_eq!(refused, Err(Unasked::Forged), "{value}");
        }
        let two = [("Connection", "close"), ("Connection", "X-Portcullis-Acr")];
        assert_eq!(check(&[GET, ORDERS, two[0], two[1]]), Err(Unasked::Forged));
        assert!(check(&[GET, ORDERS, ("Connection", "keep-alive, Upgrade")]).is_ok());
    }

    #[test]
    fn headers_have_limits() {
        let long = "a".repeat(MAX_HEADER_BYTES);
        assert_eq!(
            check(&[GET, ORDERS, ("Cookie", &long)]),
            Err(Unasked::Headers)
        );
        let many: Vec<_> = [GET, ORDERS]
            .into_iter()
            .chain(std::iter::repeat_n(("Cookie", "a"), MAX_HEADERS))
            .collect();
        assert_eq!(check(&many), Err(Unasked::Headers));
        assert!(check(&many[..MAX_HEADERS]).is_ok());
    }

    #[test]
    fn envoy_asks_with_the_request_itself() {
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
