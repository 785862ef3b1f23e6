//! The client of the revocation feed. It catches up, stays on the stream, reconnects after
//! failures, if necessary to another server, and acknowledges to the issuer what it has applied.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::feed::{AppliedFrame, Feed, FrameError};
use crate::fetch::{FetchError, read_body};
use crate::frame::{Ack, AckAnswer, FRAME_MAX_BYTES, Frames, Position};
use crate::key_cache::{KeyCache, random_fraction};
use crate::sse::{EventParser, StreamError};
use crate::{Keys, MaxAge};

/// Maximum time between two chunks of a response. The server sends a heartbeat each second.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(3);
/// Age of the data above which another server is tried.
const FAILOVER_AGE: Duration = Duration::from_secs(3);
/// Maximum size of a response: 16 frames and the surrounding JSON.
const MAX_RESPONSE_BYTES: usize = 16 * FRAME_MAX_BYTES + 64 * 1024;
/// Delay after the first failed attempt. It doubles with each further failure up to
/// [`MAX_RETRY_DELAY`], and up to half of it is subtracted at random.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(10);
/// Maximum `retry` of the server. Longer values are reduced.
const MAX_SERVER_RETRY: Duration = Duration::from_secs(10);
/// Minimum interval between two acknowledgements.
const MIN_ACK_INTERVAL: Duration = Duration::from_millis(100);
/// Interval between two acknowledgements while the position does not change.
const IDLE_ACK_INTERVAL: Duration = Duration::from_secs(30);
/// Delay after a failed acknowledgement.
const ACK_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Maximum size of an acknowledgement response.
const MAX_ACK_RESPONSE_BYTES: usize = 64 * 1024;
/// Size of a frame above which it is applied on a blocking thread.
const LARGE_FRAME_BYTES: usize = 64 * 1024;

/// Credentials of a subscriber for HTTP Basic authentication (RFC 6749 §2.3.1).
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
}

impl Credentials {
    /// Adds the credentials to a request.
    pub(crate) fn authenticate(&self, request: RequestBuilder) -> RequestBuilder {
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

/// Encodes as `application/x-www-form-urlencoded`, which RFC 6749 §2.3.1 requires for the client ID
/// and the secret.
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

/// Reads the whole body of a response. There is no limit on the total time, only on the time
/// between two chunks.
async fn read_slowly(mut response: Response) -> Result<Vec<u8>, FollowError> {
    let mut body = Vec::new();
    loop {
        let chunk = timeout(SILENCE_TIMEOUT, response.chunk()).await;
        let Some(chunk) = chunk.map_err(|_| FollowError::Silent)?? else {
            return Ok(body);
        };
        if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
            return Err(FetchError::TooLarge.into());
        }
        body.extend_from_slice(&chunk);
    }
}

/// Follows the feed of one issuer.
pub(crate) struct Follower {
    pub(crate) http: Client,
    /// Base URLs of the feed in order of preference, without a trailing slash.
    pub(crate) base_urls: Vec<String>,
    pub(crate) credentials: Credentials,
    pub(crate) instance: String,
    pub(crate) feed: Arc<Feed>,
    /// The keys that frames are signed with.
    pub(crate) feed_keys: Arc<KeyCache>,
    /// The keys that tokens are signed with.
    pub(crate) token_keys: Arc<KeyCache>,
    /// Index of the current base URL, modulo their number.
    pub(crate) base_url_index: AtomicUsize,
    /// The frame whose position is the current position.
    pub(crate) last_frame: ArcSwapOption<String>,
}

/// Handles of the tasks that follow and acknowledge. Dropping them stops the tasks.
pub(crate) struct FollowerTasks([AbortHandle; 2]);

impl Drop for FollowerTasks {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// Why a request to the feed failed or its stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error("failed to read the feed")]
    Fetch(#[from] FetchError),
    #[error("no data from the feed for 3 s")]
    Silent,
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("rejected a frame: {0}")]
    Frame(#[from] FrameError),
    #[error("the feed is behind the position of this verifier")]
    Ahead,
    #[error("the data from the feed is too old")]
    Stale,
    /// The server closed the stream regularly. The duration is its `retry`, if it sent one.
    #[error("the server closed the stream")]
    StreamEnded(Option<Duration>),
}

impl From<reqwest::Error> for FollowError {
    fn from(error: reqwest::Error) -> Self {
        Self::Fetch(error.into())
    }
}

impl Follower {
    pub(crate) fn spawn(self: Arc<Self>) -> FollowerTasks {
        let follow = tokio::spawn(self.clone().follow());
        let acknowledge = tokio::spawn(self.acknowledge());
        FollowerTasks([follow.abort_handle(), acknowledge.abort_handle()])
    }

    async fn follow(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            let before = self.feed.as_of_us();
            let error = match self.catch_up().await {
                Ok(()) => self.stream().await,
                Err(error) => error,
            };
            // A connection that brought newer data is not counted as a failure, however it ended.
            if self.feed.as_of_us() > before {
                failures = 0;
            }
            let delay = self.handle_disconnect(&error, &mut failures).await;
            self.feed.counters.reconnected();
            sleep(delay).await;
        }
    }

    /// Logs why the connection ended and selects the next server if necessary. Returns the delay
    /// before the next connection.
    async fn handle_disconnect(&self, error: &FollowError, failures: &mut u32) -> Duration {
        match error {
            FollowError::StreamEnded(retry) => {
                *failures = 0;
                let delay = retry.map_or(MIN_RETRY_DELAY, |retry| retry.min(MAX_SERVER_RETRY));
                return delay.mul_f64(1.0 - random_fraction() / 2.0);
            }
            FollowError::Ahead => {
                tracing::warn!(
                    event = "feed.ahead",
                    "the issuer's feed is behind a position that it has sent before"
                );
                self.report_ahead().await;
            }
            error => tracing::debug!(
                error = error as &dyn std::error::Error,
                address = self.base_url(),
                "disconnected from the revocation feed"
            ),
        }
        // A gap is filled by the same server. Any other error may be specific to the server.
        if !matches!(error, FollowError::Frame(FrameError::Gap)) {
            self.use_next_url();
        }
        let delay = MIN_RETRY_DELAY * 2u32.saturating_pow(*failures);
        *failures = failures.saturating_add(1);
        delay
            .min(MAX_RETRY_DELAY)
            .mul_f64(1.0 - random_fraction() / 2.0)
    }

    /// Selects the next URL of the feed.
    pub(crate) fn use_next_url(&self) {
        self.base_url_index.fetch_add(1, Ordering::Relaxed);
    }

    /// Fetches and applies the frames after the current position, until the data is complete.
    pub(crate) async fn catch_up(&self) -> Result<(), FollowError> {
        if self.feed_keys.is_empty() {
            self.feed_keys.fetch_now().await;
        }
        loop {
            let mut url = self.url("/revocations");
            if let Some(position) = self.feed.position() {
                url += &format!("?after={position}");
            }
            let response = self.get(&url, None).await?;
            let body = read_slowly(response).await?;
            let frames: Frames = serde_json::from_slice(&body).map_err(FetchError::from)?;
            let mut is_current = false;
            let mut last = Err(FrameError::Malformed("no frames"));
            for frame in frames.frames {
                last = self.apply(frame).await;
                // The frames after a rejected frame build on it, so they are not applied.
                is_current = last.as_ref().map_err(|error| *error)?.is_current;
            }
            last?;
            if is_current {
                return Ok(());
            }
        }
    }

    /// Reads the stream from the current position until it ends.
    async fn stream(&self) -> FollowError {
        match self.read_stream().await {
            Err(error) => error,
            Ok(retry) => FollowError::StreamEnded(retry),
        }
    }

    async fn read_stream(&self) -> Result<Option<Duration>, FollowError> {
        let position = self.feed.position().unwrap_or_default();
        let url = self.url("/revocations/stream");
        let mut response = self.get(&url, Some(position)).await?;
        let mut events = EventParser::default();
        loop {
            let chunk = timeout(SILENCE_TIMEOUT, response.chunk()).await;
            let Some(chunk) = chunk.map_err(|_| FollowError::Silent)?? else {
                return Ok(events.retry);
            };
            for frame in events.push(&chunk)? {
                // Frames that are rejected for other reasons change nothing. If no valid frames
                // follow, the age of the data grows.
                if let Err(gap @ FrameError::Gap) = self.apply(frame).await {
                    return Err(gap.into());
                }
            }
            if self.should_fail_over() {
                return Err(FollowError::Stale);
            }
        }
    }

    fn should_fail_over(&self) -> bool {
        // Without another server, a reconnection would not help.
        self.base_urls.len() > 1 && self.feed.age().is_none_or(|age| age > FAILOVER_AGE)
    }

    async fn get(&self, url: &str, resume: Option<Position>) -> Result<Response, FollowError> {
        let mut request = self.credentials.authenticate(self.http.get(url));
        if let Some(position) = resume {
            request = request
                .header("Accept", "text/event-stream")
                .header("Last-Event-ID", position.to_string());
        }
        let response = timeout(SILENCE_TIMEOUT, request.send()).await;
        let response = response.map_err(|_| FollowError::Silent)??;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::CONFLICT => Err(FollowError::Ahead),
            other => Err(FetchError::Status(other.as_u16()).into()),
        }
    }

    /// Applies a frame. If its key is unknown, fetches the keys and tries again.
    async fn apply(&self, frame: String) -> Result<AppliedFrame, FrameError> {
        let frame = Arc::new(frame);
        let mut result = self.try_apply(frame.clone()).await;
        if result == Err(FrameError::UnknownKey) {
            let now = self.feed.clock.wall_secs();
            let kid = crate::feed::kid(&frame);
            self.feed_keys
                .refetch(kid.as_deref().unwrap_or_default(), now)
                .await;
            result = self.try_apply(frame.clone()).await;
        }
        match &result {
            Ok(applied) => {
                if applied.is_last {
                    self.last_frame.store(Some(frame));
                }
                let now = self.feed.clock.wall_secs();
                self.token_keys.expect_etag(&applied.jwks_etag, now);
            }
            Err(error) => {
                self.feed.counters.frame_refused(error.event());
                tracing::warn!(
                    event = error.event(),
                    severity = error.severity(),
                    reason = %error,
                    address = self.base_url(),
                    "rejected a frame of the revocation feed"
                );
            }
        }
        result
    }

    async fn try_apply(&self, frame: Arc<String>) -> Result<AppliedFrame, FrameError> {
        let feed = self.feed.clone();
        let snapshot = self.feed_keys.owned_snapshot();
        let now = feed.clock.wall_secs();
        let is_small = frame.len() <= LARGE_FRAME_BYTES;
        let apply = move || {
            let none = Keys::default();
            feed.apply_signed(&frame, snapshot.keys_at(now).unwrap_or(&none))
        };
        if is_small {
            return apply();
        }
        // A large frame would delay other tasks of the runtime.
        let result = spawn_blocking(apply).await;
        result.unwrap_or(Err(FrameError::Malformed("failed to apply the frame")))
    }

    /// Sends the position to the issuer when it changes, and stores the maximum age that the issuer
    /// allows.
    async fn acknowledge(self: Arc<Self>) {
        let mut positions = self.feed.positions();
        // There is nothing to acknowledge before the first position.
        if self.feed.position().is_none() {
            let _ = positions.changed().await;
        }
        loop {
            positions.mark_unchanged();
            let result = self.send_ack(None).await;
            if let Err(error) = &result {
                let error = error as &dyn std::error::Error;
                tracing::debug!(error, "failed to send an acknowledgement");
            }
            sleep(MIN_ACK_INTERVAL).await;
            let delay = match result {
                Ok(()) => IDLE_ACK_INTERVAL,
                Err(_) => ACK_RETRY_DELAY,
            };
            let _ = timeout(delay, positions.changed()).await;
        }
    }

    /// Sends the last frame to the issuer, as evidence that the issuer has lost records.
    async fn report_ahead(&self) {
        let Some(frame) = self.last_frame.load_full() else {
            return;
        };
        if let Err(error) = self.send_ack(Some(frame.as_ref().clone())).await {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(
                error,
                "failed to send the last frame to an issuer that is behind it"
            );
        }
    }

    async fn send_ack(&self, frame: Option<String>) -> Result<(), FollowError> {
        let Some(position) = self.feed.position() else {
            return Ok(());
        };
        let ack = Ack {
            instance: self.instance.clone(),
            epoch: position.epoch,
            seq: position.seq,
            kids: self
                .token_keys
                .active_kids(|key| self.feed.is_key_revoked(key)),
            max_age: self.feed.longest_max_age().as_secs(),
            frame,
        };
        let url = self.url("/revocations/ack");
        let request = self.credentials.authenticate(self.http.post(url));
        let response = timeout(SILENCE_TIMEOUT, request.json(&ack).send()).await;
        let response = response.map_err(|_| FollowError::Silent)??;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::CONFLICT => return Err(FollowError::Ahead),
            other => return Err(FetchError::Status(other.as_u16()).into()),
        }
        let body = read_body(response, MAX_ACK_RESPONSE_BYTES).await?;
        let answer: AckAnswer = serde_json::from_slice(&body).map_err(FetchError::from)?;
        self.feed.set_allowed_max_age(MaxAge::from(answer.max_age));
        Ok(())
    }

    pub(crate) fn base_url(&self) -> &str {
        let index = self.base_url_index.load(Ordering::Relaxed) % self.base_urls.len();
        &self.base_urls[index]
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url())
    }
}
