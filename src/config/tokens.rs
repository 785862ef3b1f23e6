//! Section `tokens`: how long codes and tokens live.

use serde::{Deserialize, Serialize};

use super::limits::{SECRET_OVERLAP_CAP, caps};
use super::{ConfigError, HumanDuration};

/// Lifetimes; each has a cap that refuses the start.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tokens {
    /// An authorization code. Default 60s, at most 10m.
    pub code: HumanDuration,
    /// An access token, unless its resource server's registration says otherwise. Default 5m, at most 15m.
    pub access: HumanDuration,
    /// An ID token. Default 5m, at most 60m.
    pub id: HumanDuration,
    /// How long a grant may rest unused. Default 14d, at most 30d.
    pub refresh_idle: HumanDuration,
    /// How long a grant may live at all. Default 30d, at most 30d.
    pub refresh_absolute: HumanDuration,
    /// How long a used refresh token gets the same successor again; 0s is never. Default 30s, at
    /// most 60s. Over at once when the successor is used.
    pub refresh_grace: HumanDuration,
    /// How long a client's old secrets go on after `client rotate-secret`. Default 24h, at most 7d.
    pub secret_overlap: HumanDuration,
    /// Leeway for the clocks of others. Default 30s, at most 60s. Never for one-time things of ours, nor
    /// at `exp` of the server's own tokens.
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
