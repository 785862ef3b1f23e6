//! From a connection to the requests on it: each worker counts what was accepted, lets TLS shake hands, and
//! hands it to the HTTP layer. Also what becomes of requests that the HTTP layer refuses before we see them.

use std::fmt::Debug;
use std::future::ready;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
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
use crate::http::server::listeners;
use crate::http::server::timed_stream::{ConnectionState, Stream, TimedStream};
use crate::metrics::REFUSED;
use crate::time::Clock;

/// Connections that the system holds until a worker takes them.
const BACKLOG: i32 = 1_024;
/// How exact the HTTP layer's clock is.
const TICK: Duration = Duration::from_millis(600);
/// How long a connection may take to end.
const GOODBYE: Duration = Duration::from_secs(1);

/// A connection that was counted for its source.
struct Admitted<T> {
    stream: T,
    slot: Slot,
}

/// What all connections of a listener share; `app` makes the application of a worker.
#[derive(Clone)]
pub struct Accept<F> {
    /// The name of the listener.
    pub name: &'static str,
    /// How many there are.
    pub connections: Connections,
    /// When to stop.
    pub stop: GracefulShutdownSignal,
    /// How long they last.
    pub clock: Clock,
    /// What answers.
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
    /// Binds a server to an address, over TLS if it is to be spoken; the addresses of its sockets.
    ///
    /// # Errors
    /// When the address is not to be had.
    pub fn bind(
        self,
        mut server: ServerBuilder,
        address: &Address,
        tls: Option<ServerConfig>,
    ) -> std::io::Result<(ServerBuilder, Vec<SocketAddr>)> {
        let (host, port) = match address {
            Address::Tcp { host, port } => (listeners::bare(host), *port),
            Address::Unix(path) => {
                let socket = listeners::socket(path)?;
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

    /// Serves requests without encryption.
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

    /// Counts a connection and lets it shake hands. It is closed when the handshake takes too long, or when
    /// it is the oldest and another needs its place.
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
            let (clock, begun) = (clock.clone(), clock.uptime());
            // Its state is not kept beside that of the requests that follow.
            let accepted = Box::pin(Service::call(tls, stream));
            Either::Right(select(accepted, handshake).map(move |first| match first {
                Either::Left((Ok(stream), _)) => Ok(Admitted { stream, slot }),
                Either::Left((Err(()), _)) => {
                    if clock.uptime().since(begun) >= HANDSHAKE_TIME {
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
            .on_connect_ext(|wire: &TimedStream<T>, connection| {
                connection.insert(wire.pulse());
            })
            .finish(map_config(app, |()| AppConfig::default()));
        let clock = self.clock.clone();
        apply_fn_factory(http, move |admitted: Admitted<T>, http: &_| {
            let Admitted { stream, slot } = admitted;
            let peer = stream.tcp().and_then(|tcp| tcp.peer_addr().ok());
            let wire = TimedStream::new(stream, slot);
            let pulse = wire.pulse();
            let served = Service::call(http, (wire, Protocol::Http1, peer));
            let (clock, begun) = (clock.clone(), clock.uptime());
            // No async block: that would hold the connection twice, before and while it waits for it.
            served.inspect(move |outcome| {
                log_closed_connection(peer, outcome, &pulse, clock.uptime().since(begun));
            })
        })
    }
}

/// Says what ended a connection, if a request on it was refused before it came to us.
fn log_closed_connection(
    peer: Option<SocketAddr>,
    outcome: &Result<(), DispatchError>,
    pulse: &ConnectionState,
    lived: Duration,
) {
    let (code, event, reason) = match outcome {
        Err(DispatchError::Parse(ParseError::TooLarge)) => ("431", "http.too_large", "head"),
        Err(DispatchError::Parse(_)) => ("400", "http.malformed", "request"),
        // By us, or by the kernel, which has the same patience with whoever takes nothing.
        Err(DispatchError::Io(error)) if error.kind() == ErrorKind::TimedOut => {
            ("closed", "http.timeout", pulse.cut().unwrap_or("answer"))
        }
        _ => match pulse.cut() {
            Some(what) => ("closed", "http.timeout", what),
            None if pulse.is_unused() && lived + TICK >= HEADER_TIME => {
                ("408", "http.timeout", "head")
            }
            None => return,
        },
    };
    report(code, event, reason, peer);
}

/// Counts and logs a connection that was closed, or a request that was refused, before it came to us.
fn report(code: &'static str, event: &'static str, reason: &'static str, peer: Option<SocketAddr>) {
    REFUSED.count(["none".into(), code.into(), reason.into()]);
    tracing::warn!(event, reason, ip = %client_address::peer(peer));
}

/// Listens on every address of a host that can be had.
fn listen(host: impl ToSocketAddrs) -> std::io::Result<Vec<TcpListener>> {
    let (mut bound, mut refused) = (Vec::new(), None);
    for address in host.to_socket_addrs()? {
        match listen_on(address) {
            Ok(listener) => bound.push(listener),
            Err(error) => refused = Some(error),
        }
    }
    match refused {
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
