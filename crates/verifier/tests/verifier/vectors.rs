//! Tests of the golden files in `vectors/`: this verifier has the expected verdicts, and the
//! generator produces the same files.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use portcullis_verifier::{JwkSet, Kind, Need, Record, Records, Verifier};
use serde_json::Value;

use crate::{vector_frames, vector_tokens};

fn path(file: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors")).join(file)
}

fn generate() -> [(&'static str, String); 3] {
    [
        ("tokens.json", vector_tokens::file()),
        ("records.json", vector_frames::records()),
        ("frames.json", vector_frames::frames()),
    ]
    .map(|(name, file)| (name, serde_json::to_string_pretty(&file).unwrap() + "\n"))
}

fn read(file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(path(file)).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    let strings = value.as_array().into_iter().flatten();
    strings
        .map(|string| string.as_str().unwrap().to_owned())
        .collect()
}

/// Writes the files if `PORTCULLIS_WRITE_VECTORS` is set.
#[test]
fn vectors_match_generator() {
    for (name, file) in generate() {
        if std::env::var_os("PORTCULLIS_WRITE_VECTORS").is_some() {
            fs::write(path(name), &file).unwrap();
        }
        let stored = fs::read_to_string(path(name)).unwrap();
        assert!(stored == file, "{name} differs from the generated file");
    }
}

#[test]
fn token_vectors_have_expected_verdicts() {
    let file = read("tokens.json");
    let keys: JwkSet = serde_json::from_value(file["jwks"].clone()).unwrap();
    let text = |name: &str| file[name].as_str().unwrap();
    let verifier = Verifier::builder(text("issuer"), text("audience"))
        .leeway(Duration::from_secs(file["leeway"].as_u64().unwrap()))
        .keys(keys)
        .build()
        .unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() > 100);
    for case in cases {
        let mut need = Need::any();
        for scope in strings(&case["need"]["scope"]) {
            need = need.and(scope);
        }
        if !case["need"]["one_of"].is_null() {
            need = need.and_one_of(strings(&case["need"]["one_of"]));
        }
        need = need.acr(strings(&case["need"]["acr"]));
        if let Some(secs) = case["need"]["authenticated_within"].as_u64() {
            need = need.authenticated_within(Duration::from_secs(secs));
        }
        let now = case["now"].as_u64().or(file["now"].as_u64()).unwrap();
        let token = case["token"].as_str().unwrap();
        // The second verification uses the token cache.
        for _ in 0..2 {
            let (verdict, status, challenge) = match verifier.verify_at(token, &need, now) {
                Ok(_) => ("ok", 200, None),
                Err(rejected) => (
                    rejected.reason(),
                    rejected.status(),
                    Some(rejected.www_authenticate("api")),
                ),
            };
            assert_eq!(verdict, case["verdict"], "{}", case["name"]);
            assert_eq!(status, case["status"], "{}", case["name"]);
            assert_eq!(challenge.as_deref(), case["www_authenticate"].as_str());
        }
    }
}

#[test]
fn record_vectors_have_expected_bytes() {
    let file = read("records.json");
    for case in file["records"].as_array().unwrap() {
        let number = |name: &str| u32::try_from(case[name].as_u64().unwrap()).unwrap();
        let letter = case["kind"].as_str().unwrap().chars().next().unwrap();
        let kind = Kind::from_letter(letter).unwrap();
        let value = case["value"].as_str().unwrap();
        let record = Record::new(kind, value, number("floor"), number("expires"));
        assert_eq!(vector_frames::hex(&record.pack()), case["packed"]);
    }
    for case in file["lists"].as_array().unwrap() {
        let list =
            Records::decode(case["encoded"].as_str().unwrap()).map(|list| list.0.len() as u64);
        assert_eq!(list.ok(), case["length"].as_u64(), "{}", case["name"]);
    }
}
