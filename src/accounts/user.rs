//! A person.

use precis_profiles::UsernameCaseMapped;
use precis_profiles::precis_core::profile::Profile;

use super::{FieldErrors, name};
use crate::config::limits::{EMAIL_CHARS, USERNAME_CHARS};
use crate::id::UserId;
use crate::secret::Entropy;
use crate::time::Timestamp;

/// A person.
#[derive(Clone, Debug)]
pub struct User {
    /// `sub`.
    pub id: UserId,
    /// What they type.
    pub username: Username,
    /// What others call them.
    pub name: Option<String>,
    /// E-mail address.
    pub email: Option<String>,
    /// Whether the address was proven.
    pub email_verified: bool,
    /// Further standard claims (OIDC Core §5.1), by name.
    pub claims: serde_json::Map<String, serde_json::Value>,
    /// Raised by a cut-off.
    pub auth_epoch: i64,
    /// Set when the account is switched off.
    pub disabled_at: Option<Timestamp>,
    /// When the account was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

impl User {
    /// A person of whom nothing is known but the name.
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

    /// Checks what is known about a user.
    ///
    /// # Errors
    /// All fields that are not accepted.
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

/// RFC 5321 §4.1.2, as far as it can be told without sending anything.
fn is_address(text: &str) -> bool {
    let clean =
        |part: &str| !part.is_empty() && !part.chars().any(|c| c.is_control() || c.is_whitespace());
    let parts = text.rsplit_once('@');
    text.chars().count() <= EMAIL_CHARS
        && parts
            .is_some_and(|(local, domain)| clean(local) && clean(domain) && !local.contains('@'))
}

/// A user name in its one form: trimmed, then PRECIS UsernameCaseMapped (RFC 8265 §3.3), so that
/// `John`, fullwidth `ｊｏｈｎ` and decomposed forms are one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Username(String);

impl Username {
    /// From what was typed; `None` when it cannot be a name.
    pub fn parse(typed: &str) -> Option<Self> {
        let trimmed = typed.trim();
        if trimmed.is_empty() || trimmed.chars().count() > USERNAME_CHARS {
            return None;
        }
        let mapped = UsernameCaseMapped::new().enforce(trimmed).ok()?;
        Some(Self(mapped.into_owned()))
    }

    /// From the database.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_two_parts() {
        for good in ["a@b", "alice@mail.example", "\u{fc}@m\u{fc}ller.example"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "a", "@b", "a@", "a b@c", "a@b@c", "a@b\n"] {
            assert!(!is_address(bad), "{bad:?}");
        }
        assert!(!is_address(&format!("{}@b", "a".repeat(300))));
    }

    #[test]
    fn spellings_of_one_name_are_one_name() {
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
