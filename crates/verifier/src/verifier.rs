//! The verifier: a token in, its claims or a refusal out.

use std::fmt;
use std::sync::Arc;

use crate::cache::{Cache, Refresher};
use crate::key::KeyId;
use crate::seen::{Memory, Place};
use crate::token::Unverified;
use crate::{Algorithm, Builder, Claims, JwkSet, Keys, Need, Rejected, StartError, clock};

/// Turns tokens into [`Claims`], or says why not. Cheap to clone; clones share their keys.
#[derive(Clone)]
pub struct Verifier {
    inner: Arc<Inner>,
}

struct Inner {
    expected: Expected,
    cache: Arc<Cache>,
    memory: Memory,
    /// Ends the background task when the last clone goes.
    _refresher: Option<Refresher>,
}

/// What every token must be, whatever the request.
pub(crate) struct Expected {
    pub(crate) issuer: String,
    /// `None`: any audience.
    pub(crate) audience: Option<String>,
    pub(crate) algorithms: Vec<Algorithm>,
    pub(crate) leeway_secs: u64,
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
        self.verify_at(token, need, clock::now_secs())
    }

    /// [`verify`](Self::verify) at another instant: `now_secs`, seconds since the Unix epoch, is
    /// what the token's own times are compared with.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify).
    pub fn verify_at(&self, token: &str, need: &Need, now_secs: u64) -> Result<Claims, Rejected> {
        let verdict = self.inner.judge(token, need, now_secs);
        if lacks_key(&verdict) {
            let token = self.inner.parse(token)?;
            self.inner.cache.demand(token.kid(), now_secs);
        }
        verdict
    }

    /// [`verify`](Self::verify), but a `kid` that is not known waits for the fetch that it caused,
    /// or for the one in flight (2 s at most), and is then looked up again. So the first token of a
    /// new key passes.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify).
    pub async fn verify_fresh(&self, token: &str, need: &Need) -> Result<Claims, Rejected> {
        self.verify_fresh_at(token, need, clock::now_secs()).await
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
        let verdict = self.inner.judge(token, need, now_secs);
        if !lacks_key(&verdict) {
            return verdict;
        }
        let unverified = self.inner.parse(token)?;
        self.inner.cache.refetch(unverified.kid(), now_secs).await;
        self.inner.judge(token, need, now_secs)
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

    pub(crate) fn new(
        expected: Expected,
        memory: Memory,
        cache: Arc<Cache>,
        refresher: Option<Refresher>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                expected,
                cache,
                memory,
                _refresher: refresher,
            }),
        }
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

fn lacks_key(verdict: &Result<Claims, Rejected>) -> bool {
    matches!(verdict, Err(Rejected::UnknownKey | Rejected::Unavailable))
}

impl Inner {
    fn parse<'a>(&self, token: &'a str) -> Result<Unverified<'a>, Rejected> {
        Unverified::parse(token, &self.expected.algorithms)
    }

    fn judge(&self, token: &str, need: &Need, now: u64) -> Result<Claims, Rejected> {
        let place = self.memory.place(token);
        if let Some(verdict) = place
            .as_ref()
            .and_then(|place| self.again(place, need, now))
        {
            return verdict;
        }
        self.first(token, place, need, now)
    }

    /// Everything, in the order of the crate's first page.
    fn first(
        &self,
        token: &str,
        place: Option<Place<'_>>,
        need: &Need,
        now: u64,
    ) -> Result<Claims, Rejected> {
        let token = self.parse(token)?;
        let key = self.signed(&token)?;
        let claims = Claims::parse(token.payload())?;
        self.expected.of(&claims)?;
        self.expected.at(&claims, now)?;
        if let Some(place) = place {
            place.remember(token.kid(), key, &claims, now);
        }
        need.met_by(&claims, now)?;
        Ok(claims)
    }

    /// What may have changed since the token was seen first. `None`: not seen, or under a key that
    /// is gone, which [`first`](Self::first) then says.
    fn again(&self, place: &Place<'_>, need: &Need, now: u64) -> Option<Result<Claims, Rejected>> {
        let found = place.find()?;
        let seen = found.as_ref()?;
        let held = self.cache.held();
        let key = held
            .at(clock::now_secs())
            .and_then(|keys| keys.find(&seen.kid));
        if key.is_none_or(|key| key.id() != seen.key) {
            place.forget();
            return None;
        }
        let verdict = self
            .expected
            .at(&seen.claims, now)
            .and_then(|()| need.met_by(&seen.claims, now));
        if verdict == Err(Rejected::Expired) {
            place.forget();
        }
        Some(verdict.map(|()| seen.claims.clone()))
    }

    /// RFC 7515 §5.2; the key's own `alg` decides, not the header's (RFC 8725 §3.1).
    fn signed(&self, token: &Unverified<'_>) -> Result<KeyId, Rejected> {
        let held = self.cache.held();
        // How old the keys are is a matter of the real clock, whatever instant the token is
        // judged at.
        let keys = held.at(clock::now_secs()).ok_or(Rejected::Unavailable)?;
        let key = keys.find(token.kid()).ok_or(Rejected::UnknownKey)?;
        if key.algorithm() != token.algorithm() {
            return Err(Rejected::Algorithm);
        }
        match key.verifies(token.signature(), token.signed()) {
            Some(true) => Ok(key.id()),
            Some(false) => Err(Rejected::Signature),
            None => Err(Rejected::Malformed),
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
