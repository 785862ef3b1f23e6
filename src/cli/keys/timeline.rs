//! Draws the timeline of each ring: the past 100 days and the next year.

use std::fmt::Write;
use std::time::Duration;

use crate::keys::rotation::Schedule;
use crate::keys::{Ring, SigningKey};
use crate::time::Timestamp;

/// Columns of the drawing.
const WIDTH: u32 = 66;
const PAST: Duration = Duration::from_secs(100 * 86_400);
const FUTURE: Duration = Duration::from_secs(365 * 86_400);

/// Draws every ring of `keys`, with a line per generation, including planned ones.
pub fn draw(keys: &[SigningKey], schedule: &Schedule, now: Timestamp) -> String {
    let scale = Scale { now };
    let mut rings: Vec<Ring> = Vec::new();
    for key in keys {
        if !rings.contains(&key.ring()) {
            rings.push(key.ring());
        }
    }
    let mut text = String::new();
    for ring in rings {
        let own: Vec<SigningKey> = ring.among(keys).cloned().collect();
        let generations = with_planned(own, schedule, now + FUTURE);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{:<14}{}", ring.to_string(), scale.axis());
        for (key, planned) in &generations {
            let line = scale.line(key);
            if line.trim().is_empty() {
                continue;
            }
            let name = format!(
                "{}{}",
                key.generation,
                if *planned { " (planned)" } else { "" }
            );
            let _ = writeln!(text, "  {name:<12}{line}");
        }
    }
    text.push_str("\n  ░ published  █ signs  ▒ verifies what it signed  × revoked\n");
    text
}

/// Returns the keys of a ring, followed by those that the key manager will add, each when its predecessor starts to
/// sign. The boolean is `true` for the latter.
fn with_planned(
    keys: Vec<SigningKey>,
    schedule: &Schedule,
    until: Timestamp,
) -> Vec<(SigningKey, bool)> {
    let mut all: Vec<(SigningKey, bool)> = keys.into_iter().map(|key| (key, false)).collect();
    let living = |(key, _): &&mut (SigningKey, bool)| key.revoked_at.is_none();
    while let Some((last, _)) = all.iter_mut().rev().find(living)
        && last.retire_at.is_none()
        && last.activate_at < until
    {
        let publish_at = last.activate_at;
        let activate_at = (publish_at + schedule.rotate_every).max(publish_at + schedule.lead);
        let retire_at = schedule.retire_at(activate_at);
        last.retire_at = Some(retire_at);
        last.remove_at = Some(schedule.remove_at(retire_at));
        let next = SigningKey {
            generation: last.generation + 1,
            publish_at,
            activate_at,
            retire_at: None,
            remove_at: None,
            ..last.clone()
        };
        all.push((next, true));
    }
    all
}

/// Instants as columns.
struct Scale {
    now: Timestamp,
}

impl Scale {
    fn at(&self, column: u32) -> Timestamp {
        self.now - PAST + (PAST + FUTURE) * column / WIDTH
    }

    fn now_column(&self) -> u32 {
        (0..WIDTH)
            .find(|column| self.at(column + 1) > self.now)
            .unwrap_or(0)
    }

    /// Returns the axis: the first month, the current position and the last month.
    fn axis(&self) -> String {
        let month = |at: Timestamp| at.to_string().chars().take(7).collect::<String>();
        let (first, last) = (month(self.at(0)), month(self.at(WIDTH)));
        let now = self.now_column() as usize;
        let left = format!("{first:<now$}now");
        let rest = (WIDTH as usize).saturating_sub(left.chars().count());
        format!("{left}{last:>rest$}")
    }

    fn line(&self, key: &SigningKey) -> String {
        let line: String = (0..WIDTH).map(|column| self.mark(key, column)).collect();
        line.trim_end().to_owned()
    }

    /// Returns the symbol of a key in a column. Short events take precedence because they would be invisible otherwise.
    fn mark(&self, key: &SigningKey, column: u32) -> char {
        let (from, to) = (self.at(column), self.at(column + 1));
        let holds = |at: Timestamp| from <= at && at < to;
        let over = |at: Option<Timestamp>| at.is_some_and(|at| at < from);
        if key.revoked_at.is_some_and(holds) {
            '×'
        } else if over(key.revoked_at) || over(key.remove_at) || to <= key.publish_at {
            ' '
        } else if key.retire_at.is_some_and(holds) || over(key.retire_at) {
            '▒'
        } else if key.activate_at < to {
            '█'
        } else {
            '░'
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::keys::{Alg, Use};

    #[test]
    fn timeline_shows_planned_generations() {
        let now = Timestamp::from_secs(1_800_000_000);
        let schedule = Schedule::of(&config::Keys::default());
        let begun = now - Duration::from_secs(30 * 86_400);
        let second = begun + schedule.rotate_every;
        let key = |generation, publish_at, activate_at, retire_at: Option<Timestamp>| SigningKey {
            kid: format!("k{generation}"),
            issuer: String::new(),
            use_: Use::Token,
            alg: Alg::ES256,
            generation,
            public_jwk: String::new(),
            sealed: String::new(),
            publish_at,
            activate_at,
            retire_at,
            remove_at: retire_at.map(|at| schedule.remove_at(at)),
            revoked_at: None,
            revoke_reason: None,
            created_at: now,
        };
        let keys = [
            key(1, begun, begun, Some(schedule.retire_at(second))),
            key(2, begun, second, None),
        ];
        let drawn = draw(&keys, &schedule, now);
        assert_eq!(
            drawn,
            "
token/ES256   2026-10       now                                          2028-01
  1                    █████████████▒
  2                    ░░░░░░░░░░░░░█████████████▒
  3 (planned)                       ░░░░░░░░░░░░░█████████████▒
  4 (planned)                                    ░░░░░░░░░░░░░█████████████▒
  5 (planned)                                                 ░░░░░░░░░░░░░█████
  6 (planned)                                                              ░░░░░

  ░ published  █ signs  ▒ verifies what it signed  × revoked
"
        );
    }
}
