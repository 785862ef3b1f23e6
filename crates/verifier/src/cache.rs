//! The keys that a verifier holds, and when it fetches them anew.
//!
//! One task does all fetching, so there is never more than one fetch in flight. It fetches when
//! the keys' max-age is over, and when a token names a `kid` that is not known: that at most once
//! in 30 s, or anybody could make us call the issuer as often as he likes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::demand::{Demand, Fetch};
use crate::fetch::{FetchError, Fetched, Fetcher};
use crate::{Clock, Digest, Keys};

/// Between a failed fetch and the next try.
const RETRY: Duration = Duration::from_secs(30);
/// How long keys live that no fetch confirms.
const UNCONFIRMED_SECS: u64 = 24 * 60 * 60;
pub(crate) struct Cache {
    held: ArcSwap<Held>,
    clock: Clock,
    demand: Mutex<Demand>,
    wake: Notify,
    /// Changes with each finished fetch, and closes with the task. `None`: keys by value.
    finished: Option<watch::Receiver<()>>,
}

/// Keys, and when a fetch last confirmed them.
pub(crate) struct Held {
    keys: Keys,
    /// Seconds since the epoch; `None` for keys by value, which do not age.
    confirmed_at: Option<u64>,
    /// What the issuer calls this state of its keys.
    etag: Option<String>,
}

impl Held {
    /// The keys that may be used at `now`. All of them come from the last good answer, so they all
    /// age together.
    pub(crate) fn at(&self, now: u64) -> Option<&Keys> {
        let age = self.confirmed_at.map_or(0, |then| now.saturating_sub(then));
        (age <= UNCONFIRMED_SECS).then_some(&self.keys)
    }
}

impl Cache {
    pub(crate) fn fixed(keys: Keys, clock: Clock) -> Self {
        let held = Held {
            keys,
            confirmed_at: None,
            etag: None,
        };
        Self::new(held, None, clock)
    }

    /// Other keys, as fresh as those that they replace.
    pub(crate) fn replace(&self, keys: Keys) {
        let confirmed_at = self.held.load().confirmed_at;
        self.held.store(Arc::new(Held {
            keys,
            confirmed_at,
            etag: None,
        }));
    }

    /// The same keys for a while, whatever is fetched meanwhile.
    pub(crate) fn held_full(&self) -> Arc<Held> {
        self.held.load_full()
    }

    pub(crate) fn holds_none(&self) -> bool {
        self.held.load().keys.is_empty()
    }

    /// The ids of the keys in use, in order, but for those whose digest is `revoked`.
    pub(crate) fn kids_but(&self, revoked: impl Fn(Digest) -> bool) -> Vec<String> {
        let held = self.held.load();
        let keys = held
            .keys
            .iter()
            .filter(|(_, key)| !revoked(key.revoked_by()));
        let mut kids: Vec<_> = keys.map(|(kid, _)| kid.to_owned()).collect();
        kids.sort_unstable();
        kids
    }

    pub(crate) fn held(&self) -> Guard<Arc<Held>> {
        self.held.load()
    }

    /// Lets the task fetch because of an unknown `kid`, if that is allowed. What comes back changes
    /// when that fetch is done.
    pub(crate) fn demand(&self, kid: &str, now: u64) -> Option<watch::Receiver<()>> {
        let mut finished = self.finished.clone()?;
        let mut demand = self.lock();
        if !demand.fetch_for(kid, now) {
            return None;
        }
        finished.mark_unchanged();
        if demand.fetch == Fetch::Asked {
            self.wake.notify_one();
        }
        Some(finished)
    }

    /// The issuer's keys now go by `etag`: fetches them if we hold others. Waits for nothing.
    pub(crate) fn expect_etag(&self, etag: &str, now: u64) {
        let held = self.held.load();
        let changed = held.etag.as_deref().is_some_and(|ours| ours != etag);
        if changed && self.finished.is_some() && self.lock().fetch_for_etag(etag, now) {
            self.wake.notify_one();
        }
    }

    /// Fetches, or joins the fetch under way, and waits for it. For callers that pause between
    /// their tries.
    pub(crate) async fn fetch_now(&self) {
        let Some(mut finished) = self.finished.clone() else {
            return;
        };
        {
            let mut demand = self.lock();
            finished.mark_unchanged();
            if demand.fetch == Fetch::Idle {
                demand.fetch = Fetch::Asked;
                self.wake.notify_one();
            }
        }
        let _ = finished.changed().await;
    }

    /// Waits for the fetch that [`demand`](Self::demand) allows, if it allows one.
    pub(crate) async fn refetch(&self, kid: &str, now: u64) {
        if let Some(mut finished) = self.demand(kid, now) {
            // An error means that the task has ended, and its runtime with it: nothing will come.
            let _ = finished.changed().await;
        }
    }

    fn new(held: Held, finished: Option<watch::Receiver<()>>, clock: Clock) -> Self {
        Self {
            held: ArcSwap::from_pointee(held),
            clock,
            demand: Mutex::default(),
            wake: Notify::new(),
            finished,
        }
    }

    /// Waits until `due`, or until an unknown `kid` asks; true if it was a `kid`.
    async fn turn(&self, due: Instant) -> bool {
        loop {
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.wake.notified() => {}
            }
            let mut demand = self.lock();
            let asked = demand.fetch == Fetch::Asked;
            // Neither holds where a fetch on schedule has already answered the one who called.
            if asked || Instant::now() >= due {
                demand.fetch = Fetch::Running;
                return asked;
            }
        }
    }

    /// Takes the outcome of a fetch. One that failed leaves the keys as they are.
    fn settle(
        &self,
        outcome: Result<Fetched, FetchError>,
        asked: bool,
        finish: &watch::Sender<()>,
    ) {
        let failed = outcome.is_err();
        match outcome {
            Ok(fetched) => self.held.store(Arc::new(self.confirmed(fetched))),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the issuer's keys could not be fetched"
                );
            }
        }
        let mut demand = self.lock();
        demand.settled(failed || !asked);
        // Still under the lock: who asks from now on waits for another fetch than this one.
        finish.send_replace(());
    }

    fn confirmed(&self, fetched: Fetched) -> Held {
        Held {
            keys: fetched.keys,
            confirmed_at: Some(self.clock.wall_secs()),
            etag: fetched.etag,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Demand> {
        // Nothing panics while it holds the lock, and no state in there could mislead.
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that fetches; dropping this ends it.
pub(crate) struct Refresher(AbortHandle);

impl Refresher {
    /// Begins with what was fetched first, or with nothing and a fetch in half a minute.
    pub(crate) fn spawn(
        fetcher: Fetcher,
        first: Option<Fetched>,
        clock: Clock,
    ) -> (Arc<Cache>, Self) {
        let (finish, finished) = watch::channel(());
        let pause = first.as_ref().map_or(RETRY, |first| first.max_age);
        let held = Held {
            confirmed_at: Some(first.as_ref().map_or(0, |_| clock.wall_secs())),
            etag: first.as_ref().and_then(|first| first.etag.clone()),
            keys: first.map(|first| first.keys).unwrap_or_default(),
        };
        let cache = Arc::new(Cache::new(held, Some(finished), clock));
        let due = Instant::now() + jittered(pause);
        let task = tokio::spawn(refresh(cache.clone(), fetcher, due, finish));
        (cache, Self(task.abort_handle()))
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn refresh(cache: Arc<Cache>, fetcher: Fetcher, mut due: Instant, finish: watch::Sender<()>) {
    loop {
        let asked = cache.turn(due).await;
        if asked {
            tracing::info!(
                event = "jwks.refetch",
                "the issuer's keys are fetched before their time: one is missing"
            );
        }
        let fetched = fetcher.keys(asked).await;
        let pause = fetched.as_ref().map_or(RETRY, |fetched| fetched.max_age);
        due = Instant::now() + jittered(pause);
        cache.settle(fetched, asked, &finish);
    }
}

/// ± 10 %, so that the instances of a service do not all call at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.9 + 0.2 * random_share())
}

/// From 0 to 1.
pub(crate) fn random_share() -> f64 {
    let mut random = [0; 2];
    // Without randomness the instances call together, which is no reason to stop.
    match aws_lc_rs::rand::fill(&mut random) {
        Ok(()) => f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::Memory;
    use crate::verifier::{Expected, Inner};
    use crate::{Algorithm, Need, Rejected, Verifier};

    #[test]
    fn a_pause_varies_by_a_tenth() {
        for _ in 0..1000 {
            let pause = jittered(Duration::from_secs(300)).as_secs_f64();
            assert!((270.0..=330.0).contains(&pause), "{pause}");
        }
    }

    #[test]
    fn keys_by_value_neither_age_nor_ask() {
        let cache = Cache::fixed(Keys::default(), Clock::system());
        assert!(cache.held().at(u64::MAX).is_some());
        assert!(cache.demand("kid", 0).is_none());
    }

    #[test]
    fn without_keys_a_verifier_is_unavailable() {
        let held = Held {
            keys: Keys::default(),
            confirmed_at: Some(0),
            etag: None,
        };
        let expected = Expected {
            issuer: String::new(),
            audience: None,
            algorithms: vec![Algorithm::ES256],
            leeway_secs: 0,
        };
        let verifier = Verifier::new(Inner {
            expected,
            clock: Clock::system(),
            cache: Arc::new(Cache::new(held, None, Clock::system())),
            memory: Memory::with_room_for(0),
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
    fn unconfirmed_keys_are_dropped_after_a_day() {
        let held = Held {
            keys: Keys::default(),
            confirmed_at: Some(1000),
            etag: None,
        };
        assert!(held.at(0).is_some());
        assert!(held.at(1000 + UNCONFIRMED_SECS).is_some());
        assert!(held.at(1001 + UNCONFIRMED_SECS).is_none());
    }
}
