//! Administrators of the server, permanent or temporary.

use std::time::Duration;

use crate::id::UserId;
use crate::time::Timestamp;

/// Lifetime of the administrator that the configuration creates.
pub const TEMPORARY: Duration = Duration::from_secs(7 * 86_400);

/// A user who administers the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The user.
    pub user_id: UserId,
    /// How the user became an administrator.
    pub granted_by: GrantedBy,
    /// When the user became an administrator.
    pub granted_at: Timestamp,
    /// Expiry; permanent if absent.
    pub expires_at: Option<Timestamp>,
}

/// How a user becomes an administrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantedBy {
    /// With the one-time link of the first start.
    Setup,
    /// By the configuration, temporarily.
    Bootstrap,
    /// By an operator of the host.
    Operator,
}

impl GrantedBy {
    /// Returns the stored text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Bootstrap => "bootstrap",
            Self::Operator => "operator",
        }
    }

    /// Reads the stored text.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Setup, Self::Bootstrap, Self::Operator]
            .into_iter()
            .find(|by| by.as_str() == text)
    }
}

impl Admin {
    /// Returns whether the role is not expired.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| now < at)
    }
}
