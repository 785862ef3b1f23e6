//! Where the news is too old, the issuer is asked about the token.

use std::time::Duration;

use portcullis_verifier::{MaxAge, Need, Rejected, Verifier};
use tokio::task::JoinSet;

use crate::feed_issuer::{FeedIssuer, session};

async fn ask(verifier: &Verifier, token: &str) -> Result<(), Rejected> {
    let need = Need::any().max_age(MaxAge::STRICT);
    verifier.verify_or_introspect(token, &need).await.map(drop)
}

async fn stale(issuer: &FeedIssuer) -> Verifier {
    let verifier = issuer
        .followed_by(issuer.subscriber().introspection())
        .await;
    issuer.revoke_and_tell(&[session(1)]).await;
    issuer.clock.advance(Duration::from_secs(10));
    verifier
}

#[tokio::test]
async fn fresh_news_needs_no_question() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer
        .followed_by(issuer.subscriber().introspection())
        .await;
    assert_eq!(ask(&verifier, &issuer.token(2)).await, Ok(()));
    assert_eq!(issuer.times_asked("POST /introspect"), 0);
}

#[tokio::test]
async fn the_issuer_says_whether_a_token_stands() {
    let issuer = FeedIssuer::start().await;
    let verifier = stale(&issuer).await;
    let (one, two) = (issuer.token(2), issuer.token(3));
    issuer.change(|state| state.active = Some(true));
    assert_eq!(ask(&verifier, &one).await, Ok(()));
    issuer.change(|state| state.active = Some(false));
    assert_eq!(ask(&verifier, &two).await, Err(Rejected::Revoked));
    // Only where the news is too old, and never for what is known to be revoked or wrong.
    assert_eq!(
        ask(&verifier, &issuer.token(1)).await,
        Err(Rejected::Revoked)
    );
    assert_eq!(ask(&verifier, "ey").await, Err(Rejected::Malformed));
    assert_eq!(issuer.times_asked("POST /introspect"), 2);
    let lacking = Need::scope("admin").max_age(MaxAge::STRICT);
    issuer.change(|state| state.active = Some(true));
    let refused = verifier
        .verify_or_introspect(&issuer.token(4), &lacking)
        .await;
    assert!(
        matches!(refused, Err(Rejected::Scope { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_answer_counts_for_a_second() {
    let issuer = FeedIssuer::start().await;
    let verifier = stale(&issuer).await;
    let token = issuer.token(2);
    issuer.change(|state| state.active = Some(true));
    assert_eq!(ask(&verifier, &token).await, Ok(()));
    issuer.change(|state| state.active = Some(false));
    issuer.clock.advance(Duration::from_secs(1));
    assert_eq!(ask(&verifier, &token).await, Ok(()));
    issuer.clock.advance(Duration::from_micros(1));
    assert_eq!(ask(&verifier, &token).await, Err(Rejected::Revoked));
    assert_eq!(verifier.metrics().introspections, 2);
}

#[tokio::test]
async fn a_hundred_who_bring_one_token_ask_once() {
    let issuer = FeedIssuer::start().await;
    let verifier = stale(&issuer).await;
    issuer.change(|state| state.active = Some(true));
    let token = issuer.token(2);
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let (verifier, token) = (verifier.clone(), token.clone());
        callers.spawn(async move { ask(&verifier, &token).await });
    }
    assert!(callers.join_all().await.iter().all(Result::is_ok));
    assert_eq!(issuer.times_asked("POST /introspect"), 1);
}

#[tokio::test]
async fn an_issuer_that_cannot_say_leaves_it_open() {
    let issuer = FeedIssuer::start().await;
    let verifier = stale(&issuer).await;
    let token = issuer.token(2);
    assert_eq!(ask(&verifier, &token).await, Err(Rejected::Stale));
    // No answer is none, and is not remembered.
    issuer.change(|state| state.active = Some(true));
    assert_eq!(ask(&verifier, &token).await, Ok(()));
}

#[tokio::test]
async fn who_was_not_told_to_ask_does_not() {
    let issuer = FeedIssuer::start().await;
    issuer.change(|state| state.active = Some(true));
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    issuer.clock.advance(Duration::from_secs(10));
    assert_eq!(ask(&verifier, &issuer.token(2)).await, Err(Rejected::Stale));
    assert_eq!(issuer.times_asked("POST /introspect"), 0);
}
