//! Requests that no client library would send: bytes on a socket.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::browser::Answer;
use super::journal::{self, Exchange};
use super::tls;

/// Sends `method target` with these header lines (`Host` and `Connection: close` are added).
pub async fn request(
    base: &str,
    method: &str,
    target: &str,
    headers: &[&str],
    body: &str,
) -> Option<Answer> {
    let mut text =
        format!("{method} {target} HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    if !body.is_empty() {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(body);
    let started = Instant::now();
    let answer = bytes(base, text.into_bytes()).await?;
    journal::note(|| Exchange {
        method: method.to_owned(),
        target: target.to_owned(),
        body: Some(body.to_owned()),
        answer: answer.clone(),
        took: started.elapsed(),
    });
    Some(answer)
}

/// A connection, over TLS where the server speaks it.
trait Wire: Read + Write {}

impl<T: Read + Write> Wire for T {}

fn wire(base: &str) -> Box<dyn Wire> {
    let (scheme, address) = base.split_once("://").unwrap();
    let tcp = connect(address);
    if scheme == "http" {
        return Box::new(tcp);
    }
    let name = "op.example".try_into().unwrap();
    let client = rustls::ClientConnection::new(tls::ours().client().into(), name).unwrap();
    Box::new(rustls::StreamOwned::new(client, tcp))
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    let patience = Some(Duration::from_secs(5));
    stream.set_read_timeout(patience).unwrap();
    stream.set_write_timeout(patience).unwrap();
    stream
}

/// Sends exactly these bytes, which must ask for the connection to be closed. `None` when it was
/// closed without an answer.
pub async fn bytes(base: &str, bytes: Vec<u8>) -> Option<Answer> {
    let base = base.to_owned();
    actix_web::rt::task::spawn_blocking(move || {
        let mut stream = wire(&base);
        // A server that has heard enough may stop listening before everything is said.
        let _ = stream.write_all(&bytes);
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        parse(&heard)
    })
    .await
    .unwrap()
}

/// A whole form post to our host.
pub fn post(target: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let fields: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let length = body.len();
    format!(
        "POST {target} HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n{fields}\r\n{body}"
    )
    .into_bytes()
}

/// Sends `first`, then `chunk` up to `times` times, and listens meanwhile; in the clear only. The answer, and whether the
/// other side hung up by itself.
pub async fn flood(
    base: &str,
    first: Vec<u8>,
    chunk: Vec<u8>,
    times: usize,
) -> (Option<Answer>, bool) {
    let address = base.trim_start_matches("http://").to_owned();
    actix_web::rt::task::spawn_blocking(move || {
        let mut stream = connect(&address);
        let mut ear = stream.try_clone().unwrap();
        let listening = std::thread::spawn(move || {
            let mut heard = Vec::new();
            let end = ear.read_to_end(&mut heard);
            let waits = end.is_err_and(|error| {
                matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
            });
            (parse(&heard), !waits)
        });
        for part in std::iter::once(&first).chain(std::iter::repeat_n(&chunk, times)) {
            if stream.write_all(part).is_err() {
                break;
            }
        }
        listening.join().unwrap()
    })
    .await
    .unwrap()
}

fn parse(heard: &[u8]) -> Option<Answer> {
    let end = heard.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&heard[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).ok()?,
            HeaderValue::from_str(value.trim()).ok()?,
        );
    }
    Some(Answer {
        status,
        headers,
        body: String::from_utf8_lossy(&heard[end + 4..]).into_owned(),
    })
}
