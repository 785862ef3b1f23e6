//! Durations in settings, such as `5m` or `30s`.

use std::time::Duration;

use serde::Deserialize;

/// A duration in whole seconds, written as a number and a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HumanDuration(pub Duration);

const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];

impl std::str::FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let unit = UNITS
            .iter()
            .find(|(name, _)| *name == &text[digits.len()..]);
        let secs = unit.and_then(|(_, secs)| digits.parse::<u64>().ok()?.checked_mul(*secs));
        let duration = secs.map(|secs| Self(Duration::from_secs(secs)));
        duration.ok_or_else(|| {
            format!("invalid duration `{text}`; expected a value such as 30s, 5m, 12h or 90d")
        })
    }
}

impl TryFrom<String> for HumanDuration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_requires_number_and_unit() {
        for (text, secs) in [("0s", 0), ("30s", 30), ("5m", 300), ("12h", 43_200)] {
            assert_eq!(text.parse(), Ok(HumanDuration(Duration::from_secs(secs))));
        }
        for bad in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "5w",
            "500ms",
            "99999999999999999999d",
        ] {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad}");
        }
    }
}
