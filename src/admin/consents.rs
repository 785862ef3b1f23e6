//! Consents: what a user allowed a client.

use serde_json::json;

use super::context::{AdminError, Context};
use crate::accounts::consent::Consent;
use crate::accounts::session::Login;
use crate::audit::{Name, Target};
use crate::db::Transaction;
use crate::id::{AuthorizationId, ClientId, ConsentId, UserId};
use crate::oauth::request::scope::Scope;
use crate::secret::Hash;
use crate::time::Timestamp;

/// The decision of a user about the request of a client.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The authorization that it is part of.
    pub authorization: AuthorizationId,
    /// The user's login.
    pub login: Login,
    /// The client.
    pub client_id: ClientId,
    /// What the user granted; `None` for a denial.
    pub granted: Option<Granted>,
}

/// What a user granted to a client.
#[derive(Clone, Debug)]
pub struct Granted {
    /// The scope.
    pub scope: Scope,
    /// Hash of the client's registration, as the user saw it.
    pub client_shape: Hash,
    /// When the user is asked again.
    pub expires_at: Timestamp,
}

/// Stores a decision in its authorization, and what was granted as a consent.
///
/// # Errors
/// [`AdminError::Unchanged`] if the authorization is no longer open. The consent is not stored then either.
pub fn decide(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    decision: &Decision,
) -> Result<(), AdminError> {
    let Decision {
        authorization,
        login,
        client_id,
        granted,
    } = decision;
    if let Some(granted) = granted {
        // Read in this transaction: a consent that was withdrawn meanwhile must not return.
        let active = tx.find_consent(&login.user_id, client_id)?;
        tx.put_consent(&Consent {
            id: ConsentId::new(&ctx.entropy, ctx.now),
            user_id: login.user_id.clone(),
            client_id: client_id.clone(),
            scope: remembered_scope(active.as_ref(), granted).to_string(),
            client_shape: granted.client_shape.clone(),
            granted_at: ctx.now,
            expires_at: granted.expires_at,
        })?;
    }
    let scope = granted.as_ref().map(|granted| &granted.scope);
    let name = match scope {
        Some(_) => Name::ConsentGiven,
        None => Name::ConsentDenied,
    };
    let detail = json!({ "scope": scope.map(ToString::to_string) });
    ctx.record(tx, name, Target::Client(client_id.clone()), detail)?;
    let login = (&login.user_id, &login.sid);
    match tx.record_decision(authorization, login, scope, ctx.now)? {
        true => Ok(()),
        false => Err(AdminError::Unchanged(authorization.to_string())),
    }
}

/// Returns the scope to remember: what is granted now, and what was granted before unless the client's
/// registration has changed since.
fn remembered_scope(active: Option<&Consent>, granted: &Granted) -> Scope {
    let before = active
        .filter(|active| active.client_shape.matches(&granted.client_shape))
        .and_then(|active| Scope::parse(&active.scope).ok());
    match before {
        Some(before) => before.union(&granted.scope),
        None => granted.scope.clone(),
    }
}

/// Withdraws a consent of a user and revokes the grants that rest on it.
///
/// # Errors
/// [`AdminError::Unchanged`] if the user has no such consent, or withdrew it before.
pub fn withdraw(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    user: &UserId,
    id: &ConsentId,
) -> Result<(), AdminError> {
    let Some(client) = tx.withdraw_consent(id, user, ctx.now)? else {
        return Err(AdminError::Unchanged(id.to_string()));
    };
    ctx.record(tx, Name::ConsentRevoked, Target::Client(client), json!({}))?;
    Ok(())
}
