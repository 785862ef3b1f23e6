//! Section `listen`: the two listeners.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ConfigError;

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

    fn check(&self, key: &str, address: &Address) -> Result<(), ConfigError> {
        if self.certificate.is_some() && matches!(address, Address::Unix(_)) {
            return Err(ConfigError::key(
                key,
                format!("{address} is a Unix socket, which speaks plain HTTP"),
            ));
        }
        if self.certificate.is_some() == self.key.is_some() {
            return Ok(());
        }
        Err(ConfigError::key(
            key,
            "needs both `certificate` and `key`, or neither",
        ))
    }
}

impl Listen {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.tls.check("listen.tls", &self.public)?;
        self.management_tls
            .check("listen.management_tls", &self.management)
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

/// `host:port`, or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// On the network.
    Tcp {
        /// A name or an address; IPv6 in brackets.
        host: String,
        /// The port; 0 lets the system choose.
        port: u16,
    },
    /// A Unix socket; who connects is on this machine.
    Unix(PathBuf),
}

impl Address {
    /// From host and port.
    pub fn new(host: &str, port: u16) -> Self {
        Self::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    /// The host; that of a Unix socket is this machine.
    pub fn host(&self) -> &str {
        match self {
            Self::Tcp { host, .. } => host,
            Self::Unix(_) => "localhost",
        }
    }

    /// The port, if it has one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp { port, .. } => Some(*port),
            Self::Unix(_) => None,
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no address; write host:port or unix:PATH");
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(wrong()),
                path => Ok(Self::Unix(PathBuf::from(path))),
            };
        }
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
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
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
