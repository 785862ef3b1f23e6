//! The messages of the revocation feed: frames, positions and acknowledgements. The server uses the
//! same types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::record::Records;

/// The header parameter `typ` of a frame (RFC 7515 §4.1.9).
pub const FRAME_TYP: &str = "revocation-frame+jwt";
/// The version of the format, `v`. A verifier rejects other versions.
pub const FRAME_VERSION: u32 = 1;
/// Lifetime of a frame, in seconds: the difference between its `exp` and its `iat`.
pub const FRAME_LIFE_SECS: u64 = 30;
/// Maximum number of records in a frame.
pub const FRAME_MAX_RECORDS: usize = 65_536;
/// Maximum size of a signed frame, in bytes.
pub const FRAME_MAX_BYTES: usize = 4 * 1024 * 1024;

/// The claims of a frame. It contains all unexpired records with `after` < number ≤ `last`.
///
/// A frame without records and with `after` = `last` is a heartbeat. The frames from number 0 are a
/// snapshot. All members except `as_of_us` are required, and duplicate members are rejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The issuer whose tokens the records are about.
    pub iss: String,
    /// [`FRAME_VERSION`].
    pub v: u32,
    /// When the frame was signed, in seconds since the Unix epoch.
    pub iat: u64,
    /// When the frame expires: [`FRAME_LIFE_SECS`] after `iat`.
    pub exp: u64,
    /// The feed epoch that `after` and `last` belong to.
    pub epoch: u64,
    /// The number before the first record.
    pub after: u64,
    /// The number of the last record. Expired records are omitted but keep their numbers.
    pub last: u64,
    /// The records.
    pub records: Records,
    /// When the frame was signed, by the clock of the node, in microseconds since the Unix epoch.
    pub at_us: u64,
    /// Time as of which the data is complete: everything that was committed before it has a number
    /// up to `last`. In microseconds since the Unix epoch, by the clock of the database. Absent if
    /// more frames follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of_us: Option<u64>,
    /// The `ETag` of the issuer's `jwks_uri` at that time, as in the header, including the quotes
    /// (RFC 9110 §8.8.3). If the keys of a verifier have a different one, it fetches them.
    pub jwks_etag: String,
}

impl Frame {
    /// Returns the position of a verifier that has applied the frame.
    pub fn position(&self) -> Position {
        Position {
            epoch: self.epoch,
            seq: self.last,
        }
    }
}

/// A position in the feed, written `E:S`: the feed epoch and the number of a record. Positions are
/// ordered by epoch and then by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The feed epoch. It increases when the database has lost records, for example because it was
    /// restored from a backup.
    pub epoch: u64,
    /// The number of the last applied record. The first record has the number 1.
    pub seq: u64,
}

/// Error of a text that is not `E:S` in decimal numbers without leading zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid position; expected EPOCH:NUMBER")]
pub struct InvalidPosition;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.seq)
    }
}

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        let (epoch, seq) = text.split_once(':').ok_or(InvalidPosition)?;
        Ok(Self {
            epoch: number(epoch)?,
            seq: number(seq)?,
        })
    }
}

/// Parses a number. Each number has exactly one accepted spelling, whereas `parse` alone would also
/// accept `+7` and `007`.
fn number(digits: &str) -> Result<u64, InvalidPosition> {
    let plain = digits == "0" || digits.starts_with(|c: char| matches!(c, '1'..='9'));
    let number = plain.then(|| digits.parse().ok()).flatten();
    number.ok_or(InvalidPosition)
}

/// The response to `GET /revocations`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// Up to 16 signed frames in order, each a compact JWS. The verifier repeats the request until
    /// one of the frames has `as_of_us`.
    pub frames: Vec<String>,
}

/// The body of `POST /revocations/ack`: the state of an instance of a subscriber.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Name of the instance, unique within its client.
    pub instance: String,
    /// The feed epoch of `seq`.
    pub epoch: u64,
    /// The number of the last record that the instance has applied.
    pub seq: u64,
    /// The `kid`s of the issuer's keys that the instance uses.
    pub kids: Vec<String>,
    /// The maximum age of the revocation data, in seconds, at which the instance still accepts
    /// tokens. Absent if it accepts them at any age (`fail_open`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<u64>,
    /// The last frame. Sent after the server responded that the instance is ahead of it (409).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
}

/// The response to an [`Ack`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckAnswer {
    /// The longest `max_age`, in seconds, that the subscriber's registration allows. `null` allows
    /// any, including `fail_open`.
    pub max_age: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Kind, Record};

    fn frame() -> Frame {
        Frame {
            iss: "https://id.example".into(),
            v: FRAME_VERSION,
            iat: 1_800_000_000,
            exp: 1_800_000_000 + FRAME_LIFE_SECS,
            epoch: 1,
            after: 41,
            last: 42,
            records: Records(vec![Record::new(Kind::User, "alice", 7, 1_800_000_365)]),
            at_us: 1_800_000_000_123_456,
            as_of_us: Some(1_800_000_000_100_000),
            jwks_etag: "\"abc\"".into(),
        }
    }

    const JSON: &str = r#"{"iss":"https://id.example","v":1,"iat":1800000000,"exp":1800000030,"epoch":1,"after":41,"last":42,"records":"VVOj8-7njuaobcAzoj-Dgh4AAAAHa0nTbQ","at_us":1800000000123456,"as_of_us":1800000000100000,"jwks_etag":"\"abc\""}"#;

    #[test]
    fn frame_round_trips_as_known_json() {
        assert_eq!(serde_json::to_string(&frame()).unwrap(), JSON);
        assert_eq!(serde_json::from_str::<Frame>(JSON).unwrap(), frame());
        assert_eq!(frame().position().to_string(), "1:42");
        let unfinished = JSON.replace(r#""as_of_us":1800000000100000,"#, "");
        let read: Frame = serde_json::from_str(&unfinished).unwrap();
        assert_eq!(read.as_of_us, None);
        assert_eq!(serde_json::to_string(&read).unwrap(), unfinished);
    }

    #[test]
    fn missing_and_duplicate_members_are_rejected() {
        for member in [
            "iss",
            "v",
            "iat",
            "exp",
            "epoch",
            "after",
            "last",
            "records",
            "at_us",
            "jwks_etag",
        ] {
            let other = JSON.replace(&format!("\"{member}\":"), "\"x\":");
            assert!(serde_json::from_str::<Frame>(&other).is_err(), "{member}");
        }
        let twice = JSON.replace("\"v\":1", "\"v\":1,\"v\":1");
        assert!(serde_json::from_str::<Frame>(&twice).is_err());
    }

    #[test]
    fn largest_frame_fits_size_limit() {
        let records = vec![Record::new(Kind::User, "u", u32::MAX, u32::MAX); FRAME_MAX_RECORDS];
        let largest = Frame {
            records: Records(records),
            ..frame()
        };
        let claims = serde_json::to_string(&largest).unwrap();
        // Base64url of the claims, and at most 1 KiB for header and signature.
        assert!(claims.len().div_ceil(3) * 4 + 1024 <= FRAME_MAX_BYTES);
    }

    #[test]
    fn position_parses_only_canonical_form() {
        let position = Position {
            epoch: 1_763_752_800,
            seq: 918_232,
        };
        assert_eq!(position.to_string(), "1763752800:918232");
        assert_eq!("1763752800:918232".parse(), Ok(position));
        assert_eq!("0:0".parse(), Ok(Position::default()));
        for hostile in [
            "",
            ":",
            "1",
            "1:",
            ":1",
            "+1:1",
            "1:01",
            "1:-1",
            "1:1 ",
            "1:1:1",
            "1:18446744073709551616",
        ] {
            assert_eq!(
                hostile.parse::<Position>(),
                Err(InvalidPosition),
                "{hostile}"
            );
        }
    }

    #[test]
    fn positions_are_ordered_by_epoch_first() {
        let at = |text: &str| text.parse::<Position>().unwrap();
        assert!(at("1:9") < at("2:0") && at("2:1") > at("2:0"));
    }

    #[test]
    fn ack_without_max_age_means_fail_open() {
        let ack = Ack {
            instance: "billing-2".into(),
            epoch: 1,
            seq: 42,
            kids: vec!["k".into()],
            max_age: Some(60),
            frame: None,
        };
        let json = r#"{"instance":"billing-2","epoch":1,"seq":42,"kids":["k"],"max_age":60}"#;
        assert_eq!(serde_json::to_string(&ack).unwrap(), json);
        let open: Ack = serde_json::from_str(&json.replace(r#","max_age":60"#, "")).unwrap();
        assert_eq!(open.max_age, None);
        let answer = serde_json::to_string(&AckAnswer::default()).unwrap();
        assert_eq!(answer, r#"{"max_age":null}"#);
    }
}
