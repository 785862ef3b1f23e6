//! A browser's login.

use std::time::Duration;

use crate::id::{Sid, UserId};
use crate::secret::Hash;
use crate::time::Timestamp;

/// The authentication context of a password login (OIDC Core §2, `acr`).
pub const ACR_PASSWORD: &str = "urn:portcullis:acr:password";

/// A login as the protocol sees it.
#[derive(Clone, Debug)]
pub struct Login {
    /// Names it in tokens.
    pub sid: Sid,
    /// Who signed in.
    pub user_id: UserId,
    /// The person's auth epoch when they did.
    pub user_epoch: i64,
    /// When they did.
    pub auth_time: Timestamp,
    /// How well they proved it.
    pub acr: String,
    /// By what means (RFC 8176).
    pub amr: Vec<String>,
}

/// A row of `sessions`: a login, and the cookie that carries it.
#[derive(Clone, Debug)]
pub struct Session {
    /// SHA-256 of the cookie's value.
    pub id_hash: Hash,
    /// The login.
    pub login: Login,
    /// Last use, written at most once a minute.
    pub seen_at: Timestamp,
    /// When it ends in any case.
    pub expires_at: Timestamp,
}

impl Session {
    /// Whether it ran out of time: unused for `idle`, or past its end.
    pub fn is_over(&self, idle: Duration, now: Timestamp) -> bool {
        now >= self.expires_at || now >= self.seen_at + idle
    }
}
