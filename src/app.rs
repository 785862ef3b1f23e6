//! Everything that a node is made of, built once: the only wiring place.

mod bootstrap;
mod draining;
mod feed;
mod keys;
mod registrations;
mod restored;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use bootstrap::setup_link;
use bytes::Bytes;
pub use draining::Draining;
use portcullis_verifier::Claims;
pub use registrations::Registrations;
use tokio::sync::{Notify, Semaphore};

use crate::accounts::password::Password;
use crate::config::limits::{HASH_QUEUE, HASH_WAIT};
use crate::config::{Config, ConfigError, Issuer};
use crate::db::{self, Claim, OpenError, Schema, Store};
use crate::feed::{Feed, HighWaterMark};
use crate::key_manager::KeyManager;
use crate::keys::ring::offered;
use crate::keys::{KeySource, ServerSecrets, provider};
use crate::oauth::discovery::Metadata;
use crate::oauth::grant::GrantLifetimes;
use crate::oauth::issue::{RefreshLifetimes, TokenIssuer, TokenLifetimes};
use crate::secret::{Entropy, base64url, sha256};
use crate::time::{Clock, Timestamp};

pub use feed::number;
pub use keys::{key_table, write_kek};
pub use restored::{mark_database, marked_by_another};

/// One node.
pub struct App {
    /// What the operator set.
    pub config: Config,
    /// Who we are.
    pub issuer: Issuer,
    /// The database.
    pub store: Store,
    /// Clients and resources as they were at most five seconds ago.
    pub registrations: Registrations,
    /// The root of form tokens.
    pub secret: Arc<ServerSecrets>,
    /// What time it is.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// The keys.
    pub key_manager: KeyManager,
    /// The revocation feed.
    pub feed: Feed,
    mark: Option<HighWaterMark>,
    downtimes: restored::Downtimes,
    signals: feed::Signals,
    /// Whether this node is on its way out.
    pub draining: Draining,
    /// Told when the files of certificates are to be looked at now.
    pub certificates: Arc<Notify>,
    metadata: (Bytes, String),
    hashing: Hashing,
    _claim: Claim,
}

/// Why a node does not start; each has its exit code.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Exit code 78: starting again will not help.
    #[error("{0}")]
    Configuration(String),
    /// Exit code 69: something that we depend on is away.
    #[error("{0}")]
    Unavailable(String),
}

/// Too many people sign in at this moment.
#[derive(Debug)]
pub struct Busy;

/// Passwords are hashed by a few threads at a time, so that a storm of logins starves nobody else.
struct Hashing {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl App {
    /// Opens, checks and wires everything, and makes the keys of a first start.
    ///
    /// # Errors
    /// [`StartError`], one sentence each.
    pub async fn start(config: Config, clock: Clock, entropy: Entropy) -> Result<Self, StartError> {
        let source = KeySource::fresh(config.keys.rsa_bits, entropy.clone());
        Self::start_with(config, clock, entropy, source).await
    }

    /// The same, with key pairs from elsewhere.
    ///
    /// # Errors
    /// [`StartError`], one sentence each.
    pub async fn start_with(
        config: Config,
        clock: Clock,
        entropy: Entropy,
        source: KeySource,
    ) -> Result<Self, StartError> {
        provider::install();
        let issuer = config.issuer()?;
        let url = config.database_url();
        let claim = Claim::on(&url)?;
        let store = open(&config)?;
        match store.schema()? {
            Schema::Current => {}
            Schema::Older(_) if config.database.auto_migrate.unwrap_or(store.is_sqlite()) => {
                store.migrate()?;
            }
            Schema::Older(missing) => {
                return Err(StartError::Configuration(format!(
                    "the database lacks {} migration(s) ({}); run `portcullis migrate up`, or set `database.auto_migrate`",
                    missing.len(),
                    missing.join(", ")
                )));
            }
            Schema::Newer(strange) => {
                return Err(StartError::Configuration(format!(
                    "the database was migrated by a newer version of portcullis ({}); run that version",
                    strange.join(", ")
                )));
            }
        }
        keys::check_algorithms(&config, &store).await?;
        let secrets = store.read(|tx| tx.list_server_secrets()).await?;
        let is_empty = secrets.is_empty();
        let clock = clock.correctable();
        let parts = keys::Parts {
            config: &config,
            issuer: &issuer,
            store: &store,
            source,
            entropy: &entropy,
        };
        let key_manager = parts.key_manager(clock.clone()).await?;
        let secrets = store.read(|tx| tx.list_server_secrets()).await?;
        let mark = secrets
            .first()
            .and_then(|first| HighWaterMark::beside(&config.keys.kek, &first.id));
        let app = Self {
            secret: key_manager.secrets(),
            feed: Feed::new(issuer.as_str(), clock.clone()),
            mark,
            downtimes: restored::Downtimes::default(),
            signals: feed::Signals::default(),
            key_manager,
            metadata: ready(&Metadata::of(&issuer, &offered(&config.keys)))
                .map_err(StartError::Configuration)?,
            hashing: Hashing {
                turns: Arc::new(Semaphore::new(config.login.hash_threads())),
                waiting: AtomicUsize::new(0),
            },
            registrations: Registrations::default(),
            draining: Draining::default(),
            certificates: Arc::default(),
            config,
            issuer,
            store,
            clock,
            entropy,
            _claim: claim,
        };
        if is_empty {
            app.warn_of_empty_database();
        }
        app.begin_feed().await?;
        Ok(app)
    }

    /// Whether nothing that a genuine access token rests on has ended.
    ///
    /// # Errors
    /// [`db::Error`]: then nothing is known of it.
    pub async fn is_token_active(&self, claims: &Claims) -> Result<bool, db::Error> {
        let claims = claims.clone();
        self.store.read(move |tx| tx.is_token_active(&claims)).await
    }

    /// The metadata document, serialised once, and its entity tag.
    pub fn metadata(&self) -> &(Bytes, String) {
        &self.metadata
    }

    /// How long grants live.
    pub fn grant_life(&self) -> GrantLifetimes {
        GrantLifetimes {
            idle: self.config.tokens.refresh_idle.0,
            absolute: self.config.tokens.refresh_absolute.0,
        }
    }

    /// What a mint at `now` needs.
    pub fn mint(&self, now: Timestamp) -> TokenIssuer<'_> {
        TokenIssuer {
            issuer: self.issuer.as_str(),
            lifetimes: TokenLifetimes {
                access: self.config.tokens.access.0,
                id: self.config.tokens.id.0,
            },
            refresh: RefreshLifetimes {
                grace: self.config.tokens.refresh_grace.0,
                idle: self.config.tokens.refresh_idle.0,
            },
            secret: &self.secret,
            entropy: &self.entropy,
            now,
        }
    }

    /// Checks a password when its turn comes; without a stored hash the same work is done and the
    /// answer is no.
    ///
    /// # Errors
    /// [`Busy`] when 64 wait already, or after two seconds.
    pub async fn password_matches(
        &self,
        password: Password,
        stored: Option<String>,
    ) -> Result<(Password, bool), Busy> {
        let turn = self.hashing.turn().await?;
        let cost = self.config.login.argon2;
        tokio::task::spawn_blocking(move || {
            let right = password.matches(stored.as_deref(), &cost);
            drop(turn);
            (password, right)
        })
        .await
        .map_err(|_| Busy)
    }

    /// How many passwords are hashed at this moment, and how many wait for that.
    pub fn hashing(&self) -> (usize, usize) {
        let idle = self.hashing.turns.available_permits();
        let running = self.config.login.hash_threads().saturating_sub(idle);
        (running, self.hashing.waiting.load(Ordering::SeqCst))
    }

    /// Hashes a password when its turn comes.
    ///
    /// # Errors
    /// [`Busy`], as [`App::password_matches`].
    pub async fn password_hash(&self, password: Password) -> Result<String, Busy> {
        let turn = self.hashing.turn().await?;
        let (cost, entropy) = (self.config.login.argon2, self.entropy.clone());
        tokio::task::spawn_blocking(move || {
            let phc = password.hash(&cost, &entropy);
            drop(turn);
            phc
        })
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or(Busy)
    }
}

impl Hashing {
    async fn turn(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Busy> {
        let place = Queued(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::SeqCst) >= HASH_QUEUE {
            return Err(Busy);
        }
        let turn = tokio::time::timeout(HASH_WAIT, Arc::clone(&self.turns).acquire_owned()).await;
        drop(place);
        turn.map_err(|_| Busy)?.map_err(|_| Busy)
    }
}

/// A place in the queue. Whoever hangs up leaves it, too.
struct Queued<'a>(&'a AtomicUsize);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The bytes of a public document and their strong entity tag, with its quotes.
fn ready(document: &impl serde::Serialize) -> Result<(Bytes, String), String> {
    let bytes = serde_json::to_vec(document).map_err(|error| error.to_string())?;
    let etag = format!("\"{}\"", base64url(&sha256(&bytes)[..16]));
    Ok((bytes.into(), etag))
}

/// Opens the database of a configuration.
///
/// # Errors
/// [`StartError`].
pub fn open(config: &Config) -> Result<Store, StartError> {
    Ok(Store::open(
        &config.database_url(),
        config.database.pool_size,
    )?)
}

impl From<ConfigError> for StartError {
    fn from(refused: ConfigError) -> Self {
        Self::Configuration(refused.to_string())
    }
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Unavailable(why) => Self::Unavailable(why),
            OpenError::Configuration(why) => Self::Configuration(why),
        }
    }
}

impl From<db::Error> for StartError {
    fn from(error: db::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}
