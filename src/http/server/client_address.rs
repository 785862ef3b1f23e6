//! The client address of a request: the address of the peer, or the one that a trusted proxy forwards (RFC 7239). Names
//! are never looked up.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use actix_web::http::header::HeaderMap;
use actix_web::{HttpMessage, HttpRequest};

use crate::config::{Network, is_in};

/// The address that rate limits, logs and access lists use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

/// A trusted proxy sent an invalid address, or two different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadForwarded;

impl ClientAddress {
    /// Returns the address of a request, as the outermost layer determined it.
    pub fn of(request: &HttpRequest) -> IpAddr {
        request
            .extensions()
            .get::<ClientAddress>()
            .map_or_else(|| peer(request.peer_addr()), |address| address.0)
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
) -> Result<IpAddr, BadForwarded> {
    if !is_in(trusted, peer) {
        return Ok(peer);
    }
    let read = |name: &str, entry: fn(&str) -> Option<IpAddr>| {
        let mut values = headers.get_all(name).peekable();
        values.peek()?;
        let lines: Option<Vec<&str>> = values.map(|value| value.to_str().ok()).collect();
        Some(lines.ok_or(BadForwarded).and_then(|lines| {
            let entries = lines.iter().flat_map(|line| line.split(','));
            first_untrusted(peer, entries.rev().map(|text| entry(text.trim())), trusted)
        }))
    };
    match (read("x-forwarded-for", hop), read("forwarded", element)) {
        (None, None) => Ok(peer),
        (Some(found), None) | (None, Some(found)) => found,
        // A proxy sets one of the two. The other was set by the client.
        (Some(one), Some(other)) if one? == other? => one,
        _ => Err(BadForwarded),
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
    hops: impl Iterator<Item = Option<IpAddr>>,
    trusted: &[Network],
) -> Result<IpAddr, BadForwarded> {
    let mut address = peer;
    for hop in hops {
        address = hop.ok_or(BadForwarded)?;
        if !is_in(trusted, address) {
            break;
        }
    }
    Ok(address)
}

/// Parses an address with or without a port. An IPv6 address with a port is in brackets.
fn hop(text: &str) -> Option<IpAddr> {
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address = text
        .parse::<IpAddr>()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|both| both.ip()))
        .or_else(bracketed)?;
    Some(address.to_canonical())
}

/// Parses an element of `Forwarded` (RFC 7239 §4): `for=192.0.2.60;proto=https`, `for="[2001:db8::1]:4711"`.
fn element(text: &str) -> Option<IpAddr> {
    let mut nodes = text.split(';').filter_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(value)
    });
    let (node, None) = (nodes.next()?, nodes.next()) else {
        return None;
    };
    let quoted = node.strip_prefix('"').map(|rest| rest.strip_suffix('"'));
    hop(quoted.unwrap_or(Some(node))?)
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

    use super::*;

    fn seen(peer: &str, lines: &[(&str, &str)]) -> Result<String, BadForwarded> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let trusted = ["10.0.0.0/8", "2001:db8:1::/48"].map(|net| net.parse().unwrap());
        resolve(peer.parse().unwrap(), &headers, &trusted).map(|address| address.to_string())
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

    #[test]
    fn invalid_addresses_are_rejected() {
        let cases: [&[(&str, &str)]; 8] = [
            &[("x-forwarded-for", "not-an-ip")],
            &[("x-forwarded-for", "")],
            &[("x-forwarded-for", "203.0.113.9, ")],
            &[("x-forwarded-for", "203.0.113.9, unknown, 10.0.0.2")],
            &[("forwarded", "for=_hidden")],
            &[("forwarded", "proto=https")],
            &[("forwarded", "for=1.1.1.1;for=2.2.2.2")],
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
