//! Revocation records and their 25-byte encoding. The server encodes them with the same code.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Length of an encoded record in bytes: kind 1, digest 16, `floor` 4, `expires` 4.
pub const PACKED_BYTES: usize = 25;

/// What a record revokes. It determines the claim that the record is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// One access token, by `jti`.
    Token,
    /// A session and all tokens that belong to it, by `sid`.
    Session,
    /// A grant, by `grant_id`.
    Grant,
    /// A signing key, by the `kid` of the header.
    Key,
    /// Everything that a user authorized below a certain auth epoch, by `sub`.
    User,
    /// Everything that was authorized for a client below a certain auth epoch, by `client_id`.
    Client,
}

impl Kind {
    /// All kinds, in the order of their declaration.
    pub const ALL: [Self; 6] = [
        Self::Token,
        Self::Session,
        Self::Grant,
        Self::Key,
        Self::User,
        Self::Client,
    ];

    /// Returns the letter of the kind, which is used on the wire, in the hash and in the database.
    pub const fn letter(self) -> char {
        match self {
            Self::Token => 'J',
            Self::Session => 'S',
            Self::Grant => 'G',
            Self::Key => 'K',
            Self::User => 'U',
            Self::Client => 'C',
        }
    }

    /// Returns the kind with this letter.
    pub fn from_letter(letter: char) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.letter() == letter)
    }

    /// Returns whether records of this kind have a `floor`, so that they revoke only what began at
    /// a lower auth epoch.
    pub const fn has_floor(self) -> bool {
        matches!(self, Self::User | Self::Client)
    }

    const fn byte(self) -> u8 {
        self.letter() as u8
    }
}

/// The first 16 bytes of SHA-256(kind ‖ 0x00 ‖ value). A record contains this digest instead of the
/// value, so that the feed does not disclose users or clients.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// Computes the digest of a value, such as a `jti`, of this kind.
    pub fn of(kind: Kind, value: &str) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(&[kind.byte(), 0]);
        hash.update(value.as_bytes());
        let mut first = [0; 16];
        // SHA-256 has 32 bytes, so every byte of `first` is set.
        for (byte, hashed) in first.iter_mut().zip(hash.finish().as_ref()) {
            *byte = *hashed;
        }
        Self(first)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// One revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// What is revoked.
    pub kind: Kind,
    /// Digest of the revoked value.
    pub digest: Digest,
    /// For users and clients: the new auth epoch. Everything that began below it is revoked. 0 for
    /// other kinds.
    pub floor: u32,
    /// When the last token that the record could revoke has expired, in seconds since the Unix
    /// epoch, rounded up.
    pub expires: u32,
}

impl Record {
    /// Creates the record that revokes `value`. The `floor` is ignored unless the kind is a user or
    /// a client.
    pub fn new(kind: Kind, value: &str, floor: u32, expires: u32) -> Self {
        Self {
            kind,
            digest: Digest::of(kind, value),
            floor: if kind.has_floor() { floor } else { 0 },
            expires,
        }
    }

    /// Encodes the record: kind, digest, `floor`, `expires`. Numbers are big-endian.
    pub fn pack(&self) -> [u8; PACKED_BYTES] {
        let mut packed = [0; PACKED_BYTES];
        packed[0] = self.kind.byte();
        packed[1..17].copy_from_slice(&self.digest.0);
        packed[17..21].copy_from_slice(&self.floor.to_be_bytes());
        packed[21..].copy_from_slice(&self.expires.to_be_bytes());
        packed
    }

    /// Decodes a record.
    ///
    /// # Errors
    ///
    /// [`InvalidRecords`] if the kind is unknown, or if there is a `floor` although the kind has
    /// none.
    pub fn unpack(packed: &[u8; PACKED_BYTES]) -> Result<Self, InvalidRecords> {
        let kind = Kind::from_letter(char::from(packed[0])).ok_or(InvalidRecords::Kind)?;
        let digest = Digest(std::array::from_fn(|at| packed[1 + at]));
        let number = |from: usize| u32::from_be_bytes(std::array::from_fn(|at| packed[from + at]));
        let (floor, expires) = (number(17), number(21));
        if floor != 0 && !kind.has_floor() {
            return Err(InvalidRecords::Floor);
        }
        Ok(Self {
            kind,
            digest,
            floor,
            expires,
        })
    }
}

/// Why a list of records could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRecords {
    /// The text is not strict base64url.
    #[error("the records are not strict base64url")]
    Encoding,
    /// The length is not a multiple of 25 bytes.
    #[error("the length of the records is not a multiple of {PACKED_BYTES} bytes")]
    Length,
    /// The letter of a kind is unknown.
    #[error("a record is of an unknown kind")]
    Kind,
    /// A record of a kind without `floor` has one.
    #[error("a record has a floor although its kind has none")]
    Floor,
}

/// A list of records, in the order of their numbers. In JSON, it is one string: the concatenated
/// records in base64url without padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records(pub Vec<Record>);

impl Records {
    /// Encodes and concatenates the records.
    pub fn pack(&self) -> Vec<u8> {
        self.0.iter().flat_map(Record::pack).collect()
    }

    /// Decodes concatenated records.
    ///
    /// # Errors
    ///
    /// [`InvalidRecords`] if one of the records is invalid.
    pub fn unpack(packed: &[u8]) -> Result<Self, InvalidRecords> {
        let (records, rest) = packed.as_chunks();
        if !rest.is_empty() {
            return Err(InvalidRecords::Length);
        }
        let records: Result<_, _> = records.iter().map(Record::unpack).collect();
        records.map(Self)
    }

    /// Encodes the records as in JSON.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.pack())
    }

    /// Decodes records as in JSON.
    ///
    /// # Errors
    ///
    /// [`InvalidRecords`] if the text is not strict base64url or one of the records is invalid.
    pub fn decode(text: &str) -> Result<Self, InvalidRecords> {
        let packed = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| InvalidRecords::Encoding)?;
        Self::unpack(&packed)
    }
}

impl Serialize for Records {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.encode())
    }
}

impl<'de> Deserialize<'de> for Records {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Records;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("packed records in base64url")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Records, E> {
                Records::decode(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The digests were computed with `printf 'J\0%s' VALUE | sha256sum`.
    #[test]
    fn packed_records_match_known_bytes() {
        for (record, packed) in [
            (
                Record::new(
                    Kind::Token,
                    "0198c0de-0000-7000-8000-000000000003",
                    9,
                    1_800_000_360,
                ),
                "4a96a115bfa4b0f76f1792944aa47c8edb000000006b49d368",
            ),
            (
                Record::new(Kind::User, "alice", 7, 1_800_000_365),
                "5553a3f3eee78ee6a86dc033a23f83821e000000076b49d36d",
            ),
            (
                Record::new(Kind::Client, "shop", u32::MAX, u32::MAX),
                "43b14141713559df8d91cfb85b35b796acffffffffffffffff",
            ),
        ] {
            assert_eq!(hex(&record.pack()), packed);
            assert_eq!(Record::unpack(&record.pack()), Ok(record));
        }
    }

    #[test]
    fn kind_letters_round_trip() {
        assert_eq!(Kind::ALL.map(Kind::letter), ['J', 'S', 'G', 'K', 'U', 'C']);
        for kind in Kind::ALL {
            assert_eq!(Kind::from_letter(kind.letter()), Some(kind));
        }
        assert_eq!(Kind::from_letter('j'), None);
    }

    #[test]
    fn digest_depends_on_kind() {
        assert_ne!(
            Digest::of(Kind::Session, "0198c0de"),
            Digest::of(Kind::Grant, "0198c0de")
        );
    }

    #[test]
    fn list_is_serialized_as_one_string() {
        let list = Records(vec![
            Record::new(Kind::Session, "s", 0, 1),
            Record::new(Kind::User, "u", 2, 3),
        ]);
        let json = serde_json::to_string(&list).unwrap();
        // 50 bytes, no padding.
        assert_eq!(json.len(), 67 + 2);
        assert_eq!(serde_json::from_str::<Records>(&json).unwrap(), list);
        assert_eq!(serde_json::to_string(&Records::default()).unwrap(), "\"\"");
    }

    #[test]
    fn list_with_invalid_record_is_rejected() {
        let good = Record::new(Kind::Grant, "g", 0, 1).pack();
        let mut floor = good;
        floor[20] = 1;
        let mut kind = good;
        kind[0] = b'X';
        for (bytes, why) in [
            (
                [good.as_slice(), &good[..24]].concat(),
                InvalidRecords::Length,
            ),
            ([good, kind].concat(), InvalidRecords::Kind),
            ([good, floor].concat(), InvalidRecords::Floor),
        ] {
            assert_eq!(Records::unpack(&bytes), Err(why));
        }
        let text = URL_SAFE_NO_PAD.encode(good);
        for hostile in [format!("{text}="), format!(" {text}"), format!("{text}*")] {
            assert_eq!(Records::decode(&hostile), Err(InvalidRecords::Encoding));
        }
        assert!(serde_json::from_str::<Records>("[]").is_err());
    }
}
