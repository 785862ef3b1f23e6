//! Addresses to listen on: a host and port, or a Unix socket.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::serde_as_text;

/// An address to listen on, written as `host:port`, `:port` (on localhost) or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address on the network.
    Tcp {
        /// A host name or IP address; IPv6 in brackets.
        host: String,
        /// The port. If 0, the system chooses one.
        port: u16,
    },
    /// The path of a Unix socket. Only programs on this host can connect.
    Unix(PathBuf),
}

serde_as_text!(Address);

impl Address {
    /// Creates an address from host and port.
    pub fn new(host: &str, port: u16) -> Self {
        Self::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    /// Returns the host; `localhost` for a Unix socket.
    pub fn host(&self) -> &str {
        match self {
            Self::Tcp { host, .. } => host,
            Self::Unix(_) => "localhost",
        }
    }

    /// Returns the port, if there is one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp { port, .. } => Some(*port),
            Self::Unix(_) => None,
        }
    }

    /// Returns the host without the brackets of an IPv6 address.
    pub fn bare_host(&self) -> &str {
        self.host().trim_matches(['[', ']'])
    }

    /// Returns whether only programs on this host can connect: a Unix socket, `localhost` or a
    /// loopback address.
    pub fn is_local(&self) -> bool {
        let host = self.bare_host();
        host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid =
            || format!("invalid address `{text}`; expected host:port, :port or unix:PATH");
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(invalid()),
                path => Ok(Self::Unix(PathBuf::from(path))),
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let host = if host.is_empty() { "localhost" } else { host };
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        if host.contains('/') || (host.contains(':') && !is_bracketed) {
            return Err(invalid());
        }
        Ok(Self::new(host, port.parse().map_err(|_| invalid())?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_alone_is_on_localhost() {
        let address: Address = ":9180".parse().unwrap();
        assert_eq!(address.to_string(), "localhost:9180");
    }

    #[test]
    fn only_loopback_and_unix_addresses_are_local() {
        for (text, local) in [
            ("127.0.0.1:9180", true),
            ("127.1.2.3:9180", true),
            ("localhost:9180", true),
            ("[::1]:9180", true),
            ("unix:/run/guard.sock", true),
            ("0.0.0.0:9180", false),
            ("[::]:9180", false),
            ("10.0.0.0:9180", false),
            ("guard:9180", false),
            ("localhost.example:9180", false),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.is_local(), local, "{text}");
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn address_requires_host_and_port_or_path() {
        for bad in [
            "",
            "9180",
            "::1:9180",
            "localhost:",
            "localhost:70000",
            "unix:",
            "http://localhost:1",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
