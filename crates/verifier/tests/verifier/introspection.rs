//! Introspection of tokens while the revocation data is too old.

use std::time::Duration;

use portcullis_verifier::{MaxAge, Need, Rejected, Verifier};
use tokio::task::JoinSet;

use crate::feed_issuer::{FeedIssuer, session};

async fn verify(verifier: &Verifier, token: &str) -> Result<(), Rejected> {
    let need = Need::any().max_age(MaxAge::STRICT);
    verifier.verify_or_introspect(token, &need).await.map(drop)
}

/// Returns a verifier with introspection whose revocation data is 10 s old. Session 1 is revoked.
async fn stale_verifier(issuer: &FeedIssuer) -> Verifier {
    let verifier = issuer
        .followed_by(issuer.subscriber().introspection())
        .await;
    issuer.revoke_and_tell(&[session(1)]).await;
    issuer.clock.advance(Duration::from_secs(10));
    verifier
}

#[tokio::test]
async fn fresh_data_needs_no_introspection() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer
        .followed_by(issuer.subscriber().introspection())
        .await;
    assert_eq!(verify(&verifier, &issuer.token(2)).await, Ok(()));
    assert_eq!(issuer.times_asked("POST /introspect"), 0);
}

#[tokio::test]
async fn stale_data_is_replaced_by_introspection() {
    let issuer = FeedIssuer::start().await;
    let verifier = stale_verifier(&issuer).await;
    let (one, two) = (issuer.token(2), issuer.token(3));
    issuer.change(|state| state.active = Some(true));
    assert_eq!(verify(&verifier, &one).await, Ok(()));
    issuer.change(|state| state.active = Some(false));
    assert_eq!(verify(&verifier, &two).await, Err(Rejected::Revoked));
    // Tokens that are known to be revoked or malformed are not introspected.
    assert_eq!(
        verify(&verifier, &issuer.token(1)).await,
        Err(Rejected::Revoked)
    );
    assert_eq!(verify(&verifier, "ey").await, Err(Rejected::Malformed));
    assert_eq!(issuer.times_asked("POST /introspect"), 2);
    let lacking = Need::scope("admin").max_age(MaxAge::STRICT);
    issuer.change(|state| state.active = Some(true));
    let result = verifier
        .verify_or_introspect(&issuer.token(4), &lacking)
        .await;
    assert!(matches!(result, Err(Rejected::Scope { .. })), "{result:?}");
}

#[tokio::test]
async fn introspection_answer_is_reused_for_one_second() {
    let issuer = FeedIssuer::start().await;
    let verifier = stale_verifier(&issuer).await;
    let token = issuer.token(2);
    issuer.change(|state| state.active = Some(true));
    assert_eq!(verify(&verifier, &token).await, Ok(()));
    issuer.change(|state| state.active = Some(false));
    issuer.clock.advance(Duration::from_secs(1));
    assert_eq!(verify(&verifier, &token).await, Ok(()));
    issuer.clock.advance(Duration::from_micros(1));
    assert_eq!(verify(&verifier, &token).await, Err(Rejected::Revoked));
    assert_eq!(verifier.metrics().introspections, 2);
}

#[tokio::test]
async fn concurrent_callers_share_one_introspection() {
    let issuer = FeedIssuer::start().await;
    let verifier = stale_verifier(&issuer).await;
    issuer.change(|state| state.active = Some(true));
    let token = issuer.token(2);
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let (verifier, token) = (verifier.clone(), token.clone());
        callers.spawn(async move { verify(&verifier, &token).await });
    }
    assert!(callers.join_all().await.iter().all(Result::is_ok));
    assert_eq!(issuer.times_asked("POST /introspect"), 1);
}

#[tokio::test]
async fn failed_introspection_is_stale_and_not_cached() {
    let issuer = FeedIssuer::start().await;
    let verifier = stale_verifier(&issuer).await;
    let token = issuer.token(2);
    assert_eq!(verify(&verifier, &token).await, Err(Rejected::Stale));
    // The failure is not cached.
    issuer.change(|state| state.active = Some(true));
    assert_eq!(verify(&verifier, &token).await, Ok(()));
}

#[tokio::test]
async fn introspection_is_off_by_default() {
    let issuer = FeedIssuer::start().await;
    issuer.change(|state| state.active = Some(true));
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    issuer.clock.advance(Duration::from_secs(10));
    assert_eq!(
        verify(&verifier, &issuer.token(2)).await,
        Err(Rejected::Stale)
    );
    assert_eq!(issuer.times_asked("POST /introspect"), 0);
}
