//! The client address of a request: the address of the peer, or the one that a trusted proxy forwards (RFC 7239). Names
//! are never looked up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use actix_web::http::header::HeaderMap;
use actix_web::{HttpMessage, HttpRequest};

use crate::config::{Network, is_in};

/// The client of a request, for rate limits, logs and access lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub Located);

/// What a trusted proxy says about the client of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// The address of the client.
    Client(IpAddr),
    /// The client is unknown: this trusted address does not name it (RFC 7239 §6.2, §6.3).
    Behind(IpAddr),
}

impl Located {
    /// Returns the address that rate limits charge.
    pub fn charged(self) -> IpAddr {
        match self {
            Self::Client(address) | Self::Behind(address) => address,
        }
    }
}

/// An entry of a forwarding header.
enum Hop {
    Address(IpAddr),
    /// A legal entry without a usable address: `unknown`, an obfuscated identifier, an address with a zone, or nothing.
    Unknown,
    Invalid,
}

/// A trusted proxy sent something that the grammar does not allow, or two different addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadForwarded;

impl ClientAddress {
    /// Returns the address that a request is charged to and logged with. It is that of the proxy if the client is
    /// unknown.
    pub fn of(request: &HttpRequest) -> IpAddr {
        Self::located(request).charged()
    }

    /// Returns the address of the client, or `None` if it is unknown. A rule about networks needs this one: the network
    /// of the proxy is not that of the client.
    pub fn known(request: &HttpRequest) -> Option<IpAddr> {
        match Self::located(request) {
            Located::Client(address) => Some(address),
            Located::Behind(_) => None,
        }
    }

    /// Returns what the outermost layer determined.
    fn located(request: &HttpRequest) -> Located {
        let found = request.extensions().get::<Self>().map(|found| found.0);
        found.unwrap_or_else(|| Located::Client(peer(request.peer_addr())))
    }
}

/// Returns the address of the peer of a connection. A Unix socket has none and counts as this machine.
pub fn peer(address: Option<SocketAddr>) -> IpAddr {
    address.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| {
        peer.ip().to_canonical()
    })
}

/// Determines the client address of a request from `peer`. Forwarded addresses are read from right to left: each proxy
/// appends the address of its peer, so everything to the left of the first untrusted address may be forged.
///
/// # Errors
/// [`BadForwarded`].
pub fn resolve(
    peer: IpAddr,
    headers: &HeaderMap,
    trusted: &[Network],
) -> Result<Located, BadForwarded> {
    if !is_in(trusted, peer) {
        return Ok(Located::Client(peer));
    }
    let read = |name: &str, entry: fn(&str) -> Hop| {
        let mut values = headers.get_all(name).peekable();
        values.peek()?;
        let lines: Option<Vec<&str>> = values.map(|value| value.to_str().ok()).collect();
        Some(lines.ok_or(BadForwarded).and_then(|lines| {
            let entries = lines.iter().flat_map(|line| split(line, ','));
            let entries: Vec<&str> = entries.collect();
            first_untrusted(peer, entries.into_iter().rev().map(entry), trusted)
        }))
    };
    match (read("x-forwarded-for", node), read("forwarded", element)) {
        (None, None) => Ok(Located::Client(peer)),
        (Some(found), None) | (None, Some(found)) => found,
        // A proxy sets one of the two. The other was set by the client.
        (Some(one), Some(other)) => match (one?, other?) {
            (one, other) if one == other => Ok(one),
            (Located::Client(_), Located::Client(_)) => Err(BadForwarded),
            _ => Ok(Located::Behind(peer)),
        },
    }
}

/// Returns whether a peer in a private network sends forwarding headers although it is not a trusted proxy: it is
/// probably missing in the configuration. Peers in public networks may send anything.
pub fn is_undeclared_proxy(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> bool {
    let is_near = match peer {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    };
    let forwards = headers.contains_key("x-forwarded-for") || headers.contains_key("forwarded");
    is_near && forwards && !is_in(trusted, peer)
}

fn first_untrusted(
    peer: IpAddr,
    hops: impl Iterator<Item = Hop>,
    trusted: &[Network],
) -> Result<Located, BadForwarded> {
    let mut address = peer;
    for hop in hops {
        address = match hop {
            Hop::Address(address) => address,
            Hop::Unknown => return Ok(Located::Behind(address)),
            Hop::Invalid => return Err(BadForwarded),
        };
        if !is_in(trusted, address) {
            break;
        }
    }
    Ok(Located::Client(address))
}

/// Splits a text at a delimiter outside of quoted strings, and trims the parts.
fn split(text: &str, delimiter: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let parts = text.split(move |c| {
        let is_literal = is_escaped;
        is_escaped = is_quoted && c == '\\' && !is_literal;
        is_quoted ^= c == '"' && !is_literal;
        c == delimiter && !is_quoted
    });
    parts.map(str::trim)
}

/// Parses a node (RFC 7239 §6): an address or a name, with or without a port. An IPv6 address with a port is in
/// brackets, but `X-Forwarded-For` has it without brackets too.
fn node(text: &str) -> Hop {
    if text.is_empty() {
        return Hop::Unknown;
    }
    let is_port = |port: &str| {
        is_obfuscated(port)
            || (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit())
    };
    let name = match text.rsplit_once(':') {
        Some((name, port)) if is_port(port) && !name.contains(':') => name,
        Some((name, port)) if is_port(port) && name.ends_with(']') => name,
        _ => text,
    };
    let bare = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    let bare = bare.unwrap_or(name);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Hop::Address(address.to_canonical());
    }
    let has_zone = bare
        .split_once('%')
        .is_some_and(|(address, zone)| address.parse::<Ipv6Addr>().is_ok() && !zone.is_empty());
    match has_zone || name.eq_ignore_ascii_case("unknown") || is_obfuscated(name) {
        true => Hop::Unknown,
        false => Hop::Invalid,
    }
}

/// Returns whether a text is an obfuscated identifier (RFC 7239 §6.3).
fn is_obfuscated(text: &str) -> bool {
    text.strip_prefix('_').is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    })
}

/// Parses an element of `Forwarded` (RFC 7239 §4): `for=192.0.2.60;proto=https`, `for="[2001:db8::1]:4711"`.
fn element(text: &str) -> Hop {
    let mut found = Hop::Unknown;
    let mut is_found = false;
    for pair in split(text, ';').filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Hop::Invalid;
        };
        let Some(value) = value_of(value).filter(|_| is_token(name)) else {
            return Hop::Invalid;
        };
        if name.eq_ignore_ascii_case("for") && std::mem::replace(&mut is_found, true) {
            return Hop::Invalid;
        }
        if name.eq_ignore_ascii_case("for") {
            found = match value.is_empty() {
                true => Hop::Invalid,
                false => node(value),
            };
        }
    }
    found
}

/// Returns the content of a token or quoted string. One with escapes is no address, so it is returned as it is. Real
/// proxies send the brackets and colons of an address without quotes too.
fn value_of(text: &str) -> Option<&str> {
    match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"'),
        None => {
            let is_value = |b: u8| is_token_byte(b) || b"[]:".contains(&b);
            (!text.is_empty() && text.bytes().all(is_value)).then_some(text)
        }
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// RFC 9110 §5.6.2.
fn is_token_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

    use super::*;

    fn locate(peer: &str, lines: &[(&str, &str)]) -> Result<Located, BadForwarded> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let trusted = ["10.0.0.0/8", "2001:db8:1::/48"].map(|net| net.parse().unwrap());
        resolve(peer.parse().unwrap(), &headers, &trusted)
    }

    fn seen(peer: &str, lines: &[(&str, &str)]) -> Result<String, BadForwarded> {
        match locate(peer, lines)? {
            Located::Client(address) => Ok(address.to_string()),
            Located::Behind(proxy) => Ok(format!("behind {proxy}")),
        }
    }

    #[test]
    fn untrusted_peer_is_the_client() {
        let forged = [("x-forwarded-for", "203.0.113.9"), ("forwarded", "for=x")];
        assert_eq!(seen("192.0.2.1", &forged), Ok("192.0.2.1".to_owned()));
    }

    #[test]
    fn right_most_untrusted_address_is_the_client() {
        let cases: [(&[(&str, &str)], &str); 10] = [
            (&[], "10.0.0.1"),
            (&[("x-forwarded-for", "203.0.113.9")], "203.0.113.9"),
            (
                &[("x-forwarded-for", "1.1.1.1, 203.0.113.9, 10.0.0.7")],
                "203.0.113.9",
            ),
            (
                &[("x-forwarded-for", "nonsense, 203.0.113.9")],
                "203.0.113.9",
            ),
            (
                &[
                    ("x-forwarded-for", "1.1.1.1"),
                    ("x-forwarded-for", "203.0.113.9"),
                ],
                "203.0.113.9",
            ),
            (&[("x-forwarded-for", "10.0.0.9")], "10.0.0.9"),
            (&[("x-forwarded-for", "[2001:db8::7]:443")], "2001:db8::7"),
            (&[("x-forwarded-for", "::ffff:203.0.113.9")], "203.0.113.9"),
            (
                &[(
                    "forwarded",
                    "for=1.1.1.1, FOR=\"[2001:db8::7]:1\";proto=https",
                )],
                "2001:db8::7",
            ),
            (
                &[
                    ("x-forwarded-for", "203.0.113.9"),
                    ("forwarded", "for=203.0.113.9"),
                ],
                "203.0.113.9",
            ),
        ];
        for (lines, wanted) in cases {
            assert_eq!(seen("10.0.0.1", lines), Ok(wanted.to_owned()), "{lines:?}");
        }
    }

    #[test]
    fn undeclared_proxy_is_in_a_private_network_and_forwards() {
        let headers_with = |name: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
            headers
        };
        let is_undeclared = |peer: &str, headers: &HeaderMap| {
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            is_undeclared_proxy(peer.parse().unwrap(), headers, &trusted)
        };
        let forwarded = headers_with("x-forwarded-for");
        for peer in ["127.0.0.1", "172.17.0.1", "192.168.1.1", "::1", "fd00::1"] {
            assert!(is_undeclared(peer, &forwarded), "{peer}");
            assert!(is_undeclared(peer, &headers_with("forwarded")), "{peer}");
            assert!(!is_undeclared(peer, &headers_with("x-real-ip")), "{peer}");
        }
        for peer in ["10.0.0.1", "203.0.113.9", "2001:db8::1"] {
            assert!(!is_undeclared(peer, &forwarded), "{peer}");
        }
    }

    /// RFC 7239 §4, §6, and the forms of `X-Forwarded-For` that proxies send.
    #[test]
    fn legal_entries_without_an_address_name_no_client() {
        let cases: [(&[(&str, &str)], &str); 16] = [
            (
                &[("x-forwarded-for", "203.0.113.7, unknown")],
                "behind 10.0.0.1",
            ),
            (
                &[("x-forwarded-for", "203.0.113.7, unknown, 10.0.0.2")],
                "behind 10.0.0.2",
            ),
            (&[("x-forwarded-for", "")], "behind 10.0.0.1"),
            (&[("x-forwarded-for", "203.0.113.7, ")], "behind 10.0.0.1"),
            (&[("x-forwarded-for", "fe80::1%eth0")], "behind 10.0.0.1"),
            (&[("forwarded", "for=_hidden")], "behind 10.0.0.1"),
            (&[("forwarded", "for=_a.b-c:_port")], "behind 10.0.0.1"),
            (
                &[("forwarded", "for=Unknown;proto=https")],
                "behind 10.0.0.1",
            ),
            (&[("forwarded", "for=\"unknown:4711\"")], "behind 10.0.0.1"),
            (
                &[("forwarded", "by=203.0.113.43;proto=https")],
                "behind 10.0.0.1",
            ),
            (&[("forwarded", "")], "behind 10.0.0.1"),
            (
                &[
                    ("x-forwarded-for", "203.0.113.7"),
                    ("forwarded", "proto=https"),
                ],
                "behind 10.0.0.1",
            ),
            (
                &[("x-forwarded-for", "unknown"), ("forwarded", "for=unknown")],
                "behind 10.0.0.1",
            ),
            // These name one.
            (
                &[("forwarded", "for=192.0.2.60:_port; by=\"a,;\\\"b\"")],
                "192.0.2.60",
            ),
            (
                &[("forwarded", "for=\"[2001:db8:cafe::17]:4711\";;proto=http")],
                "2001:db8:cafe::17",
            ),
            (
                &[("forwarded", "host=\"a, for=1.1.1.1\";for=192.0.2.60")],
                "192.0.2.60",
            ),
        ];
        for (lines, wanted) in cases {
            assert_eq!(seen("10.0.0.1", lines), Ok(wanted.to_owned()), "{lines:?}");
        }
    }

    #[test]
    fn invalid_addresses_are_rejected() {
        let cases: [&[(&str, &str)]; 13] = [
            &[("x-forwarded-for", "not-an-ip")],
            &[("x-forwarded-for", "203.0.113.9 10.0.0.2")],
            &[("x-forwarded-for", "_")],
            &[("x-forwarded-for", "300.0.0.1")],
            &[("x-forwarded-for", "203.0.113.9:port")],
            &[("forwarded", "for=not-an-ip")],
            &[("forwarded", "for=")],
            &[("forwarded", "for=\"203.0.113.9")],
            &[("forwarded", "203.0.113.9")],
            &[("forwarded", "fo r=203.0.113.9")],
            &[("forwarded", "for=1.1.1.1;for=2.2.2.2")],
            &[("forwarded", "for=1.1.1.1;for=unknown")],
            &[
                ("x-forwarded-for", "203.0.113.9"),
                ("forwarded", "for=198.51.100.7"),
            ],
        ];
        for lines in cases {
            assert_eq!(seen("10.0.0.1", lines), Err(BadForwarded), "{lines:?}");
        }
    }
}
