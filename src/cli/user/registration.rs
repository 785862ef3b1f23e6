//! The fields of a user: options of `user create`, and entries in a file for `apply`.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::accounts::password::is_acceptable;
use crate::accounts::user::{User, Username};
use crate::cli::UsageError;
use crate::oauth::userinfo::is_settable;
use crate::secret::Entropy;
use crate::time::Timestamp;

/// The fields to set. Absent fields keep their value, and an empty text empties a text.
#[derive(Clone, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// The user name. Set in files only.
    #[arg(skip)]
    pub username: String,
    /// Whether the account is locked. Set in files only.
    #[arg(skip)]
    pub disabled: Option<bool>,
    /// The hash of the first password of a new account. Set in files only.
    #[arg(skip)]
    initial_password_hash: Option<String>,
    /// Display name.
    #[arg(long)]
    name: Option<String>,
    /// E-mail address.
    #[arg(long)]
    email: Option<String>,
    /// Whether the e-mail address is verified. Set in files only.
    #[arg(skip)]
    email_verified: Option<bool>,
    /// Standard claims (OIDC Core §5.1). The command line has a separate option.
    #[arg(skip)]
    pub claims: Option<Map<String, Value>>,
}

impl Fields {
    /// Creates a user.
    ///
    /// # Errors
    /// [`UsageError`] for an invalid value.
    pub fn create(
        &self,
        username: Username,
        entropy: &Entropy,
        now: Timestamp,
    ) -> Result<User, UsageError> {
        self.update(User::new(username, entropy, now))
    }

    /// Applies the fields to a user.
    ///
    /// # Errors
    /// [`UsageError`] for an invalid value.
    pub fn update(&self, mut user: User) -> Result<User, UsageError> {
        let filled = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        if let Some(name) = &self.name {
            user.name = filled(name);
        }
        if let Some(email) = &self.email {
            let email = filled(email);
            // A new address is not verified yet.
            user.email_verified &= user.email == email;
            user.email = email;
        }
        user.email_verified = self.email_verified.unwrap_or(user.email_verified);
        if let Some(claims) = &self.claims {
            if let Some((name, _)) = claims
                .iter()
                .find(|(name, value)| !is_settable(name, value))
            {
                let why =
                    format!("`{name}` is not a standard claim with a value of the right type");
                return Err(UsageError::new("claims", why));
            }
            user.claims.clone_from(claims);
        }
        Ok(user)
    }

    /// Returns the hash of the first password, if there is one.
    ///
    /// # Errors
    /// [`UsageError`] when this server would not verify the hash.
    pub fn first_password(&self) -> Result<Option<&str>, UsageError> {
        match self.initial_password_hash.as_deref() {
            Some(phc) if !is_acceptable(phc) => Err(UsageError::new(
                "initial_password_hash",
                "is not an Argon2id hash ($argon2id$v=19$m=…,t=…,p=…$…) within the bounds of `login.argon2`",
            )),
            given => Ok(given),
        }
    }
}
