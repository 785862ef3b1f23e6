//! Rows of the catalogue: `/oauth2/token` and the exchange of a code.

pub mod answers;
pub mod codes;
pub mod kill;
pub mod requests;
pub mod tokens;

use std::time::Duration;

use crate::expect::{json_error, summary};
use crate::fixtures::client::basic;
use crate::fixtures::{Answer, Browser, Server, TestClient, VERIFIER, log, raw};

pub const TOKEN: &str = "/oauth2/token";

pub const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");

/// `web`, and the browser of alice, who has signed in and given consent.
pub struct Flow {
    pub web: TestClient,
    pub alice: Browser,
}

impl Flow {
    /// Creates `web`, and the browser of `alice` with a session and consent. The session is written to the
    /// database, because hashing a password takes longer than the flow.
    pub async fn begin(server: &Server) -> Self {
        let web = server.shop().await;
        let mut alice = server.enters("alice").await;
        alice.allows(&web).await;
        Self { web, alice }
    }

    pub async fn code(&mut self) -> String {
        self.alice.allows(&self.web).await
    }
}

/// Returns the body of a valid token request and its `Authorization` header.
pub fn valid(web: &TestClient, code: &str) -> (String, String) {
    let fields = [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", web.redirect_uri()),
        ("code_verifier", VERIFIER),
    ];
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish();
    (body, basic(web.id(), web.secret.as_ref().unwrap().expose()))
}

pub async fn posts(server: &Server, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    server
        .browser()
        .send("POST", path, headers, Some(body.to_owned()))
        .await
}

/// Sends these bytes and returns the response.
pub async fn send_raw(base: &str, request: Vec<u8>) -> Answer {
    raw::bytes(base, request).await.expect("an answer")
}

/// Checks that the code can be exchanged for tokens.
pub async fn code_is_active(web: &TestClient, code: &str) -> Result<(), String> {
    let answer = web.redeems(code).await;
    if answer.status == 200 {
        Ok(())
    } else {
        Err(format!("the code is consumed: {}", summary(&answer)))
    }
}

/// Checks that the code is rejected.
pub async fn code_is_consumed(web: &TestClient, code: &str) -> Result<(), String> {
    json_error(&web.redeems(code).await, 400, "invalid_grant")
}

/// Checks that no log event of this request contains the text.
pub fn not_logged(answer: &Answer, text: &str) -> Result<(), String> {
    let events = log::of(answer.header("x-request-id").unwrap_or_default());
    let told = events
        .iter()
        .find(|event| event.values().any(|value| value.contains(text)));
    told.map_or(Ok(()), |event| {
        Err(format!("the log contains it: {event:?}"))
    })
}

/// Checks the severity of an event of this request.
pub fn severity(answer: &Answer, event: &str, wanted: &str) -> Result<(), String> {
    let events = log::of(answer.header("x-request-id").unwrap_or_default());
    let found = events
        .iter()
        .find(|found| found.get("event").is_some_and(|name| name == event));
    match found.and_then(|event| event.get("severity")) {
        Some(severity) if severity == wanted => Ok(()),
        other => Err(format!("severity of {event}: got {other:?}, want {wanted}")),
    }
}

pub fn median(samples: &mut [Duration]) -> Duration {
    samples.sort();
    samples[samples.len() / 2]
}
