//! Redirect URIs: RFC 6749 §3.1.2, RFC 8252 §7, RFC 9700 §2.1. They are compared byte for byte, without
//! normalisation. The one exception is the port of a loopback address and of `localhost`.

use url::Url;

use super::error::{Cause, Error};
use super::macros::details;
use super::request::callback::Callback;
use crate::config::limits::REDIRECT_URI_BYTES;

details! {
    enum Rejection {
        Mismatch => Detail::new("redirect_uri.mismatch", "mismatch")
            .caused_by(Cause::UnregisteredRedirectUri),
        Missing => Detail::new("authz.rejected", "no_redirect_uri")
            .caused_by(Cause::UnregisteredRedirectUri),
        Registration => Detail::new("registration.rejected", "redirect_uri"),
    }
}

/// Whether an authorization request must contain its redirect URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It must (OIDC Core §3.1.2.1).
    Required,
    /// It may be omitted if the client registered exactly one (RFC 6749 §3.1.2.3).
    Optional,
}

/// The kind of client that registers a redirect URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientType {
    /// It cannot keep a secret, such as a native application.
    Public,
    /// It can keep a secret.
    Confidential,
}

/// Whether the host name `localhost` may be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Localhost {
    /// It may.
    Allowed,
    /// It may not (RFC 8252 §8.3).
    Forbidden,
}

/// Returns where the response to a request may be sent. Only this function creates a [`Callback`].
///
/// # Errors
/// `invalid_request`, to be shown on a page and never sent to a redirect URI.
pub fn resolve(
    registered: &[String],
    requested: Option<&str>,
    presence: Presence,
) -> Result<Callback, Error> {
    match (requested, registered, presence) {
        (Some(uri), _, _) if is_registered(registered, uri) => {
            Ok(Callback::requested(uri.to_owned()))
        }
        (Some(uri), _, _) => {
            let error = Error::invalid_request(Rejection::Mismatch);
            Err(error.comparing(without_query(uri), all_without_query(registered)))
        }
        (None, [only], Presence::Optional) => Ok(Callback::registered(only.clone())),
        (None, _, _) => {
            let error = Error::invalid_request(Rejection::Missing);
            Err(error.comparing("", all_without_query(registered)))
        }
    }
}

/// Returns a URI as the log shows it: without user part, query and fragment, which may contain secrets.
pub fn without_query(uri: &str) -> String {
    let bare = uri.split(['?', '#']).next().unwrap_or_default();
    match bare.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, rest)) => format!("{scheme}://{rest}"),
            None => bare.to_owned(),
        },
        None => bare.to_owned(),
    }
}

/// Returns registered URIs as the log shows them.
pub fn all_without_query(registered: &[String]) -> String {
    let shown: Vec<String> = registered.iter().map(|uri| without_query(uri)).collect();
    shown.join(" ")
}

/// Returns whether a redirect URI is registered.
pub fn is_registered(registered: &[String], requested: &str) -> bool {
    let mut registered = registered.iter();
    registered.any(|registered| matches(registered, requested))
}

/// Returns whether the two are equal, byte for byte, except for the port of a loopback literal or of `localhost`:
/// native applications and development servers receive the response on a port that they find free.
fn matches(registered: &str, requested: &str) -> bool {
    if requested.len() > REDIRECT_URI_BYTES {
        return false;
    }
    registered == requested
        || match (split_loopback(registered), split_loopback(requested)) {
            (Some(registered), Some(requested)) => registered == requested,
            _ => false,
        }
}

/// The hosts of a loopback redirect (RFC 8252 §7.3, §8.3), of which `localhost` is registered only where
/// [`Localhost::Allowed`] says so.
const LOOPBACK: [&str; 3] = ["http://127.0.0.1", "http://[::1]", "http://localhost"];

/// Splits a loopback URI into one of [`LOOPBACK`] and the part after the port. `None` for all other URIs, among
/// them those with a port that is not valid.
fn split_loopback(uri: &str) -> Option<(&str, &str)> {
    let literal = LOOPBACK
        .into_iter()
        .find(|literal| uri.starts_with(literal))?;
    let rest = &uri[literal.len()..];
    let Some(after_colon) = rest.strip_prefix(':') else {
        return (rest.is_empty() || rest.starts_with('/')).then_some((literal, rest));
    };
    let end = after_colon
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(after_colon.len());
    let (port, tail) = after_colon.split_at(end);
    let is_port = !port.starts_with('0') && port.parse::<u16>().is_ok();
    (is_port && (tail.is_empty() || tail.starts_with('/'))).then_some((literal, tail))
}

/// Returns whether any program on the user's device could receive the response, so that consent is requested
/// each time (RFC 8252 §8.6).
pub fn is_native(uri: &str) -> bool {
    match Url::parse(uri) {
        Ok(url) if url.scheme() == "https" => false,
        Ok(url) if url.scheme() == "http" => {
            url.host_str().is_some_and(crate::config::is_loopback_host)
        }
        _ => true,
    }
}

/// Checks a redirect URI at registration.
///
/// # Errors
/// `invalid_redirect_uri`, and a sentence that says to the operator what to change.
pub fn check(
    uri: &str,
    client_type: ClientType,
    localhost: Localhost,
) -> Result<(), (Error, String)> {
    let reject = |why: &str| {
        Err((
            Error::invalid_redirect_uri(Rejection::Registration),
            format!("redirect URI `{uri}` {why}"),
        ))
    };
    if uri.len() > REDIRECT_URI_BYTES {
        return reject("is longer than 2048 bytes");
    }
    // RFC 3986 §2 without `*`, which can only be meant as a wildcard here.
    if !uri
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()+,;=%".contains(&b))
    {
        return reject(
            "has a character that a URI must not have; wildcards and non-ASCII hosts are not accepted (write A-labels)",
        );
    }
    let Ok(url) = Url::parse(uri) else {
        return reject("is not an absolute URI");
    };
    if uri.contains('#') {
        return reject("has a fragment");
    }
    if !url.username().is_empty() || url.password().is_some() || uri.contains('@') {
        return reject("has a user part");
    }
    // A URL parser accepts `https:host/cb` as an absolute URI, but a browser that receives it in a redirect
    // from this server resolves it as a path.
    let web = ["https", "http"].contains(&url.scheme());
    if web && !has_authority(uri, url.scheme()) {
        return reject("does not begin with https:// or http:// and a host");
    }
    // Redirect URIs are compared byte for byte, so a second spelling would never match what browsers and libraries
    // send.
    let spelled = match url.host_str().filter(|_| web) {
        Some(host) => format!("{}://{host}", url.scheme()),
        None => format!("{}:", url.scheme()),
    };
    if !uri.starts_with(&spelled) {
        return reject(&format!(
            "has another spelling of its start; write `{spelled}`"
        ));
    }
    if web && url.port() == Some(0) {
        return reject(
            "has port 0, which is not valid; a loopback URI without a port matches any port",
        );
    }
    match url.scheme() {
        "https" if url.host_str().is_some() => Ok(()),
        "http" if url.host_str().is_some_and(crate::config::is_loopback_host) => {
            if split_loopback(uri).is_none() {
                return reject(
                    "must have the host 127.0.0.1, [::1] or localhost, and a valid port or none",
                );
            }
            match localhost {
                Localhost::Forbidden if url.host_str() == Some("localhost") => reject(
                    "uses the name localhost; use http://127.0.0.1 or http://[::1], or allow it for this client with allow_localhost_redirect=true",
                ),
                _ => Ok(()),
            }
        }
        "http" => reject("uses plain http, which is allowed only for loopback addresses"),
        scheme if !scheme.contains('.') => reject(
            "has a scheme that is neither https nor a reversed domain name such as com.example.app (RFC 8252 §7.1)",
        ),
        _ if client_type == ClientType::Confidential => {
            reject("has a private-use scheme, which is for public (native) clients")
        }
        _ => Ok(()),
    }
}

/// Returns whether `//` and a host follow the scheme (RFC 3986 §3.2).
fn has_authority(uri: &str, scheme: &str) -> bool {
    let rest = uri[scheme.len()..].strip_prefix("://");
    rest.is_some_and(|rest| !rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_port_of_a_loopback_literal_may_differ() {
        for good in [
            "http://127.0.0.1/cb",
            "http://127.0.0.1:1/cb",
            "http://127.0.0.1:65535/cb",
        ] {
            assert!(matches("http://127.0.0.1/cb", good), "{good}");
        }
        for bad in [
            "http://127.0.0.1:0/cb",
            "http://127.0.0.1:65536/cb",
            "http://127.0.0.1:/cb",
            "http://127.0.0.1:08/cb",
            "http://127.0.0.1:80/other",
            "http://127.0.0.1.evil.test/cb",
            "http://user@127.0.0.1/cb",
            "http://[::1]/cb",
            "https://127.0.0.1/cb",
            "http://localhost/cb",
        ] {
            assert!(!matches("http://127.0.0.1/cb", bad), "{bad}");
        }
        assert!(matches("http://localhost/cb", "http://localhost:5000/cb"));
        for bad in [
            "http://localhost.evil.test/cb",
            "http://LOCALHOST:5000/cb",
            "http://localhost:0/cb",
            "http://127.0.0.1:5000/cb",
            "https://localhost:5000/cb",
        ] {
            assert!(!matches("http://localhost/cb", bad), "{bad}");
        }
    }

    #[test]
    fn second_spellings_and_invalid_ports_are_rejected_with_a_reason() {
        let why = |uri| match check(uri, ClientType::Public, Localhost::Allowed) {
            Ok(()) => panic!("{uri} is accepted"),
            Err((_, why)) => why,
        };
        for (uri, reason) in [
            ("HTTPS://app.example/cb", "write `https://app.example`"),
            ("https://App.example/cb", "write `https://app.example`"),
            (
                "https://XN--80ak6aa92e.com/cb",
                "write `https://xn--80ak6aa92e.com`",
            ),
            ("http://LOCALHOST/cb", "write `http://localhost`"),
            ("http://0x7f.1/cb", "write `http://127.0.0.1`"),
            ("Com.Example.app:/cb", "write `com.example.app:`"),
            ("http://127.0.0.1:0/cb", "port 0"),
            ("https://app.example:0/cb", "port 0"),
            ("http://127.0.0.1:/cb", "a valid port"),
            ("http://127.0.0.2/cb", "must have the host"),
        ] {
            assert!(why(uri).contains(reason), "{uri}: {}", why(uri));
        }
    }

    #[test]
    fn registration_accepts_https_loopback_and_reversed_domains() {
        let (public, confidential) = (ClientType::Public, ClientType::Confidential);
        let forbidden = Localhost::Forbidden;
        assert!(check("https://app.example/cb?a=1", confidential, forbidden).is_ok());
        assert!(check("http://[::1]:99/cb", confidential, forbidden).is_ok());
        assert!(check("com.example.app:/cb", public, forbidden).is_ok());
        assert!(check("http://localhost:3000/cb", confidential, Localhost::Allowed).is_ok());
        for bad in [
            "https://*.example/cb",
            "https://app.example/*",
            "*",
            "https://app.example/(a|b)+",
            "https://app.example/cb#f",
            "https://app.example@evil.test/cb",
            "https://evil.test\\@app.example/cb",
            "https://\u{430}pp.example/cb",
            "http://localhost:3000/cb",
            "http://app.example/cb",
            "myapp:/cb",
            "javascript:alert(1)",
            "https:app.example/cb",
            "https:/app.example/cb",
            "https:///app.example/cb",
            "http:localhost/cb",
            "/cb",
        ] {
            assert!(check(bad, public, forbidden).is_err(), "{bad}");
        }
        assert!(check("com.example.app:/cb", confidential, forbidden).is_err());
    }
}
