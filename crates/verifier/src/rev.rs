//! The `rev` claim: the epochs under which a token was authorized.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// The epochs that were current when a token's authorization began. The `rev` claim has the form
/// `"E.C.U"`, or `"E.C"` if no user took part. Revoking everything of a client or user raises the
/// corresponding epoch, and everything that began under a lower epoch is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rev {
    /// Epoch of the issuer's revocation feed.
    pub feed_epoch: u64,
    /// Auth epoch of the client.
    pub client_epoch: u64,
    /// Auth epoch of the user, if a user took part.
    pub user_epoch: Option<u64>,
}

/// Error of a `rev` that is neither `"E.C.U"` nor `"E.C"` in decimal numbers without leading zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rev is neither E.C.U nor E.C")]
pub struct InvalidRev;

impl fmt::Display for Rev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.feed_epoch, self.client_epoch)?;
        match self.user_epoch {
            Some(user) => write!(f, ".{user}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Rev {
    type Err = InvalidRev;

    fn from_str(text: &str) -> Result<Self, InvalidRev> {
        let mut parts = text.split('.');
        let feed_epoch = epoch(parts.next().unwrap_or_default())?;
        let client_epoch = epoch(parts.next().unwrap_or_default())?;
        let user_epoch = parts.next().map(epoch).transpose()?;
        match parts.next() {
            None => Ok(Self {
                feed_epoch,
                client_epoch,
                user_epoch,
            }),
            Some(_) => Err(InvalidRev),
        }
    }
}

/// Parses an epoch. Each number has exactly one accepted spelling, whereas `parse` alone would also
/// accept `+7` and `007`.
fn epoch(digits: &str) -> Result<u64, InvalidRev> {
    let plain = digits == "0" || digits.starts_with(|c: char| matches!(c, '1'..='9'));
    if plain {
        digits.parse().map_err(|_| InvalidRev)
    } else {
        Err(InvalidRev)
    }
}

impl Serialize for Rev {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rev {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Rev;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string E.C.U or E.C")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rev, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rev_parses_only_canonical_form() {
        let user = Rev {
            feed_epoch: 1,
            client_epoch: 20,
            user_epoch: Some(0),
        };
        assert_eq!(user.to_string(), "1.20.0");
        assert_eq!("1.20.0".parse(), Ok(user));
        assert_eq!(
            "1.20".parse(),
            Ok(Rev {
                user_epoch: None,
                ..user
            })
        );
        for hostile in [
            "",
            "1",
            "1.",
            "1.2.",
            "1.2.3.4",
            "+1.2.3",
            "01.2.3",
            "1.-2.3",
            "1.2.3 ",
            "1.2.18446744073709551616",
        ] {
            assert_eq!(hostile.parse::<Rev>(), Err(InvalidRev), "{hostile}");
        }
    }
}
