//! The storage interface of the protocol. `find_` reads, `take_` succeeds at most once per value, `put_`
//! inserts, `revoke_` revokes.

use super::code::Code;
use super::error::{self, Detail, Error};
use super::grant::Grant;
use crate::audit::{Actor, Event, RevocationReason};
use crate::id::{ClientId, GrantId};
use crate::secret::Hash;
use crate::time::Timestamp;

/// The result of a step inside a transaction. The inner error is a rejection, which commits. A
/// [`StorageError`] rolls the transaction back.
pub type Outcome<T, E = Error> = Result<Result<T, E>, StorageError>;

/// A storage failure. The state is unknown, so the request fails as well.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The database cannot be reached or is too busy.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// Too many pages use the database at the same time.
    #[error("too many pages use the database at the same time")]
    Busy,
    /// A statement failed.
    #[error("the database refused a statement: {0}")]
    Statement(String),
    /// A row contradicts itself.
    #[error("{table}.{column} of {id} is not readable")]
    Row {
        /// Table.
        table: &'static str,
        /// Column.
        column: &'static str,
        /// Primary key.
        id: String,
    },
    /// The value already exists.
    #[error("it exists already: {0}")]
    Duplicate(String),
    /// Another transaction changed the row first.
    #[error("{0} was changed concurrently")]
    Overtaken(String),
}

impl From<StorageError> for Error {
    /// Converts every storage failure to a 503 error, because no response may depend on unknown state.
    fn from(error: StorageError) -> Self {
        let detail = match error {
            StorageError::Busy => Detail::new("login.busy", "connections"),
            _ => Detail::high("storage.error", "storage"),
        };
        Self {
            code: error::Code::TemporarilyUnavailable,
            detail,
            source: Some(Box::new(error)),
            compared: None,
        }
    }
}

/// The operations of one transaction.
pub trait Ledger {
    /// Inserts an authorization code.
    fn put_code(&mut self, code: &Code) -> Result<(), StorageError>;

    /// Inserts a grant.
    fn put_grant(&mut self, grant: &Grant) -> Result<(), StorageError>;

    /// Consumes a code, whichever client sent it. `None` if it is unknown, expired or already used.
    fn take_code(&mut self, hash: &Hash, now: Timestamp) -> Result<Option<Code>, StorageError>;

    /// Finds a code that was used before.
    fn find_used_code(&mut self, hash: &Hash) -> Result<Option<Code>, StorageError>;

    /// Returns whether a code was ever issued.
    fn has_code(&mut self, hash: &Hash) -> Result<bool, StorageError>;

    /// Finds an active grant: it is neither revoked nor expired, it has the current auth epochs of client,
    /// user and feed, and its consent and (unless it is offline) its session are active.
    fn find_active_grant(
        &mut self,
        id: &GrantId,
        now: Timestamp,
    ) -> Result<Option<Grant>, StorageError>;

    /// Increments the generation of an active grant of this client, if it is `generation`, in one conditional
    /// statement. `None` if the condition does not hold.
    fn rotate_grant(
        &mut self,
        id: &GrantId,
        generation: i64,
        client: &ClientId,
        idle_until: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Grant>, StorageError>;

    /// Returns whether the idle or the absolute lifetime of a grant that is not revoked is over.
    fn is_expired(&mut self, id: &GrantId, now: Timestamp) -> Result<bool, StorageError>;

    /// Revokes a grant and writes its revocation record. Returns `false` if it was already revoked.
    fn revoke_grant(
        &mut self,
        id: &GrantId,
        reason: &RevocationReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, StorageError>;

    /// Revokes the oldest grants of a user to a client if `new`, whose code was just consumed, exceeds the
    /// limit. Grants whose code was not consumed do not count.
    fn revoke_surplus_grants(&mut self, new: &Grant, now: Timestamp) -> Result<(), StorageError>;

    /// Undoes everything that the transaction wrote. The request is still answered.
    fn undo(&mut self);

    /// Writes the revocation record of an access token, which is kept until the token expires.
    fn revoke_token(
        &mut self,
        jti: &str,
        expires_at: Timestamp,
        reason: &RevocationReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StorageError>;

    /// Writes an audit event in the transaction of the change.
    fn put_audit(&mut self, event: &Event) -> Result<(), StorageError>;
}
