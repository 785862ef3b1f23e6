//! Nodes in separate processes, which can be killed.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use portcullis::secret::{Entropy, Secret};

use crate::fixtures::Look;
use crate::fixtures::installation::empty_folder;
use crate::fixtures::server::{AUDIENCE, PASSWORD, confidential};
use crate::fixtures::{Db, ISSUER, TestClient, postgres};

/// A database, a key-encrypting key, alice and `web`: everything that nodes need.
pub struct Site {
    folder: PathBuf,
    url: String,
    client_id: String,
    secret: Secret,
}

impl Site {
    pub fn open(db: Db) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "site_{}_{}",
            NUMBER.fetch_add(1, Ordering::SeqCst),
            std::process::id()
        );
        let folder = empty_folder(&name);
        portcullis::key_manager::write_kek(&folder.join("kek"), &Entropy::system()).unwrap();
        let url = match db {
            Db::Sqlite => format!("sqlite:{}", folder.join("portcullis.db").display()),
            Db::Postgres => postgres::empty_database(&name),
        };
        let mut site = Self {
            folder,
            url,
            client_id: String::new(),
            secret: Secret::from_text(""),
        };
        let api = [
            "resource",
            "create",
            "--audience",
            AUDIENCE,
            "--name",
            "Orders",
        ];
        site.done(&[&api[..], &["--scope", "orders:read"]].concat(), "");
        site.done(&["user", "create", "alice", "--password-stdin"], PASSWORD);
        let web = [
            "client",
            "create",
            "--name",
            "Corner Shop",
            "--resource",
            AUDIENCE,
        ];
        let more = [
            "--redirect-uri",
            "https://app.example/cb",
            "--scope",
            "openid",
        ];
        let web = site.done(&[&web[..], &more].concat(), "");
        let web: serde_json::Value = serde_json::from_str(&web).unwrap();
        site.client_id = web["client_id"].as_str().unwrap().to_owned();
        site.secret = Secret::from_text(web["client_secret"].as_str().unwrap());
        site
    }

    /// Returns `web` for a node.
    pub fn web(&self, node: &Node) -> TestClient {
        let client = confidential(&self.client_id, "https://app.example/cb");
        TestClient::new(&node.base, client, Some(self.secret.clone()))
    }

    /// Starts a node in a new process and waits until it has started.
    pub fn starts(&self) -> Node {
        let address = free_address();
        let mut child = self
            .command(&["serve", "--listen", &address.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut heard = Vec::new();
        let started = lines.by_ref().map_while(Result::ok).any(|line| {
            let started = line.contains("server.started");
            heard.push(line);
            started
        });
        assert!(started, "{heard:?}");
        std::thread::spawn(move || lines.map_while(Result::ok).count());
        Node {
            child,
            base: format!("http://{address}"),
        }
    }

    /// Opens a database connection of the test.
    pub fn look(&self) -> Look {
        Look::at(&self.url)
    }

    /// Returns the folder of its files, in which its nodes run.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the URL of its database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the key-encrypting key, as a value of the configuration.
    pub fn kek(&self) -> String {
        format!("file:{}", self.folder.join("kek").display())
    }

    /// Returns the names of the files in its folder.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        let kek = self.kek();
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env_clear()
            .envs([
                ("PORTCULLIS__ISSUER", ISSUER),
                ("PORTCULLIS__LISTEN__PUBLIC", "127.0.0.1:0"),
                ("PORTCULLIS__LISTEN__MANAGEMENT", "127.0.0.1:0"),
                ("PORTCULLIS__DATABASE__URL", &self.url),
                ("PORTCULLIS__DATABASE__AUTO_MIGRATE", "true"),
                ("PORTCULLIS__KEYS__KEK", &kek),
                ("PORTCULLIS__LOG__FORMAT", "json"),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// Runs a command that must succeed; returns its output.
    fn done(&self, arguments: &[&str], input: &str) -> String {
        let arguments = [arguments, &["--format", "json"]].concat();
        let mut command = self.command(&arguments);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
        if !self.url.starts_with("sqlite:") {
            postgres::drop_database(&self.url);
        }
    }
}

/// Returns an address on which no socket listens.
fn free_address() -> std::net::SocketAddr {
    let probe = TcpListener::bind("127.0.0.1:0").unwrap();
    probe.local_addr().unwrap()
}

/// A running server.
pub struct Node {
    child: Child,
    pub base: String,
}

impl Node {
    /// Kills the process with SIGKILL, so that it cannot clean up.
    pub fn dies(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Node {
    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Aborts the process, which writes a core file if it may.
    pub fn aborts(mut self) {
        let kill = ["-ABRT".to_owned(), self.child.id().to_string()];
        assert!(Command::new("kill").args(kill).status().unwrap().success());
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
