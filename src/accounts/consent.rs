//! Consents: what a user allowed a client.

use crate::id::{ClientId, ConsentId, UserId};
use crate::secret::Hash;
use crate::time::Timestamp;

/// A row of `consents` that was not withdrawn.
#[derive(Clone, Debug)]
pub struct Consent {
    /// Row id. Grants that rest on the consent refer to it.
    pub id: ConsentId,
    /// The user.
    pub user_id: UserId,
    /// The client.
    pub client_id: ClientId,
    /// The allowed scope in the syntax of RFC 6749 §3.3.
    pub scope: String,
    /// Hash of the client's registration at the time. If it changes, the user is asked again.
    pub client_shape: Hash,
    /// When the user last decided.
    pub granted_at: Timestamp,
    /// When the user is asked again.
    pub expires_at: Timestamp,
}
