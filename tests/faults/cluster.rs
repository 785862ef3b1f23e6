//! A Postgres of one test's own, which keeps what it has confirmed and can be killed.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cast::Look;
use crate::cast::postgres::{as_postgres, binaries, is_root};

pub struct Cluster {
    folder: PathBuf,
}

impl Cluster {
    pub fn new() -> Self {
        // A socket's path must be short, and the account of Postgres must reach it.
        let folder = std::env::temp_dir().join(format!("pcl-cluster-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        if is_root() {
            succeeds(Command::new("chown").arg("postgres").arg(&folder));
        }
        let cluster = Self { folder };
        let mut initdb = cluster.program("initdb");
        succeeds(initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8"]));
        cluster.starts();
        cluster
    }

    /// The URL of a new database.
    pub fn database(&self) -> String {
        // Not a name that there may be elsewhere.
        let name = format!("cluster_{}", std::process::id());
        Look::at(&self.url("postgres")).execute(&format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// `SIGKILL` to the postmaster; its children end when they notice.
    pub fn is_killed(&self) {
        let pid = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        succeeds(Command::new("kill").args(["-KILL", pid.lines().next().unwrap()]));
    }

    /// As after a power cut: nothing is flushed, nobody is waited for.
    pub fn loses_power(&self) {
        succeeds(
            self.program("pg_ctl")
                .args(["-m", "immediate", "-w", "stop"]),
        );
    }

    /// Returns once it takes connections.
    pub fn starts(&self) {
        let settings = format!(
            "-k {} -c listen_addresses= -c max_connections=100 -c shared_buffers=32MB",
            self.folder.display()
        );
        let log = self.folder.join("log");
        let begun = Instant::now();
        loop {
            let mut start = self.program("pg_ctl");
            start
                .args(["-w", "-t", "30", "start", "-o", &settings, "-l"])
                .arg(&log);
            if start.status().unwrap().success() {
                return;
            }
            // Children of the one before may still hold its memory.
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{}",
                std::fs::read_to_string(&log).unwrap_or_default()
            );
            std::thread::yield_now();
        }
    }

    fn url(&self, name: &str) -> String {
        format!(
            "postgres:///{name}?host={}&user=postgres",
            self.folder.display()
        )
    }

    fn program(&self, name: &str) -> Command {
        let mut command = as_postgres(is_root(), &binaries().join(name));
        command
            .arg("-D")
            .arg(self.folder.join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self
            .program("pg_ctl")
            .args(["-m", "immediate", "stop"])
            .status();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
