//! An issuer on loopback: as much HTTP as a verifier needs, and answers that a test can change.

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
pub struct Answer {
    pub status: u16,
    /// Whole lines, each with its end.
    pub headers: String,
    pub body: String,
}

pub fn ok(body: impl Into<String>) -> Answer {
    Answer {
        status: 200,
        headers: String::new(),
        body: body.into(),
    }
}

pub fn document(signers: &[&Signer]) -> String {
    let keys = signers.iter().map(|signer| signer.jwk.clone()).collect();
    serde_json::to_string(&JwkSet { keys }).unwrap()
}

pub struct Issuer {
    pub url: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    /// The paths that were asked for, in their order.
    asked: watch::Receiver<Vec<String>>,
}

impl Issuer {
    /// Publishes the keys of these signers.
    pub async fn of(signers: &[&Signer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers = Arc::new(Mutex::new(HashMap::new()));
        let (log, asked) = watch::channel(Vec::new());
        tokio::spawn(serve(listener, answers.clone(), log));
        let issuer = Self {
            url,
            answers,
            asked,
        };
        let discovery = serde_json::json!({
            "issuer": issuer.url,
            "jwks_uri": format!("{}{JWKS}", issuer.url),
        });
        issuer.answers(DISCOVERY, ok(discovery.to_string()));
        issuer.answers(JWKS, ok(document(signers)));
        issuer
    }

    pub fn answers(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    pub fn publishes(&self, signers: &[&Signer]) {
        self.answers(JWKS, ok(document(signers)));
    }

    /// How often the keys were fetched.
    pub fn fetches(&self) -> usize {
        self.asked
            .borrow()
            .iter()
            .filter(|path| *path == JWKS)
            .count()
    }

    pub fn was_asked_for(&self, path: &str) -> bool {
        self.asked.borrow().iter().any(|asked| asked == path)
    }

    /// Waits until the keys were fetched so often.
    pub async fn fetched(&self, times: usize) {
        let often =
            |paths: &Vec<String>| paths.iter().filter(|path| *path == JWKS).count() >= times;
        self.asked.clone().wait_for(often).await.unwrap();
    }

    pub fn verifier(&self) -> Builder {
        Verifier::builder(&self.url, AUDIENCE)
    }
}

async fn serve(
    listener: TcpListener,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    log: watch::Sender<Vec<String>>,
) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let path = path(&mut stream).await;
        log.send_modify(|paths| paths.push(path.clone()));
        let answer = answers.lock().unwrap().get(&path).cloned();
        let Answer {
            status,
            headers,
            body,
        } = answer.unwrap_or(Answer {
            status: 404,
            headers: String::new(),
            body: String::new(),
        });
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
        );
        // Who has seen enough may hang up; that is no fault of this side.
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
