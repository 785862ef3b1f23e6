//! Requests that no client library would send: bytes on a socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

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

/// How long the other side may be silent, or deaf.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Connects, over TLS where the server speaks it.
pub async fn wire(base: &str) -> std::io::Result<Box<dyn Wire>> {
    let (scheme, address) = base.split_once("://").unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    if scheme == "http" {
        return Ok(Box::new(tcp));
    }
    let name = "op.example".try_into().unwrap();
    let connector = TlsConnector::from(Arc::new(tls::ours().client()));
    Ok(Box::new(connector.connect(name, tcp).await?))
}

/// Says all of it; `false` when the other side hung up, or takes nothing.
pub async fn says(mouth: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> bool {
    let said = async {
        mouth.write_all(bytes).await?;
        mouth.flush().await
    };
    matches!(timeout(PATIENCE, said).await, Ok(Ok(())))
}

/// Listens until the other side hangs up, or is silent for long: what it said, and whether it hung up.
async fn hears(ear: &mut (impl AsyncRead + Unpin)) -> (Option<Answer>, bool) {
    let mut heard = Vec::new();
    loop {
        match timeout(PATIENCE, ear.read_buf(&mut heard)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) => return (parse(&heard), true),
            Err(_) => return (parse(&heard), false),
        }
    }
}

/// Sends exactly these bytes, which must ask for the connection to be closed. `None` when it was
/// closed without an answer.
pub async fn bytes(base: &str, bytes: Vec<u8>) -> Option<Answer> {
    let mut wire = wire(base).await.ok()?;
    // A server that has heard enough may stop listening before everything is said.
    says(&mut wire, &bytes).await;
    hears(&mut wire).await.0
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

/// Sends `first`, then `chunk` up to `times` times, and listens meanwhile. The answer, and whether the other side
/// hung up by itself.
pub async fn flood(
    base: &str,
    first: Vec<u8>,
    chunk: Vec<u8>,
    times: usize,
) -> (Option<Answer>, bool) {
    let (mut ear, mut mouth) = tokio::io::split(wire(base).await.unwrap());
    let speaks = async {
        for part in std::iter::once(&first).chain(std::iter::repeat_n(&chunk, times)) {
            if !says(&mut mouth, part).await {
                break;
            }
        }
    };
    join(hears(&mut ear), speaks).await.0
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
