//! The commands `doctor` and `config` with the real binary: each problem is reported, and nothing is reported
//! for a healthy server.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "fixtures/mod.rs"]
mod fixtures;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fixtures::installation::{Installation, refused};
use fixtures::{Db, apply, on_both_databases};
use serde_json::Value;

/// The findings (check, verdict, sentence), and the exit code.
struct Diagnosis {
    findings: Vec<(String, String, String)>,
    code: Option<i32>,
}

impl Installation {
    fn doctor(&self, variables: &[(&str, &str)]) -> Diagnosis {
        let output = self.run(&["doctor", "--format", "json"], variables);
        let values: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let findings = values.as_array().unwrap().iter();
        Diagnosis {
            findings: findings
                .map(|f| (text(&f["check"]), text(&f["verdict"]), text(&f["what"])))
                .collect(),
            code: output.status.code(),
        }
    }
}

impl Diagnosis {
    #[track_caller]
    fn says(&self, check: &str, verdict: &str, sentence: &str) {
        let found = |(c, v, what): &(String, String, String)| {
            c == check && v == verdict && what.contains(sentence)
        };
        assert!(
            self.findings.iter().any(found),
            "no {verdict} {check} `{sentence}` in {:#?}",
            self.findings
        );
        let failed = self
            .findings
            .iter()
            .any(|(_, verdict, _)| verdict == "fail");
        assert_eq!(self.code, Some(i32::from(failed)));
    }
}

/// Returns a port on which no process listens at the moment.
fn free_port() -> u16 {
    let probe = TcpListener::bind("127.0.0.1:0").unwrap();
    probe.local_addr().unwrap().port()
}

/// Serves a fixed response, as a server other than portcullis does.
fn impostor(status: &str, headers: &str, body: &str) -> u16 {
    impostor_that(|_| {
        format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    })
}

/// Does the same, with a response that depends on the port.
fn impostor_that(answer: impl FnOnce(u16) -> String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = answer(port);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4_096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

#[apply(on_both_databases)]
#[test]
fn doctor_passes_on_healthy_server(#[case] db: Db) {
    let installation = &Installation::on(db);
    let (public, management) = (free_port(), free_port());
    let listen = format!("localhost:{public}");
    let issuer = format!("http://{listen}");
    let health = format!("127.0.0.1:{management}");
    let variables = [
        ("PORTCULLIS__LISTEN__PUBLIC", listen.as_str()),
        ("PORTCULLIS__ISSUER", &issuer),
        ("PORTCULLIS__LISTEN__MANAGEMENT", &health),
    ];
    // Before the first start there is little to check, and no server.
    let before = installation.doctor(&variables);
    before.says("server", "fail", "Start it with `portcullis serve`");
    let running = installation.serve(&variables);
    let found = installation.doctor(&variables);
    found.says("configuration", "ok", "readable");
    // How long the Argon2 hash takes depends on the machine.
    let hashed = |(check, _, what): &(String, String, String)| {
        check == "password hash" && what.starts_with("one takes ")
    };
    assert!(found.findings.iter().any(hashed), "{:#?}", found.findings);
    found.says("database", "ok", "schema current");
    found.says("clock", "ok", "");
    found.says(
        "administrator",
        "info",
        "no administrator exists, and none is needed",
    );
    found.says("KEK", "ok", "encrypts all");
    found.says("rotation", "ok", "token/ES256: signs until");
    found.says("issuer", "ok", "its metadata is that of this configuration");
    found.says("listen.public", "ok", "a program listens");
    found.says("listen.management", "ok", "is ready");
    assert_eq!(found.code, Some(0), "{:#?}", found.findings);
    installation.told(
        &["user", "create", "root", "--admin", "--password-stdin"],
        "four walls and a gate\n",
    );
    installation
        .doctor(&variables)
        .says("administrator", "ok", "there is one");
    installation.done(&["user", "lock", "root"]);
    installation
        .doctor(&variables)
        .says("administrator", "info", "all are locked");
    // A locked administrator does not count.
    let link = installation.run(&["setup", "link"], &variables);
    refused(&link, 1, "there is an administrator already");
    installation.done(&["user", "unlock", "root"]);
    installation
        .doctor(&variables)
        .says("administrator", "ok", "there is one");
    // The text format has one line per finding.
    let told = String::from_utf8(installation.run(&["doctor"], &variables).stdout).unwrap();
    assert!(
        told.lines().any(|line| line.starts_with("ok    database ")),
        "{told}"
    );

    // A rotation that is overdue, and a next key that is missing.
    let later = |days: i64| {
        format!(
            "UPDATE signing_keys SET publish_at = publish_at - {0}, activate_at = activate_at - {0} WHERE generation = 1 AND alg = 'ES256' AND use = 'token'",
            days * 86_400_000_000
        )
    };
    drop(running);
    installation.execute(
        "DELETE FROM signing_keys WHERE generation > 1 AND alg = 'ES256' AND use = 'token'",
    );
    installation.execute("UPDATE signing_keys SET retire_at = NULL, remove_at = NULL WHERE generation = 1 AND alg = 'ES256' AND use = 'token'");
    installation
        .doctor(&variables)
        .says("rotation", "warn", "token/ES256: there is no next key");
    installation.execute(&later(92));
    installation
        .doctor(&variables)
        .says("rotation", "fail", "token/ES256: overdue since");
    installation
        .execute("UPDATE signing_keys SET revoked_at = 1 WHERE alg = 'ES256' AND use = 'token'");
    installation
        .doctor(&variables)
        .says("rotation", "fail", "token/ES256: no key signs");
}

/// A stopped server is one finding, in words that no library wrote.
#[test]
fn doctor_reports_stopped_server_once() {
    let desk = Installation::new();
    let (public, management) = (free_port(), free_port());
    let listen = format!("localhost:{public}");
    let health = format!("127.0.0.1:{management}");
    let variables = [
        ("PORTCULLIS__LISTEN__PUBLIC", listen.as_str()),
        ("PORTCULLIS__ISSUER", &format!("http://{listen}")),
        ("PORTCULLIS__LISTEN__MANAGEMENT", &health),
    ];
    let found = desk.doctor(&variables);
    found.says("server", "fail", "no server is running");
    let of_server =
        |check: &str| ["server", "issuer", "listen.public", "listen.management"].contains(&check);
    let count = found.findings.iter().filter(|(check, ..)| of_server(check));
    assert_eq!(count.count(), 1, "{:#?}", found.findings);
    let health = desk.run(&["healthcheck"], &variables);
    refused(&health, 1, "no program listens there");
    let nowhere = desk.run(&["--config", "nosuch.toml", "serve"], &[]);
    refused(
        &nowhere,
        78,
        "configuration file nosuch.toml: does not exist",
    );
    for said in [
        format!("{:?}", found.findings),
        String::from_utf8_lossy(&health.stderr).into_owned(),
        String::from_utf8_lossy(&nowhere.stderr).into_owned(),
    ] {
        for library in ["tcp connect", "client error", "error sending"] {
            assert!(!said.contains(library), "{said}");
        }
    }
}

/// Every setting that `doctor` names can be set as it advises.
#[test]
fn doctor_advice_is_accepted_by_config_check() {
    let desk = Installation::new();
    // The most expensive hash is slow on every machine.
    let slow = [
        ("PORTCULLIS__LOGIN__ARGON2__MEMORY_KIB", "65536"),
        ("PORTCULLIS__LOGIN__ARGON2__PASSES", "16"),
    ];
    let found = desk.doctor(&slow);
    let (_, verdict, what) = found
        .findings
        .iter()
        .find(|(check, ..)| check == "password hash")
        .unwrap();
    let advised: Vec<(String, String)> = ["memory_kib", "passes", "lanes"]
        .iter()
        .filter_map(|key| {
            let value = what.split_once(&format!("{key} = "))?.1;
            let value = value.split(|c: char| !c.is_ascii_digit()).next()?;
            let name = format!("PORTCULLIS__LOGIN__ARGON2__{}", key.to_uppercase());
            Some((name, value.to_owned()))
        })
        .collect();
    assert_eq!(
        advised.len(),
        if verdict == "warn" { 3 } else { 0 },
        "{what}"
    );
    let advised: Vec<(&str, &str)> = (advised.iter())
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert!(desk.run(&["config", "check"], &advised).status.success());
    let least = desk.doctor(&advised);
    assert!(
        !format!("{:?}", least.findings).contains("lower `login.argon2`"),
        "{:#?}",
        least.findings
    );
    // The advice about other settings.
    for (wrong, advice) in [
        (
            &[
                ("PORTCULLIS__ISSUER", "https://id.example.com"),
                ("PORTCULLIS__LISTEN__PUBLIC", "localhost:1"),
            ][..],
            ("PORTCULLIS__HTTP__TRUSTED_PROXIES", "10.0.0.7"),
        ),
        (
            &[("PORTCULLIS_ISSUER", "http://localhost:1")],
            ("PORTCULLIS__ISSUER", "http://localhost:1"),
        ),
    ] {
        let warned = |variables: &[(&str, &str)]| {
            let found = desk.doctor(variables).findings;
            found
                .iter()
                .any(|(check, verdict, _)| check == "configuration" && verdict == "warn")
        };
        assert!(warned(wrong), "{wrong:?}");
        let kept = wrong
            .iter()
            .filter(|(name, _)| name.starts_with("PORTCULLIS__"));
        let followed: Vec<_> = kept.copied().chain([advice]).collect();
        assert!(desk.run(&["config", "check"], &followed).status.success());
        assert!(!warned(&followed), "{followed:?}");
    }
}

/// The usual spelling of other programs is not read, and every command says so.
#[test]
fn single_underscore_key_is_warned() {
    let desk = Installation::new();
    let wrong = ("PORTCULLIS_DATABASE_URL", "postgres://db.example/x");
    let expected = "did you mean PORTCULLIS__DATABASE__URL?";
    for command in [
        &["config", "check"][..],
        &["config", "dump"],
        &["user", "list"],
    ] {
        let output = desk.run(command, &[wrong]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains("config.ignored") && said.contains(expected),
            "{said}"
        );
        assert!(!said.contains("db.example"), "{said}");
    }
    desk.doctor(&[wrong])
        .says("configuration", "warn", expected);
    let running = desk.serve(&[
        wrong,
        ("PORTCULLIS_PORT", "tcp://10.0.0.1:80"),
        ("RUST_LOG", "info"),
    ]);
    let log = running.log().join("\n");
    assert!(
        log.contains(expected) && !log.contains("PORTCULLIS_PORT"),
        "{log}"
    );
    // The start names the database that is used, and the source of each value that is set.
    let value = |key: &str| {
        let line = running.waits_for(|line| {
            line.contains("config.value") && line.contains(&format!("\"key\":\"{key}\""))
        });
        let line: Value = serde_json::from_str(&line).unwrap();
        (line["value"].clone(), line["source"].clone())
    };
    assert_eq!(
        value("database.url"),
        ("sqlite:data/portcullis.db".into(), "derived".into())
    );
    assert_eq!(
        value("log.level"),
        ("info".into(), "environment RUST_LOG".into())
    );
    assert_eq!(
        value("issuer"),
        (
            "http://localhost:8080".into(),
            "environment PORTCULLIS__ISSUER".into()
        )
    );
    // A section without keys is checked like one with keys.
    desk.write("odd.toml", "[token]\n");
    let output = desk.run(&["--config", "odd.toml", "config", "check"], &[]);
    refused(&output, 78, "unknown key `token`");
    desk.write("odd.toml", "[tokens]\n");
    desk.done(&["--config", "odd.toml", "config", "check"]);
}

#[test]
fn config_dump_equals_effective_configuration() {
    let desk = Installation::new();
    let dump = |variables: &[(&str, &str)]| -> Value {
        let output = desk
            .command(&["config", "dump", "--format", "json"], variables)
            .env_remove("PORTCULLIS__ISSUER")
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let value = |dump: &Value, key: &str| {
        let all = dump.as_array().unwrap();
        let found = all.iter().find(|setting| setting["key"] == key).unwrap();
        (
            found["value"].clone(),
            found["from"].as_str().unwrap().to_owned(),
        )
    };
    let derived = |value: Value| (value, "derived".to_owned());
    let told = dump(&[
        ("PORTCULLIS__LISTEN__PUBLIC", ":18100"),
        ("PORTCULLIS__DATA_DIR", "mine"),
    ]);
    assert_eq!(
        value(&told, "issuer"),
        derived("http://localhost:18100".into())
    );
    assert_eq!(value(&told, "listen.public").0, "localhost:18100");
    assert_eq!(
        value(&told, "database.url"),
        derived("sqlite:mine/portcullis.db".into())
    );
    assert_eq!(value(&told, "database.auto_migrate"), derived(true.into()));
    assert!(value(&told, "login.hash_threads").0.is_number());
    let told = dump(&[("DATABASE_URL", "postgres://db.example/x")]);
    assert_eq!(
        value(&told, "database.url").0,
        "postgres://db.example/x?sslmode=verify-full"
    );
    assert_eq!(value(&told, "database.auto_migrate"), derived(false.into()));
}

#[test]
fn database_errors_name_unreachable_refused_missing() {
    let installation = Installation::new();
    installation
        .doctor(&[])
        .says("database", "warn", "the first start creates it");
    let away = (
        "PORTCULLIS__DATABASE__URL",
        "postgres://127.0.0.1:1/nothing?connect_timeout=2",
    );
    installation
        .doctor(&[away])
        .says("database", "fail", "PostgreSQL cannot be reached");
    // The server of the tests needs no password, but it knows its users and databases.
    let url = fixtures::postgres::url();
    let next = if url.contains('?') { '&' } else { '?' };
    for (url, meaning) in [
        (
            format!("{url}{next}user=unknown_role"),
            "PostgreSQL refused the connection",
        ),
        (
            fixtures::postgres::database("unknown_database"),
            "PostgreSQL does not have the database",
        ),
    ] {
        installation
            .doctor(&[("PORTCULLIS__DATABASE__URL", &url)])
            .says("database", "fail", meaning);
        let list = installation.run(&["user", "list"], &[("PORTCULLIS__DATABASE__URL", &url)]);
        refused(&list, 69, meaning);
    }
    drop(installation.serve(&[]));
    installation.execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('9999')");
    installation
        .doctor(&[])
        .says("database", "fail", "newer version");
    installation
        .execute("DELETE FROM __diesel_schema_migrations WHERE version IN ('9999', '0006')");
    installation
        .doctor(&[])
        .says("database", "warn", "the next start applies them");
    let by_hand = ("PORTCULLIS__DATABASE__AUTO_MIGRATE", "false");
    installation
        .doctor(&[by_hand])
        .says("database", "fail", "run `portcullis migrate up`");
}

#[test]
fn doctor_reports_clock_skew() {
    let installation = Installation::new();
    drop(installation.serve(&[]));
    installation.doctor(&[]).says("clock", "ok", "not behind");
    // The database is far in the future, because the clock of this machine was set back.
    installation.execute("UPDATE feed_head SET beat = 4000000000000000");
    installation
        .doctor(&[])
        .says("clock", "fail", "set the clock");
}

#[test]
fn doctor_reports_kek_problems() {
    let installation = Installation::new();
    drop(installation.serve(&[]));
    let kek = installation.folder.join("keys/kek");
    installation.done(&["keys", "generate-kek", "--out", "keys/other"]);
    let other = ("PORTCULLIS__KEYS__KEK", "file:keys/other");
    installation
        .doctor(&[other])
        .says("KEK", "fail", "put it back into `keys.kek`");
    let both = ("PORTCULLIS__KEYS__KEK", "file:keys/other,file:keys/kek");
    installation
        .doctor(&[both])
        .says("KEK", "warn", "run `portcullis keys rewrap`");
    std::fs::set_permissions(&kek, std::fs::Permissions::from_mode(0o644)).unwrap();
    installation.doctor(&[]).says(
        "KEK",
        "fail",
        "can be read by other users (mode 644); run: chmod 600",
    );
    std::fs::remove_file(&kek).unwrap();
    installation
        .doctor(&[])
        .says("KEK", "fail", "cannot be read");
}

#[apply(on_both_databases)]
#[test]
fn doctor_reports_corrupt_keys_and_restored_database(#[case] db: Db) {
    let installation = Installation::on(db);
    assert_eq!(installation.serve(&[]).stop(), Some(0));
    installation
        .doctor(&[])
        .says("keys", "ok", "every row opens");
    installation
        .doctor(&[])
        .says("restore", "ok", "no restored copy");
    installation.doctor(&[]).says("audit log", "ok", "sealed");
    let state = |kid: &str| {
        let listed = installation.done(&["keys", "list", "--format", "json"]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let keys = listed.as_array().unwrap().clone();
        let signing = keys.iter().find(|key| key["state"] == "signing").unwrap();
        let kid = if kid.is_empty() {
            signing["kid"].as_str().unwrap()
        } else {
            kid
        };
        let key = keys.iter().find(|key| key["kid"] == kid).unwrap();
        (kid.to_owned(), key["state"].as_str().unwrap().to_owned())
    };
    let (kid, _) = state("");
    // The last character may hold no bits; the one before it does.
    installation.execute(&format!(
        "UPDATE signing_keys SET sealed = substr(sealed, 1, length(sealed) - 9) || CASE substr(sealed, length(sealed) - 8, 1) WHEN 'A' THEN 'B' ELSE 'A' END || substr(sealed, length(sealed) - 7) WHERE kid = '{kid}'"
    ));
    assert_eq!(state(&kid).1, "corrupt");
    installation.doctor(&[]).says("keys", "fail", &kid);
    installation.execute("UPDATE feed_head SET restored_at = 1");
    installation
        .doctor(&[])
        .says("restore", "fail", "portcullis recover");
    installation.execute("DELETE FROM audit_seals; DELETE FROM audit_events");
    installation
        .doctor(&[])
        .says("audit log", "fail", "portcullis audit verify");
}

/// Each event of high or critical severity either leaves a condition that `doctor` finds, or is an occurrence
/// without a lasting state.
#[test]
fn doctor_covers_every_critical_event() {
    const OCCURRENCES: [&str; 10] = [
        "code.client_mismatch",
        "code.replay",
        "db.mode",
        "http.timeout",
        "key.revoked",
        "log.dropped",
        "login.spray",
        "logout.backchannel_dead",
        "server.panicked",
        "token.refresh_reuse",
    ];
    let installation = Installation::new();
    let running = installation.serve(&[]);
    certify(&installation.folder, "localhost", 400);
    let tls = [
        ("PORTCULLIS__ISSUER", "https://localhost:8443"),
        ("PORTCULLIS__LISTEN__TLS__CERTIFICATE", "tls.pem"),
        ("PORTCULLIS__LISTEN__TLS__KEY", "tls.key"),
    ];
    let found = installation.doctor(&tls);
    let checks: BTreeSet<&str> = found.findings.iter().map(|(c, ..)| c.as_str()).collect();
    for event in portcullis::metrics::LOG_EVENTS {
        match event.doctor {
            Some(check) => assert!(checks.contains(check), "{}: {check}", event.name),
            None => assert!(
                event.severities.is_empty() || OCCURRENCES.contains(&event.name),
                "{} has no check",
                event.name
            ),
        }
    }
    drop(running);
}

#[test]
fn doctor_reports_issuer_problems() {
    let installation = Installation::new();
    let seen = |status: &str, headers: &str, body: &str| {
        let port = impostor(status, headers, body);
        let issuer = format!("http://localhost:{port}");
        (
            installation.doctor(&[
                ("PORTCULLIS__ISSUER", &issuer),
                ("PORTCULLIS__LISTEN__PUBLIC", &format!("localhost:{port}")),
            ]),
            issuer,
        )
    };
    let (found, _) = seen("200 OK", "", "<h1>It works!</h1>");
    found.says("issuer", "fail", "another program responds");
    let (found, _) = seen("200 OK", "", "{\"issuer\":\"https://other.example\"}");
    found.says(
        "issuer",
        "fail",
        "a server with the issuer https://other.example",
    );
    let (found, _) = seen("421 Misdirected Request", "", "");
    found.says(
        "issuer",
        "fail",
        "must pass on the host name (`Host: localhost:",
    );
    let (found, _) = seen(
        "301 Moved Permanently",
        "Location: https://www.example/\r\n",
        "",
    );
    found.says("issuer", "fail", "redirects to https://www.example/");
    let (found, _) = seen("502 Bad Gateway", "Server: nginx/1.26\r\n", "");
    found.says("issuer", "fail", "returns 502");
    found.says(
        "proxy",
        "warn",
        "`nginx/1.26` responds for the issuer, and `http.trusted_proxies` is empty",
    );
    let port = impostor(
        "503 Service Unavailable",
        "",
        "{\"status\":\"failed\",\"checks\":{\"database\":\"failed\",\"keys\":\"ok\"}}",
    );
    let management = format!("127.0.0.1:{port}");
    installation
        .doctor(&[("PORTCULLIS__LISTEN__MANAGEMENT", &management)])
        .says(
            "listen.management",
            "fail",
            "is not ready (503): database; see its log",
        );
    // The same issuer with other values.
    let port = impostor_that(|port| {
        let body = format!("{{\"issuer\":\"http://localhost:{port}\"}}");
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
    });
    let issuer = format!("http://localhost:{port}");
    installation
        .doctor(&[("PORTCULLIS__ISSUER", &issuer)])
        .says(
            "issuer",
            "warn",
            "publishes values that differ from those of this version: acr_values_supported",
        );
}

/// nginx with `location /auth/ { proxy_pass http://server/; }`: the root of the issuer's host is another site.
#[test]
fn doctor_reports_path_prefix() {
    let installation = Installation::new();
    let proxy = impostor("404 Not Found", "Server: nginx/1.26\r\n", "");
    let issuer = format!("http://localhost:{proxy}");
    let listen = format!("localhost:{}", free_port());
    let management = format!("127.0.0.1:{}", free_port());
    let variables = [
        ("PORTCULLIS__ISSUER", issuer.as_str()),
        ("PORTCULLIS__LISTEN__PUBLIC", &listen),
        ("PORTCULLIS__LISTEN__MANAGEMENT", &management),
    ];
    let found = installation.doctor(&variables);
    found.says("issuer", "fail", "returns 404");
    let _running = installation.serve(&variables);
    let found = installation.doctor(&variables);
    found.says("issuer", "fail", "returns 404");
    found.says("issuer", "fail", "without a path prefix");
}

#[apply(on_both_databases)]
#[test]
fn doctor_names_clients_that_serve_several_audiences(#[case] db: Db) {
    let installation = &Installation::on(db);
    let apis = ["https://orders.example", "https://mail.example"];
    for api in apis {
        installation.done(&["resource", "create", "--audience", api, "--name", "An API"]);
    }
    let create = [
        "client",
        "create",
        "--grant-type",
        "client_credentials",
        "--scope",
        "",
    ];
    let serves = ["--serves", apis[0]];
    let one = [&create[..], &["--id", "one", "--name", "One"], &serves].concat();
    installation.done(&one);
    let found = installation.doctor(&[]);
    let named = |found: &Diagnosis| {
        let checks = found.findings.iter();
        checks
            .filter(|(check, ..)| check == "resource servers")
            .count()
    };
    assert_eq!(named(&found), 0, "{:#?}", found.findings);
    let both = ["--id", "both", "--name", "Both", "--serves", apis[1]];
    installation.done(&[&create[..], &both, &serves].concat());
    let found = installation.doctor(&[]);
    found.says("resource servers", "warn", "several audiences: `both`.");
}

/// Returns a certificate for a name that expires in this many days, and its key.
fn certify(folder: &Path, name: &str, days: i64) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let at = |days: i64| {
        let day = std::time::Duration::from_secs(86_400);
        let by = day * u32::try_from(days.abs()).unwrap();
        let now = portcullis::time::Clock::System.now();
        let at = if days < 0 { now - by } else { now + by };
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(at.secs())
    };
    parameters.not_before = at(-30).into();
    parameters.not_after = at(days).into();
    let certificate = parameters.self_signed(&key).unwrap();
    std::fs::write(folder.join("tls.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
    std::fs::set_permissions(
        folder.join("tls.key"),
        std::fs::Permissions::from_mode(0o600),
    )
    .unwrap();
}

#[test]
fn doctor_reports_certificate_problems() {
    let installation = Installation::new();
    let port = free_port();
    let (listen, issuer) = (
        format!("localhost:{port}"),
        format!("https://localhost:{port}"),
    );
    let variables = [
        ("PORTCULLIS__ISSUER", issuer.as_str()),
        ("PORTCULLIS__LISTEN__PUBLIC", &listen),
        ("PORTCULLIS__LISTEN__TLS__CERTIFICATE", "tls.pem"),
        ("PORTCULLIS__LISTEN__TLS__KEY", "tls.key"),
    ];
    installation
        .doctor(&variables)
        .says("certificate", "fail", "tls.pem: No such file");
    certify(&installation.folder, "other.example", 90);
    installation
        .doctor(&variables)
        .says("certificate", "fail", "is not valid for localhost");
    certify(&installation.folder, "localhost", -1);
    installation
        .doctor(&variables)
        .says("certificate", "fail", "expired at");
    certify(&installation.folder, "localhost", 13);
    installation
        .doctor(&variables)
        .says("certificate", "warn", "expires at");
    certify(&installation.folder, "localhost", 90);
    let running = installation.serve(&variables);
    let found = installation.doctor(&variables);
    found.says("certificate", "ok", "is valid until");
    found.says("issuer", "fail", "that the certificate is trusted");
    // A client that trusts the certificate sees the same over HTTPS.
    let trusting = [&variables[..], &[("SSL_CERT_FILE", "tls.pem")]].concat();
    let found = installation.doctor(&trusting);
    found.says("issuer", "ok", "its metadata is that of this configuration");
    found.says("issuer TLS", "ok", "is valid until");
    drop(running);
    std::fs::set_permissions(
        installation.folder.join("tls.key"),
        std::fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    installation
        .doctor(&variables)
        .says("certificate", "fail", "can be read by other users");
}

#[test]
fn doctor_reports_inconsistent_configuration() {
    let installation = Installation::new();
    installation
        .doctor(&[("PORTCULLIS__TOKENS__ACESS", "5m")])
        .says("configuration", "fail", "unknown key `tokens.acess`");
    installation
        .doctor(&[("PORTCULLIS__LIMITS__PER_IP", "9000")])
        .says(
            "configuration",
            "warn",
            "looser than the default: limits.per_ip=9000",
        );
    let behind = [
        ("PORTCULLIS__ISSUER", "https://localhost:1"),
        ("PORTCULLIS__LISTEN__PUBLIC", "localhost:2"),
    ];
    installation
        .doctor(&behind)
        .says("configuration", "warn", "name it in `http.trusted_proxies`");
    installation.write("password", "gravel-otter-92-lamp\n");
    std::fs::set_permissions(
        installation.folder.join("password"),
        std::fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    let file = [("PORTCULLIS__BOOTSTRAP__ADMIN_PASSWORD_FILE", "password")];
    installation
        .doctor(&file)
        .says("bootstrap", "fail", "can be read by other users");
    std::fs::set_permissions(
        installation.folder.join("password"),
        std::fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    installation.doctor(&file).says(
        "bootstrap",
        "warn",
        "remove it once there is a permanent administrator",
    );
    drop(installation.serve(&file));
    installation
        .doctor(&file)
        .says("administrator", "info", "there is no permanent one");
}

#[test]
fn doctor_reports_world_readable_password() {
    let installation = Installation::new();
    let path = installation.folder.join("portcullis.toml");
    let looks = |url: &str, mode: u32, variables: &[(&str, &str)]| -> bool {
        installation.write("portcullis.toml", &format!("[database]\nurl = \"{url}\"\n"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let arguments = ["--config", "portcullis.toml", "doctor", "--format", "json"];
        let output = installation.run(&arguments, variables);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.contains("sesame"), "{said}");
        let findings: Vec<Value> = serde_json::from_str(&said).unwrap();
        findings.iter().any(|f| {
            f["check"] == "secrets"
                && f["verdict"] == "warn"
                && f["what"]
                    .as_str()
                    .unwrap()
                    .contains("chmod 640 portcullis.toml")
        })
    };
    let (user, query) = (
        "postgres://me:sesame@127.0.0.1:1/x?connect_timeout=2",
        "postgres://me@127.0.0.1:1/x?password=sesame&connect_timeout=2",
    );
    assert!(looks(user, 0o644, &[]) && looks(query, 0o604, &[]));
    assert!(!looks(user, 0o640, &[]));
    assert!(!looks(
        "postgres://me@127.0.0.1:1/x?connect_timeout=2",
        0o644,
        &[]
    ));
    // The URL that is in effect is another one.
    let other = ("PORTCULLIS__DATABASE__URL", "sqlite:x.db");
    assert!(!looks(user, 0o644, &[other]));
}

#[test]
fn config_dump_shows_sources_and_no_secrets() {
    let installation = Installation::new();
    installation.write("one.toml", "[tokens]\naccess = \"2m\"\nid = \"2m\"\n[database]\nurl = \"postgres://me:sesame@db.example/x\"\n");
    installation.write("two.toml", "[tokens]\nid = \"3m\"\n");
    let dump = |variables: &[(&str, &str)]| -> Vec<(String, Value, String)> {
        let arguments = [
            "--config", "one.toml", "--config", "two.toml", "config", "dump", "--format", "json",
        ];
        let output = installation.run(&arguments, variables);
        assert!(
            !String::from_utf8_lossy(&output.stdout).contains("sesame"),
            "a secret is shown"
        );
        let values: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let all = values.as_array().unwrap().iter();
        all.map(|s| (text(&s["key"]), s["value"].clone(), text(&s["from"])))
            .collect()
    };
    let variables = [
        ("PORTCULLIS__KEYS__KEK", "file:/a,env:B"),
        ("RUST_LOG", "warn"),
        (
            "PORTCULLIS__BOOTSTRAP__ADMIN_PASSWORD_HASH",
            "$argon2id$sesame",
        ),
    ];
    let told = dump(&variables);
    let says = |told: &[(String, Value, String)], key: &str, value: Value, source: &str| {
        let found = told.iter().find(|(known, ..)| known == key).unwrap();
        assert_eq!((&found.1, found.2.as_str()), (&value, source), "{key}");
    };
    says(&told, "tokens.access", "2m".into(), "file one.toml");
    says(&told, "tokens.id", "3m".into(), "file two.toml");
    says(&told, "tokens.code", "1m".into(), "default");
    says(
        &told,
        "keys.kek",
        serde_json::json!(["file:/a", "env:B"]),
        "environment PORTCULLIS__KEYS__KEK",
    );
    says(&told, "log.level", "warn".into(), "environment RUST_LOG");
    says(
        &told,
        "bootstrap.admin_password_hash",
        "(hidden)".into(),
        "environment PORTCULLIS__BOOTSTRAP__ADMIN_PASSWORD_HASH",
    );
    says(
        &told,
        "database.url",
        "postgres://me:hidden@db.example/x?sslmode=verify-full".into(),
        "file one.toml",
    );
    for (endpoint, shown) in [
        (
            "https://me:sesame@otel.example/v1",
            "https://hidden@otel.example/v1",
        ),
        (
            "https://sesame@otel.example/",
            "https://hidden@otel.example/",
        ),
        ("https://otel.example", "https://otel.example"),
    ] {
        let variable = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let source = format!("environment {variable}");
        let told = dump(&[(variable, endpoint)]);
        says(&told, "telemetry.endpoint", shown.into(), &source);
    }
    let told = dump(&[("DATABASE_URL", "postgres://db.example/x?password=sesame")]);
    says(
        &told,
        "database.url",
        "(hidden)".into(),
        "environment DATABASE_URL",
    );
    assert!(
        installation
            .done(&["config", "check"])
            .starts_with("The configuration is valid: 4 of ")
    );
    refused(
        &installation.run(&["config", "check"], &[("PORTCULLIS__TOKENS__CODE", "11m")]),
        78,
        "`tokens.code`: 11m is out of range",
    );
}

/// Returns the keys that a page documents: `a.{b,c}` is two, and a cell may hold several.
fn documented(page: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cell = line.split('|').nth(1).unwrap();
        for name in cell.split('`').skip(1).step_by(2) {
            match name.split_once('{') {
                None => {
                    keys.insert(name.to_owned());
                }
                Some((stem, rest)) => {
                    let rest = rest.trim_end_matches('}').split(',');
                    keys.extend(rest.map(|leaf| format!("{stem}{leaf}")));
                }
            }
        }
    }
    keys
}

#[test]
fn reference_page_lists_exactly_the_config_keys() {
    let installation = Installation::new();
    let dump: Value =
        serde_json::from_str(&installation.done(&["config", "dump", "--format", "json"])).unwrap();
    let real: BTreeSet<String> = dump
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["key"].as_str().unwrap().to_owned())
        .collect();
    let page = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md"),
    )
    .unwrap();
    assert_eq!(documented(&page), real);
}
