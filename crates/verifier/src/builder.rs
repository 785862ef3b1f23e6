//! Construction of a verifier, either with given keys or with keys that are fetched and refreshed.

use std::sync::Arc;
use std::time::Duration;

use crate::fetch::{FetchError, Fetcher, discovery_url, http_client};
use crate::follower::Credentials;
use crate::key_cache::{KeyCache, Refresher};
use crate::metrics::Counters;
use crate::subscription::{Subscription, SubscriptionContext};
use crate::token_cache::{DEFAULT_CAPACITY, TokenCache};
use crate::verifier::{Inner, ValidationRules};
use crate::{Algorithm, Clock, DuplicateKid, JwkSet, Keys, MaxAge, Verifier};

const DEFAULT_LEEWAY: Duration = Duration::from_secs(30);
const MAX_LEEWAY: Duration = Duration::from_secs(60);
/// Maximum capacity of the token cache. At about 1 kB per token, this is 1 GB.
const MAX_CACHED_TOKENS: usize = 1 << 20;

/// Settings of a [`Verifier`]; see [`Verifier::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    issuer: String,
    audience: Option<String>,
    algorithms: Vec<Algorithm>,
    leeway: Duration,
    keys: Option<JwkSet>,
    cached_tokens: usize,
    clock: Clock,
    subscription: Subscription,
}

/// Why a verifier could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A URL is neither an `https` URL nor an `http` URL with a loopback host.
    #[error("{url:?} is neither an https URL nor an http URL with a loopback host")]
    Insecure {
        /// The rejected URL: the issuer, an address of the feed, or an endpoint from the discovery
        /// document.
        url: String,
    },
    /// The discovery document could not be fetched (OpenID Connect Discovery §4).
    #[error("failed to fetch the discovery document {url}")]
    Discovery {
        /// URL of the discovery document.
        url: String,
        /// The cause.
        source: FetchError,
    },
    /// The discovery document names another issuer (OpenID Connect Discovery §4.3).
    #[error("the discovery document has the issuer {found:?}, expected {expected:?}")]
    OtherIssuer {
        /// The configured issuer.
        expected: String,
        /// The issuer in the document.
        found: String,
    },
    /// The issuer's keys could not be fetched.
    #[error("failed to fetch the issuer's keys from {url}")]
    Keys {
        /// The `jwks_uri` of the discovery document.
        url: String,
        /// The cause.
        source: FetchError,
    },
    /// Two of the given keys have the same `kid`.
    #[error(transparent)]
    DuplicateKid(#[from] DuplicateKid),
    /// No keys were given, or none of them is usable.
    #[error("no usable keys were given")]
    NoKeys,
    /// The list of accepted algorithms is empty.
    #[error("the list of accepted algorithms is empty")]
    NoAlgorithms,
    /// The issuer denies the subscriber access to the revocation feed.
    #[error("the subscriber may not read the revocation feed (status {status})")]
    Subscriber {
        /// Status code of the response: 401 or 403.
        status: u16,
    },
    /// The HTTP client could not be created.
    #[error("failed to create the HTTP client")]
    HttpClient(#[source] FetchError),
}

impl Builder {
    pub(crate) fn new(issuer: String, audience: String) -> Self {
        Self {
            issuer,
            audience: Some(audience),
            algorithms: vec![Algorithm::ES256, Algorithm::RS256],
            leeway: DEFAULT_LEEWAY,
            keys: None,
            cached_tokens: DEFAULT_CAPACITY,
            clock: Clock::system(),
            subscription: Subscription::default(),
        }
    }

    /// Accepts the issuer's tokens with any audience.
    ///
    /// This is for the issuer's own endpoints, such as UserInfo, and for verifiers that serve
    /// several APIs and set [`Need::audience`](crate::Need::audience) for each request. An API that
    /// does not check the audience accepts tokens that were issued for other APIs.
    #[must_use]
    pub fn any_audience(mut self) -> Self {
        self.audience = None;
        self
    }

    /// Sets the accepted algorithms. The default is both, ES256 and RS256.
    #[must_use]
    pub fn algorithms(mut self, allowed: &[Algorithm]) -> Self {
        self.algorithms = allowed.to_vec();
        self
    }

    /// Sets how far the issuer's clock and the clock of this host may differ. The default is 30 s,
    /// and values longer than 60 s are reduced to 60 s. Fractions of a second are ignored.
    #[must_use]
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway.min(MAX_LEEWAY);
        self
    }

    /// Sets the issuer's keys for [`build`](Self::build). [`start`](Self::start) ignores them.
    #[must_use]
    pub fn keys(mut self, keys: JwkSet) -> Self {
        self.keys = Some(keys);
        self
    }

    /// Sets the approximate number of tokens with a valid signature that are cached, so that
    /// verifying one of them again is cheap. The default is 8,192, and 0 disables the cache. A
    /// cached token takes about 1 kB of memory, and at most 4 kB. Everything about a token that can
    /// change is still checked each time.
    #[must_use]
    pub fn remember(mut self, tokens: usize) -> Self {
        self.cached_tokens = tokens.min(MAX_CACHED_TOKENS);
        self
    }

    /// Subscribes to the issuer's revocation feed, with the credentials of a client that has the
    /// permission `revocations`. Revoked tokens are usually rejected within a second, and no token
    /// is accepted while the revocation data is older than [`max_age`](Self::max_age). Only
    /// [`start`](Self::start) uses this setting.
    #[must_use]
    pub fn subscriber(mut self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        self.subscription.credentials = Some(Credentials {
            client_id: id.into(),
            client_secret: secret.into(),
        });
        self
    }

    /// Sets the maximum age of the revocation data for requests that need one of these scopes.
    /// `scopes` is a scope, or a prefix followed by `*`. If several settings match, or the request
    /// has a [`Need::max_age`](crate::Need::max_age), the strictest limit applies.
    #[must_use]
    pub fn max_age(mut self, scopes: impl Into<String>, max_age: MaxAge) -> Self {
        self.subscription.max_ages.add(scopes.into(), max_age);
        self
    }

    /// Sets the maximum age of the revocation data for all other requests. The default is
    /// [`MaxAge::STANDARD`].
    #[must_use]
    pub fn default_max_age(mut self, max_age: MaxAge) -> Self {
        self.subscription.max_ages.default = max_age;
        self
    }

    /// Adds a base URL of the feed. The URLs are tried in the order in which they were added, and
    /// the issuer itself is only used if there are none. The first one must also serve
    /// `/revocations/jwks`. A server at the other URLs cannot forge revocation data, because frames
    /// are signed. It can only withhold them.
    #[must_use]
    pub fn feed_at(mut self, url: impl Into<String>) -> Self {
        self.subscription.base_urls.push(url.into());
        self
    }

    /// Sets the name of this instance, under which it appears to the issuer's operators. The
    /// default is the host name. The instances of one client must have different names.
    #[must_use]
    pub fn instance(mut self, name: impl Into<String>) -> Self {
        self.subscription.instance = Some(name.into());
        self
    }

    /// Enables introspection (RFC 7662) of tokens that would otherwise be rejected because the
    /// revocation data is too old. The requests use the subscriber's credentials. This affects
    /// [`verify_or_introspect`](crate::Verifier::verify_or_introspect) and the integrations with
    /// web frameworks.
    #[must_use]
    pub fn introspection(mut self) -> Self {
        self.subscription.introspection = true;
        self
    }

    /// Replaces the source of time, for tests.
    #[must_use]
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// Creates a verifier with the [given keys](Self::keys). It never uses the network, and the
    /// keys never expire. They change only by [`Verifier::replace_keys`].
    ///
    /// # Errors
    ///
    /// [`StartError::NoKeys`], [`StartError::DuplicateKid`] or [`StartError::NoAlgorithms`].
    pub fn build(self) -> Result<Verifier, StartError> {
        let keys = Keys::parse(self.keys.as_ref().ok_or(StartError::NoKeys)?)?;
        if keys.is_empty() {
            return Err(StartError::NoKeys);
        }
        let clock = self.clock.clone();
        Ok(Verifier::new(Inner {
            keys: Arc::new(KeyCache::fixed(keys, clock.clone())),
            clock,
            tokens: TokenCache::with_capacity(self.cached_tokens),
            counters: Arc::default(),
            revocations: None,
            rules: self.rules()?,
            _refresher: None,
        }))
    }

    /// Checks the settings as [`start`](Self::start) does, without using the network.
    ///
    /// # Errors
    ///
    /// [`StartError::Insecure`] or [`StartError::NoAlgorithms`].
    pub fn check(&self) -> Result<(), StartError> {
        discovery_url(&self.issuer)?;
        self.subscription.base_urls(&self.issuer)?;
        self.clone().rules().map(|_| ())
    }

    /// Creates a verifier that fetches the issuer's keys by discovery (OpenID Connect Discovery
    /// §4). It spawns a task on the current Tokio runtime that refreshes the keys until the last
    /// clone of the verifier is dropped.
    ///
    /// Responses must arrive within 2 s and have at most 256 KiB. Redirects are not followed.
    ///
    /// With a [subscriber](Self::subscriber), a second task follows the revocation feed. This
    /// function waits up to 10 s for the first revocation data. If it takes longer, the verifier
    /// rejects tokens with 503 until the data arrives.
    ///
    /// # Errors
    ///
    /// A [`StartError`] if the settings are invalid, if the keys cannot be fetched, or if the
    /// issuer denies access to the feed.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime.
    pub async fn start(self) -> Result<Verifier, StartError> {
        let (clock, subscription) = (self.clock.clone(), self.subscription.clone());
        let tokens = TokenCache::with_capacity(self.cached_tokens);
        let rules = self.rules()?;
        let http = http_client()?;
        let fetcher = Fetcher::discover(http.clone(), &rules.issuer).await?;
        let first = fetcher.keys(false).await;
        let first = first.map_err(|source| StartError::Keys {
            url: fetcher.jwks_uri().to_owned(),
            source,
        })?;
        let introspection_endpoint = fetcher.introspection_endpoint().map(str::to_owned);
        let (keys, refresher) = Refresher::spawn(fetcher, Some(first), clock.clone());
        let counters = Arc::new(Counters::default());
        let context = SubscriptionContext {
            http,
            issuer: &rules.issuer,
            introspection_endpoint,
            clock: clock.clone(),
            counters: counters.clone(),
            token_keys: keys.clone(),
        };
        Ok(Verifier::new(Inner {
            revocations: subscription.start(context).await?,
            rules,
            clock,
            keys,
            tokens,
            counters,
            _refresher: Some(refresher),
        }))
    }

    fn rules(self) -> Result<ValidationRules, StartError> {
        if self.algorithms.is_empty() {
            return Err(StartError::NoAlgorithms);
        }
        Ok(ValidationRules {
            issuer: self.issuer,
            audience: self.audience,
            algorithms: self.algorithms,
            leeway_secs: self.leeway.as_secs(),
        })
    }
}
