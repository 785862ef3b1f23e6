//! A minimal service behind a proxy. It echoes the requests that reach it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};

/// Starts a service. The response body contains the request line and the headers it received.
pub async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(BufStream::new(connection)));
        }
    });
    address
}

/// Serves requests until the proxy closes the connection.
async fn serve(mut connection: BufStream<TcpStream>) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(connection.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).replace("\r\n", "\n");
        // Accepts every protocol that is offered.
        if let Some(protocol) = value_in(&head, "upgrade") {
            let response = format!(
                "HTTP/1.1 101 Mine\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            );
            connection.write_all(response.as_bytes()).await?;
            return connection.flush().await;
        }
        let mut body = vec![0; length_in(&head)];
        connection.read_exact(&mut body).await?;
        // A refusal by the service itself, which tests must be able to tell from one by the proxy.
        let status = if head.contains("/teapot") {
            "403 Mine"
        } else {
            "200 OK"
        };
        let body = format!("reached\n{head}");
        let length = body.len();
        let response = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
        connection.write_all(response.as_bytes()).await?;
        connection.flush().await?;
    }
}

fn length_in(head: &str) -> usize {
    value_in(head, "content-length").map_or(0, |length| length.parse().unwrap())
}

fn value_in(head: &str, name: &str) -> Option<String> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut found = fields.filter(|(known, _)| known.eq_ignore_ascii_case(name));
    found.next().map(|(_, value)| value.trim().to_owned())
}
