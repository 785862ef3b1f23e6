//! Token introspection: RFC 7662, only for registered resource servers. A token for an audience of another
//! resource server is reported as inactive.

use portcullis_verifier::{Claims, Need, Rejected, Verifier};
use serde_json::{Map, Value, json};

use super::client_auth::AuthenticatedClient;
use super::error::{Description, Error};
use super::grant::Grant;
use super::macros::details;
use super::request::params::{Params, Problem};
use crate::id::GrantId;
use crate::keys::ServerSecrets;
use crate::time::Timestamp;

/// The token to introspect, before any look-up.
#[derive(Debug)]
pub enum IntrospectionRequest {
    /// A genuine access token for an audience of the caller that has not expired.
    Access(Box<Claims>),
    /// A genuine refresh token: its grant and generation.
    Refresh(GrantId, i64),
    /// A value that is reported as inactive without a look-up.
    Inactive,
}

details! {
    enum Rejection {
        PublicClient => Detail::new("client.auth_failed", "method"),
        NoResourceServer => Detail::new("introspection.denied", "no_resource_server")
            .described(Description::RESOURCE_SERVER),
        MissingToken => Detail::new("token.rejected", "token").described(Description::TOKEN),
    }
}

impl IntrospectionRequest {
    /// Reads the parameter `token` (§2.1). `token_type_hint` is not needed.
    ///
    /// # Errors
    /// `invalid_client` for a public client, because the caller must authenticate (§2.1); `unauthorized_client` for a
    /// client that is not a resource server; `invalid_request`.
    pub fn read(
        form: &Params,
        client: &AuthenticatedClient,
        secret: &ServerSecrets,
        verifier: &Verifier,
        now: Timestamp,
    ) -> Result<Self, Error> {
        form.check_token_request()?;
        if !client.client().is_confidential() {
            return Err(Error::invalid_client(Rejection::PublicClient));
        }
        let audiences = &client.client().serves;
        if audiences.is_empty() {
            return Err(Error::unauthorized_client(Rejection::NoResourceServer));
        }
        let token = form.one("token").map_err(Problem::in_token_request)?;
        let token = token.ok_or_else(|| Error::invalid_request(Rejection::MissingToken))?;
        if let Some((grant, generation)) = secret.read_refresh_token(token) {
            return Ok(Self::Refresh(grant, generation));
        }
        let claims = verify_own(verifier, token, &Need::any(), now).ok();
        let claims = claims.filter(|claims| audiences.contains(&claims.aud));
        Ok(claims.map_or(Self::Inactive, |claims| Self::Access(Box::new(claims))))
    }
}

/// Verifies an access token that this server issued. Unlike at a resource server there is no leeway at `exp`,
/// because this server's own clock set it (§4). The leeway of `verifier` is for `iat`, because another node may
/// have issued the token.
///
/// # Errors
/// [`Rejected`].
pub fn verify_own(
    verifier: &Verifier,
    token: &str,
    need: &Need,
    now: Timestamp,
) -> Result<Claims, Rejected> {
    let claims = verifier.verify_at(token, need, now.secs())?;
    match now.secs() < claims.exp {
        true => Ok(claims),
        false => Err(Rejected::Expired),
    }
}

/// Returns the response for an inactive token, which reveals nothing else (§2.2).
pub fn inactive() -> Map<String, Value> {
    Map::from_iter([("active".to_owned(), false.into())])
}

/// Returns the response for an active access token: its own claims (§2.2).
pub fn access(claims: &Claims) -> Map<String, Value> {
    let mut response = match serde_json::to_value(claims) {
        Ok(Value::Object(response)) => response,
        _ => return inactive(),
    };
    response.insert("active".to_owned(), true.into());
    response.insert("token_type".to_owned(), "Bearer".into());
    response
}

/// Returns the response for a refresh token (§2.2). It is active if it is the current one of an active grant and
/// if its own client asks. A resource server that received one by mistake learns nothing.
pub fn refresh(
    grant: Option<&Grant>,
    generation: i64,
    client: &AuthenticatedClient,
    issuer: &str,
) -> Map<String, Value> {
    let grant = grant
        .filter(|grant| grant.generation == generation && grant.client_id == client.client().id);
    let effective =
        grant.and_then(|grant| grant.within(&client.client().scopes, client.resources()));
    let (Some(grant), Some(effective)) = (grant, effective) else {
        return inactive();
    };
    let response = json!({
        "active": true,
        "iss": issuer,
        "sub": grant.user_id.as_str(),
        "client_id": grant.client_id.as_str(),
        "scope": effective.scope.to_string(),
        "iat": grant.rotated_at.secs(),
        "exp": grant.idle_until.min(grant.expires_at).secs(),
    });
    match response {
        Value::Object(response) => response,
        _ => inactive(),
    }
}
