//! Introspection of tokens (RFC 7662), for use while the revocation data is too old.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::Clock;
use crate::fetch::{FetchError, read_body};
use crate::follower::Credentials;
use crate::metrics::Counters;

const TIMEOUT: Duration = Duration::from_secs(2);
/// How long a response is reused, in microseconds since the request was started.
const CACHE_TTL_US: u64 = 1_000_000;
const MAX_CACHED_ANSWERS: usize = 4096;
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Introspects each token at most once a second, however many requests use it.
pub(crate) struct Introspector {
    http: Client,
    url: String,
    credentials: Credentials,
    clock: Clock,
    counters: Arc<Counters>,
    /// Answers by the SHA-256 of the token.
    cache: Mutex<HashMap<[u8; 32], CachedAnswer>>,
}

/// The answer for one token, which is set when the response arrives.
#[derive(Clone)]
struct CachedAnswer {
    requested_at_us: u64,
    is_active: Arc<OnceCell<bool>>,
}

#[derive(Deserialize)]
struct IntrospectionResponse {
    active: bool,
}

impl Introspector {
    pub(crate) fn new(
        http: Client,
        url: String,
        credentials: Credentials,
        clock: Clock,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            http,
            url,
            credentials,
            clock,
            counters,
            cache: Mutex::default(),
        }
    }

    /// Returns whether the issuer reports the token as active.
    ///
    /// # Errors
    ///
    /// [`FetchError`] if the status could not be determined. Errors are not cached, so the next
    /// call sends another request.
    pub(crate) async fn is_active(&self, token: &str) -> Result<bool, FetchError> {
        let answer = self.cached_answer(token);
        let is_active = answer.is_active.get_or_try_init(|| self.introspect(token));
        is_active.await.copied()
    }

    /// Returns the cached answer for a token, or a new one that is not set yet.
    fn cached_answer(&self, token: &str) -> CachedAnswer {
        let now = self.clock.boot_us();
        let is_fresh =
            |answer: &CachedAnswer| now.saturating_sub(answer.requested_at_us) <= CACHE_TTL_US;
        let hash = sha256(token);
        // Poisoning is ignored: no code panics while it holds the lock.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = cache.get(&hash).filter(|answer| is_fresh(answer)) {
            return answer.clone();
        }
        if cache.len() >= MAX_CACHED_ANSWERS {
            cache.retain(|_, answer| is_fresh(answer));
        }
        let answer = CachedAnswer {
            requested_at_us: now,
            is_active: Arc::default(),
        };
        // If the cache is full, the answer is not shared with other requests.
        if cache.len() < MAX_CACHED_ANSWERS {
            cache.insert(hash, answer.clone());
        }
        answer
    }

    async fn introspect(&self, token: &str) -> Result<bool, FetchError> {
        self.counters.introspected();
        let form = [("token", token), ("token_type_hint", "access_token")];
        let request = self.http.post(&self.url);
        let request = self.credentials.authenticate(request).form(&form);
        let body = timeout(TIMEOUT, async {
            let response = request.send().await?;
            match response.status() {
                StatusCode::OK => read_body(response, MAX_RESPONSE_BYTES).await,
                other => Err(FetchError::Status(other.as_u16())),
            }
        });
        let body = body
            .await
            .map_err(|elapsed| FetchError::Unreachable(elapsed.into()))??;
        Ok(serde_json::from_slice::<IntrospectionResponse>(&body)?.active)
    }
}

fn sha256(token: &str) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    let mut hash = [0; 32];
    // SHA-256 has 32 bytes, so every byte of `hash` is set.
    for (byte, hashed) in hash.iter_mut().zip(digest.as_ref()) {
        *byte = *hashed;
    }
    hash
}
