//! An issuer for tests, in real time. It sends a heartbeat every 100 ms until it is paused.
//!
//! Its interface covers only what a server and `portcullis revoke` can do as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use portcullis_verifier::Claims;
use tokio::net::TcpListener;
use tokio::time::interval;

use crate::feed_issuer::{CLIENT, FeedIssuer, SECRET, session, token_key};

pub struct Issuer {
    feed: Arc<FeedIssuer>,
    is_paused: Arc<AtomicBool>,
}

impl Issuer {
    pub async fn start() -> Self {
        Self::at("127.0.0.1:0").await
    }

    /// Starts an issuer at the given address.
    pub async fn at(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let feed = Arc::new(FeedIssuer::at(listener));
        feed.clock.set_wall_secs(now());
        let is_paused = Arc::new(AtomicBool::new(false));
        tokio::spawn(send_heartbeats(feed.clone(), is_paused.clone()));
        Self { feed, is_paused }
    }

    pub fn url(&self) -> &str {
        &self.feed.url
    }

    /// Returns the settings of a guard that may read the feed.
    pub fn settings(&self) -> String {
        settings_for(self.url())
    }

    /// Returns a valid token of session `number` with the scopes `orders:read orders:write`.
    pub fn token(&self, number: usize) -> String {
        self.token_with(number, |_| {})
    }

    /// Returns a token whose claims are modified by `change`.
    pub fn token_with(&self, number: usize, change: impl FnOnce(&mut Claims)) -> String {
        let mut claims = Claims {
            iat: now(),
            exp: now() + 300,
            ..self.feed.claims(number)
        };
        change(&mut claims);
        token_key().token(&claims)
    }

    /// Revokes a session and sends the record to all followers of the feed.
    pub fn revoke(&self, number: usize) {
        let after = self.feed.last();
        self.feed.revoke(&[session(number)]);
        self.feed.send(&self.feed.frame(after));
    }

    /// Stops the heartbeats; streams stay open.
    pub fn pause_heartbeats(&self) {
        self.is_paused.store(true, Ordering::Relaxed);
    }

    /// Resumes the heartbeats.
    pub fn resume_heartbeats(&self) {
        self.is_paused.store(false, Ordering::Relaxed);
    }

    /// Sets the status of the feed's responses and closes open streams.
    pub fn set_feed_status(&self, status: u16) {
        self.feed.change(|state| state.status = status);
        self.feed.hang_up();
    }

    /// Sets the `active` of introspection for every token. With `None`, introspection is
    /// unavailable.
    pub fn set_introspection(&self, active: Option<bool>) {
        self.feed.change(|state| state.active = active);
    }

    /// Sets the URL of the introspection endpoint in the metadata.
    pub fn set_introspection_url(&self, url: String) {
        self.feed.change(|state| state.introspection_at = Some(url));
    }

    pub fn introspections(&self) -> usize {
        self.feed.times_asked("POST /introspect")
    }
}

/// Returns the settings of a guard for the issuer at `url`, without `listen` and routes.
pub fn settings_for(url: &str) -> String {
    format!(
        "issuer = '{url}'\nsubscriber.client_id = '{CLIENT}'\nsubscriber.client_secret = '{SECRET}'\n\
         subscriber.instance = 'guard-1'\n"
    )
}

async fn send_heartbeats(feed: Arc<FeedIssuer>, is_paused: Arc<AtomicBool>) {
    let mut beats = interval(Duration::from_millis(100));
    let mut last = Instant::now();
    loop {
        beats.tick().await;
        let elapsed = last.elapsed();
        last += elapsed;
        feed.clock.advance(elapsed);
        if !is_paused.load(Ordering::Relaxed) {
            feed.send(&feed.heartbeat());
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the guard reads the system clock as well"
)]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs()
}
