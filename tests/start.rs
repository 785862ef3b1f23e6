//! Errors of the binary that cannot start: its exit code, and one sentence with the cause.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "fixtures/mod.rs"]
mod fixtures;

use fixtures::installation::{Installation, refused};

#[test]
fn invalid_configuration_is_named() {
    let installation = Installation::new();
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
        refused(&installation.run(&["serve"], &[variable]), 78, sentence);
    }
    std::fs::write(
        installation.folder.join("config.toml"),
        "[tokens]\naccess = \"1m\"\n[token]\n",
    )
    .unwrap();
    std::fs::write(
        installation.folder.join("odd.toml"),
        "[listen]\npublik = \"localhost:1\"\n",
    )
    .unwrap();
    let output = installation.run(&["--config", "odd.toml", "serve"], &[]);
    refused(
        &output,
        78,
        "file odd.toml: unknown key `listen.publik`; did you mean `listen.public`?",
    );
}

/// A port on which no process listens.
const NOWHERE: (&str, &str) = (
    "PORTCULLIS__DATABASE__URL",
    "postgres://127.0.0.1:1/nothing?connect_timeout=2",
);

#[test]
fn unreachable_database_exits_69() {
    let installation = Installation::new();
    refused(
        &installation.run(&["serve"], &[NOWHERE]),
        69,
        "PostgreSQL cannot be reached",
    );
}

#[test]
fn secret_file_readable_by_others_is_rejected() {
    use std::os::unix::fs::PermissionsExt;
    let installation = Installation::new();
    let file = installation.folder.join("url");
    std::fs::write(&file, "sqlite:x.db").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = installation.run(&["serve"], &[("PORTCULLIS__DATABASE__URL_FILE", "url")]);
    refused(&output, 78, "can be read by other users");
}

#[test]
fn only_credentials_may_be_group_readable() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let installation = Installation::new();
    let folder = installation.folder.join("credentials");
    std::fs::create_dir(&folder).unwrap();
    installation.write("credentials/url", "sqlite:x.db");
    installation.write("outside", "sqlite:x.db");
    symlink(installation.folder.join("outside"), folder.join("link")).unwrap();
    let allow = |name: &str, mode| {
        let path = installation.folder.join(name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let check = |file: &str, systemd: bool| {
        let mut variables = vec![("PORTCULLIS__DATABASE__URL_FILE", file)];
        if systemd {
            variables.push(("CREDENTIALS_DIRECTORY", folder.to_str().unwrap()));
        }
        installation.run(&["config", "check"], &variables)
    };
    allow("credentials/url", 0o440);
    allow("outside", 0o440);
    let (inside, sentence) = ("credentials/url", "can be read by other users (mode 440)");
    assert!(check(inside, true).status.success());
    refused(&check(inside, false), 78, sentence);
    for outside in ["outside", "credentials/../outside", "credentials/link"] {
        refused(&check(outside, true), 78, sentence);
    }
    for (mode, shown) in [(0o460, "460"), (0o444, "444"), (0o442, "442")] {
        allow(inside, mode);
        let sentence = format!("can be read by other users (mode {shown})");
        refused(&check(inside, true), 78, &sentence);
    }
    // The same rule applies to the key of a certificate. Once the key is accepted, the missing certificate is
    // reported.
    installation.write("credentials/key", "no key");
    installation.write("chain", "no certificate");
    let serve = |systemd: &str| {
        let tls = [
            ("PORTCULLIS__ISSUER", "https://id.example.com"),
            ("PORTCULLIS__LISTEN__TLS__CERTIFICATE", "chain"),
            ("PORTCULLIS__LISTEN__TLS__KEY", "credentials/key"),
            ("CREDENTIALS_DIRECTORY", systemd),
        ];
        installation.run(&["serve"], &tls)
    };
    allow("credentials/key", 0o440);
    refused(
        &serve(folder.to_str().unwrap()),
        78,
        "contains no certificate",
    );
    refused(&serve("elsewhere"), 78, sentence);
}

#[test]
fn non_utf8_variables_are_rejected_only_with_our_prefix() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let installation = Installation::new();
    let with = |name: &str, arguments: &[&str]| {
        let mut command = installation.command(arguments, &[]);
        command.env(name, OsStr::from_bytes(b"sesame\xff"));
        command.output().unwrap()
    };
    assert!(with("FOREIGN", &["config", "check"]).status.success());
    for arguments in [
        vec!["serve"],
        vec!["config", "check"],
        vec!["user", "list"],
        vec!["config", "dump"],
    ] {
        let sentence = "configuration environment PORTCULLIS__ISSUER: is not UTF-8";
        refused(&with("PORTCULLIS__ISSUER", &arguments), 78, sentence);
    }
}

#[test]
fn hangup_while_waiting_for_database_is_ignored() {
    use std::io::{BufRead, BufReader};
    let installation = Installation::new();
    let mut command = installation.command(&["serve"], &[NOWHERE]);
    let mut child = command
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut waits = lines
        .map_while(Result::ok)
        .filter(|line| line.contains("storage.awaited"));
    assert!(waits.next().is_some());
    let pid = child.id().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-HUP", &pid])
        .status();
    assert!(sent.unwrap().success());
    // One line may have been written meanwhile.
    let went_on = waits.by_ref().take(2).count();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(went_on, 2);
}

#[test]
fn postgres_needs_a_configured_kek_and_a_migrated_schema() {
    let installation = Installation::new();
    let name = format!("start_{}", std::process::id());
    let url = fixtures::postgres::empty_database(&name);
    let database = ("PORTCULLIS__DATABASE__URL", url.as_str());
    refused(
        &installation.run(&["serve"], &[database]),
        78,
        "run `portcullis migrate up`",
    );
    assert!(
        installation
            .run(&["migrate", "up"], &[database])
            .status
            .success()
    );
    refused(
        &installation.run(&["serve"], &[database]),
        78,
        "create one with `portcullis keys generate-kek",
    );
    installation.done(&["keys", "generate-kek", "--out", "keys/kek"]);
    let _running = installation.serve(&[database]);
}

#[test]
fn wrong_kek_creates_nothing_and_exits_78() {
    let installation = Installation::new();
    drop(installation.serve(&[]));
    let before = installation.done(&["keys", "list", "--format", "json"]);
    installation.done(&["keys", "generate-kek", "--out", "other"]);
    let output = installation.run(&["serve"], &[("PORTCULLIS__KEYS__KEK", "file:other")]);
    refused(&output, 78, "which is not configured in `keys.kek`");
    assert_eq!(
        installation.done(&["keys", "list", "--format", "json"]),
        before
    );
    std::fs::remove_file(installation.folder.join("keys/kek")).unwrap();
    refused(&installation.run(&["serve"], &[]), 78, "cannot be read");
    assert!(
        !installation.folder.join("keys/kek").exists(),
        "a lost KEK is never replaced"
    );
}

#[test]
fn newer_schema_exits_78() {
    let installation = Installation::new();
    drop(installation.serve(&[]));
    installation.execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('9999')");
    refused(
        &installation.run(&["serve"], &[]),
        78,
        "migrated by a newer version of portcullis (9999)",
    );
    refused(
        &installation.run(&["user", "list"], &[]),
        78,
        "newer version",
    );
}

#[test]
fn second_server_on_one_file_is_rejected_and_commands_work() {
    let installation = Installation::new();
    let _first = installation.serve(&[]);
    refused(
        &installation.run(&["serve"], &[]),
        69,
        "another server is using",
    );
    assert!(installation.done(&["user", "list"]).starts_with("USERNAME"));
}

#[test]
fn port_in_use_is_reported() {
    let installation = Installation::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let address = format!("127.0.0.1:{port}");
    refused(
        &installation.run(&["serve", "--listen", &address], &[]),
        1,
        "another program is listening there",
    );
    refused(
        &installation.run(&["demo", "--port", &port], &[]),
        1,
        "choose another one with --port",
    );
}

#[test]
fn stopped_server_exits_0() {
    let installation = Installation::new();
    let running = installation.serve(&[]);
    assert_eq!(running.stop(), Some(0));
}

/// After exit code 0 a SQLite database is complete in its single file. Under load: `tests/faults/backup.rs`.
#[test]
fn no_wal_is_left_after_exit_0() {
    let installation = Installation::new();
    let is_whole = |what: &str| {
        for suffix in ["-wal", "-shm"] {
            let name = format!("data/portcullis.db{suffix}");
            assert!(!installation.folder.join(&name).exists(), "{what}: {name}");
        }
    };
    installation.told(
        &["user", "create", "alice", "--password-stdin"],
        "gravel-otter-92-lamp\n",
    );
    is_whole("user create");
    for round in 0..20 {
        // Every other round begins with an empty folder, because a first start writes the most.
        if round % 2 == 0 {
            std::fs::remove_dir_all(installation.folder.join("data")).unwrap();
        }
        let running = installation.serve(&[]);
        // Stops at another point of the periodic tasks each time: a fixed offset, not a wait for a condition.
        std::thread::sleep(std::time::Duration::from_millis(round * 61 % 900));
        assert_eq!(running.stop(), Some(0));
        is_whole(&format!("round {round}"));
        let file = installation.folder.join("data/portcullis.db");
        let mut look = fixtures::Look::at_file(&file);
        assert!(look.count("SELECT count(*) AS n FROM signing_keys") > 0);
    }
    for command in [
        ["user", "list"].as_slice(),
        &["migrate", "up"],
        &["keys", "rotate", "--server-secret", "--yes"],
        &[
            "resource",
            "create",
            "--audience",
            "https://api.example",
            "--name",
            "Orders",
            "--scope",
            "a",
        ],
        &["recover", "--yes"],
        &["audit", "verify"],
        &["backup", "copy.db"],
    ] {
        installation.done(command);
        is_whole(&command.join(" "));
    }
    // A command that fails leaves no log either.
    refused(&installation.run(&["user", "lock", "unknown"], &[]), 1, "");
    is_whole("a failure");
}

/// Starts on `installation`, and returns the reasons of its `db.unfamiliar` lines.
fn unfamiliar(installation: &Installation) -> Vec<String> {
    let running = installation.serve(&[]);
    let lines = running.log();
    assert_eq!(running.stop(), Some(0));
    let lines = lines.iter().filter(|line| line.contains("db.unfamiliar"));
    lines
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["level"], "warn");
            line["reason"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn start_warns_about_unfamiliar_database() {
    let installation = Installation::new();
    assert!(unfamiliar(&installation).is_empty(), "a first start");
    assert!(unfamiliar(&installation).is_empty(), "a second one");
    let marks = || {
        let files = std::fs::read_dir(installation.folder.join("keys")).unwrap();
        let files = files.map(|file| file.unwrap().path());
        let is_mark = |file: &std::path::PathBuf| {
            let name = file.file_name().unwrap().to_string_lossy();
            name.starts_with("feed-") && name.ends_with(".mark")
        };
        files.filter(is_mark).collect::<Vec<_>>()
    };
    let [mark] = &marks()[..] else {
        panic!("{:?}", marks());
    };
    // The database was used elsewhere meanwhile, or was copied here.
    let text = std::fs::read_to_string(mark).unwrap();
    let (start, beat) = text.trim_end().rsplit_once(' ').unwrap();
    let old = beat.parse::<i64>().unwrap() - 3_600_000_000;
    std::fs::write(mark, format!("{start} {old}\n")).unwrap();
    assert_eq!(unfamiliar(&installation), ["old_mark"]);
    std::fs::remove_file(mark).unwrap();
    assert_eq!(unfamiliar(&installation), ["no_mark"]);
    // The database was deleted.
    let data = installation.folder.join("data");
    std::fs::remove_dir_all(&data).unwrap();
    assert_eq!(unfamiliar(&installation), ["empty_beside_mark"]);
    assert_eq!(marks().len(), 2);
    marks()
        .iter()
        .for_each(|mark| std::fs::remove_file(mark).unwrap());
    std::fs::remove_dir_all(&data).unwrap();
    assert!(
        unfamiliar(&installation).is_empty(),
        "the KEK may have been made for this start"
    );
    marks()
        .iter()
        .for_each(|mark| std::fs::remove_file(mark).unwrap());
    std::fs::remove_dir_all(&data).unwrap();
    let touched = std::process::Command::new("touch")
        .args(["-d", "2 days ago"])
        .arg(installation.folder.join("keys/kek"))
        .status();
    assert!(touched.unwrap().success());
    assert_eq!(unfamiliar(&installation), ["empty_beside_kek"]);
}

#[test]
fn commands_create_users_and_clients() {
    let installation = Installation::new();
    let create = [
        "user",
        "create",
        "Alice",
        "--password-stdin",
        "--format",
        "json",
    ];
    let printed = installation.told(
        &create,
        "gravel-otter-92-lamp
",
    );
    let users: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(users[0]["username"], "alice");

    installation.done(&[
        "resource",
        "create",
        "--audience",
        "https://api.example",
        "--name",
        "Orders",
        "--scope",
        "orders:read=See your orders",
    ]);
    let created = installation.done(&[
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
    let shown = installation.done(&["client", "get", "shop", "--format", "json"]);
    assert!(!shown.contains("pcl_sec_"), "a secret is shown once");
    assert!(
        installation
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
            2,
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
            2,
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
            vec!["client", "get", "unknown"],
            1,
            "there is no client `unknown`",
        ),
        (
            vec!["user", "set-password", "unknown", "--password-stdin"],
            1,
            "there is no user `unknown`",
        ),
        (vec!["user", "create", "bob"], 2, "--password-stdin"),
    ];
    for (arguments, code, sentence) in refusals {
        refused(&installation.run(&arguments, &[]), code, sentence);
    }
}

#[test]
fn setup_link_is_not_logged_and_shown_by_command() {
    let installation = Installation::new();
    let told = |line: &str| line.contains("admin.none") && line.contains("portcullis setup link");
    let first = installation.serve(&[]);
    first.waits_for(told);
    let link = |arguments: &[&str]| installation.done(arguments).trim().to_owned();
    let one = link(&["setup", "link"]);
    assert!(
        one.starts_with("http://localhost:8080/setup?token="),
        "{one}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&link(&["setup", "link", "--format", "json"])).unwrap();
    assert_ne!(json["link"], one.as_str(), "each is a fresh one");
    let log = first.log();
    for line in &log {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).is_ok(),
            "{line}"
        );
        assert!(!line.contains("token="), "{line}");
    }
    drop(first);
    assert_eq!(
        installation.count("SELECT count(*) AS n FROM setup_links"),
        2
    );
    let create = ["user", "create", "root", "--admin", "--password-stdin"];
    installation.told(&create, "gravel-otter-92-lamp\n");
    let second = installation.serve(&[]);
    assert!(!second.log().iter().any(|line| told(line)));
    let sentence = "there is an administrator already";
    refused(&installation.run(&["setup", "link"], &[]), 1, sentence);
    assert_eq!(
        installation.count("SELECT count(*) AS n FROM setup_links"),
        2
    );
}

#[test]
fn first_start_on_terminal_shows_setup_link() {
    use std::io::{BufRead, BufReader};
    let installation = Installation::new();
    // The shell prints its process id, which becomes that of the server.
    let line = format!(
        "echo pid=$$; exec {} serve",
        env!("CARGO_BIN_EXE_portcullis")
    );
    let ours = installation.command(&[], &[]);
    let mut terminal = std::process::Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .current_dir(&installation.folder)
        .env_clear()
        .envs(
            ours.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .env("PATH", "/usr/bin:/bin")
        .env("SHELL", "/bin/sh")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let shown = BufReader::new(terminal.stdout.take().unwrap()).lines();
    let (mut pid, mut link) = (None, false);
    let (mut keys, mut is_started) = (0, false);
    for line in shown.map_while(Result::ok) {
        if let Some(number) = line.trim().strip_prefix("pid=") {
            pid = Some(number.to_owned());
        }
        keys += usize::from(line.contains("key.created"));
        is_started |= line.contains("server.started");
        link = line
            .trim()
            .starts_with("http://localhost:8080/setup?token=");
        if link {
            break;
        }
    }
    let stop = std::process::Command::new("kill")
        .arg(pid.unwrap())
        .status();
    assert!(stop.unwrap().success());
    terminal.wait().unwrap();
    assert!(link, "no link on the terminal");
    // The link is last, so no line scrolls it away: not those of six keys and a secret.
    assert_eq!((keys, is_started), (7, true));
}

#[test]
fn unattended_first_start_creates_temporary_administrator() {
    use std::os::unix::fs::PermissionsExt;
    let installation = Installation::new();
    installation.write("password", "gravel-otter-92-lamp\n");
    let file = installation.folder.join("password");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let variable = ("PORTCULLIS__BOOTSTRAP__ADMIN_PASSWORD_FILE", "password");
    let sentence = "`bootstrap.admin_password_file`: password can be read by other users";
    refused(&installation.run(&["serve"], &[variable]), 78, sentence);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let running = installation.serve(&[variable]);
    running.waits_for(|line| line.contains("admin.bootstrap") && line.contains("configuration"));
    assert!(!running.log().iter().any(|line| line.contains("/setup?")));
    drop(running);
    // The file is not needed any more and may be deleted.
    std::fs::remove_file(&file).unwrap();
    let again = installation.serve(&[variable]);
    assert!(!again.log().iter().any(|line| line.contains("/setup?")));
    let both = ("PORTCULLIS__BOOTSTRAP__ADMIN_PASSWORD_HASH", "$argon2id$x");
    let sentence = "`bootstrap.admin_password_hash`: cannot be combined with";
    refused(
        &installation.run(&["serve"], &[variable, both]),
        78,
        sentence,
    );
}

#[test]
fn undeclared_proxy_is_logged_once() {
    let installation = Installation::new();
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let running = installation.serve(&[("PORTCULLIS__LISTEN__PUBLIC", &listen)]);
    for _ in 0..3 {
        let answer = asks(port, "/account");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let told = |line: &str| line.contains("http.proxy_undeclared") && line.contains("forwarded");
    running.waits_for(told);
    assert_eq!(running.log().iter().filter(|line| told(line)).count(), 1);
}

/// Returns a port on which no process listens.
fn free_port() -> u16 {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    probe.local_addr().unwrap().port()
}

/// Returns the response of a listener on this machine to one request, which carries the headers of a proxy.
fn asks(port: u16, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:8080\r\nX-Forwarded-For: 10.1.1.1\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn setup_link_guess_after_setup_takes_no_write_lock() {
    let installation = Installation::new();
    let create = ["user", "create", "root", "--admin", "--password-stdin"];
    installation.told(&create, "gravel-otter-92-lamp\n");
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let _running = installation.serve(&[("PORTCULLIS__LISTEN__PUBLIC", &listen)]);
    let mut writer = installation.look();
    writer.execute("BEGIN IMMEDIATE");
    let answer = asks(port, "/setup?token=x");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    drop(writer);
}

#[test]
fn admin_paths_reject_other_networks() {
    let installation = Installation::new();
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let variable = ("PORTCULLIS__LISTEN__MANAGEMENT", listen.as_str());
    let path = "/api/admin/v1/clients";
    let running = installation.serve(&[variable]);
    assert!(
        asks(port, path).starts_with("HTTP/1.1 404"),
        "loopback may come in"
    );
    drop(running);
    // Headers of the request do not grant access.
    let running = installation.serve(&[variable, ("PORTCULLIS__ADMIN__ALLOW", "10.0.0.0/8")]);
    let refused = asks(port, path);
    assert!(
        refused.starts_with("HTTP/1.1 403") && refused.contains("application/problem+json"),
        "{refused}"
    );
    running.waits_for(|line| line.contains("admin.denied") && line.contains("network"));
    assert!(asks(port, "/livez").starts_with("HTTP/1.1 200"));
}
