//! Durations as an operator writes them: `90d`, `12h`, `5m`, `30s`, `500ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::serde_as_text;

/// A duration that is written as a whole number and a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

serde_as_text!(HumanDuration);

impl HumanDuration {
    /// Creates a duration from seconds.
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// Returns the duration with several units for people to read, such as `1d 2h 5s`.
    pub fn spelled(self) -> String {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let mut parts = Vec::new();
        for (name, size) in UNITS.iter().rev() {
            if rest >= *size {
                parts.push(format!("{}{name}", rest / size));
                rest %= size;
            }
        }
        match parts.is_empty() {
            true => "0s".to_owned(),
            false => parts.join(" "),
        }
    }
}

/// The units and their length in milliseconds, shortest first.
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
        let duration = millis.map(|millis| Self(Duration::from_millis(millis)));
        duration.ok_or_else(|| {
            format!(
                "invalid duration `{text}`; expected a value such as 90d, 12h, 5m, 30s or 500ms"
            )
        })
    }
}

/// Uses the largest unit that needs no fraction.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_written_in_its_largest_whole_unit() {
        for (text, written) in [
            ("90d", "90d"),
            ("12h", "12h"),
            ("5m", "5m"),
            ("30s", "30s"),
            ("250ms", "250ms"),
            ("120s", "2m"),
        ] {
            let duration: HumanDuration = text.parse().unwrap();
            assert_eq!(duration.to_string(), written);
        }
    }

    #[test]
    fn duration_is_spelled_in_several_units() {
        for (secs, spelled) in [
            (93_665, "1d 2h 1m 5s"),
            (60, "1m"),
            (0, "0s"),
            (86_401, "1d 1s"),
        ] {
            assert_eq!(HumanDuration::secs(secs).spelled(), spelled);
        }
    }

    #[test]
    fn duration_requires_number_and_unit() {
        for bad in ["", "5", "m", "5 m", "-5m", "5w", "99999999999999999999d"] {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad}");
        }
    }
}
