//! Rows of the catalogue: malformed, repeated, oversized and hostile requests to `/oauth2/authorize`.

pub mod answers;
pub mod requests;
pub mod user_parameters;
pub mod values;

use crate::Stage;
use crate::fixtures::{Answer, TestClient};

pub const STATE: Option<&str> = Some("st-4711");

pub const AUTHORIZE: &str = "/oauth2/authorize";

/// Returns the first of two errors, if any.
pub fn both(first: Result<(), String>, second: Result<(), String>) -> Result<(), String> {
    first.and(second)
}

/// Sends a form POST as another site would: without the `Lax` cookies.
pub async fn posts_across(stage: &Stage, case: usize, body: String) -> Answer {
    let mut anonymous = stage.node(case).browser();
    let headers = [
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Origin", "https://app.example"),
        ("Sec-Fetch-Site", "cross-site"),
    ];
    anonymous
        .send("POST", AUTHORIZE, &headers, Some(body))
        .await
}

pub fn form(fields: &[(String, String)]) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish()
}

/// Appends one parameter to the request as raw text.
pub fn with_raw(web: &TestClient, name: &str, raw: &str) -> String {
    format!("{}&{name}={raw}", web.request(&[(name, "")]))
}
