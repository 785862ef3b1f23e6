//! The `claims` parameter (OIDC Core §5.5).
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::oauth::request::claims_request::ClaimsRequest;
use serde_json::Value;

/// Returns the nesting depth of a value.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fuzz_target!(|text: &str| {
    let Ok(request) = ClaimsRequest::parse(text) else {
        return;
    };
    let value: Value = serde_json::from_str(text).expect("JSON");
    assert!(value.is_object() && depth(&value) <= 8, "{value}");
    let acr = value.pointer("/id_token/acr");
    let essential = acr.is_some_and(|acr| acr["essential"] == true);
    assert_eq!(request.essential_acr.is_some(), essential);
});
