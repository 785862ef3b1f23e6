//! Section `http`: what stands between the browser and this server.

use serde::{Deserialize, Serialize};

use super::{Network, Refused};

/// Proxies, host names and networks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Addresses of the proxies in front (CIDR). Empty by default. `X-Forwarded-For` and `Forwarded`
    /// are read from these peers only. Naming them allows an https issuer over a plain listener that
    /// is not loopback.
    pub trusted_proxies: Vec<Network>,
    /// Host names that are served besides the issuer's own, for back channels inside a container
    /// network. Empty by default.
    pub accept_hosts: Vec<String>,
    /// A container runtime publishes the port on this machine's loopback only, so a plain http
    /// issuer is safe although the bind is not loopback. Default false.
    pub published_on_loopback: bool,
    /// Networks that the public listener serves; empty (default) is all.
    pub allow: Vec<Network>,
    /// Networks that it does not serve, whatever `allow` says. Empty by default.
    pub deny: Vec<Network>,
}

impl Http {
    pub(super) fn check(&self) -> Result<(), Refused> {
        if let Some(all) = self.trusted_proxies.iter().find(|net| net.is_everything()) {
            return Err(Refused::key(
                "http.trusted_proxies",
                format!(
                    "{all} trusts everybody, so that anybody could name any address as their own; name the proxies"
                ),
            ));
        }
        Ok(())
    }
}
