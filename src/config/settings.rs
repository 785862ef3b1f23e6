//! The configuration key by key: what holds, and where it comes from.

use std::ffi::OsString;

use super::source::{flatten, read};
use super::{Overrides, Refused};

/// One key, its value and where it comes from.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Such as `listen.public`.
    pub key: String,
    /// What holds; a secret is hidden.
    pub value: serde_json::Value,
    /// A file, a variable, the command line, or `default`.
    pub source: String,
}

impl Setting {
    /// Whether somebody set it.
    pub fn is_set(&self) -> bool {
        self.source != DEFAULT
    }
}

/// Where a value comes from that nobody set.
const DEFAULT: &str = "default";

/// Reads the configuration key by key, with where each value comes from.
///
/// # Errors
/// As [`super::load`].
pub fn settings(
    overrides: &Overrides,
    environment: impl IntoIterator<Item = (impl Into<OsString>, impl Into<OsString>)>,
) -> Result<Vec<Setting>, Refused> {
    let (config, origins) = read(overrides, environment)?;
    let all = serde_json::to_value(&config)
        .map_err(|error| Refused(format!("configuration: {error}")))?;
    let mut settings = Vec::new();
    flatten(&all, "", &mut |key, value| {
        let source = origins.get(key).map_or(DEFAULT, String::as_str);
        settings.push(Setting {
            key: key.to_owned(),
            value: redacted(key, value),
            source: source.to_owned(),
        });
    });
    Ok(settings)
}

/// A value without what nobody else should read.
fn redacted(key: &str, value: &serde_json::Value) -> serde_json::Value {
    const HIDDEN: &str = "(hidden)";
    match (key, value.as_str()) {
        ("bootstrap.admin_password_hash", Some(_)) => HIDDEN.into(),
        ("database.url", Some(text)) if !text.starts_with("sqlite:") => {
            let Ok(mut url) = url::Url::parse(text) else {
                return HIDDEN.into();
            };
            // libpq takes a password in either place.
            let in_query = url.query_pairs().any(|(name, _)| name.contains("password"));
            if in_query || (url.password().is_some() && url.set_password(Some("hidden")).is_err()) {
                return HIDDEN.into();
            }
            url.to_string().into()
        }
        // Whatever else is an address may have a password in it.
        (_, Some(text)) if text.contains("://") => match url::Url::parse(text) {
            Ok(mut url) if url.password().is_some() || !url.username().is_empty() => {
                let hidden = url
                    .set_password(None)
                    .and_then(|()| url.set_username("hidden"));
                hidden.map_or_else(|()| HIDDEN.into(), |()| url.to_string().into())
            }
            _ => value.clone(),
        },
        _ => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_shows_a_password() {
        let shown = |key, text: &str| redacted(key, &text.into());
        assert_eq!(
            shown("telemetry.endpoint", "http://me:pw@host:4318/v1"),
            "http://hidden@host:4318/v1"
        );
        assert_eq!(
            shown("telemetry.endpoint", "http://token@host/"),
            "http://hidden@host/"
        );
        assert_eq!(shown("issuer", "https://id.example"), "https://id.example");
        assert_eq!(
            shown("database.url", "postgres://me:pw@db/x"),
            "postgres://me:hidden@db/x"
        );
        assert_eq!(
            shown("database.url", "postgres://db/x?password=pw"),
            "(hidden)"
        );
    }
}
