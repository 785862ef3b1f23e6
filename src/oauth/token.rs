//! The token endpoint: RFC 6749 §3.2. The phases that every grant shares, and the choice of grant.

use super::client::GrantType;
use super::client_auth::AuthenticatedClient;
use super::error::{Description, Detail, Error};
use super::grants::{authorization_code, client_credentials, refresh_token};
use super::issue::{PendingTokens, TokenIssuer};
use super::ledger::{Ledger, StorageError};
use super::request::params::{Params, Problem};

/// A token request after parsing.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    grant: GrantRequest,
    /// `resource` (RFC 8707 §2.2): at most one here, since a token has one audience.
    pub resource: Option<String>,
}

#[derive(Clone, Debug)]
enum GrantRequest {
    AuthorizationCode(authorization_code::CodeRequest),
    RefreshToken(refresh_token::RefreshRequest),
    ClientCredentials(client_credentials::ClientCredentialsRequest),
}

fn rejected(reason: &'static str) -> Detail {
    Detail::new("token.rejected", reason)
}

pub(super) fn refuse(problem: Problem) -> Error {
    Error::invalid_request(rejected(problem.reason()).described(problem.description()))
}

impl TokenRequest {
    /// Parses the form.
    ///
    /// # Errors
    /// `invalid_request` for anything malformed or repeated, `unsupported_grant_type`.
    pub fn parse(form: &Params) -> Result<Self, Error> {
        if let Some(problem) = form.first_problem() {
            return Err(refuse(problem));
        }
        let grant_type = form.one("grant_type").map_err(refuse)?;
        let missing = rejected("grant_type").described(Description::GRANT_TYPE);
        let grant_type = grant_type.ok_or_else(|| Error::invalid_request(missing))?;
        let grant = match GrantType::parse(grant_type) {
            Some(GrantType::AuthorizationCode) => {
                GrantRequest::AuthorizationCode(authorization_code::CodeRequest::parse(form)?)
            }
            Some(GrantType::RefreshToken) => {
                GrantRequest::RefreshToken(refresh_token::RefreshRequest::parse(form)?)
            }
            Some(GrantType::ClientCredentials) => GrantRequest::ClientCredentials(
                client_credentials::ClientCredentialsRequest::parse(form)?,
            ),
            None => return Err(Error::unsupported_grant_type(rejected("grant_type"))),
        };
        let resource = match form.many("resource").map_err(refuse)?.as_slice() {
            [] => None,
            [one] => Some((*one).to_owned()),
            _ => {
                let detail = rejected("resource").described(Description::ONE_RESOURCE);
                return Err(Error::invalid_target(detail));
            }
        };
        Ok(Self { grant, resource })
    }

    /// Which grant it asks for.
    pub fn grant_type(&self) -> GrantType {
        match self.grant {
            GrantRequest::AuthorizationCode(_) => GrantType::AuthorizationCode,
            GrantRequest::RefreshToken(_) => GrantType::RefreshToken,
            GrantRequest::ClientCredentials(_) => GrantType::ClientCredentials,
        }
    }
}

/// Decides what needs no database: a machine that acts for itself. `None` for every other grant.
pub fn decide_alone(
    request: &TokenRequest,
    proven: &AuthenticatedClient,
    mint: TokenIssuer<'_>,
) -> Option<Result<PendingTokens, Error>> {
    let GrantRequest::ClientCredentials(presented) = &request.grant else {
        return None;
    };
    let resource = request.resource.as_deref();
    let decided = may_use(request, proven)
        .and_then(|()| client_credentials::grant(presented, resource, proven, mint));
    Some(decided)
}

/// Decides inside one transaction. A refusal that records something commits too; only a [`StorageError`]
/// rolls back.
///
/// # Errors
/// [`StorageError`].
pub fn decide(
    request: &TokenRequest,
    proven: &AuthenticatedClient,
    ledger: &mut dyn Ledger,
    mint: TokenIssuer<'_>,
) -> Result<Result<PendingTokens, Error>, StorageError> {
    // 1. The client is proven: its type says so.
    // 2. It may use this grant.
    if let Err(error) = may_use(request, proven) {
        return Ok(Err(error));
    }
    // 3. The grant.
    let resource = request.resource.as_deref();
    match &request.grant {
        GrantRequest::AuthorizationCode(presented) => {
            authorization_code::redeem(presented, resource, proven, ledger, mint)
        }
        GrantRequest::RefreshToken(presented) => {
            refresh_token::rotate(presented, resource, proven, ledger, mint)
        }
        GrantRequest::ClientCredentials(presented) => {
            Ok(client_credentials::grant(presented, resource, proven, mint))
        }
    }
}

fn may_use(request: &TokenRequest, proven: &AuthenticatedClient) -> Result<(), Error> {
    if proven.client().may_use(request.grant_type()) {
        Ok(())
    } else {
        Err(Error::unauthorized_client(rejected("grant_type")))
    }
}
