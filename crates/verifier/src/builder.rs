//! How a verifier comes to be: with keys by value, or with keys that it fetches and keeps fresh.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::{Cache, Refresher};
use crate::fetch::{FetchError, Fetcher, client, discovery_url};
use crate::follow::Credentials;
use crate::metrics::Counters;
use crate::seen::{DEFAULT_TOKENS, Memory};
use crate::subscription::{Base, Subscription};
use crate::verifier::{Expected, Inner};
use crate::{Algorithm, Clock, DuplicateKid, JwkSet, Keys, MaxAge, Verifier};

const LEEWAY: Duration = Duration::from_secs(30);
const MAX_LEEWAY: Duration = Duration::from_secs(60);
/// A gigabyte, as a rule.
const MAX_REMEMBERED: usize = 1 << 20;

/// Describes a [`Verifier`]; see [`Verifier::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    issuer: String,
    audience: Option<String>,
    algorithms: Vec<Algorithm>,
    leeway: Duration,
    keys: Option<JwkSet>,
    remembered: usize,
    clock: Clock,
    subscription: Subscription,
}

/// Why a verifier could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The URL is neither `https` nor `http` to a loopback host.
    #[error("{url:?} is neither an https URL nor an http URL of a loopback host")]
    Insecure {
        /// The issuer, or the `jwks_uri` of its discovery document.
        url: String,
    },
    /// The discovery document could not be had (OpenID Connect Discovery §4).
    #[error("the discovery document {url} could not be had")]
    Discovery {
        /// Where it was looked for.
        url: String,
        /// What went wrong.
        source: FetchError,
    },
    /// The discovery document names another issuer (OpenID Connect Discovery §4.3).
    #[error("the discovery document is that of {found:?}, not of {expected:?}")]
    OtherIssuer {
        /// The issuer that was configured.
        expected: String,
        /// The issuer that the document names.
        found: String,
    },
    /// The keys could not be had.
    #[error("the keys at {url} could not be had")]
    Keys {
        /// The `jwks_uri` of the discovery document.
        url: String,
        /// What went wrong.
        source: FetchError,
    },
    /// The keys given by value hold a `kid` twice.
    #[error(transparent)]
    DuplicateKid(#[from] DuplicateKid),
    /// No keys were given, or none of them can be used.
    #[error("no usable keys were given")]
    NoKeys,
    /// The list of allowed algorithms is empty.
    #[error("no algorithm is allowed")]
    NoAlgorithms,
    /// The issuer does not let this subscriber read its revocation feed.
    #[error("the subscriber may not read the revocation feed (status {status})")]
    Subscriber {
        /// 401 or 403.
        status: u16,
    },
    /// The HTTP client could not be made.
    #[error("the HTTP client could not be made")]
    HttpClient(#[source] FetchError),
}

impl Builder {
    pub(crate) fn new(issuer: String, audience: String) -> Self {
        Self {
            issuer,
            audience: Some(audience),
            algorithms: vec![Algorithm::ES256, Algorithm::RS256],
            leeway: LEEWAY,
            keys: None,
            remembered: DEFAULT_TOKENS,
            clock: Clock::system(),
            subscription: Subscription::default(),
        }
    }

    /// Accepts the issuer's tokens whatever their audience. For the issuer's own endpoints, such
    /// as UserInfo, and for who says by [`Need::audience`](crate::Need::audience) whom each request
    /// is for; an API that does this alone accepts tokens that were meant for others.
    #[must_use]
    pub fn any_audience(mut self) -> Self {
        self.audience = None;
        self
    }

    /// The algorithms that are accepted; both, unless told otherwise.
    #[must_use]
    pub fn algorithms(mut self, allowed: &[Algorithm]) -> Self {
        self.algorithms = allowed.to_vec();
        self
    }

    /// How far the issuer's clock and ours may differ: 30 s unless told otherwise, and never more
    /// than 60 s, whatever is asked for. Fractions of a second do not count.
    #[must_use]
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway.min(MAX_LEEWAY);
        self
    }

    /// Keys by value, for [`build`](Self::build). [`start`](Self::start) does not look at them.
    #[must_use]
    pub fn keys(mut self, keys: JwkSet) -> Self {
        self.keys = Some(keys);
        self
    }

    /// About how many tokens are remembered whose signature was good, so that the next sight of
    /// one is cheap: 8,192 unless told otherwise, 0 for none. Each takes up to 4 kB of memory, 1 kB
    /// as a rule. All that can change about a token is checked each time all the same.
    #[must_use]
    pub fn remember(mut self, tokens: usize) -> Self {
        self.remembered = tokens.min(MAX_REMEMBERED);
        self
    }

    /// Follows the issuer's revocation feed with the credentials of a client that may: tokens that
    /// were revoked are refused within a second, as a rule, and none is accepted while the news is
    /// older than [`max_age`](Self::max_age). For [`start`](Self::start).
    #[must_use]
    pub fn subscriber(mut self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        self.subscription.credentials = Some(Credentials {
            client_id: id.into(),
            client_secret: secret.into(),
        });
        self
    }

    /// How old the news of revocations may be where a request needs one of these scopes: a scope,
    /// or with `*` at the end whatever begins so. Of several that fit, and of
    /// [`Need::max_age`](crate::Need::max_age), the strictest counts.
    #[must_use]
    pub fn max_age(mut self, scopes: impl Into<String>, max_age: MaxAge) -> Self {
        self.subscription.max_ages.add(scopes.into(), max_age);
        self
    }

    /// How old the news may be where nothing else is said: [`MaxAge::STANDARD`] unless told
    /// otherwise.
    #[must_use]
    pub fn default_max_age(mut self, max_age: MaxAge) -> Self {
        self.subscription.max_ages.otherwise = max_age;
        self
    }

    /// Where the feed is to be had, in the order of preference, if not at the issuer itself. The
    /// first must have `/revocations/jwks`, too. Whoever answers there cannot lie, since frames are
    /// signed; he can only be silent.
    #[must_use]
    pub fn feed_at(mut self, url: impl Into<String>) -> Self {
        self.subscription.addresses.push(url.into());
        self
    }

    /// The name by which the issuer's operators know this instance; the host's unless told
    /// otherwise. Two instances of one client need two names.
    #[must_use]
    pub fn instance(mut self, name: impl Into<String>) -> Self {
        self.subscription.instance = Some(name.into());
        self
    }

    /// Asks the issuer about a token (RFC 7662) where the news of revocations is too old, instead
    /// of refusing it. With the subscriber's credentials; by
    /// [`verify_or_introspect`](crate::Verifier::verify_or_introspect) and the guards of the web
    /// frameworks.
    #[must_use]
    pub fn introspection(mut self) -> Self {
        self.subscription.introspects = true;
        self
    }

    /// Reads the time elsewhere than from the system. For tests.
    #[must_use]
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// A verifier over the keys given by value: it never uses the network, and its keys never
    /// age. They change by [`Verifier::replace_keys`] alone.
    ///
    /// # Errors
    ///
    /// [`StartError::NoKeys`], [`StartError::DuplicateKid`], [`StartError::NoAlgorithms`].
    pub fn build(self) -> Result<Verifier, StartError> {
        let keys = Keys::parse(self.keys.as_ref().ok_or(StartError::NoKeys)?)?;
        if keys.is_empty() {
            return Err(StartError::NoKeys);
        }
        let clock = self.clock.clone();
        Ok(Verifier::new(Inner {
            cache: Arc::new(Cache::fixed(keys, clock.clone())),
            clock,
            memory: Memory::with_room_for(self.remembered),
            counters: Arc::default(),
            revocations: None,
            expected: self.expected()?,
            _refresher: None,
        }))
    }

    /// Looks at the URLs as [`start`](Self::start) does, and asks nobody: for whoever checks settings
    /// before they are used.
    ///
    /// # Errors
    ///
    /// [`StartError::Insecure`], [`StartError::NoAlgorithms`].
    pub fn check(&self) -> Result<(), StartError> {
        discovery_url(&self.issuer)?;
        self.subscription.addresses_for(&self.issuer)?;
        self.clone().expected().map(|_| ())
    }

    /// A verifier that finds the issuer's keys by discovery (OpenID Connect Discovery §4), and a
    /// task on the current Tokio runtime that keeps them fresh until the last clone of the
    /// verifier is dropped.
    ///
    /// Each answer has 2 s and 256 KiB, and no redirect is followed.
    ///
    /// With a [subscriber](Self::subscriber) a second task follows the revocation feed. The start
    /// waits for its first news, 10 s at most; without it the verifier refuses with 503 until it
    /// comes.
    ///
    /// # Errors
    ///
    /// Any [`StartError`]: there is no verifier without keys.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub async fn start(self) -> Result<Verifier, StartError> {
        let (clock, subscription) = (self.clock.clone(), self.subscription.clone());
        let memory = Memory::with_room_for(self.remembered);
        let expected = self.expected()?;
        let http = client()?;
        let fetcher = Fetcher::discover(http.clone(), &expected.issuer).await?;
        let first = fetcher.keys(false).await;
        let first = first.map_err(|source| StartError::Keys {
            url: fetcher.jwks_uri().to_owned(),
            source,
        })?;
        let introspection_endpoint = fetcher.introspection_endpoint().map(str::to_owned);
        let (cache, refresher) = Refresher::spawn(fetcher, Some(first), clock.clone());
        let counters = Arc::new(Counters::default());
        let base = Base {
            http,
            issuer: &expected.issuer,
            introspection_endpoint,
            clock: clock.clone(),
            counters: counters.clone(),
            cache: cache.clone(),
        };
        Ok(Verifier::new(Inner {
            revocations: subscription.start(base).await?,
            expected,
            clock,
            cache,
            memory,
            counters,
            _refresher: Some(refresher),
        }))
    }

    fn expected(self) -> Result<Expected, StartError> {
        if self.algorithms.is_empty() {
            return Err(StartError::NoAlgorithms);
        }
        Ok(Expected {
            issuer: self.issuer,
            audience: self.audience,
            algorithms: self.algorithms,
            leeway_secs: self.leeway.as_secs(),
        })
    }
}
