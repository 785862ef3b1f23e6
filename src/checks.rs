//! Checks of the database against the configuration and this binary, before anything uses it.

use crate::config::{Config, ConfigError};
use crate::db::{self, OpenError, Schema, Store, Transaction};
use crate::key_manager::KeyManagerError;
use crate::keys::KeyError;
use crate::keys::ring::offered;

/// Why a node or a command does not start; each variant has its exit code.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Exit code 78: starting again will not help.
    #[error("{0}")]
    Configuration(String),
    /// Exit code 69: something that the node depends on is unavailable.
    #[error("{0}")]
    Unavailable(String),
}

/// Fails unless the schema of the database is the one of this binary. Migrates an older one where the
/// configuration allows that.
///
/// # Errors
/// [`StartError`].
pub fn schema(config: &Config, store: &Store) -> Result<(), StartError> {
    match store.schema()? {
        Schema::Current => Ok(()),
        Schema::Older(_) if config.migrates_itself() => {
            store.migrate()?;
            Ok(())
        }
        Schema::Older(missing) => Err(StartError::Configuration(format!(
            "the database lacks {} migration(s) ({}); run `portcullis migrate up`, or set `database.auto_migrate`",
            missing.len(),
            missing.join(", ")
        ))),
        Schema::Newer(unknown) => Err(StartError::Configuration(format!(
            "the database was migrated by a newer version of portcullis ({}); run that version",
            unknown.join(", ")
        ))),
    }
}

/// Fails if a registered client or resource uses an algorithm that `keys.algorithms` omits.
///
/// # Errors
/// [`StartError`].
pub async fn algorithms(config: &Config, store: &Store) -> Result<(), StartError> {
    let offered = offered(&config.keys);
    let find_user = move |tx: &mut Transaction<'_>| {
        Ok(match tx.find_client_beyond(&offered)? {
            Some(client) => Some(format!("the client `{client}`")),
            None => tx
                .find_resource_beyond(&offered)?
                .map(|audience| format!("the resource `{audience}`")),
        })
    };
    match store.read(find_user).await? {
        None => Ok(()),
        Some(user) => Err(StartError::Configuration(format!(
            "configuration key `keys.algorithms`: leaves out an algorithm that {user} is registered for"
        ))),
    }
}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> Self {
        Self::Configuration(error.to_string())
    }
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Unavailable(why) => Self::Unavailable(why),
            OpenError::Configuration(why) => Self::Configuration(why),
        }
    }
}

impl From<db::Error> for StartError {
    fn from(error: db::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<KeyError> for StartError {
    fn from(error: KeyError) -> Self {
        if matches!(error, KeyError::UnknownKek { .. } | KeyError::Corrupt(_)) {
            tracing::error!(event = "key.kek_mismatch", reason = "kek", severity = "critical", %error);
        }
        Self::Configuration(error.to_string())
    }
}

impl From<KeyManagerError> for StartError {
    fn from(error: KeyManagerError) -> Self {
        match error {
            KeyManagerError::Database(error) => error.into(),
            KeyManagerError::Keys(error) => error.into(),
            other => Self::Unavailable(other.to_string()),
        }
    }
}
