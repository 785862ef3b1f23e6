//! Traces, as a collector receives them. Needs the feature `otel`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use crate::fixtures::Browser;
use crate::installation::{Installation, refused};
use crate::site::{Site, base};

/// Starts a collector that stores what it receives.
fn collector() -> (String, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (heard, hears) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                request.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
            assert!(head.starts_with("post /v1/traces "), "{head}");
            let length = head.split("content-length: ").nth(1).unwrap();
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .unwrap();
            let _ = heard.send(body);
        }
    });
    (address, hears)
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn requests_are_spans_of_their_trace() {
    let site = Site::open(Installation::new());
    let (endpoint, sent) = collector();
    let server = site.installation.serve(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("PORTCULLIS__HTTP__TRUSTED_PROXIES", "127.0.0.1"),
    ]);
    let public = base(&server);
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let silent = "5bf92f3577b34da6a3ce929d0e0e4737";
    let own = actix_web::rt::System::new().block_on(async {
        let mut proxy = Browser::new(&public);
        for (trace, flags) in [(trace, "01"), (silent, "00")] {
            let header = format!("00-{trace}-{parent}-{flags}");
            let path = "/oauth2/jwks?client_secret=Canary9x7";
            proxy
                .send("GET", path, &[("traceparent", &header)], None)
                .await;
        }
        let answer = proxy.get("/nothing").await;
        answer.header("traceparent").unwrap().to_owned()
    });
    assert!(own.ends_with("-01"), "{own}");
    // The spans that were not sent by then are sent at shutdown.
    assert_eq!(server.stop(), Some(0));
    let mut all = Vec::new();
    while let Ok(batch) = sent.recv_timeout(Duration::from_millis(500)) {
        all.extend(batch);
    }
    let has = |part: &[u8]| all.windows(part.len()).any(|window| window == part);
    for part in [
        bytes(trace),
        bytes(parent),
        bytes(&own[3..35]),
        bytes(&own[36..52]),
        b"GET /oauth2/jwks".to_vec(),
        b"http.response.status_code".to_vec(),
        b"service.name".to_vec(),
    ] {
        assert!(has(&part), "{part:?}");
    }
    assert!(!has(&bytes(silent)) && !has(b"Canary9x7") && !has(b"client_secret"));
}

#[test]
fn unreachable_collector_does_not_block_requests() {
    let site = Site::open(Installation::new());
    let away = ("PORTCULLIS__TELEMETRY__ENDPOINT", "http://127.0.0.1:1");
    let server = site.installation.serve(&[away]);
    let public = base(&server);
    let status = actix_web::rt::System::new()
        .block_on(async { Browser::new(&public).get("/oauth2/jwks").await.status });
    assert_eq!(status, 200);
    assert_eq!(server.stop(), Some(0));
    for wrong in ["collector:4318", "ftp://x", "nothing"] {
        let wrong = ("PORTCULLIS__TELEMETRY__ENDPOINT", wrong);
        refused(
            &site.installation.run(&["serve"], &[wrong]),
            78,
            "`telemetry.endpoint`",
        );
    }
}
