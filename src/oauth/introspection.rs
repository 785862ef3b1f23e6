//! Token introspection: RFC 7662. For registered resource servers alone, and each learns of tokens of
//! its own audiences only: every other token is "not active", whatever it is.

use portcullis_verifier::{Claims, Need, Rejected, Verifier};
use serde_json::{Map, Value, json};

use super::client_auth::AuthenticatedClient;
use super::error::{Description, Detail, Error};
use super::grants::Grant;
use super::request::params::Params;
use super::token::refuse;
use crate::id::GrantId;
use crate::keys::ServerSecrets;
use crate::time::Timestamp;

/// What the token turned out to be, before anything is looked up.
#[derive(Debug)]
pub enum IntrospectionRequest {
    /// A genuine access token for an audience of the caller, in time.
    Access(Box<Claims>),
    /// A genuine refresh token: its grant and its generation.
    Refresh(GrantId, i64),
    /// Nothing that this caller may learn about.
    Inactive,
}

impl IntrospectionRequest {
    /// Reads `token` of the form (§2.1). The hint about its type is not needed.
    ///
    /// # Errors
    /// `unauthorized_client` for a client that is no resource server, `invalid_request`.
    pub fn read(
        form: &Params,
        proven: &AuthenticatedClient,
        secret: &ServerSecrets,
        verifier: &Verifier,
        now: Timestamp,
    ) -> Result<Self, Error> {
        if let Some(problem) = form.first_problem() {
            return Err(refuse(problem));
        }
        let served = &proven.client().serves;
        if served.is_empty() {
            let detail = Detail::new("introspection.denied", "no_resource_server");
            return Err(Error::unauthorized_client(detail));
        }
        let token = form.one("token").map_err(refuse)?;
        let token = token.ok_or_else(|| {
            let detail = Detail::new("token.rejected", "token").described(Description::TOKEN);
            Error::invalid_request(detail)
        })?;
        if let Some((grant, generation)) = secret.read_refresh_token(token) {
            return Ok(Self::Refresh(grant, generation));
        }
        let claims = verify_own(verifier, token, &Need::any(), now).ok();
        let ours = claims.filter(|claims| served.contains(&claims.aud));
        Ok(ours.map_or(Self::Inactive, |claims| Self::Access(Box::new(claims))))
    }
}

/// Verifies an access token that this server issued. Unlike for a resource server there is no leeway at
/// `exp`: the clock that set it is this server's own (§4). The leeway of `verifier` is for `iat`, since
/// another node may have issued the token.
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

/// §2.2: nothing else is told about a token that is not active.
pub fn inactive() -> Map<String, Value> {
    Map::from_iter([("active".to_owned(), false.into())])
}

/// §2.2: what an active access token says, in the words of its own claims.
pub fn access(claims: &Claims) -> Map<String, Value> {
    let mut told = match serde_json::to_value(claims) {
        Ok(Value::Object(told)) => told,
        _ => return inactive(),
    };
    told.insert("active".to_owned(), true.into());
    told.insert("token_type".to_owned(), "Bearer".into());
    told
}

/// §2.2 for the live refresh token of a standing grant, asked for by the client that holds it. A
/// resource server that was given one by mistake learns nothing.
pub fn refresh(
    grant: Option<&Grant>,
    generation: i64,
    proven: &AuthenticatedClient,
    issuer: &str,
) -> Map<String, Value> {
    let held = grant
        .filter(|grant| grant.generation == generation && grant.client_id == proven.client().id);
    let within = held.and_then(|grant| grant.within(proven.client(), proven.resources()));
    let (Some(grant), Some(within)) = (held, within) else {
        return inactive();
    };
    let told = json!({
        "active": true,
        "iss": issuer,
        "sub": grant.user_id.as_str(),
        "client_id": grant.client_id.as_str(),
        "scope": within.scope.to_string(),
        "iat": grant.rotated_at.secs(),
        "exp": grant.idle_until.min(grant.expires_at).secs(),
    });
    match told {
        Value::Object(told) => told,
        _ => inactive(),
    }
}
