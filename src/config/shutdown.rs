//! Section `shutdown`: the graceful shutdown of a node.

use serde::{Deserialize, Serialize};

use super::{ConfigError, HumanDuration};

const MAX: HumanDuration = HumanDuration::secs(300);

/// The phases of a graceful shutdown. A service manager must wait longer than both together.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// Time that a node keeps serving while `/readyz` responds with 503, so that load balancers notice.
    /// Default 5s; at most 5m; `0s` for a node without a load balancer.
    pub delay: HumanDuration,
    /// Maximum time for running requests to finish. Default 10s; at most 5m.
    pub drain: HumanDuration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            delay: HumanDuration::secs(5),
            drain: HumanDuration::secs(10),
        }
    }
}

impl Shutdown {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        super::limits::caps(&[("shutdown.drain", self.drain, MAX)])?;
        if self.delay > MAX {
            return Err(ConfigError::key(
                "shutdown.delay",
                format!("{} is out of range; it must be at most {MAX}", self.delay),
            ));
        }
        Ok(())
    }
}
