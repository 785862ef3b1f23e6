//! The cache of the issuer's keys, and the task that refreshes it.
//!
//! One task makes all fetches, so there is never more than one fetch in flight. It fetches when the
//! keys' max-age has elapsed, and when a token names an unknown `kid`. The latter happens at most
//! once in 30 s, because otherwise an attacker could cause any number of requests to the issuer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::fetch::{FetchError, Fetched, Fetcher};
use crate::refetch::{FetchState, RefetchLimiter};
use crate::{Clock, Digest, Keys};

/// Delay between a failed fetch and the next attempt.
const RETRY_DELAY: Duration = Duration::from_secs(30);
/// How long keys may be used after the last successful fetch, in seconds.
const MAX_UNCONFIRMED_SECS: u64 = 24 * 60 * 60;

/// The issuer's keys, shared between the verifier and the task that refreshes them.
pub(crate) struct KeyCache {
    current: ArcSwap<KeySnapshot>,
    clock: Clock,
    limiter: Mutex<RefetchLimiter>,
    wake: Notify,
    /// Changes whenever a fetch finishes, and closes when the task ends. `None` if the keys were
    /// passed to the builder.
    finished: Option<watch::Receiver<()>>,
}

/// The keys of one response, and when they were last confirmed by a fetch.
pub(crate) struct KeySnapshot {
    keys: Keys,
    /// Seconds since the Unix epoch. `None` for keys that were passed to the builder, which do not
    /// expire.
    confirmed_at: Option<u64>,
    /// Entity tag of the response.
    etag: Option<String>,
}

impl KeySnapshot {
    /// Returns the keys, or `None` if they have expired by `now`. All keys come from the last
    /// successful response, so they expire together.
    pub(crate) fn keys_at(&self, now: u64) -> Option<&Keys> {
        let age = self.confirmed_at.map_or(0, |then| now.saturating_sub(then));
        (age <= MAX_UNCONFIRMED_SECS).then_some(&self.keys)
    }
}

impl KeyCache {
    /// Creates a cache of keys that never expire and are never fetched.
    pub(crate) fn fixed(keys: Keys, clock: Clock) -> Self {
        let snapshot = KeySnapshot {
            keys,
            confirmed_at: None,
            etag: None,
        };
        Self::new(snapshot, None, clock)
    }

    /// Replaces the keys, and keeps the time at which they were last confirmed.
    pub(crate) fn replace(&self, keys: Keys) {
        let confirmed_at = self.current.load().confirmed_at;
        self.current.store(Arc::new(KeySnapshot {
            keys,
            confirmed_at,
            etag: None,
        }));
    }

    /// Returns the current keys, for a short use.
    pub(crate) fn snapshot(&self) -> Guard<Arc<KeySnapshot>> {
        self.current.load()
    }

    /// Returns the current keys, for use across an `await` or on another thread.
    pub(crate) fn owned_snapshot(&self) -> Arc<KeySnapshot> {
        self.current.load_full()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.current.load().keys.is_empty()
    }

    /// Returns the sorted `kid`s of the keys for whose digest `is_revoked` returns `false`.
    pub(crate) fn active_kids(&self, is_revoked: impl Fn(Digest) -> bool) -> Vec<String> {
        let snapshot = self.current.load();
        let keys = snapshot
            .keys
            .iter()
            .filter(|(_, key)| !is_revoked(key.revocation_digest()));
        let mut kids: Vec<_> = keys.map(|(kid, _)| kid.to_owned()).collect();
        kids.sort_unstable();
        kids
    }

    /// Requests a fetch because of an unknown `kid`, if that is allowed. The returned receiver
    /// changes when the fetch has finished.
    pub(crate) fn request_fetch(&self, kid: &str, now: u64) -> Option<watch::Receiver<()>> {
        let mut finished = self.finished.clone()?;
        let mut limiter = self.lock_limiter();
        if !limiter.request_for_kid(kid, now) {
            return None;
        }
        finished.mark_unchanged();
        if limiter.state == FetchState::Requested {
            self.wake.notify_one();
        }
        Some(finished)
    }

    /// Requests a fetch if the cached keys do not have this entity tag. Does not wait for it.
    pub(crate) fn expect_etag(&self, etag: &str, now: u64) {
        let snapshot = self.current.load();
        let is_changed = snapshot.etag.as_deref().is_some_and(|ours| ours != etag);
        if is_changed && self.finished.is_some() && self.lock_limiter().request_for_etag(etag, now)
        {
            self.wake.notify_one();
        }
    }

    /// Waits for a fetch that is not rate limited, or for the one in flight. The caller must pause
    /// between calls.
    pub(crate) async fn fetch_now(&self) {
        let Some(mut finished) = self.finished.clone() else {
            return;
        };
        {
            let mut limiter = self.lock_limiter();
            finished.mark_unchanged();
            if limiter.state == FetchState::Idle {
                limiter.state = FetchState::Requested;
                self.wake.notify_one();
            }
        }
        let _ = finished.changed().await;
    }

    /// Requests a fetch as [`request_fetch`](Self::request_fetch) does, and waits for it.
    pub(crate) async fn refetch(&self, kid: &str, now: u64) {
        if let Some(mut finished) = self.request_fetch(kid, now) {
            // An error means that the task has ended together with its runtime, so there will be no
            // fetch.
            let _ = finished.changed().await;
        }
    }

    fn new(snapshot: KeySnapshot, finished: Option<watch::Receiver<()>>, clock: Clock) -> Self {
        Self {
            current: ArcSwap::from_pointee(snapshot),
            clock,
            limiter: Mutex::default(),
            wake: Notify::new(),
            finished,
        }
    }

    /// Waits until `due` or until a fetch is requested. Returns whether it was requested.
    async fn wait_for_fetch(&self, due: Instant) -> bool {
        loop {
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.wake.notified() => {}
            }
            let mut limiter = self.lock_limiter();
            let is_requested = limiter.state == FetchState::Requested;
            // Neither is the case if a scheduled fetch has already served the request.
            if is_requested || Instant::now() >= due {
                limiter.state = FetchState::Running;
                return is_requested;
            }
        }
    }

    /// Stores the result of a fetch. A failed fetch leaves the keys unchanged.
    fn finish_fetch(
        &self,
        result: Result<Fetched, FetchError>,
        was_requested: bool,
        finish: &watch::Sender<()>,
    ) {
        let failed = result.is_err();
        match result {
            Ok(fetched) => self.current.store(Arc::new(self.snapshot_of(fetched))),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "failed to fetch the issuer's keys"
                );
            }
        }
        let mut limiter = self.lock_limiter();
        limiter.finish(failed || !was_requested);
        // Sent while the lock is held, so that a later request waits for the next fetch.
        finish.send_replace(());
    }

    fn snapshot_of(&self, fetched: Fetched) -> KeySnapshot {
        KeySnapshot {
            keys: fetched.keys,
            confirmed_at: Some(self.clock.wall_secs()),
            etag: fetched.etag,
        }
    }

    fn lock_limiter(&self) -> MutexGuard<'_, RefetchLimiter> {
        // Poisoning is ignored: no code panics while it holds the lock, and every state is valid.
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handle of the task that fetches the keys. Dropping it stops the task.
pub(crate) struct Refresher(AbortHandle);

impl Refresher {
    /// Spawns the task. Without `first`, the cache is empty and the first fetch is due in 30 s.
    pub(crate) fn spawn(
        fetcher: Fetcher,
        first: Option<Fetched>,
        clock: Clock,
    ) -> (Arc<KeyCache>, Self) {
        let (finish, finished) = watch::channel(());
        let delay = first.as_ref().map_or(RETRY_DELAY, |first| first.max_age);
        let snapshot = KeySnapshot {
            confirmed_at: Some(first.as_ref().map_or(0, |_| clock.wall_secs())),
            etag: first.as_ref().and_then(|first| first.etag.clone()),
            keys: first.map(|first| first.keys).unwrap_or_default(),
        };
        let cache = Arc::new(KeyCache::new(snapshot, Some(finished), clock));
        let due = Instant::now() + jittered(delay);
        let task = tokio::spawn(refresh(cache.clone(), fetcher, due, finish));
        (cache, Self(task.abort_handle()))
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn refresh(
    cache: Arc<KeyCache>,
    fetcher: Fetcher,
    mut due: Instant,
    finish: watch::Sender<()>,
) {
    loop {
        let was_requested = cache.wait_for_fetch(due).await;
        if was_requested {
            tracing::info!(
                event = "jwks.refetch",
                "fetching the issuer's keys ahead of schedule because a key is missing"
            );
        }
        let result = fetcher.keys(was_requested).await;
        let delay = result
            .as_ref()
            .map_or(RETRY_DELAY, |fetched| fetched.max_age);
        due = Instant::now() + jittered(delay);
        cache.finish_fetch(result, was_requested, &finish);
    }
}

/// Varies a delay by ± 10 %, so that the instances of a service do not all fetch at the same time.
fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(0.9 + 0.2 * random_fraction())
}

/// Returns a random number from 0 to 1.
pub(crate) fn random_fraction() -> f64 {
    let mut random = [0; 2];
    // If randomness is unavailable, the instances fetch at the same time, which is acceptable.
    match aws_lc_rs::rand::fill(&mut random) {
        Ok(()) => f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token_cache::TokenCache;
    use crate::verifier::{Inner, ValidationRules};
    use crate::{Algorithm, Need, Rejected, Verifier};

    #[test]
    fn jitter_is_within_ten_percent() {
        for _ in 0..1000 {
            let delay = jittered(Duration::from_secs(300)).as_secs_f64();
            assert!((270.0..=330.0).contains(&delay), "{delay}");
        }
    }

    #[test]
    fn fixed_keys_neither_expire_nor_cause_fetches() {
        let cache = KeyCache::fixed(Keys::default(), Clock::system());
        assert!(cache.snapshot().keys_at(u64::MAX).is_some());
        assert!(cache.request_fetch("kid", 0).is_none());
    }

    #[test]
    fn expired_keys_make_verifier_unavailable() {
        let snapshot = KeySnapshot {
            keys: Keys::default(),
            confirmed_at: Some(0),
            etag: None,
        };
        let rules = ValidationRules {
            issuer: String::new(),
            audience: None,
            algorithms: vec![Algorithm::ES256],
            leeway_secs: 0,
        };
        let verifier = Verifier::new(Inner {
            rules,
            clock: Clock::system(),
            keys: Arc::new(KeyCache::new(snapshot, None, Clock::system())),
            tokens: TokenCache::with_capacity(0),
            counters: Arc::default(),
            revocations: None,
            _refresher: None,
        });
        // {"alg":"ES256","typ":"at+jwt","kid":"k"}
        let token = "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCIsImtpZCI6ImsifQ.e30.AA";
        assert_eq!(
            verifier.verify_at(token, &Need::any(), 0),
            Err(Rejected::Unavailable)
        );
    }

    #[test]
    fn unconfirmed_keys_expire_after_a_day() {
        let snapshot = KeySnapshot {
            keys: Keys::default(),
            confirmed_at: Some(1000),
            etag: None,
        };
        assert!(snapshot.keys_at(0).is_some());
        assert!(snapshot.keys_at(1000 + MAX_UNCONFIRMED_SECS).is_some());
        assert!(snapshot.keys_at(1001 + MAX_UNCONFIRMED_SECS).is_none());
    }
}
