//! A connection with timeouts that the HTTP layer does not have. That layer limits the time to receive the first
//! request head, but not the following ones, and not how slowly the peer receives a response. Both are limited here, in
//! the stream.

use std::cell::Cell;
use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::HttpRequest;
use actix_web::rt::net::{TcpStream, UnixStream};
use actix_web::rt::time::{Sleep, sleep};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::config::limits::{BETWEEN_BYTES, HEADER_TIME, TAKEN_BYTES, UNREAD_TIME};
use crate::http::server::connections::Slot;

/// How often in a row the HTTP layer may poll a connection without reading or writing. With a full buffer of pipelined
/// requests it would poll without end.
const IDLE_POLLS: usize = 1_000;

/// A stream that carries requests.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Whether the stream is encrypted.
    const ENCRYPTED: bool;

    /// Returns the TCP connection below; `None` for a Unix socket.
    fn tcp(&self) -> Option<&TcpStream>;
}

impl Stream for TcpStream {
    const ENCRYPTED: bool = false;

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Stream for TlsStream<TcpStream> {
    const ENCRYPTED: bool = true;

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0)
    }
}

impl Stream for UnixStream {
    const ENCRYPTED: bool = false;

    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

/// The state of an open connection.
pub struct ConnectionState {
    is_encrypted: bool,
    /// Counts the connection for its source.
    slot: Cell<Option<Slot>>,
    /// Requests that the application received.
    requests: Cell<usize>,
    /// Whether one of them is being answered.
    is_busy: Cell<bool>,
    /// What exceeded its time, as a log reason.
    timeout: Cell<Option<&'static str>>,
}

/// A request that is being answered, until it is dropped.
pub struct ActiveRequest(Option<Rc<ConnectionState>>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        if let Some(state) = &self.0 {
            state.is_busy.set(false);
        }
    }
}

/// Stops counting the connection of a request for its source.
pub(in crate::http) fn release(request: &HttpRequest) {
    if let Some(state) = ConnectionState::of(request) {
        drop(state.slot.take());
    }
}

impl ConnectionState {
    fn of(request: &HttpRequest) -> Option<&Rc<Self>> {
        request.conn_data()
    }

    /// Marks the connection of a request as busy until the returned value is dropped.
    pub(in crate::http) fn begin(request: &HttpRequest) -> ActiveRequest {
        let state = Self::of(request).cloned();
        if let Some(state) = &state {
            state.requests.set(state.requests.get() + 1);
            state.is_busy.set(true);
        }
        ActiveRequest(state)
    }

    /// Returns whether a request arrived over TLS that this server terminates.
    pub(in crate::http) fn is_encrypted(request: &HttpRequest) -> bool {
        Self::of(request).is_some_and(|state| state.is_encrypted)
    }

    /// Returns what exceeded its time, if the connection was closed for that.
    pub(in crate::http) fn timeout(&self) -> Option<&'static str> {
        self.timeout.get()
    }

    /// Returns whether the connection carried no request.
    pub(in crate::http) fn is_unused(&self) -> bool {
        self.requests.get() == 0
    }

    /// Returns whether the connection waits for a further request. The HTTP layer limits the time of the first one.
    fn is_kept_alive(&self) -> bool {
        self.requests.get() > 0 && !self.is_busy.get()
    }
}

/// A stream with timeouts.
pub struct TimedStream<T> {
    stream: T,
    state: Rc<ConnectionState>,
    /// Whether a part of the next request head was received.
    has_partial_head: bool,
    /// The number of requests when the head was last awaited.
    requests: usize,
    /// Bytes that were received since the last response.
    between: usize,
    head: Deadline,
    answer: Deadline,
    /// Bytes of the response that the peer received since the deadline was set.
    taken: usize,
    /// Polls in a row without reading or writing.
    idle_polls: usize,
}

/// A timer that wakes the task when it elapses.
#[derive(Default)]
struct Deadline(Option<Pin<Box<Sleep>>>);

impl Deadline {
    /// Returns whether `time` has elapsed since the first call.
    fn is_elapsed(&mut self, time: Duration, context: &mut Context<'_>) -> bool {
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep(time)));
        timer.as_mut().poll(context).is_ready()
    }

    fn stop(&mut self) {
        self.0 = None;
    }
}

impl<T: Stream> TimedStream<T> {
    /// Wraps a connection that was accepted and counted.
    pub(in crate::http) fn new(stream: T, slot: Slot) -> Self {
        let state = ConnectionState {
            is_encrypted: T::ENCRYPTED,
            slot: Cell::new(Some(slot)),
            requests: Cell::new(0),
            is_busy: Cell::new(false),
            timeout: Cell::new(None),
        };
        Self {
            stream,
            state: Rc::new(state),
            has_partial_head: false,
            requests: 0,
            between: 0,
            head: Deadline::default(),
            answer: Deadline::default(),
            taken: 0,
            idle_polls: 0,
        }
    }

    /// Returns the state of the connection.
    pub(in crate::http) fn state(&self) -> Rc<ConnectionState> {
        Rc::clone(&self.state)
    }

    /// Records a timeout. Returns the error that closes the connection.
    fn time_out(&self, reason: &'static str) -> Error {
        self.state.timeout.set(Some(reason));
        ErrorKind::TimedOut.into()
    }

    /// Handles a poll that wrote nothing: limits the time and the number of such polls.
    fn wait<R>(&mut self, context: &mut Context<'_>) -> Poll<Result<R, Error>> {
        if self.answer.is_elapsed(UNREAD_TIME, context) {
            return Poll::Ready(Err(self.time_out("answer")));
        }
        self.count_idle_poll()?;
        Poll::Pending
    }

    fn count_idle_poll(&mut self) -> Result<(), Error> {
        self.idle_polls += 1;
        match self.idle_polls > IDLE_POLLS {
            true => Err(self.time_out("pipeline")),
            false => Ok(()),
        }
    }
}

impl<T: Stream> AsyncRead for TimedStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), Error>> {
        self.idle_polls = 0;
        // A request may be answered before the next read, so the number of requests is compared.
        let requests = self.state.requests.get();
        if requests != self.requests || !self.state.is_kept_alive() {
            self.requests = requests;
            self.has_partial_head = false;
            self.between = 0;
            self.head.stop();
        } else if self.has_partial_head && self.head.is_elapsed(HEADER_TIME, context) {
            return Poll::Ready(Err(self.time_out("head")));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        // The HTTP layer reads until nothing is left. Then the deadline wakes it.
        let received = buffer.filled().len() - before;
        self.has_partial_head |= received > 0;
        // It also reads what is left of a body that was refused, so that the peer can read the response.
        self.between += received;
        if self.between > BETWEEN_BYTES && self.state.is_kept_alive() {
            return Poll::Ready(Err(self.time_out("body")));
        }
        read
    }
}

impl<T: Stream> AsyncWrite for TimedStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, Error>> {
        let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(context, bytes)? else {
            return self.wait(context);
        };
        self.idle_polls = 0;
        self.taken += written;
        if self.taken >= TAKEN_BYTES {
            self.taken = 0;
            self.answer.stop();
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if Pin::new(&mut self.stream).poll_flush(context)?.is_pending() {
            return self.wait(context);
        }
        self.count_idle_poll()?;
        self.taken = 0;
        self.answer.stop();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
