//! A Postgres of one test's own, which keeps what it has confirmed and can be killed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Look;
use super::postgres::{as_postgres, binaries, is_root};

pub struct Cluster {
    folder: PathBuf,
}

impl Cluster {
    pub fn new() -> Self {
        let cluster = Self::empty();
        let mut initdb = cluster.program("initdb");
        succeeds(initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8"]));
        cluster.starts();
        cluster
    }

    /// A running hot standby that streams from this server.
    pub fn standby(&self) -> Self {
        let standby = Self::empty();
        let mut copy = standby.program("pg_basebackup");
        copy.args(["-U", "postgres", "-R", "-c", "fast", "-h"]);
        succeeds(copy.arg(&self.folder));
        standby.starts();
        standby
    }

    fn empty() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        // A socket's path must be short, and the account of Postgres must reach it.
        let folder = std::env::temp_dir().join(format!("pcl-cluster-{process}-{number}"));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        if is_root() {
            succeeds(Command::new("chown").arg("postgres").arg(&folder));
        }
        Self { folder }
    }

    /// The folder of its socket.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// From now on no commit is acknowledged before the standby has it. Returns once that holds.
    pub fn replicates_synchronously(&self) {
        let mut look = Look::at(&self.url("postgres"));
        look.execute("ALTER SYSTEM SET synchronous_standby_names = '*'");
        look.execute("SELECT pg_reload_conf()");
        let query =
            "SELECT count(*) AS n FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')";
        waits_until("no synchronous standby", || look.count(query) == 1);
    }

    /// Waits until `standby` has all that this server has committed.
    pub fn is_followed_by(&self, standby: &Self) {
        let mut look = Look::at(&self.url("postgres"));
        let end = look.lines("SELECT pg_current_wal_flush_lsn()::text AS line");
        let query = format!(
            "SELECT count(*) AS n WHERE pg_last_wal_replay_lsn() >= '{}'",
            end[0]
        );
        let mut look = Look::at(&standby.url("postgres"));
        waits_until("the standby lags", || look.count(&query) == 1);
    }

    /// A standby becomes the primary. Returns once it takes writes.
    pub fn is_promoted(&self) {
        succeeds(self.program("pg_ctl").args(["-w", "promote"]));
    }

    /// A primary comes back as a standby without a primary: it answers reads with old data.
    pub fn is_demoted(&self) {
        succeeds(self.program("pg_ctl").args(["-m", "fast", "-w", "stop"]));
        std::fs::write(self.folder.join("data/standby.signal"), "").unwrap();
        self.starts();
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

    /// The URL of one of its databases.
    pub fn url(&self, name: &str) -> String {
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
fn waits_until(else_say: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{else_say}");
        std::thread::yield_now();
    }
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
