//! Settings: defaults, then one file, then `PORTCULLIS_GUARD__SECTION__KEY`. Routes stand in the
//! file alone. What nobody knows, and what would not be safe, refuses the start.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use crate::address::Address;
use crate::route::Routes;

const PREFIX: &str = "PORTCULLIS_GUARD__";
/// Where systemd puts what a unit loads, which it lets a group read (0440).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Everything that an operator can set.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whose tokens are accepted (RFC 8414 §2): an `https` URL, or `http` on a loopback host.
    pub issuer: String,
    /// Where the guard listens.
    pub listen: Address,
    /// Whether `listen` may be an address that other hosts reach.
    pub listen_anywhere: bool,
    /// How revocations are learned of.
    pub subscriber: Subscriber,
    /// Logs.
    pub log: Log,
    /// Who may go where.
    pub routes: Routes,
}

/// Section `subscriber`: a client of the issuer that may read the revocation feed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Subscriber {
    /// Its id.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret,
    /// The file of its secret.
    pub client_secret_file: Option<PathBuf>,
    /// The name of this instance among those of the client.
    pub instance: Option<String>,
    /// Whether the issuer is asked about a token while the news of revocations is too old.
    pub introspection: bool,
    /// Where the feed is to be had, if not at the issuer.
    pub feed: Vec<String>,
}

/// A text that no log shows.
#[derive(Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Section `log`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// What is logged: `info`, or `warn,portcullis_guard=debug`.
    pub level: Level,
    /// How.
    pub format: Format,
}

/// `log.level`.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Level(pub Targets);

impl Default for Level {
    fn default() -> Self {
        let all = Targets::new().with_default(LevelFilter::INFO);
        // What it says at each start is said better here.
        Self(all.with_target("actix_server", LevelFilter::WARN))
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |_| format!("`{text}` is no level; write error, warn, info, debug or trace");
        text.parse().map(Self).map_err(wrong)
    }
}

impl TryFrom<String> for Level {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// `log.format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Readable on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// One JSON object per line.
    Json,
    /// For people.
    Pretty,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "json" => Ok(Self::Json),
            "pretty" => Ok(Self::Pretty),
            _ => Err(format!("`{text}` is none of auto, json, pretty")),
        }
    }
}

impl Settings {
    /// Reads and checks a file and an environment. The error is a sentence that names the place and
    /// the key.
    pub fn load(
        file: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, String> {
        let place = file.display();
        let (text, mode) = read(file)?;
        let mut settings: Self =
            toml::from_str(&text).map_err(|error| format!("{place}: {error}"))?;
        if !settings.subscriber.client_secret.0.is_empty() && mode & 0o007 != 0 {
            return Err(format!(
                "{place} has subscriber.client_secret, and everybody may read or write it (mode {mode:03o}); \
                 run: chmod o= {place}, or use client_secret_file"
            ));
        }
        let environment: Vec<_> = environment.into_iter().collect();
        let mut credentials = environment.iter().filter(|(name, _)| name == CREDENTIALS);
        let credentials = credentials.next().map(|(_, folder)| PathBuf::from(folder));
        settings.heed(environment)?;
        settings.read_secret(credentials.as_deref())?;
        settings.check()?;
        Ok(settings)
    }

    fn heed(
        &mut self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(), String> {
        let mut level = None;
        for (variable, value) in environment {
            // What is ours begins so, whatever follows.
            let variable = variable.to_string_lossy().into_owned();
            if variable != "RUST_LOG" && !variable.starts_with(PREFIX) {
                continue;
            }
            let value = value
                .into_string()
                .map_err(|_| format!("environment: {variable}: its value is not UTF-8"))?;
            if let Some(key) = variable.strip_prefix(PREFIX) {
                if key == "LOG__LEVEL" {
                    level = Some((variable, value));
                } else {
                    self.set(key, value)
                        .map_err(|why| format!("environment: {variable}: {why}"))?;
                }
            } else if variable == "RUST_LOG" && level.is_none() {
                level = Some((variable, value));
            }
        }
        let Some((variable, value)) = level else {
            return Ok(());
        };
        let level = value.parse();
        self.log.level = level.map_err(|why| format!("environment: {variable}: {why}"))?;
        Ok(())
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        let subscriber = &mut self.subscriber;
        match key {
            "ISSUER" => self.issuer = value,
            "LISTEN" => self.listen = value.parse()?,
            "LISTEN_ANYWHERE" => self.listen_anywhere = boolean(&value)?,
            "LOG__FORMAT" => self.log.format = value.parse()?,
            "SUBSCRIBER__CLIENT_ID" => subscriber.client_id = value,
            "SUBSCRIBER__CLIENT_SECRET" => subscriber.client_secret = Secret(value),
            "SUBSCRIBER__CLIENT_SECRET_FILE" => subscriber.client_secret_file = Some(value.into()),
            "SUBSCRIBER__FEED" => {
                subscriber.feed = value.split(',').map(|url| url.trim().to_owned()).collect();
            }
            "SUBSCRIBER__INSTANCE" => subscriber.instance = Some(value),
            "SUBSCRIBER__INTROSPECTION" => subscriber.introspection = boolean(&value)?,
            _ => {
                return Err(format!(
                    "unknown key; those known are ISSUER, LISTEN, LISTEN_ANYWHERE, LOG__FORMAT, LOG__LEVEL \
                     and, after SUBSCRIBER__, CLIENT_ID, CLIENT_SECRET, CLIENT_SECRET_FILE, FEED, INSTANCE, \
                     INTROSPECTION, each after {PREFIX}; routes stand in the file"
                ));
            }
        }
        Ok(())
    }

    fn read_secret(&mut self, credentials: Option<&Path>) -> Result<(), String> {
        let Some(file) = &self.subscriber.client_secret_file else {
            return Ok(());
        };
        let key = "subscriber.client_secret_file";
        if !self.subscriber.client_secret.0.is_empty() {
            return Err(format!("{key} is given together with client_secret"));
        }
        let secret = secret_of(file, credentials).map_err(|why| format!("{key}: {why}"))?;
        self.subscriber.client_secret = Secret(secret);
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let missing = |key: &str, what: &str| Err(format!("{key} is missing: {what}"));
        if self.issuer.is_empty() {
            return missing("issuer", "the URL of the authorization server");
        }
        if self.subscriber.client_id.is_empty() {
            let what = "a client of the issuer that may read the revocation feed";
            return missing("subscriber.client_id", what);
        }
        if self.subscriber.client_secret.0.is_empty() {
            return missing("subscriber.client_secret", "or client_secret_file");
        }
        if self.routes.is_empty() {
            return missing("routes", "without one every request is denied");
        }
        if !self.listen.is_local() && !self.listen_anywhere {
            return Err(format!(
                "listen: other hosts reach {}; use a loopback address or unix:/path, \
                 or say `listen_anywhere = true`",
                self.listen
            ));
        }
        Ok(())
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is neither true nor false"))
}

/// A secret in a file that nobody else can read; among the credentials of systemd a group may.
fn secret_of(file: &Path, credentials: Option<&Path>) -> Result<String, String> {
    let (text, mode) = read(file)?;
    let others = match credentials.is_some_and(|folder| is_below(file, folder)) {
        true => 0o037,
        false => 0o077,
    };
    if mode & others != 0 {
        let place = file.display();
        return Err(format!(
            "{place} can be read by others (mode {mode:03o}); run: chmod 600 {place}"
        ));
    }
    Ok(text.trim().to_owned())
}

/// Wherever links lead.
fn is_below(file: &Path, folder: &Path) -> bool {
    let (file, whole) = (file.canonicalize(), folder.canonicalize());
    let both = file.and_then(|file| Ok((file, whole?)));
    folder.is_absolute() && both.is_ok_and(|(file, folder)| file.starts_with(folder))
}

/// A file's text and mode, both of the same file.
fn read(path: &Path) -> Result<(String, u32), String> {
    let failed = |error| format!("{}: {error}", path.display());
    let mut file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    Ok((text, mode))
}
