//! The verifier: validates a token and returns its claims.

use std::fmt;
use std::sync::Arc;

use crate::feed::Feed;
use crate::follower::FollowerTasks;
use crate::introspect::Introspector;
use crate::key_cache::{KeyCache, Refresher};
use crate::max_age::MaxAges;
use crate::metrics::Counters;
use crate::token::{ACCESS_TOKEN, UnverifiedJws};
use crate::token_cache::{CacheEntry, TokenCache, VerifiedToken};
use crate::token_digests::TokenDigests;
use crate::{
    Algorithm, Builder, Claims, Clock, JwkSet, Key, Keys, Metrics, Need, Rejected, StartError,
};

/// Verifies access tokens and returns their [`Claims`]. A verifier is cheap to clone, and the
/// clones share their state.
#[derive(Clone)]
pub struct Verifier {
    inner: Arc<Inner>,
}

/// The shared state of a verifier; see the [builder](crate::Builder).
pub(crate) struct Inner {
    pub(crate) rules: ValidationRules,
    pub(crate) clock: Clock,
    pub(crate) keys: Arc<KeyCache>,
    pub(crate) tokens: TokenCache,
    pub(crate) counters: Arc<Counters>,
    /// The revocation data. `None` without a subscription: tokens are valid until they expire.
    pub(crate) revocations: Option<Revocations>,
    /// Stops the background task when the last clone is dropped.
    pub(crate) _refresher: Option<Refresher>,
}

/// The revocation data of a verifier, and the tasks that update it.
pub(crate) struct Revocations {
    pub(crate) feed: Arc<Feed>,
    pub(crate) max_ages: MaxAges,
    pub(crate) introspector: Option<Introspector>,
    /// Stop when the last clone of the verifier is dropped.
    pub(crate) _tasks: (FollowerTasks, Refresher),
}

/// Requirements that every token must meet, whatever the request.
pub(crate) struct ValidationRules {
    pub(crate) issuer: String,
    /// `None` accepts any audience.
    pub(crate) audience: Option<String>,
    pub(crate) algorithms: Vec<Algorithm>,
    pub(crate) leeway_secs: u64,
}

/// Source of the revocation status of a token.
#[derive(Clone, Copy)]
enum RevocationSource {
    /// The feed, if its data is recent enough.
    Feed,
    /// The issuer, which has just reported by introspection that the token is active.
    Introspection,
}

impl Verifier {
    /// Returns a builder of a verifier for tokens that `issuer` issued for `audience`. Both are
    /// compared byte for byte (RFC 9068 §4), so a trailing slash matters.
    pub fn builder(issuer: impl Into<String>, audience: impl Into<String>) -> Builder {
        Builder::new(issuer.into(), audience.into())
    }

    /// Verifies a token. Never waits and never sends a request to the issuer. An unknown `kid`
    /// makes the background task fetch the keys, at most once in 30 s.
    ///
    /// # Errors
    ///
    /// [`Rejected`] is the first check that failed.
    pub fn verify(&self, token: &str, need: &Need) -> Result<Claims, Rejected> {
        self.verify_at(token, need, self.inner.clock.wall_secs())
    }

    /// Verifies a token as [`verify`](Self::verify) does, but compares the token's own times with
    /// `now_secs`, in seconds since the Unix epoch. The age of the keys and of the revocation data
    /// is still measured by the real clock.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify).
    pub fn verify_at(&self, token: &str, need: &Need, now_secs: u64) -> Result<Claims, Rejected> {
        let result = self
            .inner
            .verify(token, need, now_secs, RevocationSource::Feed);
        if let Some(kid) = self.inner.missing_kid(token, &result) {
            self.inner.keys.request_fetch(&kid, now_secs);
        }
        self.count_rejection(result)
    }

    /// Verifies a token as [`verify`](Self::verify) does. If the `kid` is unknown, this function
    /// waits up to 2 s for the fetch that it caused, or for the fetch in flight, and looks the key
    /// up again. So the first token that a new key has signed is accepted.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify).
    pub async fn verify_fresh(&self, token: &str, need: &Need) -> Result<Claims, Rejected> {
        self.verify_fresh_at(token, need, self.inner.clock.wall_secs())
            .await
    }

    /// Verifies a token as [`verify_fresh`](Self::verify_fresh) does, at the given time as in
    /// [`verify_at`](Self::verify_at).
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify).
    pub async fn verify_fresh_at(
        &self,
        token: &str,
        need: &Need,
        now_secs: u64,
    ) -> Result<Claims, Rejected> {
        let result = self.inner.verify_fresh(token, need, now_secs).await;
        self.count_rejection(result)
    }

    /// Verifies a token as [`verify_fresh`](Self::verify_fresh) does. If the revocation data is too
    /// old and the [builder](crate::Builder::introspection) enabled introspection, this function
    /// asks the issuer whether the token is active (RFC 7662). The response is reused for 1 s for
    /// all requests with the same token.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify). With introspection, [`Rejected::Stale`] means that the issuer
    /// did not respond within 2 s either, and [`Rejected::Revoked`] can also mean that the issuer
    /// reported the token as inactive.
    pub async fn verify_or_introspect(&self, token: &str, need: &Need) -> Result<Claims, Rejected> {
        let now = self.inner.clock.wall_secs();
        let mut result = self.inner.verify_fresh(token, need, now).await;
        if result == Err(Rejected::Stale) {
            result = match self.inner.introspect(token).await {
                Ok(()) => self
                    .inner
                    .verify(token, need, now, RevocationSource::Introspection),
                Err(rejected) => Err(rejected),
            };
        }
        self.count_rejection(result)
    }

    /// Replaces the keys that were given to the builder, for all clones. An issuer that verifies
    /// its own tokens calls this when its keys rotate. If the verifier fetches its keys, the next
    /// fetch overwrites the replacement.
    ///
    /// # Errors
    ///
    /// [`StartError::NoKeys`] or [`StartError::DuplicateKid`]. The keys are unchanged then.
    pub fn replace_keys(&self, keys: &JwkSet) -> Result<(), StartError> {
        let keys = Keys::parse(keys)?;
        if keys.is_empty() {
            return Err(StartError::NoKeys);
        }
        self.inner.keys.replace(keys);
        Ok(())
    }

    /// Returns the issuer whose tokens are accepted.
    pub fn issuer(&self) -> &str {
        &self.inner.rules.issuer
    }

    /// Returns the counters since the start, and the age and size of the revocation data.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = self.inner.counters.metrics();
        if let Some(Revocations { feed, .. }) = &self.inner.revocations {
            metrics.feed_age = feed.age();
            metrics.feed_position = feed.position();
            (metrics.records, metrics.record_bytes) = feed.size();
            metrics.fail_open = feed.longest_max_age().as_secs().is_none();
        }
        metrics
    }

    pub(crate) fn new(inner: Inner) -> Self {
        Self {
            inner: Arc::new(inner),
        }
    }

    fn count_rejection(&self, result: Result<Claims, Rejected>) -> Result<Claims, Rejected> {
        result.inspect_err(|rejected| self.inner.counters.rejected(rejected))
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("issuer", &self.inner.rules.issuer)
            .field("audience", &self.inner.rules.audience)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn verify(
        &self,
        token: &str,
        need: &Need,
        now: u64,
        source: RevocationSource,
    ) -> Result<Claims, Rejected> {
        let entry = self.tokens.entry(token);
        let cached = entry
            .as_ref()
            .and_then(|entry| self.verify_cached(entry, need, now, source));
        cached.unwrap_or_else(|| self.verify_uncached(token, entry, need, now, source))
    }

    async fn verify_fresh(&self, token: &str, need: &Need, now: u64) -> Result<Claims, Rejected> {
        let result = self.verify(token, need, now, RevocationSource::Feed);
        let Some(kid) = self.missing_kid(token, &result) else {
            return result;
        };
        self.keys.refetch(&kid, now).await;
        self.verify(token, need, now, RevocationSource::Feed)
    }

    /// Returns the unknown `kid` that caused the rejection, if any.
    fn missing_kid(&self, token: &str, result: &Result<Claims, Rejected>) -> Option<String> {
        if !matches!(result, Err(Rejected::UnknownKey | Rejected::Unavailable)) {
            return None;
        }
        let token = self.parse(token).ok()?;
        Some(token.kid().to_owned())
    }

    fn parse<'a>(&self, token: &'a str) -> Result<UnverifiedJws<'a>, Rejected> {
        UnverifiedJws::parse(token, &self.rules.algorithms, &ACCESS_TOKEN)
    }

    /// Makes all checks in the documented order, and caches the token if its signature is valid.
    fn verify_uncached(
        &self,
        token: &str,
        entry: Option<CacheEntry<'_>>,
        need: &Need,
        now: u64,
        source: RevocationSource,
    ) -> Result<Claims, Rejected> {
        let token = self.parse(token)?;
        let key = self.verify_signature(&token)?;
        let claims = Claims::parse(token.payload())?;
        self.rules.check_issuer_and_audience(&claims)?;
        let verified = VerifiedToken {
            kid: token.kid().to_owned(),
            key: key.fingerprint(),
            key_digest: key.revocation_digest(),
            digests: TokenDigests::from_claims(&claims),
            claims,
        };
        let result = self.check_changeable(&verified, need, now, source);
        // Revoked tokens are cached too: their signature is valid and need not be verified again.
        if let Some(entry) = entry.filter(|_| result != Err(Rejected::Expired)) {
            entry.insert(verified.clone(), now);
        }
        result.map(|()| verified.claims)
    }

    /// Checks what may have changed since the token was cached. Returns `None` if the token is not
    /// cached, or if its key has been removed or replaced, in which case
    /// [`verify_uncached`](Self::verify_uncached) reports the error.
    fn verify_cached(
        &self,
        entry: &CacheEntry<'_>,
        need: &Need,
        now: u64,
        source: RevocationSource,
    ) -> Option<Result<Claims, Rejected>> {
        let cached = entry.get()?;
        let token = &cached.as_ref()?.token;
        let snapshot = self.keys.snapshot();
        let keys = snapshot.keys_at(self.clock.wall_secs());
        let key = keys.and_then(|keys| keys.find(&token.kid));
        if key.is_none_or(|key| key.fingerprint() != token.key) {
            entry.remove();
            return None;
        }
        let result = self.check_changeable(token, need, now, source);
        if result == Err(Rejected::Expired) {
            entry.remove();
        }
        Some(result.map(|()| token.claims.clone()))
    }

    /// Verifies the signature and returns the key (RFC 7515 §5.2). The algorithm is that of the
    /// key, and a header with another one is rejected (RFC 8725 §3.1).
    fn verify_signature(&self, token: &UnverifiedJws<'_>) -> Result<Key, Rejected> {
        let snapshot = self.keys.snapshot();
        // The age of the keys is measured by the real clock, even if the token is verified at
        // another time.
        let keys = snapshot
            .keys_at(self.clock.wall_secs())
            .ok_or(Rejected::Unavailable)?;
        let key = keys.find(token.kid()).ok_or(Rejected::UnknownKey)?;
        if key.algorithm() != token.algorithm() {
            return Err(Rejected::Algorithm);
        }
        match key.verify_signature(token.signature(), token.signed()) {
            Some(true) => Ok(key.clone()),
            Some(false) => Err(Rejected::Signature),
            None => Err(Rejected::Malformed),
        }
    }

    /// Makes all checks whose result can change between two uses of a token: the audience that the
    /// request needs, time, revocation, age of the revocation data, and the other needs of the
    /// request.
    fn check_changeable(
        &self,
        token: &VerifiedToken,
        need: &Need,
        now: u64,
        source: RevocationSource,
    ) -> Result<(), Rejected> {
        need.check_audience(&token.claims)?;
        self.rules.check_times(&token.claims, now)?;
        if let Some(Revocations { feed, max_ages, .. }) = &self.revocations {
            let max_age = match source {
                RevocationSource::Feed => Some(max_ages.for_need(need)),
                RevocationSource::Introspection => None,
            };
            feed.check_token(token, max_age)?;
        }
        need.check(&token.claims, now)
    }

    /// Succeeds if the issuer reports the token as active.
    async fn introspect(&self, token: &str) -> Result<(), Rejected> {
        let revocations = self.revocations.as_ref();
        let introspector = revocations.and_then(|revocations| revocations.introspector.as_ref());
        let introspector = introspector.ok_or(Rejected::Stale)?;
        match introspector.is_active(token).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Rejected::Revoked),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "failed to introspect a token");
                Err(Rejected::Stale)
            }
        }
    }
}

/// The longest lifetime that the server issues an access token with, in seconds.
const MAX_LIFETIME_SECS: u64 = 3_600;

impl ValidationRules {
    /// Checks `iss` and `aud` (RFC 9068 §4).
    fn check_issuer_and_audience(&self, claims: &Claims) -> Result<(), Rejected> {
        if claims.iss != self.issuer {
            return Err(Rejected::Issuer);
        }
        match &self.audience {
            Some(audience) if claims.aud != *audience => Err(Rejected::Audience),
            _ => Ok(()),
        }
    }

    /// Checks `exp`, `nbf` and `iat` (RFC 7519 §4.1.4 to §4.1.6). A token with an `iat` in the
    /// future is rejected as well: its issuer's clock is wrong, and so is its `exp`. So is a token that lives
    /// longer than any token that the server issues: a stolen key must not sign one that never expires.
    fn check_times(&self, claims: &Claims, now: u64) -> Result<(), Rejected> {
        let longest = MAX_LIFETIME_SECS.saturating_add(self.leeway_secs);
        if claims.exp > claims.iat.saturating_add(longest) {
            return Err(Rejected::Claims("exp"));
        }
        if now >= claims.exp.saturating_add(self.leeway_secs) {
            return Err(Rejected::Expired);
        }
        let valid_from = claims.nbf.unwrap_or(claims.iat).max(claims.iat);
        if valid_from > now.saturating_add(self.leeway_secs) {
            return Err(Rejected::NotYetValid);
        }
        Ok(())
    }
}
