//! How a node comes by its keys: the KEKs of its configuration, the table, the key_manager.

use std::path::Path;
use std::sync::Arc;

use portcullis_verifier::Verifier;

use super::{App, StartError};
use crate::config::limits::KEEP_EVERY;
use crate::config::{Config, Issuer};
use crate::db::{Store, Transaction};
use crate::key_manager::{KeyManager, KeyManagerError, KeyMetrics, KeyTable};
use crate::keys::ring::offered;
use crate::keys::{Kek, KeyError, KeySource, KeyView, Keychain, Use};
use crate::secret::Entropy;
use crate::time::Clock;

impl App {
    /// The key view of this moment: to publish, and to read hints with.
    pub fn keys(&self) -> Arc<KeyView> {
        self.key_manager.view()
    }

    /// Checks whether this node may change state: sign users in, and issue codes and tokens. Every
    /// request passes through it, and `/readyz` names each reason against it.
    ///
    /// # Errors
    /// [`KeyError::Restored`]; [`KeyError::Clock`] while its clock is wrong; [`KeyError::NoLease`] when
    /// for 30 s the database took no write of this node or did not confirm its keys.
    pub async fn may_change_state(&self) -> Result<(), KeyError> {
        if self.feed.is_restored() {
            return Err(KeyError::Restored);
        }
        self.key_manager.check().await
    }

    /// The keys to sign tokens with.
    ///
    /// # Errors
    /// As [`App::may_change_state`].
    pub async fn signing_keys(&self) -> Result<Arc<KeyView>, KeyError> {
        self.may_change_state().await?;
        Ok(self.keys())
    }

    /// Reads our own access tokens, whatever their audience, as any service would.
    pub fn verifier(&self) -> &Verifier {
        self.key_manager.verifier()
    }

    /// Reads the key table again, builds the view and swaps it.
    ///
    /// # Errors
    /// [`KeyManagerError`]; then the old view stays.
    pub async fn refresh_key_view(&self) -> Result<(), KeyManagerError> {
        self.key_manager.refresh().await
    }

    /// Keeps the rings until this node ends: each minute or so, and at once after the start.
    pub async fn keep_keys(&self) {
        loop {
            if let Err(error) = self.key_manager.keep().await {
                tracing::error!(event = "storage.error", reason = "keeper", severity = "high", %error);
            }
            // Up to a fifth more, so that nodes do not do the same work at the same moment.
            let [chance] = self.entropy.bytes::<1>();
            tokio::time::sleep(KEEP_EVERY + KEEP_EVERY * u32::from(chance) / 1_280).await;
        }
    }

    /// The figures that an operator watches.
    pub fn key_metrics(&self) -> KeyMetrics {
        self.key_manager.metrics()
    }
}

/// What a keeper is made of.
pub(super) struct Parts<'a> {
    pub config: &'a Config,
    pub issuer: &'a Issuer,
    pub store: &'a Store,
    pub source: KeySource,
    pub entropy: &'a Entropy,
}

impl Parts<'_> {
    pub(super) async fn key_manager(self, clock: Clock) -> Result<KeyManager, StartError> {
        let (issuer, leeway) = (self.issuer.to_string(), self.config.tokens.clock_leeway.0);
        let verifier = move |keys: &KeyView| {
            Verifier::builder(issuer.as_str(), issuer.as_str())
                .any_audience()
                .leeway(leeway)
                .keys(keys.published(Use::Token).set.clone())
                .build()
                .map_err(|error| error.to_string())
        };
        let table = self.table().await?;
        Ok(KeyManager::start(table, clock, verifier).await?)
    }

    async fn table(self) -> Result<KeyTable, StartError> {
        let empty = self
            .store
            .read(|tx| Ok(tx.list_server_secrets()?.is_empty()))
            .await?;
        Ok(KeyTable::new(
            self.config,
            self.issuer.as_str(),
            self.store.clone(),
            keychain(self.config, self.store, empty, self.entropy)?,
            self.source,
            self.entropy.clone(),
        ))
    }
}

/// Refuses to leave an algorithm out that somebody is registered for: his tokens could not be signed.
pub(super) async fn check_algorithms(config: &Config, store: &Store) -> Result<(), StartError> {
    let offered = offered(&config.keys);
    let needs = move |tx: &mut Transaction<'_>| {
        Ok(match tx.find_client_beyond(&offered)? {
            Some(client) => Some(format!("the client `{client}`")),
            None => tx
                .find_resource_beyond(&offered)?
                .map(|audience| format!("the resource `{audience}`")),
        })
    };
    match store.read(needs).await? {
        None => Ok(()),
        Some(who) => Err(StartError::Configuration(format!(
            "configuration key `keys.algorithms`: leaves out an algorithm that {who} is registered for"
        ))),
    }
}

/// The key table of a configuration, for a command. Nothing is made.
///
/// # Errors
/// [`StartError`].
pub async fn key_table(
    config: &Config,
    store: &Store,
    entropy: &Entropy,
) -> Result<KeyTable, StartError> {
    let issuer = config.issuer()?;
    let table = KeyTable::new(
        config,
        issuer.as_str(),
        store.clone(),
        Keychain::read(&config.keys.kek)?,
        KeySource::fresh(config.keys.rsa_bits, entropy.clone()),
        entropy.clone(),
    );
    Ok(table)
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
        && !Path::new(path).exists()
    {
        write_kek(Path::new(path), entropy).map_err(StartError::Configuration)?;
    }
    Ok(Keychain::read(&config.keys.kek)?)
}

/// Writes a fresh KEK into a new file that its owner alone can read.
///
/// # Errors
/// A sentence with the path; an existing file is never touched.
pub fn write_kek(path: &Path, entropy: &Entropy) -> Result<(), String> {
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
    // Whole or not at all: whoever is killed in between must not leave half a KEK behind.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let draft = Path::new(&name);
    let mut options = std::fs::OpenOptions::new();
    options.create(true).truncate(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(draft).map_err(failed)?;
    writeln!(file, "{}", *Kek::generate(entropy)).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    // Unlike a rename this refuses to replace what is there.
    let linked = std::fs::hard_link(draft, path).map_err(failed);
    std::fs::remove_file(draft).map_err(failed)?;
    linked
}

impl From<KeyError> for StartError {
    fn from(error: KeyError) -> Self {
        if matches!(error, KeyError::UnknownKek { .. } | KeyError::Corrupt(_)) {
            tracing::error!(event = "key.kek_mismatch", reason = "kek", severity = "critical", %error);
        }
        Self::Configuration(error.to_string())
    }
}

impl From<KeyManagerError> for StartError {
    fn from(failed: KeyManagerError) -> Self {
        match failed {
            KeyManagerError::Database(error) => error.into(),
            KeyManagerError::Keys(error) => error.into(),
            other => Self::Unavailable(other.to_string()),
        }
    }
}
