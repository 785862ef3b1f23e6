//! The two listeners, public and management: plain or over TLS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use actix_server::Server;
use actix_service::IntoServiceFactory;
use actix_tls::accept::max_concurrent_tls_connect;
use actix_web::dev::ServerHandle;
use actix_web::web::Data;
use actix_web::{App as Actix, middleware};

use crate::app::App;
use crate::config::Address;
use crate::config::limits::{CONNECTIONS, THREAD_KEPT};
use crate::http::assets::Assets;
use crate::http::response::whole_seconds;
use crate::http::server::accept::Accept;
use crate::http::server::connections::Connections;
use crate::http::server::middleware as stages;
use crate::http::server::rate_limit::Limits;
use crate::http::server::tls;
use crate::http::{management, public};

/// Both listeners, bound and ready to run.
pub struct Listeners {
    server: Server,
    health: ServerHandle,
    public: Vec<SocketAddr>,
    shown: (String, String),
    sockets: Vec<PathBuf>,
    limits: Data<Limits>,
}

/// Why a listener cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be bound.
    #[error("cannot listen on {0}: {1}")]
    Address(Address, std::io::Error),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// Keeps one of this worker's blocking threads alive. Otherwise it would end after ten seconds without work, and if
/// the system then refuses to start a new thread, the next blocking work could not run.
async fn keep_a_thread() {
    loop {
        let _ = actix_web::rt::task::spawn_blocking(|| ()).await;
        actix_web::rt::time::sleep(THREAD_KEPT).await;
    }
}

/// Returns the address as configured, with the port that the system chose.
fn chosen(address: &Address, bound: &[SocketAddr]) -> String {
    match (address.port(), bound.first()) {
        (Some(0), Some(bound)) => bound.to_string(),
        _ => address.to_string(),
    }
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
        let data = app.clone();
        let budgets = limits.clone();
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let application = move || {
            actix_web::rt::spawn(keep_a_thread());
            Actix::new()
                .app_data(data.clone())
                .app_data(assets.clone())
                .app_data(budgets.clone())
                .wrap(middleware::from_fn(stages::guard))
                .configure(public)
                .into_factory()
        };
        // A worker at the limit of actix-tls accepts nothing, from any address. `Connections` limits
        // handshakes instead.
        max_concurrent_tls_connect(usize::MAX);
        let server = Server::build()
            .workers(workers)
            .max_concurrent_connections(CONNECTIONS.div_ceil(workers))
            .shutdown_timeout(whole_seconds(app.config.shutdown.drain.0))
            .disable_signals();
        let accept = Accept {
            name: "public",
            connections: Connections::new(&app.config.http.trusted_proxies),
            stop: server.graceful_shutdown_signal(),
            clock: app.clock.clone(),
            app: application,
        };
        let listen = &app.config.listen;
        let configure = |files| tls::configure(files, app);
        let refused = |address: &Address| {
            let address = address.clone();
            move |error| BindError::Address(address, error)
        };
        let tls = listen.tls.files().map(configure).transpose()?;
        let (server, addresses) = accept
            .bind(server, public_address, tls)
            .map_err(refused(public_address))?;
        let data = app.clone();
        let application = move || {
            Actix::new()
                .app_data(data.clone())
                .wrap(middleware::from_fn(stages::guard_management))
                .configure(management)
                .into_factory()
        };
        let health = Server::build()
            .workers(1)
            .max_concurrent_connections(CONNECTIONS)
            .disable_signals();
        let accept = Accept {
            name: "management",
            connections: Connections::new(&[]),
            stop: health.graceful_shutdown_signal(),
            clock: app.clock.clone(),
            app: application,
        };
        let tls = listen.management_tls.files().map(configure).transpose()?;
        let (health, management_addresses) = accept
            .bind(health, management_address, tls)
            .map_err(refused(management_address))?;
        let shown = (
            chosen(public_address, &addresses),
            chosen(management_address, &management_addresses),
        );
        let sockets = [public_address, management_address].into_iter();
        let sockets = sockets.filter_map(|address| match address {
            Address::Unix(path) => Some(path.clone()),
            Address::Tcp { .. } => None,
        });
        let health = health.run();
        let handle = health.handle();
        actix_web::rt::spawn(health);
        Ok(Self {
            server: server.run(),
            health: handle,
            public: addresses,
            limits,
            shown,
            sockets: sockets.collect(),
        })
    }

    /// Returns the public addresses, with the port that the system chose.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.public
    }

    /// Returns the public and the management address, for log lines.
    pub fn shown(&self) -> (&str, &str) {
        (&self.shown.0, &self.shown.1)
    }

    /// Returns the rate limits of the public listener.
    pub fn limits(&self) -> Data<Limits> {
        self.limits.clone()
    }

    /// Returns the handle that stops the public listener.
    pub fn handle(&self) -> ServerHandle {
        self.server.handle()
    }

    /// Serves until the listener is stopped. Health endpoints are served until the last request is done.
    ///
    /// # Errors
    /// When accepting connections fails permanently.
    pub async fn run(self) -> std::io::Result<()> {
        let outcome = self.server.await;
        self.health.stop(false).await;
        for socket in self.sockets {
            // If this fails, the next start replaces the file.
            let _ = std::fs::remove_file(socket);
        }
        outcome
    }
}
