//! Tokens that were revoked, by each kind of record, at first and at second sight.

use std::time::Duration;

use portcullis_verifier::{Claims, Kind, MaxAge, Need, Record, Rejected, Rev, Verifier};

use crate::feed_issuer::{FeedIssuer, record, session, token_key};
use crate::signer::Signer;

fn verdict(verifier: &Verifier, token: &str) -> Result<(), Rejected> {
    verifier.verify(token, &Need::any()).map(drop)
}

#[tokio::test]
async fn a_token_is_good_until_its_record_comes() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let (mine, other) = (issuer.token(1), issuer.token(2));
    assert_eq!(verdict(&verifier, &mine), Ok(()));
    issuer.revoke_and_tell(&[session(1)]).await;
    assert_eq!(verdict(&verifier, &mine), Err(Rejected::Revoked));
    assert_eq!(verdict(&verifier, &mine), Err(Rejected::Revoked));
    assert_eq!(verdict(&verifier, &other), Ok(()));
}

#[tokio::test]
async fn each_kind_of_record_hits() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    for (number, kind) in [Kind::Token, Kind::Session, Kind::Grant]
        .into_iter()
        .enumerate()
    {
        let (token, name) = (issuer.token(number), ["token", "session", "grant"][number]);
        assert_eq!(verdict(&verifier, &token), Ok(()));
        issuer
            .revoke_and_tell(&[record(kind, &format!("{name}-{number}"), 0)])
            .await;
        assert_eq!(
            verdict(&verifier, &token),
            Err(Rejected::Revoked),
            "{kind:?}"
        );
    }
}

#[tokio::test]
async fn a_cut_off_ends_what_began_before_and_nothing_else() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let of = |rev: &str| {
        let rev: Rev = rev.parse().unwrap();
        token_key().token(&Claims {
            rev,
            ..issuer.claims(1)
        })
    };
    issuer
        .revoke_and_tell(&[
            record(Kind::User, "alice", 4),
            record(Kind::Client, "shop", 7),
        ])
        .await;
    for (rev, expected) in [
        ("1.7.3", Err(Rejected::Revoked)),
        ("1.6.4", Err(Rejected::Revoked)),
        ("1.7.4", Ok(())),
        ("1.8.5", Ok(())),
        ("1.7", Ok(())),
        ("1.6", Err(Rejected::Revoked)),
    ] {
        assert_eq!(verdict(&verifier, &of(rev)), expected, "{rev}");
    }
}

#[tokio::test]
async fn a_revoked_key_takes_all_its_tokens_along() {
    let issuer = FeedIssuer::start().await;
    issuer.change(|state| state.token_keys.push(Signer::es256(2)));
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let (old, new) = (issuer.token(1), Signer::es256(2).token(&issuer.claims(1)));
    assert_eq!(verdict(&verifier, &old), Ok(()));
    issuer
        .revoke_and_tell(&[record(Kind::Key, token_key().kid(), 0)])
        .await;
    assert_eq!(verdict(&verifier, &old), Err(Rejected::Revoked));
    assert_eq!(verdict(&verifier, &issuer.token(9)), Err(Rejected::Revoked));
    assert_eq!(verdict(&verifier, &new), Ok(()));
    // The document still has it; the instance no longer says that it holds it.
    issuer.revoke_and_tell(&[session(99)]).await;
    let state = issuer.state.lock().unwrap();
    assert_eq!(state.acks.last().unwrap().kids, [Signer::es256(2).kid()]);
}

#[tokio::test]
async fn ten_thousand_at_once_are_all_in_force() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let burst: Vec<Record> = (0..10_000).map(session).collect();
    issuer.revoke_and_tell(&burst).await;
    for number in (0..10_000).step_by(997) {
        assert_eq!(
            verdict(&verifier, &issuer.token(number)),
            Err(Rejected::Revoked)
        );
    }
    assert_eq!(verdict(&verifier, &issuer.token(10_000)), Ok(()));
    assert_eq!(verifier.metrics().records, 10_000);
}

#[tokio::test]
async fn a_snapshot_of_many_frames_is_read_to_its_end() {
    let issuer = FeedIssuer::start().await;
    let all: Vec<Record> = (0..200).map(session).collect();
    issuer.revoke(&all);
    // 40 frames, 16 to an answer.
    issuer.change(|state| state.per_frame = 5);
    let verifier = issuer.subscriber().start().await.unwrap();
    assert_eq!(issuer.times_asked("GET /revocations?"), 2);
    assert_eq!(
        verdict(&verifier, &issuer.token(199)),
        Err(Rejected::Revoked)
    );
    assert_eq!(verdict(&verifier, &issuer.token(200)), Ok(()));
}

#[tokio::test]
async fn how_old_the_news_may_be_is_a_matter_of_the_request() {
    let issuer = FeedIssuer::start().await;
    let builder = issuer.subscriber().max_age("orders:*", MaxAge::STRICT);
    let verifier = issuer.followed_by(builder).await;
    let token = issuer.token(1);
    let ask = |need: &Need| verifier.verify(&token, need).map(drop);
    let (strict, standard) = (Need::scope("orders:read"), Need::any());
    let second = Need::any().max_age(MaxAge::secs(1));
    assert_eq!((ask(&strict), ask(&second)), (Ok(()), Ok(())));
    issuer.clock.advance(Duration::from_millis(1001));
    assert_eq!((ask(&strict), ask(&second)), (Ok(()), Err(Rejected::Stale)));
    issuer.clock.advance(Duration::from_millis(2000));
    assert_eq!(
        (ask(&strict), ask(&standard)),
        (Err(Rejected::Stale), Ok(()))
    );
    issuer.clock.advance(Duration::from_secs(57));
    assert_eq!(ask(&standard), Err(Rejected::Stale));
    // Revoked is said before stale.
    assert_eq!(verifier.metrics().rejected["stale"], 3);
}

#[tokio::test]
async fn what_the_registration_does_not_allow_is_not_done() {
    let issuer = FeedIssuer::start().await;
    issuer.change(|state| state.allowed = Some(120));
    let builder = issuer.subscriber().default_max_age(MaxAge::FAIL_OPEN);
    let verifier = issuer.followed_by(builder).await;
    issuer.revoke_and_tell(&[session(99)]).await;
    // The answer to the second acknowledgement shows that the first was read.
    issuer.revoke_and_tell(&[session(98)]).await;
    let token = issuer.token(1);
    issuer.clock.advance(Duration::from_secs(120));
    assert_eq!(verdict(&verifier, &token), Ok(()));
    issuer.clock.advance(Duration::from_secs(1));
    assert_eq!(verdict(&verifier, &token), Err(Rejected::Stale));
    assert!(!verifier.metrics().fail_open);
}

#[tokio::test]
async fn who_may_fail_open_goes_on_without_news() {
    let issuer = FeedIssuer::start().await;
    issuer.change(|state| state.allowed = None);
    let builder = issuer.subscriber().default_max_age(MaxAge::FAIL_OPEN);
    let verifier = issuer.followed_by(builder).await;
    issuer.revoke_and_tell(&[session(1)]).await;
    issuer.revoke_and_tell(&[session(98)]).await;
    let token = token_key().token(&Claims {
        exp: 1_900_000_000,
        ..issuer.claims(2)
    });
    issuer.clock.advance(Duration::from_secs(250));
    assert_eq!(verdict(&verifier, &token), Ok(()));
    let strict = verifier.verify(&token, &Need::any().max_age(MaxAge::STRICT));
    assert_eq!(strict, Err(Rejected::Stale));
    assert_eq!(verdict(&verifier, &issuer.token(1)), Err(Rejected::Revoked));
    let metrics = verifier.metrics();
    assert_eq!((metrics.fail_open, metrics.failed_open), (true, 1));
    let acked = issuer.state.lock().unwrap().acks.last().unwrap().max_age;
    assert_eq!(acked, None);
}

#[tokio::test]
async fn an_instance_is_heard_before_anything_happens() {
    let issuer = FeedIssuer::start().await;
    let _verifier = issuer.followed_by(issuer.subscriber()).await;
    issuer.acked(0).await;
}
