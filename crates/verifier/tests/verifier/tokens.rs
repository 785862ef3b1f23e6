//! Honest tokens: what passes, and each reason why one does not.

use std::time::Duration;

use portcullis_verifier::{Algorithm, Claims, JwkSet, Need, Rejected, Rev, StartError, Verifier};

use crate::signer::{AUDIENCE, ISSUER, NOW, Signer, claims};

fn verdict(claims: &Claims, at: u64) -> Result<Claims, Rejected> {
    let signer = Signer::es256(1);
    signer
        .verifier()
        .verify_at(&signer.token(claims), &Need::any(), at)
}

#[test]
fn a_good_token_passes_with_each_algorithm() {
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
fn a_token_of_a_client_alone_passes() {
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
    assert_eq!(verdict(&service, NOW), Ok(service));
}

#[test]
fn the_system_clock_is_read_where_no_instant_is_given() {
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
fn no_token_is_missing() {
    assert_eq!(
        Signer::es256(1).verifier().verify_at("", &Need::any(), NOW),
        Err(Rejected::Missing)
    );
}

#[test]
fn a_token_ends_at_exp_and_30_seconds() {
    let exp = claims().exp;
    assert!(verdict(&claims(), exp + 29).is_ok());
    assert_eq!(verdict(&claims(), exp + 30), Err(Rejected::Expired));
    assert!(
        verdict(
            &Claims {
                exp: u64::MAX,
                ..claims()
            },
            u64::MAX - 1
        )
        .is_ok()
    );
    assert_eq!(
        verdict(&Claims { exp: 0, ..claims() }, NOW),
        Err(Rejected::Expired)
    );
}

#[test]
fn a_token_does_not_begin_before_iat_or_nbf() {
    assert!(verdict(&claims(), NOW - 30).is_ok());
    assert_eq!(verdict(&claims(), NOW - 31), Err(Rejected::NotYetValid));
    let later = Claims {
        nbf: Some(NOW + 60),
        ..claims()
    };
    assert!(verdict(&later, NOW + 30).is_ok());
    assert_eq!(verdict(&later, NOW + 29), Err(Rejected::NotYetValid));
    // An nbf in the past does not excuse an iat in the future.
    let forged = Claims {
        nbf: Some(0),
        ..claims()
    };
    assert_eq!(verdict(&forged, NOW - 31), Err(Rejected::NotYetValid));
}

#[test]
fn leeway_is_never_more_than_a_minute() {
    let signer = Signer::es256(1);
    let token = signer.token(&claims());
    let verdict = |leeway, at| {
        let verifier = signer
            .known()
            .leeway(Duration::from_secs(leeway))
            .build()
            .unwrap();
        verifier.verify_at(&token, &Need::any(), at).is_ok()
    };
    assert!(!verdict(0, claims().exp));
    assert!(verdict(3600, claims().exp + 59));
    assert!(!verdict(3600, claims().exp + 60));
}

#[test]
fn the_issuer_is_compared_byte_for_byte() {
    for iss in [
        "https://id.example/",
        "https://ID.example",
        "http://id.example",
        "",
        " https://id.example",
    ] {
        let foreign = Claims {
            iss: iss.into(),
            ..claims()
        };
        assert_eq!(verdict(&foreign, NOW), Err(Rejected::Issuer), "{iss}");
    }
}

#[test]
fn a_token_for_another_audience_is_refused() {
    let foreign = Claims {
        aud: "https://other.example".into(),
        ..claims()
    };
    assert_eq!(verdict(&foreign, NOW), Err(Rejected::Audience));

    let signer = Signer::es256(1);
    let userinfo = signer.known().any_audience().build().unwrap();
    assert!(
        userinfo
            .verify_at(&signer.token(&foreign), &Need::any(), NOW)
            .is_ok()
    );
}

#[test]
fn a_scope_that_was_not_granted_is_named() {
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
fn an_expired_token_is_not_asked_for_its_scope() {
    let signer = Signer::es256(1);
    let verdict =
        signer
            .verifier()
            .verify_at(&signer.token(&claims()), &Need::scope("x"), NOW + 9999);
    assert_eq!(verdict, Err(Rejected::Expired));
}

#[test]
fn a_key_of_another_issuer_is_unknown() {
    let (ours, theirs) = (Signer::es256(1), Signer::es256(2));
    let verdict = ours
        .verifier()
        .verify_at(&theirs.token(&claims()), &Need::any(), NOW);
    assert_eq!(verdict, Err(Rejected::UnknownKey));
}

#[test]
fn an_algorithm_can_be_left_out() {
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
fn a_verifier_is_not_built_without_what_it_needs() {
    let builder = || Verifier::builder(ISSUER, AUDIENCE);
    assert!(matches!(builder().build(), Err(StartError::NoKeys)));
    let useless = JwkSet {
        keys: vec![Default::default()],
    };
    assert!(matches!(
        builder().keys(useless).build(),
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
fn keys_by_value_can_be_replaced() {
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

    // What cannot be used changes nothing.
    let refused = verifier.replace_keys(&set(&[])).unwrap_err();
    assert!(matches!(refused, StartError::NoKeys));
    let refused = verifier.replace_keys(&set(&[&old, &old])).unwrap_err();
    assert!(matches!(refused, StartError::DuplicateKid(_)));
    assert_eq!(verdict(&new), Ok(()));
}
