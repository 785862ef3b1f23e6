//! Everything that a node is made of, built once: the only wiring place.

mod registrations;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use portcullis_verifier::{Claims, Verifier};
pub use registrations::Registrations;
use tokio::sync::Semaphore;

use crate::accounts::password::Password;
use crate::audit::{Event, Name};
use crate::config::limits::{HASH_QUEUE, HASH_WAIT};
use crate::config::{Config, Issuer, Refused};
use crate::db::{self, Claim, OpenError, Schema, Store};
use crate::keys::{
    ALGS, Alg, Generated, Kek, KeyError, KeyView, Keychain, SealedSecret, ServerSecret, SigningKey,
    Use, provider,
};
use crate::oauth::discovery::Metadata;
use crate::oauth::grants::GrantLife;
use crate::oauth::grants::refresh_token::RefreshLife;
use crate::oauth::issue::{Lives, Mint};
use crate::secret::{Entropy, base64url, sha256};
use crate::time::{Clock, Timestamp};

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
    pub secret: ServerSecret,
    /// What time it is.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    keys: ArcSwap<KeyView>,
    verifier: Verifier,
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
        let now = clock.now();
        let stored = store.read({
            let issuer = issuer.to_string();
            move |tx| Ok((tx.list_keys(&issuer)?, tx.find_server_secret()?))
        });
        let (rows, secret) = stored.await?;
        let keychain = keychain(
            &config,
            &store,
            rows.is_empty() && secret.is_none(),
            &entropy,
        )?;
        // Before anything is made: whatever is there opens with the configured KEKs.
        if let Some(secret) = &secret {
            ServerSecret::open(secret, &keychain)?;
            KeyView::build(&rows, &keychain, now)?;
        }
        let missing = missing_rings(&rows);
        let (rows, secret) = match secret {
            Some(secret) if missing.is_empty() => (rows, secret),
            secret => {
                let first = FirstKeys {
                    missing,
                    secret_too: secret.is_none(),
                    now,
                };
                first
                    .make(&config, &issuer, &store, &keychain, &entropy)
                    .await?
            }
        };
        let view = KeyView::build(&rows, &keychain, now)?;
        Ok(Self {
            secret: ServerSecret::open(&secret, &keychain)?,
            verifier: Verifier::builder(issuer.as_str(), issuer.as_str())
                .any_audience()
                .leeway(config.tokens.clock_leeway.0)
                .keys(view.jwks.clone())
                .build()
                .map_err(|error| StartError::Configuration(error.to_string()))?,
            keys: ArcSwap::from_pointee(view),
            metadata: ready(&Metadata::of(&issuer)).map_err(StartError::Configuration)?,
            hashing: Hashing {
                turns: Arc::new(Semaphore::new(config.login.hash_threads())),
                waiting: AtomicUsize::new(0),
            },
            registrations: Registrations::default(),
            config,
            issuer,
            store,
            clock,
            entropy,
            _claim: claim,
        })
    }

    /// The key view of this moment.
    pub fn keys(&self) -> Arc<KeyView> {
        self.keys.load_full()
    }

    /// Reads our own access tokens, whatever their audience, as any service would.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Whether nothing that a genuine access token rests on has ended.
    ///
    /// # Errors
    /// [`db::Error`]: then nothing is known of it.
    pub async fn token_stands(&self, claims: &Claims) -> Result<bool, db::Error> {
        let claims = claims.clone();
        self.store.read(move |tx| tx.token_stands(&claims)).await
    }

    /// The metadata document, serialised once, and its entity tag.
    pub fn metadata(&self) -> &(Bytes, String) {
        &self.metadata
    }

    /// How long grants live.
    pub fn grant_life(&self) -> GrantLife {
        GrantLife {
            idle: self.config.tokens.refresh_idle.0,
            absolute: self.config.tokens.refresh_absolute.0,
        }
    }

    /// What a mint at `now` needs.
    pub fn mint(&self, now: Timestamp) -> Mint<'_> {
        Mint {
            issuer: self.issuer.as_str(),
            lives: Lives {
                access: self.config.tokens.access.0,
                id: self.config.tokens.id.0,
            },
            refresh: RefreshLife {
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
        if self.waiting.fetch_add(1, Ordering::SeqCst) >= HASH_QUEUE {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            return Err(Busy);
        }
        let turn = tokio::time::timeout(HASH_WAIT, Arc::clone(&self.turns).acquire_owned()).await;
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        turn.map_err(|_| Busy)?.map_err(|_| Busy)
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

/// The configured KEKs. On an empty embedded database without one, the first is made.
fn keychain(
    config: &Config,
    store: &Store,
    empty: bool,
    entropy: &Entropy,
) -> Result<Keychain, StartError> {
    if let [only] = config.keys.kek.as_slice()
        && let Some(path) = only.strip_prefix("file:")
        && store.is_sqlite()
        && empty
        && !std::path::Path::new(path).exists()
    {
        write_kek(std::path::Path::new(path), entropy).map_err(StartError::Configuration)?;
    }
    Ok(Keychain::read(&config.keys.kek)?)
}

/// Writes a fresh KEK into a new file that its owner alone can read.
///
/// # Errors
/// A sentence with the path; an existing file is never touched.
pub fn write_kek(path: &std::path::Path, entropy: &Entropy) -> Result<(), String> {
    use std::io::Write;
    let failed = |error: std::io::Error| {
        format!(
            "the key-encrypting key cannot be written to {}: {error}",
            path.display()
        )
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.create_new(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(failed)?;
    writeln!(file, "{}", *Kek::generate(entropy)).map_err(failed)?;
    file.sync_all().map_err(failed)
}

fn missing_rings(rows: &[SigningKey]) -> Vec<Alg> {
    let lacks = |alg: &Alg| {
        !rows
            .iter()
            .any(|row| row.alg == *alg && row.use_ == Use::Token)
    };
    ALGS.into_iter().filter(lacks).collect()
}

/// What a first start makes, outside any transaction; then one plain INSERT each. A unique violation
/// means that another node was first: its rows are read instead.
struct FirstKeys {
    missing: Vec<Alg>,
    secret_too: bool,
    now: Timestamp,
}

impl FirstKeys {
    async fn make(
        self,
        config: &Config,
        issuer: &Issuer,
        store: &Store,
        keychain: &Keychain,
        entropy: &Entropy,
    ) -> Result<(Vec<SigningKey>, SealedSecret), StartError> {
        let now = self.now;
        let mut keys = Vec::new();
        for alg in self.missing {
            let (bits, source) = (config.keys.rsa_bits, entropy.clone());
            let generated = tokio::task::spawn_blocking(move || Generated::new(alg, bits, &source))
                .await
                .map_err(|error| StartError::Unavailable(error.to_string()))??;
            keys.push(generated.first_of_ring(
                issuer.as_str(),
                Use::Token,
                keychain,
                entropy,
                now,
            )?);
        }
        let secret = match self.secret_too {
            true => Some(ServerSecret::generate(keychain, entropy, now)?),
            false => None,
        };
        let inserted = store.transaction(move |tx| {
            if let Some(secret) = &secret {
                tx.put_server_secret(secret)?;
            }
            for key in &keys {
                tx.put_key(key)?;
                tx.put_audit(&created(key, now))?;
            }
            Ok(())
        });
        match inserted.await {
            Ok(()) | Err(db::Error::Duplicate(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let issuer = issuer.to_string();
        let (rows, secret) = store
            .read(move |tx| Ok((tx.list_keys(&issuer)?, tx.find_server_secret()?)))
            .await?;
        let secret = secret
            .ok_or_else(|| StartError::Unavailable("the server secret is missing".to_owned()))?;
        Ok((rows, secret))
    }
}

fn created(key: &SigningKey, now: Timestamp) -> Event {
    Event {
        at: now,
        name: Name::KeyCreated,
        actor: "node".to_owned(),
        target: format!("key:{}", key.kid),
        reason: None,
        detail: serde_json::json!({
            "use": key.use_.as_str(), "alg": key.alg.name(), "generation": key.generation,
            "activate_at": key.activate_at.micros(),
        }),
    }
}

impl From<Refused> for StartError {
    fn from(refused: Refused) -> Self {
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

impl From<KeyError> for StartError {
    fn from(error: KeyError) -> Self {
        if matches!(error, KeyError::UnknownKek { .. } | KeyError::Corrupt(_)) {
            tracing::error!(event = "key.kek_mismatch", severity = "critical", %error);
        }
        Self::Configuration(error.to_string())
    }
}
