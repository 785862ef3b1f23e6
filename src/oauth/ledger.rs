//! What the protocol asks to be remembered, in its own words. `find_` may find none, `take_`
//! succeeds at most once ever, `put_` writes, `end_` ends.

use super::grants::Grant;
use super::grants::authorization_code::Code;
use crate::audit::{Actor, Event, RevocationReason};
use crate::id::{ClientId, GrantId};
use crate::secret::Hash;
use crate::time::Timestamp;

/// A storage failure: nothing is known, nothing may be answered from it.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The database cannot be reached, or is too busy.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
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
    /// The value exists already.
    #[error("it exists already: {0}")]
    Duplicate(String),
    /// Somebody else changed the row first.
    #[error("{0} was changed concurrently")]
    Overtaken(String),
}

/// One transaction's view of what is stored.
pub trait Ledger {
    /// Writes a code beside its grant.
    fn put_code(&mut self, code: &Code) -> Result<(), StorageError>;

    /// Writes a grant.
    fn put_grant(&mut self, grant: &Grant) -> Result<(), StorageError>;

    /// Uses a code up, whoever presents it. `None` when it is unknown, too old or used already.
    fn take_code(&mut self, hash: &Hash, now: Timestamp) -> Result<Option<Code>, StorageError>;

    /// A code that was used before.
    fn find_used_code(&mut self, hash: &Hash) -> Result<Option<Code>, StorageError>;

    /// Whether a code was ever given out.
    fn has_code(&mut self, hash: &Hash) -> Result<bool, StorageError>;

    /// A grant that still stands: not ended, not expired, begun under the current auth epochs of
    /// client, user and feed, its session (unless offline) and its consent not ended.
    fn find_active_grant(
        &mut self,
        id: &GrantId,
        now: Timestamp,
    ) -> Result<Option<Grant>, StorageError>;

    /// Raises the generation of a standing grant of this client from `generation` by one, in one
    /// conditional statement: `None` when it is not there any more.
    fn rotate_grant(
        &mut self,
        id: &GrantId,
        generation: i64,
        client: &ClientId,
        idle_until: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Grant>, StorageError>;

    /// Whether a grant that nobody ended ran out of time, at rest or in all.
    fn is_expired(&mut self, id: &GrantId, now: Timestamp) -> Result<bool, StorageError>;

    /// Ends a grant and puts its record on the blocklist; `false` when it had ended before.
    fn revoke_grant(
        &mut self,
        id: &GrantId,
        reason: &RevocationReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, StorageError>;

    /// Revokes the oldest grants of a user to a client that with `new`, whose code was just redeemed, has
    /// more than it may. Grants whose code was not redeemed do not count.
    fn revoke_surplus_grants(&mut self, new: &Grant, now: Timestamp) -> Result<(), StorageError>;

    /// Undoes all that the transaction wrote; a refusal is answered all the same.
    fn undo(&mut self);

    /// Puts an access token on the blocklist until it expires.
    fn revoke_token(
        &mut self,
        jti: &str,
        expires_at: Timestamp,
        reason: &RevocationReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StorageError>;

    /// Writes an audit event; without it the change does not happen.
    fn put_audit(&mut self, event: &Event) -> Result<(), StorageError>;
}
