//! The client credentials grant: RFC 6749 §4.4. A machine acts for itself; there is no refresh token.

use crate::oauth::client::Client;
use crate::oauth::client_auth::AuthenticatedClient;
use crate::oauth::error::{Detail, Error};
use crate::oauth::issue::{PendingTokens, TokenIssuer};
use crate::oauth::request::params::Params;
use crate::oauth::request::scope::{IDENTITY, Scope};
use crate::oauth::resource::{self, Resource};
use crate::oauth::token::refuse;

/// What the client brought.
#[derive(Clone, Debug)]
pub struct ClientCredentialsRequest {
    scope: Option<Scope>,
}

fn rejected(reason: &'static str) -> Detail {
    Detail::new("token.rejected", reason)
}

impl ClientCredentialsRequest {
    /// Parses the form of §4.4.2.
    ///
    /// # Errors
    /// `invalid_scope`, also for scopes that speak about a person: there is none.
    pub fn parse(form: &Params) -> Result<Self, Error> {
        let refused = || Error::invalid_scope(rejected("scope"));
        let scope = form.one("scope").map_err(refuse)?.map(Scope::parse);
        let scope = scope.transpose().map_err(|_| refused())?;
        if scope
            .iter()
            .flat_map(Scope::iter)
            .any(|token| IDENTITY.contains(&token))
        {
            return Err(refused());
        }
        Ok(Self { scope })
    }
}

/// Decides what the client gets for itself. Nothing is looked up: what is known of the client is
/// enough, and its token carries the numbers by which a cut-off finds it.
///
/// # Errors
/// `invalid_scope`, `invalid_target`, `unauthorized_client`.
pub fn grant(
    presented: &ClientCredentialsRequest,
    asked: Option<&str>,
    proven: &AuthenticatedClient,
    mint: TokenIssuer<'_>,
) -> Result<PendingTokens, Error> {
    let client = proven.client();
    // 1. §4.4: confidential clients alone.
    if !client.is_confidential() {
        return Err(Error::unauthorized_client(rejected("public")));
    }
    // 2. One API, and scopes of it that the client may ask for; without a wish, all of them.
    let (scope, target) = resolve_audience(client, presented, asked, proven.resources())?;
    Ok(mint.for_client(client, proven.feed_epoch(), &scope, target))
}

fn resolve_audience<'k>(
    client: &Client,
    presented: &ClientCredentialsRequest,
    asked: Option<&str>,
    known: &'k [Resource],
) -> Result<(Scope, Option<&'k Resource>), Error> {
    let wanted = presented.scope.clone().unwrap_or_default();
    let named: Vec<&str> = asked.into_iter().collect();
    let targets = resource::targets(client, known, &named, &wanted)?;
    let target = known.iter().find(|r| Some(&r.audience) == targets.first());
    let scope = match (&presented.scope, target) {
        (Some(scope), _) => scope.clone(),
        (None, Some(target)) => client.scopes.retain(|token| target.scopes.contains(token)),
        (None, None) => Scope::default(),
    };
    Ok((scope, target))
}
