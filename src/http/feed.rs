//! `/revocations`: the revocation feed for registered resource servers. Frames are signed, so a subscriber does not
//! have to trust the connection. Subscribers authenticate so that no other party learns how many revocations there
//! are.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use actix_web::web::{Bytes, Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::stream::unfold;
use portcullis_verifier::{Ack, AckAnswer, FRAME_MAX_BYTES, Frames, Position};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::app::App;
use crate::config::limits::{
    ACK_KIDS, BODY_BYTES, BODY_TIME, FRAMES_AT_ONCE, INSTANCE_BYTES, LONGEST_POLL, STREAM_LIFE,
};
use crate::feed::{self, ActiveSubscribers, FeedError, Next, Stream};
use crate::http::api::{HandlerError, published_keys};
use crate::http::error::{self, ErrorPage};
use crate::http::extract;
use crate::http::oauth::client_auth::authenticate_header;
use crate::http::server::rate_limit;
use crate::http::server::timed_stream;
use crate::id::ClientId;
use crate::keys::{KeyView, Use};
use crate::oauth::client_auth::AuthenticatedClient;
use crate::oauth::macros::details;
use crate::oauth::request::params::Params;
use crate::oauth::{Code, Error};
use crate::time::Uptime;

/// The last event of a stream: the client may reconnect after 500 ms.
const RETRY: &str = "retry: 500\n\n";

/// Handles `GET /revocations/jwks`: responds with the public keys for frames (RFC 7517 §5).
pub async fn jwks(request: HttpRequest, app: Data<App>) -> HttpResponse {
    published_keys(&request, &app, Use::Feed)
}

/// Handles `GET /revocations?after=E:S[&wait=20]`: responds with all unexpired records after a position, as signed
/// frames.
pub async fn get(request: HttpRequest, app: Data<App>) -> HttpResponse {
    match frames(&request, &app).await {
        Ok(frames) => HttpResponse::Ok()
            .insert_header((CACHE_CONTROL, "no-store"))
            .json(Frames { frames }),
        Err(error) => error.respond(&request),
    }
}

/// Handles `GET /revocations/stream`: sends the same frames as server-sent events (HTML Living Standard §9.2). The
/// stream starts after `Last-Event-ID` or `after` and has a heartbeat each second.
pub async fn stream(request: HttpRequest, app: Data<App>) -> HttpResponse {
    match subscribe(&request, &app).await {
        Ok(subscriber) => HttpResponse::Ok()
            .insert_header((CACHE_CONTROL, "no-store"))
            .insert_header((CONTENT_TYPE, "text/event-stream"))
            .insert_header(("X-Accel-Buffering", "no"))
            .streaming(unfold(subscriber, |mut subscriber| async move {
                let bytes = subscriber.read().await?;
                Some((Ok::<_, std::io::Error>(bytes), subscriber))
            })),
        Err(error) => error.respond(&request),
    }
}

/// Handles `POST /revocations/ack`: an instance of a subscriber reports the position that it has applied.
pub async fn ack(request: HttpRequest, app: Data<App>, body: Payload) -> HttpResponse {
    match acknowledge(&request, &app, body).await {
        Ok(answer) => HttpResponse::Ok()
            .insert_header((CACHE_CONTROL, "no-store"))
            .json(answer),
        Err(error) => error.respond(&request),
    }
}

/// An error response of this endpoint.
enum SubscriberError {
    HandlerError(HandlerError),
    /// 409: the subscriber's position is ahead of this feed.
    Ahead {
        /// Whether the database confirmed it. Otherwise this node only compared with its last known position.
        is_certain: bool,
    },
}

impl<E: Into<HandlerError>> From<E> for SubscriberError {
    fn from(error: E) -> Self {
        Self::HandlerError(error.into())
    }
}

impl SubscriberError {
    fn respond(self, request: &HttpRequest) -> HttpResponse {
        match self {
            Self::HandlerError(error) => error.respond(request),
            Self::Ahead { .. } => {
                error::log(request, Rejection::Ahead.into(), None);
                HttpResponse::Conflict()
                    .insert_header((CACHE_CONTROL, "no-store"))
                    .insert_header((RETRY_AFTER, "2"))
                    .json(serde_json::json!({ "error": "ahead" }))
            }
        }
    }
}

impl From<FeedError> for HandlerError {
    fn from(error: FeedError) -> Self {
        Self::Error(match error {
            FeedError::Feed => unavailable(Rejection::Restored),
            FeedError::Keys(error) => error.into(),
        })
    }
}

details! {
    enum Rejection {
        Ahead => Detail::new("feed.ahead", "position"),
        Restored => Detail::new("feed.unready", "restored"),
        TooManyStreams => Detail::new("ratelimit.hit", "streams"),
        TooManyInstances => Detail::new("ratelimit.hit", "instances"),
        NoResourceServer => Detail::new("feed.denied", "no_resource_server"),
        Query => Detail::new("feed.denied", "query"),
        Wait => Detail::new("feed.denied", "wait"),
        After => Detail::new("feed.denied", "after"),
        LastEventId => Detail::new("feed.denied", "last_event_id"),
        Body => Detail::new("feed.denied", "body"),
        Instance => Detail::new("feed.denied", "instance"),
        Kids => Detail::new("feed.denied", "kids"),
    }
}

/// Returns the 503 error of a node that cannot serve the subscriber. Another node may be able to.
fn unavailable(rejection: Rejection) -> Error {
    Error {
        code: Code::TemporarilyUnavailable,
        detail: rejection.into(),
        compared: None,
        source: None,
    }
}

fn malformed(rejection: Rejection) -> HandlerError {
    Error::invalid_request(rejection).into()
}

/// Authenticates the resource server, only by HTTP Basic (RFC 6749 §2.3.1). Another client receives the same
/// response as a request without credentials.
async fn authenticate(
    request: &HttpRequest,
    app: &App,
) -> Result<AuthenticatedClient, HandlerError> {
    let client = authenticate_header(request, app).await?;
    if client.client().serves.is_empty() {
        return Err(Error::invalid_client(Rejection::NoResourceServer).into());
    }
    Ok(client)
}

async fn frames(request: &HttpRequest, app: &Data<App>) -> Result<Vec<String>, SubscriberError> {
    authenticate(request, app).await?;
    let query = query(request)?;
    let after = position(&query)?;
    let wait = query.one("wait").map_err(|_| malformed(Rejection::Wait))?;
    let wait = match wait.map(str::parse::<u64>) {
        None => Duration::ZERO,
        Some(Ok(secs)) if secs <= LONGEST_POLL.as_secs() => Duration::from_secs(secs),
        Some(_) => return Err(malformed(Rejection::Wait).into()),
    };
    reject_ahead(request, app, after).await?;
    wait_for_records(app, after, wait).await;
    // A fixed number of frames, so that the memory of a response does not grow with the feed.
    let (mut frames, mut at) = (Vec::new(), after);
    while frames.len() < FRAMES_AT_ONCE {
        let signed = build_frame(app, at)?;
        at = signed.position;
        frames.push(signed.jws);
        if signed.is_complete {
            break;
        }
    }
    Ok(frames)
}

/// Builds a frame. It holds so few records that this takes about the time of a signature; a thread for each of a
/// thousand subscribers that reconnect at once would cost more.
fn build_frame(app: &App, after: Position) -> Result<feed::Signed, HandlerError> {
    Ok(app.feed.frame_after(after, &app.keys())?)
}

/// Rejects a position that is ahead of the feed. Because another node may be ahead of this one, the database is
/// read first. That request counts against the rate limit of the address; all others here do not.
async fn reject_ahead(
    request: &HttpRequest,
    app: &App,
    at: Position,
) -> Result<(), SubscriberError> {
    if !is_ahead(app, at) {
        rate_limit::give_back(request);
        return Ok(());
    }
    if let Some(too_many) = rate_limit::beyond(request) {
        return Err(HandlerError::TooMany(too_many).into());
    }
    // If the database does not respond, the last known position suffices to reject the request, but is not evidence
    // that the database was restored: a node without database is behind the other nodes.
    let is_certain = app.poll().await.is_ok();
    if is_ahead(app, at) {
        return Err(SubscriberError::Ahead { is_certain });
    }
    Ok(())
}

fn is_ahead(app: &App, at: Position) -> bool {
    app.feed
        .position()
        .is_some_and(|here| (at.epoch, at.seq) > (here.epoch, here.seq))
}

/// Waits until there is a record after the position, or until the time is over.
async fn wait_for_records(app: &App, after: Position, wait: Duration) {
    let mut changes = app.feed.changes();
    let is_current = || {
        app.feed
            .position()
            .is_some_and(|here| (here.epoch, here.seq) == (after.epoch, after.seq))
    };
    let changed = async { while is_current() && changes.changed().await.is_ok() {} };
    // A response without new records is valid, so a draining node responds at once.
    tokio::select! {
        _ = timeout(wait, changed) => {}
        () = app.draining.begun() => {}
    }
}

fn query(request: &HttpRequest) -> Result<Params, HandlerError> {
    extract::query(request).map_err(|_| malformed(Rejection::Query))
}

/// Parses `after`. If it is absent or `0`, the feed is read from the beginning.
fn position(query: &Params) -> Result<Position, HandlerError> {
    match query
        .one("after")
        .map_err(|_| malformed(Rejection::After))?
    {
        None | Some("0") => Ok(Position::default()),
        Some(text) => text.parse().map_err(|_| malformed(Rejection::After)),
    }
}

async fn subscribe(request: &HttpRequest, app: &Data<App>) -> Result<Subscriber, SubscriberError> {
    let subscribers = app.feed.streams.active_subscribers();
    let client = authenticate(request, app).await?;
    let at = match request.headers().get("Last-Event-ID") {
        None => position(&query(request)?)?,
        Some(id) => {
            let id = id.to_str().ok().and_then(|id| id.parse().ok());
            id.ok_or_else(|| malformed(Rejection::LastEventId))?
        }
    };
    reject_ahead(request, app, at).await?;
    if app.feed.position().is_none() || app.feed.is_restored() {
        return Err(HandlerError::from(FeedError::Feed).into());
    }
    let client = client.client();
    let slot = app.feed.streams.open(&client.id);
    let slot = slot.map_err(|_| unavailable(Rejection::TooManyStreams))?;
    // From now on the connection counts as a stream of the subscriber, not as a connection of its address.
    timed_stream::release(request);
    let [jitter] = app.entropy.bytes::<1>();
    // 90 % to 110 % of an hour, so that streams do not all reconnect at once.
    let lifetime = STREAM_LIFE.mul_f64(0.9 + 0.2 * f64::from(jitter) / 255.0);
    Ok(Subscriber {
        client: client.id.clone(),
        auth_epoch: client.auth_epoch,
        at,
        heartbeats: 0,
        is_started: false,
        is_closed: false,
        changes: app.feed.changes(),
        subscribers,
        started_at: app.clock.uptime(),
        lifetime,
        app: app.clone(),
        _slot: slot,
    })
}

/// An open stream. It has no queue: it stores its position and reads the next frame when the client has taken the
/// previous one, so a slow client needs no memory.
struct Subscriber {
    app: Data<App>,
    client: ClientId,
    auth_epoch: i64,
    at: Position,
    heartbeats: u64,
    is_started: bool,
    is_closed: bool,
    changes: watch::Receiver<u64>,
    subscribers: watch::Receiver<Arc<ActiveSubscribers>>,
    started_at: Uptime,
    lifetime: Duration,
    _slot: Stream,
}

impl Subscriber {
    /// Returns the next bytes; `None` at the end of the stream.
    async fn read(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.is_started, true) {
            return Some(Bytes::from_static(b": portcullis\n\n"));
        }
        if self.is_closed {
            return None;
        }
        loop {
            if self.app.draining.is_on() || self.is_expired() {
                return Some(self.close());
            }
            self.changes.mark_unchanged();
            match self.app.feed.next(self.at, &mut self.heartbeats) {
                Next::Event(bytes, at) => {
                    self.at = at;
                    return Some(bytes);
                }
                Next::Behind => return self.catch_up(),
                Next::Over => return Some(self.close()),
                Next::Nothing => {}
            }
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                () = self.app.draining.begun() => {}
                changed = self.subscribers.changed() => {
                    changed.ok()?;
                    let subscribers = Arc::clone(&self.subscribers.borrow_and_update());
                    if !subscribers.includes(&self.client, self.auth_epoch) {
                        return Some(self.close());
                    }
                }
            }
        }
    }

    /// Returns the next records that this stream missed.
    fn catch_up(&mut self) -> Option<Bytes> {
        let signed = build_frame(&self.app, self.at).ok()?;
        self.at = signed.position;
        Some(feed::event(&signed))
    }

    /// Returns whether the lifetime is over. Heartbeats wake the stream often enough to check it.
    fn is_expired(&self) -> bool {
        self.app.clock.uptime().since(self.started_at) >= self.lifetime
    }

    fn close(&mut self) -> Bytes {
        self.is_closed = true;
        Bytes::from_static(RETRY.as_bytes())
    }
}

async fn acknowledge(
    request: &HttpRequest,
    app: &Data<App>,
    body: Payload,
) -> Result<AckAnswer, SubscriberError> {
    let client = authenticate(request, app).await?;
    // An acknowledgement may contain a frame as evidence that this feed is behind.
    let read = body.to_bytes_limited(BODY_BYTES + FRAME_MAX_BYTES);
    let body = match tokio::time::timeout(BODY_TIME, read).await {
        Ok(Ok(Ok(body))) => body,
        Ok(Err(_)) => return Err(HandlerError::ErrorPage(ErrorPage::BODY_TOO_LARGE).into()),
        Ok(Ok(Err(_))) => return Err(malformed(Rejection::Body).into()),
        Err(_) => return Err(HandlerError::ErrorPage(ErrorPage::TOO_SLOW).into()),
    };
    let ack: Ack = serde_json::from_slice(&body).map_err(|_| malformed(Rejection::Body))?;
    let is_name = |text: &str, max_bytes: usize| {
        (1..=max_bytes).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    };
    if !is_name(&ack.instance, INSTANCE_BYTES) {
        return Err(malformed(Rejection::Instance).into());
    }
    if ack.kids.len() > ACK_KIDS || !ack.kids.iter().all(|kid| is_name(kid, 64)) {
        return Err(malformed(Rejection::Kids).into());
    }
    let at = Position {
        epoch: ack.epoch,
        seq: ack.seq,
    };
    if let Err(error) = reject_ahead(request, app, at).await {
        if let (SubscriberError::Ahead { is_certain: true }, Some(frame)) = (&error, &ack.frame)
            && is_frame_ahead(app, &app.keys(), frame)
        {
            app.note_restored("subscriber").await?;
        }
        return Err(error);
    }
    let noted = app.feed.acks.record(&client.client().id, ack);
    noted.map_err(|_| unavailable(Rejection::TooManyInstances))?;
    Ok(AckAnswer {
        max_age: client.max_age().as_secs(),
    })
}

/// Returns whether this server signed a frame that is ahead of its feed. A position without a frame is not evidence.
fn is_frame_ahead(app: &App, keys: &KeyView, jws: &str) -> bool {
    keys.read_frame(jws, app.issuer.as_str())
        .is_some_and(|frame| is_ahead(app, frame.position()))
}
