//! Generator of `vectors/records.json` and `vectors/frames.json`. The output is deterministic,
//! because all keys are fixed and all signatures are deterministic.

use portcullis_verifier::{Claims, Frame, Kind, Record, Records};
use serde_json::{Value, json};

use crate::signer::{ISSUER, NOW, Signer, claims};
use crate::vector_tokens::signed;

/// Seed of the key that signs frames. The key that signs tokens has the seed 1.
const FEED_KEY: u8 = 77;

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn records() -> Value {
    let records = [
        (
            Kind::Token,
            "0198c0de-0000-7000-8000-000000000003",
            0,
            1_800_000_360,
        ),
        (
            Kind::Session,
            "0198c0de-0000-7000-8000-000000000005",
            0,
            1_800_000_365,
        ),
        (
            Kind::Grant,
            "0198c0de-0000-7000-8000-000000000004",
            0,
            1_800_000_365,
        ),
        (
            Kind::Key,
            "JMEzzVkRq2Xx3n0q9cAWzjaGSEvRNZC9FTtvcbpUAyk",
            0,
            1_834_560_000,
        ),
        (Kind::User, "alice", 4, 1_800_000_365),
        (Kind::User, "Ålice\u{1f980}", 1, 1_800_000_365),
        (Kind::Client, "shop", u32::MAX, u32::MAX),
        (Kind::Client, "", 1, 0),
    ];
    let cases = records.map(|(kind, value, floor, expires)| {
        let packed = Record::new(kind, value, floor, expires).pack();
        json!({
            "kind": kind.letter().to_string(), "value": value, "floor": floor, "expires": expires,
            "packed": hex(&packed),
        })
    });
    let two = Records(vec![
        Record::new(Kind::Session, "s", 0, 1),
        Record::new(Kind::User, "u", 2, 3),
    ]);
    let good = two.encode();
    let mut floor = two.clone();
    floor.0[0].floor = 1;
    let kind = format!("WA{}", &good[2..]);
    json!({
        "about": "Revocation records and their 25 bytes. See README.md.",
        "records": cases,
        "lists": [
            {"name": "none", "encoded": "", "length": 0},
            {"name": "two", "encoded": good, "length": 2},
            {"name": "a letter too few", "encoded": &good[..66], "length": null},
            {"name": "24 bytes", "encoded": &good[..32], "length": null},
            {"name": "padding", "encoded": format!("{good}="), "length": null},
            {"name": "an unknown kind", "encoded": kind, "length": null},
            {"name": "a floor where none belongs", "encoded": floor.encode(), "length": null},
        ],
    })
}

fn session(number: u64) -> Record {
    Record::new(
        Kind::Session,
        &format!("session-{number}"),
        0,
        1_800_000_365,
    )
}

/// Returns a frame that revokes the sessions from `after` + 1 to `last`, signed `secs` seconds
/// after the start.
fn frame(epoch: u64, after: u64, last: u64, secs: u64) -> Frame {
    let at_us = (NOW + secs) * 1_000_000;
    Frame {
        iss: ISSUER.into(),
        v: 1,
        iat: NOW + secs,
        exp: NOW + secs + 30,
        epoch,
        after,
        last,
        records: Records((after + 1..=last).map(session).collect()),
        at_us,
        as_of_us: Some(at_us),
        jwks_etag: "\"one\"".into(),
    }
}

fn with(frame: Frame, change: impl FnOnce(&mut Frame)) -> Frame {
    let mut frame = frame;
    change(&mut frame);
    frame
}

fn header(alg: &str, typ: &str, kid: &str) -> String {
    format!(r#"{{"alg":"{alg}","typ":"{typ}","kid":"{kid}"}}"#)
}

fn jws(frame: &Frame) -> String {
    let kid = Signer::es256(FEED_KEY);
    let header = header("ES256", "revocation-frame+jwt", kid.kid());
    signed(FEED_KEY, &header, &serde_json::to_string(frame).unwrap())
}

/// Returns the step in which a frame arrives, `secs` seconds after the preceding step.
fn step(secs: u64, frame: String, outcome: &str, position: &str, age: Option<u64>) -> Value {
    json!({
        "elapse": secs, "frame": frame, "outcome": outcome, "position": position,
        "age_us": age.map(|age| age * 1_000_000),
    })
}

/// Returns a token and its expected verdict after all steps, with a `max_age` of 60 s.
fn token(claims: &Claims, verdict: &str) -> Value {
    let kid = Signer::es256(1);
    json!({"kid": kid.kid(), "claims": claims, "verdict": verdict})
}

fn claims_of_session(number: u64) -> Claims {
    Claims {
        sid: Some(format!("session-{number}")),
        ..claims()
    }
}

fn claims_of_rev(rev: &str) -> Claims {
    Claims {
        rev: rev.parse().unwrap(),
        ..claims()
    }
}

pub fn frames() -> Value {
    json!({
        "about": "The feed, frame by frame, and what a verifier makes of it. See README.md.",
        "issuer": ISSUER, "now": NOW, "jwks": {"keys": [Signer::es256(FEED_KEY).jwk]},
        "stories": [
            {"name": "before the first frame", "steps": [], "tokens": [token(&claims(), "stale")]},
            follows(), kinds(), forged(), times(), numbers(), epochs(),
        ],
    })
}

fn follows() -> Value {
    let unfinished = with(frame(1, 0, 2, 0), |frame| frame.as_of_us = None);
    json!({
        "name": "a snapshot of two frames, a heartbeat, news, and a minute of silence",
        "steps": [
            step(0, jws(&unfinished), "applied", "1:2", None),
            step(0, jws(&frame(1, 2, 4, 0)), "applied", "1:4", Some(0)),
            step(1, jws(&frame(1, 4, 4, 1)), "applied", "1:4", Some(0)),
            step(1, jws(&frame(1, 4, 5, 2)), "applied", "1:5", Some(0)),
            // No frame arrives for 61 s.
            {"elapse": 61, "frame": null, "outcome": null, "position": "1:5", "age_us": 61_000_000},
        ],
        "tokens": [token(&claims_of_session(1), "revoked"), token(&claims_of_session(5), "revoked"), token(&claims_of_session(6), "stale")],
    })
}

fn kinds() -> Value {
    let record = |kind, value: &str, floor| Record::new(kind, value, floor, 1_800_000_365);
    let all = with(frame(1, 0, 6, 0), |frame| {
        frame.records = Records(vec![
            record(Kind::Token, "token-1", 0),
            record(Kind::Session, "session-1", 0),
            record(Kind::Grant, "grant-1", 0),
            record(Kind::User, "bob", 4),
            record(Kind::Client, "kiosk", 3),
            record(Kind::Key, "a key that is gone", 0),
        ]);
    });
    let bob = |rev| Claims {
        sub: "bob".into(),
        ..claims_of_rev(rev)
    };
    let kiosk = |rev| Claims {
        sub: "kiosk".into(),
        client_id: "kiosk".into(),
        ..claims_of_rev(rev)
    };
    let changed = |change: fn(&mut Claims)| {
        let mut claims = claims();
        change(&mut claims);
        claims
    };
    json!({
        "name": "each kind of record",
        "steps": [step(0, jws(&all), "applied", "1:6", Some(0))],
        "tokens": [
            token(&claims(), "ok"),
            token(&changed(|claims| claims.jti = "token-1".into()), "revoked"),
            token(&changed(|claims| claims.sid = Some("session-1".into())), "revoked"),
            token(&changed(|claims| claims.grant_id = Some("grant-1".into())), "revoked"),
            token(&changed(|claims| claims.jti = "session-1".into()), "ok"),
            token(&bob("1.1.3"), "revoked"),
            token(&bob("1.1.4"), "ok"),
            token(&bob("1.1"), "ok"),
            token(&kiosk("1.2"), "revoked"),
            token(&kiosk("1.3"), "ok"),
            {"kid": "a key that is gone", "claims": claims(), "verdict": "revoked"},
        ],
    })
}

fn forged() -> Value {
    let valid = frame(1, 0, 1, 0);
    let payload = serde_json::to_string(&valid).unwrap();
    let (feed, other) = (Signer::es256(FEED_KEY), Signer::es256(5));
    let good = jws(&valid);
    let typ = "revocation-frame+jwt";
    let rejected = |frame: String| json!({"elapse": 0, "frame": frame, "outcome": "rejected", "position": null, "age_us": null});
    let changed = |change: fn(&mut Frame)| rejected(jws(&with(valid.clone(), change)));
    let duplicate = payload.replace("\"last\":1", "\"last\":0,\"last\":1");
    let missing = payload.replace("\"jwks_etag\"", "\"x\"");
    let with_header =
        |alg: &str, typ: &str| rejected(signed(FEED_KEY, &header(alg, typ, feed.kid()), &payload));
    json!({
        "name": "forged and broken frames",
        "steps": [
            with_header("none", typ), with_header("HS256", typ), with_header("RS256", typ),
            with_header("ES256", "at+jwt"), with_header("ES256", "JWT"),
            rejected(signed(5, &header("ES256", typ, feed.kid()), &payload)),
            rejected(signed(5, &header("ES256", typ, other.kid()), &payload)),
            rejected(good[..good.len() - 4].to_owned()),
            rejected(good[..good.len() / 2].to_owned()),
            rejected(signed(FEED_KEY, &header("ES256", typ, feed.kid()), &duplicate)),
            rejected(signed(FEED_KEY, &header("ES256", typ, feed.kid()), &missing)),
            changed(|frame| frame.iss = "https://id.example/".into()),
            changed(|frame| frame.v = 0), changed(|frame| frame.v = 2),
            changed(|frame| frame.last = 0), changed(|frame| frame.after = 2),
            rejected(String::new()), rejected("{}".into()),
        ],
        "tokens": [token(&claims_of_session(1), "stale")],
    })
}

fn times() -> Value {
    let first = jws(&frame(1, 0, 1, 0));
    let constant = with(frame(1, 1, 1, 75), |frame| {
        frame.as_of_us = Some((NOW + 35) * 1_000_000)
    });
    json!({
        "name": "replayed, held back, and without a database",
        "steps": [
            step(0, first.clone(), "applied", "1:1", Some(0)),
            step(10, first.clone(), "applied", "1:1", Some(10)),
            step(20, first.clone(), "applied", "1:1", Some(30)),
            step(1, first, "skew", "1:1", Some(31)),
            // Signed by a clock that is 31 s ahead.
            step(0, jws(&frame(1, 1, 1, 62)), "skew", "1:1", Some(31)),
            step(9, jws(&frame(1, 1, 1, 35)), "applied", "1:1", Some(0)),
            // Signed now, but the data is only complete as of 40 s ago.
            step(35, jws(&constant), "applied", "1:1", Some(35)),
            step(0, jws(&with(frame(1, 1, 1, 75), |frame| frame.as_of_us = Some((NOW + 40) * 1_000_000))), "applied", "1:1", Some(35)),
        ],
        "tokens": [token(&claims_of_session(1), "revoked"), token(&claims_of_session(2), "ok")],
    })
}

fn numbers() -> Value {
    let user = |floor| Record::new(Kind::User, "alice", floor, 1_800_000_365);
    let with_floor = |after, last, floor| {
        let frame = frame(1, after, last, 0);
        jws(&with(frame, |frame| {
            frame.records = Records(vec![user(floor)])
        }))
    };
    json!({
        "name": "gaps, doubles, and frames out of order",
        "steps": [
            step(0, jws(&frame(1, 0, 5, 0)), "applied", "1:5", Some(0)),
            step(0, jws(&frame(1, 7, 8, 0)), "gap", "1:5", Some(0)),
            step(0, jws(&frame(1, 0, 3, 0)), "applied", "1:5", Some(0)),
            step(0, jws(&frame(1, 4, 7, 0)), "applied", "1:7", Some(0)),
            step(0, jws(&frame(1, 7, 8, 0)), "applied", "1:8", Some(0)),
            step(0, with_floor(8, 9, 4), "applied", "1:9", Some(0)),
            // The record of a number may have expired, and a lower floor has no effect.
            step(0, with_floor(8, 11, 2), "applied", "1:11", Some(0)),
        ],
        "tokens": [
            token(&claims_of_session(8), "revoked"), token(&claims_of_rev("1.2.3"), "revoked"),
            token(&claims_of_rev("1.2.4"), "ok"),
        ],
    })
}

fn epochs() -> Value {
    json!({
        "name": "a newer epoch",
        "steps": [
            step(0, jws(&frame(1, 0, 2, 0)), "applied", "1:2", Some(0)),
            // The records before the frame are missing, and the data of the older epoch is
            // discarded.
            step(0, jws(&frame(7, 3, 3, 0)), "gap", "7:0", None),
            step(0, jws(&frame(1, 2, 3, 0)), "rollback", "7:0", None),
            step(0, jws(&frame(7, 0, 1, 0)), "applied", "7:1", Some(0)),
        ],
        "tokens": [
            token(&claims_of_rev("1.2.3"), "revoked"), token(&claims_of_rev("6.2.3"), "revoked"),
            token(&claims_of_rev("7.2.3"), "ok"), token(&claims_of_rev("8.2.3"), "stale"),
            token(&Claims { sid: Some("session-2".into()), ..claims_of_rev("7.2.3") }, "ok"),
            token(&Claims { sid: Some("session-1".into()), ..claims_of_rev("7.2.3") }, "revoked"),
        ],
    })
}
