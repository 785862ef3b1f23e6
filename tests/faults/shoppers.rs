//! Load that remembers what it was promised: alice gets codes, redeems them, refreshes and revokes, and
//! whatever was answered with success must be found again, whatever happens to the server.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::secret::sha256;
use reqwest::{RequestBuilder, Response};

use crate::cast::browser::http;
use crate::cast::client::basic;
use crate::cast::site::Site;
use crate::cast::{Browser, Party, Tokens, VERIFIER};

/// What a server has answered with success.
#[derive(Debug, Default)]
pub struct Promises {
    /// Redeemed codes, as the database knows them.
    pub codes: BTreeSet<String>,
    /// The last generation of each grant whose token was given.
    pub generations: BTreeMap<String, i64>,
    /// Grants whose revocation was confirmed.
    pub ended: BTreeSet<String>,
    /// The last refresh token of one of those.
    pub dead: Option<String>,
    /// The last redeemed code.
    pub used: Option<String>,
    /// How long each request took.
    pub took: Vec<Duration>,
    /// Answers that were not a success.
    pub failed: Vec<String>,
}

impl Promises {
    /// Compares with what is stored, and says what is lost. `lines` runs a query that selects `line`.
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

    /// The time in which so many percent of all requests were answered.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort();
        took[(took.len() * percent / 100).min(took.len() - 1)]
    }
}

/// The generation in a refresh token.
fn generation(token: &str) -> i64 {
    let bytes = URL_SAFE_NO_PAD
        .decode(token.strip_prefix("pcl_rt_").unwrap())
        .unwrap();
    i64::from(u32::from_be_bytes(bytes[17..21].try_into().unwrap()))
}

/// One who goes through everything again and again.
pub struct Shopper<'p> {
    http: reqwest::Client,
    base: String,
    cookies: String,
    authorize: String,
    basic: String,
    promises: &'p RefCell<Promises>,
}

impl<'p> Shopper<'p> {
    /// With the session of a browser that is signed in.
    pub fn new(
        site: &Site,
        base: &str,
        browser: &Browser,
        promises: &'p RefCell<Promises>,
    ) -> Self {
        let web: Party = site.web(base);
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

    /// Shops until the server does not answer any more, or until `end`.
    pub async fn shops(&self, end: Option<Instant>) {
        for turn in 0.. {
            if end.is_some_and(|end| Instant::now() >= end) || self.turn(turn).await.is_none() {
                break;
            }
        }
    }

    /// `None` once the server is gone. A refusal ends the turn.
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
            self.promises
                .borrow_mut()
                .failed
                .push(format!("authorize: {location}"));
            return Some(());
        };
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
            return Some(());
        };
        {
            let mut promises = self.promises.borrow_mut();
            promises.codes.insert(hex(&sha256(code.as_bytes())));
            promises.used = Some(code.into_owned());
        }
        let mut tokens = self.keeps(answer).await?;
        for _ in 0..turn % 3 {
            let refresh = [
                ("grant_type", "refresh_token"),
                ("refresh_token", tokens.refresh()),
            ];
            let Some(answer) = self
                .asks("refresh", 200, self.posts("/oauth2/token", &refresh))
                .await?
            else {
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
            }
        }
        Some(())
    }

    /// Tokens that have arrived.
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

    /// The answer, if it is the one that is wanted; `None` once the server is gone.
    async fn asks(
        &self,
        what: &str,
        wanted: u16,
        request: RequestBuilder,
    ) -> Option<Option<Response>> {
        let begun = Instant::now();
        let answer = request.header("Host", "op.example").send().await.ok()?;
        let mut promises = self.promises.borrow_mut();
        promises.took.push(begun.elapsed());
        if answer.status().as_u16() == wanted {
            return Some(Some(answer));
        }
        promises.failed.push(format!("{what}: {}", answer.status()));
        Some(None)
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

/// Through the front door: what was used up stays so, and what was revoked stays dead.
pub async fn are_honoured(promises: &Promises, web: &Party) {
    let dead = promises.dead.as_deref().expect("something was revoked");
    let used = promises.used.as_deref().expect("something was redeemed");
    for answer in [web.refreshes(dead, &[]).await, web.redeems(used).await] {
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (400, &"invalid_grant".into())
        );
    }
}

/// A site whose alice has signed in and consented, and her browser.
pub async fn signed_in(site: &Site, base: &str) -> Browser {
    let mut alice = Browser::new(base);
    alice.signs_in(&site.web(base), "alice").await;
    alice
}
