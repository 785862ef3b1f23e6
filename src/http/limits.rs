//! Rates (policy §5): a sliding window by GCRA, per address and route class, and per client once it has
//! proven who it is. Counted in this node's memory, which is bounded.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::web::Data;
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use arc_swap::ArcSwap;
use governor::clock::Clock as Ticking;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};

use super::client_address::ClientAddress;
use super::error;
use crate::config::limits::{COUNTED_KEYS, REFRESHES_PER_MINUTE};
use crate::config::{self, Mode, Network};
use crate::id::{ClientId, GrantId};
use crate::oauth::Detail;
use crate::time::{Clock, Uptime};

/// Routes that share a budget, whatever address or spelling they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// `/oauth2/authorize`.
    Authorize,
    /// `/login`, `/consent`, `/setup`.
    Login,
    /// `/oauth2/token`.
    Token,
    /// `/oauth2/par`.
    Par,
    /// `/oauth2/introspect`.
    Introspect,
    /// `/oauth2/revoke`.
    Revoke,
    /// `/oauth2/userinfo`.
    Userinfo,
    /// `/oauth2/end_session`.
    Logout,
    /// `/oauth2/register`.
    Register,
    /// `/oauth2/device_authorization`, `/device`.
    Device,
    /// `/account`.
    Account,
    /// Discovery and keys.
    Metadata,
    /// `/revocations`.
    Feed,
}

impl Class {
    /// The class of a path; upper case and a slash at the end change nothing.
    pub fn of(path: &str) -> Option<Self> {
        let path = path.trim_end_matches('/').to_ascii_lowercase();
        let below = |root: &str| {
            path.strip_prefix(root)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        Some(match path.as_str() {
            "/oauth2/authorize" => Self::Authorize,
            "/login" | "/consent" | "/setup" => Self::Login,
            "/oauth2/token" => Self::Token,
            "/oauth2/par" => Self::Par,
            "/oauth2/introspect" => Self::Introspect,
            "/oauth2/revoke" => Self::Revoke,
            "/oauth2/userinfo" => Self::Userinfo,
            "/oauth2/end_session" => Self::Logout,
            "/oauth2/device_authorization" | "/device" => Self::Device,
            "" | "/account" => Self::Account,
            "/oauth2/jwks" => Self::Metadata,
            _ if below("/oauth2/register") => Self::Register,
            _ if below("/.well-known") => Self::Metadata,
            _ if below("/revocations") => Self::Feed,
            _ => return None,
        })
    }

    /// Whether people see its answers.
    pub(super) fn is_page(self) -> bool {
        matches!(
            self,
            Self::Authorize | Self::Login | Self::Logout | Self::Account | Self::Device
        )
    }

    /// Whether caches keep its answers, so that only a 429 may speak of one caller's budget.
    fn is_cached(self) -> bool {
        self == Self::Metadata
    }
}

/// Whose budget an address spends: an IPv4 address its own, an IPv6 address that of its /64.
pub(super) fn source(address: IpAddr) -> Network {
    Network::around(address, 32, 64)
}

/// What is left of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Budget {
    limit: u32,
    remaining: u32,
    /// Until it is full again.
    reset: Duration,
}

/// A request that comes too early, and how long it should have waited.
#[derive(Clone, Copy, Debug)]
pub struct TooMany {
    wait: Duration,
    bucket: &'static str,
}

/// One rate: a budget per key.
struct Rate<K: Clone + Eq + Hash> {
    limiter: RateLimiter<K, Shared<K>, Ticks, NoOpMiddleware<Duration>>,
    memory: Arc<Memory<K>>,
    ticks: Ticks,
    start: Duration,
    limit: NonZeroU32,
}

impl<K: Clone + Eq + Hash> Rate<K> {
    fn per_minute(limit: u32, clock: &Clock) -> Self {
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

    /// Spends one, or says how long to wait.
    fn spend(&self, key: &K) -> (Budget, Result<(), Duration>) {
        let spent = self
            .limiter
            .check_key(key)
            .map_err(|refused| refused.wait_time_from(self.ticks.now()));
        (self.left(key), spent)
    }

    /// Whether one is left; how long to wait when none is.
    fn look(&self, key: &K) -> (Budget, Result<(), Duration>) {
        let budget = self.left(key);
        let all_but_one = self.interval() * u64::from(self.limit.get() - 1);
        let wait = budget
            .reset
            .saturating_sub(Duration::from_nanos(all_but_one));
        let outcome = if wait.is_zero() { Ok(()) } else { Err(wait) };
        (budget, outcome)
    }

    /// Gives one back.
    fn give_back(&self, key: &K) -> Budget {
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

/// The node's clock, as the limiter reads it: it never goes back.
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

/// When each key's budget would be full again (GCRA's theoretical arrival time), for a bounded number
/// of keys.
struct Memory<K> {
    shards: [Mutex<HashMap<K, u64>>; SHARDS],
    hasher: RandomState,
}

/// The same memory, as the limiter holds it.
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

/// Makes room: those who have spent the least are forgotten, and begin anew with little gained.
fn forget_half<K: Clone + Eq + Hash>(map: &mut HashMap<K, u64>) {
    let mut instants: Vec<u64> = map.values().copied().collect();
    let middle = instants.len() / 2;
    let (_, median, _) = instants.select_nth_unstable(middle);
    let median = *median;
    map.retain(|_, full_at| *full_at > median);
}

/// All rates of a node, as the configuration says now.
pub struct Limits {
    rates: ArcSwap<Rates>,
    clock: Clock,
    begun: AtomicU64,
}

struct Rates {
    enforce: bool,
    per_ip: Rate<(Class, Network)>,
    per_client: Rate<ClientId>,
    introspect: Rate<ClientId>,
    refreshes: Rate<GrantId>,
}

impl Rates {
    fn new(config: &config::Limits, clock: &Clock) -> Self {
        Self {
            enforce: config.mode == Mode::Enforce,
            per_ip: Rate::per_minute(config.per_ip, clock),
            per_client: Rate::per_minute(config.per_client, clock),
            introspect: Rate::per_minute(config.introspect, clock),
            refreshes: Rate::per_minute(REFRESHES_PER_MINUTE, clock),
        }
    }
}

/// What a request has spent so far; kept with the request.
struct Spent {
    class: Class,
    source: Network,
    /// Of the bucket of its address.
    address: Budget,
    /// Of every other bucket.
    others: Option<Budget>,
    refused: bool,
}

impl Limits {
    /// Full budgets for everybody.
    pub fn new(config: &config::Limits, clock: &Clock) -> Self {
        Self {
            rates: ArcSwap::from_pointee(Rates::new(config, clock)),
            clock: clock.clone(),
            begun: AtomicU64::new(0),
        }
    }

    /// Takes other rates from now on; all budgets are full again.
    pub fn replace(&self, config: &config::Limits) {
        self.rates.store(Arc::new(Rates::new(config, &self.clock)));
    }

    /// Whether it is time to look at how many authorizations are on their way: with each hundredth that
    /// begins here.
    fn is_time_to_count(&self) -> bool {
        self.begun.fetch_add(1, Ordering::Relaxed) % 100 == 99
    }

    /// Charges a request to its address. Every request for a limited route is, whatever comes of it.
    pub(super) fn charge_address(&self, request: &HttpRequest) -> Result<(), TooMany> {
        let Some(class) = Class::of(request.path()) else {
            return Ok(());
        };
        let source = source(ClientAddress::of(request));
        let (address, outcome) = self.rates.load().per_ip.spend(&(class, source));
        request.extensions_mut().insert(Spent {
            class,
            source,
            address,
            others: None,
            refused: false,
        });
        self.judge(request, outcome, "ip")
    }

    /// Charges a request to the client that proved by a secret that it sent it, and gives the address
    /// its own back.
    fn charge_client(&self, request: &HttpRequest, client: &ClientId) -> Result<(), TooMany> {
        let Some(class) = class_of(request) else {
            return Ok(());
        };
        self.give_back(request);
        let (budget, outcome, bucket) = if class == Class::Introspect {
            let (budget, outcome) = self.rates.load().introspect.spend(client);
            (budget, outcome, "introspect")
        } else {
            let (budget, outcome) = self.rates.load().per_client.spend(client);
            (budget, outcome, "client")
        };
        note(request, budget);
        self.judge(request, outcome, bucket)
    }

    fn admit_refresh(&self, request: &HttpRequest, grant: &GrantId) -> Result<(), TooMany> {
        let (budget, outcome) = self.rates.load().refreshes.look(grant);
        note(request, budget);
        self.judge(request, outcome, "refresh")
    }

    fn charge_refresh(&self, request: &HttpRequest, grant: &GrantId) {
        let (budget, _) = self.rates.load().refreshes.spend(grant);
        note(request, budget);
    }

    fn give_back(&self, request: &HttpRequest) {
        if let Some(spent) = request.extensions_mut().get_mut::<Spent>() {
            spent.address = self
                .rates
                .load()
                .per_ip
                .give_back(&(spent.class, spent.source));
        }
    }

    fn judge(
        &self,
        request: &HttpRequest,
        outcome: Result<(), Duration>,
        bucket: &'static str,
    ) -> Result<(), TooMany> {
        let Err(wait) = outcome else {
            return Ok(());
        };
        if self.rates.load().enforce {
            if let Some(spent) = request.extensions_mut().get_mut::<Spent>() {
                spent.refused = true;
            }
            return Err(TooMany { wait, bucket });
        }
        error::log(request, Detail::new("ratelimit.counted", bucket), None);
        Ok(())
    }
}

fn class_of(request: &HttpRequest) -> Option<Class> {
    request.extensions().get::<Spent>().map(|spent| spent.class)
}

/// Remembers the tightest budget.
fn note(request: &HttpRequest, budget: Budget) {
    if let Some(spent) = request.extensions_mut().get_mut::<Spent>() {
        let tightest = spent
            .others
            .filter(|known| known.remaining < budget.remaining);
        spent.others = Some(tightest.unwrap_or(budget));
    }
}

/// Charges the request to a client that has proven by a secret who it is. Anybody can say a public
/// client's name, so those stay with their address.
///
/// # Errors
/// [`TooMany`].
pub(super) fn charge_client(request: &HttpRequest, client: &ClientId) -> Result<(), TooMany> {
    match request.app_data::<Data<Limits>>() {
        Some(limits) => limits.charge_client(request, client),
        None => Ok(()),
    }
}

/// Gives the address back what this request was charged: somebody else answers for it.
pub(super) fn give_back(request: &HttpRequest) {
    if let Some(limits) = request.app_data::<Data<Limits>>() {
        limits.give_back(request);
    }
}

/// Whether a grant may be refreshed now; the MAC of the token that was presented was checked. Only a
/// refresh that happens is charged, so that nobody else's tries stand in the client's way.
///
/// # Errors
/// [`TooMany`].
pub(super) fn admit_refresh(request: &HttpRequest, grant: &GrantId) -> Result<(), TooMany> {
    match request.app_data::<Data<Limits>>() {
        Some(limits) => limits.admit_refresh(request, grant),
        None => Ok(()),
    }
}

/// Charges a refresh that happened to its grant.
pub(super) fn charge_refresh(request: &HttpRequest, grant: &GrantId) {
    if let Some(limits) = request.app_data::<Data<Limits>>() {
        limits.charge_refresh(request, grant);
    }
}

/// Whether the authorization that this request begins is one after which they are counted.
pub(super) fn is_time_to_count(request: &HttpRequest) -> bool {
    request
        .app_data::<Data<Limits>>()
        .is_some_and(|limits| limits.is_time_to_count())
}

impl TooMany {
    /// Of an address whose clients fail to authenticate.
    pub(super) const fn failures(wait: Duration) -> Self {
        Self {
            wait,
            bucket: "client_auth",
        }
    }

    /// 429 for programs; logged.
    pub(super) fn json(self, request: &HttpRequest) -> HttpResponse {
        let detail = Detail::new("ratelimit.hit", self.bucket);
        error::refused(request, "temporarily_unavailable", detail, None);
        HttpResponse::TooManyRequests()
            .insert_header(("Retry-After", whole_seconds(self.wait).max(1)))
            .insert_header(("Cache-Control", "no-store"))
            .json(serde_json::json!({ "error": "temporarily_unavailable" }))
    }

    /// 429 in the form that the route's callers read.
    pub(super) fn respond(
        self,
        request: &HttpRequest,
        app: &crate::app::App,
        assets: &super::Assets,
    ) -> HttpResponse {
        if class_of(request).is_some_and(Class::is_page) {
            let notice = error::Notice::TOO_MANY.because(Detail::new("ratelimit.hit", self.bucket));
            let mut response = error::notice(request, app, assets, notice);
            error::retry_after(&mut response, self.wait);
            return response;
        }
        self.json(request)
    }
}

/// Rounded up.
pub(super) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// Tells on the answer how much is left in the bucket with the least left.
pub(super) fn describe(request: &HttpRequest, headers: &mut HeaderMap) {
    let extensions = request.extensions();
    let Some(spent) = extensions.get::<Spent>() else {
        return;
    };
    if spent.class.is_cached() && !spent.refused {
        return;
    }
    let budget = spent
        .others
        .filter(|other| other.remaining < spent.address.remaining)
        .unwrap_or(spent.address);
    let values = [
        ("limit", u64::from(budget.limit)),
        ("remaining", u64::from(budget.remaining)),
        ("reset", whole_seconds(budget.reset)),
    ];
    for (name, value) in values {
        for prefix in ["ratelimit-", "x-ratelimit-"] {
            if let Ok(name) = HeaderName::try_from(format!("{prefix}{name}")) {
                headers.insert(name, HeaderValue::from(value));
            }
        }
    }
}
