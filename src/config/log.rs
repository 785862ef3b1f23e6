//! Section `log`.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Logs go to stderr.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `auto` (readable on a terminal, JSON elsewhere), `json` or `pretty`.
    pub format: Format,
    /// A filter such as `info` or `portcullis=debug`. Default `info`. Alias `RUST_LOG`.
    pub level: String,
}

/// `log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// By what stderr is.
    Auto,
    /// One JSON object per line.
    Json,
    /// For people.
    Pretty,
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl Log {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let odd = self.level.split(',').map(str::trim).find(|directive| {
            let level = directive
                .rsplit_once('=')
                .map_or(*directive, |(_, level)| level);
            !LEVELS.contains(&level)
        });
        match odd {
            Some(odd) => Err(ConfigError::key(
                "log.level",
                format!(
                    "`{odd}` is no level; write error, warn, info, debug or trace, or TARGET=LEVEL"
                ),
            )),
            None => Ok(()),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: Format::Auto,
            level: "info".to_owned(),
        }
    }
}
