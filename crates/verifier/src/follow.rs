//! Follows the revocation feed: catches up, then stays on the stream; tries again, and elsewhere,
//! when something breaks; tells the issuer what is in force here.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::cache::{Cache, random_share};
use crate::feed::{Applied, Feed, Refused};
use crate::fetch::{FetchError, body};
use crate::frame::{Ack, AckAnswer, FRAME_MAX_BYTES, Frames, Position};
use crate::sse::{Events, Garbled};
use crate::{Keys, MaxAge};

/// Heartbeats come each second; a stream that is silent for so long is dead.
const SILENCE: Duration = Duration::from_secs(3);
/// News older than this makes us ask elsewhere.
const TOO_OLD: Duration = Duration::from_secs(3);
/// 16 frames, and their JSON.
const MAX_ANSWER_BYTES: usize = 16 * FRAME_MAX_BYTES + 64 * 1024;
/// Between failed tries: doubled from the first to the last, less a random half.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// A `retry` of the server's beyond this does not count.
const MAX_RETRY: Duration = Duration::from_secs(10);
/// At most ten acknowledgements a second, and one every 30 s when nothing happens.
const ACK_PAUSE: Duration = Duration::from_millis(100);
const ACK_IDLE: Duration = Duration::from_secs(30);
const ACK_RETRY: Duration = Duration::from_secs(1);
/// Frames above this are taken apart on another thread.
const LARGE_FRAME_BYTES: usize = 64 * 1024;

/// How a subscriber proves who it is: HTTP Basic (RFC 6749 §2.3.1).
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
}

impl Credentials {
    pub(crate) fn on(&self, request: RequestBuilder) -> RequestBuilder {
        let (id, secret) = (&self.client_id, &self.client_secret);
        request.basic_auth(form_encoded(id), Some(form_encoded(secret)))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

/// `application/x-www-form-urlencoded`, as RFC 6749 §2.3.1 wants both halves.
fn form_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => {
                encoded.push(char::from(byte));
            }
            b' ' => encoded.push('+'),
            other => encoded += &format!("%{other:02X}"),
        }
    }
    encoded
}

/// All of an answer, however long it takes, as long as something comes.
async fn read(mut answer: Response) -> Result<Vec<u8>, Ended> {
    let mut body = Vec::new();
    loop {
        let chunk = timeout(SILENCE, answer.chunk()).await;
        let Some(chunk) = chunk.map_err(|_| Ended::Silent)?? else {
            return Ok(body);
        };
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(FetchError::TooLarge.into());
        }
        body.extend_from_slice(&chunk);
    }
}

/// Follows one issuer's feed.
pub(crate) struct Follower {
    pub(crate) http: Client,
    /// Where the issuer answers, each without a slash at the end; the first is tried first.
    pub(crate) addresses: Vec<String>,
    pub(crate) credentials: Credentials,
    pub(crate) instance: String,
    pub(crate) feed: Arc<Feed>,
    /// The keys that frames are signed with.
    pub(crate) feed_keys: Arc<Cache>,
    /// The keys that tokens are signed with.
    pub(crate) token_keys: Arc<Cache>,
    /// The address in use.
    pub(crate) address: AtomicUsize,
    /// The frame that brought us where we are.
    pub(crate) last_frame: ArcSwapOption<String>,
}

/// The tasks that follow; dropping this ends them.
pub(crate) struct Following([AbortHandle; 2]);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// Why a connection to the feed ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("the feed could not be read")]
    Fetch(#[from] FetchError),
    #[error("the feed is silent")]
    Silent,
    #[error(transparent)]
    Garbled(#[from] Garbled),
    #[error("a frame is not the next one: {0}")]
    Refused(#[from] Refused),
    #[error("the feed is behind us")]
    Ahead,
    #[error("the feed says nothing new")]
    Old,
    /// In good order; the server may have said when to come back.
    #[error("the stream is over")]
    Over(Option<Duration>),
}

impl From<reqwest::Error> for Ended {
    fn from(error: reqwest::Error) -> Self {
        Self::Fetch(error.into())
    }
}

impl Follower {
    pub(crate) fn spawn(self: Arc<Self>) -> Following {
        let follow = tokio::spawn(self.clone().follow());
        let acknowledge = tokio::spawn(self.acknowledge());
        Following([follow.abort_handle(), acknowledge.abort_handle()])
    }

    async fn follow(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            let before = self.feed.as_of_us();
            let ended = match self.catch_up().await {
                Ok(()) => self.stream().await,
                Err(ended) => ended,
            };
            // Who heard something new is not failing, however it ended.
            if self.feed.as_of_us() > before {
                failures = 0;
            }
            let pause = self.after(&ended, &mut failures).await;
            self.feed.counters.reconnected();
            sleep(pause).await;
        }
    }

    /// Says why it ended, turns to another address if this one is no good, and how long to wait.
    async fn after(&self, ended: &Ended, failures: &mut u32) -> Duration {
        match ended {
            Ended::Over(retry) => {
                *failures = 0;
                let pause = retry.map_or(FIRST_PAUSE, |retry| retry.min(MAX_RETRY));
                return pause.mul_f64(1.0 - random_share() / 2.0);
            }
            Ended::Ahead => {
                tracing::warn!(
                    event = "feed.ahead",
                    "the issuer's feed is behind what it sent"
                );
                self.prove_ahead().await;
            }
            ended => tracing::debug!(
                error = ended as &dyn std::error::Error,
                address = self.address(),
                "the revocation feed broke off"
            ),
        }
        // A gap is filled where it was noticed; all else may be the address.
        if !matches!(ended, Ended::Refused(Refused::Gap)) {
            self.address.fetch_add(1, Ordering::Relaxed);
        }
        let pause = FIRST_PAUSE * 2u32.saturating_pow(*failures);
        *failures = failures.saturating_add(1);
        pause.min(LAST_PAUSE).mul_f64(1.0 - random_share() / 2.0)
    }

    /// Reads what came after our position, until nothing is missing.
    pub(crate) async fn catch_up(&self) -> Result<(), Ended> {
        if self.feed_keys.holds_none() {
            self.feed_keys.fetch_now().await;
        }
        loop {
            let mut url = self.url("/revocations");
            if let Some(position) = self.feed.position() {
                url += &format!("?after={position}");
            }
            let answer = self.ask(&url, None).await?;
            let answer = read(answer).await?;
            let frames: Frames = serde_json::from_slice(&answer).map_err(FetchError::from)?;
            let mut is_current = false;
            let mut last = Err(Refused::Malformed("no frames"));
            for frame in frames.frames {
                last = self.take(frame).await;
                // What is wrong with one frame is wrong with those that build on it.
                is_current = last.as_ref().map_err(|refused| *refused)?.is_current;
            }
            last?;
            if is_current {
                return Ok(());
            }
        }
    }

    /// Reads the stream from our position, as long as it lasts.
    async fn stream(&self) -> Ended {
        match self.read_stream().await {
            Err(ended) => ended,
            Ok(retry) => Ended::Over(retry),
        }
    }

    async fn read_stream(&self) -> Result<Option<Duration>, Ended> {
        let position = self.feed.position().unwrap_or_default();
        let url = self.url("/revocations/stream");
        let mut answer = self.ask(&url, Some(position)).await?;
        let mut events = Events::default();
        loop {
            let chunk = timeout(SILENCE, answer.chunk()).await;
            let Some(chunk) = chunk.map_err(|_| Ended::Silent)?? else {
                return Ok(events.retry);
            };
            for frame in events.take(&chunk)? {
                // Any other refusal changed nothing; if nothing better comes, the age will tell.
                if let Err(gap @ Refused::Gap) = self.take(frame).await {
                    return Err(gap.into());
                }
            }
            if self.is_too_old() {
                return Err(Ended::Old);
            }
        }
    }

    fn is_too_old(&self) -> bool {
        // Without another address there is nothing better to be had.
        self.addresses.len() > 1 && self.feed.age().is_none_or(|age| age > TOO_OLD)
    }

    async fn ask(&self, url: &str, resume: Option<Position>) -> Result<Response, Ended> {
        let mut request = self.credentials.on(self.http.get(url));
        if let Some(position) = resume {
            request = request
                .header("Accept", "text/event-stream")
                .header("Last-Event-ID", position.to_string());
        }
        let answer = timeout(SILENCE, request.send()).await;
        let answer = answer.map_err(|_| Ended::Silent)??;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::CONFLICT => Err(Ended::Ahead),
            other => Err(FetchError::Status(other.as_u16()).into()),
        }
    }

    /// Applies a frame, with keys fetched anew if its key is not known.
    async fn take(&self, frame: String) -> Result<Applied, Refused> {
        let frame = Arc::new(frame);
        let mut taken = self.try_take(frame.clone()).await;
        if taken == Err(Refused::UnknownKey) {
            let now = self.feed.clock.wall_secs();
            let kid = crate::feed::kid(&frame);
            self.feed_keys
                .refetch(kid.as_deref().unwrap_or_default(), now)
                .await;
            taken = self.try_take(frame.clone()).await;
        }
        match &taken {
            Ok(applied) => {
                if applied.is_last {
                    self.last_frame.store(Some(frame));
                }
                let now = self.feed.clock.wall_secs();
                self.token_keys.expect_etag(&applied.jwks_etag, now);
            }
            Err(refused) => {
                self.feed.counters.frame_refused(refused.event());
                tracing::warn!(
                    event = refused.event(),
                    severity = refused.severity(),
                    reason = %refused,
                    address = self.address(),
                    "a frame of the revocation feed was refused"
                );
            }
        }
        taken
    }

    async fn try_take(&self, frame: Arc<String>) -> Result<Applied, Refused> {
        let feed = self.feed.clone();
        let held = self.feed_keys.held_full();
        let now = feed.clock.wall_secs();
        let is_small = frame.len() <= LARGE_FRAME_BYTES;
        let work = move || {
            let none = Keys::default();
            feed.take(&frame, held.at(now).unwrap_or(&none))
        };
        if is_small {
            return work();
        }
        // Other requests shall not wait for it.
        let outcome = spawn_blocking(work).await;
        outcome.unwrap_or(Err(Refused::Malformed("it could not be taken apart")))
    }

    /// Tells the issuer where we stand, and learns what it allows.
    async fn acknowledge(self: Arc<Self>) {
        let mut positions = self.feed.positions();
        // Before the first position there is nothing to say.
        if self.feed.position().is_none() {
            let _ = positions.changed().await;
        }
        loop {
            positions.mark_unchanged();
            let outcome = self.send_ack(None).await;
            if let Err(error) = &outcome {
                let error = error as &dyn std::error::Error;
                tracing::debug!(error, "an acknowledgement was not taken");
            }
            sleep(ACK_PAUSE).await;
            let pause = if outcome.is_ok() { ACK_IDLE } else { ACK_RETRY };
            let _ = timeout(pause, positions.changed()).await;
        }
    }

    /// The issuer does not know what it sent us: its own frame is the proof.
    async fn prove_ahead(&self) {
        let Some(frame) = self.last_frame.load_full() else {
            return;
        };
        if let Err(error) = self.send_ack(Some(frame.as_ref().clone())).await {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(error, "the issuer did not take the proof that we are ahead");
        }
    }

    async fn send_ack(&self, frame: Option<String>) -> Result<(), Ended> {
        let Some(position) = self.feed.position() else {
            return Ok(());
        };
        let ack = Ack {
            instance: self.instance.clone(),
            epoch: position.epoch,
            seq: position.seq,
            kids: self.token_keys.kids_but(|key| self.feed.has_revoked(key)),
            max_age: self.feed.longest_max_age().as_secs(),
            frame,
        };
        let url = self.url("/revocations/ack");
        let request = self.credentials.on(self.http.post(url)).json(&ack);
        let answer = timeout(SILENCE, request.send()).await;
        let answer = answer.map_err(|_| Ended::Silent)??;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::CONFLICT => return Err(Ended::Ahead),
            other => return Err(FetchError::Status(other.as_u16()).into()),
        }
        let answer = body(answer, 64 * 1024).await?;
        let answer: AckAnswer = serde_json::from_slice(&answer).map_err(FetchError::from)?;
        self.feed.allow(MaxAge::from(answer.max_age));
        Ok(())
    }

    fn address(&self) -> &str {
        let number = self.address.load(Ordering::Relaxed) % self.addresses.len();
        &self.addresses[number]
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address())
    }
}
