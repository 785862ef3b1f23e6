//! `/revocations`: the feed, for registered resource servers. Frames are signed, so what a subscriber
//! believes does not rest on this connection; its credentials are asked for so that nobody else can
//! count our revocations.

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
    ACK_KIDS, BODY_BYTES, BODY_TIME, INSTANCE_BYTES, LONGEST_POLL, STREAM_LIFE,
};
use crate::feed::{self, ActiveSubscribers, FeedError, Next, Stream};
use crate::http::error;
use crate::http::extract;
use crate::http::oauth::discovery;
use crate::http::oauth::token::{self, HandlerError};
use crate::http::server::rate_limit;
use crate::http::server::timed_stream;
use crate::id::ClientId;
use crate::keys::{KeyView, Use};
use crate::oauth::client_auth::AuthenticatedClient;
use crate::oauth::request::params::Params;
use crate::oauth::{Code, Detail, Error};
use crate::time::Uptime;

/// So many records are packed and signed in about the time of one signature.
const FEW: usize = 1_000;

/// When a stream that ended may be opened again, in milliseconds.
const RETRY: &str = "retry: 500\n\n";

/// `GET /revocations/jwks`: the keys that frames are signed with (RFC 7517 §5).
pub async fn jwks(request: HttpRequest, app: Data<App>) -> HttpResponse {
    discovery::published(&request, &app, Use::Feed)
}

/// `GET /revocations?after=E:S[&wait=20]`: all live records after a position, as signed frames.
pub async fn get(request: HttpRequest, app: Data<App>) -> HttpResponse {
    match frames(&request, &app).await {
        Ok(frames) => HttpResponse::Ok()
            .insert_header((CACHE_CONTROL, "no-store"))
            .json(Frames { frames }),
        Err(stopped) => stopped.respond(&request),
    }
}

/// `GET /revocations/stream`: the same frames as server-sent events (HTML Living Standard §9.2), from
/// `Last-Event-ID` or `after`, then live, with a heartbeat each second.
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
        Err(stopped) => stopped.respond(&request),
    }
}

/// `POST /revocations/ack`: what an instance of a subscriber has applied.
pub async fn ack(request: HttpRequest, app: Data<App>, body: Payload) -> HttpResponse {
    match acknowledge(&request, &app, body).await {
        Ok(answer) => HttpResponse::Ok()
            .insert_header((CACHE_CONTROL, "no-store"))
            .json(answer),
        Err(stopped) => stopped.respond(&request),
    }
}

/// Why a subscriber gets nothing.
enum Stopped {
    HandlerError(HandlerError),
    /// 409: it stands where this feed has not been.
    Ahead {
        /// Whether the database itself says so, and not only what this node last read of it.
        is_certain: bool,
    },
}

impl<E: Into<HandlerError>> From<E> for Stopped {
    fn from(stop: E) -> Self {
        Self::HandlerError(stop.into())
    }
}

impl Stopped {
    fn respond(self, request: &HttpRequest) -> HttpResponse {
        match self {
            Self::HandlerError(stop) => stop.respond(request),
            Self::Ahead { .. } => {
                error::log(request, Detail::new("feed.ahead", "position"), None);
                HttpResponse::Conflict()
                    .insert_header((CACHE_CONTROL, "no-store"))
                    .insert_header((RETRY_AFTER, "2"))
                    .json(serde_json::json!({ "error": "ahead" }))
            }
        }
    }
}

impl From<FeedError> for HandlerError {
    fn from(unready: FeedError) -> Self {
        Self::Error(match unready {
            FeedError::Feed => Error {
                code: Code::TemporarilyUnavailable,
                detail: Detail::new("feed.unready", "restored"),
                source: None,
            },
            FeedError::Keys(error) => error.into(),
        })
    }
}

/// No room for another stream or instance: 503, elsewhere there may be.
fn full(bucket: &'static str) -> HandlerError {
    HandlerError::Error(Error {
        code: Code::TemporarilyUnavailable,
        detail: Detail::new("ratelimit.hit", bucket),
        source: None,
    })
}

fn malformed(reason: &'static str) -> HandlerError {
    HandlerError::Error(Error::invalid_request(Detail::new("feed.denied", reason)))
}

/// The resource server that asks: HTTP Basic alone (RFC 6749 §2.3.1). Whoever is none learns no more
/// than whoever gives no credentials.
async fn subscriber(request: &HttpRequest, app: &App) -> Result<AuthenticatedClient, HandlerError> {
    let proven = token::authenticate(request, app, &Params::default(), app.clock.now()).await?;
    if proven.client().serves.is_empty() {
        let detail = Detail::new("feed.denied", "no_resource_server");
        return Err(HandlerError::Error(Error::invalid_client(detail)));
    }
    Ok(proven)
}

async fn frames(request: &HttpRequest, app: &Data<App>) -> Result<Vec<String>, Stopped> {
    subscriber(request, app).await?;
    let query = query(request)?;
    let after = position(&query)?;
    let wait = query.one("wait").map_err(|_| malformed("wait"))?;
    let wait = match wait.map(str::parse::<u64>) {
        None => Duration::ZERO,
        Some(Ok(secs)) if secs <= LONGEST_POLL.as_secs() => Duration::from_secs(secs),
        Some(_) => return Err(malformed("wait").into()),
    };
    must_not_be_ahead(request, app, after).await?;
    wait_for_news(app, after, wait).await;
    // One for each question: what an answer costs in memory does not grow with the feed.
    Ok(vec![make(app, after).await?.jws])
}

/// Off the event loop where there is much to sign. A thread for each of a thousand subscribers that come
/// back at once would cost more than all their frames.
async fn make(app: &Data<App>, after: Position) -> Result<feed::Signed, HandlerError> {
    let (node, keys) = (app.clone(), app.keys());
    if app.feed.live_records() <= FEW {
        return Ok(app.feed.frame_after(after, &keys)?);
    }
    let made = tokio::task::spawn_blocking(move || node.feed.frame_after(after, &keys));
    let made = made.await.map_err(Error::unsigned)?;
    Ok(made?)
}

/// A position that this feed has not been at: asked once more, since another node may be ahead. That
/// costs us a look at the database, so it counts for the caller's address; nothing else here does.
async fn must_not_be_ahead(request: &HttpRequest, app: &App, at: Position) -> Result<(), Stopped> {
    if !is_ahead(app, at) {
        rate_limit::give_back(request);
        return Ok(());
    }
    // Without an answer the old place is good enough to say no, and not to say that the database went
    // back: a node that is cut off is behind its neighbours.
    let is_certain = app.poll().await.is_ok();
    if is_ahead(app, at) {
        return Err(Stopped::Ahead { is_certain });
    }
    Ok(())
}

fn is_ahead(app: &App, at: Position) -> bool {
    app.feed
        .place()
        .is_some_and(|here| (at.epoch, at.seq) > (here.epoch, here.seq))
}

/// Until there is something after the position, or the time is over.
async fn wait_for_news(app: &App, after: Position, wait: Duration) {
    let mut news = app.feed.news();
    let stands = || {
        app.feed
            .place()
            .is_some_and(|here| (here.epoch, here.seq) == (after.epoch, after.seq))
    };
    let changed = async { while stands() && news.changed().await.is_ok() {} };
    // Nothing new is an answer, too, and a node that stops keeps nobody waiting.
    tokio::select! {
        _ = timeout(wait, changed) => {}
        () = app.draining.begun() => {}
    }
}

fn query(request: &HttpRequest) -> Result<Params, HandlerError> {
    extract::query(request).map_err(|_| malformed("query"))
}

/// `after`; absent or `0`: from the beginning.
fn position(query: &Params) -> Result<Position, HandlerError> {
    match query.one("after").map_err(|_| malformed("after"))? {
        None | Some("0") => Ok(Position::default()),
        Some(text) => text.parse().map_err(|_| malformed("after")),
    }
}

async fn subscribe(request: &HttpRequest, app: &Data<App>) -> Result<Subscriber, Stopped> {
    let standing = app.feed.streams.active_subscribers();
    let proven = subscriber(request, app).await?;
    let resumed = request.headers().get("Last-Event-ID");
    let at = match resumed {
        None => position(&query(request)?)?,
        Some(id) => {
            let id = id.to_str().ok().and_then(|id| id.parse().ok());
            id.ok_or_else(|| malformed("last_event_id"))?
        }
    };
    must_not_be_ahead(request, app, at).await?;
    if app.feed.place().is_none() || app.feed.is_restored() {
        return Err(HandlerError::from(FeedError::Feed).into());
    }
    let client = proven.client();
    let counted = app.feed.streams.open(&client.id);
    let counted = counted.map_err(|_| full("streams"))?;
    // A stream counts for its subscriber, and no longer for its address.
    timed_stream::release(request);
    let [chance] = app.entropy.bytes::<1>();
    // From nine tenths to eleven tenths of the hour.
    let life = STREAM_LIFE.mul_f64(0.9 + 0.2 * f64::from(chance) / 255.0);
    Ok(Subscriber {
        client: client.id.clone(),
        auth_epoch: client.auth_epoch,
        at,
        beats: 0,
        begun: false,
        over: false,
        news: app.feed.news(),
        standing,
        begun_at: app.clock.uptime(),
        life,
        app: app.clone(),
        _counted: counted,
    })
}

/// An open stream. It has no queue: it knows where it stands, and reads on when its reader has taken
/// what it had, so that a slow one costs no memory.
struct Subscriber {
    app: Data<App>,
    client: ClientId,
    auth_epoch: i64,
    at: Position,
    beats: u64,
    begun: bool,
    over: bool,
    news: watch::Receiver<u64>,
    standing: watch::Receiver<Arc<ActiveSubscribers>>,
    begun_at: Uptime,
    life: Duration,
    _counted: Stream,
}

impl Subscriber {
    /// The next bytes; `None` at the end.
    async fn read(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.begun, true) {
            return Some(Bytes::from_static(b": portcullis\n\n"));
        }
        if self.over {
            return None;
        }
        loop {
            if self.app.draining.is_on() || self.is_old() {
                return Some(self.last_words());
            }
            self.news.mark_unchanged();
            match self.app.feed.next(self.at, &mut self.beats) {
                Next::Event(bytes, at) => {
                    self.at = at;
                    return Some(bytes);
                }
                Next::Behind => return self.catch_up().await,
                Next::Over => return Some(self.last_words()),
                Next::Nothing => {}
            }
            tokio::select! {
                changed = self.news.changed() => changed.ok()?,
                () = self.app.draining.begun() => {}
                changed = self.standing.changed() => {
                    changed.ok()?;
                    let standing = Arc::clone(&self.standing.borrow_and_update());
                    if !standing.includes(&self.client, self.auth_epoch) {
                        return Some(self.last_words());
                    }
                }
            }
        }
    }

    /// What this stream missed, in a frame of its own.
    async fn catch_up(&mut self) -> Option<Bytes> {
        let signed = make(&self.app, self.at).await.ok()?;
        self.at = signed.position;
        Some(feed::event(&signed))
    }

    /// Heartbeats wake it often enough to see that.
    fn is_old(&self) -> bool {
        self.app.clock.uptime().since(self.begun_at) >= self.life
    }

    fn last_words(&mut self) -> Bytes {
        self.over = true;
        Bytes::from_static(RETRY.as_bytes())
    }
}

async fn acknowledge(
    request: &HttpRequest,
    app: &Data<App>,
    body: Payload,
) -> Result<AckAnswer, Stopped> {
    let proven = subscriber(request, app).await?;
    // One that proves that we are behind carries a frame.
    let read = body.to_bytes_limited(BODY_BYTES + FRAME_MAX_BYTES);
    let body = match tokio::time::timeout(BODY_TIME, read).await {
        Ok(Ok(Ok(body))) => body,
        Ok(Err(_)) => return Err(HandlerError::ErrorPage(error::ErrorPage::BODY_TOO_LARGE).into()),
        Ok(Ok(Err(_))) => return Err(malformed("body").into()),
        Err(_) => return Err(HandlerError::ErrorPage(error::ErrorPage::TOO_SLOW).into()),
    };
    let ack: Ack = serde_json::from_slice(&body).map_err(|_| malformed("body"))?;
    let is_name = |text: &str, most: usize| {
        (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    };
    if !is_name(&ack.instance, INSTANCE_BYTES) {
        return Err(malformed("instance").into());
    }
    if ack.kids.len() > ACK_KIDS || !ack.kids.iter().all(|kid| is_name(kid, 64)) {
        return Err(malformed("kids").into());
    }
    let at = Position {
        epoch: ack.epoch,
        seq: ack.seq,
    };
    if let Err(ahead) = must_not_be_ahead(request, app, at).await {
        if let (Stopped::Ahead { is_certain: true }, Some(frame)) = (&ahead, &ack.frame)
            && proves_more(app, &app.keys(), frame)
        {
            app.note_restored("subscriber").await?;
        }
        return Err(ahead);
    }
    let noted = app.feed.acks.record(&proven.client().id, ack);
    noted.map_err(|_| full("instances"))?;
    Ok(AckAnswer {
        max_age: proven.max_age().as_secs(),
    })
}

/// Whether a frame that we signed ourselves stands where we are not. A bare claim proves nothing.
fn proves_more(app: &App, keys: &KeyView, jws: &str) -> bool {
    keys.read_frame(jws, app.issuer.as_str())
        .is_some_and(|frame| is_ahead(app, frame.position()))
}
