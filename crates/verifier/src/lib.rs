//! Verification of Portcullis access tokens (RFC 9068) inside a resource server. No request to the
//! issuer is made per token: a background task keeps the issuer's keys up to date.
//!
//! ```no_run
//! # async fn service(token: &str) -> Result<(), Box<dyn std::error::Error>> {
//! use portcullis_verifier::{Need, Verifier};
//!
//! let verifier = Verifier::builder("https://id.example", "https://api.example").start().await?;
//! let claims = verifier.verify(token, &Need::scope("orders:read"))?;
//! println!("hello, {}", claims.sub);
//! # Ok(())
//! # }
//! ```
//!
//! A token is checked in this order, and the first check that fails determines the error: size,
//! three parts of strict base64url, header (`alg`, `typ`, `crit`), key by `kid`, signature, claims,
//! revocation, age of the revocation data, scope, authentication of the user.
//!
//! If the verifier [subscribes](Builder::subscriber) to the issuer's revocation feed, it also
//! rejects revoked tokens:
//!
//! ```no_run
//! # async fn service(secret: &str, token: &str) -> Result<(), Box<dyn std::error::Error>> {
//! use portcullis_verifier::{MaxAge, Need, Verifier};
//!
//! let verifier = Verifier::builder("https://id.example", "https://api.example")
//!     .subscriber("billing", secret)
//!     .max_age("payments:*", MaxAge::STRICT)
//!     .start()
//!     .await?;
//! let claims = verifier.verify(token, &Need::scope("payments:write"))?;
//! # Ok(())
//! # }
//! ```
//!
//! | Item | Specification |
//! |---|---|
//! | [`Claims`] | RFC 9068 §2.2, RFC 7519 §4.1 |
//! | [`Jwk`], [`JwkSet`], [`Keys`] | RFC 7517, RFC 7518 §6, RFC 7638 |
//! | [`Rejected`] | RFC 6750 §3 |
//! | [`Frame`], [`Record`] | the issuer's revocation feed |
//! | [`Builder::start`] | OpenID Connect Discovery §4 |

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(feature = "actix")]
pub mod actix;
mod algorithm;
mod bearer;
mod builder;
mod claims;
mod clock;
mod feed;
mod fetch;
mod follower;
mod frame;
mod introspect;
mod jwks;
mod key;
mod key_cache;
mod keys;
mod max_age;
mod metrics;
mod need;
mod record;
mod refetch;
mod rejected;
mod rev;
mod sse;
mod subscription;
mod table;
mod token;
mod token_cache;
mod token_digests;
#[cfg(feature = "tower")]
pub mod tower;
mod verifier;

pub use algorithm::Algorithm;
pub use bearer::bearer;
pub use builder::{Builder, StartError};
pub use claims::{Claims, Confirmation};
pub use clock::{Clock, ManualClock};
pub use fetch::FetchError;
pub use frame::{
    Ack, AckAnswer, FRAME_LIFE_SECS, FRAME_MAX_BYTES, FRAME_MAX_RECORDS, FRAME_TYP, FRAME_VERSION,
    Frame, Frames, InvalidPosition, Position,
};
pub use jwks::{Jwk, JwkSet};
pub use key::Key;
pub use keys::{DuplicateKid, Keys};
pub use max_age::MaxAge;
pub use metrics::Metrics;
pub use need::Need;
pub use record::{Digest, InvalidRecords, Kind, PACKED_BYTES, Record, Records};
pub use rejected::Rejected;
pub use rev::{InvalidRev, Rev};
pub use verifier::Verifier;
