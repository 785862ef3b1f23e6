//! What is known about a person: as options of `user create`, and as an entry of a file for `apply`.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::accounts::password::is_acceptable;
use crate::accounts::user::{User, Username};
use crate::cli::UsageError;
use crate::oauth::userinfo::is_settable;
use crate::secret::Entropy;
use crate::time::Timestamp;

/// What was given; the rest stays as it is. An empty text empties a text.
#[derive(Clone, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// Who; only files say it here.
    #[arg(skip)]
    pub username: String,
    /// Whether the account is locked; only files say it here.
    #[arg(skip)]
    pub disabled: Option<bool>,
    /// The hash of the password that a new account begins with; only files say it here.
    #[arg(skip)]
    initial_password_hash: Option<String>,
    /// What others call them.
    #[arg(long)]
    name: Option<String>,
    /// E-mail address.
    #[arg(long)]
    email: Option<String>,
    /// Whether the address was proven; only files say it here.
    #[arg(skip)]
    email_verified: Option<bool>,
    /// Further standard claims (OIDC Core §5.1); the command line has an option of its own.
    #[arg(skip)]
    pub claims: Option<Map<String, Value>>,
}

impl Fields {
    /// A new person.
    ///
    /// # Errors
    /// [`UsageError`] for a value that cannot be.
    pub fn create(
        &self,
        username: Username,
        entropy: &Entropy,
        now: Timestamp,
    ) -> Result<User, UsageError> {
        self.update(User::new(username, entropy, now))
    }

    /// A person as these fields want it.
    ///
    /// # Errors
    /// [`UsageError`] for a value that cannot be.
    pub fn update(&self, mut user: User) -> Result<User, UsageError> {
        let filled = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        if let Some(name) = &self.name {
            user.name = filled(name);
        }
        if let Some(email) = &self.email {
            let email = filled(email);
            // Whoever proved one address has not proved another.
            user.email_verified &= user.email == email;
            user.email = email;
        }
        user.email_verified = self.email_verified.unwrap_or(user.email_verified);
        if let Some(claims) = &self.claims {
            if let Some((name, _)) = claims
                .iter()
                .find(|(name, value)| !is_settable(name, value))
            {
                let why = format!("`{name}` is no standard claim with a value of its type");
                return Err(UsageError::new("claims", why));
            }
            user.claims.clone_from(claims);
        }
        Ok(user)
    }

    /// The hash of the first password, if one was given.
    ///
    /// # Errors
    /// [`UsageError`] when it is no hash that this server would check.
    pub fn first_password(&self) -> Result<Option<&str>, UsageError> {
        match self.initial_password_hash.as_deref() {
            Some(phc) if !is_acceptable(phc) => Err(UsageError::new(
                "initial_password_hash",
                "is no Argon2id hash ($argon2id$v=19$m=…,t=…,p=…$…) within the bounds of `login.argon2`",
            )),
            given => Ok(given),
        }
    }
}
