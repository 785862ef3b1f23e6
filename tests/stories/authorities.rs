//! Equivalent spellings of one authority (RFC 9110 §4.2.3, RFC 3986 §6.2) in `Host`, in request targets and
//! in `Origin`.

use crate::fixtures::{Answer, Db, Server, apply, on_both_databases, raw};

async fn ask(server: &Server, target: &str, host: &str) -> Answer {
    let text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    raw::bytes(&server.base, text.into_bytes()).await.unwrap()
}

/// Hosts that are rejected for any issuer.
const MALFORMED: [&str; 15] = [
    "",
    ".",
    "evil.example",
    "op.example.evil.example",
    "user@op.example",
    "user:pw@op.example",
    "op.example,evil.example",
    "op.example, op.example",
    "op.example op.example",
    "op.example/",
    "op.example..",
    "op.example:x",
    "op.example:+443",
    "op.example:65979",
    "op.example:443:443",
];

#[apply(on_both_databases)]
#[actix_web::test]
async fn equivalent_authorities_are_served(#[case] db: Db) {
    let server = Server::start(db).await;
    let jwks = "/oauth2/jwks";
    for host in [
        "op.example",
        "OP.Example",
        "op.example:443",
        "op.example:",
        "op.example.",
        "op.example.:443",
    ] {
        assert_eq!(ask(&server, jwks, host).await.status, 200, "{host}");
        let target = format!("https://{host}{jwks}");
        assert_eq!(
            ask(&server, &target, "op.example").await.status,
            200,
            "{target}"
        );
    }
    for host in MALFORMED
        .into_iter()
        .chain(["op.example:80", "op.example:8443"])
    {
        let answer = ask(&server, jwks, host).await;
        assert_eq!(answer.status, 421, "{host}");
        assert!(
            answer
                .logged()
                .contains(&("http.bad_host".into(), "host".into()))
        );
    }
    for target in [
        "https://user@op.example/oauth2/jwks",
        "https://op.example:8443/oauth2/jwks",
    ] {
        assert_eq!(
            ask(&server, target, "op.example").await.status,
            421,
            "{target}"
        );
    }

    // The default port of plain HTTP, and other spellings of this machine.
    let local = Server::with(server.db, |config| {
        config.issuer = Some("http://localhost".to_owned());
        config.http.accept_hosts = vec![
            "back.internal".parse().unwrap(),
            "api:8080".parse().unwrap(),
        ];
    });
    let local = local.await;
    for host in [
        "localhost",
        "localhost:80",
        "LOCALHOST.",
        "back.internal:80",
        "back.internal:443",
        "back.internal.",
        "api:8080",
    ] {
        assert_eq!(ask(&local, jwks, host).await.status, 200, "{host}");
    }
    for host in ["127.0.0.1", "127.0.0.1:80", "[::1]", "[0:0:0:0:0:0:0:1]:80"] {
        let answer = ask(&local, jwks, host).await;
        let found = (answer.status, answer.location());
        assert_eq!(found, (307, Some("http://localhost/oauth2/jwks")), "{host}");
    }
    let other_ports = [
        "localhost:443",
        "127.0.0.1:443",
        "[::1]:8080",
        "back.internal:8080",
        "api",
    ];
    for host in MALFORMED.into_iter().chain(other_ports) {
        assert_eq!(ask(&local, jwks, host).await.status, 421, "{host}");
    }
    local.stop().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn equivalent_origins_may_post(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    alice.signs_in(&shop, "alice").await;
    let mut refused = async |origin: &str| {
        let form = ("Content-Type", "application/x-www-form-urlencoded");
        let headers = [form, ("Origin", origin)];
        let body = Some("csrf=guessed".to_owned());
        let answer = alice
            .send("POST", "/oauth2/end_session", &headers, body)
            .await;
        assert_eq!(answer.status, 403, "{origin}");
        answer.logged()
    };
    let why = |reason: &str| ("csrf.rejected".to_owned(), reason.to_owned());
    for own in [
        "https://op.example",
        "https://op.example:443",
        "https://op.example.",
    ] {
        assert!(refused(own).await.contains(&why("token")), "{own}");
    }
    for foreign in [
        "http://op.example",
        "https://op.example:8443",
        "https://user@op.example",
        "https://evil.example",
        "https://op.example, https://evil.example",
        "op.example",
    ] {
        assert!(refused(foreign).await.contains(&why("origin")), "{foreign}");
    }
}
