//! What service managers and container runtimes see: readiness, sockets, limits of the process.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::place::{Place, refused};

/// The next message to the service manager.
fn hears(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 512];
    let length = manager.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[test]
fn a_service_manager_is_told_each_step() {
    let place = Place::new();
    // A socket's path must be short.
    let path = std::env::temp_dir().join(format!("pcl-notify-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let server = place.serve(&[
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "400000"),
    ]);
    // Watchdog messages come in between.
    let next = || loop {
        let heard = hears(&manager);
        if !heard.contains("WATCHDOG=1") {
            break heard;
        }
    };
    assert!(next().contains("READY=1"));
    // Twice, so that it goes on.
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
fn unix_sockets_serve_and_are_tidied_up() {
    let place = Place::new();
    let folder = std::env::temp_dir().join(format!("pcl-sock-{}", std::process::id()));
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
    // What a killed server left behind is in nobody's way.
    let mut killed = place.serve(&variables);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert!(public.exists() && probes.exists());
    let server = place.serve(&variables);
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
    let healthy = place.run(&["healthcheck"], &variables);
    assert_eq!(healthy.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&healthy.stdout).contains("\"status\":\"ok\""));
    // Another server does not take the socket away.
    let other = Place::new();
    refused(
        &other.run(&["serve"], &variables),
        1,
        "another program is listening there",
    );
    assert_eq!(server.stop(), Some(0));
    assert!(!public.exists() && !probes.exists());
    refused(
        &place.run(&["healthcheck"], &variables),
        1,
        "no answer from unix:",
    );
    refused(
        &place.run(
            &["serve"],
            &[
                variables[0],
                ("PORTCULLIS__ISSUER", "https://op.example"),
                ("PORTCULLIS__LISTEN__TLS__CERTIFICATE", "c"),
                ("PORTCULLIS__LISTEN__TLS__KEY", "k"),
            ],
        ),
        78,
        "is a Unix socket, which speaks plain HTTP",
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_health_check_needs_no_other_program() {
    let place = Place::new();
    let server = place.serve(&[]);
    let address = server.started("management");
    let at = [("PORTCULLIS__LISTEN__MANAGEMENT", address.as_str())];
    assert_eq!(place.run(&["healthcheck"], &at).status.code(), Some(0));
    assert_eq!(
        place.run(&["healthcheck", "--live"], &at).status.code(),
        Some(0)
    );
    drop(server);
    refused(&place.run(&["healthcheck"], &at), 1, "no answer from");
}

#[test]
fn a_server_leaves_no_core() {
    let place = Place::new();
    let server = place.serve(&[]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.child.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let fields: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(fields[4..6], ["0", "0"], "{core}");
}
