//! The grants: one file each.

pub mod authorization_code;
pub mod client_credentials;
pub mod refresh_token;

use crate::accounts::session::Login;
use crate::id::{ClientId, ConsentId, GrantId, Sid, UserId};
use crate::oauth::client::Client;
use crate::oauth::client_auth::Proven;
use crate::oauth::error::{Detail, Error};
use crate::oauth::resource::Resource;
use crate::oauth::scope::Scope;
use crate::secret::Entropy;
use crate::time::Timestamp;

/// What one authorization allowed a client. Written when its code is issued, so a replayed code
/// always finds what to end.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Names it in access tokens: `grant_id`.
    pub id: GrantId,
    /// Who got it.
    pub client_id: ClientId,
    /// Who gave it.
    pub user_id: UserId,
    /// The login in which it was given.
    pub sid: Sid,
    /// The remembered consent it rests on; none where consent is skipped.
    pub consent_id: Option<ConsentId>,
    /// Whether it outlives its session (`offline_access`).
    pub offline: bool,
    /// What was granted.
    pub scope: Scope,
    /// For which APIs; the first is the default.
    pub resources: Vec<String>,
    /// When the person proved who they are.
    pub auth_time: Timestamp,
    /// How well (OIDC Core §2).
    pub acr: String,
    /// By what means.
    pub amr: Vec<String>,
    /// The client's auth epoch when it began.
    pub client_epoch: i64,
    /// The person's auth epoch when it began.
    pub user_epoch: i64,
    /// The feed epoch when it began.
    pub feed_epoch: i64,
    /// When it was given.
    pub created_at: Timestamp,
    /// When it ends, rested or not.
    pub expires_at: Timestamp,
    /// When it ends unless used before.
    pub idle_until: Timestamp,
    /// The generation of its one live refresh token.
    pub generation: i64,
    /// When that generation was made.
    pub rotated_at: Timestamp,
}

/// How long a grant may live.
#[derive(Clone, Copy, Debug)]
pub struct GrantLife {
    /// Unused.
    pub idle: std::time::Duration,
    /// In all.
    pub absolute: std::time::Duration,
}

/// What a grant is made of.
pub struct Given<'a> {
    /// Who gets it.
    pub client: &'a Client,
    /// The login it is given in.
    pub login: &'a Login,
    /// The remembered consent, if any.
    pub consent_id: Option<ConsentId>,
    /// What is granted.
    pub scope: Scope,
    /// For which APIs.
    pub resources: Vec<String>,
    /// The current feed epoch.
    pub feed_epoch: i64,
}

impl Grant {
    /// A new grant of `given`, inheriting the epochs of the login.
    pub fn new(given: Given<'_>, life: GrantLife, entropy: &Entropy, now: Timestamp) -> Self {
        Self {
            id: GrantId::new(entropy, now),
            client_id: given.client.id.clone(),
            user_id: given.login.user_id.clone(),
            sid: given.login.sid.clone(),
            consent_id: given.consent_id,
            offline: given.scope.contains("offline_access"),
            scope: given.scope,
            resources: given.resources,
            auth_time: given.login.auth_time,
            acr: given.login.acr.clone(),
            amr: given.login.amr.clone(),
            client_epoch: given.client.auth_epoch,
            user_epoch: given.login.user_epoch,
            feed_epoch: given.feed_epoch,
            created_at: now,
            expires_at: now + life.absolute,
            idle_until: now + life.idle,
            generation: 0,
            rotated_at: now,
        }
    }
}

/// The one audience of a token for `grant`: the resource asked for, or the grant's default. `None` is
/// this server itself.
///
/// # Errors
/// `invalid_target` (RFC 8707 §2).
pub(super) fn aim<'p>(
    grant: &Grant,
    asked: Option<&str>,
    proven: &'p Proven,
) -> Result<Option<&'p Resource>, Error> {
    let refuse = || Error::invalid_target(Detail::new("token.rejected", "resource"));
    let mut held = grant.resources.iter();
    let audience = match asked {
        Some(asked) => held.find(|held| *held == asked).ok_or_else(refuse)?,
        None => match held.next() {
            Some(first) => first,
            None => return Ok(None),
        },
    };
    let mut known = proven.resources().iter();
    let target = known.find(|known| known.audience == *audience);
    target.map(Some).ok_or_else(refuse)
}
