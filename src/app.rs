//! Constructs the parts of a node and starts its background tasks.

mod bootstrap;
mod draining;
mod hashing;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use portcullis_verifier::{Claims, Verifier};
use tokio::sync::Notify;

use crate::checks;
use crate::config::{Config, Issuer};
use crate::db::{self, Claim, Registrations, Store};
use crate::feed::{Feed, RestoreDetector};
use crate::id::GrantId;
use crate::key_manager::{KeyManager, KeyManagerError, KeyMetrics, KeyTable, write_kek};
use crate::keys::ring::offered;
use crate::keys::{KeyError, KeySource, KeyView, Keychain, ServerSecrets, Use, provider};
use crate::oauth::client_auth::AssertionRules;
use crate::oauth::discovery::Metadata;
use crate::oauth::grant::GrantLifetimes;
use crate::oauth::issue::{RefreshLifetimes, TokenIssuer, TokenLifetimes};
use crate::outbound::{self, Outbound};
use crate::secret::{Entropy, base64url, sha256};
use crate::tasks::audit_seals::AuditSealer;
use crate::tasks::logout_notifications::LogoutNotifier;
use crate::tasks::{self, feed::FeedTask};
use crate::time::{Clock, Timestamp};

pub use crate::checks::StartError;
pub use bootstrap::setup_link;
pub use draining::Draining;
pub use hashing::Busy;

/// A node.
pub struct App {
    /// The configuration.
    pub config: Config,
    /// The issuer of the configuration.
    pub issuer: Issuer,
    /// The database, for the requests of clients and resource servers.
    pub store: Store,
    /// The database, for pages and sign-ins.
    pub page_store: Store,
    /// The database, for the work of the node itself.
    pub node_store: Store,
    /// A cache of clients and their resources, at most 5 s old.
    pub registrations: Arc<Registrations>,
    /// The server secrets: keys of form tokens and other MACs.
    pub secret: Arc<ServerSecrets>,
    /// The clock of the node.
    pub clock: Clock,
    /// The source of randomness.
    pub entropy: Entropy,
    /// The signing keys and their lease.
    pub key_manager: Arc<KeyManager>,
    /// The revocation feed.
    pub feed: Arc<Feed>,
    feed_task: Arc<FeedTask>,
    audit: Arc<AuditSealer>,
    /// What client assertions are checked against.
    pub assertion_rules: Arc<AssertionRules>,
    /// Tells clients that a session has ended.
    pub logout_notifier: Arc<LogoutNotifier>,
    /// Whether a graceful shutdown has begun.
    pub draining: Draining,
    /// Notified to read the certificate files at once.
    pub certificates: Arc<Notify>,
    metadata: (Bytes, String),
    hashing: hashing::Hashing,
    _claim: Claim,
}

impl App {
    /// Opens and checks the database, and creates the keys of a first start.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config, clock: Clock, entropy: Entropy) -> Result<Self, StartError> {
        let source = KeySource::fresh(config.keys.rsa_bits, entropy.clone());
        Self::start_with(config, clock, entropy, source).await
    }

    /// Does the same as [`App::start`], with another source of key pairs.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_with(
        config: Config,
        clock: Clock,
        entropy: Entropy,
        source: KeySource,
    ) -> Result<Self, StartError> {
        provider::install();
        let issuer = config.issuer()?;
        let claim = Claim::on(&config.database_url())?;
        let store = open(&config, entropy.clone())?;
        checks::schema(&config, &store)?;
        checks::algorithms(&config, &store).await?;
        let secrets = store.read(|tx| tx.list_server_secrets()).await?;
        let is_empty = secrets.is_empty();
        let clock = clock.correctable();
        if is_empty {
            create_first_kek(&config, &store, &entropy)?;
        }
        let (node_store, page_store) = (store.for_node(), store.for_pages());
        let table = key_table_with(&config, &node_store, &entropy, source)?;
        let verifier = |keys: &KeyView| build_verifier(&config, &issuer, keys);
        let key_manager = Arc::new(KeyManager::start(table, clock.clone(), verifier).await?);
        let secrets = store.read(|tx| tx.list_server_secrets()).await?;
        let database = secrets.first().map(|first| first.id.as_str());
        let restores = RestoreDetector::new(
            node_store.clone(),
            clock.clone(),
            &config.keys.kek,
            database,
        );
        let audit = AuditSealer::new(
            node_store.clone(),
            key_manager.secrets(),
            &config.keys.kek,
            database,
        );
        if is_empty {
            restores.warn_of_empty_database();
        }
        store_issuer(&store, &issuer, clock.now()).await?;
        let logout_notifier = LogoutNotifier {
            store: node_store.clone(),
            clock: clock.clone(),
            entropy: entropy.clone(),
            issuer: issuer.as_str().to_owned(),
            key_manager: Arc::clone(&key_manager),
            outbound: build_outbound(&config, &issuer)?,
        };
        let feed = Arc::new(Feed::new(issuer.as_str(), clock.clone()));
        let registrations = Arc::<Registrations>::default();
        let feed_task = FeedTask::start(tasks::feed::Parts {
            store: node_store.clone(),
            clock: clock.clone(),
            feed: Arc::clone(&feed),
            key_manager: Arc::clone(&key_manager),
            registrations: Arc::clone(&registrations),
            restores,
            access_ttl: config.tokens.access.0,
        })
        .await?;
        Ok(Self {
            secret: key_manager.secrets(),
            metadata: serialize(&Metadata::of(&issuer, &offered(&config.keys)))
                .map_err(StartError::Configuration)?,
            hashing: hashing::Hashing::new(config.login.hash_threads()),
            draining: Draining::default(),
            certificates: Arc::default(),
            feed_task: Arc::new(feed_task),
            audit: Arc::new(audit),
            assertion_rules: Arc::new(AssertionRules {
                issuer: issuer.as_str().to_owned(),
                token_endpoint: issuer.url("/oauth2/token"),
                leeway: config.tokens.clock_leeway.0,
            }),
            logout_notifier: Arc::new(logout_notifier),
            config,
            issuer,
            store,
            page_store,
            node_store,
            registrations,
            clock,
            entropy,
            key_manager,
            feed,
            _claim: claim,
        })
    }

    /// Returns the background tasks of the node. None of them ends.
    pub fn tasks(&self) -> Vec<BoxFuture<'static, ()>> {
        let (feed, ttl) = (Arc::clone(&self.feed_task), Arc::clone(&self.feed_task));
        let (audit, key_manager) = (Arc::clone(&self.audit), Arc::clone(&self.key_manager));
        let logout_notifier = Arc::clone(&self.logout_notifier);
        vec![
            Box::pin(async move { feed.run().await }),
            Box::pin(async move { ttl.publish_max_token_ttl().await }),
            Box::pin(tasks::maintain_keys(
                Arc::clone(&key_manager),
                self.entropy.clone(),
            )),
            Box::pin(tasks::clean_up(
                self.node_store.clone(),
                self.clock.clone(),
                key_manager,
            )),
            Box::pin(async move { audit.run().await }),
            Box::pin(async move { logout_notifier.run().await }),
        ]
    }

    /// Follows the database: keys, clients and revocation records. Never returns.
    pub async fn follow(&self) {
        self.feed_task.run().await;
    }

    /// Polls the database once; see [`FeedTask::poll`].
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn poll(&self) -> Result<(), KeyManagerError> {
        self.feed_task.poll().await
    }

    /// Numbers waiting revocation records; see [`FeedTask::number_waiting`].
    ///
    /// # Errors
    /// [`db::Error`].
    pub async fn number_waiting(&self) -> Result<(), db::Error> {
        self.feed_task.number_waiting().await
    }

    /// Completes the work on the feed before the node exits; see [`FeedTask::settle`].
    ///
    /// # Errors
    /// [`KeyManagerError`].
    pub async fn settle_feed(&self) -> Result<(), KeyManagerError> {
        self.feed_task.settle().await
    }

    /// Stores acknowledgements and audit seals that a background task would have written later.
    ///
    /// # Errors
    /// [`db::Error`].
    pub async fn write_acks_and_seals(&self) -> Result<(), db::Error> {
        self.feed_task.write_acks().await;
        self.audit.seal_all().await
    }

    /// Records evidence that the database was restored; see [`FeedTask::note_restored`].
    ///
    /// # Errors
    /// [`db::Error`].
    pub async fn note_restored(&self, reason: &'static str) -> Result<(), db::Error> {
        self.feed_task.note_restored(reason).await
    }

    /// Records such evidence if the grant was lost; see [`FeedTask::note_lost_grant`].
    ///
    /// # Errors
    /// [`db::Error`].
    pub async fn note_lost_grant(&self, grant: &GrantId) -> Result<bool, db::Error> {
        self.feed_task.note_lost_grant(grant).await
    }

    /// Returns the current key view: to publish keys and to verify ID token hints.
    pub fn keys(&self) -> Arc<KeyView> {
        self.key_manager.view()
    }

    /// Checks whether this node may change state: sign users in, and issue codes and tokens. Every
    /// request passes through this check, and `/readyz` names each reason against it.
    ///
    /// # Errors
    /// [`KeyError::Restored`]; [`KeyError::Clock`] while the node's clock is wrong;
    /// [`KeyError::NoLease`] when for 30 s the database accepted no write of this node or did not
    /// confirm its keys.
    pub async fn may_change_state(&self) -> Result<(), KeyError> {
        if self.feed.is_restored() {
            return Err(KeyError::Restored);
        }
        self.key_manager.check().await
    }

    /// Returns the keys to sign tokens with.
    ///
    /// # Errors
    /// As [`App::may_change_state`].
    pub async fn signing_keys(&self) -> Result<Arc<KeyView>, KeyError> {
        self.may_change_state().await?;
        Ok(self.keys())
    }

    /// Returns the verifier of access tokens of this issuer, for any audience.
    pub fn verifier(&self) -> &Verifier {
        self.key_manager.verifier()
    }

    /// Reads the key table again and replaces the key view.
    ///
    /// # Errors
    /// [`KeyManagerError`]; then the old view stays.
    pub async fn refresh_key_view(&self) -> Result<(), KeyManagerError> {
        self.key_manager.refresh().await
    }

    /// Returns the metrics of the keys.
    pub fn key_metrics(&self) -> KeyMetrics {
        self.key_manager.metrics()
    }

    /// Returns whether the grant, session, user and client of a verified access token are active.
    ///
    /// # Errors
    /// [`db::Error`]; then the state of the token is unknown.
    pub async fn is_token_active(&self, claims: &Claims) -> Result<bool, db::Error> {
        let claims = claims.clone();
        self.store.read(move |tx| tx.is_token_active(&claims)).await
    }

    /// Returns the serialized metadata document (RFC 8414) and its entity tag.
    pub fn metadata(&self) -> &(Bytes, String) {
        &self.metadata
    }

    /// Returns the lifetimes of grants.
    pub fn grant_lifetimes(&self) -> GrantLifetimes {
        GrantLifetimes {
            idle: self.config.tokens.refresh_idle.0,
            absolute: self.config.tokens.refresh_absolute.0,
        }
    }

    /// Returns the issuer of tokens at the instant `now`.
    pub fn token_issuer(&self, now: Timestamp) -> TokenIssuer<'_> {
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
}

/// Stores the issuer, so that commands with another one can warn. Warns if the previous server had another one,
/// because its tokens and the registrations of its services name that one.
async fn store_issuer(store: &Store, issuer: &Issuer, now: Timestamp) -> Result<(), db::Error> {
    let served = store.read(|tx| tx.served_issuer()).await?;
    if served.as_deref() == Some(issuer.as_str()) {
        return Ok(());
    }
    if let Some(served) = served {
        tracing::warn!(
            event = "config.other_issuer",
            reason = "start",
            served,
            configured = issuer.as_str(),
            "the previous server on this database had another issuer; its tokens are no longer valid, and applications and services must use the new issuer"
        );
    }
    let issuer = issuer.as_str().to_owned();
    store
        .transaction(move |tx| tx.put_served_issuer(&issuer, now))
        .await
}

/// Serializes a public document, with its strong entity tag including the quotes.
fn serialize(document: &impl serde::Serialize) -> Result<(Bytes, String), String> {
    let bytes = serde_json::to_vec(document).map_err(|error| error.to_string())?;
    let etag = format!("\"{}\"", base64url(&sha256(&bytes)[..16]));
    Ok((bytes.into(), etag))
}

/// Opens the configured database.
///
/// # Errors
/// [`StartError`].
pub fn open(config: &Config, entropy: Entropy) -> Result<Store, StartError> {
    Ok(Store::open(
        &config.database_url(),
        config.database.pool_size,
        entropy,
    )?)
}

/// Returns the key table of a configuration, for a command. Creates no keys.
///
/// # Errors
/// [`StartError`].
pub async fn key_table(
    config: &Config,
    store: &Store,
    entropy: &Entropy,
) -> Result<KeyTable, StartError> {
    let source = KeySource::fresh(config.keys.rsa_bits, entropy.clone());
    key_table_with(config, store, entropy, source)
}

fn key_table_with(
    config: &Config,
    store: &Store,
    entropy: &Entropy,
    source: KeySource,
) -> Result<KeyTable, StartError> {
    let issuer = config.issuer()?;
    Ok(KeyTable::new(
        config,
        issuer.as_str(),
        store.clone(),
        Keychain::read(&config.keys.kek)?,
        source,
        entropy.clone(),
    ))
}

/// Creates the KEK of an empty embedded database if the only configured KEK is a file that does not exist.
fn create_first_kek(config: &Config, store: &Store, entropy: &Entropy) -> Result<(), StartError> {
    if let [only] = config.keys.kek.as_slice()
        && let Some(path) = only.strip_prefix("file:").map(Path::new)
        && store.is_sqlite()
        && !path.exists()
    {
        write_kek(path, entropy).map_err(StartError::Configuration)?;
    }
    Ok(())
}

/// Creates the client for URLs that clients and administrators supply. Only a development server sends plain http.
fn build_outbound(config: &Config, issuer: &Issuer) -> Result<Outbound, StartError> {
    let rules = outbound::Rules::new(&config.outbound, !issuer.is_https())
        .map_err(|error| StartError::Configuration(error.to_string()))?;
    Outbound::new(rules).map_err(|error| StartError::Configuration(error.to_string()))
}

fn build_verifier(config: &Config, issuer: &Issuer, keys: &KeyView) -> Result<Verifier, String> {
    Verifier::builder(issuer.as_str(), issuer.as_str())
        .any_audience()
        .leeway(config.tokens.clock_leeway.0)
        .keys(keys.published(Use::Token).set.clone())
        .build()
        .map_err(|error| error.to_string())
}
