//! Programs that are started for one test and stopped at its end.

use std::fs::{self, File, Permissions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::http::{Response, send, try_send};
use crate::issuer::Issuer;

/// Maximum time to wait for a condition.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A temporary directory that is removed at the end of the test.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("portcullis-guard-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Writes settings that contain a secret, with mode 0600.
    pub fn write_settings(&self, text: &str) -> PathBuf {
        let path = self.write("guard.toml", text);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running program.
pub struct Process {
    pub folder: TempDir,
    child: Child,
}

impl Process {
    pub fn start(folder: TempDir, command: &mut Command) -> Self {
        let log = File::create(folder.path().join("log")).unwrap();
        command.stderr(log.try_clone().unwrap());
        Self::spawn(folder, command.stdout(log))
    }

    /// Starts a program and returns its stderr as a pipe, which is read only if the test reads it.
    pub fn start_with_piped_log(folder: TempDir, command: &mut Command) -> (Self, ChildStderr) {
        File::create(folder.path().join("log")).unwrap();
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Self::spawn(folder, command);
        let log = process.child.stderr.take().unwrap();
        (process, log)
    }

    fn spawn(folder: TempDir, command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null());
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { folder, child }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Waits until the program accepts connections at `address`.
    pub async fn wait_until_listening(&mut self, address: SocketAddr) {
        let started = Instant::now();
        while tokio::net::TcpStream::connect(address).await.is_err() {
            assert!(started.elapsed() < TIMEOUT, "not listening: {}", self.log());
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{status}: {}", self.log());
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn signal(&self, name: &str) {
        // The shell's builtin, because Debian may lack the `kill` program.
        let kill = format!("kill {name} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until the program exits by itself.
    pub async fn wait_for_exit(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < TIMEOUT, "still running: {}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a free address on loopback. Its port is below the ephemeral range, so that outgoing
/// connections do not take it before the test uses it.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let first = u16::try_from(std::process::id() * 61 % 8000).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 20_000 + first + number));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
        assert!(number < 4000, "all ports are taken");
    }
}

/// Routes of most tests.
pub const ROUTES: &str = r#"
[[routes]]
prefix = "/orders"
methods = ["GET", "HEAD"]
audience = "https://api.example"
scopes = ["orders:read"]

[[routes]]
prefix = "/orders"
audience = "https://api.example"
scopes = ["orders:write"]

[[routes]]
prefix = "/admin"
audience = "https://api.example"
scopes = ["admin"]

[[routes]]
prefix = "/payments"
audience = "https://api.example"
scopes = ["orders:read"]
max_age = "1s"
acr = ["2"]

[[routes]]
prefix = "/fresh"
audience = "https://api.example"
max_age = "1s"

[[routes]]
prefix = "/others"
audience = "https://other.example"
"#;

/// A running guard.
pub struct Guard {
    pub address: SocketAddr,
    pub process: Process,
    settings: String,
}

impl Guard {
    /// Starts a guard for `issuer` and waits until it is ready.
    pub async fn start_ready(issuer: &Issuer) -> Self {
        let guard = Self::start(&(issuer.settings() + ROUTES)).await;
        guard.wait_until_ready().await;
        guard
    }

    /// Starts a guard with these settings at a free address and waits until it
    /// wait_until_listening.
    pub async fn start(settings: &str) -> Self {
        Self::start_at(free_address(), settings).await
    }

    async fn start_at(address: SocketAddr, settings: &str) -> Self {
        let folder = TempDir::new();
        let file = folder.write_settings(&format!("listen = '{address}'\n{settings}"));
        let mut process = Process::start(folder, command().arg("--config").arg(file));
        process.wait_until_listening(address).await;
        Self {
            address,
            process,
            settings: settings.to_owned(),
        }
    }

    /// Kills the guard.
    pub async fn kill(&mut self) {
        self.process.signal("-KILL");
        self.process.wait_for_exit().await;
    }

    /// Starts a new guard at the address of one that was killed.
    pub async fn restart(&mut self) {
        *self = Self::start_at(self.address, &self.settings).await;
    }

    pub async fn wait_until_ready(&self) {
        self.wait_until("not ready", async || {
            let response = try_send(self.address, "GET /readyz").await;
            response.is_some_and(|response| response.status == 200)
        })
        .await;
    }

    pub async fn get(&self, path: &str) -> Response {
        send(self.address, &format!("GET {path}"), &[]).await
    }

    /// Sends a check as a proxy does, for a request line such as `GET /orders`.
    pub async fn check(&self, line: &str, headers: &[&str]) -> Response {
        let (method, target) = line.split_once(' ').unwrap();
        let method = format!("X-Forwarded-Method: {method}");
        let target = format!("X-Forwarded-Uri: {target}");
        let mut all = vec![method.as_str(), target.as_str()];
        all.extend_from_slice(headers);
        send(self.address, "GET /check", &all).await
    }

    pub async fn check_with(&self, line: &str, token: &str) -> Response {
        self.check(line, &[&bearer(token)]).await
    }

    /// Polls until `condition` returns true, and panics with `failure` after [`TIMEOUT`].
    pub async fn wait_until(&self, failure: &str, condition: impl AsyncFn() -> bool) {
        let started = Instant::now();
        while !condition().await {
            assert!(
                started.elapsed() < TIMEOUT,
                "{failure}: {}",
                self.process.log()
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns the value of a metric, or 0 if it is absent.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.body;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

/// Returns a command for the guard with an empty environment.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis-guard"));
    command.env_clear();
    command
}

pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}
