//! Grants: the registry of grant types, and the stored authorization of a user for a client.

use super::error::Error;
use super::macros::{details, names};
use super::request::scope::Scope;
use super::resource::Resource;
use crate::accounts::session::Login;
use crate::id::{ClientId, ConsentId, GrantId, Sid, UserId};
use crate::secret::Entropy;
use crate::time::Timestamp;

/// The registry of grant types: variant, registered name, and request type in `grants/`. A new grant is
/// one file there and one line here. The metadata, the registration of clients and the token endpoint
/// use this list.
macro_rules! grant_types {
    ($apply:ident) => {
        $apply! {
            AuthorizationCode "authorization_code" authorization_code::CodeRequest,
            RefreshToken "refresh_token" refresh_token::RefreshRequest,
            ClientCredentials "client_credentials" client_credentials::ClientCredentialsRequest,
        }
    };
}
pub(super) use grant_types;

macro_rules! define_grant_type {
    ($($variant:ident $name:literal $module:ident::$request:ident,)*) => {
        /// `grant_types` (RFC 7591 §2).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GrantType {
            $(#[doc = concat!("`", $name, "`.")] $variant,)*
        }

        names!(GrantType: $($variant $name),*);
    };
}
grant_types!(define_grant_type);

/// The authorization of a client by a user. It is stored when its code is issued, so that a replayed code
/// always finds the grant to revoke.
#[derive(Clone, Debug)]
pub struct Grant {
    /// `grant_id` in access tokens.
    pub id: GrantId,
    /// The authorized client.
    pub client_id: ClientId,
    /// The user who authorized it.
    pub user_id: UserId,
    /// The session in which the user authorized it.
    pub sid: Sid,
    /// The remembered consent, unless the client skips consent.
    pub consent_id: Option<ConsentId>,
    /// Whether the grant outlives its session (`offline_access`).
    pub offline: bool,
    /// The granted scope.
    pub scope: Scope,
    /// The audiences of the granted APIs; the first is the default.
    pub resources: Vec<String>,
    /// When the user authenticated.
    pub auth_time: Timestamp,
    /// Authentication context class (OIDC Core §2).
    pub acr: String,
    /// Authentication methods (OIDC Core §2).
    pub amr: Vec<String>,
    /// The client's auth epoch when the grant was created.
    pub client_epoch: i64,
    /// The user's auth epoch when the grant was created.
    pub user_epoch: i64,
    /// The feed epoch when the grant was created.
    pub feed_epoch: i64,
    /// When the grant was created.
    pub created_at: Timestamp,
    /// Absolute expiry.
    pub expires_at: Timestamp,
    /// Expiry unless the grant is used before.
    pub idle_until: Timestamp,
    /// The generation of its one valid refresh token.
    pub generation: i64,
    /// When that refresh token was issued.
    pub rotated_at: Timestamp,
}

/// The lifetimes of a grant.
#[derive(Clone, Copy, Debug)]
pub struct GrantLifetimes {
    /// While it is not used.
    pub idle: std::time::Duration,
    /// In total.
    pub absolute: std::time::Duration,
}

/// The input of [`Grant::new`].
pub struct NewGrant<'a> {
    /// The authorized client.
    pub client_id: ClientId,
    /// The client's current auth epoch.
    pub client_epoch: i64,
    /// The session in which the user authorizes it.
    pub login: &'a Login,
    /// The remembered consent, if any.
    pub consent_id: Option<ConsentId>,
    /// The granted scope.
    pub scope: Scope,
    /// The audiences of the granted APIs.
    pub resources: Vec<String>,
    /// The current feed epoch.
    pub feed_epoch: i64,
}

/// The part of a grant for which its client is still registered.
pub struct EffectiveGrant<'p> {
    /// The granted scope without the scopes that the client lost.
    pub scope: Scope,
    /// The granted resources that are still registered, in the order of the grant.
    resources: Vec<&'p Resource>,
    /// Whether the grant names resources. Otherwise its tokens are for this server.
    names_resources: bool,
}

details! {
    enum AudienceError {
        Resource => Detail::new("token.rejected", "resource"),
    }
}

impl Grant {
    /// Creates a grant, which inherits the user's epoch of the login.
    pub fn new(
        new: NewGrant<'_>,
        lifetimes: GrantLifetimes,
        entropy: &Entropy,
        now: Timestamp,
    ) -> Self {
        Self {
            id: GrantId::new(entropy, now),
            client_id: new.client_id,
            user_id: new.login.user_id.clone(),
            sid: new.login.sid.clone(),
            consent_id: new.consent_id,
            offline: new.scope.contains("offline_access"),
            scope: new.scope,
            resources: new.resources,
            auth_time: new.login.auth_time,
            acr: new.login.acr.as_str().to_owned(),
            amr: new.login.amr.values(),
            client_epoch: new.client_epoch,
            user_epoch: new.login.user_epoch,
            feed_epoch: new.feed_epoch,
            created_at: now,
            expires_at: now + lifetimes.absolute,
            idle_until: now + lifetimes.idle,
            generation: 0,
            rotated_at: now,
        }
    }

    /// Returns the intersection of this grant and the current registration of its client. `None` if no
    /// scope is left, or if an offline grant lost `offline_access`, because only that scope lets a grant
    /// outlive its session.
    pub fn within<'p>(
        &self,
        client_scopes: &Scope,
        resources: &'p [Resource],
    ) -> Option<EffectiveGrant<'p>> {
        const OFFLINE: &str = "offline_access";
        let scope = self.scope.retain(|token| client_scopes.contains(token));
        let allows_something = |scope: &Scope| scope.iter().any(|token| token != OFFLINE);
        let nothing_left = allows_something(&self.scope) && !allows_something(&scope);
        if nothing_left || (self.offline && !scope.contains(OFFLINE)) {
            return None;
        }
        let registered = |audience: &String| {
            resources
                .iter()
                .find(|resource| resource.audience == *audience)
        };
        Some(EffectiveGrant {
            scope,
            resources: self.resources.iter().filter_map(registered).collect(),
            names_resources: !self.resources.is_empty(),
        })
    }
}

impl<'p> EffectiveGrant<'p> {
    /// Returns the audience of a token: the requested resource, or the default of the grant. `None` is
    /// this server.
    ///
    /// # Errors
    /// `invalid_target` (RFC 8707 §2).
    pub fn audience(&self, requested: Option<&str>) -> Result<Option<&'p Resource>, Error> {
        let mut granted = self.resources.iter().copied();
        let target = match requested {
            Some(requested) => granted.find(|resource| resource.audience == requested),
            None if !self.names_resources => return Ok(None),
            None => granted.next(),
        };
        target.map(Some).ok_or_else(|| {
            let granted: Vec<&str> = self.resources.iter().map(|r| r.audience.as_str()).collect();
            Error::invalid_target(AudienceError::Resource)
                .comparing(requested.unwrap_or_default(), granted.join(" "))
        })
    }
}
