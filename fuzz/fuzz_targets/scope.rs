//! Scopes (RFC 6749 §3.3). The input is one scope, a line end, and another scope.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::oauth::request::scope::Scope;

fuzz_target!(|text: &str| {
    let (one, two) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(one) = Scope::parse(one) else {
        return;
    };
    assert!(one.iter().count() <= 32);
    for token in one.iter() {
        let allowed = |b: u8| b == 0x21 || (0x23..=0x5B).contains(&b) || (0x5D..=0x7E).contains(&b);
        assert!(!token.is_empty() && token.bytes().all(allowed), "{token:?}");
    }
    assert_eq!(Scope::parse(&one.to_string()).as_ref(), Ok(&one));
    assert!(one.is_within(&one));
    let Ok(two) = Scope::parse(two) else {
        return;
    };
    let both = one.union(&two);
    assert!(one.is_within(&both) && two.is_within(&both));
    let common = one.retain(|token| two.contains(token));
    assert!(common.is_within(&one) && common.is_within(&two));
    assert_eq!(one.is_within(&two), common == one);
});
