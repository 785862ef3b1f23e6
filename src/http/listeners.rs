//! The two listeners, public and management: plain or over TLS.

use std::sync::Arc;

use actix_web::dev::{Server, ServerHandle};
use actix_web::web::Data;
use actix_web::{App as Actix, HttpServer, middleware};

use super::assets::Assets;
use super::connections::Connections;
use super::limits::Limits;
use super::{headers, management, public, tls};
use crate::app::App;
use crate::config::Address;
use crate::config::limits::{CONNECTIONS, HANDSHAKE_TIME, HANDSHAKES, HEADER_TIME};

/// Both listeners, bound and ready to run.
pub struct Listeners {
    server: Server,
    health: ServerHandle,
    public: Vec<std::net::SocketAddr>,
}

/// Why a listener cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is not to be had.
    #[error("cannot listen on {0}: {1}")]
    Address(Address, std::io::Error),
    /// Its certificate is of no use.
    #[error(transparent)]
    Tls(#[from] tls::Unusable),
}

/// Binds a server to its address, over TLS if there is a certificate.
macro_rules! bind {
    ($server:expr, $address:expr, $tls:expr, $app:expr) => {{
        let address = $address;
        let pair = (
            address.host.trim_matches(['[', ']']).to_owned(),
            address.port,
        );
        let bound = match $tls.files() {
            Some(files) => $server.bind_rustls_0_23(pair, tls::configure(files, $app)?),
            None => $server.bind(pair),
        };
        bound.map_err(|error| BindError::Address(address.clone(), error))?
    }};
}

impl Listeners {
    /// Binds both addresses.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(
        app: &Data<App>,
        public_address: &Address,
        management_address: &Address,
    ) -> Result<Self, BindError> {
        let assets = Data::from(Arc::new(Assets::new(&app.config.branding.product)));
        let limits = Data::new(Limits::new(&app.config.limits, &app.clock));
        let connections = Connections::new(&app.config.http.trusted_proxies);
        let data = app.clone();
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let server = HttpServer::new(move || {
            Actix::new()
                .app_data(data.clone())
                .app_data(assets.clone())
                .app_data(limits.clone())
                .wrap(middleware::from_fn(headers::guard))
                .configure(public)
        })
        .workers(workers)
        .max_connections(CONNECTIONS.div_ceil(workers))
        .max_connection_rate(HANDSHAKES.div_ceil(workers))
        .tls_handshake_timeout(HANDSHAKE_TIME)
        .client_request_timeout(HEADER_TIME)
        .on_connect(move |io, connection| connections.accept(io, connection))
        .disable_signals();
        let listen = &app.config.listen;
        let public = bind!(server, public_address, listen.tls, app);
        let addresses = public.addrs();
        let data = app.clone();
        let health =
            HttpServer::new(move || Actix::new().app_data(data.clone()).configure(management))
                .disable_signals()
                .workers(1);
        let health = bind!(health, management_address, listen.management_tls, app).run();
        let handle = health.handle();
        actix_web::rt::spawn(health);
        Ok(Self {
            server: public.run(),
            health: handle,
            public: addresses,
        })
    }

    /// The public addresses, with the port that was chosen.
    pub fn addresses(&self) -> &[std::net::SocketAddr] {
        &self.public
    }

    /// What stops it.
    pub fn handle(&self) -> ServerHandle {
        self.server.handle()
    }

    /// Serves until it is stopped; health is answered until the last request is done.
    ///
    /// # Errors
    /// When accepting fails for good.
    pub async fn run(self) -> std::io::Result<()> {
        let outcome = self.server.await;
        self.health.stop(false).await;
        outcome
    }
}
