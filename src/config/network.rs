//! Networks as an operator writes them: `10.0.0.0/8`, `2001:db8::/32`, or one address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(IpNet);

impl Network {
    /// Returns the network of the given prefix length that contains `address`.
    pub fn around(address: IpAddr, v4_bits: u8, v6_bits: u8) -> Self {
        let address = address.to_canonical();
        let bits = if address.is_ipv4() { v4_bits } else { v6_bits };
        Self(IpNet::new(address, bits).map_or(IpNet::from(address), |net| net.trunc()))
    }

    /// Returns whether the network contains `address`. An IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2) is
    /// treated as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// Returns whether the network contains all addresses of its family.
    pub fn is_everything(&self) -> bool {
        self.0.prefix_len() == 0
    }
}

/// Returns whether one of `networks` contains `address`.
pub fn is_in(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || {
            format!(
                "invalid network `{text}`; expected a value such as 10.0.0.0/8, 2001:db8::/32 or an address"
            )
        };
        let network = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address.to_canonical()),
            Err(_) => text.parse::<IpNet>().map_err(|_| invalid())?,
        };
        if network.trunc() != network {
            return Err(format!(
                "`{text}` is an address inside its network; use {}, or the address alone",
                network.trunc()
            ));
        }
        Ok(Self(network))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_contains_ipv4_and_mapped_addresses() {
        let network: Network = "10.1.0.0/16".parse().unwrap();
        for inside in ["10.1.2.3", "::ffff:10.1.2.3"] {
            assert!(network.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["10.2.0.1", "::1", "2001:db8::1"] {
            assert!(!network.contains(outside.parse().unwrap()), "{outside}");
        }
        let one: Network = "::ffff:192.0.2.7".parse().unwrap();
        assert_eq!(one.to_string(), "192.0.2.7/32");
        assert!(one.contains("192.0.2.7".parse().unwrap()));
    }

    #[test]
    fn ambiguous_networks_are_rejected() {
        for bad in [
            "10.1.2.3/8",
            "2001:db8::1/32",
            "10.0.0.0/33",
            "proxy.example",
            "",
            "10.0.0",
        ] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
