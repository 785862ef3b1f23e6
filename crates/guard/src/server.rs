//! The HTTP listener and its endpoints.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::web::{self, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use portcullis_runtime::Address;

use crate::Exit;
use crate::answer::response;
use crate::asked::Asked;
use crate::connections::Connections;
use crate::guard::Guard;

/// Time to receive a request head (5 s). A proxy on the same host that takes longer has failed.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// Time that an idle connection is kept open (75 s). Slightly longer than proxies keep theirs.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Time for pending requests to finish during a graceful shutdown, in seconds.
const DRAIN_SECS: u64 = 10;
/// Maximum number of open connections. A proxy that opens more waits until others are closed. Another host
/// has a limit of its own, see [`Connections`].
const MAX_CONNECTIONS: usize = 10_000;
/// Maximum number of worker threads, even with more processors. A verification takes microseconds.
const MAX_WORKERS: usize = 4;

/// Path prefix of the requests from Envoy. The path of the original request follows.
const ENVOY: &str = "/envoy";

/// Binds the listener and returns the server.
pub fn bind(guard: &Data<Guard>, address: &Address) -> Result<Server, Exit> {
    let guard = guard.clone();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = workers.min(MAX_WORKERS);
    let connections = Connections::default();
    let server = HttpServer::new(move || {
        App::new()
            .app_data(guard.clone())
            .route("/check", web::route().to(check))
            .route("/envoy/{path:.*}", web::route().to(envoy))
            .route("/livez", web::get().to(livez))
            .route("/livez", web::head().to(livez))
            .route("/readyz", web::get().to(readyz))
            .route("/readyz", web::head().to(readyz))
            .route("/metrics", web::get().to(metrics))
    })
    .on_connect(move |stream, connection| connections.accept(stream, connection))
    .workers(workers)
    .max_connections(MAX_CONNECTIONS.div_ceil(workers))
    .client_request_timeout(HEADER_TIME)
    .keep_alive(KEEP_ALIVE)
    .shutdown_timeout(DRAIN_SECS)
    .disable_signals();
    let bound = match address {
        Address::Tcp { port, .. } => server.bind((address.bare_host(), *port)),
        Address::Unix(path) => give_way(path)
            .and_then(|()| server.bind_uds(path))
            .and_then(|server| open_to_all(path).map(|()| server)),
    };
    let server = bound.map_err(|error| Exit {
        code: 1,
        message: format!("cannot listen on {address}: {error}"),
    })?;
    for address in server.addrs() {
        tracing::info!(event = "guard.listening", %address);
    }
    Ok(server.run())
}

/// Removes the socket that a killed guard has left behind. Fails if `path` is another kind of file,
/// or if another program is listening.
fn give_way(path: &Path) -> std::io::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(std::io::Error::other("the file exists and is not a socket"));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(std::io::Error::other("another program is listening there"));
    }
    std::fs::remove_file(path)
}

/// Lets every local user connect, as with a port on loopback. To restrict access, the operator
/// limits the directory to a group.
fn open_to_all(path: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
}

/// A Unix socket, identified by device and inode so that a replacement at the same path is
/// detected.
pub struct Socket {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Socket {
    /// Returns the file at `path`, if there is one.
    pub fn at(path: &Path) -> Option<Self> {
        let found = std::fs::symlink_metadata(path).ok()?;
        Some(Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
        })
    }

    /// Removes the socket unless another file has replaced it.
    pub fn remove(&self) {
        let now = Self::at(&self.path);
        if now.is_some_and(|now| (now.device, now.inode) == (self.device, self.inode)) {
            // The result does not matter: the socket may have been removed in the meantime.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn check(guard: Data<Guard>, request: HttpRequest) -> HttpResponse {
    let asked = Asked::forwarded(&request);
    response(guard.judge(&request, asked).await)
}

async fn envoy(guard: Data<Guard>, request: HttpRequest) -> HttpResponse {
    let asked = Asked::prefixed(&request, ENVOY);
    response(guard.judge(&request, asked).await)
}

async fn livez() -> HttpResponse {
    status(true, &[])
}

async fn readyz(guard: Data<Guard>) -> HttpResponse {
    let checks = guard.readiness();
    status(checks.iter().all(|(_, holds)| *holds), &checks)
}

fn status(is_ok: bool, checks: &[(&str, bool)]) -> HttpResponse {
    let word = |holds| if holds { "ok" } else { "failed" };
    let checks = checks
        .iter()
        .map(|(name, holds)| format!(r#""{name}":"{}""#, word(*holds)));
    let checks = checks.collect::<Vec<_>>().join(",");
    let mut answer = match is_ok {
        true => HttpResponse::Ok(),
        false => HttpResponse::ServiceUnavailable(),
    };
    answer.insert_header((CACHE_CONTROL, "no-store"));
    answer.content_type("application/json");
    answer.body(format!(
        r#"{{"status":"{}","checks":{{{checks}}}}}"#,
        word(is_ok)
    ))
}

async fn metrics(guard: Data<Guard>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/plain; version=0.0.4"))
        .body(guard.to_string())
}
