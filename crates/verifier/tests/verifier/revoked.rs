//! Rejection of revoked tokens by each kind of record, and the maximum age of the revocation data.

use std::time::Duration;

use portcullis_verifier::{Claims, Kind, MaxAge, Need, Record, Rejected, Rev, Verifier};

use crate::feed_issuer::{FeedIssuer, record, session, token_key};
use crate::signer::Signer;

fn verdict(verifier: &Verifier, token: &str) -> Result<(), Rejected> {
    verifier.verify(token, &Need::any()).map(drop)
}

#[tokio::test]
async fn token_is_revoked_by_record() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let (revoked, other) = (issuer.token(1), issuer.token(2));
    assert_eq!(verdict(&verifier, &revoked), Ok(()));
    issuer.revoke_and_tell(&[session(1)]).await;
    assert_eq!(verdict(&verifier, &revoked), Err(Rejected::Revoked));
    assert_eq!(verdict(&verifier, &revoked), Err(Rejected::Revoked));
    assert_eq!(verdict(&verifier, &other), Ok(()));
}

#[tokio::test]
async fn token_session_and_grant_records_revoke() {
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
async fn user_and_client_records_revoke_only_lower_epochs() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let token_with_rev = |rev: &str| {
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
        assert_eq!(verdict(&verifier, &token_with_rev(rev)), expected, "{rev}");
    }
}

#[tokio::test]
async fn revoked_key_revokes_its_tokens() {
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
    // The JWKS still contains the key, but the instance no longer acknowledges it.
    issuer.revoke_and_tell(&[session(99)]).await;
    let state = issuer.state.lock().unwrap();
    assert_eq!(state.acks.last().unwrap().kids, [Signer::es256(2).kid()]);
}

#[tokio::test]
async fn ten_thousand_records_at_once_are_applied() {
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
async fn snapshot_of_many_frames_is_applied_completely() {
    let issuer = FeedIssuer::start().await;
    let all: Vec<Record> = (0..200).map(session).collect();
    issuer.revoke(&all);
    // 40 frames, up to 16 per response.
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
async fn max_age_depends_on_request() {
    let issuer = FeedIssuer::start().await;
    let builder = issuer.subscriber().max_age("orders:*", MaxAge::STRICT);
    let verifier = issuer.followed_by(builder).await;
    let token = issuer.token(1);
    let verify = |need: &Need| verifier.verify(&token, need).map(drop);
    let (strict, standard) = (Need::scope("orders:read"), Need::any());
    let one_second = Need::any().max_age(MaxAge::secs(1));
    assert_eq!((verify(&strict), verify(&one_second)), (Ok(()), Ok(())));
    issuer.clock.advance(Duration::from_millis(1001));
    assert_eq!(
        (verify(&strict), verify(&one_second)),
        (Ok(()), Err(Rejected::Stale))
    );
    issuer.clock.advance(Duration::from_millis(2000));
    assert_eq!(
        (verify(&strict), verify(&standard)),
        (Err(Rejected::Stale), Ok(()))
    );
    issuer.clock.advance(Duration::from_secs(57));
    assert_eq!(verify(&standard), Err(Rejected::Stale));
    assert_eq!(verifier.metrics().rejected["stale"], 3);
}

#[tokio::test]
async fn fail_open_is_limited_by_registration() {
    let issuer = FeedIssuer::start().await;
    issuer.change(|state| state.allowed = Some(120));
    let builder = issuer.subscriber().default_max_age(MaxAge::FAIL_OPEN);
    let verifier = issuer.followed_by(builder).await;
    issuer.revoke_and_tell(&[session(99)]).await;
    // The second acknowledgement shows that the response to the first one has been processed.
    issuer.revoke_and_tell(&[session(98)]).await;
    let token = issuer.token(1);
    issuer.clock.advance(Duration::from_secs(120));
    assert_eq!(verdict(&verifier, &token), Ok(()));
    issuer.clock.advance(Duration::from_secs(1));
    assert_eq!(verdict(&verifier, &token), Err(Rejected::Stale));
    assert!(!verifier.metrics().fail_open);
}

#[tokio::test]
async fn allowed_fail_open_accepts_stale_data() {
    let issuer = FeedIssuer::start().await;
    issuer.change(|state| state.allowed = None);
    let builder = issuer.subscriber().default_max_age(MaxAge::FAIL_OPEN);
    let verifier = issuer.followed_by(builder).await;
    issuer.revoke_and_tell(&[session(1)]).await;
    issuer.revoke_and_tell(&[session(98)]).await;
    let claims = issuer.claims(2);
    let token = token_key().token(&Claims {
        exp: claims.iat + 3_600,
        ..claims
    });
    issuer.clock.advance(Duration::from_secs(250));
    assert_eq!(verdict(&verifier, &token), Ok(()));
    let strict = verifier.verify(&token, &Need::any().max_age(MaxAge::STRICT));
    assert_eq!(strict, Err(Rejected::Stale));
    assert_eq!(verdict(&verifier, &issuer.token(1)), Err(Rejected::Revoked));
    let metrics = verifier.metrics();
    assert_eq!((metrics.fail_open, metrics.failed_open), (true, 1));
    let max_age = issuer.state.lock().unwrap().acks.last().unwrap().max_age;
    assert_eq!(max_age, None);
}

#[tokio::test]
async fn instance_acknowledges_initial_position() {
    let issuer = FeedIssuer::start().await;
    let _verifier = issuer.followed_by(issuer.subscriber()).await;
    issuer.acked(0).await;
}
