//! Host and port of a server (RFC 3986 §3.2), parsed once and compared in their normal form.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The port of `http` (RFC 9110 §4.2.1).
pub const HTTP_PORT: u16 = 80;
/// The port of `https` (RFC 9110 §4.2.2).
pub const HTTPS_PORT: u16 = 443;

/// An authority without user information. The host is in lower case and without its final dot, which
/// names the same host (RFC 3986 §3.2.2); an IPv6 address is in its canonical form (RFC 5952).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    host: String,
    port: Option<u16>,
}

impl Authority {
    /// Parses `host`, `host:` or `host:port`. Returns `None` for anything that is not a registered name
    /// or an IP address, optionally with a port: user information, spaces, lists, percent-encoding.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']')?;
                let address: Ipv6Addr = address.parse().ok()?;
                let port = match port {
                    "" => None,
                    port => Some(port.strip_prefix(':')?),
                };
                (format!("[{address}]"), port)
            }
            None => {
                let (host, port) = match text.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (text, None),
                };
                (name(host)?, port)
            }
        };
        // An empty port is the default one (RFC 3986 §6.2.3).
        let port = match port {
            None | Some("") => None,
            Some(digits) => Some(number(digits)?),
        };
        Some(Self { host, port })
    }

    /// Returns whether both name the same port of the same host, where a missing port is the default one.
    pub fn is_same(&self, other: &Self, default_port: u16) -> bool {
        self.host == other.host && self.is_same_port(other, default_port)
    }

    /// Returns whether both name the same host, whatever the port.
    pub fn is_same_host(&self, other: &Self) -> bool {
        self.host == other.host
    }

    /// Returns whether the host is an IP address, `localhost`, or a name without a dot. Only the local network
    /// resolves these, so that no other party can point such a name to an address inside it (DNS rebinding).
    pub fn is_local_name(&self) -> bool {
        self.host.starts_with('[')
            || !self.host.contains('.')
            || self.host.parse::<Ipv4Addr>().is_ok()
    }

    /// Returns whether both name the same port, where a missing one is the default one.
    pub fn is_same_port(&self, other: &Self, default_port: u16) -> bool {
        self.port.unwrap_or(default_port) == other.port.unwrap_or(default_port)
    }

    /// Returns whether the host is this machine.
    pub fn is_loopback(&self) -> bool {
        is_loopback_host(&self.host)
    }

    /// Returns the port, if the text contains one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

/// Parses a registered name in ASCII or an IPv4 address.
fn name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_name = !text.is_empty()
        && !text.starts_with('.')
        && !text.ends_with('.')
        && !text.contains("..")
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    is_name.then(|| text.to_ascii_lowercase())
}

/// Parses a port: digits without a sign or leading zeros.
fn number(digits: &str) -> Option<u16> {
    let port: u16 = digits.parse().ok()?;
    (port.to_string() == digits).then_some(port)
}

impl FromStr for Authority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
            .ok_or_else(|| format!("`{text}` is not a host; expected HOST or HOST:PORT"))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Authority {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Authority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// Returns whether a host is loopback: the name `localhost`, or a loopback address.
pub fn is_loopback_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(one: &str, other: &str, default_port: u16) -> bool {
        let parsed = |text| Authority::parse(text).unwrap();
        parsed(one).is_same(&parsed(other), default_port)
    }

    #[test]
    fn equivalent_authorities_are_equal() {
        for (one, other, default_port) in [
            ("id.example.com", "ID.Example.COM", HTTPS_PORT),
            ("id.example.com", "id.example.com:443", HTTPS_PORT),
            ("id.example.com", "id.example.com:", HTTPS_PORT),
            ("id.example.com", "id.example.com.", HTTPS_PORT),
            ("id.example.com", "id.example.com.:443", HTTPS_PORT),
            ("localhost", "localhost:80", HTTP_PORT),
            ("[::1]:8080", "[0:0:0:0:0:0:0:1]:8080", HTTP_PORT),
            ("[::1]", "[::1]:", HTTP_PORT),
            ("[2001:DB8::1]", "[2001:db8::1]:80", HTTP_PORT),
            ("my_host", "my_host:80", HTTP_PORT),
        ] {
            assert!(same(one, other, default_port), "{one} {other}");
        }
        for (one, other, default_port) in [
            ("id.example.com", "id.example.com:80", HTTPS_PORT),
            ("id.example.com", "id.example.com:443", HTTP_PORT),
            ("id.example.com", "id.example.com:8443", HTTPS_PORT),
            ("id.example.com", "id.example.com.evil.test", HTTPS_PORT),
            ("id.example.com", "xid.example.com", HTTPS_PORT),
            ("[::1]", "[::2]", HTTP_PORT),
            ("[::1]", "127.0.0.1", HTTP_PORT),
        ] {
            assert!(!same(one, other, default_port), "{one} {other}");
        }
    }

    #[test]
    fn malformed_authorities_are_rejected() {
        for bad in [
            "",
            ".",
            ":443",
            "..",
            "id.example.com..",
            ".id.example.com",
            "id..example.com",
            "user@id.example.com",
            "user:pw@id.example.com",
            "id.example.com,evil.test",
            "id.example.com evil.test",
            " id.example.com",
            "id.example.com\t",
            "id.example.com/",
            "id.example.com?x",
            "id.example.com#x",
            "id.example.com\\evil.test",
            "https://id.example.com",
            "id%2eexample.com",
            "id.example.com:443:443",
            "id.example.com:+443",
            "id.example.com:0443",
            "id.example.com:443 ",
            "id.example.com:x",
            "id.example.com:65536",
            "::1",
            "[::1",
            "[::1]443",
            "[::1]:x",
            "[fe80::1%25eth0]",
            "[id.example.com]",
            "[]",
            "b\u{fc}cher.example",
        ] {
            assert_eq!(Authority::parse(bad), None, "{bad}");
        }
    }
}
