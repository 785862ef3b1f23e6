//! Rates (policy §5): a sliding window by GCRA, per address and route class, and per client once it has
//! proven who it is. Counted in this node's memory, which is bounded.

mod class;
mod rate;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::web::Data;
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use arc_swap::ArcSwap;

use crate::config::limits::REFRESHES_PER_MINUTE;
use crate::config::{self, Mode, Network};
use crate::http::error;
use crate::http::server::client_address::ClientAddress;
use crate::id::{ClientId, GrantId};
use crate::oauth::Detail;
use crate::time::Clock;
pub use class::Class;
use rate::{Budget, Rate};

/// Whose budget an address spends: an IPv4 address its own, an IPv6 address that of its /64.
pub(in crate::http) fn source(address: IpAddr) -> Network {
    Network::around(address, 32, 64)
}

/// A request that comes too early, and how long it should have waited.
#[derive(Clone, Copy, Debug)]
pub struct TooMany {
    wait: Duration,
    bucket: &'static str,
}

/// All rates of a node, as the configuration says now.
pub struct Limits {
    rates: ArcSwap<Rates>,
    clock: Clock,
    begun: AtomicU64,
}

struct Rates {
    enforce: bool,
    per_ip: Arc<Rate<(Class, Network)>>,
    per_client: Arc<Rate<ClientId>>,
    introspect: Arc<Rate<ClientId>>,
    refreshes: Arc<Rate<GrantId>>,
}

impl Rates {
    fn new(config: &config::Limits, clock: &Clock) -> Self {
        Self {
            enforce: config.mode == Mode::Enforce,
            per_ip: Arc::new(Rate::per_minute(config.per_ip, clock)),
            per_client: Arc::new(Rate::per_minute(config.per_client, clock)),
            introspect: Arc::new(Rate::per_minute(config.introspect, clock)),
            refreshes: Arc::new(Rate::per_minute(REFRESHES_PER_MINUTE, clock)),
        }
    }

    /// The budgets of another one go on where the rate is the same.
    fn keeping(self, old: &Self) -> Self {
        Self {
            enforce: self.enforce,
            per_ip: Rate::kept(self.per_ip, &old.per_ip),
            per_client: Rate::kept(self.per_client, &old.per_client),
            introspect: Rate::kept(self.introspect, &old.introspect),
            refreshes: Rate::kept(self.refreshes, &old.refreshes),
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

    /// Takes other rates from now on; the budgets of a rate that changed are full again.
    pub fn replace(&self, config: &config::Limits) {
        let new = Rates::new(config, &self.clock).keeping(&self.rates.load());
        self.rates.store(Arc::new(new));
    }

    /// Whether it is time to look at how many authorizations are on their way: with each hundredth that
    /// begins here.
    fn is_time_to_count(&self) -> bool {
        self.begun.fetch_add(1, Ordering::Relaxed) % 100 == 99
    }

    /// Charges a request to its address. Every request for a limited route is, whatever comes of it.
    pub(in crate::http) fn charge_address(&self, request: &HttpRequest) -> Result<(), TooMany> {
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
pub(in crate::http) fn charge_client(
    request: &HttpRequest,
    client: &ClientId,
) -> Result<(), TooMany> {
    match request.app_data::<Data<Limits>>() {
        Some(limits) => limits.charge_client(request, client),
        None => Ok(()),
    }
}

/// Gives the address back what this request was charged: somebody else answers for it.
pub(in crate::http) fn give_back(request: &HttpRequest) {
    if let Some(limits) = request.app_data::<Data<Limits>>() {
        limits.give_back(request);
    }
}

/// Whether a grant may be refreshed now; the MAC of the token that was presented was checked. Only a
/// refresh that happens is charged, so that nobody else's tries stand in the client's way.
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

/// Charges a refresh that happened to its grant.
pub(in crate::http) fn charge_refresh(request: &HttpRequest, grant: &GrantId) {
    if let Some(limits) = request.app_data::<Data<Limits>>() {
        limits.charge_refresh(request, grant);
    }
}

/// Whether the authorization that this request begins is one after which they are counted.
pub(in crate::http) fn is_time_to_count(request: &HttpRequest) -> bool {
    request
        .app_data::<Data<Limits>>()
        .is_some_and(|limits| limits.is_time_to_count())
}

impl TooMany {
    /// Of an address whose clients fail to authenticate.
    pub(in crate::http) const fn failures(wait: Duration) -> Self {
        Self {
            wait,
            bucket: "client_auth",
        }
    }

    /// 429 for programs; logged.
    pub(in crate::http) fn json(self, request: &HttpRequest) -> HttpResponse {
        let detail = Detail::new("ratelimit.hit", self.bucket);
        error::refused(request, "temporarily_unavailable", detail, None);
        HttpResponse::TooManyRequests()
            .insert_header(("Retry-After", whole_seconds(self.wait).max(1)))
            .insert_header(("Cache-Control", "no-store"))
            .json(serde_json::json!({ "error": "temporarily_unavailable" }))
    }

    /// 429 in the form that the route's callers read.
    pub(in crate::http) fn respond(
        self,
        request: &HttpRequest,
        app: &crate::app::App,
        assets: &crate::http::assets::Assets,
    ) -> HttpResponse {
        if class_of(request).is_some_and(Class::is_page) {
            let notice =
                error::ErrorPage::TOO_MANY.because(Detail::new("ratelimit.hit", self.bucket));
            let mut response = error::error_page(request, app, assets, notice);
            error::retry_after(&mut response, self.wait);
            return response;
        }
        self.json(request)
    }
}

/// Rounded up.
pub(in crate::http) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// Tells on the answer how much is left in the bucket with the least left.
pub(in crate::http) fn describe(request: &HttpRequest, headers: &mut HeaderMap) {
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
