//! Section `tokens`: how long codes and tokens live.

use serde::{Deserialize, Serialize};

use super::limits::{SECRET_OVERLAP_CAP, caps};
use super::{ConfigError, Span};

/// Lifetimes; each has a cap that refuses the start.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tokens {
    /// An authorization code. Default 60s, at most 10m.
    pub code: Span,
    /// An access token, unless its resource server's registration says otherwise. Default 5m, at most 15m.
    pub access: Span,
    /// An ID token. Default 5m, at most 60m.
    pub id: Span,
    /// How long a grant may rest unused. Default 14d, at most 30d.
    pub refresh_idle: Span,
    /// How long a grant may live at all. Default 30d, at most 30d.
    pub refresh_absolute: Span,
    /// How long a used refresh token gets the same successor again; 0s is never. Default 30s, at
    /// most 60s. Over at once when the successor is used.
    pub refresh_grace: Span,
    /// How long a client's old secrets go on after `client rotate-secret`. Default 24h, at most 7d.
    pub secret_overlap: Span,
    /// Leeway for the clocks of others. Default 30s, at most 60s. Never for one-time things of ours, nor
    /// at `exp` of the server's own tokens.
    pub clock_leeway: Span,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            code: Span::secs(60),
            access: Span::secs(5 * 60),
            id: Span::secs(5 * 60),
            refresh_idle: Span::secs(14 * 86_400),
            refresh_absolute: Span::secs(30 * 86_400),
            refresh_grace: Span::secs(30),
            secret_overlap: Span::secs(86_400),
            clock_leeway: Span::secs(30),
        }
    }
}

impl Tokens {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        caps(&[
            ("tokens.code", self.code, Span::secs(600)),
            ("tokens.access", self.access, Span::secs(900)),
            ("tokens.id", self.id, Span::secs(3_600)),
            (
                "tokens.refresh_idle",
                self.refresh_idle,
                Span::secs(30 * 86_400),
            ),
            (
                "tokens.refresh_absolute",
                self.refresh_absolute,
                Span::secs(30 * 86_400),
            ),
        ])?;
        if self.refresh_grace > Span::secs(60) {
            return Err(ConfigError::key("tokens.refresh_grace", "must be at most 60s"));
        }
        if self.secret_overlap.0 > SECRET_OVERLAP_CAP {
            return Err(ConfigError::key("tokens.secret_overlap", "must be at most 7d"));
        }
        if self.clock_leeway > Span::secs(60) {
            return Err(ConfigError::key("tokens.clock_leeway", "must be at most 60s"));
        }
        Ok(())
    }
}
