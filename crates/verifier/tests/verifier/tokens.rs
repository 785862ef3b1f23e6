//! Well-formed tokens with a valid signature, and each reason for which they are rejected.

use std::time::Duration;

use portcullis_verifier::{Algorithm, Claims, JwkSet, Need, Rejected, Rev, StartError, Verifier};

use crate::signer::{AUDIENCE, ISSUER, NOW, Signer, claims};

fn verify_claims(claims: &Claims, now: u64) -> Result<Claims, Rejected> {
    let signer = Signer::es256(1);
    signer
        .verifier()
        .verify_at(&signer.token(claims), &Need::any(), now)
}

#[test]
fn valid_tokens_pass_with_each_algorithm() {
    for signer in [Signer::es256(1), Signer::rs256()] {
        let token = signer.token(&claims());
        let need = Need::scope("orders:read").and("orders:write");
        assert_eq!(
            signer.verifier().verify_at(&token, &need, NOW),
            Ok(claims())
        );
    }
}

#[test]
fn client_token_without_user_passes() {
    let service = Claims {
        sub: "shop".into(),
        rev: Rev {
            feed_epoch: 1,
            client_epoch: 2,
            user_epoch: None,
        },
        scope: String::new(),
        grant_id: None,
        sid: None,
        auth_time: None,
        acr: None,
        ..claims()
    };
    assert_eq!(verify_claims(&service, NOW), Ok(service));
}

#[test]
fn verify_uses_system_clock() {
    let signer = Signer::es256(1);
    let ancient = Claims {
        iat: 1000,
        exp: 1300,
        ..claims()
    };
    let verdict = signer
        .verifier()
        .verify(&signer.token(&ancient), &Need::any());
    assert_eq!(verdict, Err(Rejected::Expired));
}

#[test]
fn empty_token_is_missing() {
    assert_eq!(
        Signer::es256(1).verifier().verify_at("", &Need::any(), NOW),
        Err(Rejected::Missing)
    );
}

#[test]
fn token_that_lives_longer_than_an_hour_is_rejected() {
    let lives = |secs: u64| {
        let claims = claims();
        let exp = claims.iat + secs;
        verify_claims(&Claims { exp, ..claims }, NOW).map(drop)
    };
    assert_eq!(lives(3_630), Ok(()), "an hour and the leeway");
    assert_eq!(lives(3_631), Err(Rejected::Claims("exp")));
}

#[test]
fn token_expires_30_seconds_after_exp() {
    let exp = claims().exp;
    assert!(verify_claims(&claims(), exp + 29).is_ok());
    assert_eq!(verify_claims(&claims(), exp + 30), Err(Rejected::Expired));
    // Times at the end of the range do not overflow.
    let last = Claims {
        iat: u64::MAX - 1,
        exp: u64::MAX,
        ..claims()
    };
    assert!(verify_claims(&last, u64::MAX - 1).is_ok());
    assert_eq!(
        verify_claims(&Claims { exp: 0, ..claims() }, NOW),
        Err(Rejected::Expired)
    );
}

#[test]
fn token_is_not_valid_before_iat_or_nbf() {
    assert!(verify_claims(&claims(), NOW - 30).is_ok());
    assert_eq!(
        verify_claims(&claims(), NOW - 31),
        Err(Rejected::NotYetValid)
    );
    let later = Claims {
        nbf: Some(NOW + 60),
        ..claims()
    };
    assert!(verify_claims(&later, NOW + 30).is_ok());
    assert_eq!(verify_claims(&later, NOW + 29), Err(Rejected::NotYetValid));
    // An `nbf` in the past does not make up for an `iat` in the future.
    let forged = Claims {
        nbf: Some(0),
        ..claims()
    };
    assert_eq!(verify_claims(&forged, NOW - 31), Err(Rejected::NotYetValid));
}

#[test]
fn leeway_is_never_more_than_a_minute() {
    let signer = Signer::es256(1);
    let token = signer.token(&claims());
    let is_valid = |leeway, now| {
        let verifier = signer
            .known()
            .leeway(Duration::from_secs(leeway))
            .build()
            .unwrap();
        verifier.verify_at(&token, &Need::any(), now).is_ok()
    };
    assert!(!is_valid(0, claims().exp));
    assert!(is_valid(3600, claims().exp + 59));
    assert!(!is_valid(3600, claims().exp + 60));
}

#[test]
fn issuer_is_compared_byte_for_byte() {
    for iss in [
        "https://id.example/",
        "https://ID.example",
        "http://id.example",
        "",
        " https://id.example",
    ] {
        let other = Claims {
            iss: iss.into(),
            ..claims()
        };
        assert_eq!(verify_claims(&other, NOW), Err(Rejected::Issuer), "{iss}");
    }
}

#[test]
fn other_audience_is_rejected_unless_any_is_accepted() {
    let other = Claims {
        aud: "https://other.example".into(),
        ..claims()
    };
    assert_eq!(verify_claims(&other, NOW), Err(Rejected::Audience));

    let signer = Signer::es256(1);
    let userinfo = signer.known().any_audience().build().unwrap();
    assert!(
        userinfo
            .verify_at(&signer.token(&other), &Need::any(), NOW)
            .is_ok()
    );
}

#[test]
fn missing_scope_error_names_needed_scopes() {
    let signer = Signer::es256(1);
    let need = Need::scope("orders:read").and("orders:delete");
    let refused = signer
        .verifier()
        .verify_at(&signer.token(&claims()), &need, NOW);
    assert_eq!(
        refused,
        Err(Rejected::Scope {
            needed: "orders:read orders:delete".into()
        })
    );
    let needed = "orders:delete".to_owned();
    assert_eq!(
        claims().require("orders:delete"),
        Err(Rejected::Scope { needed })
    );
    assert_eq!(claims().require("orders:read"), Ok(()));
}

#[test]
fn expiry_is_checked_before_scope() {
    let signer = Signer::es256(1);
    let verdict =
        signer
            .verifier()
            .verify_at(&signer.token(&claims()), &Need::scope("x"), NOW + 9999);
    assert_eq!(verdict, Err(Rejected::Expired));
}

#[test]
fn key_of_other_issuer_is_unknown() {
    let (issuer, other) = (Signer::es256(1), Signer::es256(2));
    let verdict = issuer
        .verifier()
        .verify_at(&other.token(&claims()), &Need::any(), NOW);
    assert_eq!(verdict, Err(Rejected::UnknownKey));
}

#[test]
fn omitted_algorithm_is_rejected() {
    let signer = Signer::rs256();
    let verifier = signer
        .known()
        .algorithms(&[Algorithm::ES256])
        .build()
        .unwrap();
    let verdict = verifier.verify_at(&signer.token(&claims()), &Need::any(), NOW);
    assert_eq!(verdict, Err(Rejected::Algorithm));
}

#[test]
fn build_fails_without_keys_or_algorithms() {
    let builder = || Verifier::builder(ISSUER, AUDIENCE);
    assert!(matches!(builder().build(), Err(StartError::NoKeys)));
    let unusable = JwkSet {
        keys: vec![Default::default()],
    };
    assert!(matches!(
        builder().keys(unusable).build(),
        Err(StartError::NoKeys)
    ));
    let key = Signer::es256(1).jwk;
    let twice = JwkSet {
        keys: vec![key.clone(), key],
    };
    assert!(matches!(
        builder().keys(twice).build(),
        Err(StartError::DuplicateKid(_))
    ));
    let none = Signer::es256(1).known().algorithms(&[]).build();
    assert!(matches!(none, Err(StartError::NoAlgorithms)));
}

#[test]
fn replaced_keys_apply_to_all_clones() {
    let (old, new) = (Signer::es256(1), Signer::es256(2));
    let verifier = old.verifier();
    let clone = verifier.clone();
    let set = |signers: &[&Signer]| JwkSet {
        keys: signers.iter().map(|signer| signer.jwk.clone()).collect(),
    };
    let verdict = |signer: &Signer| {
        let token = signer.token(&claims());
        clone.verify_at(&token, &Need::any(), NOW).map(|_| ())
    };
    assert_eq!(verdict(&new), Err(Rejected::UnknownKey));
    verifier.replace_keys(&set(&[&old, &new])).unwrap();
    assert_eq!((verdict(&old), verdict(&new)), (Ok(()), Ok(())));
    verifier.replace_keys(&set(&[&new])).unwrap();
    assert_eq!(verdict(&old), Err(Rejected::UnknownKey));

    // An invalid set changes nothing.
    let refused = verifier.replace_keys(&set(&[])).unwrap_err();
    assert!(matches!(refused, StartError::NoKeys));
    let refused = verifier.replace_keys(&set(&[&old, &old])).unwrap_err();
    assert!(matches!(refused, StartError::DuplicateKid(_)));
    assert_eq!(verdict(&new), Ok(()));
}
