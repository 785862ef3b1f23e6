//! The configuration key by key, with the source of each value.

use super::source::{flatten, has_password, read};
use super::{Config, ConfigError, Overrides};

/// One key with its value and its source.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Such as `listen.public`.
    pub key: String,
    /// The effective value. Secrets are hidden.
    pub value: serde_json::Value,
    /// A file, a variable, the command line, `default`, or `derived` from other settings or the machine.
    pub source: String,
}

impl Setting {
    /// Returns whether a file, a variable or the command line sets the value.
    pub fn is_set(&self) -> bool {
        self.source != DEFAULT && self.source != DERIVED
    }
}

/// Source of a value that is not set anywhere.
const DEFAULT: &str = "default";

/// Source of a value that is not set anywhere, and that the server computes.
const DERIVED: &str = "derived";

/// Reads the configuration key by key, with the source of each value.
///
/// # Errors
/// As [`super::load`].
pub fn settings(
    overrides: &Overrides,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<Setting>, ConfigError> {
    let (config, origins) = read(overrides, environment)?;
    let json = |config: &Config| {
        serde_json::to_value(config).map_err(|error| ConfigError(format!("configuration: {error}")))
    };
    let configured = json(&config)?;
    let effective = json(&config.effective()?)?;
    let mut settings = Vec::new();
    flatten(&effective, "", &mut |key, value| {
        let pointer = format!("/{}", key.replace('.', "/"));
        let unset = match configured.pointer(&pointer) == Some(value) {
            true => DEFAULT,
            false => DERIVED,
        };
        let source = origins.get(key).map_or(unset, String::as_str);
        settings.push(Setting {
            key: key.to_owned(),
            value: redacted(key, value),
            source: source.to_owned(),
        });
    });
    Ok(settings)
}

/// Hides the secrets in a value.
fn redacted(key: &str, value: &serde_json::Value) -> serde_json::Value {
    const HIDDEN: &str = "(hidden)";
    match (key, value.as_str()) {
        ("bootstrap.admin_password_hash", Some(_)) => HIDDEN.into(),
        ("database.url", Some(text)) if !text.starts_with("sqlite:") => {
            let Ok(mut url) = url::Url::parse(text) else {
                return HIDDEN.into();
            };
            if url.password().is_some() && url.set_password(Some("hidden")).is_err() {
                return HIDDEN.into();
            }
            let shown = url.to_string();
            let _ = url.set_password(None);
            match has_password(&url) {
                true => HIDDEN.into(),
                false => shown.into(),
            }
        }
        (_, Some(text)) => without_userinfo(text).map_or_else(|| value.clone(), Into::into),
        _ => value.clone(),
    }
}

/// Hides the user information of a URL, because both the user name and the password may be a token. Returns
/// `None` for a URL without it.
fn without_userinfo(text: &str) -> Option<String> {
    let mut url = url::Url::parse(text).ok()?;
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let hidden = url
        .set_password(None)
        .and_then(|()| url.set_username("hidden"));
    Some(hidden.map_or_else(|()| "(hidden)".to_owned(), |()| url.to_string()))
}
