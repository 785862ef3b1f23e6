//! Malformed tokens with a valid signature.

use portcullis_verifier::{Claims, Need, Rejected};

use crate::signer::{AUDIENCE, NOW, Signer, claims};

fn verify(signer: &Signer, token: &str) -> Result<Claims, Rejected> {
    signer.verifier().verify_at(token, &Need::any(), NOW)
}

fn payload() -> String {
    serde_json::to_string(&claims()).unwrap()
}

/// Verifies a correctly signed token with this payload.
fn verify_payload(payload: &str) -> Result<Claims, Rejected> {
    let signer = Signer::es256(1);
    verify(&signer, &signer.sign(&signer.header(), payload))
}

/// Verifies a correctly signed token with one part of its payload replaced.
fn verify_replaced(valid: &str, hostile: &str) -> Result<Claims, Rejected> {
    let payload = payload();
    assert!(payload.contains(valid), "{valid}");
    verify_payload(&payload.replace(valid, hostile))
}

#[test]
fn duplicate_members_are_rejected() {
    assert_eq!(
        verify_replaced(r#""sub":"alice""#, r#""sub":"alice","sub":"admin""#),
        duplicate()
    );
    assert_eq!(
        verify_replaced(r#""exp":"#, r#""exp":9999999999,"exp":"#),
        duplicate()
    );
    let signer = Signer::es256(1);
    let header = signer.header().replace("{", r#"{"alg":"none","#);
    let token = signer.sign(&header, &payload());
    assert_eq!(verify(&signer, &token), Err(Rejected::Malformed));
}

fn duplicate() -> Result<Claims, Rejected> {
    Err(Rejected::Claims("other or duplicate"))
}

#[test]
fn required_claims_must_be_present_and_well_typed() {
    let valid = serde_json::to_value(claims()).unwrap();
    for name in ["iss", "sub", "aud", "client_id", "iat", "exp", "jti", "rev"] {
        let mut without = valid.clone();
        without.as_object_mut().unwrap().remove(name);
        assert_eq!(
            verify_payload(&without.to_string()),
            Err(Rejected::Claims(name)),
            "no {name}"
        );
        for wrong in [
            serde_json::json!(true),
            serde_json::json!({}),
            serde_json::Value::Null,
        ] {
            let mut changed = valid.clone();
            changed[name] = wrong;
            assert_eq!(
                verify_payload(&changed.to_string()),
                Err(Rejected::Claims(name)),
                "wrong {name}"
            );
        }
    }
}

#[test]
fn times_must_be_json_integers() {
    let exp = format!(r#""exp":{}"#, claims().exp);
    for hostile in [
        r#""exp":"9999999999""#,
        r#""exp":-1"#,
        r#""exp":9999999999.0"#,
        r#""exp":1e10"#,
    ] {
        assert_eq!(
            verify_replaced(&exp, hostile),
            Err(Rejected::Claims("exp")),
            "{hostile}"
        );
    }
    for hostile in [
        r#""exp":1e400"#,
        r#""exp":NaN"#,
        r#""exp":0x7fffffff"#,
        r#""exp":09999999999"#,
    ] {
        assert_eq!(
            verify_replaced(&exp, hostile),
            Err(Rejected::Malformed),
            "{hostile}"
        );
    }
    assert_eq!(
        verify_replaced(&exp, &format!(r#"{exp},"nbf":"0""#)),
        Err(Rejected::Claims("nbf"))
    );
}

#[test]
fn multiple_audiences_are_rejected() {
    let aud = format!(r#""aud":"{AUDIENCE}""#);
    let both = format!(r#""aud":["{AUDIENCE}","https://other.example"]"#);
    assert_eq!(verify_replaced(&aud, &both), Err(Rejected::Claims("aud")));
    assert_eq!(
        verify_replaced(&aud, r#""aud":[]"#),
        Err(Rejected::Claims("aud"))
    );
    assert_eq!(
        verify_replaced(&aud, &format!(r#""aud":["{AUDIENCE}"]"#)),
        Ok(claims())
    );
}

#[test]
fn payload_must_be_one_json_object() {
    for hostile in [
        payload() + "{}",
        payload() + "x",
        format!("[{}]", payload()),
        "null".into(),
        String::new(),
    ] {
        assert_eq!(
            verify_payload(&hostile),
            Err(Rejected::Malformed),
            "{hostile}"
        );
    }
}

#[test]
fn unknown_claims_are_ignored_and_nest_at_most_eight_deep() {
    let nested = |levels: usize| {
        let value = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        verify_replaced(r#""acr":"1""#, &format!(r#""acr":"1","deep":{value}"#))
    };
    assert_eq!(nested(7), Ok(claims()));
    for levels in [8, 5000] {
        assert_eq!(nested(levels), Err(Rejected::Malformed), "{levels}");
    }
}

#[test]
fn only_canonical_encoding_is_accepted() {
    let signer = Signer::es256(1);
    let token = signer.token(&claims());
    let (message, signature) = token.rsplit_once('.').unwrap();
    // The last character encodes two bits of the signature and four bits that must be zero.
    let tail = signature.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let other = alphabet
        .chars()
        .nth(alphabet.find(tail).unwrap() + 1)
        .unwrap();
    let other_spelling = format!("{}{other}", &signature[..signature.len() - 1]);
    for hostile in [
        format!("{token}=="),
        format!("{token}="),
        format!("{token} "),
        format!("{token}\n"),
        format!(" {token}"),
        format!("{token}."),
        format!(".{token}"),
        format!("{token}.{signature}"),
        message.to_owned(),
        format!("{message}.{other_spelling}"),
        format!("{}.{signature}", message.replacen('.', "=.", 1)),
        format!("{message}=.{signature}"),
    ] {
        assert_eq!(
            verify(&signer, &hostile),
            Err(Rejected::Malformed),
            "{hostile}"
        );
    }
    let cut = token.replace(signature, "");
    assert_eq!(verify(&signer, &cut), Err(Rejected::Signature));
}

#[test]
fn oversized_token_is_rejected() {
    let result = verify_replaced(
        r#""acr":"1""#,
        &format!(r#""acr":"{}""#, "1".repeat(17 * 1024)),
    );
    assert_eq!(result, Err(Rejected::TooLarge));
}
