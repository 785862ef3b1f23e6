//! Durations as people write them: `5m`, `30s`.

use std::time::Duration;

use serde::Deserialize;

/// A duration with its unit, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let unit = UNITS
            .iter()
            .find(|(name, _)| *name == &text[digits.len()..]);
        let secs = unit.and_then(|(_, secs)| digits.parse::<u64>().ok()?.checked_mul(*secs));
        let span = secs.map(|secs| Self(Duration::from_secs(secs)));
        span.ok_or_else(|| format!("`{text}` is no duration; write 30s, 5m, 12h or 90d"))
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_a_number_and_a_unit() {
        for (text, secs) in [("0s", 0), ("30s", 30), ("5m", 300), ("12h", 43_200)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_secs(secs))));
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
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
