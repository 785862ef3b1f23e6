//! Real programs, started for one test and ended with it.

use std::fs::{self, File, Permissions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::http::{Answer, send, try_send};
use crate::issuer::Issuer;

const PATIENCE: Duration = Duration::from_secs(20);

/// A folder that goes with its test.
pub struct Folder(PathBuf);

impl Folder {
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

    /// Settings with a secret in them: nobody else can read them.
    pub fn write_settings(&self, text: &str) -> PathBuf {
        let path = self.write("guard.toml", text);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program that runs.
pub struct Running {
    pub folder: Folder,
    child: Child,
}

impl Running {
    pub fn start(folder: Folder, command: &mut Command) -> Self {
        let log = File::create(folder.path().join("log")).unwrap();
        command.stderr(log.try_clone().unwrap());
        Self::start_with(folder, command.stdout(log))
    }

    /// With a log that nobody reads, or who asks for it here.
    pub fn start_unread(folder: Folder, command: &mut Command) -> (Self, ChildStderr) {
        File::create(folder.path().join("log")).unwrap();
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut running = Self::start_with(folder, command);
        let log = running.child.stderr.take().unwrap();
        (running, log)
    }

    fn start_with(folder: Folder, command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null());
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { folder, child }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Waits until it listens there.
    pub async fn listens(&mut self, at: SocketAddr) {
        let begin = Instant::now();
        while tokio::net::TcpStream::connect(at).await.is_err() {
            assert!(begin.elapsed() < PATIENCE, "not there: {}", self.log());
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{status}: {}", self.log());
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn signal(&self, name: &str) {
        // The shell's own; Debian can be without the program.
        let kill = format!("kill {name} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "still there: {}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address on loopback that nobody listens on, below the ports that the system gives to those
/// who call: between this look and its use a thousand callers may take theirs.
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

/// What the tests ask for, if nothing else is said.
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

/// A guard that runs.
pub struct Guard {
    pub at: SocketAddr,
    pub running: Running,
    settings: String,
}

impl Guard {
    /// With the news of its issuer.
    pub async fn of(issuer: &Issuer) -> Self {
        let guard = Self::start(&(issuer.settings() + ROUTES)).await;
        guard.is_ready().await;
        guard
    }

    /// With these settings, but for its address; it listens.
    pub async fn start(settings: &str) -> Self {
        Self::start_at(free_address(), settings).await
    }

    async fn start_at(at: SocketAddr, settings: &str) -> Self {
        let folder = Folder::new();
        let file = folder.write_settings(&format!("listen = '{at}'\n{settings}"));
        let mut running = Running::start(folder, command().arg("--config").arg(file));
        running.listens(at).await;
        Self {
            at,
            running,
            settings: settings.to_owned(),
        }
    }

    /// Killed, and nobody in its place.
    pub async fn kill(&mut self) {
        self.running.signal("-KILL");
        self.running.ended().await;
    }

    /// Another one in the place of one that was killed.
    pub async fn restart(&mut self) {
        *self = Self::start_at(self.at, &self.settings).await;
    }

    pub async fn is_ready(&self) {
        self.until("it is not ready", async || {
            let answer = try_send(self.at, "GET /readyz").await;
            answer.is_some_and(|answer| answer.status == 200)
        })
        .await;
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.at, &format!("GET {path}"), &[]).await
    }

    /// Asks as a proxy does about `GET /orders`.
    pub async fn check(&self, line: &str, headers: &[&str]) -> Answer {
        let (method, target) = line.split_once(' ').unwrap();
        let method = format!("X-Forwarded-Method: {method}");
        let target = format!("X-Forwarded-Uri: {target}");
        let mut all = vec![method.as_str(), target.as_str()];
        all.extend_from_slice(headers);
        send(self.at, "GET /check", &all).await
    }

    pub async fn check_with(&self, line: &str, token: &str) -> Answer {
        self.check(line, &[&bearer(token)]).await
    }

    /// Waits for what must come about by itself.
    pub async fn until(&self, otherwise: &str, holds: impl AsyncFn() -> bool) {
        let begin = Instant::now();
        while !holds().await {
            assert!(
                begin.elapsed() < PATIENCE,
                "{otherwise}: {}",
                self.running.log()
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// The value of a metric; 0 if it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.body;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

/// The program without anything inherited.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis-guard"));
    command.env_clear();
    command
}

pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}
