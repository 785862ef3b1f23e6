//! The issuer of these tests, in real time: a heartbeat ten times a second until it falls silent.
//! What it does, a server and `portcullis revoke` do as well; no test looks behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use portcullis_verifier::Claims;
use tokio::net::TcpListener;
use tokio::time::interval;

use crate::feed_issuer::{CLIENT, FeedIssuer, SECRET, session, token_key};

pub struct Issuer {
    feed: Arc<FeedIssuer>,
    is_silent: Arc<AtomicBool>,
}

impl Issuer {
    pub async fn start() -> Self {
        Self::at("127.0.0.1:0").await
    }

    /// At an address that is known already.
    pub async fn at(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let feed = Arc::new(FeedIssuer::at(listener));
        feed.clock.set_wall_secs(now());
        let is_silent = Arc::new(AtomicBool::new(false));
        tokio::spawn(beat(feed.clone(), is_silent.clone()));
        Self { feed, is_silent }
    }

    pub fn url(&self) -> &str {
        &self.feed.url
    }

    /// Settings of a guard that may read the feed.
    pub fn settings(&self) -> String {
        settings_for(self.url())
    }

    /// A good token of session `number` with the scopes `orders:read orders:write`.
    pub fn token(&self, number: usize) -> String {
        self.token_of(number, |_| {})
    }

    /// A token that differs from a good one.
    pub fn token_of(&self, number: usize, change: impl FnOnce(&mut Claims)) -> String {
        let mut claims = Claims {
            iat: now(),
            exp: now() + 300,
            ..self.feed.claims(number)
        };
        change(&mut claims);
        token_key().token(&claims)
    }

    /// Revokes a session, and tells all who follow.
    pub fn revoke(&self, number: usize) {
        let after = self.feed.last();
        self.feed.revoke(&[session(number)]);
        self.feed.send(&self.feed.frame(after));
    }

    /// No more news: streams are open and nothing comes.
    pub fn fall_silent(&self) {
        self.is_silent.store(true, Ordering::Relaxed);
    }

    /// News again.
    pub fn speak(&self) {
        self.is_silent.store(false, Ordering::Relaxed);
    }

    /// The feed answers with this status from now on, and open streams end.
    pub fn feed_answers(&self, status: u16) {
        self.feed.change(|state| state.status = status);
        self.feed.hang_up();
    }

    /// What introspection says of every token; `None`: nothing at all.
    pub fn introspects(&self, active: Option<bool>) {
        self.feed.change(|state| state.active = active);
    }

    /// Introspection is at another address.
    pub fn introspects_at(&self, url: String) {
        self.feed.change(|state| state.introspection_at = Some(url));
    }

    pub fn introspections(&self) -> usize {
        self.feed.times_asked("POST /introspect")
    }
}

/// Settings of a guard of the issuer at `url`, without its address and its routes.
pub fn settings_for(url: &str) -> String {
    format!(
        "issuer = '{url}'\nsubscriber.client_id = '{CLIENT}'\nsubscriber.client_secret = '{SECRET}'\n\
         subscriber.instance = 'guard-1'\n"
    )
}

async fn beat(feed: Arc<FeedIssuer>, is_silent: Arc<AtomicBool>) {
    let mut beats = interval(Duration::from_millis(100));
    let mut before = Instant::now();
    loop {
        beats.tick().await;
        let passed = before.elapsed();
        before += passed;
        feed.clock.advance(passed);
        if !is_silent.load(Ordering::Relaxed) {
            feed.send(&feed.heartbeat());
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the guard reads the system's clock as well"
)]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs()
}
