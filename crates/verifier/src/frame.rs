//! What the revocation feed sends and is told: frames, positions, acknowledgements. The server signs
//! and reads with these very types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::record::Records;

/// The header parameter `typ` of a frame (RFC 7515 §4.1.9).
pub const FRAME_TYP: &str = "revocation-frame+jwt";
/// The version of the format, `v`. A verifier reads no other.
pub const FRAME_VERSION: u32 = 1;
/// A frame's `exp` is its `iat` and so many seconds.
pub const FRAME_LIFE_SECS: u64 = 30;
/// A frame holds no more records than this.
pub const FRAME_MAX_RECORDS: usize = 65_536;
/// A signed frame has no more bytes than this.
pub const FRAME_MAX_BYTES: usize = 4 * 1024 * 1024;

/// The claims of a frame: *these are all live records with `after` < number ≤ `last`*.
///
/// Without records and with `after` = `last` it is a heartbeat; a snapshot is the frames from 0. All
/// members are required but `as_of_us`, and none may appear twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The issuer whose tokens the records are about.
    pub iss: String,
    /// [`FRAME_VERSION`].
    pub v: u32,
    /// When the frame was signed, in seconds since the Unix epoch.
    pub iat: u64,
    /// `iat` and [`FRAME_LIFE_SECS`].
    pub exp: u64,
    /// The feed epoch that `after` and `last` belong to.
    pub epoch: u64,
    /// The number before the first record.
    pub after: u64,
    /// The number of the last record; records that have expired keep their numbers, and are left out.
    pub last: u64,
    /// The records.
    pub records: Records,
    /// The node's clock at the signature, in microseconds since the Unix epoch.
    pub at_us: u64,
    /// All that was committed before this instant (microseconds since the Unix epoch, by the
    /// database's clock) is numbered up to `last`. Absent while more frames follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of_us: Option<u64>,
    /// The `ETag` of the issuer's `jwks_uri` at that instant, as it stands in the header (RFC 9110
    /// §8.8.3), quotes included. One that a verifier does not hold lets it fetch the keys.
    pub jwks_etag: String,
}

impl Frame {
    /// Where a verifier stands that has applied this frame.
    pub fn position(&self) -> Position {
        Position {
            epoch: self.epoch,
            seq: self.last,
        }
    }
}

/// A place in the feed, written `E:S`: the feed epoch, and how many records were numbered in it.
/// Positions are ordered by epoch, then by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The feed epoch; it grows when the database went back in time.
    pub epoch: u64,
    /// The number of the last record that was seen. The first record has 1.
    pub seq: u64,
}

/// A text that is not `E:S` in plain decimal numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a position is EPOCH:NUMBER")]
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

/// One spelling per number: `parse` alone would also take `+7` and `007`.
fn number(digits: &str) -> Result<u64, InvalidPosition> {
    let plain = digits == "0" || digits.starts_with(|c: char| matches!(c, '1'..='9'));
    let number = plain.then(|| digits.parse().ok()).flatten();
    number.ok_or(InvalidPosition)
}

/// The answer to `GET /revocations`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// Signed frames in their order, compact JWS each, 16 at most. Who asks asks again until one
    /// of them has `as_of_us`.
    pub frames: Vec<String>,
}

/// The body of `POST /revocations/ack`: what an instance of a subscriber has applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The instance's name, unique within its client.
    pub instance: String,
    /// The feed epoch of `seq`.
    pub epoch: u64,
    /// The number of the last record that is in force there.
    pub seq: u64,
    /// The `kid`s of the issuer's keys that the instance holds.
    pub kids: Vec<String>,
    /// The longest age of the feed, in seconds, at which the instance still accepts tokens. Absent:
    /// whatever the age (`fail_open`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<u64>,
    /// The last frame, where the server answered that the instance is ahead of it (409).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
}

/// The answer to an [`Ack`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckAnswer {
    /// The longest `max_age`, in seconds, that the subscriber's registration allows. `null`: any, so
    /// `fail_open` is allowed.
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
    fn a_frame_on_the_wire_is_this() {
        assert_eq!(serde_json::to_string(&frame()).unwrap(), JSON);
        assert_eq!(serde_json::from_str::<Frame>(JSON).unwrap(), frame());
        assert_eq!(frame().position().to_string(), "1:42");
        let unfinished = JSON.replace(r#""as_of_us":1800000000100000,"#, "");
        let read: Frame = serde_json::from_str(&unfinished).unwrap();
        assert_eq!(read.as_of_us, None);
        assert_eq!(serde_json::to_string(&read).unwrap(), unfinished);
    }

    #[test]
    fn a_member_is_there_once() {
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
    fn the_largest_frame_fits() {
        let records = vec![Record::new(Kind::User, "u", u32::MAX, u32::MAX); FRAME_MAX_RECORDS];
        let largest = Frame {
            records: Records(records),
            ..frame()
        };
        let claims = serde_json::to_string(&largest).unwrap();
        // Base64url of the claims; header and signature of 1 kB at most.
        assert!(claims.len().div_ceil(3) * 4 + 1024 <= FRAME_MAX_BYTES);
    }

    #[test]
    fn a_position_has_one_spelling() {
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
    fn an_acknowledgement_says_fail_open_by_silence() {
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
