//! Generator of `vectors/tokens.json`. The output is deterministic, because all keys are fixed and
//! all signatures are deterministic.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{EncodePublicKey, LineEnding};
use portcullis_verifier::Rejected;
use serde_json::{Map, Value, json};

use crate::signer::{AUDIENCE, ISSUER, NOW, Signer, claims, unsigned};

/// Signs a message with deterministic ES256 (RFC 6979).
pub fn es256(seed: u8, message: &str) -> String {
    let key = SigningKey::from_slice(&[seed; 32]).unwrap();
    let signature: Signature = key.sign(message.as_bytes());
    URL_SAFE_NO_PAD.encode(signature.to_bytes())
}

/// Returns a token with this header and payload, correctly signed with the key of this seed.
pub fn signed(seed: u8, header: &str, payload: &str) -> String {
    let message = unsigned(header, payload);
    let signature = es256(seed, &message);
    format!("{message}.{signature}")
}

/// The cases generated so far.
struct Cases {
    key: Signer,
    list: Vec<Value>,
}

impl Cases {
    fn header(&self) -> String {
        self.key.header()
    }

    fn add(&mut self, name: &str, token: String, verdict: Result<(), Rejected>) {
        self.list.push(case(name, token, verdict));
    }

    /// Adds a member to the last case: another time or a need.
    fn with(&mut self, member: &str, value: Value) {
        let case = self.list.last_mut().unwrap().as_object_mut().unwrap();
        case.insert(member.to_owned(), value);
    }

    /// Adds a correctly signed token with this header.
    fn add_header(&mut self, name: &str, header: &str, verdict: Result<(), Rejected>) {
        let header = header.replace("KID", self.key.kid());
        self.add(name, signed(1, &header, &payload()), verdict);
    }

    /// Adds a correctly signed token with this payload.
    fn add_payload(&mut self, name: &str, payload: &str, verdict: Result<(), Rejected>) {
        self.add(name, signed(1, &self.header(), payload), verdict);
    }

    /// Adds a correctly signed token with one part of its payload replaced.
    fn add_replaced(&mut self, name: &str, from: &str, to: &str, verdict: Result<(), Rejected>) {
        let payload = payload();
        assert!(payload.contains(from), "{name}: {from}");
        self.add_payload(name, &payload.replace(from, to), verdict);
    }
}

fn case(name: &str, token: String, verdict: Result<(), Rejected>) -> Value {
    match verdict {
        Ok(()) => json!({"name": name, "token": token, "verdict": "ok", "status": 200}),
        Err(rejected) => json!({
            "name": name, "token": token, "verdict": rejected.reason(), "status": rejected.status(),
            "www_authenticate": rejected.www_authenticate("api"),
        }),
    }
}

fn payload() -> String {
    serde_json::to_string(&claims()).unwrap()
}

const BAD: Result<(), Rejected> = Err(Rejected::Malformed);
const BAD_CLAIMS: Result<(), Rejected> = Err(Rejected::Claims(""));

pub fn file() -> Value {
    let mut cases = Cases {
        key: Signer::es256(1),
        list: vec![],
    };
    good(&mut cases);
    headers(&mut cases);
    signatures(&mut cases);
    forms(&mut cases);
    payloads(&mut cases);
    times(&mut cases);
    needs(&mut cases);
    json!({
        "about": "Access tokens, and what a verifier says of each. See README.md.",
        "issuer": ISSUER, "audience": AUDIENCE, "now": NOW, "leeway": 30, "algorithms": ["ES256", "RS256"],
        "jwks": {"keys": [cases.key.jwk, Signer::rs256().jwk]},
        "cases": cases.list,
    })
}

fn good(cases: &mut Cases) {
    cases.add_payload("a user's token, ES256", &payload(), Ok(()));
    let rs256 = Signer::rs256();
    cases.add(
        "a user's token, RS256",
        rs256.sign(&rs256.header(), &payload()),
        Ok(()),
    );
    cases.add_payload(
        "a token of a client alone",
        &format!(r#"{{"iss":"{ISSUER}","sub":"shop","aud":"{AUDIENCE}","client_id":"shop","iat":{NOW},"exp":{},"jti":"j","rev":"1.2"}}"#, NOW + 300),
        Ok(()),
    );
    cases.add_replaced(
        "an audience in an array of one",
        &format!(r#""aud":"{AUDIENCE}""#),
        &format!(r#""aud":["{AUDIENCE}"]"#),
        Ok(()),
    );
    cases.add_replaced(
        "an unknown claim",
        r#""sub""#,
        r#""x":{"y":[1,{"z":null}]},"sub""#,
        Ok(()),
    );
    cases.add_replaced(
        "an unknown claim, twice inside",
        r#""sub""#,
        r#""x":{"y":1,"y":2},"sub""#,
        Ok(()),
    );
    cases.add_replaced(
        "an escaped letter",
        r#""sub":"alice""#,
        r#""sub":"\u0061lice""#,
        Ok(()),
    );
    for typ in ["AT+JWT", "application/at+jwt", "Application/AT+jwt"] {
        cases.add_header(
            &format!("typ {typ}"),
            &format!(r#"{{"alg":"ES256","typ":"{typ}","kid":"KID"}}"#),
            Ok(()),
        );
    }
    cases.add_header("headers that would name another key are ignored", r#"{"alg":"ES256","typ":"at+jwt","kid":"KID","jku":"https://evil.example/jwks","x5u":"https://evil.example/x","x5c":["AA=="],"jwk":{"kty":"EC"}}"#, Ok(()));
}

fn headers(cases: &mut Cases) {
    let no_alg = || Err(Rejected::Algorithm);
    for alg in [
        "none", "None", "nOnE", "", "HS256", "HS384", "HS512", "PS256", "ES384", "ES512", "EdDSA",
        "es256",
    ] {
        let header = format!(r#"{{"alg":"{alg}","typ":"at+jwt","kid":"KID"}}"#);
        cases.add_header(&format!("alg {alg:?}, signed by ES256"), &header, no_alg());
        let header = header.replace("KID", cases.key.kid());
        cases.add(
            &format!("alg {alg:?}, without a signature"),
            unsigned(&header, &payload()) + ".",
            no_alg(),
        );
    }
    cases.add_header("no alg", r#"{"typ":"at+jwt","kid":"KID"}"#, no_alg());
    cases.add_header(
        "RS256 over a P-256 key",
        r#"{"alg":"RS256","typ":"at+jwt","kid":"KID"}"#,
        no_alg(),
    );
    let over_rsa = format!(
        r#"{{"alg":"ES256","typ":"at+jwt","kid":"{}"}}"#,
        Signer::rs256().kid()
    );
    cases.add(
        "ES256 over an RSA key",
        signed(1, &over_rsa, &payload()),
        no_alg(),
    );
    hmac(cases);
    for typ in [
        "JWT",
        "",
        "at+jwt ",
        "logout+jwt",
        "revocation-frame+jwt",
        "dpop+jwt",
        "text/at+jwt",
    ] {
        cases.add_header(
            &format!("typ {typ:?}"),
            &format!(r#"{{"alg":"ES256","typ":"{typ}","kid":"KID"}}"#),
            Err(Rejected::Type),
        );
    }
    cases.add_header(
        "no typ",
        r#"{"alg":"ES256","kid":"KID"}"#,
        Err(Rejected::Type),
    );
    for crit in [r#"["b64"]"#, r#"["exp"]"#, "[]", "null"] {
        cases.add_header(
            &format!("crit {crit}"),
            &format!(r#"{{"alg":"ES256","typ":"at+jwt","kid":"KID","crit":{crit}}}"#),
            BAD,
        );
    }
    cases.add_header(
        "alg twice",
        r#"{"alg":"none","alg":"ES256","typ":"at+jwt","kid":"KID"}"#,
        BAD,
    );
    cases.add_header(
        "typ twice",
        r#"{"alg":"ES256","typ":"JWT","typ":"at+jwt","kid":"KID"}"#,
        BAD,
    );
    cases.add_header(
        "kid twice",
        r#"{"alg":"ES256","typ":"at+jwt","kid":"x","kid":"KID"}"#,
        BAD,
    );
    cases.add_header("a header in an array", r#"["ES256","at+jwt","KID"]"#, BAD);
    cases.add_header(
        "two headers",
        r#"{"alg":"ES256","typ":"at+jwt","kid":"KID"}{}"#,
        BAD,
    );
    cases.add_header(
        "a kid that is a number",
        r#"{"alg":"ES256","typ":"at+jwt","kid":7}"#,
        BAD,
    );
    cases.add_header(
        "alg in an array",
        r#"{"alg":["ES256"],"typ":"at+jwt","kid":"KID"}"#,
        BAD,
    );
    let unknown = || Err(Rejected::UnknownKey);
    cases.add_header("no kid", r#"{"alg":"ES256","typ":"at+jwt"}"#, unknown());
    cases.add_header(
        "an unknown kid",
        r#"{"alg":"ES256","typ":"at+jwt","kid":"../../etc/passwd"}"#,
        unknown(),
    );
    cases.add_header(
        "a kid that differs in case",
        &format!(
            r#"{{"alg":"ES256","typ":"at+jwt","kid":"{}"}}"#,
            cases.key.kid().to_lowercase()
        ),
        unknown(),
    );
}

/// Adds tokens with an HMAC whose secret is the public key (RFC 8725 §2.1).
fn hmac(cases: &mut Cases) {
    let public = p256::SecretKey::from_slice(&[1; 32]).unwrap().public_key();
    let header = format!(
        r#"{{"alg":"HS256","typ":"at+jwt","kid":"{}"}}"#,
        cases.key.kid()
    );
    let message = unsigned(&header, &payload());
    for (form, secret) in [
        ("JWK", serde_json::to_vec(&cases.key.jwk).unwrap()),
        ("DER", public.to_public_key_der().unwrap().into_vec()),
        (
            "PEM",
            public
                .to_public_key_pem(LineEnding::LF)
                .unwrap()
                .into_bytes(),
        ),
    ] {
        let key = EncodingKey::from_secret(&secret);
        let mac = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        cases.add(
            &format!("HS256 keyed with the public key as {form}"),
            format!("{message}.{mac}"),
            Err(Rejected::Algorithm),
        );
    }
}

fn signatures(cases: &mut Cases) {
    let wrong = || Err(Rejected::Signature);
    let message = unsigned(&cases.header(), &payload());
    let valid = es256(1, &message);
    let mut flipped = URL_SAFE_NO_PAD.decode(&valid).unwrap();
    flipped[63] ^= 1;
    let der = SigningKey::from_slice(&[1; 32]).unwrap();
    let der: Signature = der.sign(message.as_bytes());
    let der = der.to_der().as_bytes().to_vec();
    // Used for the invalid signature r = s = n.
    let order = p256::elliptic_curve::bigint::Encoding::to_be_bytes(
        &<p256::NistP256 as p256::elliptic_curve::Curve>::ORDER,
    );
    for (name, signature) in [
        ("a flipped bit", flipped.clone()),
        ("a signature in DER", der),
        ("r and s are zero", vec![0; 64]),
        (
            "r and s are the order of the group",
            [order, order].concat(),
        ),
        ("half a signature", flipped[..32].to_vec()),
        ("a byte too many", [flipped.as_slice(), &[0]].concat()),
        ("no signature", vec![]),
    ] {
        cases.add(
            name,
            format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)),
            wrong(),
        );
    }
    let other = es256(2, &message);
    cases.add(
        "the signature of another key",
        format!("{message}.{other}"),
        wrong(),
    );
    let changed = unsigned(&cases.header(), &payload().replace("alice", "admin"));
    cases.add(
        "the signature of another token",
        format!("{changed}.{valid}"),
        wrong(),
    );
    let own_key = serde_json::to_string(&Signer::es256(2).jwk).unwrap();
    let header = format!(
        r#"{{"alg":"ES256","typ":"at+jwt","kid":"{}","jwk":{own_key}}}"#,
        cases.key.kid()
    );
    cases.add(
        "a token that brings its own key",
        signed(2, &header, &payload()),
        wrong(),
    );
    let rs256 = Signer::rs256();
    let token = rs256.sign(&rs256.header(), &payload());
    let (head, signature) = token.rsplit_once('.').unwrap();
    let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    bytes[0] ^= 1;
    cases.add(
        "RS256 with a flipped bit",
        format!("{head}.{}", URL_SAFE_NO_PAD.encode(bytes)),
        wrong(),
    );
}

fn forms(cases: &mut Cases) {
    let valid = signed(1, &cases.header(), &payload());
    let parts: Vec<&str> = valid.split('.').collect();
    let [header, payload, signature] = parts[..] else {
        unreachable!("a JWS has three parts");
    };
    cases.add("no token", String::new(), Err(Rejected::Missing));
    for (name, token) in [
        ("one part", header.to_owned()),
        ("two parts", format!("{header}.{payload}")),
        ("four parts", format!("{valid}.{signature}")),
        (
            "five parts, as in a JWE",
            format!("{valid}.{signature}.{signature}"),
        ),
        ("an empty header", format!(".{payload}.{signature}")),
        (
            "padding after the header",
            format!("{header}=.{payload}.{signature}"),
        ),
        ("padding after the signature", format!("{valid}==")),
        ("a line feed at the end", format!("{valid}\n")),
        ("a blank at the start", format!(" {valid}")),
        ("bits after the end of the signature", last_bit(&valid)),
        ("the other alphabet", other_alphabet(header, signature)),
        ("not a token at all", "pcl_rt_AAAA".to_owned()),
    ] {
        cases.add(name, token, BAD);
    }
    cases.add("17 KiB", "A".repeat(17 * 1024), Err(Rejected::TooLarge));
}

/// Changes the last character of a token. The 86 characters of a 64-byte signature encode 516 bits,
/// so the last four bits must be zero.
fn last_bit(token: &str) -> String {
    let (start, last) = token.split_at(token.len() - 1);
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let at = alphabet.find(last).unwrap();
    format!("{start}{}", &alphabet[at + 1..at + 2])
}

/// Returns a token whose payload is in plain base64 and contains `+` or `/`.
fn other_alphabet(header: &str, signature: &str) -> String {
    let payload = STANDARD.encode(payload().replace("alice", "a~~~?>>>??>~"));
    assert!(payload.contains('+') || payload.contains('/'));
    format!("{header}.{}.{signature}", payload.trim_end_matches('='))
}

fn payloads(cases: &mut Cases) {
    for (name, payload) in [
        ("a payload that is no JSON", "hello"),
        ("a payload in an array", "[]"),
        ("a payload that is a string", r#""x""#),
        ("an empty payload", ""),
        ("a payload that is not text", "{\"iss\":\"\u{0}\"}"),
    ] {
        cases.add_payload(name, payload, BAD);
    }
    cases.add_payload("two payloads", &format!("{}{{}}", payload()), BAD);
    cases.add_replaced(
        "iss twice",
        r#""sub""#,
        r#""iss":"https://evil.example","sub""#,
        BAD_CLAIMS,
    );
    cases.add_replaced(
        "sub twice",
        r#""sub":"alice""#,
        r#""sub":"alice","sub":"admin""#,
        BAD_CLAIMS,
    );
    let whole: Map<String, Value> = serde_json::from_str(&payload()).unwrap();
    for claim in ["iss", "sub", "aud", "client_id", "iat", "exp", "jti", "rev"] {
        for (what, value) in [
            ("no", None),
            ("null as", Some(Value::Null)),
            ("true as", Some(json!(true))),
        ] {
            let mut claims = whole.clone();
            claims.remove(claim);
            claims.extend(value.map(|value| (claim.to_owned(), value)));
            let payload = serde_json::to_string(&claims).unwrap();
            cases.add_payload(&format!("{what} {claim}"), &payload, BAD_CLAIMS);
        }
    }
    let exp = format!(r#""exp":{}"#, NOW + 300);
    for value in [
        r#""1800000300""#,
        "1800000300.0",
        "1.8e9",
        "1e400",
        "-1",
        "18446744073709551616",
    ] {
        let verdict = if value == "1e400" { BAD } else { BAD_CLAIMS };
        cases.add_replaced(
            &format!("exp is {value}"),
            &exp,
            &format!(r#""exp":{value}"#),
            verdict,
        );
    }
    for rev in ["", "1", "1.", "1.2.3.4", "01.2.3", "+1.2.3", "1.-2.3"] {
        cases.add_replaced(
            &format!("rev is {rev:?}"),
            r#""rev":"1.2.3""#,
            &format!(r#""rev":"{rev}""#),
            BAD_CLAIMS,
        );
    }
    audiences(cases);
}

fn audiences(cases: &mut Cases) {
    let aud = format!(r#""aud":"{AUDIENCE}""#);
    for value in [
        r#"["https://api.example","https://other.example"]"#,
        "[]",
        r#"[["https://api.example"]]"#,
    ] {
        cases.add_replaced(
            &format!("aud is {value}"),
            &aud,
            &format!(r#""aud":{value}"#),
            BAD_CLAIMS,
        );
    }
    for other in [
        "https://api.example/",
        "https://API.example",
        "https://other.example",
        "",
    ] {
        cases.add_replaced(
            &format!("aud is {other:?}"),
            &aud,
            &format!(r#""aud":"{other}""#),
            Err(Rejected::Audience),
        );
    }
    for other in [
        "https://id.example/",
        "https://ID.example",
        "https://evil.example",
        "",
    ] {
        cases.add_replaced(
            &format!("iss is {other:?}"),
            &format!(r#""iss":"{ISSUER}""#),
            &format!(r#""iss":"{other}""#),
            Err(Rejected::Issuer),
        );
    }
}

fn times(cases: &mut Cases) {
    for (name, now, verdict) in [
        ("29 s after exp", NOW + 329, Ok(())),
        ("30 s after exp", NOW + 330, Err(Rejected::Expired)),
        ("30 s before iat", NOW - 30, Ok(())),
        ("31 s before iat", NOW - 31, Err(Rejected::NotYetValid)),
        ("long after", NOW * 2, Err(Rejected::Expired)),
        ("at the beginning of time", 0, Err(Rejected::NotYetValid)),
    ] {
        cases.add_payload(name, &payload(), verdict);
        cases.with("now", json!(now));
    }
    let iat = format!(r#""iat":{NOW}"#);
    let nbf = format!(r#"{iat},"nbf":{}"#, NOW + 60);
    cases.add_replaced("30 s before nbf", &iat, &nbf, Ok(()));
    cases.with("now", json!(NOW + 30));
    cases.add_replaced("31 s before nbf", &iat, &nbf, Err(Rejected::NotYetValid));
    cases.with("now", json!(NOW + 29));
}

fn needs(cases: &mut Cases) {
    let lacks = |needed: &str| {
        Err(Rejected::Scope {
            needed: needed.into(),
        })
    };
    let login = |acr_values: &str, max_age| {
        Err(Rejected::StepUp {
            acr_values: acr_values.into(),
            max_age,
        })
    };
    for (name, need, verdict) in [
        (
            "both scopes",
            json!({"scope": ["orders:read", "orders:write"]}),
            Ok(()),
        ),
        (
            "a scope that is not there",
            json!({"scope": ["orders:read", "admin"]}),
            lacks("orders:read admin"),
        ),
        (
            "the beginning of a scope",
            json!({"scope": ["orders"]}),
            lacks("orders"),
        ),
        (
            "two scopes as one",
            json!({"scope": ["orders:read orders:write"]}),
            lacks("orders:read orders:write"),
        ),
        (
            "a scope in another case",
            json!({"scope": ["Orders:read"]}),
            lacks("Orders:read"),
        ),
        (
            "one of two scopes",
            json!({"one_of": ["admin", "orders:read"]}),
            Ok(()),
        ),
        (
            "neither of two scopes",
            json!({"scope": ["orders:read"], "one_of": ["admin", "root"]}),
            lacks("orders:read admin"),
        ),
        (
            "a login that will do",
            json!({"acr": ["2", "1"], "authenticated_within": 60}),
            Ok(()),
        ),
        (
            "a login of another class",
            json!({"acr": ["2", "3"]}),
            login("2 3", None),
        ),
        (
            "a login too long ago",
            json!({"authenticated_within": 59}),
            login("", Some(59)),
        ),
        (
            "a scope and a login that are not there",
            json!({"scope": ["admin"], "acr": ["3"]}),
            lacks("admin"),
        ),
    ] {
        cases.add_payload(name, &payload(), verdict);
        cases.with("need", need);
    }
    cases.add_payload(
        "an expired token is not asked for its scope",
        &payload(),
        Err(Rejected::Expired),
    );
    cases.with("need", json!({"scope": ["admin"]}));
    cases.with("now", json!(NOW + 330));
}
