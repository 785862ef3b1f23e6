//! RFC 7662: asks the issuer whether a token stands, where the feed is too old to tell.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::Clock;
use crate::fetch::{FetchError, body};
use crate::follow::Credentials;
use crate::metrics::Counters;

const TIMEOUT: Duration = Duration::from_secs(2);
/// An answer counts for no longer, from the moment that the question was put.
const FRESH_US: u64 = 1_000_000;
const MAX_ANSWERS: usize = 4096;
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Puts the question once a second per token, however many ask.
pub(crate) struct Introspector {
    http: Client,
    url: String,
    credentials: Credentials,
    clock: Clock,
    counters: Arc<Counters>,
    answers: Mutex<HashMap<[u8; 32], Question>>,
}

/// One token's question, and the answer as soon as it is there.
#[derive(Clone)]
struct Question {
    put_at_us: u64,
    is_active: Arc<OnceCell<bool>>,
}

#[derive(Deserialize)]
struct Answer {
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
            answers: Mutex::default(),
        }
    }

    /// Whether the token is active now.
    ///
    /// # Errors
    ///
    /// [`FetchError`]: nobody knows. Who asks next asks anew.
    pub(crate) async fn is_active(&self, token: &str) -> Result<bool, FetchError> {
        let question = self.question(token);
        let answer = question.is_active.get_or_try_init(|| self.ask(token));
        answer.await.copied()
    }

    fn question(&self, token: &str) -> Question {
        let now = self.clock.boot_us();
        let is_fresh = |question: &Question| now.saturating_sub(question.put_at_us) <= FRESH_US;
        let hash = hash(token);
        // Nothing panics while it holds the lock.
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(question) = answers.get(&hash).filter(|question| is_fresh(question)) {
            return question.clone();
        }
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, question| is_fresh(question));
        }
        let question = Question {
            put_at_us: now,
            is_active: Arc::default(),
        };
        // Beyond the bound each asks for himself.
        if answers.len() < MAX_ANSWERS {
            answers.insert(hash, question.clone());
        }
        question
    }

    async fn ask(&self, token: &str) -> Result<bool, FetchError> {
        self.counters.introspected();
        let form = [("token", token), ("token_type_hint", "access_token")];
        let request = self.credentials.on(self.http.post(&self.url)).form(&form);
        let answer = timeout(TIMEOUT, async {
            let answer = request.send().await?;
            match answer.status() {
                StatusCode::OK => body(answer, MAX_ANSWER_BYTES).await,
                other => Err(FetchError::Status(other.as_u16())),
            }
        });
        let answer = answer
            .await
            .map_err(|late| FetchError::Unreachable(late.into()))??;
        Ok(serde_json::from_slice::<Answer>(&answer)?.active)
    }
}

fn hash(token: &str) -> [u8; 32] {
    let hashed = digest::digest(&digest::SHA256, token.as_bytes());
    let mut hash = [0; 32];
    // SHA-256 has just as many bytes.
    for (byte, hashed) in hash.iter_mut().zip(hashed.as_ref()) {
        *byte = *hashed;
    }
    hash
}
