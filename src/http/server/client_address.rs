//! The address that a request comes from: the peer's, or what a proxy that we trust says of it
//! (RFC 7239). Never a look-up of names.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use actix_web::http::header::HeaderMap;
use actix_web::{HttpMessage, HttpRequest};

use crate::config::{Network, is_in};

/// The address that buckets, logs and access lists see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

/// A trusted proxy says something that is no address, or says two things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadForwarded;

impl ClientAddress {
    /// The address of a request, as the outermost layer found it.
    pub fn of(request: &HttpRequest) -> IpAddr {
        request
            .extensions()
            .get::<ClientAddress>()
            .map_or_else(|| peer(request.peer_addr()), |address| address.0)
    }
}

/// The address of the other end of the connection. A Unix socket has none: it is this machine.
pub fn peer(address: Option<SocketAddr>) -> IpAddr {
    address.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| {
        peer.ip().to_canonical()
    })
}

/// Who sent a request that `peer` handed over. Read from right to left: each proxy appends the address
/// that it saw, so what stands left of the first stranger is the stranger's own invention.
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
            first_stranger(peer, entries.rev().map(|text| entry(text.trim())), trusted)
        }))
    };
    match (read("x-forwarded-for", hop), read("forwarded", element)) {
        (None, None) => Ok(peer),
        (Some(found), None) | (None, Some(found)) => found,
        // A proxy writes one of the two. Whatever the other says, it is not the proxy that said it.
        (Some(one), Some(other)) if one? == other? => one,
        _ => Err(BadForwarded),
    }
}

/// Whether somebody in our own network passes an address on whom nobody declared: a proxy that was
/// forgotten. What strangers from afar write there is their own business.
pub fn is_undeclared_proxy(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> bool {
    let near = match peer {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    };
    let tells = headers.contains_key("x-forwarded-for") || headers.contains_key("forwarded");
    near && tells && !is_in(trusted, peer)
}

fn first_stranger(
    peer: IpAddr,
    hops: impl Iterator<Item = Option<IpAddr>>,
    trusted: &[Network],
) -> Result<IpAddr, BadForwarded> {
    let mut seen = peer;
    for hop in hops {
        seen = hop.ok_or(BadForwarded)?;
        if !is_in(trusted, seen) {
            break;
        }
    }
    Ok(seen)
}

/// An address, with or without a port; IPv6 with a port in brackets.
fn hop(text: &str) -> Option<IpAddr> {
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address = text
        .parse::<IpAddr>()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|both| both.ip()))
        .or_else(bracketed)?;
    Some(address.to_canonical())
}

/// RFC 7239 §4: `for=192.0.2.60;proto=https`, `for="[2001:db8::1]:4711"`.
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
    fn a_stranger_is_who_it_is() {
        let forged = [("x-forwarded-for", "203.0.113.9"), ("forwarded", "for=x")];
        assert_eq!(seen("192.0.2.1", &forged), Ok("192.0.2.1".to_owned()));
    }

    #[test]
    fn the_right_most_address_that_is_no_proxy() {
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
    fn a_forgotten_proxy_is_near_and_tells() {
        let tells = |name: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
            headers
        };
        let forgotten = |peer: &str, headers: &HeaderMap| {
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            is_undeclared_proxy(peer.parse().unwrap(), headers, &trusted)
        };
        let forwarded = tells("x-forwarded-for");
        for peer in ["127.0.0.1", "172.17.0.1", "192.168.1.1", "::1", "fd00::1"] {
            assert!(forgotten(peer, &forwarded), "{peer}");
            assert!(forgotten(peer, &tells("forwarded")), "{peer}");
            assert!(!forgotten(peer, &tells("x-real-ip")), "{peer}");
        }
        for peer in ["10.0.0.1", "203.0.113.9", "2001:db8::1"] {
            assert!(!forgotten(peer, &forwarded), "{peer}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
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
