//! Section `log`.

use serde::{Deserialize, Serialize};

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

impl Default for Log {
    fn default() -> Self {
        Self {
            format: Format::Auto,
            level: "info".to_owned(),
        }
    }
}
