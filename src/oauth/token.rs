//! The token endpoint: RFC 6749 §3.2. The phases that every grant shares, and the choice of grant.

use super::client::GrantType;
use super::client_auth::AuthenticatedClient;
use super::error::{Description, Detail, Error};
use super::grants::{authorization_code, client_credentials, refresh_token};
use super::issue::{Decided, Mint};
use super::ledger::{Failure, Ledger};
use super::params::{Params, Problem};

/// A token request after parsing.
#[derive(Clone, Debug)]
pub struct Request {
    grant: Presented,
    /// `resource` (RFC 8707 §2.2): at most one here, since a token has one audience.
    pub resource: Option<String>,
}

#[derive(Clone, Debug)]
enum Presented {
    AuthorizationCode(authorization_code::Presented),
    RefreshToken(refresh_token::Presented),
    ClientCredentials(client_credentials::Presented),
}

fn rejected(reason: &'static str) -> Detail {
    Detail::new("token.rejected", reason)
}

pub(super) fn refuse(problem: Problem) -> Error {
    Error::invalid_request(rejected(problem.reason()).described(problem.description()))
}

impl Request {
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
                Presented::AuthorizationCode(authorization_code::Presented::parse(form)?)
            }
            Some(GrantType::RefreshToken) => {
                Presented::RefreshToken(refresh_token::Presented::parse(form)?)
            }
            Some(GrantType::ClientCredentials) => {
                Presented::ClientCredentials(client_credentials::Presented::parse(form)?)
            }
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
            Presented::AuthorizationCode(_) => GrantType::AuthorizationCode,
            Presented::RefreshToken(_) => GrantType::RefreshToken,
            Presented::ClientCredentials(_) => GrantType::ClientCredentials,
        }
    }
}

/// Decides what needs no database: a machine that acts for itself. `None` for every other grant.
pub fn decide_alone(
    request: &Request,
    proven: &AuthenticatedClient,
    mint: Mint<'_>,
) -> Option<Result<Decided, Error>> {
    let Presented::ClientCredentials(presented) = &request.grant else {
        return None;
    };
    let resource = request.resource.as_deref();
    let decided = may_use(request, proven)
        .and_then(|()| client_credentials::grant(presented, resource, proven, mint));
    Some(decided)
}

/// Decides inside one transaction. A refusal that records something commits too; only a [`Failure`]
/// rolls back.
///
/// # Errors
/// [`Failure`].
pub fn decide(
    request: &Request,
    proven: &AuthenticatedClient,
    ledger: &mut dyn Ledger,
    mint: Mint<'_>,
) -> Result<Result<Decided, Error>, Failure> {
    // 1. The client is proven: its type says so.
    // 2. It may use this grant.
    if let Err(error) = may_use(request, proven) {
        return Ok(Err(error));
    }
    // 3. The grant.
    let resource = request.resource.as_deref();
    match &request.grant {
        Presented::AuthorizationCode(presented) => {
            authorization_code::redeem(presented, resource, proven, ledger, mint)
        }
        Presented::RefreshToken(presented) => {
            refresh_token::rotate(presented, resource, proven, ledger, mint)
        }
        Presented::ClientCredentials(presented) => {
            Ok(client_credentials::grant(presented, resource, proven, mint))
        }
    }
}

fn may_use(request: &Request, proven: &AuthenticatedClient) -> Result<(), Error> {
    if proven.client().may_use(request.grant_type()) {
        Ok(())
    } else {
        Err(Error::unauthorized_client(rejected("grant_type")))
    }
}
