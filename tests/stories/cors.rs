//! CORS: scripts may read every response of the routes that they need, also those that refuse a request.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;

use crate::fixtures::server::public;
use crate::fixtures::{Answer, Db, Server, apply, on_both_databases, raw};

/// The registered origin of a client.
const ORIGIN: &str = "https://spa.example";
/// The routes that only the scripts of registered origins may read.
const REGISTERED: [&str; 3] = ["/oauth2/token", "/oauth2/revoke", "/oauth2/userinfo"];
/// The routes that every script may read.
const PUBLIC: [&str; 5] = [
    "/oauth2/jwks",
    "/.well-known/jwks.json",
    "/.well-known/openid-configuration",
    "/.well-known/oauth-authorization-server",
    "/revocations/jwks",
];
/// Longer than the server waits for a form.
const PATIENCE: Duration = Duration::from_secs(30);
/// The headers of every response.
const SECURITY: [&str; 5] = [
    "strict-transport-security",
    "x-content-type-options",
    "referrer-policy",
    "cross-origin-resource-policy",
    "permissions-policy",
];

async fn register(server: &Server) {
    let mut spa = public("spa", &["https://spa.example/cb"]);
    spa.cors_origins = vec![ORIGIN.to_owned()];
    server.register(spa).await;
}

/// Sends a request of a script.
async fn send(
    server: &Server,
    method: &str,
    target: &str,
    host: &str,
    headers: &[&str],
    body: &str,
) -> Answer {
    let mut text = format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}\r\nOrigin: {ORIGIN}\r\nConnection: close\r\n"
    );
    for header in headers {
        text.push_str(&format!("{header}\r\n"));
    }
    text.push_str(&format!("\r\n{body}"));
    let answer = raw::bytes_within(&server.base, text.into_bytes(), PATIENCE).await;
    answer.unwrap_or_else(|| panic!("{method} {target}: no response"))
}

/// Asserts that scripts of the registered origin may read a response, and that no other origin may.
#[track_caller]
fn readable(path: &str, answer: &Answer) {
    let want = if PUBLIC.contains(&path) { "*" } else { ORIGIN };
    let what = format!("{path}: {} {:?}", answer.status, answer.headers);
    let allowed = answer.header("access-control-allow-origin");
    assert_eq!(allowed, Some(want), "{what}");
    let exposed = answer.header("access-control-expose-headers");
    assert!(
        exposed.is_some_and(|names| names.contains("retry-after")),
        "{what}"
    );
    let credentials = answer.header("access-control-allow-credentials");
    assert_eq!(credentials, None, "{what}");
    for name in SECURITY {
        assert!(answer.header(name).is_some(), "{name} {what}");
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn cors_headers_are_on_every_status(#[case] db: Db) {
    let server = Server::with(db, |config| config.limits.per_ip = 20).await;
    register(&server).await;
    let form = "Content-Type: application/x-www-form-urlencoded";
    // More than 32 KiB of headers. What the HTTP library refuses before it knows the request has no headers at all.
    let many: Vec<String> = (0..4)
        .map(|n| format!("X-{n}: {}", "a".repeat(9_000)))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = "a".repeat(8 * 1024);
    let (large, length) = (
        "a".repeat(17 * 1024),
        format!("Content-Length: {}", 17 * 1024),
    );
    let mut seen = BTreeSet::new();
    for path in REGISTERED.into_iter().chain(PUBLIC) {
        let host = "op.example";
        let answers = [
            send(&server, "GET", path, host, &[], "").await,
            send(
                &server,
                "POST",
                path,
                host,
                &[form, "Content-Length: 3"],
                "a=b",
            )
            .await,
            send(&server, "POST", path, host, &[form, &length], &large).await,
            send(
                &server,
                "POST",
                path,
                host,
                &[form, "Content-Encoding: gzip", "Content-Length: 1"],
                "a",
            )
            .await,
            send(&server, "DELETE", path, host, &[], "").await,
            send(&server, "GET", path, "evil.test", &[], "").await,
            send(&server, "GET", &format!("{path}?{long}"), host, &[], "").await,
            send(&server, "GET", path, host, &many, "").await,
            send(&server, "GET", path, host, &["If-None-Match: *"], "").await,
        ];
        for answer in &answers {
            readable(path, answer);
        }
        seen.extend(answers.map(|answer| answer.status));
        // Forms that do not arrive in time.
        if path == REGISTERED[0] {
            let waiting = [REGISTERED[0], REGISTERED[1]].map(|path| {
                let unfinished = [form, "Content-Length: 9"];
                let server = &server;
                async move {
                    (
                        path,
                        send(server, "POST", path, host, &unfinished, "a=").await,
                    )
                }
            });
            for (path, answer) in join_all(waiting).await {
                readable(path, &answer);
                seen.insert(answer.status);
            }
        }
        // Beyond the limit of the address, preflights too.
        let method = if REGISTERED.contains(&path) {
            "POST"
        } else {
            "GET"
        };
        for method in [method, "OPTIONS"] {
            let refused = loop {
                let answer = send(&server, method, path, host, &[], "").await;
                readable(path, &answer);
                if answer.status == 429 {
                    break answer;
                }
            };
            assert!(refused.header("retry-after").is_some(), "{path}");
            seen.insert(429);
        }
        server.advance(Duration::from_secs(60));
    }
    // The node may not change state.
    server.app.note_restored("test").await.unwrap();
    for path in REGISTERED {
        let answer = send(&server, "POST", path, "op.example", &[form], "").await;
        readable(path, &answer);
        seen.insert(answer.status);
    }
    let wanted = [
        200, 304, 400, 401, 405, 408, 413, 414, 415, 421, 429, 431, 503,
    ];
    assert_eq!(seen, BTreeSet::from(wanted));
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn preflight_echoes_requested_headers(#[case] db: Db) {
    let server = Server::start(db).await;
    register(&server).await;
    let names = "traceparent,content-type,sentry-trace,x-requested-with,dpop,mcp-protocol-version";
    let asked = format!("Access-Control-Request-Headers: {names}");
    let asked = ["Access-Control-Request-Method: POST", &asked];
    for path in REGISTERED.into_iter().chain(PUBLIC) {
        let answer = send(&server, "OPTIONS", path, "op.example", &asked, "").await;
        assert_eq!(answer.status, 204, "{path}");
        readable(path, &answer);
        let header = |name: &str| answer.header(&format!("access-control-{name}"));
        assert_eq!(header("allow-headers"), Some(names), "{path}");
        assert!(header("allow-methods").unwrap().contains("GET"), "{path}");
        assert_eq!(header("max-age"), Some("600"), "{path}");
    }
    // A list that is not of the grammar, or too long, is not repeated.
    let long = format!("Access-Control-Request-Headers: {}", "a".repeat(2_000));
    for odd in ["Access-Control-Request-Headers: a\"b", &long] {
        let answer = send(
            &server,
            "OPTIONS",
            "/oauth2/token",
            "op.example",
            &[odd],
            "",
        )
        .await;
        let allowed = answer.header("access-control-allow-headers");
        assert_eq!(allowed, Some("authorization, content-type"));
    }
    // Another origin receives nothing, and neither does a client that was disabled.
    let id = portcullis::id::ClientId::from("spa");
    let now = server.clock.now();
    server
        .write(move |tx| tx.disable_client(&id, &portcullis::audit::Actor::Operator, now))
        .await;
    let answer = send(
        &server,
        "OPTIONS",
        "/oauth2/token",
        "op.example",
        &asked,
        "",
    )
    .await;
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(answer.header("access-control-allow-headers"), None);
    // A preflight is answered while the node may not change state, so that the script can read the refusal.
    let server = Server::start(db).await;
    register(&server).await;
    server.app.note_restored("test").await.unwrap();
    let answer = send(
        &server,
        "OPTIONS",
        "/oauth2/token",
        "op.example",
        &asked,
        "",
    )
    .await;
    assert_eq!(answer.status, 204);
    readable("/oauth2/token", &answer);
}
