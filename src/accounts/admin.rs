//! Administrators: people who may administer the server, for good or for a while.

use std::time::Duration;

use crate::id::UserId;
use crate::time::Timestamp;

/// How long an administrator from the configuration may.
pub const TEMPORARY: Duration = Duration::from_secs(7 * 86_400);

/// Who may, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Who.
    pub user_id: UserId,
    /// By what they came to it.
    pub granted_by: GrantedBy,
    /// When.
    pub granted_at: Timestamp,
    /// Until when; for good if absent.
    pub expires_at: Option<Timestamp>,
}

/// How somebody became an administrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantedBy {
    /// By the one-time link of the first start.
    Setup,
    /// By the configuration, for a while.
    Bootstrap,
    /// By an operator of the host.
    Operator,
}

impl GrantedBy {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Bootstrap => "bootstrap",
            Self::Operator => "operator",
        }
    }

    /// From the database.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Setup, Self::Bootstrap, Self::Operator]
            .into_iter()
            .find(|by| by.as_str() == text)
    }
}

impl Admin {
    /// Whether they still may.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| now < at)
    }
}
