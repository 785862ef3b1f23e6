//! Signing keys and server secrets: generation, sealing, rotation, publication, use.
//!
//! A *ring* is the set of keys with the same use and algorithm. The keys of a ring are numbered by
//! *generation*: 1, 2, 3 and so on.

pub mod client_key_set;
pub mod decoding;
pub mod error;
pub mod generated;
pub mod provider;
pub mod ring;
pub mod rotation;
pub mod seal;
pub mod server_secret;
pub mod server_secrets;
pub mod signing_key;
pub mod view;

pub use error::KeyError;
pub use generated::{Generated, KeySource};
pub use ring::{Alg, Ring, Use};
pub use seal::{Kek, Keychain, Unsealed};
pub use server_secret::{SealedSecret, ServerSecret};
pub use server_secrets::ServerSecrets;
pub use signing_key::SigningKey;
pub use view::KeyView;
