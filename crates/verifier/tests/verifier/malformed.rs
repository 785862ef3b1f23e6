//! Tokens that are signed by us, and yet not written as they must be.

use portcullis_verifier::{Claims, Need, Rejected};

use crate::signer::{AUDIENCE, NOW, Signer, claims};

fn judge(signer: &Signer, token: &str) -> Result<Claims, Rejected> {
    signer.verifier().verify_at(token, &Need::any(), NOW)
}

fn payload() -> String {
    serde_json::to_string(&claims()).unwrap()
}

/// A token with another payload, well signed.
fn filled(payload: &str) -> Result<Claims, Rejected> {
    let signer = Signer::es256(1);
    judge(&signer, &signer.sign(&signer.header(), payload))
}

/// A token with one member of its payload written otherwise.
fn bent(honest: &str, hostile: &str) -> Result<Claims, Rejected> {
    let payload = payload();
    assert!(payload.contains(honest), "{honest}");
    filled(&payload.replace(honest, hostile))
}

#[test]
fn nothing_appears_twice() {
    assert_eq!(
        bent(r#""sub":"alice""#, r#""sub":"alice","sub":"admin""#),
        twice()
    );
    assert_eq!(bent(r#""exp":"#, r#""exp":9999999999,"exp":"#), twice());
    let signer = Signer::es256(1);
    let header = signer.header().replace("{", r#"{"alg":"none","#);
    let token = signer.sign(&header, &payload());
    assert_eq!(judge(&signer, &token), Err(Rejected::Malformed));
}

fn twice() -> Result<Claims, Rejected> {
    Err(Rejected::Claims("another, or one that appears twice"))
}

#[test]
fn each_required_claim_must_be_there_and_of_its_type() {
    let honest = serde_json::to_value(claims()).unwrap();
    for name in ["iss", "sub", "aud", "client_id", "iat", "exp", "jti", "rev"] {
        let mut without = honest.clone();
        without.as_object_mut().unwrap().remove(name);
        assert_eq!(
            filled(&without.to_string()),
            Err(Rejected::Claims(name)),
            "no {name}"
        );
        for wrong in [
            serde_json::json!(true),
            serde_json::json!({}),
            serde_json::Value::Null,
        ] {
            let mut bent = honest.clone();
            bent[name] = wrong;
            assert_eq!(
                filled(&bent.to_string()),
                Err(Rejected::Claims(name)),
                "bent {name}"
            );
        }
    }
}

#[test]
fn an_instant_is_a_json_integer() {
    let exp = format!(r#""exp":{}"#, claims().exp);
    for hostile in [
        r#""exp":"9999999999""#,
        r#""exp":-1"#,
        r#""exp":9999999999.0"#,
        r#""exp":1e10"#,
    ] {
        assert_eq!(
            bent(&exp, hostile),
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
        assert_eq!(bent(&exp, hostile), Err(Rejected::Malformed), "{hostile}");
    }
    assert_eq!(
        bent(&exp, &format!(r#"{exp},"nbf":"0""#)),
        Err(Rejected::Claims("nbf"))
    );
}

#[test]
fn two_audiences_are_one_too_many() {
    let aud = format!(r#""aud":"{AUDIENCE}""#);
    let both = format!(r#""aud":["{AUDIENCE}","https://other.example"]"#);
    assert_eq!(bent(&aud, &both), Err(Rejected::Claims("aud")));
    assert_eq!(bent(&aud, r#""aud":[]"#), Err(Rejected::Claims("aud")));
    assert_eq!(
        bent(&aud, &format!(r#""aud":["{AUDIENCE}"]"#)),
        Ok(claims())
    );
}

#[test]
fn a_payload_is_one_json_object() {
    for hostile in [
        payload() + "{}",
        payload() + "x",
        format!("[{}]", payload()),
        "null".into(),
        String::new(),
    ] {
        assert_eq!(filled(&hostile), Err(Rejected::Malformed), "{hostile}");
    }
}

#[test]
fn what_we_do_not_know_is_ignored_however_deep() {
    let deep = format!(
        r#""acr":"1","deep":{}{}"#,
        "[".repeat(5000),
        "]".repeat(5000)
    );
    assert_eq!(bent(r#""acr":"1""#, &deep), Ok(claims()));
}

#[test]
fn a_token_has_one_spelling() {
    let signer = Signer::es256(1);
    let token = signer.token(&claims());
    let (message, signature) = token.rsplit_once('.').unwrap();
    // The last character of 64 bytes carries two bits and four zeros.
    let tail = signature.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let other = alphabet
        .chars()
        .nth(alphabet.find(tail).unwrap() + 1)
        .unwrap();
    let respelt = format!("{}{other}", &signature[..signature.len() - 1]);
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
        format!("{message}.{respelt}"),
        format!("{}.{signature}", message.replacen('.', "=.", 1)),
        format!("{message}=.{signature}"),
    ] {
        assert_eq!(
            judge(&signer, &hostile),
            Err(Rejected::Malformed),
            "{hostile}"
        );
    }
    let cut = token.replace(signature, "");
    assert_eq!(judge(&signer, &cut), Err(Rejected::Signature));
}

#[test]
fn a_token_of_17_kib_is_too_large() {
    let large = bent(
        r#""acr":"1""#,
        &format!(r#""acr":"{}""#, "1".repeat(17 * 1024)),
    );
    assert_eq!(large, Err(Rejected::TooLarge));
}
