//! What a person allowed a client, remembered.

use crate::id::{ClientId, ConsentId, UserId};
use crate::secret::Hash;
use crate::time::Timestamp;

/// A row of `consents` that has not ended.
#[derive(Clone, Debug)]
pub struct Consent {
    /// Row id; grants that rest on it name it.
    pub id: ConsentId,
    /// Who allowed.
    pub user_id: UserId,
    /// Whom.
    pub client_id: ClientId,
    /// What: a scope as RFC 6749 §3.3 writes it.
    pub scope: String,
    /// What the client looked like then; when that changes, people are asked again.
    pub client_shape: Hash,
    /// When.
    pub granted_at: Timestamp,
    /// When it is asked again.
    pub expires_at: Timestamp,
}
