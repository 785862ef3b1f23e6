//! Audit events, which are stored in the transaction of the change, and their names.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use crate::id::{ClientId, GrantId, Sid, UserId};
use crate::time::Timestamp;

/// Time that an event is kept.
pub const KEPT: Duration = Duration::from_secs(400 * 86_400);

/// The largest difference between the clocks of nodes that write events: a node whose clock is further off changes
/// nothing.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// One audit event. Events are only inserted, never changed.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub name: Name,
    /// Who did it.
    pub actor: Actor,
    /// What it was done to.
    pub target: Target,
    /// The reason, if there is one.
    pub reason: Option<String>,
    /// Details as JSON, without secrets and personal data.
    pub detail: Value,
}

/// Who caused a change. Its text form is what audit events and revocation records store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// An operator of the host, by the command line.
    Operator,
    /// An operator of the host, by the name of the operating-system user who ran the command.
    LocalUser(String),
    /// A signed-in user.
    User(UserId),
    /// An authenticated client.
    Client(ClientId),
    /// The server itself: expiry, limits, key rotation, configuration.
    System,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("cli"),
            Self::LocalUser(name) => write!(f, "cli:{name}"),
            Self::User(id) => write!(f, "user:{id}"),
            Self::Client(id) => write!(f, "client:{id}"),
            Self::System => f.write_str("node"),
        }
    }
}

/// Why something was revoked. Its text form is what revocation records and audit events store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevocationReason {
    /// A client or an operator revoked it and gave no reason.
    Revoked,
    /// The reason that an operator gave.
    Stated(String),
    /// The account or client was disabled.
    Disabled,
    /// The client was deleted.
    Deleted,
    /// A secret of the client may be known to others.
    SecretCompromised,
    /// The user has a new password.
    PasswordChanged,
    /// The user ended all sessions.
    SignedOutEverywhere,
    /// The user signed out.
    Logout,
    /// Another user signed in with the same browser.
    AnotherUser,
    /// The user has more sessions than allowed.
    TooManySessions,
    /// The client has more grants of the user than allowed.
    TooManyGrants,
    /// The user withdrew a consent.
    ConsentWithdrawn,
    /// An authorization code was used a second time.
    CodeReplay,
    /// A refresh token was used a second time.
    RefreshTokenReuse,
}

impl RevocationReason {
    /// Returns the reason that an operator gave, if any.
    pub fn stated(reason: Option<&str>) -> Self {
        reason.map_or(Self::Revoked, |reason| Self::Stated(reason.to_owned()))
    }

    /// Returns the reason as stored.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Revoked => "revoked",
            Self::Stated(reason) => reason,
            Self::Disabled => "disabled",
            Self::Deleted => "deleted",
            Self::SecretCompromised => "secret compromised",
            Self::PasswordChanged => "password changed",
            Self::SignedOutEverywhere => "signed out everywhere",
            Self::Logout => "logout",
            Self::AnotherUser => "another person signed in",
            Self::TooManySessions => "too many sessions",
            Self::TooManyGrants => "too many grants",
            Self::ConsentWithdrawn => "consent withdrawn",
            Self::CodeReplay => "code replay",
            Self::RefreshTokenReuse => "refresh token reuse",
        }
    }
}

/// What a change was made to. Its text form is what audit events store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A user.
    User(UserId),
    /// A registered client.
    Client(ClientId),
    /// A registered API, by its audience.
    Resource(String),
    /// A scope.
    Scope(String),
    /// A session.
    Session(Sid),
    /// A grant.
    Grant(GrantId),
    /// An access token, by its `jti`.
    Token(String),
    /// A signing key, by its `kid`.
    Key(String),
    /// All signing keys and server secrets.
    Keys,
    /// A version of the server secret.
    ServerSecret(i64),
    /// An epoch of the revocation feed.
    Feed(i64),
    /// An address whose failed sign-ins are counted.
    Address(IpAddr),
    /// All counters of failed sign-ins.
    Throttles,
    /// A link for the first administrator.
    SetupLink,
    /// The audit log itself.
    Audit,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(f, "user:{id}"),
            Self::Client(id) => write!(f, "client:{id}"),
            Self::Resource(audience) => write!(f, "resource:{audience}"),
            Self::Scope(scope) => write!(f, "scope:{scope}"),
            Self::Session(sid) => write!(f, "session:{sid}"),
            Self::Grant(id) => write!(f, "grant:{id}"),
            Self::Token(jti) => write!(f, "token:{jti}"),
            Self::Key(kid) => write!(f, "key:{kid}"),
            Self::Keys => f.write_str("keys"),
            Self::ServerSecret(version) => write!(f, "server_secret:{version}"),
            Self::Feed(epoch) => write!(f, "feed:{epoch}"),
            Self::Address(address) => write!(f, "address:{}", address.to_canonical()),
            Self::Throttles => f.write_str("throttles:all"),
            Self::SetupLink => f.write_str("setup_link"),
            Self::Audit => f.write_str("audit"),
        }
    }
}

/// A stored event, byte for byte as a seal covers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Row id, ordered by time.
    pub id: String,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub name: String,
    /// Who did it.
    pub actor: String,
    /// What it was done to.
    pub target: String,
    /// The reason.
    pub reason: Option<String>,
    /// Details, as JSON text.
    pub detail: String,
}

/// The order in time of sealed events.
#[derive(Debug, Default)]
pub struct Chronology {
    /// The latest time of an event that a node wrote.
    newest: Option<Timestamp>,
}

impl Chronology {
    /// Follows the next event. Returns whether it is dated more than a minute before an event that was sealed earlier:
    /// a process whose clock is wrong wrote it, or someone who can write to the database.
    ///
    /// Events of commands are no reference, because nothing compares the clock of the machine where a command runs.
    /// Otherwise one command with a clock that is ahead would make all later events look late.
    pub fn is_late(&mut self, row: &Row) -> bool {
        let is_late = self
            .newest
            .is_some_and(|newest| row.at + CLOCKS_APART < newest);
        if !row.is_by_command() {
            self.newest = self.newest.max(Some(row.at));
        }
        is_late
    }
}

impl Row {
    fn is_by_command(&self) -> bool {
        let operator = Actor::Operator.to_string();
        let rest = self.actor.strip_prefix(&operator);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    }

    /// Returns an injective encoding of the row: each field is preceded by its length.
    pub fn bytes(&self) -> Vec<u8> {
        let at = self.at.micros().to_be_bytes();
        let fields: [Option<&[u8]>; 7] = [
            Some(self.id.as_bytes()),
            Some(&at),
            Some(self.name.as_bytes()),
            Some(self.actor.as_bytes()),
            Some(self.target.as_bytes()),
            self.reason.as_deref().map(str::as_bytes),
            Some(self.detail.as_bytes()),
        ];
        let mut bytes = Vec::new();
        for field in fields {
            // An absent field is not an empty one.
            let length = field.map_or(u64::MAX, |field| field.len() as u64);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(field.unwrap_or_default());
        }
        bytes
    }
}

macro_rules! names {
    ($($(#[doc = $doc:literal])* $variant:ident $name:literal;)*) => {
/// The name of an audit event: `noun.verb`. `docs/audit.md` lists all of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Name {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Name {
        /// All names.
pub const ALL: &'static [Self] = &[$(Self::$variant),*];

/// Returns the name as it is stored and logged.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

names! {
    /// A client was registered.
    ClientCreated "client.created";
    /// A client's registration was changed.
    ClientUpdated "client.updated";
/// A client was disabled, and its codes, grants and tokens were revoked.
    ClientDisabled "client.disabled";
/// A client was enabled.
    ClientEnabled "client.enabled";
/// A client was deleted, and its codes, grants and tokens were revoked. Its id is never assigned again.
    ClientDeleted "client.deleted";
/// A secret of a client was created.
    ClientSecretCreated "client.secret_created";
    /// An API was registered.
    ResourceCreated "resource.created";
    /// An API's registration was changed.
    ResourceUpdated "resource.updated";
    /// An API's registration was removed.
    ResourceDeleted "resource.deleted";
/// The description of a scope on the consent page was changed.
    ScopeDescribed "scope.described";
/// A user was created.
    UserCreated "user.created";
/// The claims of a user were changed.
    UserUpdated "user.updated";
/// A user was disabled, and their sessions, grants and tokens were revoked.
    UserDisabled "user.disabled";
/// A user was enabled.
    UserEnabled "user.enabled";
/// A user was signed out everywhere, and all earlier sessions, grants and tokens were revoked.
    UserCutOff "user.cut_off";
/// A password was set, and all earlier sessions, grants and tokens were revoked.
    UserCredentialChanged "user.credential_changed";
/// An operator cleared counters of failed sign-ins.
    ThrottlesCleared "throttles.cleared";
/// The first administrator was created, by a set-up link or temporarily by the configuration.
    AdminBootstrap "admin.bootstrap";
/// A one-time link for the first administrator was created.
    SetupLinkCreated "admin.link_created";
    /// A browser opened the link for the first administrator.
    SetupLinkOpened "admin.link_opened";
/// A user signed in.
    SessionBegun "session.begun";
/// A session was revoked, by a sign-out or because another user signed in.
    SessionEnded "session.ended";
/// A user gave consent to a client.
    ConsentGiven "consent.given";
/// A user denied consent to a client.
    ConsentDenied "consent.denied";
/// A user revoked the consent to a client, and with it the client's grants.
    ConsentRevoked "consent.revoked";
/// A code was replayed, so its grant was revoked.
    CodeReplay "code.replay";
/// A refresh token was reused, so its grant was revoked.
    RefreshReuse "token.refresh_reuse";
/// A client revoked one of its tokens (RFC 7009).
    RevocationDone "revocation.done";
/// A restored database was recovered, and everything that was issued before was revoked (critical).
    DatabaseRecovered "database.recovered";
/// A signing key was created.
    KeyCreated "key.created";
/// A signing key was revoked (critical).
    KeyRevoked "key.revoked";
/// The private key of a retired signing key was destroyed.
    KeyDestroyed "key.destroyed";
/// Values were encrypted under another key-encrypting key.
    KeyRewrapped "key.rewrapped";
/// The clean-up removed expired events.
    AuditSwept "audit.swept";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(actor: &str, secs: u64) -> Row {
        Row {
            id: "1".to_owned(),
            at: Timestamp::from_secs(secs),
            name: "a.b".to_owned(),
            actor: actor.to_owned(),
            target: "user:x".to_owned(),
            reason: None,
            detail: "{}".to_owned(),
        }
    }

    #[test]
    fn late_events_are_found_and_clocks_of_commands_do_not_matter() {
        let mut order = Chronology::default();
        for (actor, secs, wanted) in [
            ("node", 1_000, false),
            ("user:clio", 940, false),
            ("cli:root", 90_000, false),
            ("cli", 90_001, false),
            ("node", 1_001, false),
            ("cli:root", 900, true),
            ("node", 940, true),
            ("client:x", 1_002, false),
        ] {
            assert_eq!(order.is_late(&row(actor, secs)), wanted, "{actor} {secs}");
        }
    }

    #[test]
    fn different_rows_have_different_bytes() {
        let row = row("cli", 1);
        let moved = Row {
            actor: "cliuser".to_owned(),
            target: ":x".to_owned(),
            ..row.clone()
        };
        let empty = Row {
            reason: Some(String::new()),
            ..row.clone()
        };
        assert_ne!(row.bytes(), moved.bytes());
        assert_ne!(row.bytes(), empty.bytes());
    }
}
