//! The decision: may this request pass, and who makes it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use actix_web::HttpRequest;
use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use portcullis_verifier::{Claims, Need, Rejected, Verifier, bearer};

use crate::answer::{Identity, Refusal};
use crate::asked::{Asked, Unasked};
use crate::path::Path;
use crate::route::{Method, Route, Routes};
use crate::writer;

/// All that requests are judged by.
pub struct Guard {
    routes: Routes,
    /// Of each route, what it asks of a token.
    needs: Vec<Need>,
    /// Not there before the issuer's keys are.
    verifier: OnceLock<Verifier>,
    answers: Answers,
    is_stopping: AtomicBool,
}

/// How often was answered what, by status and reason.
#[derive(Default)]
struct Answers(Mutex<BTreeMap<(u16, &'static str), u64>>);

impl Guard {
    /// Of these routes; it refuses until it is [ready](Self::begin).
    pub fn new(routes: Routes) -> Self {
        Self {
            needs: routes.iter().map(Route::need).collect(),
            routes,
            verifier: OnceLock::new(),
            answers: Answers::default(),
            is_stopping: AtomicBool::new(false),
        }
    }

    /// There are keys now.
    pub fn begin(&self, verifier: Verifier) {
        // Once; a second verifier would be one too many.
        let _ = self.verifier.set(verifier);
    }

    /// No new work, please.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Whether the issuer's keys are there, whether the first news of revocations is, and whether
    /// the guard goes on.
    pub fn readiness(&self) -> [(&'static str, bool); 3] {
        let verifier = self.verifier.get();
        let news = verifier.and_then(|verifier| verifier.metrics().feed_age);
        [
            ("keys", verifier.is_some()),
            ("feed", news.is_some()),
            ("running", !self.is_stopping.load(Ordering::Relaxed)),
        ]
    }

    /// The answer to a proxy, counted and logged.
    pub async fn judge(
        &self,
        request: &HttpRequest,
        asked: Result<Asked<'_>, Unasked>,
    ) -> Result<Identity, Refusal> {
        let verdict = self.verdict(request, asked).await;
        match &verdict {
            Ok(_) => self.answers.count(200, "passed"),
            Err(refusal) => {
                self.answers.count(refusal.status(), refusal.reason());
                log(refusal);
            }
        }
        verdict
    }

    async fn verdict(
        &self,
        request: &HttpRequest,
        asked: Result<Asked<'_>, Unasked>,
    ) -> Result<Identity, Refusal> {
        let asked = asked.map_err(Refusal::Asked)?;
        if !Method::is_plain(asked.method) {
            return Err(Refusal::Method);
        }
        let path = Path::parse(asked.target).map_err(Refusal::Path)?;
        let found = self.routes.find(asked.method, &path);
        let (at, route) = found.map_err(Refusal::Unlisted)?;
        let verifier = self.verifier.get().ok_or(Refusal::Starting)?;
        let claims = verified(verifier, request.headers(), &self.needs[at]).await;
        let identity = claims.and_then(Identity::of);
        identity.map_err(|rejected| Refusal::Token(rejected, route.audience.to_string()))
    }
}

/// The claims of the bearer token. One that is bound to a key is refused: it comes without the
/// proof (RFC 9449 §7.2).
async fn verified(
    verifier: &Verifier,
    headers: &HeaderMap,
    need: &Need,
) -> Result<Claims, Rejected> {
    let values = headers.get_all(AUTHORIZATION);
    let token = bearer(values.map(|value| value.to_str().ok()))?;
    let claims = verifier.verify_or_introspect(token, need).await?;
    match claims.cnf {
        None => Ok(claims),
        Some(_) => Err(Rejected::Claims("cnf")),
    }
}

fn log(refusal: &Refusal) {
    let (status, reason) = (refusal.status(), refusal.reason());
    if refusal.is_suspicious() {
        tracing::warn!(event = "guard.refused", status, reason, cause = ?refusal);
    } else {
        tracing::info!(event = "guard.refused", status, reason);
    }
}

impl Answers {
    fn count(&self, status: u16, reason: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((status, reason)).or_default() += 1;
    }
}

/// What Prometheus reads.
impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# TYPE portcullis_guard_build_info gauge")?;
        let version = env!("CARGO_PKG_VERSION");
        writeln!(f, r#"portcullis_guard_build_info{{version="{version}"}} 1"#)?;
        writeln!(f, "# TYPE portcullis_guard_ready gauge")?;
        let is_ready = self.readiness().iter().all(|(_, holds)| *holds);
        writeln!(f, "portcullis_guard_ready {}", u8::from(is_ready))?;
        writeln!(f, "# TYPE portcullis_guard_requests_total counter")?;
        let counts = self
            .answers
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for ((status, reason), count) in counts.iter() {
            let labels = format!(r#"status="{status}",reason="{reason}""#);
            writeln!(f, "portcullis_guard_requests_total{{{labels}}} {count}")?;
        }
        writeln!(f, "# TYPE portcullis_guard_log_lines_dropped_total counter")?;
        let dropped = writer::dropped();
        writeln!(f, "portcullis_guard_log_lines_dropped_total {dropped}")?;
        match self.verifier.get() {
            Some(verifier) => write!(f, "{}", verifier.metrics()),
            None => Ok(()),
        }
    }
}
