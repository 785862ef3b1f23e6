//! A connection as the HTTP layer reads and writes it. That layer gives its first request a time, but not
//! those that follow, nor does it mind how slowly an answer is taken: both are watched here, in the stream.

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

use crate::config::limits::{HEADER_TIME, TAKEN_BYTES, UNREAD_TIME};
use crate::http::server::connections::Slot;

/// How often in a row the HTTP layer may look after a connection without reading or writing anything. With
/// a full buffer of requests that nobody waits for (pipelining) it would look for ever.
const IDLE_LOOKS: usize = 1_000;

/// A stream that requests come over.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Whether it is encrypted.
    const ENCRYPTED: bool;

    /// The TCP connection below; none for a Unix socket.
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

/// What is known of a connection while it lasts.
pub struct ConnectionState {
    encrypted: bool,
    /// Counts the connection for its source.
    slot: Cell<Option<Slot>>,
    /// Requests that got as far as us.
    requests: Cell<usize>,
    /// Whether one of them is being answered.
    busy: Cell<bool>,
    /// What was too slow.
    cut: Cell<Option<&'static str>>,
}

/// A request that is being answered.
pub struct Busy(Option<Rc<ConnectionState>>);

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(pulse) = &self.0 {
            pulse.busy.set(false);
        }
    }
}

impl ConnectionState {
    pub(in crate::http) fn of(request: &HttpRequest) -> Option<&Rc<Self>> {
        request.conn_data()
    }

    /// Stops counting the connection for its source.
    pub(in crate::http) fn release(&self) {
        drop(self.slot.take());
    }

    /// A request is answered from now until what is returned goes.
    pub(in crate::http) fn begin(request: &HttpRequest) -> Busy {
        let pulse = Self::of(request).cloned();
        if let Some(pulse) = &pulse {
            pulse.requests.set(pulse.requests.get() + 1);
            pulse.busy.set(true);
        }
        Busy(pulse)
    }

    /// Whether a request came over TLS that ends here.
    pub(in crate::http) fn is_encrypted(request: &HttpRequest) -> bool {
        Self::of(request).is_some_and(|pulse| pulse.encrypted)
    }

    /// What was too slow, if we hung up.
    pub(in crate::http) fn cut(&self) -> Option<&'static str> {
        self.cut.get()
    }

    /// Whether no request came over it.
    pub(in crate::http) fn is_unused(&self) -> bool {
        self.requests.get() == 0
    }

    /// Whether the next request is waited for, and is not the first: that one the HTTP layer sees to.
    fn is_kept(&self) -> bool {
        self.requests.get() > 0 && !self.busy.get()
    }
}

/// The stream with a watch on it.
pub struct TimedStream<T> {
    stream: T,
    pulse: Rc<ConnectionState>,
    /// Whether a part of the next head is here, and how many requests there were before it.
    begun: bool,
    heard: usize,
    head: Deadline,
    answer: Deadline,
    /// Bytes of the answer that were taken since its watch began.
    taken: usize,
    idle: usize,
}

/// A timer that wakes whoever waits.
#[derive(Default)]
struct Deadline(Option<Pin<Box<Sleep>>>);

impl Deadline {
    /// Whether a time has passed since this was asked first.
    fn is_over(&mut self, time: Duration, context: &mut Context<'_>) -> bool {
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep(time)));
        timer.as_mut().poll(context).is_ready()
    }

    fn stop(&mut self) {
        self.0 = None;
    }
}

impl<T: Stream> TimedStream<T> {
    /// A connection that was just accepted and counted.
    pub(in crate::http) fn new(stream: T, slot: Slot) -> Self {
        let pulse = ConnectionState {
            encrypted: T::ENCRYPTED,
            slot: Cell::new(Some(slot)),
            requests: Cell::new(0),
            busy: Cell::new(false),
            cut: Cell::new(None),
        };
        Self {
            stream,
            pulse: Rc::new(pulse),
            begun: false,
            heard: 0,
            head: Deadline::default(),
            answer: Deadline::default(),
            taken: 0,
            idle: 0,
        }
    }

    /// What is known of it.
    pub(in crate::http) fn pulse(&self) -> Rc<ConnectionState> {
        Rc::clone(&self.pulse)
    }

    /// Hangs up.
    fn cut(&self, what: &'static str) -> Error {
        self.pulse.cut.set(Some(what));
        ErrorKind::TimedOut.into()
    }

    /// Nothing moved. That may not go on for ever, and not in circles.
    fn waits<R>(&mut self, context: &mut Context<'_>) -> Poll<Result<R, Error>> {
        if self.answer.is_over(UNREAD_TIME, context) {
            return Poll::Ready(Err(self.cut("answer")));
        }
        self.looked()?;
        Poll::Pending
    }

    fn looked(&mut self) -> Result<(), Error> {
        self.idle += 1;
        match self.idle > IDLE_LOOKS {
            true => Err(self.cut("pipeline")),
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
        self.idle = 0;
        // A request may be answered before we are asked to read again, so its number tells.
        let requests = self.pulse.requests.get();
        if requests != self.heard || !self.pulse.is_kept() {
            self.heard = requests;
            self.begun = false;
            self.head.stop();
        } else if self.begun && self.head.is_over(HEADER_TIME, context) {
            return Poll::Ready(Err(self.cut("head")));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        // The HTTP layer reads on until nothing is there; then the watch wakes it.
        self.begun |= buffer.filled().len() > before;
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
            return self.waits(context);
        };
        self.idle = 0;
        self.taken += written;
        if self.taken >= TAKEN_BYTES {
            self.taken = 0;
            self.answer.stop();
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if Pin::new(&mut self.stream).poll_flush(context)?.is_pending() {
            return self.waits(context);
        }
        self.looked()?;
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
