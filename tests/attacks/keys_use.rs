//! Rows of the catalogue: key fetches, signatures, and output in which private keys must never appear.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jsonwebtoken::EncodingKey;
use p256::elliptic_curve::PrimeField;
use p256::elliptic_curve::ops::Reduce;
use p256::pkcs8::{EncodePrivateKey, LineEnding};
use p256::{FieldBytes, Scalar, U256};
use portcullis::key_manager::{Act, Rotation};
use portcullis::keys::provider::Parsed;
use portcullis::keys::{Alg, Ring, Use};
use portcullis::secret::{Entropy, base64url, from_base64url, sha256};
use portcullis_verifier::{Need, Verifier};
use serde_json::{Value, json};

use crate::fixtures::server::AUDIENCE;
use crate::fixtures::{Db, log, timing};
use crate::process::Site;
use crate::token_code::Flow;
use crate::token_refresh::redeem_new_code;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a288_unknown_kids_cause_one_verifier_refetch),
    row!(a300_signatures_have_no_nonce_or_timing_bias),
    row!(a301_private_keys_appear_in_no_output),
];

const ES256: Ring = Ring::token(Alg::ES256);

fn act(stage: &Stage) -> Act {
    let now = stage.server.clock.now();
    Act {
        actor: portcullis::audit::Actor::Operator,
        now,
    }
}

/// An issuer on loopback from which a verifier fetches: it publishes the keys of the node.
struct LoopbackIssuer {
    url: String,
    fetches: Arc<AtomicUsize>,
}

impl LoopbackIssuer {
    fn of(stage: &Stage) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let fetches = Arc::new(AtomicUsize::new(0));
        let (app, counted, issuer) = (stage.server.app.clone(), fetches.clone(), url.clone());
        // The thread ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut stream = stream;
                let mut heard = [0; 4_096];
                let read = stream.read(&mut heard).unwrap_or(0);
                let asked = String::from_utf8_lossy(&heard[..read]).into_owned();
                let body = if asked.starts_with("GET /jwks ") {
                    counted.fetch_add(1, Ordering::SeqCst);
                    app.keys().published(Use::Token).bytes.to_vec()
                } else {
                    let jwks = format!("{issuer}/jwks");
                    serde_json::to_vec(&json!({ "issuer": issuer, "jwks_uri": jwks })).unwrap()
                };
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(&[head.into_bytes(), body].concat());
            }
        });
        Self { url, fetches }
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

/// Signs `payload` with this key under this `kid`.
fn signed(kid: &str, key: &EncodingKey, payload: &Value) -> String {
    let header = json!({ "typ": "at+jwt", "alg": "ES256", "kid": kid });
    let message = format!(
        "{}.{}",
        base64url(header.to_string().as_bytes()),
        base64url(payload.to_string().as_bytes())
    );
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), key, jsonwebtoken::Algorithm::ES256);
    format!("{message}.{}", signature.unwrap())
}

async fn a288_unknown_kids_cause_one_verifier_refetch(stage: &Stage) {
    let front = LoopbackIssuer::of(stage);
    let mut flow = Flow::begin(&stage.server).await;
    let mut payload = redeem_new_code(&mut flow).await.access_claims();
    (payload["iss"], payload["aud"]) = (json!(front.url), json!(AUDIENCE));
    let verifier = Verifier::builder(front.url.as_str(), AUDIENCE)
        .start()
        .await
        .unwrap();
    stage.check(1, front.fetches() == 1, || "no first fetch".to_owned());
    // Five minutes later the node signs with a key that the verifier does not have.
    let known = stage.server.app.keys().signer(ES256).unwrap().to_owned();
    stage.server.advance(Duration::from_secs(300));
    let table = stage.server.app.key_manager.table();
    table.revoke_ring(ES256, "test", &act(stage)).await.unwrap();
    stage.server.app.poll().await.unwrap();
    let kid = stage.server.app.keys().signer(ES256).unwrap().to_owned();
    stage.check(1, kid != known, || "the same key".to_owned());
    let now = stage.server.clock.now().secs();
    (payload["iat"], payload["exp"]) = (json!(now), json!(now + 300));
    let mark = log::mark();
    let token = signed(&kid, &EncodingKey::from_ec_der(kid.as_bytes()), &payload);
    let verdict = verifier.verify_fresh_at(&token, &Need::any(), now).await;
    stage.check(1, verdict.is_ok(), || format!("{verdict:?}"));
    stage.check(1, front.fetches() == 2, || {
        format!("{} fetches", front.fetches())
    });
    let told = log::since(mark).iter().any(|event| {
        event
            .get("event")
            .is_some_and(|name| name == "jwks.refetch")
    });
    stage.check(1, told, || "no jwks.refetch".to_owned());
    // 1,000 unknown `kid`s within 90 s.
    let foreign = p256::SecretKey::random(&mut Entropy::seeded(12));
    let foreign = EncodingKey::from_ec_der(foreign.to_pkcs8_der().unwrap().as_bytes());
    for n in 0..1_000_u64 {
        let kid = base64url(&sha256(format!("stranger {n}").as_bytes()));
        let at = now + n * 90 / 1_000;
        let verdict = verifier
            .verify_fresh_at(&signed(&kid, &foreign, &payload), &Need::any(), at)
            .await;
        stage.check(2, verdict.is_err(), || format!("{kid} is accepted"));
        let allowed = 2 + usize::try_from((at - now) / 30).unwrap();
        stage.check(2, front.fetches() <= allowed, || {
            format!("{} fetches after {} s", front.fetches(), at - now)
        });
    }
    let verdict = verifier
        .verify_fresh_at(&token, &Need::any(), now + 90)
        .await;
    stage.check(3, verdict.is_ok(), || format!("then {verdict:?}"));
}

async fn a300_signatures_have_no_nonce_or_timing_bias(stage: &Stage) {
    // The cases do not use the database, so they run once. 100,000 signatures take a minute.
    let count = match stage.db() {
        Db::Sqlite => 20_000,
        Db::Postgres => 1_000,
    };
    nonces(stage, count);
    rsa_time(stage);
    let found = rsa_operations();
    stage.check(4, found.is_empty(), || found.join(", "));
}

/// Searches ECDSA signatures for repeated and biased nonces, either of which reveals the key.
fn nonces(stage: &Stage, count: usize) {
    let secret = p256::SecretKey::random(&mut Entropy::seeded(41));
    let pkcs8 = secret.to_pkcs8_der().unwrap();
    let kid = format!("nonces-{:?}", stage.db());
    let held = Parsed::new(Alg::ES256, pkcs8.as_bytes())
        .unwrap()
        .registered_as(&kid);
    let key = held.encoding_key(&kid);
    let d = *secret.to_nonzero_scalar();
    let mut seen = HashSet::new();
    let mut ones = [0_usize; 256];
    for n in 0..count {
        let message = format!("message {n}");
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::ES256);
        let bytes = from_base64url(&signature.unwrap()).unwrap();
        let scalar = |part: &[u8]| {
            let part: [u8; 32] = part.try_into().unwrap();
            Scalar::from_repr(FieldBytes::from(part)).unwrap()
        };
        let (r, s) = (scalar(&bytes[..32]), scalar(&bytes[32..]));
        if !seen.insert(bytes[..32].to_vec()) {
            stage.check(1, false, || format!("r repeats after {n} signatures"));
        }
        // The nonce follows from the key: k = (h + r d) / s.
        let hash = sha256(message.as_bytes());
        let h = <Scalar as Reduce<U256>>::reduce_bytes(&FieldBytes::from(hash));
        let k = (h + r * d) * s.invert().unwrap();
        for (bit, ones) in ones.iter_mut().enumerate() {
            *ones += usize::from(k.to_repr()[bit / 8] >> (7 - bit % 8) & 1);
        }
    }
    stage.check(1, seen.len() == count, || "r repeats".to_owned());
    // Each of the 256 bits must be set in half of the nonces. The order of P-256 begins with 32 ones, so
    // the bias of the first bits is at most 2⁻³².
    let sigma = (count as f64).sqrt() / 2.0;
    for (bit, ones) in ones.into_iter().enumerate() {
        let off = (ones as f64 - count as f64 / 2.0) / sigma;
        stage.check(2, off.abs() < 5.5, || {
            format!("bit {bit} of the nonce is set {ones} times of {count}")
        });
    }
}

/// Checks that the time of an RSA signature does not depend on the message.
fn rsa_time(stage: &Stage) {
    const SAMPLES: usize = 600;
    let view = stage.server.app.keys();
    let kid = view.signer(Ring::token(Alg::RS256)).unwrap();
    let key = EncodingKey::from_rsa_der(kid.as_bytes());
    let sign = |message: &[u8]| {
        let begun = Instant::now();
        let signature = jsonwebtoken::crypto::sign(message, &key, jsonwebtoken::Algorithm::RS256);
        signature.unwrap();
        begun.elapsed()
    };
    let mut number = 0_u64;
    let t = timing::quietest(|| {
        let (mut same, mut other) = (Vec::new(), Vec::new());
        for _ in 0..SAMPLES {
            number += 1;
            let fresh = sha256(&number.to_be_bytes());
            // The order alternates, so that neither message always follows the other.
            if number.is_multiple_of(2) {
                same.push(sign(&[7; 32]));
                other.push(sign(&fresh));
            } else {
                other.push(sign(&fresh));
                same.push(sign(&[7; 32]));
            }
        }
        (same, other)
    });
    stage.check(3, t < timing::LIMIT, || {
        format!("|t| = {t:.1} between one message and many")
    });
}

/// Items of the `rsa` crate that sign or decrypt. RUSTSEC-2023-0071 has no patched version.
const RSA_OPERATIONS: [&str; 12] = [
    "rsa::pkcs1v15",
    "rsa::pss",
    "rsa::oaep",
    "rsa::hazmat",
    "rsa::signature",
    "Pkcs1v15",
    "BlindedSigningKey",
    "Oaep",
    ".decrypt(",
    ".decrypt_blinded(",
    ".sign_with_rng(",
    "rsa_decrypt",
];

/// Returns the places in our sources that use one of [`RSA_OPERATIONS`].
fn rsa_operations() -> Vec<String> {
    let mut found = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src"), root.join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let used = RSA_OPERATIONS.iter().filter(|name| text.contains(**name));
                found.extend(used.map(|name| format!("{}: {name}", path.display())));
            }
        }
    }
    found
}

/// Returns the encodings in which the private number of a key could appear.
fn encodings(d: &[u8]) -> Vec<String> {
    use base64::Engine;
    let hex: String = d.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{d:?}");
    vec![
        hex.to_uppercase(),
        hex,
        list[1..list.len() - 1].to_owned(),
        base64url(d),
        base64::engine::general_purpose::STANDARD.encode(d),
    ]
}

async fn a301_private_keys_appear_in_no_output(stage: &Stage) {
    let secret = p256::SecretKey::random(&mut Entropy::seeded(77));
    let forms = encodings(&secret.to_bytes());
    let leaks = |text: &str| forms.iter().any(|form| text.contains(form.as_str()));
    let pem = secret.to_pkcs8_pem(LineEnding::LF).unwrap().to_string();
    let (mark, table) = (log::mark(), stage.server.app.key_manager.table());
    // The key is imported, published, used, resealed and destroyed.
    let taken = table.import(&pem, &act(stage)).await.unwrap();
    let kid = taken.inserts()[0].kid.clone();
    table
        .rotate(ES256, Rotation::Immediate, &act(stage))
        .await
        .unwrap();
    table
        .rotate(ES256, Rotation::Immediate, &act(stage))
        .await
        .unwrap();
    let mut shown = Vec::new();
    for _ in 0..2 {
        for node in stage.all() {
            node.app.poll().await.unwrap();
            for path in ["/oauth2/jwks", "/.well-known/openid-configuration"] {
                shown.push(node.browser().get(path).await.body);
            }
        }
        let signs = stage.server.app.keys().signer(ES256) == Some(&kid);
        stage.check(1, signs, || "the canary does not sign".to_owned());
        let mut flow = Flow::begin(&stage.server).await;
        let tokens = redeem_new_code(&mut flow).await;
        shown.push(tokens.0.to_string());
        table.rewrap(&act(stage)).await.unwrap();
    }
    // The `Debug` output of the row, as in a panic or log line.
    let rows = table.read(act(stage).now).await.unwrap().keys;
    shown.push(format!("{rows:?} {:?}", taken.inserts()));
    shown.push(format!("{:?}", stage.server.app.key_metrics()));
    let mut again = table
        .import(&pem, &act(stage))
        .await
        .err()
        .unwrap()
        .to_string();
    again.push_str(
        &table
            .import(&pem.replace('\n', ""), &act(stage))
            .await
            .err()
            .unwrap()
            .to_string(),
    );
    shown.push(again);
    for text in &shown {
        stage.check(2, !leaks(text), || "it shows".to_owned());
    }
    let logged = log::since(mark);
    stage.check(
        3,
        logged.iter().all(|event| !leaks(&format!("{event:?}"))),
        || "it is logged".to_owned(),
    );
    // In the database the key is sealed, and the audit log does not contain it.
    for column in ["sealed", "public_jwk"] {
        for form in &forms {
            let query =
                format!("SELECT count(*) AS n FROM signing_keys WHERE {column} LIKE '%{form}%'");
            stage.check(4, stage.server.count(&query) == 0, || column.to_owned());
        }
    }
    for form in &forms {
        let query = format!("SELECT count(*) AS n FROM audit_events WHERE detail LIKE '%{form}%'");
        stage.check(4, stage.server.count(&query) == 0, || "audit".to_owned());
    }
    #[cfg(target_os = "linux")]
    leaves_no_core(stage);
}

/// Checks that an aborted process leaves no core file.
#[cfg(target_os = "linux")]
fn leaves_no_core(stage: &Stage) {
    let site = Site::open(stage.db());
    let node = site.starts();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let words: Vec<&str> = core.unwrap_or_default().split_whitespace().collect();
    stage.check(5, words.get(4..6) == Some(&["0", "0"]), || words.join(" "));
    node.aborts();
    let left = site.files();
    stage.check(5, left.iter().all(|name| !name.starts_with("core")), || {
        left.join(" ")
    });
}
