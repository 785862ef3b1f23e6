//! Signing keys: made, sealed, published, used.

pub mod generated;
pub mod provider;
pub mod ring;
pub mod rotation;
pub mod seal;
pub mod server_secret;
pub mod server_secrets;
pub mod view;

pub use generated::{Generated, KeySource};
pub use ring::{Alg, Ring, SigningKey, Use};
pub use seal::{Kek, Keychain, Unsealed};
pub use server_secret::ServerSecret;
pub use server_secrets::ServerSecrets;
pub use view::KeyView;

use crate::time::Timestamp;

/// Why a key cannot be made, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A sealed value names a KEK that is not configured.
    #[error(
        "{what} is sealed under the key-encrypting key {kek}, which is not configured in `keys.kek`"
    )]
    UnknownKek {
        /// The row.
        what: String,
        /// The KEK's id.
        kek: String,
    },
    /// A sealed value does not open: a wrong key, or a row that somebody changed.
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
    /// Nobody has confirmed the keys for too long: one of them may be revoked.
    #[error("the signing keys have not been confirmed for too long")]
    NoLease,
    /// The database went back in time, and nobody has recovered it yet.
    #[error("the database was restored from an older copy")]
    Restored,
    /// This node's clock and the database's do not agree.
    #[error("the clocks of this node and of the database disagree")]
    Clock,
    /// A key that somebody brought is not good enough.
    #[error("this key cannot be used: {0}")]
    Refused(&'static str),
    /// The signature itself failed.
    #[error("signing failed: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// A row of `server_secrets`.
#[derive(Clone, Debug)]
pub struct SealedSecret {
    /// Its id.
    pub id: String,
    /// 1, 2, 3 …; unique, so two nodes never both make the first.
    pub generation: i64,
    /// The sealed value.
    pub sealed: String,
    /// When it was made.
    pub created_at: Timestamp,
}
