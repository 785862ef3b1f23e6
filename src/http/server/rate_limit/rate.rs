//! One rate limit: GCRA per key, in bounded memory.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::Clock as Ticking;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};

use crate::config::limits::COUNTED_KEYS;
use crate::time::{Clock, Uptime};

/// The state of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Requests of a full budget.
    pub limit: u32,
    /// Remaining requests.
    pub remaining: u32,
    /// Time until the budget is full again.
    pub reset: Duration,
}

/// A rate limit with a budget per key.
pub struct Rate<K: Clone + Eq + Hash> {
    limiter: RateLimiter<K, Shared<K>, Ticks, NoOpMiddleware<Duration>>,
    memory: Arc<Memory<K>>,
    ticks: Ticks,
    start: Duration,
    limit: NonZeroU32,
}

impl<K: Clone + Eq + Hash> Rate<K> {
    /// Creates a rate of `limit` requests per minute, with full budgets.
    pub fn per_minute(limit: u32, clock: &Clock) -> Self {
        let limit = NonZeroU32::new(limit).unwrap_or(NonZeroU32::MIN);
        let ticks = Ticks {
            clock: clock.clone(),
            latest: Arc::default(),
        };
        let memory = Arc::new(Memory::new());
        let start = ticks.now();
        Self {
            limiter: RateLimiter::new(
                Quota::per_minute(limit),
                Shared(Arc::clone(&memory)),
                ticks.clone(),
            ),
            memory,
            ticks,
            start,
            limit,
        }
    }

    /// Returns `old` with its used budgets if the limit is unchanged, and `new` otherwise.
    pub fn keep(new: Arc<Self>, old: &Arc<Self>) -> Arc<Self> {
        match new.limit == old.limit {
            true => Arc::clone(old),
            false => new,
        }
    }

    /// Charges one request, or returns how long to wait.
    pub fn charge(&self, key: &K) -> (Budget, Result<(), Duration>) {
        let outcome = self
            .limiter
            .check_key(key)
            .map_err(|refused| refused.wait_time_from(self.ticks.now()));
        (self.left(key), outcome)
    }

    /// Returns whether one request is left, or how long to wait.
    pub fn peek(&self, key: &K) -> (Budget, Result<(), Duration>) {
        let budget = self.left(key);
        let all_but_one = self.interval() * u64::from(self.limit.get() - 1);
        let wait = budget
            .reset
            .saturating_sub(Duration::from_nanos(all_but_one));
        let outcome = if wait.is_zero() { Ok(()) } else { Err(wait) };
        (budget, outcome)
    }

    /// Refunds one request.
    pub fn refund(&self, key: &K) -> Budget {
        self.memory.lower(key, self.interval());
        self.left(key)
    }

    fn interval(&self) -> u64 {
        60_000_000_000 / u64::from(self.limit.get())
    }

    fn left(&self, key: &K) -> Budget {
        let now = nanos(self.ticks.now().saturating_sub(self.start));
        let missing = self.memory.read(key).saturating_sub(now);
        let interval = self.interval();
        let whole = interval * u64::from(self.limit.get());
        let remaining = whole.saturating_sub(missing) / interval;
        Budget {
            limit: self.limit.get(),
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            reset: Duration::from_nanos(missing),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The node's clock for the limiter. It never goes backwards.
#[derive(Clone)]
struct Ticks {
    clock: Clock,
    latest: Arc<AtomicU64>,
}

impl Ticking for Ticks {
    type Instant = Duration;

    fn now(&self) -> Duration {
        let now = nanos(self.clock.uptime().since(Uptime::default()));
        Duration::from_nanos(self.latest.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

const SHARDS: usize = 16;

/// The time at which each key's budget is full again (GCRA's theoretical arrival time), for a bounded number of keys.
struct Memory<K> {
    shards: [Mutex<HashMap<K, u64>>; SHARDS],
    hasher: RandomState,
}

/// The memory as the state store of the limiter.
struct Shared<K>(Arc<Memory<K>>);

impl<K: Clone + Eq + Hash> Memory<K> {
    fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
        }
    }

    fn with<T>(&self, key: &K, work: impl FnOnce(&mut HashMap<K, u64>) -> T) -> T {
        let shard = usize::try_from(self.hasher.hash_one(key)).unwrap_or(usize::MAX) % SHARDS;
        let mut map = self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        work(&mut map)
    }

    fn read(&self, key: &K) -> u64 {
        self.with(key, |map| map.get(key).copied().unwrap_or(0))
    }

    fn lower(&self, key: &K, by: u64) {
        self.with(key, |map| {
            if let Some(full_at) = map.get_mut(key) {
                *full_at = full_at.saturating_sub(by);
            }
        });
    }
}

impl<K: Clone + Eq + Hash> StateStore for Shared<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0.with(key, |map| {
            let (outcome, full_at) = measure(map.get(key).copied().map(Nanos::from))?;
            if map.len() >= COUNTED_KEYS / SHARDS && !map.contains_key(key) {
                forget_half(map);
            }
            map.insert(key.clone(), full_at.into());
            Ok(outcome)
        })
    }
}

/// Makes room by deleting the half of the keys that used the least. They restart with a full budget, which is little more
/// than they had.
fn forget_half<K: Clone + Eq + Hash>(map: &mut HashMap<K, u64>) {
    let mut instants: Vec<u64> = map.values().copied().collect();
    let middle = instants.len() / 2;
    let (_, median, _) = instants.select_nth_unstable(middle);
    let median = *median;
    map.retain(|_, full_at| *full_at > median);
}
