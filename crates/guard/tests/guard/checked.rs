//! What a proxy is told.

use portcullis_verifier::Confirmation;
use tokio::net::UnixStream;

use crate::http::{send, send_on};
use crate::issuer::{Issuer, now};
use crate::process::{Folder, Guard, ROUTES, Running, bearer, command};

#[tokio::test]
async fn a_good_token_passes_with_its_identity() {
    let issuer = Issuer::start().await;
    let guard = Guard::of(&issuer).await;
    let answer = guard
        .check_with("GET /orders/7?x=%2e%2e", &issuer.token(1))
        .await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    for (header, value) in [
        ("x-portcullis-subject", "alice"),
        ("x-portcullis-client", "shop"),
        ("x-portcullis-scope", "orders:read orders:write"),
        ("x-portcullis-acr", "1"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(answer.header(header), value, "{header}");
    }
    let of_machine = issuer.token_of(2, |claims| {
        claims.sub = "shop".into();
        claims.acr = None;
    });
    let answer = guard.check_with("POST /orders", &of_machine).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-portcullis-subject"), "shop");
    assert_eq!(answer.header("x-portcullis-acr"), "");
}

#[tokio::test]
async fn each_refusal_has_its_answer_and_is_counted() {
    let issuer = Issuer::start().await;
    let guard = Guard::of(&issuer).await;
    let good = bearer(&issuer.token(1));
    let reader = bearer(&issuer.token_of(1, |claims| claims.scope = "orders:read".into()));
    let of = |change: fn(&mut portcullis_verifier::Claims)| bearer(&issuer.token_of(1, change));
    let expired = of(|claims| (claims.iat, claims.exp) = (now() - 400, now() - 100));
    let foreign = of(|claims| claims.aud = "https://other.example".into());
    let stranger = of(|claims| claims.iss = "https://id.example".into());
    let bound = of(|claims| {
        claims.cnf = Some(Confirmation {
            jkt: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I".into(),
            x5t_s256: None,
        });
    });
    let unprintable = of(|claims| claims.sub = "älice".into());
    // Two parts of three are missing.
    let large = bearer(&"a".repeat(16 * 1024 + 1));
    let challenge = r#"Bearer realm="https://api.example""#;
    let invalid = r#", error="invalid_token""#;
    let lacking = r#", error="insufficient_scope""#;
    for (line, header, status, reason, challenged) in [
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
        ("GET /orders", &foreign, 401, "audience", invalid),
        ("GET /orders", &stranger, 401, "issuer", invalid),
        ("GET /orders", &bound, 401, "claims", invalid),
        ("GET /orders", &unprintable, 401, "claims", invalid),
        ("POST /orders", &reader, 403, "scope", lacking),
        ("GET /admin", &good, 403, "scope", lacking),
        (
            "GET /payments",
            &good,
            401,
            "step_up",
            r#", error="insufficient_user_authentication""#,
        ),
    ] {
        let before = counted(&guard, status, reason).await;
        let answer = guard.check(line, &[header]).await;
        assert_eq!(answer.status, status, "{line} {reason}");
        let told = answer.header("www-authenticate");
        assert!(
            told.starts_with(&format!("{challenge}{challenged}")),
            "{reason}: {told}"
        );
        assert_eq!(
            challenged.is_empty(),
            !told.contains("error="),
            "{reason}: {told}"
        );
        assert_eq!(
            counted(&guard, status, reason).await,
            before + 1.0,
            "{reason}"
        );
    }
    // The audience is that of the route, and the scope of one does not open another.
    let answer = guard.check("GET /others", &[&good]).await;
    assert_eq!(answer.status, 401);
    assert!(
        answer
            .header("www-authenticate")
            .contains(r#"realm="https://other.example""#)
    );
    assert_eq!(guard.check("GET /others", &[&foreign]).await.status, 200);
    assert_eq!(
        guard.check("GET /orders", &[&good, &good]).await.status,
        401
    );
    let rejected = guard
        .metric(r#"portcullis_verifier_rejected_total{reason="audience"}"#)
        .await;
    assert_eq!(rejected, 2.0);
    assert!(
        !guard
            .running
            .log()
            .contains(good.rsplit('.').next().unwrap())
    );
}

async fn counted(guard: &Guard, status: u16, reason: &str) -> f64 {
    let labels = format!(r#"status="{status}",reason="{reason}""#);
    guard
        .metric(&format!("portcullis_guard_requests_total{{{labels}}}"))
        .await
}

#[tokio::test]
async fn what_is_not_clear_is_denied_whoever_asks() {
    let issuer = Issuer::start().await;
    let guard = Guard::of(&issuer).await;
    let good = bearer(&issuer.token(1));
    for (line, more, reason) in [
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
        let before = counted(&guard, 403, reason).await;
        for token in [good.as_str(), "Accept: */*"] {
            let answer = guard.check(line, &[more, token]).await;
            assert_eq!(answer.status, 403, "{line} {more}");
            assert_eq!(answer.header("www-authenticate"), "", "{line} {more}");
            assert!(
                answer.body.contains("access_denied"),
                "{line}: {}",
                answer.body
            );
        }
        assert_eq!(
            counted(&guard, 403, reason).await,
            before + 2.0,
            "{line} {more}"
        );
    }
    let long = format!("Cookie: {}", "a".repeat(40 * 1024));
    assert_eq!(
        guard.check("GET /orders", &[&good, &long]).await.status,
        403
    );
    let unsaid = send(guard.at, "GET /check", &[&good]).await;
    assert_eq!(unsaid.status, 403);
    let log = guard.running.log();
    assert!(log.contains("guard.refused"));
    for said in ["admin", "root", "DELETE", "alice"] {
        assert!(!log.contains(said), "the log has {said}: {log}");
    }
}

#[tokio::test]
async fn envoy_asks_with_the_request_itself() {
    let issuer = Issuer::start().await;
    let guard = Guard::of(&issuer).await;
    let reader = bearer(&issuer.token_of(1, |claims| claims.scope = "orders:read".into()));
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
        // What a caller says in these headers is nothing here.
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
        let answer = send(guard.at, line, headers).await;
        assert_eq!(answer.status, status, "{line} {headers:?}");
        let subject = if status == 200 { "alice" } else { "" };
        assert_eq!(answer.header("x-portcullis-subject"), subject, "{line}");
    }
    assert_eq!(
        send(guard.at, "GET /envoyorders", &[&reader]).await.status,
        404
    );
    assert_eq!(send(guard.at, "GET /orders", &[&reader]).await.status, 404);
}

#[tokio::test]
async fn a_socket_in_the_file_system_serves_as_well() {
    let issuer = Issuer::start().await;
    let folder = Folder::new();
    let socket = folder.path().join("guard.sock");
    let text = format!(
        "listen = 'unix:{}'\n{}{ROUTES}",
        socket.display(),
        issuer.settings()
    );
    let file = folder.write_settings(&text);
    // What a killed guard left behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let start = |folder| Running::start(folder, command().arg("--config").arg(&file));
    let mut guard = start(folder);
    let good = bearer(&issuer.token(1));
    let asked = ["X-Forwarded-Method: GET", "X-Forwarded-Uri: /orders", &good];
    let begin = std::time::Instant::now();
    loop {
        if let Ok(connection) = UnixStream::connect(&socket).await {
            let answer = send_on(connection, "GET /check", &asked).await;
            if answer.status == 200 {
                break;
            }
            assert_eq!(answer.status, 503);
        }
        assert!(begin.elapsed().as_secs() < 20, "{}", guard.log());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // A second one does not take the place of one that lives, nor of what is no socket.
    let mut second = start(Folder::new());
    assert_eq!(second.ended().await.code(), Some(1));
    assert!(
        second.log().contains("another program is listening there"),
        "{}",
        second.log()
    );
    guard.signal("-TERM");
    assert_eq!(guard.ended().await.code(), Some(0));
    assert!(!socket.exists());
    // What another has put in its place stays.
    let mut replaced = start(Folder::new());
    let begin = std::time::Instant::now();
    while UnixStream::connect(&socket).await.is_err() {
        assert!(begin.elapsed().as_secs() < 20, "{}", replaced.log());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let aside = socket.with_extension("aside");
    std::fs::rename(&socket, &aside).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    replaced.signal("-TERM");
    assert_eq!(replaced.ended().await.code(), Some(0));
    assert!(UnixStream::connect(&socket).await.is_ok());
    drop(other);
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "notes").unwrap();
    let mut third = start(Folder::new());
    assert_eq!(third.ended().await.code(), Some(1));
    assert!(third.log().contains("no socket"), "{}", third.log());
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "notes");
}
