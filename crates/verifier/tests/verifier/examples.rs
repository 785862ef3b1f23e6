//! Tests of the services in `examples/` with an issuer that has a feed.

use std::time::Duration;

use actix_web::body::to_bytes;
use actix_web::http::header::AUTHORIZATION;
use actix_web::test::{TestRequest, call_service, init_service};
use actix_web::{App, web};
use axum::body::{Body, to_bytes as axum_bytes};
use axum::http::Request;
use portcullis_verifier::{Claims, Verifier};
use tower::ServiceExt;

use crate::feed_issuer::{FeedIssuer, session, token_key};

#[path = "../../examples/actix.rs"]
#[allow(dead_code)]
mod on_actix;
#[path = "../../examples/axum.rs"]
#[allow(dead_code)]
mod on_axum;

/// Checks the responses of a service, whatever framework it uses.
async fn check_service(get: impl AsyncFn(Verifier, Option<String>) -> (u16, String)) {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let status = async |token: &str| get(verifier.clone(), Some(token.to_owned())).await.0;
    let (one, two) = (issuer.token(1), issuer.token(2));
    let accepted = get(verifier.clone(), Some(one.clone())).await;
    assert_eq!(accepted, (200, "the orders of alice\n".to_owned()));
    assert_eq!(get(verifier.clone(), None).await.0, 401);
    assert_eq!(status("x").await, 401);
    let without_scope = Claims {
        scope: "email".into(),
        ..issuer.claims(1)
    };
    assert_eq!(status(&token_key().token(&without_scope)).await, 403);
    issuer.revoke_and_tell(&[session(1)]).await;
    assert_eq!(status(&one).await, 401);
    assert_eq!(status(&two).await, 200);
    issuer.clock.advance(Duration::from_secs(61));
    assert_eq!(status(&two).await, 503);
}

#[tokio::test]
async fn axum_example_rejects_revoked_tokens() {
    check_service(async |verifier, token| {
        let request = Request::builder().uri("/orders");
        let request = match token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        };
        let request = request.body(Body::empty()).unwrap();
        let response = on_axum::routes(verifier).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum_bytes(response.into_body(), 4096).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    })
    .await;
}

#[actix_web::test]
async fn actix_example_rejects_revoked_tokens() {
    check_service(async |verifier, token| {
        let app = App::new()
            .app_data(web::Data::new(verifier))
            .configure(on_actix::routes);
        let app = init_service(app).await;
        let request = TestRequest::get().uri("/orders");
        let request = match token {
            Some(token) => request.insert_header((AUTHORIZATION, format!("Bearer {token}"))),
            None => request,
        };
        let response = call_service(&app, request.to_request()).await;
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body()).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    })
    .await;
}
