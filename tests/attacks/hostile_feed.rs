//! Rows of the catalogue: a verifier whose issuer sends forged frames, withholds frames, or is
//! unreachable. `crates/verifier/tests/verifier/feed_faults.rs` has further cases.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use portcullis_verifier::{Frame, MaxAge, Need, Rejected, StartError, Verifier};
use serde_json::json;

use crate::feed_issuer::{FeedIssuer, feed_key, session, signed, signed_by, token_key};
use crate::fixtures::client::basic;
use crate::fixtures::log;
use crate::signer::{Signer, claims, unsigned};
use crate::token_code::Flow;
use crate::token_refresh::redeem_new_code;
use crate::{Row, Stage, expect, row};

pub const ROWS: &[Row] = &[
    row!(a425_forged_feed_frames_are_refused),
    row!(a426_replayed_feed_frames_are_refused),
    row!(a428_feed_gaps_are_requested_from_the_own_position),
    row!(a430_unsigned_and_old_feeds_are_refused),
    row!(a432_status_claim_is_ignored_without_status_lists),
    row!(a436_offline_verifier_catches_up),
];

const TYP: &str = "revocation-frame+jwt";
const HIGH: Option<&str> = Some("high");

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn verdict(verifier: &Verifier, token: &str) -> Result<(), Rejected> {
    verifier.verify(token, &Need::any()).map(drop)
}

/// A verifier that has received the revocation of session 1, and its issuer.
struct MisledVerifier {
    issuer: FeedIssuer,
    verifier: Verifier,
    mark: usize,
}

impl MisledVerifier {
    async fn begin() -> Self {
        Self::on(FeedIssuer::start().await).await
    }

    async fn on(issuer: FeedIssuer) -> Self {
        let mark = log::mark();
        let verifier = issuer.followed_by(issuer.subscriber()).await;
        issuer.revoke_and_tell(&[session(1)]).await;
        Self {
            issuer,
            verifier,
            mark,
        }
    }

    /// Waits until the verifier has processed all frames sent so far. Does not change the feed's age.
    async fn processes_all_frames(&self) {
        let before = self.issuer.last();
        self.issuer
            .revoke(&[session(1_000 + usize::try_from(before).unwrap())]);
        self.issuer.send(&Frame {
            as_of_us: None,
            ..self.issuer.frame(before)
        });
        self.issuer.acked(before + 1).await;
    }

    /// Returns the events about frames that this verifier has logged, with their severity.
    fn logged(&self) -> Vec<(String, Option<String>)> {
        let ours = |event: &log::Event| event.get("address") == Some(&self.issuer.url);
        let events = log::since(self.mark).into_iter().filter(ours);
        events
            .filter_map(|event| Some((event.get("event")?.clone(), event.get("severity").cloned())))
            .collect()
    }

    fn has_logged(&self, event: &str, severity: Option<&str>) -> bool {
        let wanted = (event.to_owned(), severity.map(str::to_owned));
        self.logged().contains(&wanted)
    }

    fn age(&self) -> Duration {
        self.verifier.metrics().feed_age.unwrap_or(Duration::MAX)
    }

    fn position(&self) -> String {
        let position = self.verifier.metrics().feed_position;
        position.map_or_else(String::new, |position| position.to_string())
    }

    /// Returns whether the verifier keeps its last valid state: session 1 is revoked, session 2 is not.
    fn keeps_state(&self) -> bool {
        verdict(&self.verifier, &self.token(1)) == Err(Rejected::Revoked)
            && verdict(&self.verifier, &self.token(2)) == Ok(())
    }

    /// Returns a valid token of the feed's epoch.
    fn token(&self, number: usize) -> String {
        let mut claims = self.issuer.claims(number);
        claims.rev.feed_epoch = self.issuer.state.lock().unwrap().epoch;
        token_key().token(&claims)
    }

    fn state(&self) -> String {
        let (at, age, logged) = (self.position(), self.age(), self.logged());
        format!("at {at}, {age:?} old, logged {logged:?}")
    }
}

/// Returns a frame that would revoke session 2 if the verifier accepted it.
fn forged_frame(issuer: &FeedIssuer) -> Frame {
    let after = issuer.last();
    let mut frame = issuer.frame(after);
    frame.records.0.push(session(2));
    frame.last += 1;
    frame
}

fn header(alg: &str, typ: &str, kid: &str) -> String {
    json!({ "alg": alg, "typ": typ, "kid": kid }).to_string()
}

/// Signs with an HMAC whose key is the published public key.
fn keyed_with_the_public_key(payload: &str) -> String {
    let jwk = serde_json::to_string(&feed_key().jwk).unwrap();
    let message = unsigned(&header("HS256", TYP, feed_key().kid()), payload);
    let key = EncodingKey::from_secret(jwk.as_bytes());
    let mac = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256);
    format!("{message}.{}", mac.unwrap())
}

/// Flips one bit of the signed payload.
fn flipped(jws: &str) -> String {
    let parts: Vec<&str> = jws.split('.').collect();
    let mut payload = URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
    let middle = payload.len() / 2;
    payload[middle] ^= 1;
    let payload = URL_SAFE_NO_PAD.encode(payload);
    [parts[0], &payload, parts[2]].join(".")
}

async fn a425_forged_feed_frames_are_refused(stage: &Stage) {
    let forgeries: [(usize, fn(&FeedIssuer) -> String); 8] = [
        (1, |issuer| {
            let payload = serde_json::to_string(&forged_frame(issuer)).unwrap();
            unsigned(&header("none", TYP, feed_key().kid()), &payload) + "."
        }),
        (2, |issuer| {
            keyed_with_the_public_key(&serde_json::to_string(&forged_frame(issuer)).unwrap())
        }),
        (3, |issuer| {
            signed_by(&Signer::es256(5), &forged_frame(issuer))
        }),
        (4, |issuer| signed_by(&token_key(), &forged_frame(issuer))),
        (4, |issuer| {
            let payload = serde_json::to_string(&forged_frame(issuer)).unwrap();
            feed_key().sign(&header("ES256", "at+jwt", feed_key().kid()), &payload)
        }),
        (5, |issuer| {
            let good = signed(&forged_frame(issuer));
            good[..good.len() / 2].to_owned()
        }),
        (5, |issuer| {
            let good = signed(&forged_frame(issuer));
            good[..good.len() - 2].to_owned()
        }),
        (6, |issuer| flipped(&signed(&forged_frame(issuer)))),
    ];
    for (case, forge) in forgeries {
        let misled = MisledVerifier::begin().await;
        misled.issuer.clock.advance(seconds(5));
        misled.issuer.send_raw(&forge(&misled.issuer));
        misled.processes_all_frames().await;
        let refused = misled.has_logged("feed.rejected", HIGH) && misled.logged().len() == 1;
        stage.check(case, refused, || misled.state());
        let kept = misled.keeps_state() && misled.position() == "1:2" && misled.age() == seconds(5);
        stage.check(case, kept, || misled.state());
        // Only a valid frame makes the state fresh again.
        misled.issuer.clock.advance(seconds(60));
        let stale = verdict(&misled.verifier, &misled.issuer.token(2)) == Err(Rejected::Stale);
        stage.check(case, stale, || misled.state());
        misled.issuer.revoke_and_tell(&[session(3)]).await;
        stage.check(
            case,
            misled.keeps_state() && misled.age() < seconds(1),
            || misled.state(),
        );
    }
}

async fn a426_replayed_feed_frames_are_refused(stage: &Stage) {
    let issuer = FeedIssuer::start().await;
    issuer.change(|state| state.epoch = 5);
    let misled = MisledVerifier::on(issuer).await;
    misled.issuer.clock.advance(seconds(5));
    misled.issuer.send(&Frame {
        epoch: 4,
        ..forged_frame(&misled.issuer)
    });
    misled.processes_all_frames().await;
    let refused = misled.has_logged("feed.rollback", HIGH) && misled.logged().len() == 1;
    let kept = misled.keeps_state() && misled.position() == "5:2" && misled.age() == seconds(5);
    stage.check(1, refused && kept, || misled.state());
    // The same frame replayed after 10 s and after 31 s.
    let misled = MisledVerifier::begin().await;
    let old = signed(&misled.issuer.frame(0));
    misled.issuer.clock.advance(seconds(10));
    misled.issuer.send_raw(&old);
    misled.processes_all_frames().await;
    let no_news = misled.keeps_state() && misled.position() == "1:2" && misled.age() == seconds(10);
    stage.check(2, no_news && misled.logged().is_empty(), || misled.state());
    misled.issuer.clock.advance(seconds(21));
    misled.issuer.send_raw(&old);
    misled.processes_all_frames().await;
    let refused = misled.has_logged("feed.skew", None) && misled.logged().len() == 1;
    let kept = misled.keeps_state() && misled.position() == "1:3" && misled.age() == seconds(31);
    stage.check(3, refused && kept, || misled.state());
}

async fn a428_feed_gaps_are_requested_from_the_own_position(stage: &Stage) {
    // The verifier is at position 5 and receives a frame after position 7 while the issuer answers 503.
    let misled = MisledVerifier::begin().await;
    let more: Vec<_> = (11..15).map(session).collect();
    misled.issuer.revoke_and_tell(&more).await;
    misled.issuer.revoke(&[21, 22, 23].map(session));
    misled.issuer.change(|state| state.status = 503);
    misled.issuer.send(&misled.issuer.frame(7));
    misled.issuer.was_asked("GET /revocations?after=1:5").await;
    stage.check(1, misled.has_logged("feed.gap", None), || misled.state());
    stage.check(1, misled.position() == "1:5", || misled.state());
    misled.issuer.change(|state| state.status = 200);
    misled.issuer.acked(8).await;
    for number in [21, 22, 23] {
        let verdict = verdict(&misled.verifier, &misled.issuer.token(number));
        stage.check(1, verdict == Err(Rejected::Revoked), || {
            format!("{number}: {verdict:?}, {}", misled.state())
        });
    }
    // Out of order: the later frame arrives first.
    let misled = MisledVerifier::begin().await;
    misled.issuer.revoke(&[session(21)]);
    let first = misled.issuer.frame(1);
    misled.issuer.revoke(&[session(22)]);
    let second = misled.issuer.frame(2);
    misled.issuer.send(&second);
    misled.issuer.send(&first);
    misled.issuer.acked(3).await;
    let all = [21, 22].map(|number| verdict(&misled.verifier, &misled.issuer.token(number)));
    stage.check(
        2,
        all.iter().all(|one| *one == Err(Rejected::Revoked)),
        || format!("{all:?}, {}", misled.state()),
    );
    let asked = misled.issuer.times_asked("GET /revocations?after=1:1");
    stage.check(2, asked == 1 && misled.has_logged("feed.gap", None), || {
        format!("asked {asked} times, {}", misled.state())
    });
    // The same frame twice.
    let misled = MisledVerifier::begin().await;
    misled.issuer.revoke(&[session(21)]);
    let frame = misled.issuer.frame(1);
    misled.issuer.send(&frame);
    misled.issuer.send(&frame);
    misled.processes_all_frames().await;
    let records = misled.verifier.metrics().records;
    let applied = misled.keeps_state() && misled.position() == "1:3" && records == 3;
    stage.check(3, applied && misled.logged().is_empty(), || {
        format!("{records} records, {}", misled.state())
    });
}

/// Removes the signatures.
fn without_signatures(frames: Vec<String>) -> Vec<String> {
    let bare = |jws: &String| format!("{}.", jws.rsplit_once('.').unwrap().0);
    frames.iter().map(bare).collect()
}

/// Returns only the payloads.
fn payloads_only(frames: Vec<String>) -> Vec<String> {
    let payload = |jws: &String| {
        let payload = URL_SAFE_NO_PAD.decode(jws.split('.').nth(1).unwrap());
        String::from_utf8(payload.unwrap()).unwrap()
    };
    frames.iter().map(payload).collect()
}

async fn a430_unsigned_and_old_feeds_are_refused(stage: &Stage) {
    let issuer = FeedIssuer::start().await;
    let plain = issuer.subscriber().feed_at("http://feed.example").start();
    let refused = plain.await.map(drop);
    let insecure = matches!(refused, Err(StartError::Insecure { .. }));
    stage.check(1, insecure, || format!("{refused:?}"));
    // A response without signatures is refused. The server signs its frames for each `Accept` value.
    for tamper in [without_signatures, payloads_only] {
        let mark = log::mark();
        let issuer = FeedIssuer::start().await;
        issuer.revoke(&[session(1)]);
        issuer.change(|state| state.tamper = Some(tamper));
        let verifier = issuer.subscriber().start().await.unwrap();
        let misled = MisledVerifier {
            issuer,
            verifier,
            mark,
        };
        let verdict = verdict(&misled.verifier, &misled.issuer.token(2));
        stage.check(2, verdict == Err(Rejected::Stale), || {
            format!("{verdict:?}")
        });
        stage.check(2, misled.has_logged("feed.rejected", HIGH), || {
            misled.state()
        });
    }
    let server = &stage.server;
    let api = server.api_server().await;
    let own = basic(api.id(), api.secret.as_ref().unwrap().expose());
    for accept in ["*/*", "text/plain", "application/json;signature=none"] {
        let headers = [("Authorization", own.as_str()), ("Accept", accept)];
        let mut browser = server.browser();
        let answer = browser.send("GET", "/revocations", &headers, None).await;
        let frames = answer.json()["frames"].clone();
        let jws = frames[0].as_str().unwrap_or_default();
        let parts: Vec<&str> = jws.split('.').collect();
        stage.check(2, parts.len() == 3 && parts[2].len() == 86, || {
            expect::summary(&answer)
        });
    }
    // A version older than the first.
    let misled = MisledVerifier::begin().await;
    misled.issuer.send(&Frame {
        v: 0,
        ..forged_frame(&misled.issuer)
    });
    misled.processes_all_frames().await;
    let refused = misled.has_logged("feed.rejected", HIGH) && misled.logged().len() == 1;
    stage.check(3, refused && misled.keeps_state(), || misled.state());
}

/// Status lists are not implemented: no list is served, and a `status` claim is ignored.
async fn a432_status_claim_is_ignored_without_status_lists(stage: &Stage) {
    let server = &stage.server;
    for path in ["/status-lists", "/status-lists/1", "/status-lists/-1"] {
        let answer = server.browser().get(path).await;
        stage.check(1, answer.status == 404, || expect::summary(&answer));
    }
    let mut flow = Flow::begin(server).await;
    let issued = redeem_new_code(&mut flow).await.access_claims();
    stage.check(2, issued["status"].is_null(), || issued.to_string());
    let signer = token_key();
    for (case, status) in [
        (
            3,
            json!({ "idx": 1_u64 << 40, "uri": "https://id.example/status-lists/1" }),
        ),
        (
            4,
            json!({ "idx": -1, "uri": "https://id.example/status-lists/1" }),
        ),
        (
            5,
            json!({ "idx": 0, "uri": "https://other.example/status-lists/1" }),
        ),
    ] {
        let mut payload = serde_json::to_value(claims()).unwrap();
        payload["status"] = json!({ "status_list": status });
        let token = signer.sign(&signer.header(), &payload.to_string());
        let clock = portcullis_verifier::ManualClock::at(crate::signer::NOW);
        let verifier = signer.known().clock(&clock).build().unwrap();
        let verdict = verdict(&verifier, &token);
        stage.check(case, verdict == Ok(()), || format!("{verdict:?}"));
    }
}

/// Number of revocations while the verifier is offline.
const MISSED: usize = 20_000;

async fn a436_offline_verifier_catches_up(stage: &Stage) {
    let mark = log::mark();
    let issuer = FeedIssuer::start().await;
    let alone = issuer.followed_by(issuer.subscriber()).await;
    let asking = issuer
        .followed_by(issuer.subscriber().instance("asking-1").introspection())
        .await;
    issuer.revoke_and_tell(&[session(1)]).await;
    issuer.change(|state| state.status = 503);
    issuer.hang_up();
    issuer.was_asked("GET /revocations?after=1:1").await;
    issuer.clock.advance(seconds(3_600));
    let token = issuer.token(2);
    let refused = verdict(&alone, &token);
    let is_503 = refused == Err(Rejected::Stale) && Rejected::Stale.status() == 503;
    stage.check(1, is_503, || format!("{refused:?}"));
    let hour = |event: &log::Event| {
        event.get("event").is_some_and(|name| name == "feed.stale")
            && event
                .get("age_seconds")
                .is_some_and(|age| age.starts_with("3600"))
    };
    stage.check(1, log::since(mark).iter().any(hour), || "not logged".into());
    // The other verifier introspects each token, except one that it knows to be revoked.
    let need = Need::any().max_age(MaxAge::STANDARD);
    for (active, wanted) in [(true, Ok(())), (false, Err(Rejected::Revoked))] {
        issuer.change(|state| state.active = Some(active));
        let token = issuer.token(if active { 3 } else { 4 });
        let told = asking.verify_or_introspect(&token, &need).await.map(drop);
        stage.check(2, told == wanted, || format!("active {active}: {told:?}"));
    }
    let known = asking.verify_or_introspect(&issuer.token(1), &need).await;
    let known = known.map(drop);
    stage.check(2, known == Err(Rejected::Revoked), || format!("{known:?}"));
    let asked = issuer.times_asked("POST /introspect");
    stage.check(2, asked == 2, || format!("asked {asked} times"));
    // The issuer is reachable again.
    let missed: Vec<_> = (100_000..100_000 + MISSED).map(session).collect();
    issuer.revoke(&missed);
    issuer.change(|state| state.status = 200);
    let back = Instant::now();
    let last = issuer.token(100_000 + MISSED - 1);
    let caught_up = || [&alone, &asking].map(|one| verdict(one, &last));
    while caught_up() != [Err(Rejected::Revoked), Err(Rejected::Revoked)] {
        if back.elapsed() > seconds(5) {
            break;
        }
        tokio::task::spawn_blocking(std::thread::yield_now)
            .await
            .unwrap();
    }
    let (took, found) = (back.elapsed(), caught_up());
    let all = found == [Err(Rejected::Revoked), Err(Rejected::Revoked)];
    stage.check(3, all && took < seconds(5), || {
        format!("{found:?} in {took:?}")
    });
    let good = verdict(&alone, &token);
    stage.check(3, good == Ok(()), || format!("{good:?}"));
}
