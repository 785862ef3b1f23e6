//! Section `bootstrap`: how the first administrator is created.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::limits::caps;
use super::{ConfigError, HumanDuration};

/// Used while there is no administrator. There is no default password.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bootstrap {
    /// Lifetime of the one-time set-up link. Default 1h, at most 1h.
    pub link: HumanDuration,
    /// User name of the account that one of the next two keys creates. Default `admin`.
    pub admin_username: String,
    /// A file with the password of a temporary administrator (7 days). Only its owner may read it.
    pub admin_password_file: Option<PathBuf>,
    /// The Argon2id hash of that password, instead of the file.
    pub admin_password_hash: Option<String>,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self {
            link: HumanDuration::secs(3_600),
            admin_username: "admin".to_owned(),
            admin_password_file: None,
            admin_password_hash: None,
        }
    }
}

impl Bootstrap {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        caps(&[("bootstrap.link", self.link, HumanDuration::secs(3_600))])?;
        if self.admin_password_file.is_some() && self.admin_password_hash.is_some() {
            return Err(ConfigError::key(
                "bootstrap.admin_password_hash",
                "cannot be combined with `bootstrap.admin_password_file`",
            ));
        }
        Ok(())
    }
}
