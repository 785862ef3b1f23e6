//! Behaviour of the guard when its issuer is unavailable, the revocation data is stale, the guard
//! is killed, or the load is high.

use std::net::SocketAddr;
use std::process::ChildStderr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::http::{read_head, send};
use crate::issuer::{Issuer, settings_for};
use crate::process::{Guard, Process, ROUTES, TempDir, bearer, command, free_address};

#[tokio::test]
async fn revoked_token_is_refused_within_one_second() {
    let issuer = Issuer::start().await;
    let guard = Guard::start_ready(&issuer).await;
    let (one, two) = (issuer.token(1), issuer.token(2));
    for token in [&one, &two] {
        assert_eq!(guard.check_with("GET /orders", token).await.status, 200);
    }
    let started = Instant::now();
    issuer.revoke(1);
    guard
        .wait_until("not revoked", async || {
            guard.check_with("GET /orders", &one).await.status == 401
        })
        .await;
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(guard.check_with("GET /orders", &two).await.status, 200);
}

#[tokio::test]
async fn guard_answers_503_until_issuer_is_reachable() {
    let address = free_address().to_string();
    let settings = settings_for(&format!("http://{address}")) + ROUTES;
    let guard = Guard::start(&settings).await;
    assert_eq!(guard.get("/livez").await.status, 200);
    let ready = guard.get("/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains(r#""keys":"failed""#), "{}", ready.body);
    let response = guard
        .check("GET /orders", &["Authorization: Bearer x"])
        .await;
    assert_eq!(
        (response.status, response.header("retry-after")),
        (503, "2")
    );
    // A path without a route is 403 even before the keys have been fetched.
    assert_eq!(guard.check("GET /", &[]).await.status, 403);
    let issuer = Issuer::at(&address).await;
    guard.wait_until_ready().await;
    assert_eq!(
        guard
            .check_with("GET /orders", &issuer.token(1))
            .await
            .status,
        200
    );
    assert_eq!(guard.metric("portcullis_guard_ready").await, 1.0);
}

#[tokio::test]
async fn guard_is_not_ready_without_feed() {
    let issuer = Issuer::start().await;
    issuer.set_feed_status(503);
    let guard = Guard::start(&(issuer.settings() + ROUTES)).await;
    guard
        .wait_until("no keys", async || {
            guard.get("/readyz").await.body.contains(r#""keys":"ok""#)
        })
        .await;
    let ready = guard.get("/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains(r#""feed":"failed""#), "{}", ready.body);
    let response = guard.check_with("GET /orders", &issuer.token(1)).await;
    assert_eq!(
        (response.status, response.header("retry-after")),
        (503, "2")
    );
    issuer.set_feed_status(200);
    guard.wait_until_ready().await;
    assert_eq!(
        guard
            .check_with("GET /orders", &issuer.token(1))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn client_without_feed_permission_exits_with_77() {
    let issuer = Issuer::start().await;
    issuer.set_feed_status(403);
    let folder = TempDir::new();
    let settings = format!(
        "listen = '{}'\n{}{ROUTES}",
        free_address(),
        issuer.settings()
    );
    let file = folder.write_settings(&settings);
    let mut guard = Process::start(folder, command().arg("--config").arg(file));
    assert_eq!(guard.wait_for_exit().await.code(), Some(77));
    assert!(
        guard.log().contains("may not read the revocation feed"),
        "{}",
        guard.log()
    );
}

#[tokio::test]
async fn one_unauthorized_mirror_does_not_stop_guard() {
    let (issuer, mirror) = (Issuer::start().await, Issuer::start().await);
    mirror.set_feed_status(401);
    let feed = format!(
        "subscriber.feed = ['{}', '{}']\n",
        mirror.url(),
        issuer.url()
    );
    let guard = Guard::start(&(issuer.settings() + &feed + ROUTES)).await;
    guard.wait_until_ready().await;
    let token = issuer.token(1);
    assert_eq!(guard.check_with("GET /orders", &token).await.status, 200);
    // The other address denies access later: the data becomes stale, and the guard runs on.
    issuer.set_feed_status(401);
    guard
        .wait_until("not stale", async || {
            guard.check_with("GET /fresh", &token).await.status == 503
        })
        .await;
    issuer.set_feed_status(200);
    guard
        .wait_until("not fresh", async || {
            guard.check_with("GET /fresh", &token).await.status == 200
        })
        .await;
}

#[tokio::test]
async fn guard_waiting_for_issuer_stops_on_sigint() {
    let settings = settings_for(&format!("http://{}", free_address())) + ROUTES;
    let mut guard = Guard::start(&settings).await;
    guard.process.signal("-INT");
    assert_eq!(guard.process.wait_for_exit().await.code(), Some(0));
}

#[tokio::test]
async fn stale_feed_is_503_until_it_recovers() {
    let issuer = Issuer::start().await;
    let guard = Guard::start_ready(&issuer).await;
    let token = issuer.token(1);
    let fresh = async |status| guard.check_with("GET /fresh", &token).await.status == status;
    // The stream is silent; the feed is unavailable; the feed rejects the client.
    for failure in [None, Some(503), Some(401)] {
        guard
            .wait_until("not fresh", async || fresh(200).await)
            .await;
        match failure {
            None => issuer.pause_heartbeats(),
            Some(status) => issuer.set_feed_status(status),
        }
        guard
            .wait_until("not stale", async || fresh(503).await)
            .await;
        let stale = guard.check_with("GET /fresh", &token).await;
        assert_eq!(stale.header("retry-after"), "2");
        assert_eq!(stale.header("www-authenticate"), "");
        // Routes that allow older data still accept tokens, and invalid tokens are still 401.
        assert_eq!(guard.check_with("GET /orders", &token).await.status, 200);
        assert_eq!(guard.check_with("GET /fresh", "x").await.status, 401);
        let age = guard.metric("portcullis_verifier_feed_age_seconds").await;
        assert!(age > 1.0, "{age}");
        issuer.resume_heartbeats();
        issuer.set_feed_status(200);
    }
    guard
        .wait_until("not fresh", async || fresh(200).await)
        .await;
}

#[tokio::test]
async fn stale_feed_falls_back_to_introspection_if_enabled() {
    let issuer = Issuer::start().await;
    let settings = issuer.settings() + "subscriber.introspection = true\n" + ROUTES;
    let guard = Guard::start(&settings).await;
    guard.wait_until_ready().await;
    let (one, two) = (issuer.token(1), issuer.token(2));
    issuer.set_introspection(Some(false));
    issuer.pause_heartbeats();
    guard
        .wait_until("not introspected", async || {
            guard.check_with("GET /fresh", &one).await.status == 401
        })
        .await;
    issuer.set_introspection(Some(true));
    assert_eq!(guard.check_with("GET /fresh", &two).await.status, 200);
    let count = issuer.introspections();
    assert_eq!(guard.check_with("GET /orders", &one).await.status, 200);
    assert_eq!(issuer.introspections(), count);
    assert_eq!(
        guard
            .metric("portcullis_verifier_introspections_total")
            .await,
        count as f64
    );
}

#[tokio::test]
async fn restarted_guard_never_accepts_a_revoked_token() {
    let issuer = Issuer::start().await;
    let mut guard = Guard::start_ready(&issuer).await;
    issuer.revoke(1);
    issuer.revoke(2);
    guard.kill().await;
    guard.restart().await;
    let (revoked, good) = (issuer.token(2), issuer.token(3));
    // The revoked token must not pass even once, from the first response on.
    loop {
        let response = guard.check_with("GET /orders", &revoked).await;
        assert!([503, 401].contains(&response.status), "{}", response.status);
        if response.status == 401 {
            break;
        }
    }
    assert_eq!(guard.check_with("GET /orders", &good).await.status, 200);
}

#[tokio::test]
async fn sigterm_finishes_pending_requests() {
    let issuer = Issuer::start().await;
    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    issuer.set_introspection_url(format!("http://{}", endpoint.local_addr().unwrap()));
    let settings = issuer.settings() + "subscriber.introspection = true\n" + ROUTES;
    let mut guard = Guard::start(&settings).await;
    guard.wait_until_ready().await;
    issuer.pause_heartbeats();
    let age = "portcullis_verifier_feed_age_seconds";
    guard
        .wait_until("not stale", async || guard.metric(age).await > 1.1)
        .await;
    let idle = TcpStream::connect(guard.address).await.unwrap();
    let token = issuer.token(1);
    let (response, ()) = tokio::join!(guard.check_with("GET /fresh", &token), async {
        let (mut connection, _) = endpoint.accept().await.unwrap();
        read_head(&mut connection).await;
        guard.process.signal("-TERM");
        guard
            .wait_until("not stopping", async || {
                guard.process.log().contains("guard.stopping")
            })
            .await;
        let body = r#"{"active":true}"#;
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{body}");
        connection.write_all(response.as_bytes()).await.unwrap();
    });
    assert_eq!(response.status, 200, "{}", guard.process.log());
    assert_eq!(guard.process.wait_for_exit().await.code(), Some(0));
    drop(idle);
    assert!(TcpStream::connect(guard.address).await.is_err());
}

#[tokio::test]
async fn thousand_open_connections_are_served() {
    let issuer = Issuer::start().await;
    let guard = Guard::start_ready(&issuer).await;
    let good = bearer(&issuer.token(1));
    let request = format!(
        "GET /check HTTP/1.1\r\nHost: guard\r\nX-Forwarded-Method: GET\r\nX-Forwarded-Uri: /orders\r\n{good}\r\n\r\n"
    );
    let mut callers = JoinSet::new();
    for _ in 0..1000 {
        let (at, request) = (guard.address, request.clone());
        callers.spawn(async move {
            let mut connection = TcpStream::connect(at).await.unwrap();
            connection.write_all(request.as_bytes()).await.unwrap();
            let head = read_head(&mut connection).await;
            (head.starts_with("HTTP/1.1 200"), connection)
        });
    }
    let results = callers.join_all().await;
    assert!(results.iter().all(|(passed, _)| *passed));
    // All connections are still open, and another one is accepted.
    assert_eq!(guard.get("/readyz").await.status, 200);
    let passed = r#"portcullis_guard_requests_total{status="200",reason="passed"}"#;
    assert_eq!(guard.metric(passed).await, 1000.0);
}

/// Starts a guard whose log is a pipe. Returns the guard, the unread log, the address and the
/// issuer.
async fn guard_with_piped_log() -> (Process, ChildStderr, SocketAddr, Issuer) {
    let issuer = Issuer::start().await;
    let at = free_address();
    let folder = TempDir::new();
    let settings = issuer.settings();
    let file = folder.write_settings(&format!("listen = '{at}'\n{settings}{ROUTES}"));
    let (mut guard, log) =
        Process::start_with_piped_log(folder, command().arg("--config").arg(file));
    guard.wait_until_listening(at).await;
    (guard, log, at, issuer)
}

/// Sends requests without a token, each of which logs a line, until the pipe and the queue are full
/// and lines are dropped.
async fn until_lines_are_dropped(at: SocketAddr) {
    let request = "GET /check HTTP/1.1\r\nHost: a\r\nX-Forwarded-Method: GET\r\n\
               X-Forwarded-Uri: /\r\n\r\n";
    let mut connection = TcpStream::connect(at).await.unwrap();
    for _ in 0..100 {
        for _ in 0..500 {
            connection.write_all(request.as_bytes()).await.unwrap();
            let head = timeout(Duration::from_secs(10), read_head(&mut connection)).await;
            let head = head.expect("the guard does not respond");
            assert!(head.starts_with("HTTP/1.1 403"), "{head}");
            let (_, length) = head.split_once("content-length: ").unwrap();
            let length = length.split("\r\n").next().unwrap().parse().unwrap();
            connection.read_exact(&mut vec![0; length]).await.unwrap();
        }
        let metrics = send(at, "GET /metrics", &[]).await.body;
        let name = "\nportcullis_guard_log_lines_dropped_total ";
        let (_, count) = metrics.split_once(name).unwrap();
        if count.lines().next().unwrap().parse::<u64>().unwrap() > 0 {
            return;
        }
    }
    panic!("no line was dropped");
}

#[tokio::test]
async fn unread_log_blocks_neither_requests_nor_shutdown() {
    let (mut guard, log, at, _issuer) = guard_with_piped_log().await;
    until_lines_are_dropped(at).await;
    // The guard must also stop although its log is blocked.
    guard.signal("-TERM");
    assert_eq!(guard.wait_for_exit().await.code(), Some(0));
    drop(log);
}

#[tokio::test]
async fn dropped_log_lines_are_reported() {
    let (mut guard, log, at, _issuer) = guard_with_piped_log().await;
    until_lines_are_dropped(at).await;
    let read = std::thread::spawn(move || std::io::read_to_string(log).unwrap());
    guard.signal("-TERM");
    assert_eq!(guard.wait_for_exit().await.code(), Some(0));
    let text = read.join().unwrap();
    assert!(text.contains(r#""event":"log.dropped""#), "{text}");
    let is_whole = |line: &str| line.starts_with('{') && line.ends_with('}');
    assert!(text.lines().all(is_whole), "{text}");
}

#[tokio::test]
async fn queued_log_lines_are_written_before_exit() {
    let (mut guard, log, at, _issuer) = guard_with_piped_log().await;
    for _ in 0..20 {
        send(at, "GET /check", &[]).await;
    }
    guard.signal("-TERM");
    assert_eq!(guard.wait_for_exit().await.code(), Some(0));
    let text = std::io::read_to_string(log).unwrap();
    assert!(text.contains("guard.stopping"), "{text}");
    assert_eq!(text.matches("guard.refused").count(), 20, "{text}");
    assert!(!text.contains("log.dropped"), "{text}");
}
