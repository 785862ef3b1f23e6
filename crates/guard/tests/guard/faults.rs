//! What the guard does when something is away, old, killed, or too much.

use std::net::SocketAddr;
use std::process::ChildStderr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::http::{read_head, send};
use crate::issuer::{Issuer, settings_for};
use crate::process::{Folder, Guard, ROUTES, Running, bearer, command, free_address};

#[tokio::test]
async fn a_revoked_token_is_refused_within_a_second() {
    let issuer = Issuer::start().await;
    let guard = Guard::of(&issuer).await;
    let (one, two) = (issuer.token(1), issuer.token(2));
    for token in [&one, &two] {
        assert_eq!(guard.check_with("GET /orders", token).await.status, 200);
    }
    let begin = Instant::now();
    issuer.revoke(1);
    guard
        .until("not revoked", async || {
            guard.check_with("GET /orders", &one).await.status == 401
        })
        .await;
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(guard.check_with("GET /orders", &two).await.status, 200);
}

#[tokio::test]
async fn a_guard_waits_for_its_issuer_and_refuses_until_then() {
    let address = free_address().to_string();
    let settings = settings_for(&format!("http://{address}")) + ROUTES;
    let guard = Guard::start(&settings).await;
    assert_eq!(guard.get("/livez").await.status, 200);
    let ready = guard.get("/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains(r#""keys":"failed""#), "{}", ready.body);
    let answer = guard
        .check("GET /orders", &["Authorization: Bearer x"])
        .await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "2"));
    // What is not listed is not listed whether there are keys or not.
    assert_eq!(guard.check("GET /", &[]).await.status, 403);
    let issuer = Issuer::at(&address).await;
    guard.is_ready().await;
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
async fn without_its_feed_a_guard_is_not_ready() {
    let issuer = Issuer::start().await;
    issuer.feed_answers(503);
    let guard = Guard::start(&(issuer.settings() + ROUTES)).await;
    guard
        .until("no keys", async || {
            guard.get("/readyz").await.body.contains(r#""keys":"ok""#)
        })
        .await;
    let ready = guard.get("/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains(r#""feed":"failed""#), "{}", ready.body);
    let answer = guard.check_with("GET /orders", &issuer.token(1)).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "2"));
    issuer.feed_answers(200);
    guard.is_ready().await;
    assert_eq!(
        guard
            .check_with("GET /orders", &issuer.token(1))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn who_may_not_read_the_feed_is_told_so() {
    let issuer = Issuer::start().await;
    issuer.feed_answers(403);
    let folder = Folder::new();
    let settings = format!(
        "listen = '{}'\n{}{ROUTES}",
        free_address(),
        issuer.settings()
    );
    let file = folder.write_settings(&settings);
    let mut guard = Running::start(folder, command().arg("--config").arg(file));
    assert_eq!(guard.ended().await.code(), Some(77));
    assert!(
        guard.log().contains("may not read the revocation feed"),
        "{}",
        guard.log()
    );
}

#[tokio::test]
async fn a_guard_that_waits_for_its_issuer_can_be_stopped() {
    let settings = settings_for(&format!("http://{}", free_address())) + ROUTES;
    let mut guard = Guard::start(&settings).await;
    guard.running.signal("-INT");
    assert_eq!(guard.running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn old_news_is_no_news() {
    let issuer = Issuer::start().await;
    let guard = Guard::of(&issuer).await;
    let token = issuer.token(1);
    let fresh = async |status| guard.check_with("GET /fresh", &token).await.status == status;
    // Nothing comes any more; the feed is away; it is there for others only.
    for away in [None, Some(503), Some(401)] {
        guard.until("not fresh", async || fresh(200).await).await;
        match away {
            None => issuer.fall_silent(),
            Some(status) => issuer.feed_answers(status),
        }
        guard.until("not stale", async || fresh(503).await).await;
        let stale = guard.check_with("GET /fresh", &token).await;
        assert_eq!(stale.header("retry-after"), "2");
        assert_eq!(stale.header("www-authenticate"), "");
        // Where more is allowed, tokens pass; what is known to be wrong is still told as that.
        assert_eq!(guard.check_with("GET /orders", &token).await.status, 200);
        assert_eq!(guard.check_with("GET /fresh", "x").await.status, 401);
        let age = guard.metric("portcullis_verifier_feed_age_seconds").await;
        assert!(age > 1.0, "{age}");
        issuer.speak();
        issuer.feed_answers(200);
    }
    guard.until("not fresh", async || fresh(200).await).await;
}

#[tokio::test]
async fn while_the_news_is_old_the_issuer_may_be_asked() {
    let issuer = Issuer::start().await;
    let settings = issuer.settings() + "subscriber.introspection = true\n" + ROUTES;
    let guard = Guard::start(&settings).await;
    guard.is_ready().await;
    let (one, two) = (issuer.token(1), issuer.token(2));
    issuer.introspects(Some(false));
    issuer.fall_silent();
    guard
        .until("not asked", async || {
            guard.check_with("GET /fresh", &one).await.status == 401
        })
        .await;
    issuer.introspects(Some(true));
    assert_eq!(guard.check_with("GET /fresh", &two).await.status, 200);
    let asked = issuer.introspections();
    assert_eq!(guard.check_with("GET /orders", &one).await.status, 200);
    assert_eq!(issuer.introspections(), asked);
    assert_eq!(
        guard
            .metric("portcullis_verifier_introspections_total")
            .await,
        asked as f64
    );
}

#[tokio::test]
async fn a_guard_that_was_killed_knows_every_revocation_when_it_is_back() {
    let issuer = Issuer::start().await;
    let mut guard = Guard::of(&issuer).await;
    issuer.revoke(1);
    issuer.revoke(2);
    guard.kill().await;
    guard.restart().await;
    let (revoked, good) = (issuer.token(2), issuer.token(3));
    // Not once does it pass, from the first answer on.
    loop {
        let answer = guard.check_with("GET /orders", &revoked).await;
        assert!([503, 401].contains(&answer.status), "{}", answer.status);
        if answer.status == 401 {
            break;
        }
    }
    assert_eq!(guard.check_with("GET /orders", &good).await.status, 200);
}

#[tokio::test]
async fn a_stop_finishes_what_runs() {
    let issuer = Issuer::start().await;
    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    issuer.introspects_at(format!("http://{}", endpoint.local_addr().unwrap()));
    let settings = issuer.settings() + "subscriber.introspection = true\n" + ROUTES;
    let mut guard = Guard::start(&settings).await;
    guard.is_ready().await;
    issuer.fall_silent();
    let age = "portcullis_verifier_feed_age_seconds";
    guard
        .until("not stale", async || guard.metric(age).await > 1.1)
        .await;
    let idle = TcpStream::connect(guard.at).await.unwrap();
    let token = issuer.token(1);
    let (answer, ()) = tokio::join!(guard.check_with("GET /fresh", &token), async {
        let (mut connection, _) = endpoint.accept().await.unwrap();
        read_head(&mut connection).await;
        guard.running.signal("-TERM");
        guard
            .until("no stop", async || {
                guard.running.log().contains("guard.stopping")
            })
            .await;
        let body = r#"{"active":true}"#;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{body}");
        connection.write_all(answer.as_bytes()).await.unwrap();
    });
    assert_eq!(answer.status, 200, "{}", guard.running.log());
    assert_eq!(guard.running.ended().await.code(), Some(0));
    drop(idle);
    assert!(TcpStream::connect(guard.at).await.is_err());
}

#[tokio::test]
async fn a_thousand_connections_are_answered() {
    let issuer = Issuer::start().await;
    let guard = Guard::of(&issuer).await;
    let good = bearer(&issuer.token(1));
    let request = format!(
        "GET /check HTTP/1.1\r\nHost: guard\r\nX-Forwarded-Method: GET\r\nX-Forwarded-Uri: /orders\r\n{good}\r\n\r\n"
    );
    let mut callers = JoinSet::new();
    for _ in 0..1000 {
        let (at, request) = (guard.at, request.clone());
        callers.spawn(async move {
            let mut connection = TcpStream::connect(at).await.unwrap();
            connection.write_all(request.as_bytes()).await.unwrap();
            let head = read_head(&mut connection).await;
            (head.starts_with("HTTP/1.1 200"), connection)
        });
    }
    let answered = callers.join_all().await;
    assert!(answered.iter().all(|(passed, _)| *passed));
    // All are open still, and there is room for more.
    assert_eq!(guard.get("/readyz").await.status, 200);
    let passed = r#"portcullis_guard_requests_total{status="200",reason="passed"}"#;
    assert_eq!(guard.metric(passed).await, 1000.0);
}

/// A guard, its log, which nobody has read so far, where it listens, and its issuer.
async fn unread() -> (Running, ChildStderr, SocketAddr, Issuer) {
    let issuer = Issuer::start().await;
    let at = free_address();
    let folder = Folder::new();
    let settings = issuer.settings();
    let file = folder.write_settings(&format!("listen = '{at}'\n{settings}{ROUTES}"));
    let (mut guard, log) = Running::start_unread(folder, command().arg("--config").arg(file));
    guard.listens(at).await;
    (guard, log, at, issuer)
}

/// Asks without a token, which costs a line each, until pipe and queue have no more room.
async fn until_lines_are_dropped(at: SocketAddr) {
    let ask = "GET /check HTTP/1.1\r\nHost: a\r\nX-Forwarded-Method: GET\r\n\
               X-Forwarded-Uri: /\r\n\r\n";
    let mut connection = TcpStream::connect(at).await.unwrap();
    for _ in 0..100 {
        for _ in 0..500 {
            connection.write_all(ask.as_bytes()).await.unwrap();
            let head = timeout(Duration::from_secs(10), read_head(&mut connection)).await;
            let head = head.expect("the guard stands still");
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
    panic!("no line was given up");
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nobody() {
    let (mut guard, log, at, _issuer) = unread().await;
    until_lines_are_dropped(at).await;
    // Nor does it keep the guard from stopping.
    guard.signal("-TERM");
    assert_eq!(guard.ended().await.code(), Some(0));
    drop(log);
}

#[tokio::test]
async fn lines_that_were_given_up_are_told_of() {
    let (mut guard, log, at, _issuer) = unread().await;
    until_lines_are_dropped(at).await;
    let read = std::thread::spawn(move || std::io::read_to_string(log).unwrap());
    guard.signal("-TERM");
    assert_eq!(guard.ended().await.code(), Some(0));
    let text = read.join().unwrap();
    assert!(text.contains(r#""event":"log.dropped""#), "{text}");
    let is_whole = |line: &str| line.starts_with('{') && line.ends_with('}');
    assert!(text.lines().all(is_whole), "{text}");
}

#[tokio::test]
async fn the_last_lines_are_written_before_the_end() {
    let (mut guard, log, at, _issuer) = unread().await;
    for _ in 0..20 {
        send(at, "GET /check", &[]).await;
    }
    guard.signal("-TERM");
    assert_eq!(guard.ended().await.code(), Some(0));
    let text = std::io::read_to_string(log).unwrap();
    assert!(text.contains("guard.stopping"), "{text}");
    assert_eq!(text.matches("guard.refused").count(), 20, "{text}");
    assert!(!text.contains("log.dropped"), "{text}");
}
