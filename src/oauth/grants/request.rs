//! The interface that every grant implements.

use crate::oauth::client_auth::AuthenticatedClient;
use crate::oauth::error::Error;
use crate::oauth::issue::{PendingTokens, TokenIssuer};
use crate::oauth::ledger::{Ledger, Outcome};
use crate::oauth::request::params::Params;

/// The input of a grant besides its own parameters.
pub struct GrantContext<'a> {
    /// The client, which is registered for the grant.
    pub client: &'a AuthenticatedClient,
    /// The requested resource (RFC 8707 §2.2).
    pub resource: Option<&'a str>,
    /// Issues the tokens.
    pub issuer: TokenIssuer<'a>,
}

/// The parameters of a token request that belong to one grant.
pub trait GrantRequest: Sized {
    /// Parses the form of a token request.
    ///
    /// # Errors
    /// `invalid_request`, `invalid_scope`.
    fn parse(form: &Params) -> Result<Self, Error>;

    /// Decides the request inside one transaction. A rejection, which may record something, commits.
    ///
    /// # Errors
    /// [`StorageError`](crate::oauth::StorageError); the transaction is rolled back.
    fn issue(&self, context: &GrantContext<'_>, ledger: &mut dyn Ledger) -> Outcome<PendingTokens>;

    /// Decides the request without the database, if the grant does not need it.
    fn issue_without_ledger(
        &self,
        _context: &GrantContext<'_>,
    ) -> Option<Result<PendingTokens, Error>> {
        None
    }
}
