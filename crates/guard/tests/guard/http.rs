//! A client that sends what it is told, byte for byte: no library would send `/../` or two headers.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// The value of a header, empty if it is not there; two are none.
    pub fn header(&self, name: &str) -> &str {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        match (found.next(), found.next()) {
            (Some((_, value)), None) => value,
            (None, _) => "",
            _ => panic!("{name} is there twice: {self:?}"),
        }
    }
}

/// A request: `GET /path`, and header lines.
pub async fn send(to: SocketAddr, line: &str, headers: &[&str]) -> Answer {
    let connection = TcpStream::connect(to).await.unwrap();
    send_on(connection, line, headers).await
}

/// The same to somebody who may not be up yet: it may hang up without a word.
pub async fn try_send(to: SocketAddr, line: &str) -> Option<Answer> {
    let connection = TcpStream::connect(to).await.ok()?;
    let answer = exchange(connection, line, &[]).await;
    parse(&answer)
}

/// The same over any connection, which ends with it.
pub async fn send_on<C>(connection: C, line: &str, headers: &[&str]) -> Answer
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let answer = exchange(connection, line, headers).await;
    parse(&answer).unwrap_or_else(|| panic!("{line}: {:?}", String::from_utf8_lossy(&answer)))
}

async fn exchange<C>(mut connection: C, line: &str, headers: &[&str]) -> Vec<u8>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let mut text = format!("{line} HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n");
    for header in headers {
        text += header;
        text += "\r\n";
    }
    text += "\r\n";
    let exchange = async {
        connection.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A peer that refuses early may reset what it has not read.
        let _ = connection.read_to_end(&mut answer).await;
        answer
    };
    let answer = timeout(Duration::from_secs(20), exchange).await;
    answer.unwrap_or_else(|_| panic!("no answer to {line}"))
}

/// Asks for another protocol, and reads the head of the answer alone: behind 101 is a tunnel.
pub async fn upgrade(to: SocketAddr, line: &str, headers: &[&str]) -> Answer {
    let mut connection = TcpStream::connect(to).await.unwrap();
    let headers = headers.join("\r\n");
    let text = format!("{line} HTTP/1.1\r\nHost: api.example\r\n{headers}\r\n\r\n");
    connection.write_all(text.as_bytes()).await.unwrap();
    let head = timeout(Duration::from_secs(20), read_head(&mut connection)).await;
    let head = head.unwrap_or_else(|_| panic!("no answer to {line} {headers}"));
    parse(head.as_bytes()).unwrap()
}

/// Reads one answer of a known length and leaves the connection open.
pub async fn read_head(connection: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    });
    Some(Answer {
        status,
        headers: headers.collect(),
        body: body.to_owned(),
    })
}
