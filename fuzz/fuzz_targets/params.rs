//! A form or query, compared with the WHATWG parser: accepted input has the same meaning for both.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::oauth::request::params::Params;

fuzz_target!(|text: &[u8]| {
    let Ok(params) = Params::parse(text) else {
        return;
    };
    let others: Vec<(String, String)> = form_urlencoded::parse(text).into_owned().collect();
    let names: Vec<&str> = params.names().collect();
    assert!(names.len() <= 64);
    // The WHATWG parser maps all invalid names to this one; ours keeps them apart.
    for name in names.into_iter().filter(|name| !name.contains('\u{FFFD}')) {
        assert!(params.has(name));
        let _ = params.verbatim(name);
        if let Ok(Some(value)) = params.one(name) {
            let theirs: Vec<_> = others.iter().filter(|(other, _)| other == name).collect();
            assert_eq!(theirs.len(), 1, "{name} occurs once");
            assert_eq!(theirs[0].1, value, "{name}");
            assert!(!value.chars().any(char::is_control));
        }
        if params.first_problem().is_none() {
            let ours = params.many(name).unwrap_or_default();
            let theirs = others
                .iter()
                .filter(|(other, value)| other == name && !value.is_empty());
            assert!(ours.into_iter().eq(theirs.map(|(_, value)| value.as_str())));
        }
    }
});
