//! `keys rotate`, `revoke`, `import` and `rewrap`: change keys, and print the consequences.

use std::path::Path;

use serde_json::{Value, json};

use super::super::command::confirm;
use super::super::propagation::{Wait, propagate};
use super::super::{Exit, Output, open};
use super::{act, distance, failure, list, perform, ring, table};
use crate::config::Config;
use crate::key_manager::{Act, KeyWrite, Rotation};
use crate::keys::rotation::{Schedule, signer};
use crate::keys::{Ring, SigningKey};
use crate::time::Timestamp;

#[derive(clap::Args)]
pub struct Rotate {
    /// Rotate only this ring, such as token/ES256 [default: all].
    #[arg(long, value_name = "RING", value_parser = ring)]
    ring: Option<Ring>,
    /// Do not wait until caches have the next key, so that tokens fail for a while. Requires --insecure-dev.
    #[arg(long)]
    now: bool,
    /// Allow unsafe changes for a loopback issuer.
    #[arg(long)]
    insecure_dev: bool,
    /// Add a server secret instead, for new form tokens and refresh tokens.
    #[arg(long, conflicts_with_all = ["ring", "now"])]
    server_secret: bool,
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
}

#[derive(clap::Args)]
pub struct Revoke {
    /// The `kid` of the key.
    // One kid in 64 begins with a hyphen.
    #[arg(
        value_name = "KID",
        required_unless_present = "ring",
        allow_hyphen_values = true
    )]
    kid: Option<String>,
    /// Revoke every key of this ring instead, including the next key.
    #[arg(long, value_name = "RING", value_parser = ring, conflicts_with = "kid")]
    ring: Option<Ring>,
    /// Reason, for the audit log.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    wait: Wait,
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
}

pub fn rotate(arguments: &Rotate, config: &Config, format: Output) -> anyhow::Result<()> {
    if arguments.now && !arguments.insecure_dev {
        return Err(usage(
            "with --now, tokens fail at every cache that does not have the next key yet; it requires --insecure-dev",
        ));
    }
    if arguments.insecure_dev && !config.issuer()?.is_loopback() {
        return Err(usage("--insecure-dev requires a loopback issuer"));
    }
    let table = table(config)?;
    if arguments.server_secret {
        confirm("Add a server secret?", arguments.yes)?;
        perform(table.add_secret(&act()))?;
        let text =
            "A server secret was added. The older ones still verify the values made with them.";
        format.print(&json!({ "server_secret": "added" }), text);
        return Ok(());
    }
    confirm(
        "Let the next key sign early? After a leak, use `keys revoke` instead: rotation revokes no key.",
        arguments.yes,
    )?;
    let act = act();
    let rings = match arguments.ring {
        Some(ring) => vec![ring],
        None => table.rings().to_vec(),
    };
    let mut writes = Vec::new();
    let rotation = match arguments.now {
        true => Rotation::Immediate,
        false => Rotation::Scheduled,
    };
    for ring in rings {
        if !table.rings().contains(&ring) {
            return Err(failure(format!("there is no ring {ring}")));
        }
        writes.push((ring, perform(table.rotate(ring, rotation, &act))?));
    }
    let values: Vec<Value> = writes
        .iter()
        .map(|(ring, write)| view(*ring, write, &act))
        .collect();
    let lines = writes.iter().map(|(ring, write)| {
        let next = write.changes().chain(write.inserts());
        let next = next.filter(|key| key.retire_at.is_none()).last();
        next.map_or_else(
            || format!("{ring}: the next key signs as early as possible already"),
            |key| describe_start(*ring, key, &act),
        )
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    format.print(&values.into(), text);
    Ok(())
}

pub fn revoke(arguments: &Revoke, config: &Config, format: Output) -> anyhow::Result<()> {
    if arguments.reason.trim().is_empty() {
        return Err(usage("--reason is empty"));
    }
    let table = table(config)?;
    let what = match (&arguments.kid, arguments.ring) {
        (Some(kid), _) => format!("key {kid}"),
        (None, Some(ring)) => format!("every key of {ring}"),
        (None, None) => return Err(usage("a KID or --ring is required")),
    };
    confirm(
        &format!(
            "Revoke {what}? Every token that it signed is refused from now on. This cannot be undone."
        ),
        arguments.yes,
    )?;
    let act = act();
    let write = match (&arguments.kid, arguments.ring) {
        (Some(kid), _) => perform(table.revoke(kid, &arguments.reason, &act))?,
        (None, Some(ring)) => perform(table.revoke_ring(ring, &arguments.reason, &act))?,
        (None, None) => return Err(usage("a KID or --ring is required")),
    };
    let ring = match (arguments.ring, &arguments.kid) {
        (Some(ring), _) => ring,
        (None, kid) => perform(table.ring_of(kid.as_deref().unwrap_or_default(), act.now))?,
    };
    if write.is_empty() {
        let text = format!("{what} was already revoked; nothing was changed");
        format.print(&view(ring, &write, &act), text);
        return Ok(());
    }
    let propagated = propagate(&what, config, &open(config)?, &arguments.wait)?;
    let mut value = view(ring, &write, &act);
    value["feed"] = propagated.view();
    let mut lines: Vec<String> = write
        .changes()
        .filter(|key| key.revoked_at == Some(act.now))
        .map(|key| {
            format!(
                "revoked: {ring} generation {}, kid {}",
                key.generation, key.kid
            )
        })
        .collect();
    let others = write.changes().filter(|key| key.revoked_at.is_none());
    let moved = others.filter(|key| key.retire_at.is_none_or(|at| at > act.now));
    lines.extend(
        moved
            .chain(write.inserts())
            .map(|key| describe_start(ring, key, &act)),
    );
    lines.push(CONSEQUENCES.to_owned());
    if let Some((kid, until)) = young_signer(ring, &write, table.schedule(), act.now) {
        value["signer_unknown_until"] = until.to_string().into();
        lines.push(format!(
            "warning: verifiers that have not fetched the keys since {kid} was published refuse its tokens, at the latest until {until} (`keys.verifier_cache`). Do not revoke another key of {ring} before then unless it has leaked too."
        ));
    }
    lines.push(propagated.to_string());
    format.print(&value, lines.join("\n"));
    propagated.require_confirmed()
}

/// Returns the kid of the new signer and the time until which a verifier may have cached keys without it, if that is
/// in the future.
fn young_signer(
    ring: Ring,
    write: &KeyWrite,
    schedule: &Schedule,
    now: Timestamp,
) -> Option<(String, Timestamp)> {
    let changed: Vec<SigningKey> = write.changes().chain(write.inserts()).cloned().collect();
    let signer = signer(ring.among(&changed), now)?;
    let until = schedule.known_everywhere(signer.publish_at);
    // A feed key is fetched as soon as a frame names it.
    (until > now && ring != Ring::FEED).then(|| (signer.kid.clone(), until))
}

/// The consequences of the revocation of a key.
const CONSEQUENCES: &str = "\
within 1 s      servers and all subscribers of the feed refuse its tokens; the next key signs
within 1 s      clients get 401 and refresh; refresh tokens, codes and sessions stay valid
up to 5 min     verifiers that only use the max-age of the keys still accept its tokens
up to 24 h      so do verifiers behind a cache that serves stale responses on errors";

pub fn import(file: &Path, config: &Config, format: Output) -> anyhow::Result<()> {
    let table = table(config)?;
    let pem = crate::config::read_secret_file(file).map_err(failure)?;
    let act = act();
    let write = perform(table.import(&pem, &act))?;
    let ring = write.inserts().first().map_or(Ring::FEED, SigningKey::ring);
    let lines = write
        .inserts()
        .iter()
        .map(|key| describe_start(ring, key, &act));
    let text = lines.collect::<Vec<_>>().join("\n");
    format.print(&view(ring, &write, &act), text);
    Ok(())
}

pub fn rewrap(config: &Config, format: Output) -> anyhow::Result<()> {
    let table = table(config)?;
    let rewrapped = perform(table.rewrap(&act()))?;
    let left: Vec<Value> = rewrapped
        .left
        .iter()
        .map(|left| json!({ "value": left.what, "kek": left.kek, "reason": left.why }))
        .collect();
    let value = json!({ "kek": rewrapped.kek, "moved": rewrapped.moved, "left": left });
    let mut lines = Vec::new();
    for (kek, count) in &rewrapped.moved {
        let left = rewrapped.left.iter();
        let left = left.filter(|left| left.kek == *kek).count();
        lines.push(format!("{count} values moved to KEK {}", rewrapped.kek));
        lines.push(format!("{left} values left under KEK {kek}"));
    }
    if lines.is_empty() {
        lines.push(format!(
            "every readable value is already encrypted under KEK {}",
            rewrapped.kek
        ));
    }
    let left = rewrapped.left.iter();
    lines.extend(
        left.map(|left| format!("left: {} under KEK {}: {}", left.what, left.kek, left.why)),
    );
    format.print(&value, lines.join("\n"));
    match rewrapped.left.len() {
        0 => Ok(()),
        left => Err(failure(format!("{left} values could not be moved"))),
    }
}

fn describe_start(ring: Ring, key: &SigningKey, act: &Act) -> String {
    let at = key.activate_at;
    let verb = if at <= act.now {
        "signs since"
    } else {
        "signs from"
    };
    format!(
        "{ring} generation {}: {verb} {at} ({}), kid {}",
        key.generation,
        distance(at, act.now),
        key.kid
    )
}

fn view(ring: Ring, write: &KeyWrite, act: &Act) -> Value {
    let changed: Vec<SigningKey> = write.changes().chain(write.inserts()).cloned().collect();
    let keys = changed.iter().map(|key| list::view(key, &changed, act.now));
    json!({ "ring": ring.to_string(), "keys": keys.collect::<Vec<_>>() })
}

fn usage(message: impl Into<String>) -> anyhow::Error {
    let message = message.into();
    Exit { code: 2, message }.into()
}
