//! Forged tokens.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use p256::pkcs8::{EncodePublicKey, LineEnding};
use portcullis_verifier::{Claims, JwkSet, Need, Rejected, Verifier};

use crate::signer::{AUDIENCE, ISSUER, NOW, Signer, claims, unsigned};

fn verify(signer: &Signer, token: &str) -> Result<Claims, Rejected> {
    signer.verifier().verify_at(token, &Need::any(), NOW)
}

fn payload() -> String {
    serde_json::to_string(&claims()).unwrap()
}

/// Verifies a correctly signed token with this header.
fn verify_header(header: &str) -> Result<Claims, Rejected> {
    let signer = Signer::es256(1);
    let header = header.replace("KID", signer.kid());
    verify(&signer, &signer.sign(&header, &payload()))
}

#[test]
fn unsigned_tokens_are_rejected() {
    for alg in ["none", "None", "nOnE", ""] {
        let header = format!(r#"{{"alg":"{alg}","typ":"at+jwt","kid":"KID"}}"#);
        assert_eq!(verify_header(&header), Err(Rejected::Algorithm), "{alg}");
        let signer = Signer::es256(1);
        let stripped = unsigned(&header.replace("KID", signer.kid()), &payload()) + ".";
        assert_eq!(
            verify(&signer, &stripped),
            Err(Rejected::Algorithm),
            "{alg}"
        );
    }
}

#[test]
fn public_key_is_not_accepted_as_hmac_secret() {
    let signer = Signer::es256(1);
    let header = format!(
        r#"{{"alg":"HS256","typ":"at+jwt","kid":"{}"}}"#,
        signer.kid()
    );
    let message = unsigned(&header, &payload());
    let public = p256::SecretKey::from_slice(&[1; 32]).unwrap().public_key();
    let jwk = serde_json::to_vec(&signer.jwk).unwrap();
    let der = public.to_public_key_der().unwrap().into_vec();
    let pem = public
        .to_public_key_pem(LineEnding::LF)
        .unwrap()
        .into_bytes();
    for secret in [jwk, der, pem] {
        let key = EncodingKey::from_secret(&secret);
        let mac = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        assert_eq!(
            verify(&signer, &format!("{message}.{mac}")),
            Err(Rejected::Algorithm)
        );
    }
}

#[test]
fn algorithm_must_be_that_of_the_key() {
    let (ec, rsa) = (Signer::es256(1), Signer::rs256());
    let keys = JwkSet {
        keys: vec![ec.jwk.clone(), rsa.jwk.clone()],
    };
    let verifier = Verifier::builder(ISSUER, AUDIENCE)
        .keys(keys)
        .build()
        .unwrap();
    for (signer, kid) in [(&rsa, ec.kid()), (&ec, rsa.kid())] {
        let header = signer.header().replace(signer.kid(), kid);
        let token = signer.sign(&header, &payload());
        assert_eq!(
            verifier.verify_at(&token, &Need::any(), NOW),
            Err(Rejected::Algorithm)
        );
    }
}

#[test]
fn malformed_ecdsa_signatures_are_rejected() {
    let signer = Signer::es256(1);
    let message = unsigned(&signer.header(), &payload());
    let order = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let order: Vec<u8> = (0..64)
        .step_by(2)
        .map(|at| u8::from_str_radix(&order[at..at + 2], 16).unwrap())
        .collect();
    let honest = signer.sign(&signer.header(), &payload());
    let honest = URL_SAFE_NO_PAD
        .decode(honest.rsplit_once('.').unwrap().1)
        .unwrap();
    let der = p256::ecdsa::Signature::from_slice(&honest)
        .unwrap()
        .to_der();
    for (why, signature) in [
        ("r = s = 0", vec![0; 64]),
        ("r = s = n", [order.clone(), order.clone()].concat()),
        ("r = 0", [&[0; 32], &honest[32..]].concat()),
        ("s = 0", [&honest[..32], &[0; 32]].concat()),
        ("s = n", [&honest[..32], &order].concat()),
        ("above n", vec![0xff; 64]),
        ("65 bytes", [honest.as_slice(), &[0]].concat()),
        ("63 bytes", honest[..63].to_vec()),
        ("DER", der.as_bytes().to_vec()),
        ("none", vec![]),
    ] {
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
        assert_eq!(verify(&signer, &token), Err(Rejected::Signature), "{why}");
    }
}

#[test]
fn other_jwt_types_are_rejected() {
    for typ in ["JWT", "logout+jwt", "dpop+jwt", "revocation-frame+jwt", ""] {
        let header = format!(r#"{{"alg":"ES256","typ":"{typ}","kid":"KID"}}"#);
        assert_eq!(verify_header(&header), Err(Rejected::Type), "{typ}");
    }
    assert_eq!(
        verify_header(r#"{"alg":"ES256","kid":"KID"}"#),
        Err(Rejected::Type)
    );
    assert!(verify_header(r#"{"alg":"ES256","typ":"application/AT+JWT","kid":"KID"}"#).is_ok());
}

#[test]
fn critical_extensions_are_rejected() {
    for crit in [r#"["b64"],"b64":false"#, r#"["exp"]"#, "[]", "null"] {
        let header = format!(r#"{{"alg":"ES256","typ":"at+jwt","kid":"KID","crit":{crit}}}"#);
        assert_eq!(verify_header(&header), Err(Rejected::Malformed), "{crit}");
    }
}

#[test]
fn missing_or_unknown_kid_is_rejected() {
    assert_eq!(
        verify_header(r#"{"alg":"ES256","typ":"at+jwt"}"#),
        Err(Rejected::UnknownKey)
    );
    for kid in ["", "../../keys", "' OR 1=1 --", "KID ", "kid\\u0000"] {
        let header = format!(r#"{{"alg":"ES256","typ":"at+jwt","kid":"{kid}"}}"#);
        assert_eq!(verify_header(&header), Err(Rejected::UnknownKey), "{kid}");
    }
}

#[test]
fn keys_in_token_header_are_ignored() {
    let (issuer, attacker) = (Signer::es256(1), Signer::es256(66));
    let jwk = serde_json::to_string(&attacker.jwk).unwrap();
    let key_members = format!(
        r#""jwk":{jwk},"jku":"http://127.0.0.1:1/","x5u":"http://127.0.0.1:1/","x5c":["AA"]"#
    );
    let header = |kid| format!(r#"{{"alg":"ES256","typ":"at+jwt","kid":"{kid}",{key_members}}}"#);
    let forged = |kid| verify(&issuer, &attacker.sign(&header(kid), &payload()));
    assert_eq!(forged(attacker.kid()), Err(Rejected::UnknownKey));
    assert_eq!(forged(issuer.kid()), Err(Rejected::Signature));
    // The members are ignored, so a token that is otherwise valid is accepted.
    assert!(verify(&issuer, &issuer.sign(&header(issuer.kid()), &payload())).is_ok());
}

#[test]
fn changed_claim_invalidates_signature() {
    let signer = Signer::es256(1);
    let token = signer.token(&claims());
    let (message, signature) = token.rsplit_once('.').unwrap();
    let admin = unsigned(&signer.header(), &payload().replace("alice", "admin"));
    assert_ne!(message, admin);
    assert_eq!(
        verify(&signer, &format!("{admin}.{signature}")),
        Err(Rejected::Signature)
    );
}
