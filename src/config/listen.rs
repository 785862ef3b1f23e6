//! Section `listen`: the two listeners.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Refused;

/// Where the server listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// Protocol and pages. Default `localhost:8080`, which is both loopback addresses.
    pub public: Address,
    /// Health and version. Default `127.0.0.1:9000`.
    pub management: Address,
    /// The certificate of the public listener. Without one it speaks plain HTTP.
    pub tls: Tls,
    /// The certificate of the management listener.
    pub management_tls: Tls,
}

/// A certificate with its key; both or neither. Read again when they change.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The certificate and what stands above it, leaf first (PEM).
    pub certificate: Option<PathBuf>,
    /// Its private key (PEM); others must not be able to read the file.
    pub key: Option<PathBuf>,
}

impl Tls {
    /// Both files, if the listener speaks TLS.
    pub fn files(&self) -> Option<(PathBuf, PathBuf)> {
        self.certificate.clone().zip(self.key.clone())
    }

    fn check(&self, key: &str) -> Result<(), Refused> {
        if self.certificate.is_some() == self.key.is_some() {
            return Ok(());
        }
        Err(Refused::key(
            key,
            "needs both `certificate` and `key`, or neither",
        ))
    }
}

impl Listen {
    pub(super) fn check(&self) -> Result<(), Refused> {
        self.tls.check("listen.tls")?;
        self.management_tls.check("listen.management_tls")
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            public: Address::new("localhost", 8_080),
            management: Address::new("127.0.0.1", 9_000),
            tls: Tls::default(),
            management_tls: Tls::default(),
        }
    }
}

/// `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an address; IPv6 in brackets.
    pub host: String,
    /// The port; 0 lets the system choose.
    pub port: u16,
}

impl Address {
    /// From its parts.
    pub fn new(host: &str, port: u16) -> Self {
        Self {
            host: host.to_owned(),
            port,
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no address; write host:port");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || (host.contains(':') && !bracketed) {
            return Err(wrong());
        }
        Ok(Self::new(host, port.parse().map_err(|_| wrong())?))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}
