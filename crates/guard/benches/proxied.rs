//! Latency that the guard adds: compares nginx with the guard to nginx without it, in alternating
//! rounds on loopback. Run with `cargo bench -p portcullis-guard`.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../../verifier/tests/verifier/feed_issuer.rs"]
#[allow(dead_code)]
mod feed_issuer;
#[path = "../tests/guard/http.rs"]
#[allow(dead_code)]
mod http;
#[path = "../tests/guard/issuer.rs"]
#[allow(dead_code)]
mod issuer;
#[path = "../tests/guard/process.rs"]
#[allow(dead_code)]
mod process;
#[path = "../tests/guard/proxies.rs"]
#[allow(dead_code)]
mod proxies;
#[path = "../tests/guard/service.rs"]
mod service;
#[path = "../../verifier/tests/verifier/signer.rs"]
#[allow(dead_code)]
mod signer;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use issuer::Issuer;
use process::Guard;
use proxies::{nginx, nginx_with};

/// The documented nginx configuration without the guard.
const BARE: &str = "
    upstream service { server 127.0.0.1:3000; keepalive 16; }
    server {
        listen 127.0.0.1:8080;
        location / {
            proxy_set_header Host $host;
            proxy_set_header Connection \"\";
            proxy_http_version 1.1;
            proxy_pass http://service;
        }
    }";

/// Number of measured rounds of each kind. Rounds with and without the guard alternate.
const ROUNDS: usize = 100;
/// Requests per round and connection.
const PER_ROUND: usize = 50;

#[tokio::main]
async fn main() {
    // Do nothing under `cargo test --benches`.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let issuer = Issuer::start().await;
    let guard = Guard::start_ready(&issuer).await;
    let service = service::start().await;
    let bare = nginx_with(BARE, guard.address, service).await;
    let guarded = nginx(guard.address, service).await;
    let request = format!(
        "GET /orders/7 HTTP/1.1\r\nHost: api.example\r\nAuthorization: Bearer {}\r\n\r\n",
        issuer.token(1)
    );
    println!("connections  rounds       bare p50 · p99    guarded p50 · p99   added p50 · p99");
    for connections in [1, 8] {
        let (bare, guarded, request) = (bare.address, guarded.address, request.clone());
        let measure = move || alternate(connections, bare, guarded, &request);
        let rounds = tokio::task::spawn_blocking(measure).await.unwrap();
        print_row(connections, "all", &rounds, ROUNDS);
        // Other load on the machine affects single rounds of either kind.
        print_row(connections, "quiet half", &rounds, ROUNDS / 2);
    }
}

/// Request times by round, without and with the guard.
type Rounds = [Vec<Vec<Duration>>; 2];

/// Prints the statistics of the `quietest` fastest rounds of each kind (by p99).
fn print_row(connections: usize, which: &str, rounds: &Rounds, quietest: usize) {
    let [bare, guarded] = rounds.each_ref().map(|rounds| {
        let mut rounds = rounds.clone();
        rounds.sort_by_key(|times| quantile(times, 99));
        let times: Vec<_> = rounds.into_iter().take(quietest).flatten().collect();
        [quantile(&times, 50), quantile(&times, 99)]
    });
    let added = [0, 1].map(|at| guarded[at] as i128 - bare[at] as i128);
    let ratio = [0, 1].map(|at| guarded[at] as f64 / bare[at] as f64);
    println!(
        "{connections:>11}  {which:<10} {:>6} · {:>5} µs {:>9} · {:>5} µs {:>6} · {:>5} µs  ratio {:.2} · {:.2}",
        bare[0], bare[1], guarded[0], guarded[1], added[0], added[1], ratio[0], ratio[1],
    );
}

/// Runs rounds without and with the guard in turn.
fn alternate(connections: usize, bare: SocketAddr, guarded: SocketAddr, request: &str) -> Rounds {
    let mut times = [vec![], vec![]];
    for round in 0..=ROUNDS {
        for (kind, at) in [bare, guarded].into_iter().enumerate() {
            let clients = (0..connections).map(|_| {
                let request = request.to_owned();
                thread::spawn(move || measure_requests(at, &request))
            });
            let clients: Vec<_> = clients.collect();
            let measured = clients.into_iter();
            let measured = measured.flat_map(|client| client.join().unwrap()).collect();
            // The first round is a warm-up.
            if round > 0 {
                times[kind].push(measured);
            }
        }
    }
    times
}

fn measure_requests(at: SocketAddr, request: &str) -> Vec<Duration> {
    let mut connection = TcpStream::connect(at).unwrap();
    connection.set_nodelay(true).unwrap();
    let mut response = vec![0; 64 * 1024];
    let mut times = Vec::with_capacity(PER_ROUND);
    // The first request is not measured: it also opens the connections behind the proxy.
    for number in 0..=PER_ROUND {
        let started = Instant::now();
        connection.write_all(request.as_bytes()).unwrap();
        let mut length = 0;
        while !is_complete(&response[..length]) {
            let read = connection.read(&mut response[length..]).unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&response[..length]));
            length += read;
        }
        if number > 0 {
            times.push(started.elapsed());
        }
        assert!(response.starts_with(b"HTTP/1.1 200"));
    }
    times
}

fn is_complete(response: &[u8]) -> bool {
    let text = String::from_utf8_lossy(response);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let mut lines = head.lines();
    let length = lines.find_map(|line| line.strip_prefix("Content-Length: "));
    body.len() >= length.unwrap().parse::<usize>().unwrap()
}

fn quantile(times: &[Duration], percent: usize) -> u128 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() * percent / 100].as_micros()
}
