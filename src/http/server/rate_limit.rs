//! Rate limits (policy §5): a sliding window by GCRA, per address and route class, and per client once it is
//! authenticated. Counted in the memory of this node, which is bounded.
//!
//! At the endpoints that clients call, a request beyond the budget of its address is still served if its client
//! authenticates, so that other users of the address do not block the client.

mod class;
mod rate;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix_web::http::Method;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::web::Data;
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use arc_swap::ArcSwap;

use crate::accounts::throttle;
use crate::config::limits::REFRESHES_PER_MINUTE;
use crate::config::{self, Mode, Network};
use crate::http::assets::Assets;
use crate::http::error::{self, ErrorPage};
use crate::http::response::whole_seconds;
use crate::http::server::client_address::ClientAddress;
use crate::id::{ClientId, GrantId};
use crate::oauth::Detail;
use crate::time::Clock;
pub use class::Class;
use rate::{Budget, Rate};

/// Returns the network whose budget an address uses: an IPv4 address alone, an IPv6 address with its /64.
pub(in crate::http) fn source(address: IpAddr) -> Network {
    Network::around(address, 32, 64)
}

/// A request that exceeds a rate limit, and how long the caller must wait.
#[derive(Clone, Copy, Debug)]
pub struct TooMany {
    wait: Duration,
    bucket: &'static str,
}

/// The rate limits of a node, as currently configured.
pub struct Limits {
    rates: ArcSwap<Rates>,
    clock: Clock,
    authorizations: AtomicU64,
}

struct Rates {
    enforce: bool,
    per_ip: Arc<Rate<(Class, Network)>>,
    per_client: Arc<Rate<ClientId>>,
    introspect: Arc<Rate<ClientId>>,
    refreshes: Arc<Rate<GrantId>>,
    /// Clients that are read from the database for requests beyond the budget of their address.
    lookups: Arc<Rate<Network>>,
}

impl Rates {
    fn new(config: &config::Limits, clock: &Clock) -> Self {
        Self {
            enforce: config.mode == Mode::Enforce,
            per_ip: Arc::new(Rate::per_minute(config.per_ip, clock)),
            per_client: Arc::new(Rate::per_minute(config.per_client, clock)),
            introspect: Arc::new(Rate::per_minute(config.introspect, clock)),
            refreshes: Arc::new(Rate::per_minute(REFRESHES_PER_MINUTE, clock)),
            lookups: Arc::new(Rate::per_minute(config.per_ip, clock)),
        }
    }

    /// Keeps the budgets of `old` where the rate is unchanged.
    fn keeping(self, old: &Self) -> Self {
        Self {
            enforce: self.enforce,
            per_ip: Rate::keep(self.per_ip, &old.per_ip),
            per_client: Rate::keep(self.per_client, &old.per_client),
            introspect: Rate::keep(self.introspect, &old.introspect),
            refreshes: Rate::keep(self.refreshes, &old.refreshes),
            lookups: Rate::keep(self.lookups, &old.lookups),
        }
    }
}

/// What a request was charged; stored with the request.
struct Spent {
    class: Class,
    source: Network,
    /// Remaining budget of its address, unless an authenticated client is charged although that budget is used up.
    address: Option<Budget>,
    /// The smallest remaining budget of its other buckets.
    others: Option<Budget>,
    /// The bucket that refused it.
    refused: Option<Budget>,
    /// Why it is refused unless its client authenticates.
    beyond: Option<TooMany>,
    /// Whether it was charged for reading its client from the database.
    lookup: bool,
}

impl Limits {
    /// Creates limits with full budgets.
    pub fn new(config: &config::Limits, clock: &Clock) -> Self {
        Self {
            rates: ArcSwap::from_pointee(Rates::new(config, clock)),
            clock: clock.clone(),
            authorizations: AtomicU64::new(0),
        }
    }

    /// Applies a changed configuration. The budgets of a changed rate are full again.
    pub fn replace(&self, config: &config::Limits) {
        let new = Rates::new(config, &self.clock).keeping(&self.rates.load());
        self.rates.store(Arc::new(new));
    }

    /// Returns whether the open authorizations are to be counted: with every hundredth one of this node.
    fn is_time_to_count(&self) -> bool {
        self.authorizations.fetch_add(1, Ordering::Relaxed) % 100 == 99
    }

    /// Charges a request to its address, whatever its result.
    pub(in crate::http) fn charge_address(&self, request: &HttpRequest) -> Result<(), TooMany> {
        let (class, source) = (
            Class::of(request.path()),
            source(ClientAddress::of(request)),
        );
        let (address, outcome) = self.rates.load().per_ip.charge(&(class, source));
        request.extensions_mut().insert(Spent {
            class,
            source,
            address: Some(address),
            others: None,
            refused: None,
            beyond: None,
            lookup: false,
        });
        let judged = self.judge(request, address, outcome, "ip");
        if let Err(beyond) = judged
            && authenticates_clients(request)
            && let Some(spent) = request.extensions_mut().get_mut::<Spent>()
        {
            (spent.refused, spent.beyond) = (None, Some(beyond));
            return Ok(());
        }
        judged
    }

    /// Charges a request to its authenticated client, and refunds the address.
    fn charge_client(&self, request: &HttpRequest, client: &ClientId) -> Result<(), TooMany> {
        self.give_back(request);
        let rates = self.rates.load();
        let (rate, bucket) = match class_of(request) {
            Some(Class::Introspect) => (&rates.introspect, "introspect"),
            _ => (&rates.per_client, "client"),
        };
        let (budget, outcome) = rate.charge(client);
        note(request, budget);
        self.judge(request, budget, outcome, bucket)
    }

    fn admit_refresh(&self, request: &HttpRequest, grant: &GrantId) -> Result<(), TooMany> {
        let (budget, outcome) = self.rates.load().refreshes.peek(grant);
        note(request, budget);
        self.judge(request, budget, outcome, "refresh")
    }

    fn charge_refresh(&self, request: &HttpRequest, grant: &GrantId) {
        let (budget, _) = self.rates.load().refreshes.charge(grant);
        note(request, budget);
    }

    fn give_back(&self, request: &HttpRequest) {
        let mut extensions = request.extensions_mut();
        let Some(spent) = extensions.get_mut::<Spent>() else {
            return;
        };
        let rates = self.rates.load();
        // A request beyond the budget was not charged.
        spent.address = match spent.beyond.take() {
            Some(_) => None,
            None => Some(rates.per_ip.refund(&(spent.class, spent.source))),
        };
        if std::mem::take(&mut spent.lookup) {
            rates.lookups.refund(&spent.source);
        }
    }

    fn admit_lookup(&self, request: &HttpRequest) -> Result<(), TooMany> {
        let mut extensions = request.extensions_mut();
        let Some(spent) = extensions.get_mut::<Spent>() else {
            return Ok(());
        };
        let Some(beyond) = spent.beyond else {
            return Ok(());
        };
        let (_, outcome) = self.rates.load().lookups.charge(&spent.source);
        spent.lookup = outcome.is_ok();
        outcome.map_err(|_| beyond)
    }

    fn judge(
        &self,
        request: &HttpRequest,
        budget: Budget,
        outcome: Result<(), Duration>,
        bucket: &'static str,
    ) -> Result<(), TooMany> {
        let Err(wait) = outcome else {
            return Ok(());
        };
        if self.rates.load().enforce {
            note_refusal(request, budget);
            return Err(TooMany { wait, bucket });
        }
        error::log(request, Detail::new("ratelimit.counted", bucket), None);
        Ok(())
    }
}

/// Returns whether the handler of a request authenticates its client before anything else.
fn authenticates_clients(request: &HttpRequest) -> bool {
    match *request.method() {
        Method::POST => matches!(
            request.path(),
            "/oauth2/token" | "/oauth2/introspect" | "/oauth2/revoke" | "/revocations/ack"
        ),
        Method::GET => matches!(request.path(), "/revocations" | "/revocations/stream"),
        _ => false,
    }
}

fn class_of(request: &HttpRequest) -> Option<Class> {
    request.extensions().get::<Spent>().map(|spent| spent.class)
}

/// Stores the smallest remaining budget.
fn note(request: &HttpRequest, budget: Budget) {
    if let Some(spent) = request.extensions_mut().get_mut::<Spent>() {
        let tightest = spent
            .others
            .filter(|known| known.remaining < budget.remaining);
        spent.others = Some(tightest.unwrap_or(budget));
    }
}

fn note_refusal(request: &HttpRequest, budget: Budget) {
    if let Some(spent) = request.extensions_mut().get_mut::<Spent>() {
        spent.refused = Some(budget);
    }
}

/// Returns why a request is refused although its client may still authenticate: its address has no budget left.
pub(in crate::http) fn beyond(request: &HttpRequest) -> Option<TooMany> {
    let extensions = request.extensions();
    extensions.get::<Spent>().and_then(|spent| spent.beyond)
}

/// Checks whether the client of a request may be read from the database. The number of such reads beyond the budget
/// of an address is limited.
///
/// # Errors
/// [`TooMany`].
pub(in crate::http) fn admit_lookup(request: &HttpRequest) -> Result<(), TooMany> {
    match request.app_data::<Data<Limits>>() {
        Some(limits) => limits.admit_lookup(request),
        None => Ok(()),
    }
}

/// Charges the request to a client that authenticated with a secret. A public client is charged to its address, because
/// any caller can use its `client_id`.
///
/// # Errors
/// [`TooMany`].
pub(in crate::http) fn charge_client(
    request: &HttpRequest,
    client: &ClientId,
) -> Result<(), TooMany> {
    match request.app_data::<Data<Limits>>() {
        Some(limits) => limits.charge_client(request, client),
        None => Ok(()),
    }
}

/// Refunds the address what this request was charged, because another bucket counts it.
pub(in crate::http) fn give_back(request: &HttpRequest) {
    if let Some(limits) = request.app_data::<Data<Limits>>() {
        limits.give_back(request);
    }
}

/// Checks whether a grant may be refreshed now; the caller has verified the MAC of the refresh token. Only successful
/// refreshes are charged, so that requests of other callers do not block the client.
///
/// # Errors
/// [`TooMany`].
pub(in crate::http) fn admit_refresh(
    request: &HttpRequest,
    grant: &GrantId,
) -> Result<(), TooMany> {
    match request.app_data::<Data<Limits>>() {
        Some(limits) => limits.admit_refresh(request, grant),
        None => Ok(()),
    }
}

/// Charges a successful refresh to its grant.
pub(in crate::http) fn charge_refresh(request: &HttpRequest, grant: &GrantId) {
    if let Some(limits) = request.app_data::<Data<Limits>>() {
        limits.charge_refresh(request, grant);
    }
}

/// Returns whether the open authorizations are to be counted after the one that this request starts.
pub(in crate::http) fn is_time_to_count(request: &HttpRequest) -> bool {
    request
        .app_data::<Data<Limits>>()
        .is_some_and(|limits| limits.is_time_to_count())
}

impl TooMany {
    /// Returns the error for an address whose clients fail to authenticate.
    pub(in crate::http) fn failures(request: &HttpRequest, wait: Duration) -> Self {
        let budget = Budget {
            limit: throttle::CLIENTS.free,
            remaining: 0,
            reset: wait,
        };
        note_refusal(request, budget);
        Self {
            wait,
            bucket: "client_auth",
        }
    }

    /// Logs the error, and responds with 429 as JSON.
    pub(in crate::http) fn json(self, request: &HttpRequest) -> HttpResponse {
        let detail = Detail::new("ratelimit.hit", self.bucket);
        if let Some(spent) = request.extensions_mut().get_mut::<Spent>()
            && spent.beyond.take().is_some()
        {
            spent.refused = spent.address;
        }
        error::refused(request, "temporarily_unavailable", detail, None);
        HttpResponse::TooManyRequests()
            .insert_header(("Retry-After", whole_seconds(self.wait).max(1)))
            .insert_header(("Cache-Control", "no-store"))
            .json(serde_json::json!({ "error": "temporarily_unavailable" }))
    }

    /// Logs the error, and responds with 429 as a page or as JSON, depending on the route.
    pub(in crate::http) fn respond(self, request: &HttpRequest, assets: &Assets) -> HttpResponse {
        if class_of(request).is_some_and(Class::is_page) {
            let detail = Detail::new("ratelimit.hit", self.bucket);
            let page = ErrorPage::TOO_MANY.with_detail(detail);
            let mut response = error::error_page(request, assets, page);
            error::retry_after(&mut response, self.wait);
            return response;
        }
        self.json(request)
    }
}

/// Sets the headers that describe the bucket that refused the request, or the one with the smallest remaining budget.
pub(in crate::http) fn describe(request: &HttpRequest, headers: &mut HeaderMap) {
    let extensions = request.extensions();
    let Some(spent) = extensions.get::<Spent>() else {
        return;
    };
    if spent.class.is_cached() && spent.refused.is_none() {
        return;
    }
    let charged = [spent.address, spent.others].into_iter().flatten();
    let smallest = charged.min_by_key(|budget| budget.remaining);
    let Some(budget) = spent.refused.or(smallest) else {
        return;
    };
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
