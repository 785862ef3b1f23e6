//! Settings: defaults, overridden by one TOML file, overridden by environment variables named
//! `PORTCULLIS_GUARD__SECTION__KEY`.
//!
//! Routes can be set in the file only. Unknown keys and unsafe values prevent the start.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use portcullis_runtime::{Address, misspelled_key};
use serde::Deserialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use crate::route::Routes;

/// Prefix of the environment variables of this program.
const ENV_PREFIX: &str = "PORTCULLIS_GUARD__";
/// The rest of the name of each variable that is read.
const ENV_KEYS: [&str; 11] = [
    "ISSUER",
    "LISTEN",
    "LISTEN_ANYWHERE",
    "LOG__FORMAT",
    "LOG__LEVEL",
    "SUBSCRIBER__CLIENT_ID",
    "SUBSCRIBER__CLIENT_SECRET",
    "SUBSCRIBER__CLIENT_SECRET_FILE",
    "SUBSCRIBER__FEED",
    "SUBSCRIBER__INSTANCE",
    "SUBSCRIBER__INTROSPECTION",
];
/// Variable with the directory of the unit's systemd credentials, whose files have mode 0440.
const CREDENTIALS_ENV: &str = "CREDENTIALS_DIRECTORY";

/// All settings of the guard.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Issuer identifier of the accepted tokens (RFC 8414 §2): an `https` URL, or `http` on a
    /// loopback host.
    pub issuer: String,
    /// Address to listen on.
    pub listen: Address,
    /// Whether `listen` may be an address that other hosts can reach.
    pub listen_anywhere: bool,
    /// The client that reads the revocation feed.
    pub subscriber: Subscriber,
    /// Logging.
    pub log: Log,
    /// The token that each path and method needs.
    pub routes: Routes,
    /// Variables that are not read because of other underscores or lower case, each with the name that is read.
    #[serde(skip)]
    pub ignored: Vec<(String, String)>,
}

/// Section `subscriber`: a client of the issuer that may read the revocation feed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Subscriber {
    /// The client's id.
    pub client_id: String,
    /// The client's secret.
    pub client_secret: Secret,
    /// A file that contains the client's secret.
    pub client_secret_file: Option<PathBuf>,
    /// The name that distinguishes this instance from others of the same client.
    pub instance: Option<String>,
    /// Whether to introspect tokens at the issuer while the revocation data is too old.
    pub introspection: bool,
    /// URLs of the feed, in order of preference. If empty, the feed is read from the issuer.
    pub feed: Vec<String>,
}

/// A secret that is omitted from `Debug` output.
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
    /// Minimum level, optionally per target: `info`, or `warn,portcullis_guard=debug`.
    pub level: Level,
    /// Output format.
    pub format: Format,
}

/// Value of `log.level`.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Level(pub Targets);

impl Default for Level {
    fn default() -> Self {
        let all = Targets::new().with_default(LevelFilter::INFO);
        // The guard logs its own start, so the start messages of actix are redundant.
        Self(all.with_target("actix_server", LevelFilter::WARN))
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid =
            |_| format!("invalid log level `{text}`; expected error, warn, info, debug or trace");
        text.parse().map(Self).map_err(invalid)
    }
}

impl TryFrom<String> for Level {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Value of `log.format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `Pretty` if stderr is a terminal, `Json` otherwise.
    #[default]
    Auto,
    /// One JSON object per line.
    Json,
    /// A human-readable format.
    Pretty,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "json" => Ok(Self::Json),
            "pretty" => Ok(Self::Pretty),
            _ => Err(format!("expected auto, json or pretty, got `{text}`")),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            listen: Address::new("127.0.0.1", 9180),
            listen_anywhere: false,
            subscriber: Subscriber::default(),
            log: Log::default(),
            routes: Routes::default(),
            ignored: Vec::new(),
        }
    }
}

impl Settings {
    /// Reads and checks the settings from a file and the environment.
    ///
    /// # Errors
    /// A message that names the file or variable, and the key.
    pub fn load(
        file: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, String> {
        let path = file.display();
        let (text, mode) = read(file)?;
        let mut settings: Self =
            toml::from_str(&text).map_err(|error| format!("{path}: {error}"))?;
        if !settings.subscriber.client_secret.0.is_empty() && mode & 0o007 != 0 {
            return Err(format!(
                "{path} contains subscriber.client_secret, and all users can read or write the file \
                 (mode {mode:03o}); run: chmod o= {path}, or use client_secret_file"
            ));
        }
        let environment: Vec<_> = environment.into_iter().collect();
        let mut credentials = environment
            .iter()
            .filter(|(name, _)| name == CREDENTIALS_ENV);
        let credentials = credentials
            .next()
            .map(|(_, directory)| PathBuf::from(directory));
        settings.ignored = environment
            .iter()
            .filter_map(|(name, _)| Some((name.to_str()?.to_owned(), misspelled(name.to_str()?)?)))
            .collect();
        settings.apply_environment(environment)?;
        settings.read_secret(credentials.as_deref())?;
        settings.check()?;
        Ok(settings)
    }

    fn apply_environment(
        &mut self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(), String> {
        let mut level = None;
        for (variable, value) in environment {
            // The prefix is ASCII, so a lossy conversion finds it even in a name that is not UTF-8.
            let variable = variable.to_string_lossy().into_owned();
            if variable != "RUST_LOG" && !variable.starts_with(ENV_PREFIX) {
                continue;
            }
            let value = value
                .into_string()
                .map_err(|_| format!("environment: {variable}: its value is not UTF-8"))?;
            if let Some(key) = variable.strip_prefix(ENV_PREFIX) {
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
            "LISTEN_ANYWHERE" => self.listen_anywhere = parse_bool(&value)?,
            "LOG__FORMAT" => self.log.format = value.parse()?,
            "SUBSCRIBER__CLIENT_ID" => subscriber.client_id = value,
            "SUBSCRIBER__CLIENT_SECRET" => subscriber.client_secret = Secret(value),
            "SUBSCRIBER__CLIENT_SECRET_FILE" => subscriber.client_secret_file = Some(value.into()),
            "SUBSCRIBER__FEED" => {
                subscriber.feed = value.split(',').map(|url| url.trim().to_owned()).collect();
            }
            "SUBSCRIBER__INSTANCE" => subscriber.instance = Some(value),
            "SUBSCRIBER__INTROSPECTION" => subscriber.introspection = parse_bool(&value)?,
            _ => {
                return Err(format!(
                    "unknown key; expected, after {ENV_PREFIX}, one of ISSUER, LISTEN, LISTEN_ANYWHERE, \
                     LOG__FORMAT, LOG__LEVEL, or SUBSCRIBER__ and one of CLIENT_ID, CLIENT_SECRET, \
                     CLIENT_SECRET_FILE, FEED, INSTANCE, INTROSPECTION; routes can be set in the file \
                     only"
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
            return Err(format!("{key} cannot be combined with client_secret"));
        }
        let secret = read_secret_file(file, credentials).map_err(|why| format!("{key}: {why}"))?;
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
            return missing("routes", "without a route, every request is denied");
        }
        if let Address::Unix(path) = &self.listen
            && (!path.is_absolute() || path.file_name().is_none())
        {
            return Err(format!(
                "listen: invalid address `{}`; the path of a socket must be absolute",
                self.listen
            ));
        }
        if !self.listen.is_local() && !self.listen_anywhere {
            return Err(format!(
                "listen: other hosts can reach {}; use a loopback address or unix:/path, \
                 or set `listen_anywhere = true`",
                self.listen
            ));
        }
        Ok(())
    }
}

/// Returns the variable that a name is probably meant to be, if it is not read itself.
fn misspelled(name: &str) -> Option<String> {
    let key = misspelled_key(name, ENV_PREFIX, ENV_KEYS)?;
    Some(format!("{ENV_PREFIX}{key}"))
}

fn parse_bool(text: &str) -> Result<bool, String> {
    text.parse()
        .map_err(|_| format!("expected true or false, got `{text}`"))
}

/// Reads a secret from a file that only its owner can access. A systemd credential may also be
/// readable by its group.
fn read_secret_file(file: &Path, credentials: Option<&Path>) -> Result<String, String> {
    let (text, mode) = read(file)?;
    let forbidden = match credentials.is_some_and(|directory| is_below(file, directory)) {
        true => 0o037,
        false => 0o077,
    };
    if mode & forbidden != 0 {
        let path = file.display();
        return Err(format!(
            "{path} is accessible to other users (mode {mode:03o}); run: chmod 600 {path}"
        ));
    }
    Ok(text.trim().to_owned())
}

/// Returns whether `file` is below `directory`, after resolving symbolic links.
fn is_below(file: &Path, directory: &Path) -> bool {
    let (file, resolved) = (file.canonicalize(), directory.canonicalize());
    let both = file.and_then(|file| Ok((file, resolved?)));
    directory.is_absolute() && both.is_ok_and(|(file, directory)| file.starts_with(directory))
}

/// Reads the text and the mode of a file, both through one open file so that they belong together.
fn read(path: &Path) -> Result<(String, u32), String> {
    let failed = |error| format!("{}: {error}", path.display());
    let mut file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    Ok((text, mode))
}
