//! `keys plan`: shows future changes. Uses the functions of the changes themselves, without writing.

use serde_json::{Value, json};

use super::super::Output;
use super::{act, distance, instant, list, perform, table};
use crate::config::{Config, HumanDuration, limits};
use crate::key_manager::{Act, KeyManagerError};
use crate::keys::rotation::{Change, Rotation, Schedule, State, state};
use crate::keys::{Ring, SigningKey};
use crate::time::Timestamp;

#[derive(clap::Args)]
pub struct Arguments {
    /// Plan from this time instead of now, such as 2027-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = instant)]
    at: Option<Timestamp>,
    /// Show what `keys rotate` would do.
    #[arg(long, conflicts_with = "if_revoke")]
    if_rotate: bool,
    /// Show what `keys revoke KID` would do.
    #[arg(long, value_name = "KID", allow_hyphen_values = true)]
    if_revoke: Option<String>,
}

pub fn run(arguments: &Arguments, config: &Config, format: Output) -> anyhow::Result<()> {
    let table = table(config)?;
    let act = Act {
        now: arguments.at.unwrap_or(act().now),
        ..act()
    };
    let plans = perform(async {
        let only = match &arguments.if_revoke {
            Some(kid) => Some(table.ring_of(kid, act.now).await?),
            None => None,
        };
        let mut plans = Vec::new();
        for ring in table.rings() {
            let asked = |change: Change| match &arguments.if_revoke {
                Some(kid) if only == Some(*ring) => change.revoke(kid, "plan"),
                None if arguments.if_rotate => change.bring_forward(Rotation::Scheduled),
                _ if change.lacks_standby() => change.add(),
                _ => change,
            };
            let (before, after) = table.plan(*ring, &act, asked).await?;
            plans.push(Plan {
                ring: *ring,
                now: act.now,
                before,
                after,
            });
        }
        Ok::<_, KeyManagerError>(plans)
    })?;
    match format {
        Output::Json => {
            let values: Vec<Value> = plans.iter().map(Plan::view).collect();
            println!("{:#}", Value::from(values));
        }
        Output::Table => {
            print!("{}", formulas(config));
            for plan in &plans {
                print!("{}", plan.text(table.schedule()));
            }
        }
    }
    Ok(())
}

/// A ring before and after a change.
struct Plan {
    ring: Ring,
    now: Timestamp,
    before: Change,
    after: Change,
}

impl Plan {
    fn text(&self, schedule: &Schedule) -> String {
        let now = self.now;
        let mut lines = vec![String::new(), format!("{} at {now}", self.ring)];
        for key in shown(&self.before.ring, now) {
            let begins = match state(key, now) {
                State::Published => "signs from",
                _ => "signs since",
            };
            lines.push(format!(
                "  generation {} {}: {begins} {} ({}), kid {}",
                key.generation,
                list::word(key, &self.before.ring, now),
                key.activate_at,
                distance(key.activate_at, now),
                key.kid,
            ));
        }
        if let Some(next) = next_key(&self.before.ring, now) {
            let cached = schedule.known_everywhere(next.publish_at);
            lines.push(match cached <= now {
                true => "  next key known to all caches: yes".to_owned(),
                false => format!("  next key known to all caches: {}", distance(cached, now)),
            });
        }
        let changes = self.changes();
        if changes.is_empty() {
            lines.push("  nothing to do".to_owned());
        }
        lines.extend(changes.iter().map(|change| format!("  → {change}")));
        lines.push(String::new());
        lines.join("\n")
    }

    /// Returns the differences, one sentence each.
    fn changes(&self) -> Vec<String> {
        let mut changes = Vec::new();
        for key in &self.after.ring {
            let Some(old) = self.before.ring.iter().find(|old| old.kid == key.kid) else {
                continue;
            };
            let name = format!("generation {}", key.generation);
            if key.revoked_at != old.revoked_at {
                changes.push(format!("{name} is revoked, and its private key destroyed"));
            }
            if key.activate_at != old.activate_at {
                let at = key.activate_at;
                changes.push(format!(
                    "{name} signs from {at} ({})",
                    distance(at, self.now)
                ));
            }
            if let Some(at) = key.retire_at
                && key.retire_at != old.retire_at
            {
                changes.push(format!(
                    "{name} signs until {at} ({})",
                    distance(at, self.now)
                ));
            }
        }
        for made in &self.after.made {
            let at = made.activate_at;
            changes.push(format!(
                "generation {} is created and published, and signs from {at} ({})",
                made.generation,
                distance(at, self.now),
            ));
        }
        changes
    }

    fn view(&self) -> Value {
        let keys = |ring: &[SigningKey]| -> Vec<Value> {
            let each = ring.iter();
            each.map(|key| list::view(key, ring, self.now)).collect()
        };
        let made = self.after.made.iter().map(|made| {
            json!({
                "generation": made.generation, "publish_at": made.publish_at.to_string(),
                "activate_at": made.activate_at.to_string(),
            })
        });
        json!({
            "ring": self.ring.to_string(), "at": self.now.to_string(), "keys": keys(&self.before.ring),
            "after": keys(&self.after.ring), "made": made.collect::<Vec<_>>(), "changes": self.changes(),
        })
    }
}

fn shown(ring: &[SigningKey], now: Timestamp) -> impl Iterator<Item = &SigningKey> {
    ring.iter()
        .filter(move |key| !matches!(state(key, now), State::Archived))
}

fn next_key(ring: &[SigningKey], now: Timestamp) -> Option<&SigningKey> {
    ring.iter().find(|key| state(key, now) == State::Published)
}

/// Returns the waiting times with their terms.
fn formulas(config: &Config) -> String {
    let keys = &config.keys;
    let show = |duration| HumanDuration(duration).spelled();
    let overlap = limits::CLOCK_SKEW + limits::KEY_CHANGE_SEEN;
    let verify_only = limits::LONGEST_SIGNED + keys.verifier_cache.0 + overlap;
    format!(
        "lead = {}\n\
a key signs for {} (rotate_every); both keys sign for {} around a change (clock skew {} + poll {})\n\
         then it verifies for {} (longest token lifetime {} + verifier_cache {} + {})\n",
        keys.lead_formula(),
        keys.rotate_every,
        show(overlap),
        show(limits::CLOCK_SKEW),
        show(limits::KEY_CHANGE_SEEN),
        show(verify_only),
        show(limits::LONGEST_SIGNED),
        keys.verifier_cache,
        show(overlap),
    )
}
