//! Decides whether a request may pass, and identifies its caller.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use actix_web::HttpRequest;
use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use portcullis_verifier::{Claims, Need, Rejected, Verifier, bearer};

use crate::answer::{Identity, Refusal};
use crate::asked::{Asked, RequestError};
use crate::path::Path;
use crate::route::{Method, Route, Routes};

/// Number of log lines that were dropped because the queue was full.
pub static DROPPED_LINES: AtomicU64 = AtomicU64::new(0);

/// The routes, the verifier and the counters of this process.
pub struct Guard {
    routes: Routes,
    /// What each route requires of a token, in the order of `routes`.
    needs: Vec<Need>,
    /// Unset until the issuer's keys have been fetched.
    verifier: OnceLock<Verifier>,
    responses: ResponseCounts,
    is_stopping: AtomicBool,
}

/// Number of responses by status and reason.
#[derive(Default)]
struct ResponseCounts(Mutex<BTreeMap<(u16, &'static str), u64>>);

impl Guard {
    /// Creates a guard that refuses every request until it has a
    /// [verifier](Self::set_verifier).
    pub fn new(routes: Routes) -> Self {
        Self {
            needs: routes.iter().map(Route::need).collect(),
            routes,
            verifier: OnceLock::new(),
            responses: ResponseCounts::default(),
            is_stopping: AtomicBool::new(false),
        }
    }

    /// Sets the verifier once the issuer's keys have been fetched.
    pub fn set_verifier(&self, verifier: Verifier) {
        // Called only once. A second verifier would be ignored.
        let _ = self.verifier.set(verifier);
    }

    /// Reports the guard as not ready from now on, so that it receives no new requests.
    pub fn begin_shutdown(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Returns the readiness checks by name: the issuer's keys have been fetched (`keys`), the
    /// first revocation data has been received (`feed`), and the guard is not shutting down
    /// (`running`).
    pub fn readiness(&self) -> [(&'static str, bool); 3] {
        let verifier = self.verifier.get();
        let feed_age = verifier.and_then(|verifier| verifier.metrics().feed_age);
        [
            ("keys", verifier.is_some()),
            ("feed", feed_age.is_some()),
            ("running", !self.is_stopping.load(Ordering::Relaxed)),
        ]
    }

    /// Decides whether a request may pass, counts the response and logs a refusal.
    pub async fn judge(
        &self,
        request: &HttpRequest,
        asked: Result<Asked<'_>, RequestError>,
    ) -> Result<Identity, Refusal> {
        let decision = self.decide(request, asked).await;
        match &decision {
            Ok(_) => self.responses.count(200, "passed"),
            Err(refusal) => {
                self.responses.count(refusal.status(), refusal.reason());
                log(refusal, &self.compare(refusal, request.headers()));
            }
        }
        decision
    }

    /// Returns what the token contains and what the route needs, if these differ. The values come
    /// from a token that is valid otherwise, so its client can be named.
    fn compare(&self, refusal: &Refusal, headers: &HeaderMap) -> Comparison {
        let Refusal::Token(rejected, audience) = refusal else {
            return Comparison::default();
        };
        let needed = match rejected {
            Rejected::Audience => audience.clone(),
            Rejected::Scope { needed } => needed.clone(),
            Rejected::StepUp {
                acr_values,
                max_age,
            } => authentication(acr_values, ("max_age", *max_age)),
            _ => return Comparison::default(),
        };
        let token = bearer_token(headers).ok();
        let claims = token
            .zip(self.verifier.get())
            .and_then(|(token, verifier)| verifier.verify(token, &Need::any()).ok());
        let Some(claims) = claims else {
            return Comparison::default();
        };
        Comparison {
            received: match rejected {
                Rejected::Audience => claims.aud,
                Rejected::Scope { .. } => claims.scope,
                _ => authentication(
                    claims.acr.as_deref().unwrap_or_default(),
                    ("auth_time", claims.auth_time),
                ),
            },
            client: claims.client_id,
            needed,
        }
    }

    async fn decide(
        &self,
        request: &HttpRequest,
        asked: Result<Asked<'_>, RequestError>,
    ) -> Result<Identity, Refusal> {
        let asked = asked.map_err(Refusal::Request)?;
        if !Method::is_valid(asked.method) {
            return Err(Refusal::Method);
        }
        let path = Path::parse(asked.target).map_err(Refusal::Path)?;
        let found = self.routes.find(asked.method, &path);
        let (index, route) = found.map_err(Refusal::Route)?;
        let verifier = self.verifier.get().ok_or(Refusal::Starting)?;
        let claims = verify_bearer(verifier, request.headers(), &self.needs[index]).await;
        let identity = claims.and_then(Identity::from_claims);
        identity.map_err(|rejected| Refusal::Token(rejected, route.audience.to_string()))
    }
}

/// Verifies the bearer token of a request and returns its claims.
///
/// A token that is bound to a key is rejected, because a bearer token comes without proof of
/// possession (RFC 9449 §7.2).
async fn verify_bearer(
    verifier: &Verifier,
    headers: &HeaderMap,
    need: &Need,
) -> Result<Claims, Rejected> {
    let token = bearer_token(headers)?;
    let claims = verifier.verify_or_introspect(token, need).await?;
    match claims.cnf {
        None => Ok(claims),
        Some(_) => Err(Rejected::Claims("cnf")),
    }
}

/// Returns the bearer token of a request.
fn bearer_token(headers: &HeaderMap) -> Result<&str, Rejected> {
    let values = headers.get_all(AUTHORIZATION);
    bearer(values.map(|value| value.to_str().ok()))
}

/// What the token of a refused request contains, and what the route needs, for the log. The texts
/// are empty if the refusal has another cause.
#[derive(Debug, Default)]
struct Comparison {
    client: String,
    received: String,
    needed: String,
}

/// Formats the class and the time of an authentication, as far as they are known.
fn authentication(acr: &str, (name, seconds): (&str, Option<u64>)) -> String {
    let acr = (!acr.is_empty()).then(|| format!("acr={acr}"));
    let seconds = seconds.map(|seconds| format!("{name}={seconds}"));
    let texts: Vec<String> = acr.into_iter().chain(seconds).collect();
    texts.join(" ")
}

fn log(refusal: &Refusal, comparison: &Comparison) {
    let (status, reason) = (refusal.status(), refusal.reason());
    if refusal.is_suspicious() {
        tracing::warn!(event = "guard.refused", status, reason, cause = ?refusal);
        return;
    }
    let Comparison {
        client: client_id,
        received,
        needed,
    } = comparison;
    tracing::info!(
        event = "guard.refused",
        status,
        reason,
        client_id,
        received,
        needed
    );
}

impl ResponseCounts {
    fn count(&self, status: u16, reason: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((status, reason)).or_default() += 1;
    }
}

/// Formats the metrics for Prometheus.
impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# TYPE portcullis_guard_build_info gauge")?;
        let version = env!("CARGO_PKG_VERSION");
        writeln!(f, r#"portcullis_guard_build_info{{version="{version}"}} 1"#)?;
        writeln!(f, "# TYPE portcullis_guard_ready gauge")?;
        let is_ready = self.readiness().iter().all(|(_, passed)| *passed);
        writeln!(f, "portcullis_guard_ready {}", u8::from(is_ready))?;
        writeln!(f, "# TYPE portcullis_guard_requests_total counter")?;
        let counts = self
            .responses
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for ((status, reason), count) in counts.iter() {
            let labels = format!(r#"status="{status}",reason="{reason}""#);
            writeln!(f, "portcullis_guard_requests_total{{{labels}}} {count}")?;
        }
        writeln!(f, "# TYPE portcullis_guard_log_lines_dropped_total counter")?;
        let dropped = DROPPED_LINES.load(Ordering::Relaxed);
        writeln!(f, "portcullis_guard_log_lines_dropped_total {dropped}")?;
        match self.verifier.get() {
            Some(verifier) => write!(f, "{}", verifier.metrics()),
            None => Ok(()),
        }
    }
}
