//! Users and user names.

use precis_profiles::UsernameCaseMapped;
use precis_profiles::precis_core::profile::Profile;

use super::{FieldErrors, name};
use crate::config::limits::{EMAIL_CHARS, USERNAME_CHARS};
use crate::id::UserId;
use crate::secret::Entropy;
use crate::time::Timestamp;

/// A user.
#[derive(Clone, Debug)]
pub struct User {
    /// The claim `sub`.
    pub id: UserId,
    /// The name that the user signs in with.
    pub username: Username,
    /// Displayed name.
    pub name: Option<String>,
    /// E-mail address.
    pub email: Option<String>,
    /// Whether the address was verified.
    pub email_verified: bool,
    /// Further standard claims (OIDC Core §5.1), by name.
    pub claims: serde_json::Map<String, serde_json::Value>,
    /// Increased when everything that the user holds is revoked.
    pub auth_epoch: i64,
    /// When the account was disabled, if it is.
    pub disabled_at: Option<Timestamp>,
    /// When the account was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

impl User {
    /// Creates a user with a name only.
    pub fn new(username: Username, entropy: &Entropy, now: Timestamp) -> Self {
        Self {
            id: UserId::new(entropy, now),
            username,
            name: None,
            email: None,
            email_verified: false,
            claims: serde_json::Map::new(),
            auth_epoch: 1,
            disabled_at: None,
            created_at: now,
            updated_at: now,
        }
    }

    /// Checks the fields of the user.
    ///
    /// # Errors
    /// All rejected fields.
    pub fn check(&self) -> Result<(), FieldErrors> {
        let mut errors = FieldErrors::none();
        if let Some(Err(why)) = (self.name.as_ref()).map(|shown| name::check(shown, USERNAME_CHARS))
        {
            errors.add("name", why);
        }
        if let Some(email) = self.email.as_ref().filter(|email| !is_address(email)) {
            errors.add("email", format!("`{email}` is not an e-mail address"));
        }
        errors.into_result()
    }
}

/// Returns whether a text may be a mailbox (RFC 5321 §4.1.2), as far as its syntax shows.
fn is_address(text: &str) -> bool {
    let is_clean =
        |part: &str| !part.is_empty() && !part.chars().any(|c| c.is_control() || c.is_whitespace());
    let parts = text.rsplit_once('@');
    text.chars().count() <= EMAIL_CHARS
        && parts.is_some_and(|(local, domain)| {
            is_clean(local) && is_clean(domain) && !local.contains('@')
        })
}

/// A user name in canonical form: trimmed, then PRECIS UsernameCaseMapped (RFC 8265 §3.3), so that
/// `John`, fullwidth `ｊｏｈｎ` and decomposed forms are one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Username(String);

impl Username {
    /// Parses what the user typed. Returns `None` if it cannot be a user name.
    pub fn parse(typed: &str) -> Option<Self> {
        let trimmed = typed.trim();
        if trimmed.is_empty() || trimmed.chars().count() > USERNAME_CHARS {
            return None;
        }
        let mapped = UsernameCaseMapped::new().enforce(trimmed).ok()?;
        Some(Self(mapped.into_owned()))
    }

    /// Wraps the stored text.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// Returns the canonical name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_has_local_part_and_domain() {
        for good in ["a@b", "alice@mail.example", "\u{fc}@m\u{fc}ller.example"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "a", "@b", "a@", "a b@c", "a@b@c", "a@b\n"] {
            assert!(!is_address(bad), "{bad:?}");
        }
        assert!(!is_address(&format!("{}@b", "a".repeat(300))));
    }

    #[test]
    fn spellings_of_a_name_are_equal() {
        let name = Username::parse("john").unwrap();
        for spelling in ["John", "JOHN", "john ", "ｊｏｈｎ"] {
            assert_eq!(Username::parse(spelling), Some(name.clone()), "{spelling}");
        }
        assert_eq!(Username::parse("jo\u{308}rg"), Username::parse("jörg"));
        assert_ne!(Username::parse("j\u{43e}hn"), Some(name));
        assert_eq!(Username::parse("  "), None);
        assert_eq!(Username::parse("a b"), None);
        assert_eq!(Username::parse("a\0b"), None);
    }
}
