//! Section `outbound`: requests of the server to URLs that clients or administrators supply.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Host;

use super::{ConfigError, Network};

/// What the server may reach in addition to https on port 443 of public addresses, for URLs that an administrator
/// registered.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outbound {
    /// Additional destinations.
    pub allow: Vec<Destination>,
    /// Additional certificate authorities (PEM).
    pub ca_file: Option<PathBuf>,
}

impl Outbound {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.certificate_authorities().map(|_| ())
    }

    /// Reads the additional certificate authorities, in PEM.
    ///
    /// # Errors
    /// [`ConfigError`]: the file cannot be read.
    pub fn certificate_authorities(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        let Some(path) = &self.ca_file else {
            return Ok(None);
        };
        let read = std::fs::read(path);
        read.map(Some).map_err(|error| {
            let why = format!("cannot read {}: {error}", path.display());
            ConfigError::key("outbound.ca_file", why)
        })
    }
}

/// A destination that an operator allows: a network or a host, with a port. Written as
/// `10.0.0.0/8:443`, `[fd00::/8]:443` or `jwks.internal.example:8443`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    host: AllowedHost,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum AllowedHost {
    Network(Network),
    Name(String),
}

impl Destination {
    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns whether it includes `address`, which `host` resolved to, with `port`.
    pub fn includes(&self, host: &str, address: IpAddr, port: u16) -> bool {
        self.port == port
            && match &self.host {
                AllowedHost::Network(network) => network.contains(address),
                AllowedHost::Name(name) => name.eq_ignore_ascii_case(host),
            }
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || {
            format!(
                "invalid destination `{text}`; expected NETWORK:PORT, [NETWORK]:PORT or HOST:PORT"
            )
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().map_err(|_| invalid())?;
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host = match bracketed.unwrap_or(host).parse::<Network>() {
            Ok(network) => AllowedHost::Network(network),
            Err(_) => match Host::parse(host) {
                Ok(Host::Domain(name)) if bracketed.is_none() => AllowedHost::Name(name),
                _ => return Err(invalid()),
            },
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = match &self.host {
            AllowedHost::Network(network) => network.to_string(),
            AllowedHost::Name(name) => name.clone(),
        };
        match host.contains(':') {
            true => write!(f, "[{host}]:{}", self.port),
            false => write!(f, "{host}:{}", self.port),
        }
    }
}

impl Serialize for Destination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destination_requires_network_or_host_and_port() {
        for good in [
            "10.0.0.0/8:443",
            "[fd00::/8]:443",
            "jwks.internal.example:8443",
        ] {
            let read = good.parse::<Destination>().unwrap();
            assert_eq!(read.to_string(), good);
        }
        for bad in [
            "",
            "10.0.0.0/8",
            "example.com",
            "example.com:x",
            "[a]:443",
            ":443",
        ] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
    }
}
