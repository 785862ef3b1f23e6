//! Sessions of browsers, and how their user was authenticated.

use std::fmt;
use std::time::Duration;

use crate::id::{Sid, UserId};
use crate::secret::Hash;
use crate::time::Timestamp;

/// The `acr` of a sign-in with a password (OIDC Core §2).
pub const ACR_PASSWORD: &str = "urn:portcullis:acr:password";

/// Authentication context class reference, the claim `acr` (OIDC Core §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acr {
    /// A password alone.
    Password,
}

impl Acr {
    /// Returns the value of the claim, which is also the stored text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Password => ACR_PASSWORD,
        }
    }

    /// Reads the stored text.
    pub fn parse(text: &str) -> Option<Self> {
        (text == ACR_PASSWORD).then_some(Self::Password)
    }
}

/// A means by which a user authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// A password.
    Password,
}

impl Factor {
    /// Returns the authentication method reference (RFC 8176 §2).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Password => "pwd",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Password]
            .into_iter()
            .find(|factor| factor.as_str() == text)
    }
}

/// Authentication methods references, the claim `amr` (RFC 8176 §1), in the order of completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Amr(Vec<Factor>);

impl Amr {
    /// Creates the references of completed factors.
    pub fn new(factors: Vec<Factor>) -> Self {
        Self(factors)
    }

    /// Returns the values of the claim.
    pub fn values(&self) -> Vec<String> {
        let factors = self.0.iter();
        factors.map(|factor| factor.as_str().to_owned()).collect()
    }

    /// Reads the stored text: the values separated by spaces.
    pub fn parse(text: &str) -> Option<Self> {
        text.split(' ')
            .map(Factor::parse)
            .collect::<Option<_>>()
            .map(Self)
    }
}

impl fmt::Display for Amr {
    /// Writes the stored text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.values().join(" "))
    }
}

/// The authentication of a user, as the protocol uses it.
#[derive(Clone, Debug)]
pub struct Login {
    /// The claim `sid` of tokens.
    pub sid: Sid,
    /// The user who signed in.
    pub user_id: UserId,
    /// The user's auth epoch at sign-in. The session is inactive once the user has another one.
    pub user_epoch: i64,
    /// When the user signed in, the claim `auth_time`.
    pub auth_time: Timestamp,
    /// The claim `acr`.
    pub acr: Acr,
    /// The claim `amr`.
    pub amr: Amr,
}

/// A row of `sessions`: a login and the cookie that it belongs to.
#[derive(Clone, Debug)]
pub struct Session {
    /// SHA-256 of the cookie's value.
    pub id_hash: Hash,
    /// The login.
    pub login: Login,
    /// Last use, written at most once a minute.
    pub seen_at: Timestamp,
    /// Absolute expiry, whether the session is used or not.
    pub expires_at: Timestamp,
}

impl Session {
    /// Returns whether the session is expired: unused for `idle`, or past its absolute expiry.
    pub fn is_expired(&self, idle: Duration, now: Timestamp) -> bool {
        now >= self.expires_at || now >= self.seen_at + idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_text_is_read_back() {
        let amr = Amr::new(vec![Factor::Password]);
        assert_eq!(Amr::parse(&amr.to_string()), Some(amr));
        assert_eq!(Acr::parse(Acr::Password.as_str()), Some(Acr::Password));
        assert_eq!(Amr::parse("pwd otp"), None);
        assert_eq!(Amr::parse(""), None);
        assert_eq!(Acr::parse("urn:example"), None);
    }
}
