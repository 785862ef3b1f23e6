//! Addresses to listen on: a host and port, or a Unix socket.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

/// An address to listen on, written as `host:port` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Address {
    /// A host name or IP address, and a port.
    Tcp(String, u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// Returns whether only programs on this host can connect: a Unix socket, `localhost` or a
    /// loopback address.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(host, _) => {
                host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
            }
        }
    }
}

impl Default for Address {
    fn default() -> Self {
        Self::Tcp("127.0.0.1".to_owned(), 9180)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            let is_valid = path.is_absolute() && path.file_name().is_some();
            return is_valid.then_some(Self::Unix(path)).ok_or_else(|| {
                format!("invalid address `{text}`; the path of a socket must be absolute")
            });
        }
        let invalid = || format!("invalid address `{text}`; expected host:port or unix:/path");
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().map_err(|_| invalid())?;
        let ipv6 = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        match ipv6 {
            Some(host) => Ok(Self::Tcp(host.to_owned(), port)),
            None if host.is_empty() || host.contains([':', '/']) => Err(invalid()),
            None => Ok(Self::Tcp(host.to_owned(), port)),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("10.0.0.1:9180", false),
            ("guard:9180", false),
            ("localhost.example:9180", false),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.is_local(), local, "{text}");
            assert_eq!(address.to_string(), text);
        }
        for bad in [
            "",
            "9180",
            ":9180",
            "::1:9180",
            "localhost:",
            "localhost:70000",
            "unix:",
            "unix:guard.sock",
            "unix:/",
            "http://localhost:1",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
