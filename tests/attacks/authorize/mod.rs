//! Rows of the catalogue: malformed, doubled, oversized and hostile requests to `/oauth2/authorize`.

pub mod answers;
pub mod people;
pub mod requests;
pub mod values;

use crate::Stage;
use crate::fixtures::{Answer, TestClient};

pub const STATE: Option<&str> = Some("st-4711");

pub const AUTHORIZE: &str = "/oauth2/authorize";

/// Both must hold.
pub fn both(first: Result<(), String>, second: Result<(), String>) -> Result<(), String> {
    first.and(second)
}

/// A form POST as another site makes it: without the `Lax` cookies.
pub async fn posts_across(stage: &Stage, case: usize, body: String) -> Answer {
    let mut nobody = stage.node(case).browser();
    let headers = [
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Origin", "https://app.example"),
        ("Sec-Fetch-Site", "cross-site"),
    ];
    nobody.send("POST", AUTHORIZE, &headers, Some(body)).await
}

pub fn form(fields: &[(String, String)]) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish()
}

/// The request with one parameter as raw text at its end.
pub fn with_raw(web: &TestClient, name: &str, raw: &str) -> String {
    format!("{}&{name}={raw}", web.request(&[(name, "")]))
}
