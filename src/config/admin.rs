//! Section `admin`: access to the admin API.

use serde::{Deserialize, Serialize};

use super::Network;

/// Networks that may use the admin API.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Networks whose requests for `/api/` the management listener serves, regardless of its address.
    /// Default: loopback.
    pub allow: Vec<Network>,
}

impl Default for Admin {
    fn default() -> Self {
        let loopback = ["127.0.0.0/8", "::1"];
        Self {
            allow: loopback
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
        }
    }
}
