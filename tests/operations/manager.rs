//! The interface to service managers and container runtimes: readiness, sockets, limits of the process.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::fixtures::postgres;
use crate::fixtures::{Db, apply, on_both_databases};
use crate::installation::{Installation, refused};
use crate::site::{asks, management};

/// Returns the next message to the service manager.
fn hears(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 512];
    let length = manager.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[test]
fn service_manager_is_notified_of_each_state() {
    let installation = Installation::new();
    // The path of a socket must be short.
    let path = std::env::temp_dir().join(format!("pcl-notify-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let server = installation.serve(&[
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "400000"),
    ]);
    // Watchdog messages may come in between.
    let next = || loop {
        let heard = hears(&manager);
        if !heard.contains("WATCHDOG=1") {
            break heard;
        }
    };
    assert!(next().contains("READY=1"));
    // Twice, because the server keeps sending them.
    for _ in 0..2 {
        while !hears(&manager).contains("WATCHDOG=1") {}
    }
    server.signal("-HUP");
    let heard = next();
    assert!(
        heard.contains("RELOADING=1") && heard.contains("MONOTONIC_USEC="),
        "{heard}"
    );
    assert!(next().contains("READY=1"));
    server.signal("-TERM");
    assert!(next().contains("STOPPING=1"));
    assert_eq!(server.ends(), Some(0));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn unix_sockets_serve_and_are_removed() {
    let installation = Installation::new();
    let folder = std::env::temp_dir().join(format!("pcl-sock-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let (public, probes) = (folder.join("p"), folder.join("m"));
    let (listen, management) = (
        format!("unix:{}", public.display()),
        format!("unix:{}", probes.display()),
    );
    let variables = [
        ("PORTCULLIS__LISTEN__PUBLIC", listen.as_str()),
        ("PORTCULLIS__LISTEN__MANAGEMENT", management.as_str()),
        ("PORTCULLIS__ISSUER", "https://op.example"),
    ];
    // The socket file of a killed server does not prevent a start.
    let mut killed = installation.serve(&variables);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert!(public.exists() && probes.exists());
    let server = installation.serve(&variables);
    assert_eq!(server.started("listen"), listen);
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&public).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let keys = actix_web::rt::System::new().block_on(async {
        let builder = reqwest::Client::builder().tls_certs_only([]);
        let client = builder.unix_socket(public.as_path()).build().unwrap();
        let request = client.get("http://op.example/oauth2/jwks");
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    });
    assert!(keys.0 == 200 && keys.1.contains("\"keys\""), "{keys:?}");
    let healthy = installation.run(&["healthcheck"], &variables);
    assert_eq!(healthy.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&healthy.stdout).contains("\"status\":\"ok\""));
    // Another server does not take over the socket.
    let other = Installation::new();
    refused(
        &other.run(&["serve"], &variables),
        1,
        "another program is listening there",
    );
    assert_eq!(server.stop(), Some(0));
    assert!(!public.exists() && !probes.exists());
    refused(
        &installation.run(&["healthcheck"], &variables),
        1,
        "the server does not respond on unix:",
    );
    refused(
        &installation.run(
            &["serve"],
            &[
                variables[0],
                ("PORTCULLIS__ISSUER", "https://op.example"),
                ("PORTCULLIS__LISTEN__TLS__CERTIFICATE", "c"),
                ("PORTCULLIS__LISTEN__TLS__KEY", "k"),
            ],
        ),
        78,
        "is a Unix socket, which serves plain HTTP",
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn healthcheck_command_needs_no_other_program() {
    let installation = Installation::new();
    let server = installation.serve(&[]);
    let address = server.started("management");
    let at = [("PORTCULLIS__LISTEN__MANAGEMENT", address.as_str())];
    assert_eq!(
        installation.run(&["healthcheck"], &at).status.code(),
        Some(0)
    );
    assert_eq!(
        installation
            .run(&["healthcheck", "--live"], &at)
            .status
            .code(),
        Some(0)
    );
    drop(server);
    refused(
        &installation.run(&["healthcheck"], &at),
        1,
        "no program listens there",
    );
}

#[apply(on_both_databases)]
#[test]
fn readiness_requires_the_schema(#[case] db: Db) {
    let installation = Installation::on(db);
    let server = installation.serve(&[("PORTCULLIS__HTTP__ACCEPT_HOSTS", "op.example")]);
    let probes = management(&server);
    let ready = || {
        let (status, said) = actix_web::rt::System::new().block_on(asks(&probes, "/readyz"));
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        (status, said["checks"]["schema"].clone())
    };
    assert_eq!(ready(), (200, "ok".into()));
    let newest = "(SELECT max(version) FROM __diesel_schema_migrations)";
    installation.execute(&format!(
        "UPDATE __diesel_schema_migrations SET version = 'x' WHERE version = {newest}"
    ));
    assert_eq!(ready(), (503, "failed".into()));
    installation.execute("DROP TABLE __diesel_schema_migrations");
    assert_eq!(ready(), (503, "failed".into()));
}

#[test]
fn start_waits_for_the_database() {
    let mut installation = Installation::new();
    installation.done(&["keys", "generate-kek", "--out", "keys/kek"]);
    let name = format!("later_{}", std::process::id());
    postgres::execute(&format!("DROP DATABASE IF EXISTS {name}"));
    installation.database = Some(postgres::database(&name));
    let auto = [("PORTCULLIS__DATABASE__AUTO_MIGRATE", "true")];
    let mut child = installation
        .command(&["serve"], &auto)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut hears = |event: &str| {
        log.by_ref()
            .map_while(Result::ok)
            .any(|line| line.contains(event))
    };
    assert!(hears("storage.awaited"));
    postgres::execute(&format!("CREATE DATABASE {name}"));
    assert!(hears("server.started"));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Compares the systemd unit with the behaviour of the server.
#[test]
fn systemd_unit_allows_shutdown_time_and_is_hardened() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/portcullis.service");
    let text = std::fs::read_to_string(path).unwrap();
    let settings: Vec<(&str, &str)> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .collect();
    let value = |name: &str| {
        let found = settings.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("{name} is missing")).1
    };
    let times = portcullis::config::Shutdown::default();
    let stop: u64 = value("TimeoutStopSec").parse().unwrap();
    assert!(stop > (times.delay.0 + times.drain.0).as_secs() + 5);
    let wait: u64 = value("TimeoutStartSec").parse().unwrap();
    assert!(wait > portcullis::config::limits::DATABASE_WAIT.as_secs());
    for (name, wanted) in [
        ("Type", "notify"),
        ("RestartPreventExitStatus", "78"),
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
        ("SystemCallFilter", "@system-service"),
        ("CapabilityBoundingSet", ""),
        ("LimitCORE", "0"),
        ("UMask", "0077"),
    ] {
        assert_eq!(value(name), wanted, "{name}");
    }
    assert!(value("LoadCredential").starts_with("kek:"));
    // Where systemd is installed, it checks the unit too. It looks for the binary, which does not exist.
    let Ok(verified) = Command::new("systemd-analyze")
        .args(["verify", path])
        .output()
    else {
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    let odd = said
        .lines()
        .find(|line| line.contains("portcullis.service:"));
    assert_eq!(
        odd.filter(|line| !line.contains("/usr/bin/portcullis is not executable")),
        None
    );
}

#[test]
fn crashed_server_leaves_no_core_dump() {
    let installation = Installation::new();
    let server = installation.serve(&[]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.child.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let fields: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(fields[4..6], ["0", "0"], "{core}");
}
