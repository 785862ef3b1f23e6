//! Configuration: defaults, overridden by files, by `PORTCULLIS__SECTION__KEY`, and by flags. One file per
//! section. Unknown keys and unsafe combinations prevent the start, with a message that names them.

mod admin;
mod authority;
mod bootstrap;
mod database;
mod http;
mod issuer;
mod keys;
pub mod limits;
mod listen;
mod log;
mod login;
mod network;
mod outbound;
mod secret_file;
mod settings;
mod shutdown;
mod source;
mod telemetry;
mod tokens;

use std::path::PathBuf;

pub use portcullis_runtime::{Address, HumanDuration};
use serde::{Deserialize, Serialize};

pub use admin::Admin;
pub use authority::{Authority, HTTP_PORT, HTTPS_PORT, is_loopback_host};
pub use bootstrap::Bootstrap;
pub use database::Database;
pub use http::Http;
pub use issuer::Issuer;
pub use keys::Keys;
pub use limits::{Limits, Mode};
pub use listen::{Listen, Tls};
pub use log::{Format, Log};
pub use login::{Argon2, Login};
pub use network::{Network, is_in};
pub use outbound::{Destination, Outbound};
pub(crate) use secret_file::read_secret_file;
pub use settings::{Setting, settings};
pub use shutdown::Shutdown;
pub use source::{IgnoredVariable, Overrides, environment, exposed_file, ignored_variables, load};
pub use telemetry::Telemetry;
pub use tokens::Tokens;

/// Everything that an operator can set.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The issuer identifier (RFC 8414 §2): an `https` URL without path, query and fragment, or
    /// `http` on a loopback host. Default: `http://localhost:<port of listen.public>`.
    pub issuer: Option<String>,
    /// Directory of the embedded database. Default: `data`.
    pub data_dir: DataDir,
    /// The name that pages show. Default: `Portcullis`.
    pub branding: Branding,
    /// Lifetimes of codes and tokens.
    pub tokens: Tokens,
    /// Sign-in, sessions, consent, password hashing.
    pub login: Login,
    /// Signing keys and the key that encrypts them.
    pub keys: Keys,
    /// Addresses and certificates of the listeners.
    pub listen: Listen,
    /// Proxies, host names and networks.
    pub http: Http,
    /// Request rates.
    pub limits: Limits,
    /// Networks that may use the admin API.
    pub admin: Admin,
    /// Requests of the server to other hosts.
    pub outbound: Outbound,
    /// Graceful shutdown.
    pub shutdown: Shutdown,
    /// The first administrator.
    pub bootstrap: Bootstrap,
    /// The database.
    pub database: Database,
    /// Logs.
    pub log: Log,
    /// Traces.
    pub telemetry: Telemetry,
}

/// `data_dir`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DataDir(pub PathBuf);

impl Default for DataDir {
    fn default() -> Self {
        Self(PathBuf::from("data"))
    }
}

/// Section `branding`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Branding {
    /// Product name on every page.
    pub product: String,
}

impl Default for Branding {
    fn default() -> Self {
        Self {
            product: "Portcullis".to_owned(),
        }
    }
}

/// Why a configuration is rejected: one sentence that names the key (exit code 78).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl ConfigError {
    /// Creates an error about `key`.
    pub fn key(key: &str, why: impl std::fmt::Display) -> Self {
        Self(format!("configuration key `{key}`: {why}"))
    }
}

impl Config {
    /// Returns the checked issuer.
    ///
    /// # Errors
    /// When it is not a valid issuer.
    pub fn issuer(&self) -> Result<Issuer, ConfigError> {
        match &self.issuer {
            Some(text) => Issuer::parse(text),
            None => match self.listen.public.port() {
                Some(port) => Issuer::parse(&format!("http://localhost:{port}")),
                None => Err(ConfigError::key(
                    "issuer",
                    "must be set when `listen.public` is a Unix socket",
                )),
            },
        }
    }

    /// Returns the URL of the database: as configured, or the SQLite file in `data_dir`.
    pub fn database_url(&self) -> String {
        match &self.database.url {
            Some(url) => self.database.secured(url.clone()),
            None => format!("sqlite:{}", self.data_dir.0.join("portcullis.db").display()),
        }
    }

    /// Returns whether a start of the server migrates an older schema: as configured, or on SQLite only.
    pub fn migrates_itself(&self) -> bool {
        let sqlite = || self.database_url().starts_with("sqlite:");
        self.database.auto_migrate.unwrap_or_else(sqlite)
    }

    /// Returns this configuration with the values that a server derives for keys that are not set.
    fn effective(mut self) -> Result<Self, ConfigError> {
        self.issuer = Some(self.issuer()?.as_str().to_owned());
        self.database.auto_migrate = Some(self.migrates_itself());
        self.database.url = Some(self.database_url());
        self.login.hash_threads = Some(self.login.hash_threads());
        Ok(self)
    }

    /// Checks all sections, and the combinations of keys.
    ///
    /// # Errors
    /// The first error, with its key.
    pub fn check(&self) -> Result<(), ConfigError> {
        let issuer = self.issuer()?;
        self.tokens.check()?;
        self.login.check()?;
        self.keys.check()?;
        self.database.check()?;
        self.http.check()?;
        self.listen.check()?;
        self.limits.check()?;
        self.outbound.check()?;
        self.shutdown.check()?;
        self.log.check()?;
        self.telemetry.check()?;
        self.bootstrap.check()?;
        let loopback_bind = is_loopback_host(self.listen.public.host());
        if self.listen.tls.files().is_some() {
            if !issuer.is_https() {
                return Err(ConfigError::key(
                    "listen.tls",
                    format!(
                        "the listener uses TLS, but the issuer {issuer} is plain http; use an https issuer"
                    ),
                ));
            }
        } else if issuer.is_https() {
            if !loopback_bind && self.http.trusted_proxies.is_empty() {
                return Err(ConfigError::key(
                    "listen.public",
                    format!(
                        "{} serves plain HTTP on an address that is not loopback, but the issuer is https; \
                         set `listen.tls`, bind to loopback, or name the TLS proxy in `http.trusted_proxies`",
                        self.listen.public
                    ),
                ));
            }
        } else if !loopback_bind && !self.http.published_on_loopback {
            return Err(ConfigError::key(
                "listen.public",
                format!(
                    "{} is reachable from other machines, but the issuer {} is plain http; \
                     use an https issuer, or set `http.published_on_loopback` if a container runtime publishes the port on loopback only",
                    self.listen.public, issuer
                ),
            ));
        }
        Ok(())
    }
}
