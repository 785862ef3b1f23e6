//! Load clients that record what the server has acknowledged: they get codes as alice, exchange them, refresh
//! and revoke. Every acknowledged write must be found again, whatever happens to the server.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::secret::sha256;
use reqwest::{RequestBuilder, Response};
use tokio::sync::Notify;

use crate::fixtures::browser::http;
use crate::fixtures::client::basic;
use crate::fixtures::site::Site;
use crate::fixtures::{Browser, TestClient, Tokens, VERIFIER};

/// The longest time that a client retries after 503.
const PATIENCE: Duration = Duration::from_secs(20);

/// The acknowledged writes of a server.
#[derive(Debug, Default)]
pub struct Promises {
    /// The hashes of redeemed codes, as the database stores them.
    pub codes: BTreeSet<String>,
    /// The latest generation of each grant whose token was issued.
    pub generations: BTreeMap<String, i64>,
    /// Grants whose revocation was acknowledged.
    pub ended: BTreeSet<String>,
    /// The last refresh token of one of those.
    pub dead: Option<String>,
    /// The last redeemed code.
    pub used: Option<String>,
    /// The duration of each request.
    pub took: Vec<Duration>,
    /// How often the server answered that it is temporarily unavailable and the client retried.
    pub refused: usize,
    /// Codes that were rejected, or whose refresh token was. Alice has at most twenty grants with one client,
    /// so a slow client may find that others got twenty in the meantime.
    pub surplus: BTreeSet<String>,
    /// Unexpected responses.
    pub failed: Vec<String>,
    /// Notified after each redeemed code, each acknowledged revocation and each 503.
    pub progress: Arc<Notify>,
}

/// Waits until the load has reached what `holds` looks for.
pub async fn reached(promises: &RefCell<Promises>, holds: impl Fn(&Promises) -> bool) {
    while !holds(&promises.borrow()) {
        // The load runs on this thread, so no request ends between the look and the wait.
        let progress = Arc::clone(&promises.borrow().progress);
        let waited = tokio::time::timeout(Duration::from_secs(30), progress.notified());
        assert!(waited.await.is_ok(), "the load stopped");
    }
}

/// Waits until the load has redeemed `more` further codes.
pub async fn redeemed(promises: &RefCell<Promises>, more: usize) {
    let wanted = promises.borrow().codes.len() + more;
    reached(promises, |promises| promises.codes.len() >= wanted).await;
}

impl Promises {
    /// Asserts that no acknowledged write is lost. `lines` runs a query that selects `line`.
    #[track_caller]
    pub fn are_kept(&self, mut lines: impl FnMut(&str) -> Vec<String>) {
        let used: BTreeSet<_> =
            lines("SELECT lower(hex(hash)) AS line FROM codes WHERE used_at IS NOT NULL")
                .into_iter()
                .collect();
        let lost: Vec<_> = self.codes.difference(&used).collect();
        assert!(lost.is_empty(), "redeemed, and unused again: {lost:?}");
        let ended: BTreeSet<_> = lines("SELECT id AS line FROM grants WHERE ended_at IS NOT NULL")
            .into_iter()
            .collect();
        let records: BTreeSet<_> = lines("SELECT value AS line FROM revocations WHERE kind = 'G'")
            .into_iter()
            .collect();
        for grant in &self.ended {
            assert!(ended.contains(grant), "revoked, and alive again: {grant}");
            assert!(
                records.contains(grant),
                "revoked, and not on the blocklist: {grant}"
            );
        }
        for code in &self.surplus {
            let why = lines(&format!(
                "SELECT reason AS line FROM revocations JOIN codes ON value = grant_id \
                 WHERE lower(hex(hash)) = '{code}'"
            ));
            // The first response may have been lost after the commit, and a code can be used only once.
            let known = why == ["too many grants"] || why == ["code replay"];
            assert!(known, "the code {code} or its grant was refused: {why:?}");
        }
        let stored: BTreeMap<String, i64> =
            lines("SELECT id || ' ' || generation AS line FROM grants")
                .iter()
                .map(|line| line.split_once(' ').unwrap())
                .map(|(id, generation)| (id.to_owned(), generation.parse().unwrap()))
                .collect();
        for (grant, generation) in &self.generations {
            let kept = stored.get(grant).copied().unwrap_or(-1);
            assert!(
                kept >= *generation,
                "{grant}: {kept} is stored, {generation} was given"
            );
        }
    }

    /// Returns the time in which this percentage of all requests was answered.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort();
        took[(took.len() * percent / 100).min(took.len() - 1)]
    }
}

/// Returns the generation in a refresh token.
fn generation(token: &str) -> i64 {
    let bytes = URL_SAFE_NO_PAD
        .decode(token.strip_prefix("pcl_rt_").unwrap())
        .unwrap();
    i64::from(u32::from_be_bytes(bytes[17..21].try_into().unwrap()))
}

/// A client that repeats the complete flow.
pub struct LoadClient<'p> {
    http: reqwest::Client,
    base: String,
    cookies: String,
    authorize: String,
    basic: String,
    promises: &'p RefCell<Promises>,
}

impl<'p> LoadClient<'p> {
    /// Returns a client with the session of a signed-in browser.
    pub fn new(
        site: &Site,
        base: &str,
        browser: &Browser,
        promises: &'p RefCell<Promises>,
    ) -> Self {
        let web: TestClient = site.web(base);
        let cookies = browser
            .cookies
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        Self {
            http: http(base),
            base: base.to_owned(),
            cookies: cookies.collect::<Vec<_>>().join("; "),
            authorize: web.request(&[]),
            basic: basic(&site.client_id, site.secret.expose()),
            promises,
        }
    }

    /// Repeats the flow until the server does not answer any more, or until `end`.
    pub async fn repeats(&self, end: Option<Instant>) {
        for turn in 0.. {
            if end.is_some_and(|end| Instant::now() >= end) || self.turn(turn).await.is_none() {
                break;
            }
        }
    }

    /// Repeats the flow until the server does not answer any more, or until `over` is set.
    pub async fn repeats_until(&self, over: &Cell<bool>) {
        for turn in 0.. {
            if over.get() || self.turn(turn).await.is_none() {
                break;
            }
        }
    }

    /// Runs the flow once; a rejection ends it early. Returns `None` once the server does not answer.
    async fn turn(&self, turn: usize) -> Option<()> {
        let authorize = self
            .http
            .get(format!("{}{}", self.base, self.authorize))
            .header("Cookie", &self.cookies);
        let Some(answer) = self.asks("authorize", 303, authorize).await? else {
            return Some(());
        };
        let location = answer.headers()["location"].to_str().unwrap();
        let url = url::Url::parse(location).expect("alice is signed in and has consented");
        let Some((_, code)) = url.query_pairs().find(|(name, _)| name == "code") else {
            let mut promises = self.promises.borrow_mut();
            if location.contains("error=temporarily_unavailable") {
                promises.refused += 1;
            } else {
                promises.failed.push(format!("authorize: {location}"));
            }
            return Some(());
        };
        let hash = hex(&sha256(code.as_bytes()));
        let redeem = [
            ("grant_type", "authorization_code"),
            ("code", &code),
            ("redirect_uri", "https://app.example/cb"),
            ("code_verifier", VERIFIER),
        ];
        let Some(answer) = self
            .asks("redeem", 200, self.posts("/oauth2/token", &redeem))
            .await?
        else {
            self.promises.borrow_mut().surplus.insert(hash);
            return Some(());
        };
        {
            let mut promises = self.promises.borrow_mut();
            promises.codes.insert(hash.clone());
            promises.progress.notify_waiters();
            promises.used = Some(code.into_owned());
        }
        let mut tokens = self.keeps(answer).await?;
        for _ in 0..turn % 3 {
            let refresh = [
                ("grant_type", "refresh_token"),
                ("refresh_token", tokens.refresh()),
            ];
            let refresh = self.posts("/oauth2/token", &refresh);
            let Some(answer) = self.asks("refresh", 200, refresh).await? else {
                self.promises.borrow_mut().surplus.insert(hash);
                return Some(());
            };
            tokens = self.keeps(answer).await?;
        }
        if turn.is_multiple_of(2) {
            let revoke = self.posts("/oauth2/revoke", &[("token", tokens.refresh())]);
            if self.asks("revoke", 200, revoke).await?.is_some() {
                let mut promises = self.promises.borrow_mut();
                promises.ended.insert(grant(&tokens));
                promises.dead = Some(tokens.refresh().to_owned());
                promises.progress.notify_waiters();
            }
        }
        Some(())
    }

    /// Records the tokens of a response.
    async fn keeps(&self, answer: Response) -> Option<Tokens> {
        let tokens = Tokens(answer.json().await.ok()?);
        let mut promises = self.promises.borrow_mut();
        promises
            .generations
            .insert(grant(&tokens), generation(tokens.refresh()));
        Some(tokens)
    }

    fn posts(&self, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
        self.http
            .post(format!("{}{path}", self.base))
            .header("Authorization", &self.basic)
            .form(fields)
    }

    /// Sends a request, again after each 503, and returns the response if it has the expected status. Returns
    /// `None` once the server does not answer.
    async fn asks(
        &self,
        what: &str,
        wanted: u16,
        request: RequestBuilder,
    ) -> Option<Option<Response>> {
        let request = request.header("Host", "op.example");
        let first = Instant::now();
        loop {
            let begun = Instant::now();
            let answer = request.try_clone().unwrap().send().await.ok()?;
            {
                let mut promises = self.promises.borrow_mut();
                promises.took.push(begun.elapsed());
                if answer.status().as_u16() == wanted {
                    return Some(Some(answer));
                }
                if answer.status().as_u16() != 503 {
                    match (what, answer.status().as_u16()) {
                        // The database contains the reason.
                        ("redeem" | "refresh", 400) => {}
                        (_, status) => promises.failed.push(format!("{what}: {status}")),
                    }
                    return Some(None);
                }
                promises.refused += 1;
                promises.progress.notify_waiters();
                let later = answer
                    .headers()
                    .get("retry-after")
                    .map(|text| text.to_str().unwrap());
                assert!(
                    matches!(later, Some("1" | "2")),
                    "{what}: Retry-After is {later:?}"
                );
                assert!(
                    first.elapsed() < PATIENCE,
                    "{what}: nothing but 503 for {PATIENCE:?}"
                );
            }
            // The pause of an impatient client, which is shorter than `Retry-After` demands.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn grant(tokens: &Tokens) -> String {
    tokens.access_claims()["grant_id"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asserts over HTTP that a used code stays used, and that a revoked token stays revoked.
pub async fn are_honoured(promises: &Promises, web: &TestClient) {
    let dead = promises.dead.as_deref().expect("something was revoked");
    let used = promises.used.as_deref().expect("something was redeemed");
    for answer in [web.refreshes(dead, &[]).await, web.redeems(used).await] {
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (400, &"invalid_grant".into())
        );
    }
}

/// Creates a site whose alice has signed in and consented, and returns her browser as well.
pub async fn signed_in(site: &Site, base: &str) -> Browser {
    let mut alice = Browser::new(base);
    alice.signs_in(&site.web(base), "alice").await;
    alice
}

/// Tests that [`Promises::are_kept`] reports each kind of loss.
#[cfg(test)]
mod tests {
    use super::*;

    fn promises() -> Promises {
        Promises {
            codes: ["c1".to_owned()].into(),
            ended: ["g1".to_owned()].into(),
            generations: [("g1".to_owned(), 2)].into(),
            surplus: ["c2".to_owned()].into(),
            ..Promises::default()
        }
    }

    fn stored(lost: &str, query: &str) -> Vec<String> {
        let (what, line) = match query {
            query if query.contains("JOIN codes") => ("reason", "too many grants"),
            query if query.contains("FROM codes") => ("code", "c1"),
            query if query.contains("FROM revocations") => ("record", "g1"),
            query if query.contains("ended_at") => ("end", "g1"),
            _ if lost == "generation" => return vec!["g1 1".to_owned()],
            _ => ("generations", "g1 2"),
        };
        if what == lost {
            Vec::new()
        } else {
            vec![line.to_owned()]
        }
    }

    #[test]
    fn load_check_passes_when_nothing_is_lost() {
        promises().are_kept(|query| stored("", query));
    }

    #[test]
    fn load_check_reports_lost_writes() {
        for lost in ["code", "record", "end", "reason", "generation"] {
            let found =
                std::panic::catch_unwind(|| promises().are_kept(|query| stored(lost, query)));
            assert!(found.is_err(), "{lost}");
        }
    }
}
