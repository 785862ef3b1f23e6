//! Published keys (RFC 7517), as a verifier parses them.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use portcullis_verifier::{JwkSet, Keys};

fuzz_target!(|json: &[u8]| {
    let Ok(set) = serde_json::from_slice::<JwkSet>(json) else {
        return;
    };
    let kids: Vec<&str> = set
        .keys
        .iter()
        .filter_map(|key| key.kid.as_deref())
        .collect();
    let distinct: HashSet<&&str> = kids.iter().collect();
    for key in &set.keys {
        let _ = key.thumbprint();
    }
    match Keys::parse(&set) {
        Err(_) => assert!(
            distinct.len() < kids.len(),
            "refused without a repeated kid"
        ),
        Ok(keys) => {
            assert_eq!(distinct.len(), kids.len(), "a repeated kid was accepted");
            assert!(keys.len() <= kids.len());
            for jwk in &set.keys {
                let found = jwk.kid.as_deref().and_then(|kid| keys.find(kid));
                if let Some(key) = found {
                    assert_eq!(jwk.alg.as_deref(), Some(key.algorithm().name()));
                    assert_eq!(jwk.use_.as_deref(), Some("sig"));
                }
            }
            // The set that the server would publish from it is parsed to the same keys.
            let again = serde_json::to_vec(&set).expect("JSON");
            let again: JwkSet = serde_json::from_slice(&again).expect("the serialized set");
            assert_eq!(
                Keys::parse(&again).map(|keys| keys.len()).ok(),
                Some(keys.len())
            );
        }
    }
});
