//! What can happen to the feed, and what a verifier makes of it: it never accepts a revoked token
//! past the bound, and good tokens pass again as soon as there is news.

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

/// Proves that the stream still works, and so that what was sent before has been looked at.
async fn goes_on(issuer: &FeedIssuer, number: usize) {
    issuer.revoke_and_tell(&[session(number)]).await;
}

#[tokio::test]
async fn forged_frames_change_nothing() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let evil = |change: fn(&mut Frame)| {
        let mut frame = issuer.frame(0);
        frame.records.0.push(session(1));
        frame.last += 1;
        change(&mut frame);
        frame
    };
    let plain = evil(|_| {});
    let payload = serde_json::to_string(&plain).unwrap();
    let good = signed(&plain);
    let (head, signature) = good.rsplit_once('.').unwrap();
    let kid = feed_key().kid().to_owned();
    let header = |alg: &str, typ: &str| format!(r#"{{"alg":"{alg}","typ":"{typ}","kid":"{kid}"}}"#);
    let feed = feed_key();
    let forged = [
        feed.sign(&header("none", "revocation-frame+jwt"), &payload),
        feed.sign(&header("HS256", "revocation-frame+jwt"), &payload),
        feed.sign(&header("RS256", "revocation-frame+jwt"), &payload),
        feed.sign(&header("ES256", "at+jwt"), &payload),
        feed.sign(&header("ES256", "JWT"), &payload),
        // Another key under the right name; a key that nobody knows; the key of the tokens.
        Signer::es256(5).sign(&header("ES256", "revocation-frame+jwt"), &payload),
        signed_by(&Signer::es256(5), &plain),
        signed_by(&token_key(), &plain),
        good[..good.len() / 2].to_owned(),
        good[..good.len() - 2].to_owned(),
        format!("{head}."),
        format!("{}A.{signature}", &head[..head.len() - 1]),
        signed(&evil(|frame| frame.iss += "/")),
        signed(&evil(|frame| frame.v = 0)),
        signed(&evil(|frame| frame.v = 2)),
        signed(&evil(|frame| frame.last = 0)),
        signed(&evil(|frame| frame.after = 9)),
        "{}".to_owned(),
    ];
    issuer.clock.advance(Duration::from_secs(5));
    for frame in &forged {
        issuer.send_raw(frame);
    }
    goes_on(&issuer, 2).await;
    assert_eq!(verdict(&verifier, &issuer.token(1)), Ok(()));
    assert_eq!(position(&verifier).to_string(), "1:1");
    assert_eq!(
        verifier.metrics().frames_refused["feed.rejected"],
        forged.len() as u64
    );
}

#[tokio::test]
async fn refused_frames_make_nothing_fresher() {
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
    goes_on(&issuer, 3).await;
    assert_eq!(verdict(&verifier, &issuer.token(1)), Ok(()));
}

#[tokio::test]
async fn a_replayed_frame_is_no_news() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    goes_on(&issuer, 1).await;
    let old = signed(&issuer.frame(0));
    let silent = |seq: u64| {
        // Moves the position, so that it is acknowledged, and says nothing about freshness.
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
async fn frames_of_an_older_epoch_are_refused() {
    let issuer = FeedIssuer::start().await;
    issuer.change(|state| state.epoch = 5);
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let mut old = issuer.frame(0);
    old.epoch = 4;
    issuer.send(&old);
    goes_on(&issuer, 1).await;
    assert_eq!(verifier.metrics().frames_refused["feed.rollback"], 1);
    assert_eq!(position(&verifier).to_string(), "5:1");
}

#[tokio::test]
async fn a_gap_is_filled_from_our_own_position() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    goes_on(&issuer, 1).await;
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
async fn frames_may_come_twice_and_overlap() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    issuer.revoke(&[record(Kind::User, "alice", 9)]);
    let first = issuer.frame(0);
    issuer.revoke(&[record(Kind::User, "alice", 2), session(7)]);
    for frame in [&first, &first, &issuer.frame(0), &issuer.frame(1), &first] {
        issuer.send(frame);
    }
    issuer.acked(3).await;
    goes_on(&issuer, 8).await;
    assert_eq!(position(&verifier).to_string(), "1:4");
    assert_eq!(verifier.metrics().records, 3);
    // The higher floor counts, whichever came last.
    assert_eq!(verdict(&verifier, &issuer.token(1)), Err(Rejected::Revoked));
}

#[tokio::test]
async fn a_stream_that_breaks_is_taken_up_where_it_was() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    goes_on(&issuer, 1).await;
    // Half a frame, and the end.
    issuer.revoke(&[session(2)]);
    let frame = signed(&issuer.frame(1));
    issuer.write(&format!("data: {}", &frame[..frame.len() / 2]));
    issuer.hang_up();
    issuer.acked(2).await;
    assert_eq!(verdict(&verifier, &issuer.token(2)), Err(Rejected::Revoked));
    issuer.was_asked_times("GET /revocations/stream", 2).await;
    goes_on(&issuer, 3).await;
    assert!(verifier.metrics().reconnects >= 1);
}

#[tokio::test]
async fn a_tampered_answer_is_asked_for_again() {
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
async fn without_a_first_frame_nobody_passes() {
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
async fn a_subscriber_who_may_not_read_does_not_start() {
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
async fn the_feed_does_not_come_over_plain_http() {
    let issuer = FeedIssuer::start().await;
    let elsewhere = issuer.subscriber().feed_at("http://feed.example");
    let error = elsewhere.start().await.unwrap_err();
    assert!(matches!(error, StartError::Insecure { .. }), "{error:?}");
}

#[tokio::test]
async fn after_a_suspension_nobody_passes_before_there_is_news() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    issuer.clock.advance(HOUR);
    assert_eq!(verdict(&verifier, &issuer.token(1)), Err(Rejected::Stale));
    // What the sockets still held from before says nothing.
    let mut held_back = issuer.heartbeat();
    held_back.iat -= 3600;
    held_back.at_us -= 3_600_000_000;
    held_back.as_of_us = Some(held_back.at_us);
    issuer.send(&held_back);
    issuer.revoke(&[session(2)]);
    let mut silent = issuer.frame(0);
    silent.as_of_us = None;
    issuer.send(&silent);
    issuer.acked(1).await;
    assert_eq!(verdict(&verifier, &issuer.token(1)), Err(Rejected::Stale));
    goes_on(&issuer, 3).await;
    assert_eq!(verdict(&verifier, &issuer.token(1)), Ok(()));
}

#[tokio::test]
async fn a_clock_that_is_set_back_makes_nothing_fresher() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let token = issuer.token(1);
    issuer.clock.advance(Duration::from_secs(61));
    issuer.clock.set_wall_secs(NOW);
    assert_eq!(verdict(&verifier, &token), Err(Rejected::Stale));
}

#[tokio::test]
async fn a_feed_held_back_hides_at_most_half_a_minute() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    // All frames come 29 s late, which looks like a clock that differs.
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
    // Later than that, and the news is refused: the age grows.
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
async fn a_node_without_its_database_is_not_fresh() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let as_of = issuer.heartbeat().as_of_us;
    for _ in 0..4 {
        issuer.clock.advance(Duration::from_secs(20));
        // Heartbeats go on, and `as_of` stands still.
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
async fn after_an_hour_offline_all_is_caught_up() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    goes_on(&issuer, 1).await;
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
async fn a_newer_epoch_begins_with_nothing() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    goes_on(&issuer, 1).await;
    let of_epoch = |feed_epoch| {
        token_key().token(&Claims {
            rev: Rev {
                feed_epoch,
                ..issuer.claims(1).rev
            },
            ..issuer.claims(7)
        })
    };
    // A token of an epoch that we have not heard of may be good: nobody here can say.
    let (old, new) = (of_epoch(1), of_epoch(1_800_000_000));
    assert_eq!(verdict(&verifier, &old), Ok(()));
    assert_eq!(verdict(&verifier, &new), Err(Rejected::Stale));
    issuer.change(|state| {
        state.epoch = 1_800_000_000;
        state.records = vec![session(1), session(2)];
    });
    // The stream is at the end of the new epoch, so the beginning is asked for.
    issuer.send(&issuer.heartbeat());
    issuer.acked(2).await;
    assert_eq!(issuer.times_asked("GET /revocations?after=1800000000:0"), 1);
    assert_eq!(verdict(&verifier, &old), Err(Rejected::Revoked));
    assert_eq!(verdict(&verifier, &new), Ok(()));
    assert_eq!(position(&verifier).to_string(), "1800000000:2");
    assert_eq!(verifier.metrics().records, 2);
}

#[tokio::test]
async fn a_new_feed_key_is_fetched_when_it_first_signs() {
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
async fn another_etag_of_the_keys_lets_them_be_fetched() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let new = Signer::es256(2).token(&issuer.claims(1));
    issuer.send(&issuer.heartbeat());
    goes_on(&issuer, 90).await;
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
async fn who_is_ahead_shows_the_frame_that_brought_him_there() {
    let issuer = FeedIssuer::start().await;
    let _verifier = issuer.followed_by(issuer.subscriber()).await;
    goes_on(&issuer, 1).await;
    let message = |frame: &str| frame.rsplit_once('.').unwrap().0.to_owned();
    let last = message(&signed(&issuer.frame(0)));
    issuer.change(|state| {
        state.status = 409;
        state.acks.clear();
    });
    issuer.hang_up();
    issuer.was_asked_times("POST /revocations/ack", 3).await;
    let state = issuer.state.lock().unwrap();
    let shown = state.acks.iter().find_map(|ack| ack.frame.clone()).unwrap();
    assert_eq!(message(&shown), last);
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_does_not_answer() {
    let issuer = FeedIssuer::start().await;
    let other = FeedIssuer::start().await;
    // The other serves the same feed under its own address.
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
async fn an_acknowledgement_says_what_is_in_force() {
    let issuer = FeedIssuer::start().await;
    let _verifier = issuer.followed_by(issuer.subscriber()).await;
    goes_on(&issuer, 1).await;
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
async fn a_dropped_verifier_leaves_nothing_running() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let clone = verifier.clone();
    drop(verifier);
    goes_on(&issuer, 1).await;
    drop(clone);
    issuer.hang_up();
    // Another verifier starts and reads; the first does not come back.
    let asked = issuer.times_asked("GET /revocations/stream");
    let _other = issuer.subscriber().start().await.unwrap();
    issuer
        .was_asked_times("GET /revocations/stream", asked + 1)
        .await;
    goes_on(&issuer, 2).await;
    assert_eq!(issuer.times_asked("GET /revocations/stream"), asked + 1);
}
