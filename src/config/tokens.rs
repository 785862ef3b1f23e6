//! Section `tokens`: lifetimes of codes and tokens.

use serde::{Deserialize, Serialize};

use super::limits::{SECRET_OVERLAP_CAP, caps};
use super::{ConfigError, HumanDuration};

/// Lifetimes. The server does not start with a lifetime above its maximum.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tokens {
    /// Lifetime of an authorization code. Default 60s, at most 10m.
    pub code: HumanDuration,
    /// Lifetime of an access token, unless the registration of its resource server overrides it. Default 5m, at
    /// most 15m.
    pub access: HumanDuration,
    /// Lifetime of an ID token. Default 5m, at most 60m.
    pub id: HumanDuration,
    /// Idle lifetime of a grant. Default 14d, at most 30d.
    pub refresh_idle: HumanDuration,
    /// Absolute lifetime of a grant. Default 30d, at most 30d.
    pub refresh_absolute: HumanDuration,
    /// Time in which a used refresh token returns the same successor again, or until the successor is used.
    /// `0s` disables it. Default 30s, at most 60s.
    pub refresh_grace: HumanDuration,
    /// Time that the old secrets of a client stay valid after `client rotate-secret`. Default 24h, at most 7d.
    pub secret_overlap: HumanDuration,
    /// Leeway for the clocks of other parties. Default 30s, at most 60s. It does not apply to the server's
    /// one-time values, nor to `exp` of its own tokens.
    pub clock_leeway: HumanDuration,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            code: HumanDuration::secs(60),
            access: HumanDuration::secs(5 * 60),
            id: HumanDuration::secs(5 * 60),
            refresh_idle: HumanDuration::secs(14 * 86_400),
            refresh_absolute: HumanDuration::secs(30 * 86_400),
            refresh_grace: HumanDuration::secs(30),
            secret_overlap: HumanDuration::secs(86_400),
            clock_leeway: HumanDuration::secs(30),
        }
    }
}

impl Tokens {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        caps(&[
            ("tokens.code", self.code, HumanDuration::secs(600)),
            ("tokens.access", self.access, HumanDuration::secs(900)),
            ("tokens.id", self.id, HumanDuration::secs(3_600)),
            (
                "tokens.refresh_idle",
                self.refresh_idle,
                HumanDuration::secs(30 * 86_400),
            ),
            (
                "tokens.refresh_absolute",
                self.refresh_absolute,
                HumanDuration::secs(30 * 86_400),
            ),
        ])?;
        if self.refresh_grace > HumanDuration::secs(60) {
            return Err(ConfigError::key(
                "tokens.refresh_grace",
                "must be at most 60s",
            ));
        }
        if self.secret_overlap.0 > SECRET_OVERLAP_CAP {
            return Err(ConfigError::key(
                "tokens.secret_overlap",
                "must be at most 7d",
            ));
        }
        if self.clock_leeway > HumanDuration::secs(60) {
            return Err(ConfigError::key(
                "tokens.clock_leeway",
                "must be at most 60s",
            ));
        }
        Ok(())
    }
}
