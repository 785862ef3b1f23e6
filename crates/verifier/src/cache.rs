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
use crate::{Keys, clock};

/// Between a failed fetch and the next try.
const RETRY: Duration = Duration::from_secs(30);
/// How long keys live that no fetch confirms.
const UNCONFIRMED_SECS: u64 = 24 * 60 * 60;
pub(crate) struct Cache {
    held: ArcSwap<Held>,
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
    pub(crate) fn fixed(keys: Keys) -> Self {
        Self::new(
            Held {
                keys,
                confirmed_at: None,
            },
            None,
        )
    }

    /// Other keys, as fresh as those that they replace.
    pub(crate) fn replace(&self, keys: Keys) {
        let confirmed_at = self.held.load().confirmed_at;
        self.held.store(Arc::new(Held { keys, confirmed_at }));
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

    /// Waits for the fetch that [`demand`](Self::demand) allows, if it allows one.
    pub(crate) async fn refetch(&self, kid: &str, now: u64) {
        if let Some(mut finished) = self.demand(kid, now) {
            // An error means that the task has ended, and its runtime with it: nothing will come.
            let _ = finished.changed().await;
        }
    }

    fn new(held: Held, finished: Option<watch::Receiver<()>>) -> Self {
        Self {
            held: ArcSwap::from_pointee(held),
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
    fn settle(&self, outcome: Result<Keys, FetchError>, asked: bool, finish: &watch::Sender<()>) {
        let failed = outcome.is_err();
        match outcome {
            Ok(keys) => {
                let confirmed_at = Some(clock::now_secs());
                self.held.store(Arc::new(Held { keys, confirmed_at }));
            }
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

    fn lock(&self) -> MutexGuard<'_, Demand> {
        // Nothing panics while it holds the lock, and no state in there could mislead.
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that fetches; dropping this ends it.
pub(crate) struct Refresher(AbortHandle);

impl Refresher {
    pub(crate) fn spawn(fetcher: Fetcher, first: Fetched) -> (Arc<Cache>, Self) {
        let (finish, finished) = watch::channel(());
        let held = Held {
            keys: first.keys,
            confirmed_at: Some(clock::now_secs()),
        };
        let cache = Arc::new(Cache::new(held, Some(finished)));
        let due = Instant::now() + jittered(first.max_age);
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
        let fetched = fetcher.keys().await;
        let pause = fetched.as_ref().map_or(RETRY, |fetched| fetched.max_age);
        due = Instant::now() + jittered(pause);
        cache.settle(fetched.map(|fetched| fetched.keys), asked, &finish);
    }
}

/// ± 10 %, so that the instances of a service do not all call at once.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 2];
    // Without randomness the instances call together, which is no reason to stop.
    let chance = match aws_lc_rs::rand::fill(&mut random) {
        Ok(()) => f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX),
        Err(_) => 0.5,
    };
    pause.mul_f64(0.9 + 0.2 * chance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::Memory;
    use crate::verifier::Expected;
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
        let cache = Cache::fixed(Keys::default());
        assert!(cache.held().at(u64::MAX).is_some());
        assert!(cache.demand("kid", 0).is_none());
    }

    #[test]
    fn without_keys_a_verifier_is_unavailable() {
        let held = Held {
            keys: Keys::default(),
            confirmed_at: Some(0),
        };
        let expected = Expected {
            issuer: String::new(),
            audience: None,
            algorithms: vec![Algorithm::ES256],
            leeway_secs: 0,
        };
        let verifier = Verifier::new(
            expected,
            Memory::with_room_for(0),
            Arc::new(Cache::new(held, None)),
            None,
        );
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
        };
        assert!(held.at(0).is_some());
        assert!(held.at(1000 + UNCONFIRMED_SECS).is_some());
        assert!(held.at(1001 + UNCONFIRMED_SECS).is_none());
    }
}
