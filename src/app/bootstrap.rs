//! The first administrator. There is no default password: the first administrator is a temporary account of
//! the configuration, or is created with a one-time link.

use std::path::Path;

use super::{App, StartError};
use crate::accounts::admin::TEMPORARY;
use crate::accounts::password::{Password, is_acceptable};
use crate::accounts::user::{User, Username};
use crate::admin::{self, AdminError, Context, first_admin};
use crate::audit::Actor;
use crate::config::{Config, ConfigError, read_secret_file};
use crate::db::{self, Store};
use crate::secret::{Entropy, Secret};
use crate::time::Timestamp;

/// Creates a set-up link unless there is an administrator. The link must be shown once and never logged.
///
/// # Errors
/// [`StartError`]: the database is unavailable.
pub async fn setup_link(
    config: &Config,
    store: &Store,
    actor: Actor,
    entropy: &Entropy,
    now: Timestamp,
) -> Result<Option<String>, StartError> {
    let issuer = config.issuer()?;
    let link = Secret::opaque(entropy);
    let (hash, expires_at) = (link.hash(), now + config.bootstrap.link.0);
    let ctx = Context::new(actor, entropy.clone(), now);
    let stored = admin::execute(store, ctx, move |tx, ctx| {
        first_admin::create_link(tx, ctx, &hash, expires_at)
    });
    let path = format!("/setup?token={}", link.expose());
    let stored = stored.await.map_err(storage)?;
    Ok(stored.then(|| issuer.url(&path)))
}

impl App {
    /// Prepares the first administrator unless there is one: creates the account of the configuration, or
    /// else a set-up link, which is returned to be shown once.
    ///
    /// # Errors
    /// [`StartError`]: the configured name or password cannot be used, or the database is unavailable.
    pub async fn bootstrap(&self) -> Result<Option<String>, StartError> {
        if self.ensure_admin().await? {
            return Ok(None);
        }
        let now = self.clock.now();
        setup_link(&self.config, &self.store, Actor::System, &self.entropy, now).await
    }

    /// Creates the account of the configuration if there is no administrator. Returns whether there is one
    /// afterwards.
    ///
    /// # Errors
    /// As [`App::bootstrap`].
    pub async fn ensure_admin(&self) -> Result<bool, StartError> {
        let now = self.clock.now();
        if self.store.read(move |tx| tx.has_admin(now)).await? {
            return Ok(true);
        }
        match self.configured_admin(now)? {
            Some((user, phc)) => self.put_temporary_admin(user, phc, now).await,
            None => Ok(false),
        }
    }

    /// Returns the account of the configuration and the hash of its password, if there is one.
    fn configured_admin(&self, now: Timestamp) -> Result<Option<(User, String)>, StartError> {
        let section = &self.config.bootstrap;
        let refused = |key, why: String| StartError::from(ConfigError::key(key, why));
        let username = Username::parse(&section.admin_username).ok_or_else(|| {
            refused(
                "bootstrap.admin_username",
                "cannot be a user name".to_owned(),
            )
        })?;
        let phc = match (&section.admin_password_file, &section.admin_password_hash) {
            (None, None) => return Ok(None),
            (None, Some(phc)) if is_acceptable(phc) => phc.clone(),
            (None, Some(_)) => {
                return Err(refused(
                    "bootstrap.admin_password_hash",
                    "is not an Argon2id hash within the limits of `login.argon2`".to_owned(),
                ));
            }
            (Some(path), _) => self
                .hash_of_file(path, &username)
                .map_err(|why| refused("bootstrap.admin_password_file", why))?,
        };
        let user = User::new(username, &self.entropy, now);
        Ok(Some((user, phc)))
    }

    fn hash_of_file(&self, path: &Path, user: &Username) -> Result<String, String> {
        let typed = read_secret_file(path)?;
        let at = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let password = Password::parse_new(&typed, user, &self.config.branding.product)
            .map_err(|error| at(&error))?;
        password.hash(&self.config.login.argon2, &self.entropy)
    }

    /// Creates the account. Returns whether there is an administrator afterwards; another user may have the
    /// name.
    async fn put_temporary_admin(
        &self,
        user: User,
        phc: String,
        now: Timestamp,
    ) -> Result<bool, StartError> {
        let name = user.username.as_str().to_owned();
        let ctx = Context::new(Actor::System, self.entropy.clone(), now);
        let created = admin::execute(&self.store, ctx, move |tx, ctx| {
            first_admin::configure(tx, ctx, &user, &phc)
        });
        match created.await {
            Ok(()) => {
                tracing::warn!(event = "admin.bootstrap", reason = "configuration", username = name, expires_at = %(now + TEMPORARY), "a temporary administrator was created; create a permanent one with `portcullis user create NAME --admin`");
                Ok(true)
            }
            // Another node was first, or an earlier administrator of this name has expired.
            Err(AdminError::Exists { .. } | AdminError::Storage(db::Error::Duplicate(_))) => {
                let now_there = self.store.read(move |tx| tx.has_admin(now)).await?;
                if !now_there {
                    tracing::warn!(
                        event = "admin.bootstrap",
                        reason = "name_taken",
                        username = name,
                        "the account exists but is not an administrator"
                    );
                }
                Ok(now_there)
            }
            Err(error) => Err(storage(error)),
        }
    }
}

/// Converts an error that can only be a failure of the database, because the caller handles all refusals.
fn storage(error: AdminError) -> StartError {
    match error {
        AdminError::Storage(error) => error.into(),
        other => StartError::Unavailable(other.to_string()),
    }
}
