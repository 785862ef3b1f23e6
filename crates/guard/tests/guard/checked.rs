//! Responses of the guard to a proxy.

use portcullis_verifier::Confirmation;
use tokio::net::UnixStream;

use crate::http::{send, send_on};
use crate::issuer::{Issuer, now};
use crate::process::{Guard, Process, ROUTES, TempDir, bearer, command};

#[tokio::test]
async fn valid_token_passes_with_identity_headers() {
    let issuer = Issuer::start().await;
    let guard = Guard::start_ready(&issuer).await;
    let response = guard
        .check_with("GET /orders/7?x=%2e%2e", &issuer.token(1))
        .await;
    assert_eq!((response.status, response.body.as_str()), (200, ""));
    for (header, value) in [
        ("x-portcullis-subject", "alice"),
        ("x-portcullis-client", "shop"),
        ("x-portcullis-scope", "orders:read orders:write"),
        ("x-portcullis-acr", "1"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(response.header(header), value, "{header}");
    }
    let machine_token = issuer.token_with(2, |claims| {
        claims.sub = "shop".into();
        claims.acr = None;
    });
    let response = guard.check_with("POST /orders", &machine_token).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("x-portcullis-subject"), "shop");
    assert_eq!(response.header("x-portcullis-acr"), "");
}

#[tokio::test]
async fn refusals_have_status_and_challenge_and_are_counted() {
    let issuer = Issuer::start().await;
    let guard = Guard::start_ready(&issuer).await;
    let good = bearer(&issuer.token(1));
    let reader = bearer(&issuer.token_with(1, |claims| claims.scope = "orders:read".into()));
    let with = |change: fn(&mut portcullis_verifier::Claims)| bearer(&issuer.token_with(1, change));
    let expired = with(|claims| (claims.iat, claims.exp) = (now() - 400, now() - 100));
    let other_audience = with(|claims| claims.aud = "https://other.example".into());
    let other_issuer = with(|claims| claims.iss = "https://id.example".into());
    let bound = with(|claims| {
        claims.cnf = Some(Confirmation {
            jkt: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I".into(),
            x5t_s256: None,
        });
    });
    let unprintable = with(|claims| claims.sub = "älice".into());
    // It also lacks two of the three parts, but the size is checked first.
    let large = bearer(&"a".repeat(16 * 1024 + 1));
    let challenge = r#"Bearer realm="https://api.example""#;
    let invalid = r#", error="invalid_token""#;
    let insufficient = r#", error="insufficient_scope""#;
    for (line, token, status, reason, error) in [
        ("GET /orders", "Accept: */*", 401, "missing", ""),
        (
            "GET /orders",
            "Authorization: Basic YTpi",
            401,
            "missing",
            "",
        ),
        (
            "GET /orders",
            "Authorization: Bearer ",
            401,
            "request",
            r#", error="invalid_request""#,
        ),
        (
            "GET /orders",
            "Authorization: Bearer x",
            401,
            "malformed",
            invalid,
        ),
        ("GET /orders", &large, 401, "too_large", invalid),
        ("GET /orders", &expired, 401, "expired", invalid),
        ("GET /orders", &other_audience, 401, "audience", invalid),
        ("GET /orders", &other_issuer, 401, "issuer", invalid),
        ("GET /orders", &bound, 401, "claims", invalid),
        ("GET /orders", &unprintable, 401, "claims", invalid),
        ("POST /orders", &reader, 403, "scope", insufficient),
        ("GET /admin", &good, 403, "scope", insufficient),
        (
            "GET /payments",
            &good,
            401,
            "step_up",
            r#", error="insufficient_user_authentication""#,
        ),
    ] {
        let before = response_count(&guard, status, reason).await;
        let response = guard.check(line, &[token]).await;
        assert_eq!(response.status, status, "{line} {reason}");
        let header = response.header("www-authenticate");
        assert!(
            header.starts_with(&format!("{challenge}{error}")),
            "{reason}: {header}"
        );
        assert_eq!(
            error.is_empty(),
            !header.contains("error="),
            "{reason}: {header}"
        );
        assert_eq!(
            response_count(&guard, status, reason).await,
            before + 1.0,
            "{reason}"
        );
    }
    // The token must be for the audience of the route.
    let response = guard.check("GET /others", &[&good]).await;
    assert_eq!(response.status, 401);
    assert!(
        response
            .header("www-authenticate")
            .contains(r#"realm="https://other.example""#)
    );
    assert_eq!(
        guard.check("GET /others", &[&other_audience]).await.status,
        200
    );
    assert_eq!(
        guard.check("GET /orders", &[&good, &good]).await.status,
        401
    );
    let rejected = guard
        .metric(r#"portcullis_verifier_rejected_total{reason="audience"}"#)
        .await;
    assert_eq!(rejected, 2.0);
    let log = guard.process.log();
    assert!(!log.contains(good.rsplit('.').next().unwrap()));
    for (reason, received, needed) in [
        ("audience", "https://other.example", "https://api.example"),
        ("scope", "orders:read", "orders:write"),
        ("step_up", "auth_time=", "acr="),
    ] {
        let found = log.lines().any(|line| {
            let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else {
                return false;
            };
            let has = |field: &str, text: &str| {
                let value = line[field].as_str();
                value.is_some_and(|value| value.contains(text))
            };
            line["reason"] == reason
                && has("client_id", "shop")
                && has("received", received)
                && has("needed", needed)
        });
        assert!(found, "{reason}: {log}");
    }
}

async fn response_count(guard: &Guard, status: u16, reason: &str) -> f64 {
    let labels = format!(r#"status="{status}",reason="{reason}""#);
    guard
        .metric(&format!("portcullis_guard_requests_total{{{labels}}}"))
        .await
}

#[tokio::test]
async fn ambiguous_and_forged_requests_are_denied_even_with_valid_token() {
    let issuer = Issuer::start().await;
    let guard = Guard::start_ready(&issuer).await;
    let good = bearer(&issuer.token(1));
    for (line, header, reason) in [
        ("GET /", "A: b", "unlisted"),
        ("GET /order", "A: b", "unlisted"),
        ("GET /orders2", "A: b", "unlisted"),
        ("GET //orders", "A: b", "path"),
        ("GET /orders/../admin", "A: b", "path"),
        ("GET /orders/%2e%2e/admin", "A: b", "path"),
        ("GET /orders%2f..%2fadmin", "A: b", "path"),
        ("GET /orders/%00", "A: b", "path"),
        ("GET /orders\\..\\admin", "A: b", "path"),
        ("GET /orders;/admin", "A: b", "path"),
        ("GET /Orders", "A: b", "path"),
        ("GET /orders.json", "A: b", "path"),
        ("GET http://api.example/orders", "A: b", "path"),
        ("get /orders", "A: b", "method"),
        ("GET /orders", "X-Portcullis-Subject: root", "forged"),
        ("GET /orders", "X-Portcullis-Acr: 2", "forged"),
        ("GET /orders", "X_Portcullis_Subject: root", "forged"),
        ("GET /orders", "X.Portcullis.Subject: root", "forged"),
        ("GET /orders", "Connection: X-Portcullis-Acr", "forged"),
        ("GET /orders", "Upgrade: h2c", "upgrade"),
        ("GET /orders", "HTTP2-Settings: AAMAAABk", "upgrade"),
        ("GET /orders", "X.HTTP.Method.Override: DELETE", "override"),
        ("GET /orders", "X-HTTP-Method-Override: DELETE", "override"),
        ("GET /orders", "X-Original-URL: /admin", "override"),
        ("GET /orders", "X-Forwarded-Uri: /admin", "proxy"),
        ("GET /orders", "X-Forwarded-Method: POST", "proxy"),
    ] {
        let before = response_count(&guard, 403, reason).await;
        for token in [good.as_str(), "Accept: */*"] {
            let response = guard.check(line, &[header, token]).await;
            assert_eq!(response.status, 403, "{line} {header}");
            assert_eq!(response.header("www-authenticate"), "", "{line} {header}");
            assert!(
                response.body.contains("access_denied"),
                "{line}: {}",
                response.body
            );
        }
        assert_eq!(
            response_count(&guard, 403, reason).await,
            before + 2.0,
            "{line} {header}"
        );
    }
    let long = format!("Cookie: {}", "a".repeat(40 * 1024));
    assert_eq!(
        guard.check("GET /orders", &[&good, &long]).await.status,
        403
    );
    let unspecified = send(guard.address, "GET /check", &[&good]).await;
    assert_eq!(unspecified.status, 403);
    let log = guard.process.log();
    assert!(log.contains("guard.refused"));
    for value in ["admin", "root", "DELETE", "alice"] {
        assert!(!log.contains(value), "the log contains {value}: {log}");
    }
}

#[tokio::test]
async fn envoy_check_uses_method_and_path_of_request() {
    let issuer = Issuer::start().await;
    let guard = Guard::start_ready(&issuer).await;
    let reader = bearer(&issuer.token_with(1, |claims| claims.scope = "orders:read".into()));
    for (line, headers, status) in [
        ("GET /envoy/orders/7?x", &[reader.as_str()][..], 200),
        ("HEAD /envoy/orders", &[&reader], 200),
        ("POST /envoy/orders", &[&reader, "Content-Length: 0"], 403),
        ("GET /envoy/orders", &[], 401),
        ("GET /envoy/", &[&reader], 403),
        ("GET /envoy//orders", &[&reader], 403),
        ("GET /envoy/orders/../admin", &[&reader], 403),
        ("GET /envoy/orders/%2e%2e/admin", &[&reader], 403),
        (
            "GET /envoy/orders",
            &[&reader, "X-Portcullis-Client: x"],
            403,
        ),
        // `/envoy` ignores these headers.
        (
            "GET /envoy/admin",
            &[
                &reader,
                "X-Forwarded-Uri: /orders",
                "X-Forwarded-Method: GET",
            ],
            403,
        ),
    ] {
        let response = send(guard.address, line, headers).await;
        assert_eq!(response.status, status, "{line} {headers:?}");
        let subject = if status == 200 { "alice" } else { "" };
        assert_eq!(response.header("x-portcullis-subject"), subject, "{line}");
    }
    assert_eq!(
        send(guard.address, "GET /envoyorders", &[&reader])
            .await
            .status,
        404
    );
    assert_eq!(
        send(guard.address, "GET /orders", &[&reader]).await.status,
        404
    );
}

#[tokio::test]
async fn unix_socket_is_served_and_never_taken_from_others() {
    let issuer = Issuer::start().await;
    let folder = TempDir::new();
    let socket = folder.path().join("guard.sock");
    let text = format!(
        "listen = 'unix:{}'\n{}{ROUTES}",
        socket.display(),
        issuer.settings()
    );
    let file = folder.write_settings(&text);
    // A socket that a killed guard has left behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let start = |folder| Process::start(folder, command().arg("--config").arg(&file));
    let mut guard = start(folder);
    let good = bearer(&issuer.token(1));
    let headers = ["X-Forwarded-Method: GET", "X-Forwarded-Uri: /orders", &good];
    let started = std::time::Instant::now();
    loop {
        if let Ok(connection) = UnixStream::connect(&socket).await {
            let response = send_on(connection, "GET /check", &headers).await;
            if response.status == 200 {
                break;
            }
            assert_eq!(response.status, 503);
        }
        assert!(started.elapsed().as_secs() < 20, "{}", guard.log());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // A second guard does not replace the socket of a running one.
    let mut second = start(TempDir::new());
    assert_eq!(second.wait_for_exit().await.code(), Some(1));
    assert!(
        second.log().contains("another program is listening there"),
        "{}",
        second.log()
    );
    guard.signal("-TERM");
    assert_eq!(guard.wait_for_exit().await.code(), Some(0));
    assert!(!socket.exists());
    // At exit, a guard keeps a socket that another program has created at its path.
    let mut replaced = start(TempDir::new());
    let started = std::time::Instant::now();
    while UnixStream::connect(&socket).await.is_err() {
        assert!(started.elapsed().as_secs() < 20, "{}", replaced.log());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let aside = socket.with_extension("aside");
    std::fs::rename(&socket, &aside).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    replaced.signal("-TERM");
    assert_eq!(replaced.wait_for_exit().await.code(), Some(0));
    assert!(UnixStream::connect(&socket).await.is_ok());
    drop(other);
    std::fs::remove_file(&socket).unwrap();
    // A file of another kind is kept, and the start fails.
    std::fs::write(&socket, "notes").unwrap();
    let mut third = start(TempDir::new());
    assert_eq!(third.wait_for_exit().await.code(), Some(1));
    assert!(third.log().contains("not a socket"), "{}", third.log());
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "notes");
}
