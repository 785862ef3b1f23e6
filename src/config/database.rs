//! Section `database`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Refused;

/// Which database, and how many connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `postgres://…` or `sqlite:PATH`. Default: `sqlite:<data_dir>/portcullis.db`. Alias `DATABASE_URL`.
    pub url: Option<String>,
    /// A file that holds the URL, since it may hold a password.
    pub url_file: Option<PathBuf>,
    /// Connections of this node. Default 16.
    pub pool_size: u32,
    /// Whether to bring the schema up to date at start. Default: yes on SQLite, no on Postgres.
    pub auto_migrate: Option<bool>,
}

impl Default for Database {
    fn default() -> Self {
        Self {
            url: None,
            url_file: None,
            pool_size: 16,
            auto_migrate: None,
        }
    }
}

impl Database {
    pub(super) fn check(&self) -> Result<(), Refused> {
        if !(1..=1_000).contains(&self.pool_size) {
            return Err(Refused::key("database.pool_size", "must be 1 to 1000"));
        }
        let url = self.url.as_deref().unwrap_or("sqlite:");
        if !["sqlite:", "postgres://", "postgresql://"]
            .iter()
            .any(|scheme| url.starts_with(scheme))
        {
            return Err(Refused::key(
                "database.url",
                "must begin with postgres://, postgresql:// or sqlite:",
            ));
        }
        Ok(())
    }
}
