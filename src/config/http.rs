//! Section `http`: what stands between the browser and this server.

use serde::{Deserialize, Serialize};

/// Proxies and host names.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Addresses of the TLS proxies in front (CIDR). Empty by default. Naming them allows an https
    /// issuer over a plain listener that is not loopback.
    pub trusted_proxies: Vec<String>,
    /// Host names that are served besides the issuer's own, for back channels inside a container
    /// network. Empty by default.
    pub accept_hosts: Vec<String>,
    /// A container runtime publishes the port on this machine's loopback only, so a plain http
    /// issuer is safe although the bind is not loopback. Default false.
    pub published_on_loopback: bool,
}
