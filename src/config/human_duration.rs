//! Durations as people write them: `90d`, `12h`, `5m`, `30s`, `500ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    /// From seconds.
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let unit = &text[digits.len()..];
        let millis = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .and_then(|(_, millis)| digits.parse::<u64>().ok()?.checked_mul(*millis));
        millis
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(|| format!("`{text}` is no duration; write 90d, 12h, 5m, 30s or 500ms"))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (name, size) = UNITS
            .iter()
            .rev()
            .find(|(_, size)| millis >= *size && millis % size == 0)
            .unwrap_or(&UNITS[0]);
        write!(f, "{}{name}", millis / size)
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_reads_and_writes_its_largest_whole_unit() {
        for text in ["90d", "12h", "5m", "30s", "250ms"] {
            assert_eq!(
                text.parse::<HumanDuration>().map(|s| s.to_string()),
                Ok(text.to_owned())
            );
        }
        assert_eq!(
            "120s".parse::<HumanDuration>().map(|s| s.to_string()),
            Ok("2m".to_owned())
        );
        for bad in ["", "5", "m", "5 m", "-5m", "5w", "99999999999999999999d"] {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad}");
        }
    }
}
