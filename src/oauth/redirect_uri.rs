//! Redirect URIs: RFC 6749 §3.1.2, RFC 8252 §7, RFC 9700 §2.1. Compared as bytes, never after
//! normalising; the one exception is the port of a loopback address.

use url::Url;

use super::client::Client;
use super::error::{Detail, Error};
use super::request::callback::Callback;
use crate::config::limits::REDIRECT_URI_BYTES;

const MISMATCH: Detail = Detail::new("redirect_uri.mismatch", "mismatch");
const REJECTED: Detail = Detail::new("registration.rejected", "redirect_uri");

/// Finds where the answer to a request may go. Only this function makes a [`Callback`].
///
/// # Errors
/// `invalid_request`, to be shown on a page and never sent anywhere.
pub fn resolve(client: &Client, presented: Option<&str>, openid: bool) -> Result<Callback, Error> {
    let uri = match presented {
        Some(uri) => is_registered(client, uri)
            .then(|| uri.to_owned())
            .ok_or_else(|| Error::invalid_request(MISMATCH))?,
        // OIDC Core §3.1.2.1 requires it; RFC 6749 §3.1.2.3 lets a single one stand in.
        None => match client.redirect_uris.as_slice() {
            [only] if !openid => only.clone(),
            _ => {
                return Err(Error::invalid_request(Detail::new(
                    "authz.rejected",
                    "no_redirect_uri",
                )));
            }
        },
    };
    Ok(Callback::validated(uri, presented.is_some()))
}

/// Returns whether the client is registered for a redirect URI.
pub fn is_registered(client: &Client, presented: &str) -> bool {
    let mut registered = client.redirect_uris.iter();
    registered.any(|registered| matches(registered, presented))
}

/// Whether `presented` is `registered`, byte for byte, but for the port of a loopback literal.
fn matches(registered: &str, presented: &str) -> bool {
    if presented.len() > REDIRECT_URI_BYTES {
        return false;
    }
    registered == presented
        || match (split_loopback(registered), split_loopback(presented)) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => false,
        }
}

/// RFC 8252 §7.3: `http://127.0.0.1` or `http://[::1]` and what follows the port; `None` for
/// everything else.
fn split_loopback(uri: &str) -> Option<(&str, &str)> {
    let literal = ["http://127.0.0.1", "http://[::1]"]
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
    let good = !port.starts_with('0') && port.parse::<u16>().is_ok();
    (good && (tail.is_empty() || tail.starts_with('/'))).then_some((literal, tail))
}

/// Whether an answer there can be taken by any program of the same machine, so that consent is
/// asked each time (RFC 8252 §8.6).
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
/// `invalid_redirect_uri`; the sentence for the operator says what to change.
pub fn check(
    uri: &str,
    public_client: bool,
    localhost_allowed: bool,
) -> Result<(), (Error, String)> {
    let refuse = |why: &str| {
        Err((
            Error::invalid_redirect_uri(REJECTED),
            format!("redirect URI `{uri}` {why}"),
        ))
    };
    if uri.len() > REDIRECT_URI_BYTES {
        return refuse("is longer than 2048 bytes");
    }
    // RFC 3986 §2 without `*`, which only ever means a wildcard here.
    if !uri
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()+,;=%".contains(&b))
    {
        return refuse(
            "has a character that a URI must not have; wildcards and non-ASCII hosts are not accepted (write A-labels)",
        );
    }
    let Ok(url) = Url::parse(uri) else {
        return refuse("is not an absolute URI");
    };
    if uri.contains('#') {
        return refuse("has a fragment");
    }
    if !url.username().is_empty() || url.password().is_some() || uri.contains('@') {
        return refuse("has a user part");
    }
    // `https:host/cb` is an absolute URI to a parser that knows the scheme, and a path of ours to a
    // browser that follows our answer.
    let web = ["https", "http"].contains(&url.scheme());
    if web && !has_authority(uri, url.scheme()) {
        return refuse("does not begin with https:// or http:// and a host");
    }
    match url.scheme() {
        "https" if url.host_str().is_some() => Ok(()),
        "http" if split_loopback(uri).is_some() => Ok(()),
        "http" if url.host_str() == Some("localhost") => {
            if localhost_allowed {
                Ok(())
            } else {
                refuse(
                    "uses the name localhost; use http://127.0.0.1 or http://[::1], or allow it for this client with allow_localhost_redirect=true",
                )
            }
        }
        "http" => refuse("is plain http; only loopback addresses may be"),
        scheme if !scheme.contains('.') => refuse(
            "has a scheme that is neither https nor a reversed domain name such as com.example.app (RFC 8252 §7.1)",
        ),
        _ if !public_client => {
            refuse("has a private-use scheme, which is for public (native) clients")
        }
        _ => Ok(()),
    }
}

/// Whether the host follows two slashes, as RFC 3986 §3.2 writes it.
fn has_authority(uri: &str, scheme: &str) -> bool {
    let rest = uri[scheme.len()..].strip_prefix("://");
    rest.is_some_and(|rest| !rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_literal_may_change_its_port_and_nothing_else() {
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
    }

    #[test]
    fn registration_takes_https_loopback_and_reversed_domains() {
        assert!(check("https://app.example/cb?a=1", false, false).is_ok());
        assert!(check("http://[::1]:99/cb", false, false).is_ok());
        assert!(check("com.example.app:/cb", true, false).is_ok());
        assert!(check("http://localhost:3000/cb", false, true).is_ok());
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
            assert!(check(bad, true, false).is_err(), "{bad}");
        }
        assert!(check("com.example.app:/cb", false, false).is_err());
    }
}
