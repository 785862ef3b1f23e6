//! An issuer with a revocation feed on loopback. It uses real sockets and signed frames, and tests
//! can inject faults.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use portcullis_verifier::{
    Ack, AckAnswer, Builder, Claims, Frame, Frames, JwkSet, Kind, ManualClock, Position, Record,
    Records, Verifier,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;

use crate::signer::{AUDIENCE, NOW, Signer, claims};

pub const CLIENT: &str = "billing service";
pub const SECRET: &str = "pcl_sec_x";
/// `billing+service:pcl_sec_x`, with client ID and secret form-encoded (RFC 6749 §2.3.1).
const BASIC: &str = "Basic YmlsbGluZytzZXJ2aWNlOnBjbF9zZWNfeA==";

/// The data and the behaviour of the issuer.
pub struct State {
    pub epoch: u64,
    pub records: Vec<Record>,
    /// Maximum number of records per frame in responses to `GET /revocations`.
    pub per_frame: usize,
    /// Changes the frames of these responses.
    pub tamper: Option<fn(Vec<String>) -> Vec<String>>,
    /// Status code of the feed.
    pub status: u16,
    pub ack_status: u16,
    /// The maximum age that the registration allows. `None` allows any.
    pub allowed: Option<u64>,
    /// Response of the introspection endpoint for every token. `None` is an error.
    pub active: Option<bool>,
    /// Base URL of the introspection endpoint, if it is another server.
    pub introspection_at: Option<String>,
    pub token_keys: Vec<Signer>,
    pub feed_keys: Vec<Signer>,
    pub jwks_etag: &'static str,
    /// Method, path and query of all requests in order.
    pub asked: Vec<String>,
    pub acks: Vec<Ack>,
}

pub struct FeedIssuer {
    pub url: String,
    pub clock: ManualClock,
    pub state: Arc<Mutex<State>>,
    /// Text for all open streams. `None` closes them.
    stream: broadcast::Sender<Option<String>>,
    /// Number of requests.
    requests: watch::Sender<u64>,
}

/// Returns the key that signs frames.
pub fn feed_key() -> Signer {
    Signer::es256(77)
}

/// Returns the key that signs tokens.
pub fn token_key() -> Signer {
    Signer::es256(1)
}

pub fn record(kind: Kind, value: &str, floor: u32) -> Record {
    Record::new(kind, value, floor, 1_800_000_900)
}

pub fn session(number: usize) -> Record {
    record(Kind::Session, &format!("session-{number}"), 0)
}

impl FeedIssuer {
    pub async fn start() -> Self {
        Self::at(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// Starts an issuer on this listener.
    pub fn at(listener: TcpListener) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            epoch: 1,
            records: vec![],
            per_frame: 4096,
            tamper: None,
            status: 200,
            ack_status: 200,
            allowed: Some(60),
            active: None,
            introspection_at: None,
            token_keys: vec![token_key()],
            feed_keys: vec![feed_key()],
            jwks_etag: "\"one\"",
            asked: vec![],
            acks: vec![],
        }));
        let issuer = Self {
            url,
            clock: ManualClock::at(NOW),
            state,
            stream: broadcast::channel(256).0,
            requests: watch::Sender::new(0),
        };
        tokio::spawn(accept(listener, issuer.clone()));
        issuer
    }

    fn clone(&self) -> Self {
        Self {
            url: self.url.clone(),
            clock: self.clock.clone(),
            state: self.state.clone(),
            stream: self.stream.clone(),
            requests: self.requests.clone(),
        }
    }

    pub fn subscriber(&self) -> Builder {
        Verifier::builder(&self.url, AUDIENCE)
            .subscriber(CLIENT, SECRET)
            .instance("billing-1")
            .clock(&self.clock)
    }

    /// Starts a verifier, and waits until it has caught up and reads the stream.
    pub async fn followed_by(&self, builder: Builder) -> Verifier {
        let verifier = builder.start().await.unwrap();
        self.was_asked("GET /revocations/stream").await;
        verifier
    }

    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// Returns the claims of a valid token of session `number`.
    pub fn claims(&self, number: usize) -> Claims {
        let now = self.clock.wall_us() / 1_000_000;
        Claims {
            iss: self.url.clone(),
            sid: Some(format!("session-{number}")),
            jti: format!("token-{number}"),
            grant_id: Some(format!("grant-{number}")),
            iat: now,
            exp: now + 300,
            ..claims()
        }
    }

    pub fn token(&self, number: usize) -> String {
        token_key().token(&self.claims(number))
    }

    /// Adds records without sending them.
    pub fn revoke(&self, records: &[Record]) {
        self.change(|state| state.records.extend(records));
    }

    /// Returns the claims of a frame with all records after `after`, as of now.
    pub fn frame(&self, after: u64) -> Frame {
        self.limited_frame(after, u64::MAX)
    }

    /// Returns a frame as [`frame`](Self::frame) does, with at most `max` records.
    fn limited_frame(&self, after: u64, max: u64) -> Frame {
        let state = self.state.lock().unwrap();
        let now = self.clock.wall_us();
        let end = state.records.len() as u64;
        let last = end.min(after.saturating_add(max)).max(after.min(end));
        let index = |number: u64| usize::try_from(number.min(end)).unwrap();
        let records = state.records[index(after)..index(last)].to_vec();
        Frame {
            iss: self.url.clone(),
            v: 1,
            iat: now / 1_000_000,
            exp: now / 1_000_000 + 30,
            epoch: state.epoch,
            after,
            last,
            records: Records(records),
            at_us: now,
            as_of_us: (last == end).then_some(now),
            jwks_etag: state.jwks_etag.into(),
        }
    }

    pub fn heartbeat(&self) -> Frame {
        self.frame(self.last())
    }

    pub fn last(&self) -> u64 {
        self.state.lock().unwrap().records.len() as u64
    }

    /// Signs a frame and sends it on all streams.
    pub fn send(&self, frame: &Frame) {
        self.send_raw(&signed(frame));
    }

    pub fn send_raw(&self, frame: &str) {
        self.write(&format!("id: x\ndata: {frame}\n\n"));
    }

    pub fn write(&self, text: &str) {
        // An error means that no stream is open.
        let _ = self.stream.send(Some(text.to_owned()));
    }

    /// Closes the streams.
    pub fn hang_up(&self) {
        let _ = self.stream.send(None);
    }

    /// Adds records, sends them, and waits until they are acknowledged.
    pub async fn revoke_and_tell(&self, records: &[Record]) {
        let after = self.last();
        self.revoke(records);
        self.send(&self.frame(after));
        self.acked(self.last()).await;
    }

    /// Waits until an instance acknowledges record `seq`.
    pub async fn acked(&self, seq: u64) {
        self.until(&format!("ack {seq}"), |state| {
            let epoch = state.epoch;
            state
                .acks
                .iter()
                .any(|ack| ack.epoch == epoch && ack.seq >= seq)
        })
        .await;
    }

    /// Waits for a request that begins with `start`.
    pub async fn was_asked(&self, start: &str) {
        self.was_asked_times(start, 1).await;
    }

    pub async fn was_asked_times(&self, start: &str, times: usize) {
        self.until(start, |state| asked(state, start) >= times)
            .await;
    }

    pub fn times_asked(&self, start: &str) -> usize {
        asked(&self.state.lock().unwrap(), start)
    }

    async fn until(&self, what: &str, condition: impl Fn(&State) -> bool) {
        let mut requests = self.requests.subscribe();
        let wait = requests.wait_for(|_| condition(&self.state.lock().unwrap()));
        let result = timeout(Duration::from_secs(20), wait).await;
        assert!(result.is_ok(), "timed out waiting for: {what}");
    }
}

fn asked(state: &State, start: &str) -> usize {
    let asked = state.asked.iter();
    asked.filter(|request| request.starts_with(start)).count()
}

pub fn signed(frame: &Frame) -> String {
    signed_by(&feed_key(), frame)
}

pub fn signed_by(signer: &Signer, frame: &Frame) -> String {
    let kid = signer.kid();
    let header = format!(r#"{{"alg":"ES256","typ":"revocation-frame+jwt","kid":"{kid}"}}"#);
    signer.sign(&header, &serde_json::to_string(frame).unwrap())
}

async fn accept(listener: TcpListener, issuer: FeedIssuer) {
    while let Ok((connection, _)) = listener.accept().await {
        let issuer = issuer.clone();
        tokio::spawn(async move {
            // The client may close the connection at any time.
            let _ = issuer.serve(BufStream::new(connection)).await;
        });
    }
}

struct Request {
    /// `GET /path?query`
    line: String,
    headers: Vec<String>,
    body: String,
}

impl Request {
    async fn read(connection: &mut BufStream<TcpStream>) -> std::io::Result<Self> {
        let mut line = String::new();
        connection.read_line(&mut line).await?;
        let mut headers = Vec::new();
        loop {
            let mut header = String::new();
            connection.read_line(&mut header).await?;
            if header.trim().is_empty() {
                break;
            }
            headers.push(header.trim().to_owned());
        }
        let mut request = Self {
            line: line.trim().trim_end_matches(" HTTP/1.1").to_owned(),
            headers,
            body: String::new(),
        };
        let length = request
            .header("content-length")
            .unwrap_or("0")
            .parse()
            .unwrap();
        let mut body = vec![0; length];
        connection.read_exact(&mut body).await?;
        request.body = String::from_utf8(body).unwrap();
        Ok(request)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|header| {
            let (field, value) = header.split_once(": ")?;
            field.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn is_authenticated(&self) -> bool {
        self.header("authorization") == Some(BASIC)
    }
}

impl FeedIssuer {
    async fn serve(&self, mut connection: BufStream<TcpStream>) -> std::io::Result<()> {
        let request = Request::read(&mut connection).await?;
        let path = request.line.split(['?', ' ']).nth(1).unwrap_or_default();
        if path == "/revocations/stream" {
            return self.serve_stream(&request, connection).await;
        }
        let (status, body) = self.respond(path, &request);
        let etag = self.state.lock().unwrap().jwks_etag;
        let length = body.len();
        let response = format!(
            "HTTP/1.1 {status} -\r\nConnection: close\r\nETag: {etag}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.log_request(&request);
        connection.write_all(response.as_bytes()).await?;
        connection.flush().await
    }

    fn log_request(&self, request: &Request) {
        self.change(|state| state.asked.push(request.line.clone()));
        self.requests.send_modify(|count| *count += 1);
    }

    async fn serve_stream(
        &self,
        request: &Request,
        mut connection: BufStream<TcpStream>,
    ) -> std::io::Result<()> {
        let mut stream = self.stream.subscribe();
        let status = self.state.lock().unwrap().status;
        if status != 200 || !request.is_authenticated() {
            let response = format!(
                "HTTP/1.1 {} -\r\nContent-Length: 0\r\n\r\n",
                status.max(401)
            );
            connection.write_all(response.as_bytes()).await?;
            return connection.flush().await;
        }
        let resume: Position = request.header("last-event-id").unwrap().parse().unwrap();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n: hello\n\n";
        connection.write_all(head.as_bytes()).await?;
        if resume.seq < self.last() {
            let missed = signed(&self.frame(resume.seq));
            connection
                .write_all(format!("data: {missed}\n\n").as_bytes())
                .await?;
        }
        connection.flush().await?;
        self.log_request(request);
        while let Ok(Some(text)) = stream.recv().await {
            connection.write_all(text.as_bytes()).await?;
            connection.flush().await?;
        }
        Ok(())
    }

    fn respond(&self, path: &str, request: &Request) -> (u16, String) {
        let keys = |signers: &[Signer]| {
            let keys = signers.iter().map(|signer| signer.jwk.clone()).collect();
            serde_json::to_string(&JwkSet { keys }).unwrap()
        };
        let state = self.state.lock().unwrap();
        match path {
            "/.well-known/openid-configuration" => {
                let url = &self.url;
                let introspection = state.introspection_at.as_ref().unwrap_or(url);
                let document = serde_json::json!({
                    "issuer": url, "jwks_uri": format!("{url}/jwks"),
                    "introspection_endpoint": format!("{introspection}/introspect"),
                });
                (200, document.to_string())
            }
            "/jwks" => (200, keys(&state.token_keys)),
            "/revocations/jwks" => (200, keys(&state.feed_keys)),
            _ if !request.is_authenticated() => (401, String::new()),
            "/revocations" if state.status != 200 => (state.status, String::new()),
            "/revocations" => {
                drop(state);
                (200, self.catch_up(request))
            }
            "/revocations/ack" => {
                drop(state);
                self.accept_ack(request)
            }
            "/introspect" => match state.active {
                Some(active) if request.body.starts_with("token=ey") => {
                    (200, serde_json::json!({ "active": active }).to_string())
                }
                _ => (503, String::new()),
            },
            _ => (404, String::new()),
        }
    }

    fn catch_up(&self, request: &Request) -> String {
        let after = request
            .line
            .split_once("after=")
            .map(|(_, after)| after.parse());
        let after: Position = after.transpose().unwrap().unwrap_or_default();
        let (epoch, per_frame, tamper) = {
            let state = self.state.lock().unwrap();
            (state.epoch, state.per_frame as u64, state.tamper)
        };
        let mut after = if after.epoch == epoch { after.seq } else { 0 };
        let mut frames = Vec::new();
        loop {
            let frame = self.limited_frame(after, per_frame);
            frames.push(signed(&frame));
            after = frame.last;
            if frame.as_of_us.is_some() || frames.len() == 16 {
                break;
            }
        }
        let frames = tamper.map_or(frames.clone(), |tamper| tamper(frames));
        serde_json::to_string(&Frames { frames }).unwrap()
    }

    fn accept_ack(&self, request: &Request) -> (u16, String) {
        let ack: Ack = serde_json::from_str(&request.body).unwrap();
        let mut state = self.state.lock().unwrap();
        state.acks.push(ack);
        let answer = AckAnswer {
            max_age: state.allowed,
        };
        (state.ack_status, serde_json::to_string(&answer).unwrap())
    }
}
