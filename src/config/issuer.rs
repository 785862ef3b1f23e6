//! The issuer identifier (RFC 8414 §2, OIDC Discovery §3): a configured constant.

use std::fmt;

use url::Url;

use super::ConfigError;
use super::authority::{Authority, HTTP_PORT, HTTPS_PORT, is_loopback_host};

/// The issuer, byte for byte as in tokens and metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    text: String,
    authority: Authority,
    host: String,
    https: bool,
}

impl Issuer {
    /// Parses and checks an issuer.
    ///
    /// # Errors
    /// When it is not an `https` origin, or an `http` origin on a loopback host.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let refuse = |why: &str| Err(ConfigError::key("issuer", format!("`{text}` {why}")));
        let Ok(url) = Url::parse(text) else {
            return refuse("is not a URL");
        };
        let Some(host) = url.host_str() else {
            return refuse("has no host");
        };
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            return refuse("must not have a query, a fragment or a user");
        }
        if url.path() != "/" || text.ends_with('/') {
            return refuse(
                "must be an origin such as https://id.example.com, without a path or a final slash",
            );
        }
        let https = url.scheme() == "https";
        let plain_but_local = url.scheme() == "http" && is_loopback_host(host);
        if !https && !plain_but_local {
            return refuse(
                "must be https; plain http is for loopback hosts such as localhost only",
            );
        }
        let origin = url.origin().ascii_serialization();
        if origin != text {
            return refuse(&format!("must be written in its canonical form, {origin}"));
        }
        let authority = origin
            .split_once("://")
            .and_then(|(_, authority)| Authority::parse(authority));
        let Some(authority) = authority else {
            return refuse("has a host that is neither a name nor an IP address");
        };
        Ok(Self {
            text: text.to_owned(),
            authority,
            host: host.to_owned(),
            https,
        })
    }

    /// Returns the text, as in `iss`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns host and port as in the `Host` header.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Returns the port of a URL of this scheme without a port.
    pub fn default_port(&self) -> u16 {
        if self.https { HTTPS_PORT } else { HTTP_PORT }
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.authority.port().unwrap_or(self.default_port())
    }

    /// Returns whether requests for `authority` are requests for this issuer (RFC 9110 §4.2.3).
    pub fn is_at(&self, authority: &Authority) -> bool {
        self.authority.is_same(authority, self.default_port())
    }

    /// Returns whether the value of an `Origin` header is this issuer's origin (RFC 6454 §5).
    pub fn has_origin(&self, text: &str) -> bool {
        let scheme = if self.https { "https" } else { "http" };
        text.split_once("://").is_some_and(|(found, authority)| {
            found.eq_ignore_ascii_case(scheme)
                && Authority::parse(authority).is_some_and(|found| self.is_at(&found))
        })
    }

    /// Returns the host without the port; IPv6 in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns whether the scheme is `https`. Then cookies are `Secure` and have the prefix `__Host-`.
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Returns whether the host is loopback.
    pub fn is_loopback(&self) -> bool {
        is_loopback_host(&self.host)
    }

    /// Returns the URL of an endpoint of this server.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.text)
    }
}

impl fmt::Display for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_origins_are_own_origins() {
        let issuer = Issuer::parse("https://id.example.com").unwrap();
        for own in [
            "https://id.example.com",
            "https://id.example.com:443",
            "https://id.example.com.",
            "HTTPS://ID.example.com",
        ] {
            assert!(issuer.has_origin(own), "{own}");
        }
        for foreign in [
            "http://id.example.com",
            "https://id.example.com:8443",
            "https://id.example.com/",
            "https://user@id.example.com",
            "https://id.example.com https://evil.test",
            "https://evil.test",
            "id.example.com",
            "null",
            "",
        ] {
            assert!(!issuer.has_origin(foreign), "{foreign}");
        }
    }

    #[test]
    fn issuer_requires_canonical_origin() {
        for good in [
            "https://id.example.com",
            "https://id.example.com:8443",
            "http://localhost:8080",
            "http://127.0.0.1:8080",
            "http://[::1]:8080",
        ] {
            assert_eq!(
                Issuer::parse(good).map(|i| i.url("/x")).ok(),
                Some(format!("{good}/x"))
            );
        }
        for bad in [
            "id.example.com",
            "http://id.example.com",
            "https://id.example.com/",
            "https://id.example.com/path",
            "https://id.example.com?x",
            "https://ID.example.com",
            "https://user@id.example.com",
            "https://id.example.com:443",
            "ftp://localhost",
        ] {
            assert!(Issuer::parse(bad).is_err(), "{bad}");
        }
    }
}
