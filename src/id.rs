//! Identifiers, with one type per kind so that they cannot be confused.

use std::fmt;

use crate::secret::Entropy;
use crate::time::Timestamp;

/// Creates a UUIDv7 (RFC 9562 §5.7) as text: ordered by `now`, with 74 random bits.
pub fn uuid(entropy: &Entropy, now: Timestamp) -> String {
    uuid::Builder::from_unix_timestamp_millis(now.millis(), &entropy.bytes::<10>())
        .into_uuid()
        .to_string()
}

/// Returns whether a text has the form of the generated ids.
pub fn is_uuid(text: &str) -> bool {
    text.len() == uuid::fmt::Hyphenated::LENGTH && uuid::Uuid::try_parse(text).is_ok()
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
/// Creates an identifier, a UUIDv7.
            pub fn new(entropy: &Entropy, now: Timestamp) -> Self {
                Self(uuid(entropy, now))
            }

/// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

/// Returns the text, owned.
            pub fn into_string(self) -> String {
                self.0
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

ids! {
    /// A registered client: `client_id`.
    ClientId
/// A user: `sub`.
    UserId
/// A session: `sid`.
    Sid
/// A pending authorization request.
    AuthorizationId
/// A grant: the result of one authorization.
    GrantId
/// The remembered consent of a user to a client.
    ConsentId
}

impl GrantId {
    /// Returns the creation time, to the millisecond, which a UUIDv7 contains (RFC 9562 §5.7).
    pub fn made_at(&self) -> Option<Timestamp> {
        let (secs, nanos) = uuid::Uuid::parse_str(&self.0)
            .ok()?
            .get_timestamp()?
            .to_unix();
        Some(Timestamp::from_secs(secs) + std::time::Duration::from_nanos(nanos.into()))
    }
}
