//! A minimal HTTP server of an issuer on loopback, whose responses a test can change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use portcullis_verifier::{Builder, JwkSet, Verifier};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::signer::{AUDIENCE, Signer};

pub const DISCOVERY: &str = "/.well-known/openid-configuration";
pub const JWKS: &str = "/jwks";

#[derive(Clone)]
pub struct Response {
    pub status: u16,
    /// Complete header lines, including line endings.
    pub headers: String,
    pub body: String,
}

pub fn ok(body: impl Into<String>) -> Response {
    Response {
        status: 200,
        headers: String::new(),
        body: body.into(),
    }
}

/// Returns the JWK set of these signers.
pub fn jwks(signers: &[&Signer]) -> String {
    let keys = signers.iter().map(|signer| signer.jwk.clone()).collect();
    serde_json::to_string(&JwkSet { keys }).unwrap()
}

pub struct Issuer {
    pub url: String,
    responses: Arc<Mutex<HashMap<String, Response>>>,
    /// The paths of all requests in order.
    requests: watch::Receiver<Vec<String>>,
}

impl Issuer {
    /// Starts an issuer that publishes the keys of these signers.
    pub async fn start(signers: &[&Signer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let responses = Arc::new(Mutex::new(HashMap::new()));
        let (log, requests) = watch::channel(Vec::new());
        tokio::spawn(serve(listener, responses.clone(), log));
        let issuer = Self {
            url,
            responses,
            requests,
        };
        let discovery = serde_json::json!({
            "issuer": issuer.url,
            "jwks_uri": format!("{}{JWKS}", issuer.url),
        });
        issuer.respond(DISCOVERY, ok(discovery.to_string()));
        issuer.respond(JWKS, ok(jwks(signers)));
        issuer
    }

    /// Sets the response for a path.
    pub fn respond(&self, path: &str, response: Response) {
        let mut responses = self.responses.lock().unwrap();
        responses.insert(path.to_owned(), response);
    }

    pub fn publish(&self, signers: &[&Signer]) {
        self.respond(JWKS, ok(jwks(signers)));
    }

    /// Returns how often the keys were fetched.
    pub fn fetches(&self) -> usize {
        self.requests
            .borrow()
            .iter()
            .filter(|path| *path == JWKS)
            .count()
    }

    pub fn was_requested(&self, path: &str) -> bool {
        let requests = self.requests.borrow();
        requests.iter().any(|requested| requested == path)
    }

    /// Waits until the keys were fetched `times` times.
    pub async fn wait_for_fetches(&self, times: usize) {
        let is_reached =
            |paths: &Vec<String>| paths.iter().filter(|path| *path == JWKS).count() >= times;
        self.requests.clone().wait_for(is_reached).await.unwrap();
    }

    pub fn verifier(&self) -> Builder {
        Verifier::builder(&self.url, AUDIENCE)
    }
}

async fn serve(
    listener: TcpListener,
    responses: Arc<Mutex<HashMap<String, Response>>>,
    log: watch::Sender<Vec<String>>,
) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let path = path(&mut stream).await;
        log.send_modify(|paths| paths.push(path.clone()));
        let response = responses.lock().unwrap().get(&path).cloned();
        let Response {
            status,
            headers,
            body,
        } = response.unwrap_or(Response {
            status: 404,
            headers: String::new(),
            body: String::new(),
        });
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
        );
        // The client may close the connection before it has read the whole response.
        let _ = stream.write_all((head + &body).as_bytes()).await;
    }
}

async fn path(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else {
            break;
        };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    head.split(' ').nth(1).unwrap_or_default().to_owned()
}
