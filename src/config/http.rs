//! Section `http`: the proxies, host names and networks of requests.

use serde::{Deserialize, Serialize};

use super::{Authority, ConfigError, HTTP_PORT, HTTPS_PORT, Network};

/// Proxies, host names and networks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Addresses of the reverse proxies (CIDR). Empty by default. `X-Forwarded-For` and `Forwarded` are read
    /// from these peers only. With a proxy, an https issuer may use a plain HTTP listener that is not loopback.
    pub trusted_proxies: Vec<Network>,
    /// Hosts, optionally with a port, that are served besides the issuer's own, for back channels inside a
    /// container network. A missing port, 80 and 443 are equivalent. Empty by default.
    pub accept_hosts: Vec<Authority>,
    /// Whether a container runtime publishes the port on loopback only, so that a plain http issuer is safe
    /// although the listener's address is not loopback. Default false.
    pub published_on_loopback: bool,
    /// Networks that the public listener serves. Empty (default) means all.
    pub allow: Vec<Network>,
    /// Networks that the public listener does not serve, even if `allow` contains them. Empty by default.
    pub deny: Vec<Network>,
}

impl Http {
    /// Returns whether `authority` is one of `accept_hosts`. The scheme of a back channel is not known, since
    /// a proxy may terminate TLS, so either default port may be written out.
    pub fn accepts_host(&self, authority: &Authority) -> bool {
        let is_same = |known: &Authority, port| known.is_same(authority, port);
        self.accept_hosts
            .iter()
            .any(|known| is_same(known, HTTP_PORT) || is_same(known, HTTPS_PORT))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if let Some(all) = self.trusted_proxies.iter().find(|net| net.is_everything()) {
            return Err(ConfigError::key(
                "http.trusted_proxies",
                format!(
                    "{all} trusts all clients, so that each could claim any address; list the addresses of the proxies"
                ),
            ));
        }
        Ok(())
    }
}
