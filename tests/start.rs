//! What the binary says when it cannot start, and its exit codes: one clear sentence each.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "cast/postgres.rs"]
#[allow(dead_code)]
mod postgres;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder with its own database and KEK, in which commands run.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "start-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::SeqCst)
        );
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn command(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command
            .args(arguments)
            .current_dir(&self.0)
            .env_clear()
            .stdin(Stdio::null());
        command
            .env("PORTCULLIS__LISTEN__PUBLIC", "localhost:0")
            .env("PORTCULLIS__ISSUER", "http://localhost:8080");
        command
            .env("PORTCULLIS__LISTEN__MANAGEMENT", "127.0.0.1:0")
            .envs(variables.iter().copied());
        command
    }

    fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        self.command(arguments, variables).output().unwrap()
    }

    /// Runs a command that must work.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, &[]);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// A server that has said that it is started.
    fn serve(&self, variables: &[(&str, &str)]) -> Running {
        let mut child = self
            .command(&["serve"], variables)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let started = lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.contains("server.started"));
        assert!(started, "the server did not start");
        std::thread::spawn(move || lines.map_while(Result::ok).count());
        Running(child)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn refused(output: &Output, code: i32, sentence: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("portcullis: ") && last.contains(sentence),
        "{said}"
    );
}

#[test]
fn a_wrong_configuration_is_named() {
    let place = Place::new();
    let cases = [
        (
            ("PORTCULLIS__TOKENS__ACESS", "5m"),
            "unknown key `tokens.acess`; did you mean `tokens.access`?",
        ),
        (
            ("PORTCULLIS__TOKENS__ACCESS", "16m"),
            "`tokens.access`: 16m is out of range",
        ),
        (
            ("PORTCULLIS__ISSUER", "http://id.example.com"),
            "must be https",
        ),
        (
            ("PORTCULLIS__LISTEN__PUBLIC", "0.0.0.0:8080"),
            "reachable from other machines",
        ),
        (
            ("PORTCULLIS__KEYS__KEK", "env:NOT_SET_ANYWHERE"),
            "the variable is not set",
        ),
    ];
    for (variable, sentence) in cases {
        refused(&place.run(&["serve"], &[variable]), 78, sentence);
    }
    std::fs::write(
        place.0.join("config.toml"),
        "[tokens]\naccess = \"1m\"\n[token]\n",
    )
    .unwrap();
    std::fs::write(
        place.0.join("odd.toml"),
        "[listen]\npublik = \"localhost:1\"\n",
    )
    .unwrap();
    let output = place.run(&["--config", "odd.toml", "serve"], &[]);
    refused(
        &output,
        78,
        "file odd.toml: unknown key `listen.publik`; did you mean `listen.public`?",
    );
}

#[test]
fn an_unreachable_database_is_69() {
    let place = Place::new();
    let url = (
        "PORTCULLIS__DATABASE__URL",
        "postgres://127.0.0.1:1/nothing?connect_timeout=2",
    );
    refused(
        &place.run(&["serve"], &[url]),
        69,
        "PostgreSQL cannot be reached",
    );
}

#[test]
fn a_secret_file_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let file = place.0.join("url");
    std::fs::write(&file, "sqlite:x.db").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = place.run(&["serve"], &[("PORTCULLIS__DATABASE__URL_FILE", "url")]);
    refused(&output, 78, "can be read by others");
}

#[test]
fn postgres_needs_a_configured_kek_and_a_migrated_schema() {
    let place = Place::new();
    let name = format!("start_{}", std::process::id());
    postgres::execute(&format!("CREATE DATABASE {name}"));
    let url = postgres::database(&name);
    let database = ("PORTCULLIS__DATABASE__URL", url.as_str());
    refused(
        &place.run(&["serve"], &[database]),
        78,
        "run `portcullis migrate up`",
    );
    assert!(place.run(&["migrate", "up"], &[database]).status.success());
    refused(
        &place.run(&["serve"], &[database]),
        78,
        "make one with `portcullis keys generate-kek",
    );
    place.done(&["keys", "generate-kek", "--out", "keys/kek"]);
    let _running = place.serve(&[database]);
}

#[test]
fn a_wrong_kek_makes_nothing_and_is_78() {
    let place = Place::new();
    drop(place.serve(&[]));
    let before = place.done(&["keys", "list", "--format", "json"]);
    place.done(&["keys", "generate-kek", "--out", "other"]);
    let output = place.run(&["serve"], &[("PORTCULLIS__KEYS__KEK", "file:other")]);
    refused(&output, 78, "which is not configured in `keys.kek`");
    assert_eq!(place.done(&["keys", "list", "--format", "json"]), before);
    std::fs::remove_file(place.0.join("keys/kek")).unwrap();
    refused(&place.run(&["serve"], &[]), 78, "cannot be read");
    assert!(
        !place.0.join("keys/kek").exists(),
        "a lost KEK is never replaced"
    );
}

#[test]
fn a_schema_from_the_future_is_78() {
    let place = Place::new();
    drop(place.serve(&[]));
    use diesel::connection::SimpleConnection;
    use diesel::{Connection, SqliteConnection};
    let mut connection =
        SqliteConnection::establish(&place.0.join("data/portcullis.db").to_string_lossy()).unwrap();
    connection
        .batch_execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('9999')")
        .unwrap();
    refused(
        &place.run(&["serve"], &[]),
        78,
        "migrated by a newer version of portcullis (9999)",
    );
    refused(&place.run(&["user", "list"], &[]), 78, "newer version");
}

#[test]
fn a_second_server_on_one_file_is_kept_away_and_commands_are_not() {
    let place = Place::new();
    let _first = place.serve(&[]);
    refused(&place.run(&["serve"], &[]), 69, "another server is using");
    assert!(place.done(&["user", "list"]).starts_with("USERNAME"));
}

#[test]
fn a_taken_port_is_said() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let address = format!("127.0.0.1:{port}");
    refused(
        &place.run(&["serve", "--listen", &address], &[]),
        1,
        "another program is listening there",
    );
    refused(
        &place.run(&["demo", "--port", &port], &[]),
        1,
        "choose another one with --port",
    );
}

#[test]
fn a_stopped_server_ends_with_0() {
    let place = Place::new();
    let mut running = place.serve(&[]);
    let pid = running.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

#[test]
fn people_and_applications_are_made_by_command() {
    let place = Place::new();
    let mut child = place
        .command(
            &[
                "user",
                "create",
                "Alice",
                "--password-stdin",
                "--format",
                "json",
            ],
            &[],
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"gravel-otter-92-lamp\n")
        .unwrap();
    let mut printed = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut printed)
        .unwrap();
    assert!(child.wait().unwrap().success());
    let users: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(users[0]["username"], "alice");

    place.done(&[
        "resource",
        "create",
        "--audience",
        "https://api.example",
        "--name",
        "Orders",
        "--scope",
        "orders:read=See your orders",
    ]);
    let created = place.done(&[
        "client",
        "create",
        "--name",
        "Shop",
        "--id",
        "shop",
        "--redirect-uri",
        "https://app.example/cb",
        "--scope",
        "openid orders:read",
        "--resource",
        "https://api.example",
        "--format",
        "json",
    ]);
    let created: serde_json::Value = serde_json::from_str(&created).unwrap();
    assert!(
        created["client_secret"]
            .as_str()
            .unwrap()
            .starts_with("pcl_sec_")
    );
    let shown = place.done(&["client", "get", "shop", "--format", "json"]);
    assert!(!shown.contains("pcl_sec_"), "a secret is shown once");
    assert!(
        place
            .done(&["client", "list"])
            .contains("https://app.example/cb")
    );

    let refusals = [
        (
            vec![
                "client",
                "create",
                "--name",
                "X",
                "--redirect-uri",
                "https://*.example/cb",
            ],
            1,
            "wildcards",
        ),
        (
            vec![
                "client",
                "create",
                "--name",
                "X",
                "--redirect-uri",
                "https://a.example/cb",
                "--resource",
                "https://other",
            ],
            1,
            "not registered",
        ),
        (
            vec![
                "client",
                "create",
                "--name",
                "X",
                "--id",
                "shop",
                "--redirect-uri",
                "https://a.example/cb",
            ],
            1,
            "exists already",
        ),
        (
            vec!["client", "get", "nobody"],
            1,
            "there is no client `nobody`",
        ),
        (
            vec!["user", "set-password", "nobody", "--password-stdin"],
            1,
            "there is no user `nobody`",
        ),
        (vec!["user", "create", "bob"], 2, "--password-stdin"),
    ];
    for (arguments, code, sentence) in refusals {
        refused(&place.run(&arguments, &[]), code, sentence);
    }
}
