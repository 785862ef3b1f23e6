//! The error of every operation on keys.

use super::ring::Ring;

/// Why a key cannot be generated, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A sealed value names a KEK that is not configured.
    #[error(
        "{what} is sealed under the key-encrypting key {kek}, which is not configured in `keys.kek`"
    )]
    UnknownKek {
        /// The row.
        what: String,
        /// The id of the KEK.
        kek: String,
    },
    /// A sealed value does not open: the KEK is wrong or the row was changed.
    #[error(
        "{0} does not open: its row was changed, or its key-encrypting key is not the one it was sealed under"
    )]
    Corrupt(String),
    /// The configuration of the KEK is wrong.
    #[error("{0}")]
    Kek(String),
    /// A key could not be generated or encoded.
    #[error("key generation failed: {0}")]
    Generate(String),
    /// No key of the ring can sign now.
    #[error("no usable {0} signing key")]
    NoSigner(Ring),
    /// This node has not confirmed its keys with the database for too long, so one of them may be
    /// revoked.
    #[error("the signing keys have not been confirmed for too long")]
    NoLease,
    /// The database was restored from an older backup, and the operator has not run `recover` yet.
    #[error("the database was restored from an older copy")]
    Restored,
    /// The clocks of this node and of the database disagree.
    #[error("the clocks of this node and of the database disagree")]
    Clock,
    /// A key that the operator supplied is not acceptable.
    #[error("this key cannot be used: {0}")]
    Refused(&'static str),
    /// The signature operation failed.
    #[error("signing failed: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}
