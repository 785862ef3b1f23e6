//! Section `listen`: the two listeners.

use std::path::PathBuf;

use portcullis_runtime::Address;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// The addresses of the listeners and their certificates.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// Address of the public listener: protocol and pages. Default `localhost:8080`, which is both loopback addresses.
    pub public: Address,
    /// Address of the management listener: health, version and metrics. Default `127.0.0.1:9000`.
    pub management: Address,
    /// Certificate of the public listener. Without one, it serves plain HTTP.
    pub tls: Tls,
    /// Certificate of the management listener.
    pub management_tls: Tls,
}

/// A certificate with its private key. The files are read again when they change.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The certificate chain, leaf first (PEM).
    pub certificate: Option<PathBuf>,
    /// The private key (PEM). Only its owner may read the file.
    pub key: Option<PathBuf>,
}

impl Tls {
    /// Returns both files if the listener uses TLS.
    pub fn files(&self) -> Option<(PathBuf, PathBuf)> {
        self.certificate.clone().zip(self.key.clone())
    }

    fn check(&self, key: &str, address: &Address) -> Result<(), ConfigError> {
        if self.certificate.is_some() && matches!(address, Address::Unix(_)) {
            return Err(ConfigError::key(
                key,
                format!("{address} is a Unix socket, which serves plain HTTP"),
            ));
        }
        if self.certificate.is_some() == self.key.is_some() {
            return Ok(());
        }
        Err(ConfigError::key(
            key,
            "requires both `certificate` and `key`, or neither",
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
