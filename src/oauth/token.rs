//! The token endpoint: RFC 6749 §3.2. The phases that all grants share, and the choice of the grant.

use super::client_auth::AuthenticatedClient;
use super::error::{Description, Error};
use super::grant::{GrantType, grant_types};
use super::grants::request::{GrantContext, GrantRequest as _};
use super::grants::{authorization_code, client_credentials, refresh_token};
use super::issue::{PendingTokens, TokenIssuer};
use super::ledger::{Ledger, Outcome};
use super::macros::details;
use super::request::params::{Params, Problem};

/// A parsed token request.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    grant: GrantRequest,
    /// `resource` (RFC 8707 §2.2): at most one, because a token has one audience.
    resource: Option<String>,
}

macro_rules! define_grant_request {
    ($($variant:ident $name:literal $module:ident::$request:ident,)*) => {
        /// The parameters of the requested grant.
        #[derive(Clone, Debug)]
        enum GrantRequest {
            $($variant($module::$request),)*
        }

        impl GrantRequest {
            fn parse(grant_type: GrantType, form: &Params) -> Result<Self, Error> {
                Ok(match grant_type {
                    $(GrantType::$variant => Self::$variant($module::$request::parse(form)?),)*
                })
            }

            fn grant_type(&self) -> GrantType {
                match self {
                    $(Self::$variant(_) => GrantType::$variant,)*
                }
            }

            fn issue(
                &self,
                context: &GrantContext<'_>,
                ledger: &mut dyn Ledger,
            ) -> Outcome<PendingTokens> {
                match self {
                    $(Self::$variant(request) => request.issue(context, ledger),)*
                }
            }

            fn issue_without_ledger(
                &self,
                context: &GrantContext<'_>,
            ) -> Option<Result<PendingTokens, Error>> {
                match self {
                    $(Self::$variant(request) => request.issue_without_ledger(context),)*
                }
            }
        }
    };
}
grant_types!(define_grant_request);

details! {
    enum Rejection {
        MissingGrantType =>
            Detail::new("token.rejected", "grant_type").described(Description::GRANT_TYPE),
        GrantType => Detail::new("token.rejected", "grant_type"),
        ManyResources =>
            Detail::new("token.rejected", "resource").described(Description::ONE_RESOURCE),
    }
}

impl TokenRequest {
    /// Parses the form.
    ///
    /// # Errors
    /// `invalid_request` for a malformed or repeated parameter, `unsupported_grant_type`.
    pub fn parse(form: &Params) -> Result<Self, Error> {
        form.check_token_request()?;
        let grant_type = form.one("grant_type").map_err(Problem::in_token_request)?;
        let grant_type =
            grant_type.ok_or_else(|| Error::invalid_request(Rejection::MissingGrantType))?;
        let grant_type = GrantType::parse(grant_type)
            .ok_or_else(|| Error::unsupported_grant_type(Rejection::GrantType))?;
        let grant = GrantRequest::parse(grant_type, form)?;
        let resources = form.many("resource").map_err(Problem::in_token_request)?;
        let resource = match resources.as_slice() {
            [] => None,
            [resource] => Some((*resource).to_owned()),
            _ => return Err(Error::invalid_target(Rejection::ManyResources)),
        };
        Ok(Self { grant, resource })
    }

    /// Returns the requested grant type.
    pub fn grant_type(&self) -> GrantType {
        self.grant.grant_type()
    }

    /// Decides the request without the database, if its grant does not need it or if the client may not use
    /// the grant.
    pub fn issue_without_ledger(
        &self,
        client: &AuthenticatedClient,
        issuer: TokenIssuer<'_>,
    ) -> Option<Result<PendingTokens, Error>> {
        match self.context(client, issuer) {
            Ok(context) => self.grant.issue_without_ledger(&context),
            Err(error) => Some(Err(error)),
        }
    }

    /// Decides the request inside one transaction. A rejection, which may record something, commits.
    ///
    /// # Errors
    /// [`StorageError`](super::StorageError); the transaction is rolled back.
    pub fn issue(
        &self,
        client: &AuthenticatedClient,
        ledger: &mut dyn Ledger,
        issuer: TokenIssuer<'_>,
    ) -> Outcome<PendingTokens> {
        match self.context(client, issuer) {
            Ok(context) => self.grant.issue(&context, ledger),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Checks that the client is registered for the grant. The type of `client` says that it is
    /// authenticated.
    fn context<'a>(
        &'a self,
        client: &'a AuthenticatedClient,
        issuer: TokenIssuer<'a>,
    ) -> Result<GrantContext<'a>, Error> {
        if !client.client().may_use(self.grant_type()) {
            let known = client.client().grant_types.iter();
            let known: Vec<&str> = known.map(|grant| grant.as_str()).collect();
            let error = Error::unauthorized_client(Rejection::GrantType);
            return Err(error.comparing(self.grant_type().as_str(), known.join(" ")));
        }
        Ok(GrantContext {
            client,
            resource: self.resource.as_deref(),
            issuer,
        })
    }
}
