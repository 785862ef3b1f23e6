//! The verifier: a token in, its claims or a refusal out.

use std::fmt;
use std::sync::Arc;

use crate::cache::{Cache, Refresher};
use crate::feed::Feed;
use crate::follow::Following;
use crate::introspect::Introspector;
use crate::max_age::MaxAges;
use crate::metrics::Counters;
use crate::probe::Probes;
use crate::seen::{Good, Memory, Place};
use crate::token::{ACCESS_TOKEN, Unverified};
use crate::{
    Algorithm, Builder, Claims, Clock, JwkSet, Key, Keys, Metrics, Need, Rejected, StartError,
};

/// Turns tokens into [`Claims`], or says why not. Cheap to clone; clones share all they know.
#[derive(Clone)]
pub struct Verifier {
    inner: Arc<Inner>,
}

/// All that a verifier is made of; see the [builder](crate::Builder).
pub(crate) struct Inner {
    pub(crate) expected: Expected,
    pub(crate) clock: Clock,
    pub(crate) cache: Arc<Cache>,
    pub(crate) memory: Memory,
    pub(crate) counters: Arc<Counters>,
    /// What has been revoked; `None`: tokens are good until they expire.
    pub(crate) revocations: Option<Revocations>,
    /// Ends the background task when the last clone goes.
    pub(crate) _refresher: Option<Refresher>,
}

/// How revocations are learned of.
pub(crate) struct Revocations {
    pub(crate) feed: Arc<Feed>,
    pub(crate) max_ages: MaxAges,
    pub(crate) introspector: Option<Introspector>,
    /// End with the verifier, too.
    pub(crate) _tasks: (Following, Refresher),
}

/// What every token must be, whatever the request.
pub(crate) struct Expected {
    pub(crate) issuer: String,
    /// `None`: any audience.
    pub(crate) audience: Option<String>,
    pub(crate) algorithms: Vec<Algorithm>,
    pub(crate) leeway_secs: u64,
}

/// Who says that a token was not revoked.
#[derive(Clone, Copy)]
enum Word {
    /// The feed, if it is young enough.
    Feed,
    /// The issuer itself, just now.
    Issuer,
}

impl Verifier {
    /// Describes a verifier for the tokens of `issuer` that are meant for `audience`. Both are
    /// compared byte for byte (RFC 9068 §4), so a trailing slash matters.
    pub fn builder(issuer: impl Into<String>, audience: impl Into<String>) -> Builder {
        Builder::new(issuer.into(), audience.into())
    }

    /// Verifies a token at this instant. Never waits and never calls the issuer; a `kid` that is
    /// not known lets the background task fetch the keys, at most once in 30 s.
    ///
    /// # Errors
    ///
    /// [`Rejected`] says which check failed first.
    pub fn verify(&self, token: &str, need: &Need) -> Result<Claims, Rejected> {
        self.verify_at(token, need, self.inner.clock.wall_secs())
    }

    /// [`verify`](Self::verify) at another instant: `now_secs`, seconds since the Unix epoch, is
    /// what the token's own times are compared with. How old keys and revocations are is a matter
    /// of the real clock all the same.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify).
    pub fn verify_at(&self, token: &str, need: &Need, now_secs: u64) -> Result<Claims, Rejected> {
        let verdict = self.inner.judge(token, need, now_secs, Word::Feed);
        if let Some(kid) = self.inner.lacks_key(token, &verdict) {
            self.inner.cache.demand(&kid, now_secs);
        }
        self.counted(verdict)
    }

    /// [`verify`](Self::verify), but a `kid` that is not known waits for the fetch that it caused,
    /// or for the one in flight (2 s at most), and is then looked up again. So the first token of a
    /// new key passes.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify).
    pub async fn verify_fresh(&self, token: &str, need: &Need) -> Result<Claims, Rejected> {
        self.verify_fresh_at(token, need, self.inner.clock.wall_secs())
            .await
    }

    /// [`verify_fresh`](Self::verify_fresh) at another instant, as in
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
        let verdict = self.inner.judge_fresh(token, need, now_secs).await;
        self.counted(verdict)
    }

    /// [`verify_fresh`](Self::verify_fresh), and where the news of revocations is too old, asks the
    /// issuer about this token (RFC 7662), if the [builder](crate::Builder::introspection) said
    /// so. An answer counts for 1 s, also for others who bring the same token.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify). [`Rejected::Stale`] only if the issuer does not answer within
    /// 2 s either; [`Rejected::Revoked`] if it says that the token is not active.
    pub async fn verify_or_introspect(&self, token: &str, need: &Need) -> Result<Claims, Rejected> {
        let now = self.inner.clock.wall_secs();
        let mut verdict = self.inner.judge_fresh(token, need, now).await;
        if verdict == Err(Rejected::Stale) {
            verdict = match self.inner.introspect(token).await {
                Ok(()) => self.inner.judge(token, need, now, Word::Issuer),
                Err(rejected) => Err(rejected),
            };
        }
        self.counted(verdict)
    }

    /// Puts other keys in the place of those given by value, for all clones; an issuer that
    /// verifies its own tokens does this when its keys rotate. Where the keys are fetched, the next
    /// fetch undoes it.
    ///
    /// # Errors
    ///
    /// [`StartError::NoKeys`], [`StartError::DuplicateKid`]; then the keys are what they were.
    pub fn replace_keys(&self, keys: &JwkSet) -> Result<(), StartError> {
        let keys = Keys::parse(keys)?;
        if keys.is_empty() {
            return Err(StartError::NoKeys);
        }
        self.inner.cache.replace(keys);
        Ok(())
    }

    /// The issuer whose tokens are accepted.
    pub fn issuer(&self) -> &str {
        &self.inner.expected.issuer
    }

    /// What was counted since the start, and how old the news of revocations is.
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

    fn counted(&self, verdict: Result<Claims, Rejected>) -> Result<Claims, Rejected> {
        verdict.inspect_err(|rejected| self.inner.counters.rejected(rejected))
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("issuer", &self.inner.expected.issuer)
            .field("audience", &self.inner.expected.audience)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn judge(&self, token: &str, need: &Need, now: u64, word: Word) -> Result<Claims, Rejected> {
        let place = self.memory.place(token);
        let again = place
            .as_ref()
            .and_then(|place| self.again(place, need, now, word));
        again.unwrap_or_else(|| self.first(token, place, need, now, word))
    }

    async fn judge_fresh(&self, token: &str, need: &Need, now: u64) -> Result<Claims, Rejected> {
        let verdict = self.judge(token, need, now, Word::Feed);
        let Some(kid) = self.lacks_key(token, &verdict) else {
            return verdict;
        };
        self.cache.refetch(&kid, now).await;
        self.judge(token, need, now, Word::Feed)
    }

    /// The `kid` for want of which a token was refused.
    fn lacks_key(&self, token: &str, verdict: &Result<Claims, Rejected>) -> Option<String> {
        if !matches!(verdict, Err(Rejected::UnknownKey | Rejected::Unavailable)) {
            return None;
        }
        let token = self.parse(token).ok()?;
        Some(token.kid().to_owned())
    }

    fn parse<'a>(&self, token: &'a str) -> Result<Unverified<'a>, Rejected> {
        Unverified::parse(token, &self.expected.algorithms, &ACCESS_TOKEN)
    }

    /// Everything, in the order of the crate's first page.
    fn first(
        &self,
        token: &str,
        place: Option<Place<'_>>,
        need: &Need,
        now: u64,
        word: Word,
    ) -> Result<Claims, Rejected> {
        let token = self.parse(token)?;
        let key = self.signed(&token)?;
        let claims = Claims::parse(token.payload())?;
        self.expected.of(&claims)?;
        let good = Good {
            kid: token.kid().to_owned(),
            key: key.id(),
            revoked_by: key.revoked_by(),
            probes: Probes::of(&claims),
            claims,
        };
        let verdict = self.stands(&good, need, now, word);
        // Revoked or not: the signature is good, and need not be checked again.
        if let Some(place) = place.filter(|_| verdict != Err(Rejected::Expired)) {
            place.remember(good.clone(), now);
        }
        verdict.map(|()| good.claims)
    }

    /// What may have changed since the token was seen first. `None`: not seen, or under a key that
    /// is gone, which [`first`](Self::first) then says.
    fn again(
        &self,
        place: &Place<'_>,
        need: &Need,
        now: u64,
        word: Word,
    ) -> Option<Result<Claims, Rejected>> {
        let found = place.find()?;
        let good = &found.as_ref()?.good;
        let held = self.cache.held();
        let keys = held.at(self.clock.wall_secs());
        let key = keys.and_then(|keys| keys.find(&good.kid));
        if key.is_none_or(|key| key.id() != good.key) {
            place.forget();
            return None;
        }
        let verdict = self.stands(good, need, now, word);
        if verdict == Err(Rejected::Expired) {
            place.forget();
        }
        Some(verdict.map(|()| good.claims.clone()))
    }

    /// RFC 7515 §5.2; the key's own `alg` decides, not the header's (RFC 8725 §3.1).
    fn signed(&self, token: &Unverified<'_>) -> Result<Key, Rejected> {
        let held = self.cache.held();
        // How old the keys are is a matter of the real clock, whatever instant the token is
        // judged at.
        let keys = held
            .at(self.clock.wall_secs())
            .ok_or(Rejected::Unavailable)?;
        let key = keys.find(token.kid()).ok_or(Rejected::UnknownKey)?;
        if key.algorithm() != token.algorithm() {
            return Err(Rejected::Algorithm);
        }
        match key.verifies(token.signature(), token.signed()) {
            Some(true) => Ok(key.clone()),
            Some(false) => Err(Rejected::Signature),
            None => Err(Rejected::Malformed),
        }
    }

    /// All that can change about a token: whom it is brought to, time, revocation, how old the news
    /// of it is, need.
    fn stands(&self, good: &Good, need: &Need, now: u64, word: Word) -> Result<(), Rejected> {
        need.is_for(&good.claims)?;
        self.expected.at(&good.claims, now)?;
        if let Some(Revocations { feed, max_ages, .. }) = &self.revocations {
            let max_age = match word {
                Word::Feed => Some(max_ages.of(need)),
                Word::Issuer => None,
            };
            feed.judge(good, max_age)?;
        }
        need.met_by(&good.claims, now)
    }

    /// Whether the issuer says that the token is active.
    async fn introspect(&self, token: &str) -> Result<(), Rejected> {
        let revocations = self.revocations.as_ref();
        let introspector = revocations.and_then(|known| known.introspector.as_ref());
        let introspector = introspector.ok_or(Rejected::Stale)?;
        match introspector.is_active(token).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Rejected::Revoked),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a token could not be introspected");
                Err(Rejected::Stale)
            }
        }
    }
}

impl Expected {
    /// RFC 9068 §4: from our issuer, for our audience.
    fn of(&self, claims: &Claims) -> Result<(), Rejected> {
        if claims.iss != self.issuer {
            return Err(Rejected::Issuer);
        }
        match &self.audience {
            Some(audience) if claims.aud != *audience => Err(Rejected::Audience),
            _ => Ok(()),
        }
    }

    /// RFC 7519 §4.1.4 to §4.1.6. A token from the future is refused as well: its issuer's clock
    /// is wrong, and so is its `exp`.
    fn at(&self, claims: &Claims, now: u64) -> Result<(), Rejected> {
        if now >= claims.exp.saturating_add(self.leeway_secs) {
            return Err(Rejected::Expired);
        }
        let begins = claims.nbf.unwrap_or(claims.iat).max(claims.iat);
        if begins > now.saturating_add(self.leeway_secs) {
            return Err(Rejected::NotYetValid);
        }
        Ok(())
    }
}
