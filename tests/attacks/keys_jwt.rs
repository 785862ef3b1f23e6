//! Rows of the catalogue: signing keys and the JWTs that they sign.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jsonwebtoken::EncodingKey;
use portcullis::key_manager::{Act, KeyManagerError, Rotation};
use portcullis::keys::{Alg, Generated, KeyView, Ring, Use};
use portcullis::secret::{Entropy, base64url};
use portcullis::time::Clock;
use portcullis_verifier::{Need, Verifier};
use serde_json::{Value, json};

use crate::expect::{json_error, logged, page, summary};
use crate::fixtures::installation::Installation;
use crate::fixtures::server::AUDIENCE;
use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Answer, Db, ISSUER, Server, Tokens, journal, log, raw};
use crate::token_code::Flow;
use crate::token_refresh::redeem_new_code;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a280_jwks_contains_no_private_members),
    row!(a281_weak_keys_are_not_imported),
    row!(a282_duplicate_keys_are_not_imported),
    row!(a284_keys_are_published_before_they_sign),
    row!(a285_retired_keys_stay_published_while_tokens_live),
    row!(a286_concurrent_rotations_create_one_key),
    row!(a289_revoked_key_is_rejected_at_once),
    row!(a290_jwts_with_wrong_alg_are_rejected),
    row!(a292_keys_in_jwt_headers_are_ignored),
    row!(a293_jwts_with_crit_are_rejected),
    row!(a294_malformed_signatures_are_rejected),
    row!(a295_invalid_claims_are_rejected),
    row!(a296_duplicate_json_members_are_rejected),
    row!(a297_jwts_of_another_type_are_rejected),
    row!(a298_access_token_for_another_audience_is_rejected),
    row!(a302_altered_key_rows_do_not_open),
    row!(a304_discovery_offers_no_weak_options),
    row!(a305_discovery_ignores_the_request_host),
    row!(a532_tokens_that_live_too_long_are_rejected),
    row!(a533_deeply_nested_claims_are_rejected),
    row!(a525_skewed_node_answers_503),
    row!(a528_token_introspect_escapes_hostile_claims),
];

const ES256: Ring = Ring::token(Alg::ES256);
const DAY: Duration = Duration::from_secs(86_400);

fn act(stage: &Stage) -> Act {
    let now = stage.server.clock.now();
    Act {
        actor: portcullis::audit::Actor::Operator,
        now,
    }
}

/// Polls on every node, so that each loads the changed keys.
async fn poll_all_nodes(stage: &Stage) {
    for node in stage.all() {
        node.app.poll().await.unwrap();
    }
}

fn members(jwks: &str) -> Vec<String> {
    let set: Value = serde_json::from_str(jwks).unwrap();
    let keys = set["keys"].as_array().unwrap().clone();
    keys.iter()
        .flat_map(|key| key.as_object().unwrap().keys().cloned().collect::<Vec<_>>())
        .collect()
}

const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

async fn a280_jwks_contains_no_private_members(stage: &Stage) {
    let table = stage.server.app.key_manager.table();
    let look = async |case: usize| {
        poll_all_nodes(stage).await;
        for node in stage.all() {
            let jwks = node.browser().get("/oauth2/jwks").await.body;
            let shown = members(&jwks);
            stage.check(
                case,
                shown.iter().all(|name| !PRIVATE.contains(&name.as_str())),
                || jwks.clone(),
            );
            stage.check(case, !shown.is_empty(), || "an empty set".to_owned());
        }
    };
    // Every key state: published, active, retiring, destroyed, archived, revoked.
    look(1).await;
    table
        .rotate(ES256, Rotation::Immediate, &act(stage))
        .await
        .unwrap();
    look(1).await;
    for wait in [70, 3_700, 100_000] {
        stage.server.advance(Duration::from_secs(wait));
        table.maintain(&act(stage)).await.unwrap();
        look(1).await;
    }
    let kid = stage.server.app.keys().signer(ES256).unwrap().to_owned();
    table.revoke(&kid, "leaked", &act(stage)).await.unwrap();
    look(1).await;
    // The parts of a key set, as text.
    for _ in 0..200 {
        let pair = Generated::new(Alg::ES256, 2_048, &Entropy::system()).unwrap();
        let jwk = serde_json::to_string(&json!({ "keys": [pair.public()] })).unwrap();
        let mut shown = members(&jwk);
        shown.sort();
        stage.check(
            2,
            shown == ["alg", "crv", "kid", "kty", "use", "x", "y"],
            || jwk,
        );
    }
}

/// Returns an RSA key in PKCS#8. The keys are files, because generating them takes seconds.
fn rsa(bits: usize, exponent: u64) -> String {
    let pem = match (bits, exponent) {
        (2_047, 65_537) => include_str!("rsa_keys/2047.pem"),
        (2_048, 65_537) => include_str!("rsa_keys/2048.pem"),
        (2_048, 3) => include_str!("rsa_keys/2048-e3.pem"),
        (3_072, 65_537) => include_str!("rsa_keys/3072.pem"),
        other => panic!("no file has an RSA key of {other:?}"),
    };
    pem.to_owned()
}

fn p256(seed: u64) -> String {
    use p256::pkcs8::EncodePrivateKey;
    let key = p256::SecretKey::random(&mut Entropy::seeded(seed));
    key.to_pkcs8_pem(p256::pkcs8::LineEnding::LF)
        .unwrap()
        .to_string()
}

async fn a281_weak_keys_are_not_imported(stage: &Stage) {
    let table = stage.server.app.key_manager.table();
    let weak = [
        (1, rsa(2_047, 65_537)),
        (2, rsa(2_048, 3)),
        (3, P224.to_owned()),
        (4, P521.to_owned()),
        (5, K256.to_owned()),
    ];
    for (case, pem) in weak {
        let mark = log::mark();
        let refused = table.import(&pem, &act(stage)).await;
        stage.check(
            case,
            matches!(refused, Err(KeyManagerError::Keys(_))),
            || "imported".to_owned(),
        );
        let told = log::since(mark).iter().any(|event| {
            event
                .get("event")
                .is_some_and(|name| name == "key.rejected")
        });
        stage.check(case, told, || "no key.rejected".to_owned());
    }
    for (case, pem, alg) in [
        (6, rsa(2_048, 65_537), "RS256"),
        (7, rsa(3_072, 65_537), "RS256"),
        (8, p256(9), "ES256"),
    ] {
        let imported = table.import(&pem, &act(stage)).await.unwrap();
        let jwk: Value = serde_json::from_str(&imported.inserts()[0].public_jwk).unwrap();
        stage.check(
            case,
            jwk["alg"] == alg && jwk["use"] == "sig" && jwk["kid"].is_string(),
            || jwk.to_string(),
        );
    }
    poll_all_nodes(stage).await;
    let jwks = stage.server.browser().get("/oauth2/jwks").await.body;
    stage.check(
        8,
        members(&jwks).iter().filter(|name| *name == "kid").count() == 7,
        || jwks,
    );
}

async fn a282_duplicate_keys_are_not_imported(stage: &Stage) {
    let table = stage.server.app.key_manager.table();
    let imported = table.import(&p256(9), &act(stage)).await.unwrap();
    let key = &imported.inserts()[0];
    let jwk: portcullis_verifier::Jwk = serde_json::from_str(&key.public_jwk).unwrap();
    stage.check(2, key.kid == jwk.thumbprint(), || key.kid.clone());
    let mark = log::mark();
    let again = table.import(&p256(9), &act(stage)).await;
    stage.check(1, matches!(again, Err(KeyManagerError::KnownKey)), || {
        "imported twice".to_owned()
    });
    let told = log::since(mark).iter().any(|event| {
        event
            .get("event")
            .is_some_and(|name| name == "key.rejected")
    });
    stage.check(1, told, || "no key.rejected".to_owned());
    // Only a JWK could contain a `kid`, and only PKCS#8 is accepted.
    let chosen = r#"{"kty":"EC","crv":"P-256","kid":"mine","d":"AA","x":"AA","y":"AA"}"#;
    let refused = table.import(chosen, &act(stage)).await;
    stage.check(2, matches!(refused, Err(KeyManagerError::Keys(_))), || {
        "imported".to_owned()
    });
}

async fn a284_keys_are_published_before_they_sign(stage: &Stage) {
    let table = stage.server.app.key_manager.table();
    let signer = |rows: &[portcullis::keys::SigningKey], now| {
        portcullis::keys::rotation::signer(ES256.among(rows), now)
            .unwrap()
            .clone()
    };
    let first = signer(
        &table.read(act(stage).now).await.unwrap().keys,
        act(stage).now,
    );
    table
        .rotate(ES256, Rotation::Scheduled, &act(stage))
        .await
        .unwrap();
    let mut waited = Duration::ZERO;
    let next = loop {
        stage.server.advance(Duration::from_secs(3_600));
        waited += Duration::from_secs(3_600);
        let now = act(stage).now;
        let signs = signer(&table.read(now).await.unwrap().keys, now);
        if signs.kid != first.kid {
            break signs;
        }
        assert!(waited < DAY * 3, "it never signs");
    };
    let known = act(stage).now.since(next.publish_at);
    stage.check(1, known >= DAY, || {
        format!("signs {known:?} after it was published")
    });
    poll_all_nodes(stage).await;
    table.maintain(&act(stage)).await.unwrap();
    let standby = table
        .read(act(stage).now)
        .await
        .unwrap()
        .keys
        .into_iter()
        .rfind(|key| key.ring() == ES256)
        .unwrap();
    stage.server.advance(DAY * 2);
    table
        .revoke(&next.kid, "leaked", &act(stage))
        .await
        .unwrap();
    let now = act(stage).now;
    let signs = signer(&table.read(now).await.unwrap().keys, now);
    stage.check(
        2,
        signs.kid == standby.kid && now.since(signs.publish_at) >= DAY,
        || format!("{signs:?}"),
    );
}

async fn a285_retired_keys_stay_published_while_tokens_live(stage: &Stage) {
    let table = stage.server.app.key_manager.table();
    let kid = stage.server.app.keys().signer(ES256).unwrap().to_owned();
    table
        .rotate(ES256, Rotation::Immediate, &act(stage))
        .await
        .unwrap();
    let shows = async || {
        poll_all_nodes(stage).await;
        let jwks = stage.server.browser().get("/oauth2/jwks").await.body;
        jwks.contains(&kid)
    };
    for hours in [1, 12, 12] {
        stage.check(1, shows().await, || "gone too early".to_owned());
        table.maintain(&act(stage)).await.unwrap();
        stage.server.advance(Duration::from_secs(hours * 3_600));
    }
    stage.check(1, shows().await, || "gone after 25 hours".to_owned());
    stage.server.advance(Duration::from_secs(2 * 3_600));
    stage.check(2, !shows().await, || "still there".to_owned());
}

async fn a286_concurrent_rotations_create_one_key(stage: &Stage) {
    for round in 1..=2 {
        stage.server.advance(DAY * 90);
        poll_all_nodes(stage).await;
        let tasks: Vec<_> = stage
            .all()
            .map(|node| {
                let (table, act) = (node.app.key_manager.table().clone(), act(stage));
                actix_web::rt::spawn(async move { table.maintain(&act).await })
            })
            .collect();
        for task in tasks {
            let kept = task.await.unwrap();
            stage.check(round, kept.is_ok(), || format!("{:?}", kept.err()));
        }
        let rows = stage
            .server
            .app
            .key_manager
            .table()
            .read(act(stage).now)
            .await
            .unwrap()
            .keys;
        for ring in stage.server.app.key_manager.table().rings() {
            let count = ring.among(&rows).count();
            stage.check(round, count == round + 2, || format!("{ring}: {count}"));
        }
    }
}

async fn a289_revoked_key_is_rejected_at_once(stage: &Stage) {
    for round in 1..=8 {
        let mut flow = Flow::begin(&stage.server).await;
        let tokens = redeem_new_code(&mut flow).await;
        let kid = stage.server.app.keys().signer(ES256).unwrap().to_owned();
        let table = stage.node(round).app.key_manager.table().clone();
        let now = act(stage);
        let (revoked, kept, rewrapped) = tokio::join!(
            table.revoke(&kid, "leaked", &now),
            table.maintain(&now),
            table.rewrap(&now)
        );
        stage.check(
            1,
            revoked.is_ok() && kept.is_ok() && rewrapped.is_ok(),
            || format!("round {round}"),
        );
        poll_all_nodes(stage).await;
        for node in stage.all() {
            let jwks = node.browser().get("/oauth2/jwks").await.body;
            stage.check(1, !jwks.contains(&kid), || "still published".to_owned());
            let answer = userinfo(node, tokens.access()).await;
            stage.check(2, answer.status == 401, || summary(&answer));
            stage.check(1, node.app.keys().signer(ES256) != Some(&kid), || {
                "still signs".to_owned()
            });
        }
        let query =
            format!("SELECT count(*) AS n FROM revocations WHERE kind = 'K' AND value = '{kid}'");
        stage.check(3, stage.server.count(&query) == 1, || {
            "not one record".to_owned()
        });
        let query = format!(
            "SELECT count(*) AS n FROM audit_events WHERE name = 'key.revoked' AND target = 'key:{kid}'"
        );
        stage.check(3, stage.server.count(&query) == 1, || {
            "not one event".to_owned()
        });
        stage.server.advance(Duration::from_secs(1));
    }
}

async fn userinfo(node: &Server, token: &str) -> Answer {
    let header = format!("Authorization: Bearer {token}");
    raw::request(&node.base, "GET", "/oauth2/userinfo", &[&header], "")
        .await
        .unwrap()
}

/// Checks that our userinfo endpoint and a resource server both reject the token.
async fn refused(stage: &Stage, case: usize, token: &str) {
    let answer = userinfo(stage.node(case), token).await;
    stage.check(case, answer.status == 401 || answer.status == 400, || {
        format!("{} for {token}", summary(&answer))
    });
    stage.expect(case, logged(&answer, "bearer.rejected", ""));
    let verdict =
        stage
            .server
            .api()
            .verify_at(token, &Need::any(), stage.server.clock.now().secs());
    stage.check(case, verdict.is_err(), || {
        format!("a resource server accepts {token}")
    });
    let here =
        stage
            .server
            .app
            .verifier()
            .verify_at(token, &Need::any(), stage.server.clock.now().secs());
    stage.check(case, here.is_err(), || {
        format!("this server accepts {token}")
    });
}

/// A valid access token of this server, from which forgeries are derived.
struct ValidToken {
    tokens: Tokens,
    kid: String,
    payload: Value,
}

impl ValidToken {
    async fn of(stage: &Stage) -> Self {
        let mut flow = Flow::begin(&stage.server).await;
        let tokens = redeem_new_code(&mut flow).await;
        let kid = stage.server.app.keys().signer(ES256).unwrap().to_owned();
        let payload = tokens.access_claims();
        Self {
            tokens,
            kid,
            payload,
        }
    }

    fn header(&self) -> Value {
        json!({ "typ": "at+jwt", "alg": "ES256", "kid": self.kid })
    }

    /// Signs any header and payload with the genuine key of this server.
    fn signed(&self, header: &str, payload: &str) -> String {
        let message = format!(
            "{}.{}",
            base64url(header.as_bytes()),
            base64url(payload.as_bytes())
        );
        let key = EncodingKey::from_ec_der(self.kid.as_bytes());
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::ES256);
        format!("{message}.{}", signature.unwrap())
    }

    fn with(&self, name: &str, value: Value) -> String {
        let mut header = self.header();
        header[name] = value;
        self.signed(&header.to_string(), &self.payload.to_string())
    }
}

/// Checks that [`ValidToken::signed`] creates valid tokens. Otherwise rejections would prove nothing.
fn genuine_signature_is_accepted(stage: &Stage, good: &ValidToken) {
    let token = good.signed(&good.header().to_string(), &good.payload.to_string());
    let now = stage.server.clock.now().secs();
    let verdict = stage
        .server
        .app
        .verifier()
        .verify_at(&token, &Need::any(), now);
    stage.check(0, verdict.is_ok(), || format!("{verdict:?}"));
}

async fn a290_jwts_with_wrong_alg_are_rejected(stage: &Stage) {
    let good = ValidToken::of(stage).await;
    genuine_signature_is_accepted(stage, &good);
    let payload = good.payload.to_string();
    for (case, alg) in (1..).zip([
        json!("none"),
        json!("None"),
        json!("nOnE"),
        json!(""),
        Value::Null,
        json!("ES384"),
        json!("RS256"),
        json!("PS256"),
    ]) {
        refused(stage, case, &good.with("alg", alg.clone())).await;
        let mut header = good.header();
        header["alg"] = alg;
        for signature in ["", "."] {
            let token = format!(
                "{}.{}{signature}",
                base64url(header.to_string().as_bytes()),
                base64url(payload.as_bytes())
            );
            refused(stage, case, &token).await;
        }
    }
    let mut header = good.header();
    header.as_object_mut().unwrap().remove("alg");
    refused(stage, 5, &good.signed(&header.to_string(), &payload)).await;
    // HMAC whose key is the published public key.
    let keys = stage.server.app.keys();
    let jwk = keys
        .published(Use::Token)
        .set
        .keys
        .iter()
        .find(|key| key.kid.as_ref() == Some(&good.kid))
        .unwrap()
        .clone();
    let part = |text: &Option<String>| {
        portcullis::secret::from_base64url(text.as_deref().unwrap()).unwrap()
    };
    let point = [vec![4], part(&jwk.x), part(&jwk.y)].concat();
    let secrets = [
        serde_json::to_vec(&jwk).unwrap(),
        point.clone(),
        base64url(&point).into_bytes(),
    ];
    for (name, alg) in [
        ("HS256", jsonwebtoken::Algorithm::HS256),
        ("HS384", jsonwebtoken::Algorithm::HS384),
        ("HS512", jsonwebtoken::Algorithm::HS512),
    ] {
        for secret in &secrets {
            let mut header = good.header();
            header["alg"] = json!(name);
            let message = format!(
                "{}.{}",
                base64url(header.to_string().as_bytes()),
                base64url(payload.as_bytes())
            );
            let signature = jsonwebtoken::crypto::sign(
                message.as_bytes(),
                &EncodingKey::from_secret(secret),
                alg,
            )
            .unwrap();
            refused(stage, 9, &format!("{message}.{signature}")).await;
        }
    }
    // The `kid` of a key of the other algorithm.
    let other = keys.signer(Ring::token(Alg::RS256)).unwrap();
    refused(stage, 10, &good.with("kid", json!(other))).await;
}

async fn a292_keys_in_jwt_headers_are_ignored(stage: &Stage) {
    let good = ValidToken::of(stage).await;
    let attacker = Generated::new(Alg::ES256, 2_048, &Entropy::seeded(6)).unwrap();
    let jwk = serde_json::to_value(attacker.public()).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/jwks", listener.local_addr().unwrap());
    let foreign = p256_key(6);
    for (case, name, value) in [
        (1, "jku", json!(url)),
        (2, "x5u", json!(url)),
        (3, "jwk", jwk),
        (4, "x5c", json!(["AA=="])),
    ] {
        let mut header = good.header();
        header[name] = value;
        for kid in [json!(attacker.public().kid), json!(good.kid)] {
            header["kid"] = kid;
            let message = format!(
                "{}.{}",
                base64url(header.to_string().as_bytes()),
                base64url(good.payload.to_string().as_bytes())
            );
            let signature = jsonwebtoken::crypto::sign(
                message.as_bytes(),
                &foreign,
                jsonwebtoken::Algorithm::ES256,
            )
            .unwrap();
            refused(stage, case, &format!("{message}.{signature}")).await;
        }
    }
    stage.check(5, listener.accept().is_err(), || {
        "a socket was opened".to_owned()
    });
}

/// A key that this server does not have.
fn p256_key(seed: u64) -> EncodingKey {
    use p256::pkcs8::EncodePrivateKey;
    let key = p256::SecretKey::random(&mut Entropy::seeded(seed));
    EncodingKey::from_ec_der(key.to_pkcs8_der().unwrap().as_bytes())
}

async fn a293_jwts_with_crit_are_rejected(stage: &Stage) {
    let good = ValidToken::of(stage).await;
    genuine_signature_is_accepted(stage, &good);
    let mut b64 = good.header();
    (b64["crit"], b64["b64"]) = (json!(["b64"]), json!(false));
    refused(
        stage,
        1,
        &good.signed(&b64.to_string(), &good.payload.to_string()),
    )
    .await;
    for (case, crit) in [
        (2, json!(["exp"])),
        (3, json!([])),
        (4, json!(["absent"])),
        (4, json!("b64")),
        (4, Value::Null),
    ] {
        refused(stage, case, &good.with("crit", crit)).await;
    }
}

async fn a294_malformed_signatures_are_rejected(stage: &Stage) {
    let good = ValidToken::of(stage).await;
    let token = good.signed(&good.header().to_string(), &good.payload.to_string());
    let (message, signature) = token.rsplit_once('.').unwrap();
    let bytes = portcullis::secret::from_base64url(signature).unwrap();
    let order = [
        0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xBC,
        0xE6, 0xFA, 0xAD, 0xA7, 0x17, 0x9E, 0x84, 0xF3, 0xB9, 0xCA, 0xC2, 0xFC, 0x63, 0x25, 0x51,
    ];
    let (r, s) = (&bytes[..32], &bytes[32..]);
    let pair = |r: &[u8], s: &[u8]| format!("{message}.{}", base64url(&[r, s].concat()));
    let der = p256::ecdsa::Signature::from_slice(&bytes).unwrap().to_der();
    let mut tail = signature.to_owned();
    let last = tail.pop().unwrap();
    // 64 bytes leave four bits of the last base64url character unused.
    let next = char::from_u32(last as u32 + 1).unwrap();
    let cases = [
        (1, format!("{message}.")),
        (2, message.to_owned()),
        (3, format!("{message}.{signature}.{signature}")),
        (3, format!("{message}.{signature}.")),
        (4, format!("{message}.{}", base64url(der.as_bytes()))),
        (5, pair(&[0; 32], s)),
        (5, pair(r, &[0; 32])),
        (5, pair(&[0; 32], &[0; 32])),
        (6, pair(&order, s)),
        (6, pair(r, &order)),
        (7, pair(&[0xFF; 32], s)),
        (
            8,
            format!("{message}.{}", base64url(&[&bytes[..], &[0]].concat())),
        ),
        (9, format!("{token}=")),
        (9, format!("{token}==")),
        (10, format!("{message}.{tail}{next}")),
        (
            11,
            format!("{message}.{} {}", &signature[..10], &signature[10..]),
        ),
    ];
    for (case, bent) in cases {
        refused(stage, case, &bent).await;
    }
}

async fn a295_invalid_claims_are_rejected(stage: &Stage) {
    let good = ValidToken::of(stage).await;
    let with = |claim: &str, value: Option<&str>| {
        let mut payload = good.payload.clone();
        let members = payload.as_object_mut().unwrap();
        members.remove(claim);
        let mut text = payload.to_string();
        if let Some(value) = value {
            // As text, because JSON has no NaN and `Value` no number of 2^64.
            text.insert_str(1, &format!(r#""{claim}":{value},"#));
        }
        good.signed(&good.header().to_string(), &text)
    };
    let iat = stage.server.clock.now().secs();
    let late = (iat + 61).to_string();
    let (longer, shorter) = (
        format!(r#""{ISSUER}/""#),
        format!(r#""{}""#, &ISSUER[..ISSUER.len() - 1]),
    );
    let substring = format!(r#""{}""#, &AUDIENCE[..AUDIENCE.len() - 1]);
    let cases = [
        (1, "exp", None),
        (1, "exp", Some(r#""9999999999""#)),
        (1, "exp", Some("NaN")),
        (1, "exp", Some("-1")),
        (1, "exp", Some("9223372036854775808")),
        (1, "exp", Some("18446744073709551616")),
        (2, "nbf", Some(r#""99999999999""#)),
        (3, "iat", Some(&late)),
        (4, "aud", None),
        (
            4,
            "aud",
            Some(r#"["https://a.example","https://b.example"]"#),
        ),
        (5, "iss", None),
        (5, "iss", Some(&longer)),
        (5, "iss", Some(&shorter)),
    ];
    for (case, claim, value) in cases {
        refused(stage, case, &with(claim, value)).await;
    }
    // UserInfo is not the audience of these tokens, so only the API compares it.
    let token = with("aud", Some(&substring));
    let now = stage.server.clock.now().secs();
    let verdict = stage.server.api().verify_at(&token, &Need::any(), now);
    stage.check(4, verdict.is_err(), || format!("accepted {token}"));
}

async fn a532_tokens_that_live_too_long_are_rejected(stage: &Stage) {
    let good = ValidToken::of(stage).await;
    let iat = good.payload["iat"].as_u64().unwrap();
    let year_10000 = 253_402_300_800_u64;
    for (case, exp) in [(1, iat + 3_631), (2, year_10000)] {
        let mut payload = good.payload.clone();
        payload["exp"] = json!(exp);
        let token = good.signed(&good.header().to_string(), &payload.to_string());
        refused(stage, case, &token).await;
    }
}

async fn a533_deeply_nested_claims_are_rejected(stage: &Stage) {
    let good = ValidToken::of(stage).await;
    for (case, levels) in [(1, 9), (2, 3_000)] {
        let value = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let payload = good
            .payload
            .to_string()
            .replacen('{', &format!(r#"{{"x":{value},"#), 1);
        refused(
            stage,
            case,
            &good.signed(&good.header().to_string(), &payload),
        )
        .await;
    }
}

async fn a296_duplicate_json_members_are_rejected(stage: &Stage) {
    let good = ValidToken::of(stage).await;
    let (header, payload) = (good.header().to_string(), good.payload.to_string());
    let twice = |text: &str, member: &str| format!("{{{member},{}", &text[1..]);
    for (case, member) in [
        (1, r#""alg":"none""#),
        (1, r#""kid":"x""#),
        (1, r#""typ":"JWT""#),
    ] {
        refused(stage, case, &good.signed(&twice(&header, member), &payload)).await;
    }
    for member in [
        r#""sub":"admin""#,
        r#""scope":"openid admin""#,
        r#""exp":9999999999"#,
        r#""aud":"https://other.example""#,
    ] {
        refused(stage, 2, &good.signed(&header, &twice(&payload, member))).await;
    }
}

async fn a297_jwts_of_another_type_are_rejected(stage: &Stage) {
    let good = ValidToken::of(stage).await;
    let id_token = good.tokens.0["id_token"].as_str().unwrap().to_owned();
    // An ID token, or anything else that our keys sign, is not an access token.
    refused(stage, 1, &id_token).await;
    for (case, typ) in [
        (2, "JWT"),
        (3, "logout+jwt"),
        (4, "dpop+jwt"),
        (5, "statuslist+jwt"),
        (6, "oauth-authz-req+jwt"),
        (7, "revocation-frame+jwt"),
    ] {
        refused(stage, case, &good.with("typ", json!(typ))).await;
    }
    let frame = stage
        .server
        .app
        .keys()
        .sign_frame("at+jwt", &good.payload)
        .unwrap();
    refused(stage, 8, &frame).await;
    // An access token is not an ID token: it is ignored as a hint, so logout asks for confirmation.
    let hint = |token: &str| format!("/oauth2/end_session?id_token_hint={token}");
    let read = |keys: &KeyView, token: &str| keys.verify(token, "JWT").is_some();
    let keys = stage.server.app.keys();
    stage.check(
        9,
        read(&keys, &id_token) && !read(&keys, good.tokens.access()),
        || "read as a hint".to_owned(),
    );
    let answer = stage
        .server
        .browser()
        .get(&hint(good.tokens.access()))
        .await;
    stage.check(9, answer.status < 500, || summary(&answer));
}

async fn a298_access_token_for_another_audience_is_rejected(stage: &Stage) {
    let good = ValidToken::of(stage).await;
    let now = stage.server.clock.now().secs();
    let keys = stage.server.app.keys().published(Use::Token).set.clone();
    let at = |audience: &str| {
        Verifier::builder(ISSUER, audience)
            .keys(keys.clone())
            .build()
            .unwrap()
    };
    let mut payload = good.payload.clone();
    payload["aud"] = json!(AUDIENCE);
    let token = good.signed(&good.header().to_string(), &payload.to_string());
    let here = at(AUDIENCE).verify_at(&token, &Need::any(), now);
    stage.check(1, here.is_ok(), || format!("{here:?}"));
    let there = at("https://rs2.example").verify_at(&token, &Need::any(), now);
    stage.check(1, there.is_err(), || "accepted at rs2".to_owned());
    payload["aud"] = json!([AUDIENCE, "https://rs2.example"]);
    let both = good.signed(&good.header().to_string(), &payload.to_string());
    let there = at("https://rs2.example").verify_at(&both, &Need::any(), now);
    stage.check(2, there.is_err(), || "accepted at rs2".to_owned());
    stage.check(2, good.payload["aud"].is_string(), || {
        "we issue several audiences".to_owned()
    });
}

async fn a302_altered_key_rows_do_not_open(stage: &Stage) {
    let table = stage.server.app.key_manager.table();
    let rows = table.read(act(stage).now).await.unwrap().keys;
    let ring: Vec<_> = ES256.among(&rows).collect();
    let (one, two) = (ring[0], ring[1]);
    let set = |what: String| format!("UPDATE signing_keys SET {what} WHERE kid = '{}'", one.kid);
    let pair = Generated::new(Alg::ES256, 2_048, &Entropy::seeded(8)).unwrap();
    let (evil, jwk) = (
        pair.public().thumbprint(),
        serde_json::to_string(pair.public()).unwrap(),
    );
    let cases = [
        (1, set(format!("sealed = '{}'", two.sealed)), &one.kid),
        (
            2,
            set("alg = 'RS256', generation = 50".to_owned()),
            &one.kid,
        ),
        (
            3,
            set("activate_at = activate_at - 1, publish_at = publish_at - 1".to_owned()),
            &one.kid,
        ),
        (
            4,
            format!(
                "INSERT INTO signing_keys VALUES ('{evil}', '{ISSUER}', 'token', 'ES256', 99, '{jwk}', '{}', 1, 1, NULL, NULL, NULL, NULL, 1)",
                one.sealed
            ),
            &evil,
        ),
    ];
    for (case, attack, kid) in cases {
        let mark = log::mark();
        stage.server.execute(&attack);
        for node in stage.all() {
            node.app.refresh_key_view().await.unwrap();
            let view = node.app.keys();
            stage.check(case, view.signer(ES256) == Some(&one.kid), || {
                "another signs".to_owned()
            });
            stage.check(case, view.corrupt().contains_key(kid), || {
                "not noticed".to_owned()
            });
            let jwks = node.browser().get("/oauth2/jwks").await.body;
            stage.check(case, !jwks.contains(&evil), || jwks);
        }
        let told = log::since(mark)
            .iter()
            .any(|event| event.get("event").is_some_and(|name| name == "key.corrupt"));
        stage.check(case, told, || "no key.corrupt".to_owned());
        // A node without a valid cached copy omits the key.
        let snapshot = table.read(act(stage).now).await.unwrap();
        let fresh = KeyView::build(
            &snapshot.keys,
            &snapshot.blocked,
            &table.keychain(),
            None,
            act(stage).now,
        )
        .unwrap();
        let shown = String::from_utf8_lossy(&fresh.published(Use::Token).bytes).into_owned();
        stage.check(case, !shown.contains(kid.as_str()), || shown);
        let undo = [
            format!("DELETE FROM signing_keys WHERE kid = '{evil}'"),
            set(format!(
                "sealed = '{}', alg = 'ES256', generation = 1, activate_at = {}, publish_at = {}",
                one.sealed,
                one.activate_at.micros(),
                one.publish_at.micros()
            )),
        ];
        undo.iter()
            .for_each(|statement| stage.server.execute(statement));
        for node in stage.all() {
            node.app.refresh_key_view().await.unwrap();
        }
    }
    stage
        .server
        .execute(&set("revoked_at = 5, sealed = 'broken'".to_owned()));
    for node in stage.all() {
        node.app.refresh_key_view().await.unwrap();
        stage.check(5, node.app.keys().signer(ES256) == Some(&two.kid), || {
            "it signs on".to_owned()
        });
    }
}

async fn a304_discovery_offers_no_weak_options(stage: &Stage) {
    let mut bodies = Vec::new();
    for node in stage.all() {
        for path in [
            "/.well-known/openid-configuration",
            "/.well-known/oauth-authorization-server",
        ] {
            bodies.push(node.browser().get(path).await.body);
        }
    }
    stage.check(1, bodies.iter().all(|body| *body == bodies[0]), || {
        "nodes differ".to_owned()
    });
    let metadata: Value = serde_json::from_str(&bodies[0]).unwrap();
    stage.check(2, metadata["issuer"] == ISSUER, || {
        metadata["issuer"].to_string()
    });
    stage.check(
        3,
        metadata["response_types_supported"] == json!(["code"]),
        || bodies[0].clone(),
    );
    stage.check(
        4,
        metadata["code_challenge_methods_supported"] == json!(["S256"]),
        || bodies[0].clone(),
    );
    for (name, value) in metadata.as_object().unwrap() {
        if name.contains("_alg_") {
            stage.check(5, !value.to_string().contains("none"), || {
                format!("{name}: {value}")
            });
        }
        let plain = value.as_str().is_some_and(|text| text.starts_with("http:"));
        stage.check(6, !plain, || format!("{name}: {value}"));
    }
}

async fn a305_discovery_ignores_the_request_host(stage: &Stage) {
    let path = "/.well-known/openid-configuration";
    let good = stage.server.browser().get(path).await.body;
    let bytes = format!("GET {path} HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n");
    let answer = raw::bytes(&stage.node(1).base, bytes.into_bytes())
        .await
        .unwrap();
    stage.check(
        1,
        answer.status == 421 && !answer.body.contains(ISSUER_LIKE),
        || summary(&answer),
    );
    stage.expect(1, logged(&answer, "http.bad_host", ""));
    for line in [
        "X-Forwarded-Host: evil.test",
        "Forwarded: host=evil.test;proto=http",
    ] {
        let answer = raw::request(&stage.node(2).base, "GET", path, &[line], "")
            .await
            .unwrap();
        stage.check(2, answer.status == 200 && answer.body == good, || {
            summary(&answer)
        });
    }
    for (case, odd) in [
        (3, "//.well-known/openid-configuration"),
        (4, "/.well-known/openid-configuration/"),
    ] {
        let answer = raw::request(&stage.node(case).base, "GET", odd, &[], "")
            .await
            .unwrap();
        stage.check(case, answer.status == 404, || summary(&answer));
    }
}

/// The beginning of the metadata if the server trusted the request's host.
const ISSUER_LIKE: &str = "\"issuer\":\"https://evil.test";

/// A private key on a curve that the server does not support: P-224.
const P224: &str = "\
-----BEGIN PRIVATE KEY-----
MHgCAQAwEAYHKoZIzj0CAQYFK4EEACEEYTBfAgEBBBxmWJ0F+3S6dzuvEPBZqx9m
pdd7MK5g7VZfHWoToTwDOgAEHfAa+1bnWPt95Y/dFttn6gZc+PE6yxmk2tWFR8iq
Lab+7+p1qmty5PhxJCk/w4sbp37V0GlwClk=
-----END PRIVATE KEY-----
";
/// A private key on a curve that the server does not support: P-521.
const P521: &str = "\
-----BEGIN PRIVATE KEY-----
MIHuAgEAMBAGByqGSM49AgEGBSuBBAAjBIHWMIHTAgEBBEIArvo/erWO1jVa04fH
6nV9BJe1RbdwvYtZqoL4ecmz1ObeKQubMgprzy1eRGikv+2+gVyHJzRI+5d3n8Sb
46NsPEqhgYkDgYYABACexWQD/N2a3AtZ/I/+UkPZu/1riWBcC4UM0MF9O0Zhm84F
JM3qO/byhmTGTJjPDiaxZY8QuuQ7/PRJ5+QcaUwFqAHowAuWvlzk9LCPOrMqA6uD
Yql4N6WQdH8XncY9BVgSR0fptrkd91J0156ayt9LaLdZjw+uSa0kLqP2A4FCkA1d
tQ==
-----END PRIVATE KEY-----
";
/// A private key on a curve that the server does not support: secp256k1.
const K256: &str = "\
-----BEGIN PRIVATE KEY-----
MIGEAgEAMBAGByqGSM49AgEGBSuBBAAKBG0wawIBAQQg1NXDfIUJu4YpcZMjC+HE
ef8TVaEL/6yJJx26cjxpkh+hRANCAAQW8eRZajMpx6q3ue58kfBfPPw5tEk3rsRb
rGpJDQH+9ig+VZ1t32gqi+gHbRAj6V2Ffh+ONp8tkhwMy08rbQ3O
-----END PRIVATE KEY-----
";

async fn a525_skewed_node_answers_503(stage: &Stage) {
    if stage.db() == Db::Sqlite {
        // An embedded database has no clock of its own, so there is no skew.
        return stage.check(0, true, String::new);
    }
    let (server, off) = (&stage.server, Arc::new(AtomicI64::new(0)));
    let node = server.skewed_node(&off).await;
    let mut flow = Flow::begin(server).await;
    let tokens = redeem_new_code(&mut flow).await;
    for (case, seconds) in [(1, 90), (2, -600), (3, 3_600), (4, 8_640_000)] {
        // A code, a login page and a consent page of a node with the right clock.
        let code = flow.code().await;
        let mut bob = server.browser();
        let login = bob.opens(&flow.web.request(&[])).await;
        let mut dora = server.enters("bob").await;
        let consent = dora.opens(&flow.web.request(&[])).await;
        node.gets_ready().await;
        let mark = log::mark();
        off.store(seconds * 1_000_000, Ordering::SeqCst);
        node.fails_check("clock").await;
        let told = log::since(mark).iter().any(|event| {
            let is = |field: &str, value: &str| event.get(field).is_some_and(|is| is == value);
            is("event", "node.degraded") && is("reason", "node_clock") && is("severity", "high")
        });
        stage.check(case, told, || "no node.degraded".to_owned());
        let (rows, throttles) = (stage.rows(), "SELECT count(*) AS n FROM throttles");
        let counted = server.count(throttles);

        let web = flow.web.at(&node.base);
        for answer in [
            web.redeems(&code).await,
            web.refreshes(tokens.refresh(), &[]).await,
        ] {
            stage.expect(case, json_error(&answer, 503, "temporarily_unavailable"));
            stage.check(case, answer.header("retry-after").is_some(), || {
                summary(&answer)
            });
            stage.expect(case, logged(&answer, "key.unusable", "clock"));
        }
        let (mut alice, mut bob, mut dora) = (
            flow.alice.at(&node.base),
            bob.at(&node.base),
            dora.at(&node.base),
        );
        for answer in [
            alice.get(&flow.web.request(&[])).await,
            bob.fills_in(&login, "bob", PASSWORD).await,
            bob.fills_in(&login, "bob", "not the password").await,
            dora.decides(&consent, "allow").await,
            bob.get("/setup").await,
            bob.post("/setup", &[("link", "x")]).await,
        ] {
            stage.expect(case, page(&answer, 503));
            stage.check(case, answer.header("retry-after").is_some(), || {
                summary(&answer)
            });
            stage.expect(case, logged(&answer, "node.unready", "clock"));
        }
        stage.check(case, stage.rows() == rows, || {
            format!("{} rows, before {rows}", stage.rows())
        });
        stage.check(case, server.count(throttles) == counted, || {
            "a failure was counted by the wrong clock".to_owned()
        });
        // Revocation and logout still work, and the published keys are served.
        let jwks = alice.get("/oauth2/jwks").await;
        stage.check(case, jwks.status == 200, || summary(&jwks));
        let revoked = web.revokes("pcl_rt_unknown").await;
        stage.check(case, revoked.status == 200, || summary(&revoked));

        // With the right clock the node is ready a few seconds later, and nothing was consumed.
        off.store(0, Ordering::SeqCst);
        node.app.poll().await.ok();
        let (status, failed) = node.readiness().await;
        stage.check(case, status == 503 && failed == ["clock"], || {
            format!("{status} {failed:?}")
        });
        server.advance(Duration::from_secs(6));
        node.gets_ready().await;
        let redeemed = web.redeems(&code).await;
        stage.check(case, redeemed.status == 200, || summary(&redeemed));
        let signed_in = bob.fills_in(&login, "bob", PASSWORD).await;
        stage.check(case, signed_in.status == 200, || summary(&signed_in));
    }
    // Every 5xx was expected.
    journal::begin();
    node.stop().await;
}

/// The command prints the claims of a genuine token that contain control characters of a terminal.
async fn a528_token_introspect_escapes_hostile_claims(stage: &Stage) {
    let installation = Installation::on(stage.db());
    assert_eq!(installation.serve(&[]).stop(), Some(0));
    let issuer = "http://localhost:8080";
    let mut config = portcullis::config::Config {
        issuer: Some(issuer.to_owned()),
        ..portcullis::config::Config::default()
    };
    let database = installation.folder.join("data/portcullis.db");
    config.database.url = Some(match &installation.database {
        Some(url) => url.clone(),
        None => format!("sqlite:{}", database.display()),
    });
    let kek = installation.folder.join("keys/kek");
    config.keys.kek = vec![format!("file:{}", kek.display())];
    let (entropy, now) = (Entropy::system(), Clock::System.now());
    let store = portcullis::app::open(&config, entropy.clone()).unwrap();
    let table = portcullis::app::key_table(&config, &store, &entropy);
    let table = table.await.unwrap();
    let rows = table.read(now).await.unwrap();
    let keys = KeyView::build(&rows.keys, &rows.blocked, &table.keychain(), None, now).unwrap();
    let hostile = "x\u{1b}[2J\r\u{202e}\n\u{9b}31m";
    let valid = ValidToken::of(stage).await;
    let mut payload = valid.payload;
    (payload["iss"], payload["client_id"]) = (issuer.into(), hostile.into());
    (payload["iat"], payload["exp"]) = (now.secs().into(), (now.secs() + 300).into());
    payload["roles"] = json!([hostile]);
    let token = keys.sign(Alg::ES256, "at+jwt", &payload).unwrap();
    for (case, format) in [(1, "table"), (2, "json")] {
        let printed = installation.told(&["token", "introspect", "--format", format], &token);
        let is_raw = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        stage.check(case, !printed.contains(is_raw), || {
            printed.escape_default().to_string()
        });
        stage.check(case, printed.contains("\\u001b"), || printed.clone());
    }
}
