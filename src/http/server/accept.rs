//! Accepts connections: each worker counts a connection, performs the TLS handshake and passes the connection to the
//! HTTP layer. Requests that the HTTP layer rejects by itself are counted and logged here.

use std::fmt::Debug;
use std::fs::Permissions;
use std::future::ready;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use actix_http::error::{DispatchError, ParseError};
use actix_http::{HttpService, Protocol, Request};
use actix_server::{GracefulShutdownSignal, ServerBuilder};
use actix_service::{
    Service, ServiceFactory, ServiceFactoryExt, apply_fn_factory, fn_service, map_config,
};
use actix_tls::accept::rustls_0_23::{Acceptor, TlsStream};
use actix_web::Error;
use actix_web::dev::{AppConfig, ServiceResponse};
use actix_web::rt::net::TcpStream;
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use rustls::ServerConfig;
use socket2::{Domain, Socket, Type};

use crate::config::Address;
use crate::config::limits::{HANDSHAKE_TIME, HEADER_TIME, KEEP_ALIVE};
use crate::http::server::client_address;
use crate::http::server::connections::{Connections, Slot};
use crate::http::server::timed_stream::{ConnectionState, Stream, TimedStream};
use crate::metrics::REFUSED;
use crate::time::Clock;

/// Connections that the system queues until a worker accepts them.
const BACKLOG: i32 = 1_024;
/// Precision of the HTTP layer's clock.
const TICK: Duration = Duration::from_millis(600);
/// Longest time for the shutdown of a connection.
const GOODBYE: Duration = Duration::from_secs(1);

/// A connection that is counted for its source.
struct Admitted<T> {
    stream: T,
    slot: Slot,
}

/// What the connections of a listener share.
#[derive(Clone)]
pub struct Accept<F> {
    /// Name of the listener.
    pub name: &'static str,
    /// Counts the connections.
    pub connections: Connections,
    /// Signals graceful shutdown.
    pub stop: GracefulShutdownSignal,
    /// Measures how long connections last.
    pub clock: Clock,
    /// Creates the application of a worker.
    pub app: F,
}

impl<F, S> Accept<F>
where
    F: Fn() -> S + Send + Clone + 'static,
    S: ServiceFactory<Request, Config = AppConfig, Response = ServiceResponse, Error = Error>
        + 'static,
    S::InitError: Debug,
    S::Service: 'static,
    <S::Service as Service<Request>>::Future: 'static,
{
    /// Binds a server to an address, with TLS if configured. Returns the addresses of its TCP sockets.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(
        self,
        mut server: ServerBuilder,
        address: &Address,
        tls: Option<ServerConfig>,
    ) -> std::io::Result<(ServerBuilder, Vec<SocketAddr>)> {
        let (host, port) = match address {
            Address::Tcp { host, port } => (bare(host), *port),
            Address::Unix(path) => {
                let socket = unix_socket(path)?;
                let server = server.listen_uds(self.name, socket, move || self.plain())?;
                return Ok((server, Vec::new()));
            }
        };
        let mut acceptor = tls.map(|mut tls| {
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            Acceptor::new(tls)
        });
        if let Some(acceptor) = &mut acceptor {
            acceptor.set_handshake_timeout(HANDSHAKE_TIME);
        }
        let mut addresses = Vec::new();
        for listener in listen((host.as_str(), port))? {
            addresses.push(listener.local_addr()?);
            let (accept, acceptor) = (self.clone(), acceptor.clone());
            server = match acceptor {
                None => server.listen(self.name, listener, move || accept.plain()),
                Some(acceptor) => server.listen(self.name, listener, move || {
                    let handshake = accept.handshake(acceptor.clone());
                    handshake.and_then(accept.service().map_err(drop))
                }),
            }?;
        }
        Ok((server, addresses))
    }

    /// Serves connections without TLS.
    fn plain<T: Stream>(
        &self,
    ) -> impl ServiceFactory<T, Config = (), Response = (), Error = (), InitError = ()> + use<T, F, S>
    {
        let connections = self.connections.clone();
        let admit = fn_service(move |stream: T| {
            let slot = connections.admit(stream.tcp());
            ready(slot.map(|slot| Admitted { stream, slot }).ok_or(()))
        });
        admit.and_then(self.service().map_err(drop))
    }

    /// Counts a connection and performs its TLS handshake. Closes it when the handshake takes too long, or when it is
    /// the oldest one and a new one needs its place.
    fn handshake(
        &self,
        acceptor: Acceptor,
    ) -> impl ServiceFactory<
        TcpStream,
        Config = (),
        Response = Admitted<TlsStream<TcpStream>>,
        Error = (),
        InitError = (),
    > + use<F, S> {
        let (connections, clock) = (self.connections.clone(), self.clock.clone());
        apply_fn_factory(acceptor.map_err(drop), move |stream: TcpStream, tls: &_| {
            let Some((slot, handshake)) = connections.admit_handshake(&stream) else {
                return Either::Left(ready(Err(())));
            };
            let peer = stream.peer_addr().ok();
            let (clock, started) = (clock.clone(), clock.uptime());
            // Boxed, so that its state does not occupy memory while requests are served.
            let accepted = Box::pin(Service::call(tls, stream));
            Either::Right(select(accepted, handshake).map(move |first| match first {
                Either::Left((Ok(stream), _)) => Ok(Admitted { stream, slot }),
                Either::Left((Err(()), _)) => {
                    if clock.uptime().since(started) >= HANDSHAKE_TIME {
                        report("closed", "http.timeout", "handshake", peer);
                    }
                    Err(())
                }
                Either::Right(((), _)) => {
                    report("closed", "http.conn_limit", "oldest_handshake", peer);
                    Err(())
                }
            }))
        })
    }

    fn service<T: Stream>(
        &self,
    ) -> impl ServiceFactory<
        Admitted<T>,
        Config = (),
        Response = (),
        Error = DispatchError,
        InitError = (),
    > + use<T, F, S> {
        let stop = self.stop.clone();
        let app = (self.app)().map_err(|error| error.error_response());
        let http = HttpService::build()
            .keep_alive(KEEP_ALIVE)
            .client_request_timeout(HEADER_TIME)
            .client_disconnect_timeout(GOODBYE)
            .graceful_shutdown_signal(move || {
                let stop = stop.clone();
                async move { stop.notified().await }
            })
            .on_connect_ext(|stream: &TimedStream<T>, connection| {
                connection.insert(stream.state());
            })
            .finish(map_config(app, |()| AppConfig::default()));
        let clock = self.clock.clone();
        apply_fn_factory(http, move |admitted: Admitted<T>, http: &_| {
            let Admitted { stream, slot } = admitted;
            let peer = stream.tcp().and_then(|tcp| tcp.peer_addr().ok());
            let stream = TimedStream::new(stream, slot);
            let state = stream.state();
            let served = Service::call(http, (stream, Protocol::Http1, peer));
            let (clock, started) = (clock.clone(), clock.uptime());
            // Not an async block, which would store the connection twice: before and during the await.
            served.inspect(move |outcome| {
                log_closed_connection(peer, outcome, &state, clock.uptime().since(started));
            })
        })
    }
}

/// Logs why a connection was closed, if the HTTP layer or a timeout closed it.
fn log_closed_connection(
    peer: Option<SocketAddr>,
    outcome: &Result<(), DispatchError>,
    state: &ConnectionState,
    duration: Duration,
) {
    let (code, event, reason) = match outcome {
        Err(DispatchError::Parse(ParseError::TooLarge)) => ("431", "http.too_large", "head"),
        Err(DispatchError::Parse(_)) => ("400", "http.malformed", "request"),
        // By this server, or by the kernel, which has the same timeout for a peer that acknowledges nothing.
        Err(DispatchError::Io(error)) if error.kind() == ErrorKind::TimedOut => (
            "closed",
            "http.timeout",
            state.timeout().unwrap_or("answer"),
        ),
        _ => match state.timeout() {
            Some(reason) => ("closed", "http.timeout", reason),
            None if state.is_unused() && duration + TICK >= HEADER_TIME => {
                ("408", "http.timeout", "head")
            }
            None => return,
        },
    };
    report(code, event, reason, peer);
}

/// Counts and logs a connection or a request that was rejected before the application received it.
fn report(code: &'static str, event: &'static str, reason: &'static str, peer: Option<SocketAddr>) {
    REFUSED.count(["none".into(), code.into(), reason.into()]);
    tracing::warn!(event, reason, ip = %client_address::peer(peer));
}

/// Listens on every address of a host that can be bound.
fn listen(host: impl ToSocketAddrs) -> std::io::Result<Vec<TcpListener>> {
    let (mut bound, mut failed) = (Vec::new(), None);
    for address in host.to_socket_addrs()? {
        match listen_on(address) {
            Ok(listener) => bound.push(listener),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if bound.is_empty() => Err(error),
        _ => Ok(bound),
    }
}

fn listen_on(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Returns a host without the brackets of an IPv6 address.
fn bare(host: &str) -> String {
    host.trim_matches(['[', ']']).to_owned()
}

/// Creates a Unix socket that its owner and group may use. Replaces the file that a killed server left behind, but not
/// a socket on which another process listens.
fn unix_socket(path: &Path) -> std::io::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(ErrorKind::AddrInUse.into());
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}
