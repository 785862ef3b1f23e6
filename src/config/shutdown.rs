//! Section `shutdown`: how a node is stopped.

use serde::{Deserialize, Serialize};

use super::{ConfigError, HumanDuration};

const LONGEST: HumanDuration = HumanDuration::secs(300);

/// The time of a stop. A service manager must wait longer than both together.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long a node that says 503 on `/readyz` goes on serving, for load balancers to see it.
    /// Default 5s; at most 5m; `0s` for a node that nothing stands in front of.
    pub delay: HumanDuration,
    /// How long, at most, what runs is given to finish. Default 10s; at most 5m.
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
        super::limits::caps(&[("shutdown.drain", self.drain, LONGEST)])?;
        if self.delay > LONGEST {
            return Err(ConfigError::key(
                "shutdown.delay",
                format!(
                    "{} is out of range; it must be at most {LONGEST}",
                    self.delay
                ),
            ));
        }
        Ok(())
    }
}
