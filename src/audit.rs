//! Audit events: what is written down in the transaction of the change, and its names.

use serde_json::Value;

use crate::time::Timestamp;

/// One audit event, insert-only.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub name: Name,
    /// Who did it: `user:…`, `client:…` or `cli`.
    pub actor: String,
    /// What it was done to: `user:…`, `client:…`, `grant:…`, `key:…`.
    pub target: String,
    /// Why, where somebody said so.
    pub reason: Option<String>,
    /// More, as JSON. Never a secret.
    pub detail: Value,
}

/// The names of all audit events: `noun.verb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A client was registered.
    ClientCreated,
    /// An API was registered.
    ResourceCreated,
    /// A person was added.
    UserCreated,
    /// A password was set; everything older than it is cut off.
    UserCredentialChanged,
    /// A person signed in.
    SessionBegun,
    /// A login ended: signed out, or replaced by another person's.
    SessionEnded,
    /// A person allowed a client something.
    ConsentGiven,
    /// A person refused a client.
    ConsentDenied,
    /// A code was used a second time; its grant is ended.
    CodeReplay,
    /// A refresh token was used a second time; its grant is ended.
    RefreshReuse,
    /// A signing key was made.
    KeyCreated,
}

impl Name {
    /// The name as stored and logged.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientCreated => "client.created",
            Self::ResourceCreated => "resource.created",
            Self::UserCreated => "user.created",
            Self::UserCredentialChanged => "user.credential_changed",
            Self::SessionBegun => "session.begun",
            Self::SessionEnded => "session.ended",
            Self::ConsentGiven => "consent.given",
            Self::ConsentDenied => "consent.denied",
            Self::CodeReplay => "code.replay",
            Self::RefreshReuse => "token.refresh_reuse",
            Self::KeyCreated => "key.created",
        }
    }
}
