//! An HTTP client that sends requests byte for byte. A library would normalize `/../` and merge
//! duplicate headers.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A response.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    /// Returns the value of a header, or an empty string if it is absent. Panics if it is present
    /// twice.
    pub fn header(&self, name: &str) -> &str {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        match (found.next(), found.next()) {
            (Some((_, value)), None) => value,
            (None, _) => "",
            _ => panic!("{name} is present twice: {self:?}"),
        }
    }
}

/// Sends a request with a line such as `GET /path` and these header lines.
pub async fn send(to: SocketAddr, line: &str, headers: &[&str]) -> Response {
    let connection = TcpStream::connect(to).await.unwrap();
    send_on(connection, line, headers).await
}

/// Like [`send`], for a server that may not be up yet. Returns `None` if it does not respond.
pub async fn try_send(to: SocketAddr, line: &str) -> Option<Response> {
    let connection = TcpStream::connect(to).await.ok()?;
    let response = exchange(connection, line, &[]).await;
    parse(&response)
}

/// Like [`send`], over an existing connection, which is closed afterwards.
pub async fn send_on<C>(connection: C, line: &str, headers: &[&str]) -> Response
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let response = exchange(connection, line, headers).await;
    parse(&response).unwrap_or_else(|| panic!("{line}: {:?}", String::from_utf8_lossy(&response)))
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
        let mut response = Vec::new();
        // A server that refuses a request early may reset the connection.
        let _ = connection.read_to_end(&mut response).await;
        response
    };
    let response = timeout(Duration::from_secs(20), exchange).await;
    response.unwrap_or_else(|_| panic!("no response to {line}"))
}

/// Sends a request with `Upgrade` and reads only the head of the response, because after 101 the
/// connection is a tunnel.
pub async fn upgrade(to: SocketAddr, line: &str, headers: &[&str]) -> Response {
    let mut connection = TcpStream::connect(to).await.unwrap();
    let headers = headers.join("\r\n");
    let text = format!("{line} HTTP/1.1\r\nHost: api.example\r\n{headers}\r\n\r\n");
    connection.write_all(text.as_bytes()).await.unwrap();
    let head = timeout(Duration::from_secs(20), read_head(&mut connection)).await;
    let head = head.unwrap_or_else(|_| panic!("no response to {line} {headers}"));
    parse(head.as_bytes()).unwrap()
}

/// Reads the head of one message and leaves the connection open.
pub async fn read_head(connection: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn parse(response: &[u8]) -> Option<Response> {
    let text = String::from_utf8_lossy(response);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    });
    Some(Response {
        status,
        headers: headers.collect(),
        body: body.to_owned(),
    })
}
