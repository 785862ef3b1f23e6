//! A Postgres for the tests: the one of `DATABASE_URL`, or a private cluster made from the installed
//! binaries, which ends with this process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use diesel::connection::SimpleConnection;
use diesel::{Connection, PgConnection};

/// The URL of a server on which databases may be made.
pub fn url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| std::env::var("DATABASE_URL").unwrap_or_else(|_| private_cluster()))
}

/// The URL of the database `name` on that server.
pub fn database(name: &str) -> String {
    let (server, query) = url()
        .split_once('?')
        .map_or((url(), ""), |(server, query)| (server, query));
    let base = server.rsplit_once('/').map_or(server, |(base, _)| base);
    if query.is_empty() {
        format!("{base}/{name}")
    } else {
        format!("{base}/{name}?{query}")
    }
}

/// The address of a new database, in place of one that has had this name.
pub fn empty_database(name: &str) -> String {
    execute(&format!("DROP DATABASE IF EXISTS {name}"));
    execute(&format!("CREATE DATABASE {name}"));
    database(name)
}

/// The name in a URL of [`database`].
pub fn name(url: &str) -> &str {
    let path = url.split('?').next().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default()
}

/// Drops the database that a URL of [`database`] names, with whoever is still connected.
pub fn drop_database(url: &str) {
    let name = name(url);
    execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
}

/// Runs a statement outside any transaction.
pub fn execute(statement: &str) {
    let mut connection = PgConnection::establish(url()).unwrap();
    connection
        .batch_execute(statement)
        .unwrap_or_else(|error| panic!("{statement}: {error}"));
}

// The watcher outlives this process on purpose, and ends by itself.
#[allow(clippy::zombie_processes)]
fn private_cluster() -> String {
    let bin = binaries();
    let dir = std::env::temp_dir().join(format!("portcullis-pg-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    // Postgres refuses to run as root; the distribution's package brings the account.
    let root = is_root();
    if root {
        assert!(
            Command::new("chown")
                .arg("postgres")
                .arg(&dir)
                .status()
                .unwrap()
                .success()
        );
    }
    let data = dir.join("data");
    let initdb = as_postgres(root, &bin.join("initdb"))
        .args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
            "-D",
        ])
        .arg(&data)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(initdb.success(), "initdb failed");
    // The watcher ends the cluster when this process is gone, however it went.
    let watch = format!(
        "'{}' -D '{}' -k '{}' -c listen_addresses='' -c fsync=off -c max_connections=400 -c shared_buffers=64MB >'{}' 2>&1 & pg=$!; \
         while [ -d /proc/{} ]; do sleep 1; done; kill -QUIT $pg; wait $pg; rm -rf '{}'",
        bin.join("postgres").display(),
        data.display(),
        dir.display(),
        dir.join("log").display(),
        std::process::id(),
        dir.display(),
    );
    as_postgres(root, Path::new("sh"))
        .arg("-c")
        .arg(watch)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let url = format!("postgres:///postgres?host={}&user=postgres", dir.display());
    for _ in 0..200 {
        if PgConnection::establish(&url).is_ok() {
            return url;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the private Postgres cluster does not answer");
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().unwrap().stdout == b"0\n"
}

/// A program as the account that Postgres runs under.
pub fn as_postgres(root: bool, program: &Path) -> Command {
    if !root {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

/// The folder of Postgres's own programs.
pub fn binaries() -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    versions.sort();
    versions
        .pop()
        .expect("PostgreSQL is not installed; run tests/run, or set DATABASE_URL")
}
