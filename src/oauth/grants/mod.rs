//! The grants: one file each.

pub mod authorization_code;
pub mod client_credentials;
pub mod refresh_token;

use crate::accounts::session::Login;
use crate::id::{ClientId, ConsentId, GrantId, Sid, UserId};
use crate::oauth::client::Client;
use crate::oauth::error::{Detail, Error};
use crate::oauth::request::scope::Scope;
use crate::oauth::resource::Resource;
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
pub struct NewGrant<'a> {
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
    pub fn new(given: NewGrant<'_>, life: GrantLife, entropy: &Entropy, now: Timestamp) -> Self {
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
            acr: given.login.acr.as_str().to_owned(),
            amr: given.login.amr.values(),
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

/// What a grant still allows: each token request is decided by the present registration of its client.
pub struct EffectiveGrant<'p> {
    /// The granted scope, as far as the client is still registered for it.
    pub scope: Scope,
    /// The registered resources that were granted, in the order of the grant.
    resources: Vec<&'p Resource>,
    /// Whether the grant names resources at all; otherwise its tokens are for this server.
    names_resources: bool,
}

impl Grant {
    /// Returns the intersection of this grant and the present registration of its client. `None` when
    /// nothing of the scope is left, or when the client may no longer act while the user is away: such a
    /// grant outlives its session only by `offline_access`.
    pub fn within<'p>(
        &self,
        client: &Client,
        resources: &'p [Resource],
    ) -> Option<EffectiveGrant<'p>> {
        const OFFLINE: &str = "offline_access";
        let scope = self.scope.retain(|token| client.scopes.contains(token));
        let allows_something = |scope: &Scope| scope.iter().any(|token| token != OFFLINE);
        let nothing_left = allows_something(&self.scope) && !allows_something(&scope);
        if nothing_left || (self.offline && !scope.contains(OFFLINE)) {
            return None;
        }
        let registered =
            |audience: &String| resources.iter().find(|known| known.audience == *audience);
        Some(EffectiveGrant {
            scope,
            resources: self.resources.iter().filter_map(registered).collect(),
            names_resources: !self.resources.is_empty(),
        })
    }
}

impl<'p> EffectiveGrant<'p> {
    /// Returns the one audience of a token: the resource asked for, or the default of the grant. `None`
    /// is this server itself.
    ///
    /// # Errors
    /// `invalid_target` (RFC 8707 §2).
    pub fn audience(&self, asked: Option<&str>) -> Result<Option<&'p Resource>, Error> {
        let mut granted = self.resources.iter().copied();
        let target = match asked {
            Some(asked) => granted.find(|resource| resource.audience == asked),
            None if !self.names_resources => return Ok(None),
            None => granted.next(),
        };
        let refused = Detail::new("token.rejected", "resource");
        target
            .map(Some)
            .ok_or_else(|| Error::invalid_target(refused))
    }
}
