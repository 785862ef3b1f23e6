//! A person.

use precis_profiles::UsernameCaseMapped;
use precis_profiles::precis_core::profile::Profile;

use crate::config::limits::USERNAME_CHARS;
use crate::id::UserId;
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
