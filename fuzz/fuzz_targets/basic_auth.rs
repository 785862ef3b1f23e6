//! Client authentication with an `Authorization` header and a form. The input is the header, a line end,
//! and the form.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use portcullis::oauth::client_auth::read_credentials;
use portcullis::oauth::request::params::Params;

fuzz_target!(|data: &[u8]| {
    let cut = data.iter().position(|byte| *byte == b'\n');
    let (header, form) = data.split_at(cut.unwrap_or(data.len()));
    let Ok(form) = Params::parse(form.get(1..).unwrap_or_default()) else {
        return;
    };
    if let Ok(credentials) = read_credentials(&[header], &form) {
        assert!(!credentials.client_id.as_str().is_empty());
        assert!(header.len() > 6 && header[..6].eq_ignore_ascii_case(b"basic "));
        let body_id = form.one("client_id").unwrap_or(Some(""));
        assert!(body_id.is_none_or(|id| id == credentials.client_id.as_str()));
        assert_eq!(form.one("client_secret"), Ok(None), "one method at a time");
        assert!(!form.has("client_assertion"));
    }
    if let Ok(credentials) = read_credentials(&[], &form) {
        assert_eq!(
            form.one("client_id"),
            Ok(Some(credentials.client_id.as_str()))
        );
    }
    assert!(read_credentials(&[header, header], &form).is_err());
    // Credentials that are encoded as in RFC 6749 §2.3.1 are decoded to their original values.
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Some((id, secret)) = text.split_once('\n') else {
        return;
    };
    let plain = |half: &str| !half.is_empty() && !half.chars().any(char::is_control);
    if plain(id) && plain(secret) {
        let encoded =
            |half: &str| form_urlencoded::byte_serialize(half.as_bytes()).collect::<String>();
        let pair = STANDARD.encode(format!("{}:{}", encoded(id), encoded(secret)));
        let header = format!("Basic {pair}");
        let credentials = read_credentials(&[header.as_bytes()], &Params::default());
        assert_eq!(credentials.expect("well encoded").client_id.as_str(), id);
    }
});
