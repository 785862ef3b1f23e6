//! SIGHUP: reads certificates, key-encrypting keys, log level and limits again. Invalid settings are logged,
//! and the old ones stay in force.

use actix_web::web::Data;
use anyhow::Context;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::manager::{self, State};
use super::warn_of_limits;
use crate::app::App;
use crate::config::{self, Config, Overrides};
use crate::http::Limits;
use crate::keys::Keychain;
use crate::log;

/// Configuration keys that take effect without a restart. Certificate files are watched separately.
const LIVE: [&str; 3] = ["keys.kek", "log.level", "limits."];

/// Catches SIGHUP. A signal that arrives before [`on_hangup`] runs is kept.
pub fn catch() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("signals cannot be caught")
}

/// Reads the configuration again at each SIGHUP.
pub async fn on_hangup(
    mut hangups: Signal,
    app: Data<App>,
    limits: Data<Limits>,
    overrides: Overrides,
) {
    let mut current = app.config.clone();
    while hangups.recv().await.is_some() {
        let since = State::monotonic_usec_now().ok();
        manager::notify(
            &[Some(State::Reloading), since]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>(),
        );
        let read = config::environment().and_then(|all| config::load(&overrides, all));
        match read {
            Ok(new) => current = apply(&app, &limits, &current, new).await,
            Err(error) => reject("configuration", &error),
        }
        manager::notify(&[manager::READY]);
    }
}

/// Applies the settings that can change at run time, and returns the settings in force.
async fn apply(app: &App, limits: &Limits, old: &Config, new: Config) -> Config {
    app.certificates.notify_waiters();
    let mut now = old.clone();
    let mut taken = Vec::new();
    if changes(old, &new)
        .iter()
        .any(|key| key.starts_with("limits."))
    {
        limits.replace(&new.limits);
        warn_of_limits(&new.limits);
        now.limits = new.limits.clone();
        taken.push("limits");
    }
    if new.log.level != old.log.level {
        match log::set_level(&new.log.level) {
            Ok(()) => {
                now.log.level.clone_from(&new.log.level);
                taken.push("log.level");
            }
            Err(why) => reject("log.level", &why),
        }
    }
    // Always, because the content of a KEK file may have changed.
    match replace_keks(app, &new).await {
        Ok(()) => {
            now.keys.kek.clone_from(&new.keys.kek);
            taken.push("keys.kek");
        }
        Err(why) => reject("keys.kek", &why),
    }
    let later: Vec<String> = changes(old, &new)
        .into_iter()
        .filter(|key| !LIVE.iter().any(|live| key.starts_with(live)))
        .collect();
    if !later.is_empty() {
        tracing::warn!(
            event = "config.restart_needed",
            reason = "not_live",
            keys = later.join(","),
            "these keys changed and take effect at the next start"
        );
    }
    tracing::info!(
        event = "config.reloaded",
        reason = "signal",
        taken = taken.join(",")
    );
    now
}

async fn replace_keks(app: &App, new: &Config) -> Result<(), String> {
    let keychain = Keychain::read(&new.keys.kek).map_err(|error| error.to_string())?;
    let (table, now) = (app.key_manager.table(), app.clock.now());
    table
        .replace_keychain(keychain, now)
        .await
        .map_err(|error| error.to_string())?;
    app.refresh_key_view()
        .await
        .map_err(|error| error.to_string())
}

fn reject(what: &str, why: &dyn std::fmt::Display) {
    tracing::error!(event = "config.rejected", reason = "reload", severity = "high", what, error = %why, "the old settings stay in force");
}

/// Returns the configuration keys whose values differ.
fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut found = Vec::new();
    let value = |config: &Config| serde_json::to_value(config).unwrap_or_default();
    compare(&value(old), &value(new), "", &mut found);
    found
}

fn compare(old: &Value, new: &Value, path: &str, found: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, value) in old {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                compare(value, new.get(name).unwrap_or(&Value::Null), &path, found);
            }
        }
        _ if old != new => found.push(path.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_named_by_key() {
        let old = Config::default();
        let mut new = old.clone();
        new.limits.per_ip = 7;
        new.listen.tls.certificate = Some("c".into());
        new.keys.kek.push("file:x".to_owned());
        assert_eq!(
            changes(&old, &new),
            ["keys.kek", "limits.per_ip", "listen.tls.certificate"]
        );
        assert_eq!(changes(&old, &old), [""; 0]);
    }
}
