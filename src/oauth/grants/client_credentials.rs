//! The client credentials grant: RFC 6749 §4.4. A confidential client acts for itself, without a user and
//! without a refresh token.

use super::request::{GrantContext, GrantRequest};
use crate::oauth::client_auth::AuthenticatedClient;
use crate::oauth::error::Error;
use crate::oauth::issue::PendingTokens;
use crate::oauth::ledger::{Ledger, Outcome};
use crate::oauth::macros::details;
use crate::oauth::request::params::{Params, Problem};
use crate::oauth::request::scope::{IDENTITY, Scope};
use crate::oauth::resource::{self, Resource};

/// The parameters of the grant.
#[derive(Clone, Debug)]
pub struct ClientCredentialsRequest {
    scope: Option<Scope>,
}

details! {
    enum Rejection {
        Scope => Detail::new("token.rejected", "scope"),
        PublicClient => Detail::new("token.rejected", "public"),
    }
}

impl GrantRequest for ClientCredentialsRequest {
    /// Parses the form of §4.4.2. A scope that describes a user is invalid, because there is no user.
    fn parse(form: &Params) -> Result<Self, Error> {
        let invalid = || Error::invalid_scope(Rejection::Scope);
        let scope = form.one("scope").map_err(Problem::in_token_request)?;
        let scope = scope.map(Scope::parse).transpose().map_err(|_| invalid())?;
        let is_identity = |token: &str| IDENTITY.contains(&token);
        if let Some(scope) = &scope
            && scope.iter().any(is_identity)
        {
            let refused = scope.retain(is_identity);
            return Err(invalid().comparing(refused.to_string(), "client_credentials"));
        }
        Ok(Self { scope })
    }

    fn issue(&self, context: &GrantContext<'_>, _: &mut dyn Ledger) -> Outcome<PendingTokens> {
        Ok(self.decide(context))
    }

    fn issue_without_ledger(
        &self,
        context: &GrantContext<'_>,
    ) -> Option<Result<PendingTokens, Error>> {
        Some(self.decide(context))
    }
}

impl ClientCredentialsRequest {
    /// Decides whether tokens are issued. Does not access the database: the cached registration is
    /// sufficient, and the token carries the epochs that revoke it with its client.
    fn decide(&self, context: &GrantContext<'_>) -> Result<PendingTokens, Error> {
        let client = context.client.client();
        // 1. §4.4: only confidential clients.
        if !client.is_confidential() {
            return Err(Error::unauthorized_client(Rejection::PublicClient));
        }
        // 2. One API, and its scopes for which the client is registered: the requested ones, or all.
        let (scope, target) = self.resolve_audience(context.client, context.resource)?;
        let feed_epoch = context.client.feed_epoch();
        Ok(context
            .issuer
            .for_client(client, feed_epoch, &scope, target))
    }

    fn resolve_audience<'r>(
        &self,
        client: &'r AuthenticatedClient,
        requested: Option<&str>,
    ) -> Result<(Scope, Option<&'r Resource>), Error> {
        let (scopes, registered) = (&client.client().scopes, client.resources());
        let scope = self.scope.clone().unwrap_or_default();
        let requested: Vec<&str> = requested.into_iter().collect();
        let targets = resource::targets(scopes, registered, &requested, &scope)?;
        // Without a user there is no UserInfo, so a token for no API in particular is for the client's first one.
        let target = match targets.first() {
            Some(first) => registered
                .iter()
                .find(|resource| resource.audience == first),
            None => registered.first(),
        };
        let scope = match (&self.scope, target) {
            (Some(scope), _) => scope.clone(),
            (None, Some(target)) => scopes.retain(|token| target.scopes.contains(token)),
            (None, None) => Scope::default(),
        };
        Ok((scope, target))
    }
}
