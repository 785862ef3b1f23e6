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
    /// `Pretty` if stderr is a terminal, `Json` otherwise.
    Auto,
    /// One JSON object per line.
    Json,
    /// Text for a terminal.
    Pretty,
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl Log {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let invalid = self.level.split(',').map(str::trim).find(|directive| {
            let level = directive
                .rsplit_once('=')
                .map_or(*directive, |(_, level)| level);
            !LEVELS.contains(&level)
        });
        match invalid {
            Some(invalid) => Err(ConfigError::key(
                "log.level",
                format!(
                    "invalid level `{invalid}`; expected error, warn, info, debug, trace or TARGET=LEVEL"
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
