//! Verification of cached tokens, which must have the same results as the first verification.

use portcullis_verifier::{Claims, JwkSet, Need, Rejected, Verifier};

use crate::signer::{AUDIENCE, NOW, Signer, claims};

fn set(signers: &[&Signer]) -> JwkSet {
    JwkSet {
        keys: signers.iter().map(|signer| signer.jwk.clone()).collect(),
    }
}

fn verify_at(verifier: &Verifier, token: &str, now: u64) -> Result<Claims, Rejected> {
    verifier.verify_at(token, &Need::any(), now)
}

#[test]
fn cached_token_has_same_result() {
    for capacity in [0, 8192] {
        let signer = Signer::es256(1);
        let verifier = signer.known().remember(capacity).build().unwrap();
        let token = signer.token(&claims());
        for _ in 0..3 {
            assert_eq!(verify_at(&verifier, &token, NOW), Ok(claims()));
        }
    }
}

#[test]
fn cached_token_is_checked_for_time_and_need() {
    let signer = Signer::es256(1);
    let verifier = signer.verifier();
    let token = signer.token(&claims());
    assert!(verify_at(&verifier, &token, NOW).is_ok());
    let exp = claims().exp;
    assert!(verify_at(&verifier, &token, exp + 29).is_ok());
    assert_eq!(
        verify_at(&verifier, &token, NOW - 31),
        Err(Rejected::NotYetValid)
    );
    assert_eq!(
        verify_at(&verifier, &token, exp + 30),
        Err(Rejected::Expired)
    );
    assert_eq!(
        verify_at(&verifier, &token, exp + 31),
        Err(Rejected::Expired)
    );
    assert!(
        verify_at(&verifier, &token, NOW).is_ok(),
        "valid again after the clock was set back"
    );
    let lacking = verifier.verify_at(&token, &Need::scope("admin"), NOW);
    assert!(matches!(lacking, Err(Rejected::Scope { .. })));
    let weak = verifier.verify_at(&token, &Need::any().acr(["9"]), NOW);
    assert!(matches!(weak, Err(Rejected::StepUp { .. })));
}

#[test]
fn removed_key_invalidates_cached_tokens() {
    let (old, new) = (Signer::es256(1), Signer::es256(2));
    let verifier = old.verifier();
    let token = old.token(&claims());
    assert!(verify_at(&verifier, &token, NOW).is_ok());
    verifier.replace_keys(&set(&[&new])).unwrap();
    assert_eq!(verify_at(&verifier, &token, NOW), Err(Rejected::UnknownKey));
    verifier.replace_keys(&set(&[&old, &new])).unwrap();
    assert!(verify_at(&verifier, &token, NOW).is_ok());
}

#[test]
fn replaced_key_with_same_kid_invalidates_cached_tokens() {
    let (old, new) = (Signer::es256(1), Signer::es256(2));
    let verifier = old.verifier();
    let token = old.token(&claims());
    assert!(verify_at(&verifier, &token, NOW).is_ok());
    let mut same_kid = new.jwk.clone();
    same_kid.kid = old.jwk.kid.clone();
    verifier
        .replace_keys(&JwkSet {
            keys: vec![same_kid],
        })
        .unwrap();
    assert_eq!(verify_at(&verifier, &token, NOW), Err(Rejected::Signature));
}

#[test]
fn token_differing_in_last_character_is_not_cached() {
    let signer = Signer::es256(1);
    let verifier = signer.verifier();
    let token = signer.token(&claims());
    assert!(verify_at(&verifier, &token, NOW).is_ok());
    // The last of 86 characters encodes two bits of the signature and four bits that must be zero.
    let (start, last) = token.split_at(token.len() - 1);
    let other = if last == "A" { "Q" } else { "A" };
    assert_eq!(
        verify_at(&verifier, &format!("{start}{other}"), NOW),
        Err(Rejected::Signature)
    );
}

#[test]
fn verifiers_do_not_share_token_cache() {
    let signer = Signer::es256(1);
    let token = signer.token(&claims());
    assert!(verify_at(&signer.verifier(), &token, NOW).is_ok());
    let other = Verifier::builder(crate::signer::ISSUER, format!("{AUDIENCE}/other"))
        .keys(set(&[&signer]))
        .build()
        .unwrap();
    assert_eq!(verify_at(&other, &token, NOW), Err(Rejected::Audience));
    assert_eq!(verify_at(&other, &token, NOW), Err(Rejected::Audience));
}

#[test]
fn token_cache_is_safe_under_concurrency() {
    let signer = Signer::es256(1);
    // There are more tokens than slots, so slots are overwritten while other threads read them.
    let verifier = signer.known().remember(16).build().unwrap();
    let tokens: Vec<_> = (0..40)
        .map(|number| {
            let claims = Claims {
                sub: format!("user-{number}"),
                ..claims()
            };
            (signer.token(&claims), claims)
        })
        .collect();
    std::thread::scope(|scope| {
        for shift in 0..4 {
            let (verifier, tokens) = (&verifier, &tokens);
            scope.spawn(move || {
                for turn in 0..200 {
                    let (token, claims) = &tokens[(turn * 7 + shift) % tokens.len()];
                    assert_eq!(verify_at(verifier, token, NOW).as_ref(), Ok(claims));
                }
            });
        }
    });
}
