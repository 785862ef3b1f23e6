//! The first start: there is no default password. An administrator comes from the configuration, for a
//! while, or by a one-time link.

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

/// A fresh set-up link, unless there is an administrator. It is to be shown once, and never to a log.
///
/// # Errors
/// [`StartError`]: the database is away.
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
    /// What the first administrator begins with, unless there is one: the account of the
    /// configuration is made, or else a fresh set-up link, which is returned to be shown once.
    ///
    /// # Errors
    /// [`StartError`]: the configured name or password cannot be used, or the database is away.
    pub async fn bootstrap(&self) -> Result<Option<String>, StartError> {
        if self.ensure_admin().await? {
            return Ok(None);
        }
        let now = self.clock.now();
        setup_link(&self.config, &self.store, Actor::System, &self.entropy, now).await
    }

    /// Makes the account of the configuration if nobody administers; whether somebody does then.
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

    /// The account of the configuration and the hash of its password, if there is one.
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
                    "is no Argon2id hash within the bounds of `login.argon2`".to_owned(),
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
        let password = Password::parse(&typed).map_err(|_| at(&"this cannot be a password"))?;
        password
            .check_new(user, &self.config.branding.product)
            .map_err(|weak| at(&weak))?;
        password.hash(&self.config.login.argon2, &self.entropy)
    }

    /// Whether the account was made: nobody else may have its name.
    async fn put_temporary_admin(
        &self,
        user: User,
        phc: String,
        now: Timestamp,
    ) -> Result<bool, StartError> {
        let name = user.username.as_str().to_owned();
        let ctx = Context::new(Actor::System, self.entropy.clone(), now);
        let made = admin::execute(&self.store, ctx, move |tx, ctx| {
            first_admin::configure(tx, ctx, &user, &phc)
        });
        match made.await {
            Ok(()) => {
                tracing::warn!(event = "admin.bootstrap", reason = "configuration", username = name, expires_at = %(now + TEMPORARY), "a temporary administrator was made; make a lasting one with `portcullis user create NAME --admin`");
                Ok(true)
            }
            // Another node was first, or the time of an earlier one is over.
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

/// The operations here refuse nothing but what is handled: what is left is a failure of the database.
fn storage(error: AdminError) -> StartError {
    match error {
        AdminError::Storage(error) => error.into(),
        refused => StartError::Unavailable(refused.to_string()),
    }
}
