//! A token that was seen before: quicker, and judged no less.

use portcullis_verifier::{Claims, JwkSet, Need, Rejected, Verifier};

use crate::signer::{AUDIENCE, NOW, Signer, claims};

fn set(signers: &[&Signer]) -> JwkSet {
    JwkSet {
        keys: signers.iter().map(|signer| signer.jwk.clone()).collect(),
    }
}

fn at(verifier: &Verifier, token: &str, now: u64) -> Result<Claims, Rejected> {
    verifier.verify_at(token, &Need::any(), now)
}

#[test]
fn the_second_sight_says_what_the_first_said() {
    for remembered in [0, 8192] {
        let signer = Signer::es256(1);
        let verifier = signer.known().remember(remembered).build().unwrap();
        let token = signer.token(&claims());
        for _ in 0..3 {
            assert_eq!(at(&verifier, &token, NOW), Ok(claims()));
        }
    }
}

#[test]
fn time_and_need_are_looked_at_each_time() {
    let signer = Signer::es256(1);
    let verifier = signer.verifier();
    let token = signer.token(&claims());
    assert!(at(&verifier, &token, NOW).is_ok());
    let exp = claims().exp;
    assert!(at(&verifier, &token, exp + 29).is_ok());
    assert_eq!(at(&verifier, &token, NOW - 31), Err(Rejected::NotYetValid));
    assert_eq!(at(&verifier, &token, exp + 30), Err(Rejected::Expired));
    assert_eq!(at(&verifier, &token, exp + 31), Err(Rejected::Expired));
    assert!(
        at(&verifier, &token, NOW).is_ok(),
        "by a clock that went back"
    );
    let lacking = verifier.verify_at(&token, &Need::scope("admin"), NOW);
    assert!(matches!(lacking, Err(Rejected::Scope { .. })));
    let weak = verifier.verify_at(&token, &Need::any().acr(["9"]), NOW);
    assert!(matches!(weak, Err(Rejected::StepUp { .. })));
}

#[test]
fn a_key_that_is_gone_takes_its_tokens_along() {
    let (old, new) = (Signer::es256(1), Signer::es256(2));
    let verifier = old.verifier();
    let token = old.token(&claims());
    assert!(at(&verifier, &token, NOW).is_ok());
    verifier.replace_keys(&set(&[&new])).unwrap();
    assert_eq!(at(&verifier, &token, NOW), Err(Rejected::UnknownKey));
    verifier.replace_keys(&set(&[&old, &new])).unwrap();
    assert!(at(&verifier, &token, NOW).is_ok());
}

#[test]
fn another_key_of_the_same_name_does_not_inherit() {
    let (old, new) = (Signer::es256(1), Signer::es256(2));
    let verifier = old.verifier();
    let token = old.token(&claims());
    assert!(at(&verifier, &token, NOW).is_ok());
    let mut same_name = new.jwk.clone();
    same_name.kid = old.jwk.kid.clone();
    verifier
        .replace_keys(&JwkSet {
            keys: vec![same_name],
        })
        .unwrap();
    assert_eq!(at(&verifier, &token, NOW), Err(Rejected::Signature));
}

#[test]
fn a_token_that_differs_in_its_last_letter_is_another() {
    let signer = Signer::es256(1);
    let verifier = signer.verifier();
    let token = signer.token(&claims());
    assert!(at(&verifier, &token, NOW).is_ok());
    // The last of 86 letters carries four bits of the signature, and two that must be zero.
    let (start, last) = token.split_at(token.len() - 1);
    let other = if last == "A" { "Q" } else { "A" };
    assert_eq!(
        at(&verifier, &format!("{start}{other}"), NOW),
        Err(Rejected::Signature)
    );
}

#[test]
fn what_one_verifier_saw_is_nothing_to_another() {
    let signer = Signer::es256(1);
    let token = signer.token(&claims());
    assert!(at(&signer.verifier(), &token, NOW).is_ok());
    let other = Verifier::builder(crate::signer::ISSUER, format!("{AUDIENCE}/other"))
        .keys(set(&[&signer]))
        .build()
        .unwrap();
    assert_eq!(at(&other, &token, NOW), Err(Rejected::Audience));
    assert_eq!(at(&other, &token, NOW), Err(Rejected::Audience));
}

#[test]
fn many_callers_see_many_tokens() {
    let signer = Signer::es256(1);
    // Far less room than tokens: rows overflow, and slots change hands while others read them.
    let verifier = signer.known().remember(16).build().unwrap();
    let tokens: Vec<_> = (0..40)
        .map(|number| {
            let named = Claims {
                sub: format!("user-{number}"),
                ..claims()
            };
            (signer.token(&named), named)
        })
        .collect();
    std::thread::scope(|scope| {
        for shift in 0..4 {
            let (verifier, tokens) = (&verifier, &tokens);
            scope.spawn(move || {
                for turn in 0..200 {
                    let (token, named) = &tokens[(turn * 7 + shift) % tokens.len()];
                    assert_eq!(at(verifier, token, NOW).as_ref(), Ok(named));
                }
            });
        }
    });
}
