//! Faults of the feed. The verifier never accepts a revoked token after the maximum age of the
//! revocation data, and accepts valid tokens again as soon as it receives current data.

use std::time::Duration;

use portcullis_verifier::{
    Claims, Frame, Kind, Need, Position, Rejected, Rev, StartError, Verifier,
};

use crate::feed_issuer::{FeedIssuer, feed_key, record, session, signed, signed_by, token_key};
use crate::signer::{NOW, Signer};

const HOUR: Duration = Duration::from_secs(3600);

fn verdict(verifier: &Verifier, token: &str) -> Result<(), Rejected> {
    verifier.verify(token, &Need::any()).map(drop)
}

fn age(verifier: &Verifier) -> Duration {
    verifier.metrics().feed_age.unwrap()
}

fn position(verifier: &Verifier) -> Position {
    verifier.metrics().feed_position.unwrap()
}

/// Revokes a session and waits for the acknowledgement, which shows that the stream works and that
/// all preceding frames have been processed.
async fn revoke_and_wait(issuer: &FeedIssuer, number: usize) {
    issuer.revoke_and_tell(&[session(number)]).await;
}

#[tokio::test]
async fn forged_frames_are_rejected() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let forged = |change: fn(&mut Frame)| {
        let mut frame = issuer.frame(0);
        frame.records.0.push(session(1));
        frame.last += 1;
        change(&mut frame);
        frame
    };
    let plain = forged(|_| {});
    let payload = serde_json::to_string(&plain).unwrap();
    let good = signed(&plain);
    let (head, signature) = good.rsplit_once('.').unwrap();
    let kid = feed_key().kid().to_owned();
    let header = |alg: &str, typ: &str| format!(r#"{{"alg":"{alg}","typ":"{typ}","kid":"{kid}"}}"#);
    let feed = feed_key();
    let frames = [
        feed.sign(&header("none", "revocation-frame+jwt"), &payload),
        feed.sign(&header("HS256", "revocation-frame+jwt"), &payload),
        feed.sign(&header("RS256", "revocation-frame+jwt"), &payload),
        feed.sign(&header("ES256", "at+jwt"), &payload),
        feed.sign(&header("ES256", "JWT"), &payload),
        // Another key with the `kid` of the feed key, an unknown key, and the key of the tokens.
        Signer::es256(5).sign(&header("ES256", "revocation-frame+jwt"), &payload),
        signed_by(&Signer::es256(5), &plain),
        signed_by(&token_key(), &plain),
        good[..good.len() / 2].to_owned(),
        good[..good.len() - 2].to_owned(),
        format!("{head}."),
        format!("{}A.{signature}", &head[..head.len() - 1]),
        signed(&forged(|frame| frame.iss += "/")),
        signed(&forged(|frame| frame.v = 0)),
        signed(&forged(|frame| frame.v = 2)),
        signed(&forged(|frame| frame.last = 0)),
        signed(&forged(|frame| frame.after = 9)),
        "{}".to_owned(),
    ];
    issuer.clock.advance(Duration::from_secs(5));
    for frame in &frames {
        issuer.send_raw(frame);
    }
    revoke_and_wait(&issuer, 2).await;
    assert_eq!(verdict(&verifier, &issuer.token(1)), Ok(()));
    assert_eq!(position(&verifier).to_string(), "1:1");
    assert_eq!(
        verifier.metrics().frames_refused["feed.rejected"],
        frames.len() as u64
    );
}

#[tokio::test]
async fn rejected_and_incomplete_frames_do_not_reset_age() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    issuer.clock.advance(Duration::from_secs(61));
    let mut unfinished = issuer.heartbeat();
    unfinished.as_of_us = None;
    for frame in [
        signed_by(&Signer::es256(5), &issuer.heartbeat()),
        signed(&unfinished),
    ] {
        issuer.send_raw(&frame);
    }
    issuer.revoke(&[session(2)]);
    let mut last = issuer.frame(0);
    last.as_of_us = None;
    issuer.send(&last);
    issuer.acked(1).await;
    assert_eq!(age(&verifier), Duration::from_secs(61));
    assert_eq!(verdict(&verifier, &issuer.token(1)), Err(Rejected::Stale));
    assert_eq!(Rejected::Stale.status(), 503);
    assert_eq!(verdict(&verifier, &issuer.token(2)), Err(Rejected::Revoked));
    revoke_and_wait(&issuer, 3).await;
    assert_eq!(verdict(&verifier, &issuer.token(1)), Ok(()));
}

#[tokio::test]
async fn replayed_frame_does_not_reset_age() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    revoke_and_wait(&issuer, 1).await;
    let old = signed(&issuer.frame(0));
    let silent = |seq: u64| {
        // Advances the position, so that it is acknowledged, but does not reset the age.
        issuer.revoke(&[session(50)]);
        Frame {
            as_of_us: None,
            ..issuer.frame(seq)
        }
    };
    issuer.clock.advance(Duration::from_secs(10));
    issuer.send_raw(&old);
    issuer.send(&silent(1));
    issuer.acked(2).await;
    assert_eq!(age(&verifier), Duration::from_secs(10));
    issuer.clock.advance(Duration::from_secs(21));
    issuer.send_raw(&old);
    issuer.send(&silent(2));
    issuer.acked(3).await;
    assert_eq!(age(&verifier), Duration::from_secs(31));
    assert_eq!(verifier.metrics().frames_refused["feed.skew"], 1);
}

#[tokio::test]
async fn older_epoch_is_rejected() {
    let issuer = FeedIssuer::start().await;
    issuer.change(|state| state.epoch = 5);
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let mut old = issuer.frame(0);
    old.epoch = 4;
    issuer.send(&old);
    revoke_and_wait(&issuer, 1).await;
    assert_eq!(verifier.metrics().frames_refused["feed.rollback"], 1);
    assert_eq!(position(&verifier).to_string(), "5:1");
}

#[tokio::test]
async fn gap_is_filled_from_current_position() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    revoke_and_wait(&issuer, 1).await;
    issuer.revoke(&[session(2), session(3)]);
    // The frame of session 2 is lost.
    issuer.send(&issuer.frame(2));
    issuer.acked(3).await;
    assert_eq!(issuer.times_asked("GET /revocations?after=1:1"), 1);
    assert_eq!(verdict(&verifier, &issuer.token(2)), Err(Rejected::Revoked));
    assert_eq!(verdict(&verifier, &issuer.token(3)), Err(Rejected::Revoked));
    assert_eq!(verifier.metrics().frames_refused["feed.gap"], 1);
}

#[tokio::test]
async fn duplicate_and_overlapping_frames_are_accepted() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    issuer.revoke(&[record(Kind::User, "alice", 9)]);
    let first = issuer.frame(0);
    issuer.revoke(&[record(Kind::User, "alice", 2), session(7)]);
    for frame in [&first, &first, &issuer.frame(0), &issuer.frame(1), &first] {
        issuer.send(frame);
    }
    issuer.acked(3).await;
    revoke_and_wait(&issuer, 8).await;
    assert_eq!(position(&verifier).to_string(), "1:4");
    assert_eq!(verifier.metrics().records, 3);
    // The higher floor applies, whichever record came last.
    assert_eq!(verdict(&verifier, &issuer.token(1)), Err(Rejected::Revoked));
}

#[tokio::test]
async fn broken_stream_is_resumed() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    revoke_and_wait(&issuer, 1).await;
    // The stream ends in the middle of a frame.
    issuer.revoke(&[session(2)]);
    let frame = signed(&issuer.frame(1));
    issuer.write(&format!("data: {}", &frame[..frame.len() / 2]));
    issuer.hang_up();
    issuer.acked(2).await;
    assert_eq!(verdict(&verifier, &issuer.token(2)), Err(Rejected::Revoked));
    issuer.was_asked_times("GET /revocations/stream", 2).await;
    revoke_and_wait(&issuer, 3).await;
    assert!(verifier.metrics().reconnects >= 1);
}

#[tokio::test]
async fn tampered_response_is_requested_again() {
    let tampers: [fn(Vec<String>) -> Vec<String>; 4] = [
        |mut frames| {
            frames.reverse();
            frames
        },
        |mut frames| {
            frames.remove(0);
            frames
        },
        |_| vec![],
        |frames| frames.iter().map(|frame| frame.replace('e', "f")).collect(),
    ];
    for tamper in tampers {
        let issuer = FeedIssuer::start().await;
        issuer.revoke(&[session(1), session(2), session(3)]);
        issuer.change(|state| {
            state.per_frame = 1;
            state.tamper = Some(tamper);
        });
        let verifier = issuer.subscriber().start().await.unwrap();
        assert_eq!(verdict(&verifier, &issuer.token(9)), Err(Rejected::Stale));
        issuer.change(|state| state.tamper = None);
        issuer.acked(3).await;
        assert_eq!(verdict(&verifier, &issuer.token(9)), Ok(()));
        assert_eq!(verdict(&verifier, &issuer.token(3)), Err(Rejected::Revoked));
    }
}

#[tokio::test]
async fn tokens_are_stale_before_first_frame() {
    let issuer = FeedIssuer::start().await;
    issuer.change(|state| state.status = 503);
    let verifier = issuer.subscriber().start().await.unwrap();
    assert_eq!(verdict(&verifier, &issuer.token(1)), Err(Rejected::Stale));
    assert_eq!(verifier.metrics().feed_age, None);
    issuer.change(|state| state.status = 200);
    issuer.was_asked("GET /revocations/stream").await;
    assert_eq!(verdict(&verifier, &issuer.token(1)), Ok(()));
}

#[tokio::test]
async fn denied_subscriber_fails_start() {
    let issuer = FeedIssuer::start().await;
    let wrong = issuer.subscriber().subscriber("billing", "guess").start();
    let error = wrong.await.unwrap_err();
    assert!(
        matches!(error, StartError::Subscriber { status: 401 }),
        "{error:?}"
    );
    issuer.change(|state| state.status = 403);
    let error = issuer.subscriber().start().await.unwrap_err();
    assert!(
        matches!(error, StartError::Subscriber { status: 403 }),
        "{error:?}"
    );
}

#[tokio::test]
async fn plain_http_feed_url_is_rejected() {
    let issuer = FeedIssuer::start().await;
    let insecure = issuer.subscriber().feed_at("http://feed.example");
    let error = insecure.start().await.unwrap_err();
    assert!(matches!(error, StartError::Insecure { .. }), "{error:?}");
}

#[tokio::test]
async fn suspended_host_rejects_tokens_until_fresh_frame() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    issuer.clock.advance(HOUR);
    assert_eq!(verdict(&verifier, &issuer.token(1)), Err(Rejected::Stale));
    // Frames that were buffered during the suspension do not reset the age.
    let mut buffered = issuer.heartbeat();
    buffered.iat -= 3600;
    buffered.at_us -= 3_600_000_000;
    buffered.as_of_us = Some(buffered.at_us);
    issuer.send(&buffered);
    issuer.revoke(&[session(2)]);
    let mut silent = issuer.frame(0);
    silent.as_of_us = None;
    issuer.send(&silent);
    issuer.acked(1).await;
    assert_eq!(verdict(&verifier, &issuer.token(1)), Err(Rejected::Stale));
    revoke_and_wait(&issuer, 3).await;
    assert_eq!(verdict(&verifier, &issuer.token(1)), Ok(()));
}

#[tokio::test]
async fn clock_set_back_does_not_reset_age() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let token = issuer.token(1);
    issuer.clock.advance(Duration::from_secs(61));
    issuer.clock.set_wall_secs(NOW);
    assert_eq!(verdict(&verifier, &token), Err(Rejected::Stale));
}

#[tokio::test]
async fn delayed_feed_hides_at_most_30_seconds() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    // A frame that is 29 s late is accepted, because the clocks could differ by as much.
    let late = |by: u64| {
        issuer.revoke(&[session(90)]);
        let mut frame = issuer.frame(issuer.last() - 1);
        frame.iat -= by;
        frame.at_us -= by * 1_000_000;
        frame.as_of_us = Some(frame.at_us);
        frame
    };
    issuer.clock.advance(Duration::from_secs(100));
    issuer.send(&late(29));
    issuer.acked(1).await;
    assert_eq!(age(&verifier), Duration::ZERO);
    // A frame that is 31 s late is rejected, so the age grows.
    issuer.clock.advance(Duration::from_secs(50));
    issuer.send(&late(31));
    issuer.send(&{
        let mut silent = issuer.frame(1);
        silent.as_of_us = None;
        silent
    });
    issuer.acked(2).await;
    assert_eq!(age(&verifier), Duration::from_secs(50));
}

#[tokio::test]
async fn constant_as_of_does_not_reset_age() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let as_of = issuer.heartbeat().as_of_us;
    for _ in 0..4 {
        issuer.clock.advance(Duration::from_secs(20));
        // The node still sends heartbeats, but `as_of_us` does not change.
        issuer.send(&Frame {
            as_of_us: as_of,
            ..issuer.heartbeat()
        });
    }
    issuer.revoke(&[session(1)]);
    issuer.send(&Frame {
        as_of_us: as_of,
        ..issuer.frame(0)
    });
    issuer.acked(1).await;
    assert_eq!(age(&verifier), Duration::from_secs(80));
    assert_eq!(verdict(&verifier, &issuer.token(2)), Err(Rejected::Stale));
}

#[tokio::test]
async fn f26_verifier_catches_up_after_an_hour_offline() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    revoke_and_wait(&issuer, 1).await;
    issuer.change(|state| state.status = 503);
    issuer.hang_up();
    issuer
        .was_asked_times("GET /revocations?after=1:1", 2)
        .await;
    issuer.clock.advance(HOUR);
    assert_eq!(verdict(&verifier, &issuer.token(9)), Err(Rejected::Stale));
    let missed: Vec<_> = (1000..3000).map(session).collect();
    issuer.revoke(&missed);
    issuer.change(|state| state.status = 200);
    issuer.acked(2001).await;
    assert_eq!(verdict(&verifier, &issuer.token(9)), Ok(()));
    assert_eq!(
        verdict(&verifier, &issuer.token(2999)),
        Err(Rejected::Revoked)
    );
}

#[tokio::test]
async fn newer_epoch_starts_without_data() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    revoke_and_wait(&issuer, 1).await;
    let token_of_epoch = |feed_epoch| {
        token_key().token(&Claims {
            rev: Rev {
                feed_epoch,
                ..issuer.claims(1).rev
            },
            ..issuer.claims(7)
        })
    };
    // It is unknown whether a token of a newer epoch is active.
    let (old, new) = (token_of_epoch(1), token_of_epoch(1_800_000_000));
    assert_eq!(verdict(&verifier, &old), Ok(()));
    assert_eq!(verdict(&verifier, &new), Err(Rejected::Stale));
    issuer.change(|state| {
        state.epoch = 1_800_000_000;
        state.records = vec![session(1), session(2)];
    });
    // The heartbeat is at the end of the new epoch, so the verifier requests the records before it.
    issuer.send(&issuer.heartbeat());
    issuer.acked(2).await;
    assert_eq!(issuer.times_asked("GET /revocations?after=1800000000:0"), 1);
    assert_eq!(verdict(&verifier, &old), Err(Rejected::Revoked));
    assert_eq!(verdict(&verifier, &new), Ok(()));
    assert_eq!(position(&verifier).to_string(), "1800000000:2");
    assert_eq!(verifier.metrics().records, 2);
}

#[tokio::test]
async fn f28_new_feed_key_is_fetched_on_first_use() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let new = Signer::es256(78);
    issuer.change(|state| state.feed_keys.push(Signer::es256(78)));
    issuer.revoke(&[session(1)]);
    issuer.send_raw(&signed_by(&new, &issuer.frame(0)));
    issuer.acked(1).await;
    assert_eq!(verdict(&verifier, &issuer.token(1)), Err(Rejected::Revoked));
    assert_eq!(issuer.times_asked("GET /revocations/jwks"), 2);
}

#[tokio::test]
async fn changed_jwks_etag_refreshes_token_keys() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let new = Signer::es256(2).token(&issuer.claims(1));
    issuer.send(&issuer.heartbeat());
    revoke_and_wait(&issuer, 90).await;
    assert_eq!(issuer.times_asked("GET /jwks"), 1);
    issuer.change(|state| {
        state.token_keys = vec![Signer::es256(2)];
        state.jwks_etag = "\"two\"";
    });
    issuer.send(&issuer.heartbeat());
    issuer.was_asked_times("GET /jwks", 2).await;
    assert!(verifier.verify_fresh(&new, &Need::any()).await.is_ok());
    assert_eq!(
        verdict(&verifier, &issuer.token(1)),
        Err(Rejected::UnknownKey)
    );
}

#[tokio::test]
async fn ahead_verifier_reports_last_frame() {
    let issuer = FeedIssuer::start().await;
    let _verifier = issuer.followed_by(issuer.subscriber()).await;
    revoke_and_wait(&issuer, 1).await;
    let message = |frame: &str| frame.rsplit_once('.').unwrap().0.to_owned();
    let last = message(&signed(&issuer.frame(0)));
    issuer.change(|state| {
        state.status = 409;
        state.acks.clear();
    });
    issuer.hang_up();
    issuer.was_asked_times("POST /revocations/ack", 3).await;
    let state = issuer.state.lock().unwrap();
    let reported = state.acks.iter().find_map(|ack| ack.frame.clone()).unwrap();
    assert_eq!(message(&reported), last);
}

#[tokio::test]
async fn failing_feed_url_fails_over_to_next() {
    let issuer = FeedIssuer::start().await;
    let other = FeedIssuer::start().await;
    // The other server serves the same feed at its own URL.
    let verifier = issuer
        .subscriber()
        .feed_at(&issuer.url)
        .feed_at(format!("{}/", other.url));
    let verifier = issuer.followed_by(verifier).await;
    issuer.change(|state| state.status = 503);
    issuer.hang_up();
    other.was_asked("GET /revocations?after=1:0").await;
    assert_eq!(verdict(&verifier, &issuer.token(1)), Ok(()));
}

#[tokio::test]
async fn ack_reports_applied_state() {
    let issuer = FeedIssuer::start().await;
    let _verifier = issuer.followed_by(issuer.subscriber()).await;
    revoke_and_wait(&issuer, 1).await;
    let state = issuer.state.lock().unwrap();
    let ack = state.acks.last().unwrap();
    assert_eq!(
        (ack.instance.as_str(), ack.epoch, ack.seq),
        ("billing-1", 1, 1)
    );
    assert_eq!((ack.max_age, &ack.frame), (Some(60), &None));
    assert_eq!(ack.kids, [token_key().kid()]);
}

#[tokio::test]
async fn dropping_last_clone_stops_tasks() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let clone = verifier.clone();
    drop(verifier);
    revoke_and_wait(&issuer, 1).await;
    drop(clone);
    issuer.hang_up();
    // Another verifier connects. The first one does not reconnect.
    let asked = issuer.times_asked("GET /revocations/stream");
    let _other = issuer.subscriber().start().await.unwrap();
    issuer
        .was_asked_times("GET /revocations/stream", asked + 1)
        .await;
    revoke_and_wait(&issuer, 2).await;
    assert_eq!(issuer.times_asked("GET /revocations/stream"), asked + 1);
}
