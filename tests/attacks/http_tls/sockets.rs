//! Requests on raw sockets: in the clear, smuggled, and slow.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::{address, encrypted};
use crate::expect::{logged, page, summary};
use crate::fixtures::{Browser, Server, raw};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a449_plain_http_only_redirects_get_root),
    row!(a450_request_smuggling_is_rejected),
    row!(a452_slow_requests_are_cut),
];

/// Returns an address of this machine that is not loopback, if there is one.
fn own_address() -> Option<std::net::IpAddr> {
    // Nothing is sent: the system only selects the source address.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

async fn a449_plain_http_only_redirects_get_root(stage: &Stage) {
    // Plain HTTP to a TLS listener: no response.
    let server = encrypted(stage, |_| {}).await;
    let plain = raw::bytes(
        &format!("http://{}", address(&server)),
        b"GET / HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\n\r\n".to_vec(),
    )
    .await;
    stage.check(1, plain.is_none(), || "plain HTTP is answered".to_owned());
    let mut browser = server.browser();
    let answer = browser.get("/account").await;
    stage.check(2, answer.status == 200, || summary(&answer));
    let hsts = answer.header("strict-transport-security");
    stage.check(
        2,
        hsts == Some("max-age=63072000; includeSubDomains"),
        || format!("{hsts:?}"),
    );
    server.remove().await;
    // A plain listener behind a proxy, with requests from a peer that is not the proxy.
    let Some(here) = own_address() else {
        println!(
            "A449: this machine has no address but loopback; the plain listener is not looked at"
        );
        return;
    };
    let server = Server::anywhere(stage.db(), |config| {
        config.http.trusted_proxies = vec!["203.0.113.1".parse().unwrap()];
    })
    .await;
    let port = address(&server).rsplit(':').next().unwrap().to_owned();
    let mut stranger = Browser::new(&format!("http://{here}:{port}"));
    let home = stranger.get("/").await;
    let to = home.location();
    stage.check(
        3,
        home.status == 308 && to == Some("https://op.example/"),
        || summary(&home),
    );
    stage.expect(3, logged(&home, "http.plain", "redirect"));
    for (case, method, path) in [
        (4, "GET", "/login"),
        (5, "POST", "/login"),
        (6, "GET", "/oauth2/token"),
        (7, "POST", "/oauth2/token"),
        (8, "GET", "/api/admin/v1/users"),
        (9, "POST", "/api/admin/v1/users"),
        (10, "POST", "/"),
    ] {
        let answer = stranger.send(method, path, &[], None).await;
        stage.expect(case, page(&answer, 403));
        stage.expect(case, logged(&answer, "http.plain", "scheme"));
    }
    server.remove().await;
}

/// Requests that a proxy and a server could split at different places. Each contains a second request that
/// must never be answered.
fn smuggling_requests() -> Vec<(String, Vec<u8>)> {
    let inner = "GET /account HTTP/1.1\r\nHost: op.example\r\n\r\n";
    let line = "POST /oauth2/token HTTP/1.1\r\nHost: op.example\r\n";
    let chunked = format!("0\r\n\r\n{inner}");
    let mut all = Vec::new();
    let mut add = |headers: &str, body: &str| {
        let text = format!("{line}{headers}\r\n{body}");
        all.push((headers.replace("\r\n", "|"), text.into_bytes()));
    };
    let long = inner.len() + 5;
    for codings in [
        "chunked",
        "Chunked",
        " chunked",
        "chunked ",
        "\tchunked",
        "xchunked",
        "chunked, identity",
        "identity, chunked",
        "gzip, chunked",
        "chunked, chunked",
        "chunked;q=1",
        "\"chunked\"",
        "chunk",
        "x",
        "identity",
        ",chunked",
        "chunked,",
        "\u{b}chunked",
    ] {
        add(
            &format!("Content-Length: {long}\r\nTransfer-Encoding: {codings}\r\n"),
            &chunked,
        );
        add(
            &format!("Transfer-Encoding: {codings}\r\nContent-Length: 4\r\n"),
            &chunked,
        );
    }
    for (one, other) in [
        ("0", "5"),
        ("5", "0"),
        ("5", "6"),
        ("0", "+0"),
        ("5", "5, 6"),
        ("0", "0x0"),
    ] {
        add(
            &format!("Content-Length: {one}\r\nContent-Length: {other}\r\n"),
            inner,
        );
    }
    for length in [
        "+5",
        "-1",
        "0x5",
        "5,5",
        "5, 6",
        "5 5",
        "5;",
        "",
        "five",
        "5.0",
        "1e1",
        "05a",
        "99999999999999999999",
        "\u{661}",
    ] {
        add(&format!("Content-Length: {length}\r\n"), inner);
    }
    for field in [
        "Content-Length : 0",
        " Content-Length: 0",
        "Content-Length\t: 0",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\u{0}: chunked",
        "X\u{0}Y: 1",
        "X: a\u{0}b",
        "X: a\rb",
        ": no name",
        "no colon",
        "X: one\r\n two",
        "X: one\r\n\ttwo",
        "Content-Length: 0\r\n , 5",
        "Tr\u{e9}nsfer: 1",
        "X(Y): 1",
    ] {
        add(&format!("{field}\r\n"), inner);
    }
    for chunks in [
        "0x0\r\n\r\n",
        "+0\r\n\r\n",
        "-0\r\n\r\n",
        " 0\r\n\r\n",
        "0 \n\r\n",
        "fffffffffffffffff\r\n\r\n",
        "g\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1\r\na0\r\n\r\n",
        "1\na\n0\n\n",
        "\r\n0\r\n\r\n",
    ] {
        add(
            "Transfer-Encoding: chunked\r\n",
            &format!("{chunks}{inner}"),
        );
    }
    all
}

async fn a450_request_smuggling_is_rejected(stage: &Stage) {
    let web = stage.server.shop().await;
    for (case, (what, bytes)) in (1..).zip(smuggling_requests()) {
        let heard = converse(&stage.server, bytes).await;
        let answers: Vec<&str> = heard
            .split("HTTP/1.")
            .skip(1)
            .map(|answer| answer.get(2..5).unwrap_or_default())
            .collect();
        // The hidden request is for the account page, which answers 200. No other response here is 200.
        let desynchronised = answers.contains(&"200") || heard.contains("<title>Account");
        stage.check(case, !desynchronised, || {
            format!("{what}: answered {answers:?}")
        });
        let refused = answers
            .iter()
            .all(|status| status.starts_with('4') || *status == "501");
        stage.check(case, refused && answers.len() <= 2, || {
            format!("{what}: answered {answers:?}")
        });
    }
    // The server still works.
    let answer = web.redeems("pcl_ac_nothing").await;
    stage.check(0, answer.status == 400, || summary(&answer));
}

/// Sends bytes, encrypted if the server is, and reads until the peer closes the connection or is silent for a while.
async fn converse(server: &Server, bytes: Vec<u8>) -> String {
    let mut wire = raw::wire(&server.base).await.unwrap();
    raw::says(&mut wire, &bytes).await;
    let mut heard = Vec::new();
    let silence = Duration::from_millis(400);
    while let Ok(Ok(1..)) = timeout(silence, wire.read_buf(&mut heard)).await {}
    String::from_utf8_lossy(&heard).into_owned()
}

/// Sends `first` and then one byte each half second; returns how long the connection stays open.
async fn send_slowly(base: String, first: String) -> (Duration, String) {
    let started = Instant::now();
    let mut wire = raw::wire(&base).await.unwrap();
    assert!(raw::says(&mut wire, first.as_bytes()).await);
    let mut heard = Vec::new();
    while started.elapsed() < Duration::from_secs(20) {
        match timeout(Duration::from_millis(500), wire.read_buf(&mut heard)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) => break,
            Err(_) => {
                if !raw::says(&mut wire, b"x").await {
                    break;
                }
            }
        }
    }
    let heard = String::from_utf8_lossy(&heard).into_owned();
    (started.elapsed(), heard)
}

async fn a452_slow_requests_are_cut(stage: &Stage) {
    let server = &stage.server;
    let body = "POST /oauth2/token HTTP/1.1\r\nHost: op.example\r\n\
                Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 400\r\n\r\n";
    // The last connection has been answered once: the head of its second request is slow.
    let head = "GET /account HTTP/1.1\r\nHost: op.example\r\n";
    let first = format!("{head}X-Slow: ");
    let second = format!("{head}\r\n{first}");
    let firsts = ["", &first, body, &second];
    let slow: Vec<_> = (0..40)
        .map(|n| {
            (
                n % 4,
                send_slowly(server.base.clone(), firsts[n % 4].to_owned()),
            )
        })
        .map(|(kind, slow)| actix_web::rt::spawn(async move { (kind, slow.await) }))
        .collect();
    // Meanwhile other clients are served.
    let mut honest = server.browser();
    for _ in 0..50 {
        let started = Instant::now();
        let answer = honest.get("/account").await;
        let took = started.elapsed();
        stage.check(
            1,
            answer.status == 200 && took < Duration::from_secs(2),
            || format!("{} after {took:?}", answer.status),
        );
    }
    for slow in slow {
        let (kind, (lived, heard)) = slow.await.unwrap();
        // The timeouts, with some tolerance for a busy machine.
        let limit = Duration::from_secs(if kind == 2 { 14 } else { 9 });
        stage.check(2 + kind, lived < limit, || {
            format!("lived {lived:?}: {heard}")
        });
        if kind == 2 {
            stage.check(4, heard.starts_with("HTTP/1.1 408"), || heard.clone());
        }
    }
}
