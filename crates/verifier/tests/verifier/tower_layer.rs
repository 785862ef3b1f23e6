//! Tests of the tower layer with routes of axum.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, Request, request};
use axum::routing::get;
use axum::{Extension, Router};
use portcullis_verifier::tower::RequireToken;
use portcullis_verifier::{Claims, Confirmation, Need, Verifier};
use tower::ServiceExt;

use crate::feed_issuer::FeedIssuer;
use crate::signer::{Signer, claims, system_now};

async fn orders(Extension(caller): Extension<Claims>) -> String {
    caller.sub
}

fn app(verifier: Verifier) -> Router {
    let need = Need::scope("orders:read").acr(["1", "2"]);
    Router::new().route(
        "/orders",
        get(orders).layer(RequireToken::new(verifier, need)),
    )
}

async fn call(app: Router, request: request::Builder) -> (u16, HeaderMap, String) {
    let request = request.uri("/orders").body(Body::empty()).unwrap();
    let response = app.oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = to_bytes(body, 4096).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    (head.status.as_u16(), head.headers, text)
}

async fn respond(request: request::Builder) -> (u16, HeaderMap, String) {
    call(app(Signer::es256(1).verifier()), request).await
}

fn with_token(claims: &Claims) -> request::Builder {
    let token = Signer::es256(1).token(claims);
    Request::builder().header(AUTHORIZATION, format!("Bearer {token}"))
}

/// Returns claims that are valid now by the system's clock, which the layer reads.
fn valid_claims() -> Claims {
    let now = system_now();
    Claims {
        iat: now,
        exp: now + 300,
        ..claims()
    }
}

#[tokio::test]
async fn valid_token_passes_claims_to_service() {
    let (status, _, body) = respond(with_token(&valid_claims())).await;
    assert_eq!((status, body.as_str()), (200, "alice"));
}

#[tokio::test]
async fn rejections_have_status_and_challenge() {
    let bound = Confirmation {
        jkt: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I".into(),
        x5t_s256: None,
    };
    let twice = with_token(&valid_claims()).header(AUTHORIZATION, "Bearer other");
    for (request, status, challenge) in [
        (Request::builder(), 401, r#"Bearer realm="api""#),
        (
            twice,
            400,
            r#"Bearer realm="api", error="invalid_request", error_description="The Authorization header is malformed""#,
        ),
        (
            with_token(&changed_claims(|claims| claims.exp = 1)),
            401,
            r#"Bearer realm="api", error="invalid_token", error_description="The access token expired""#,
        ),
        (
            with_token(&changed_claims(|claims| claims.scope = String::new())),
            403,
            r#"Bearer realm="api", error="insufficient_scope", error_description="The access token lacks a scope that this request needs", scope="orders:read""#,
        ),
        (
            with_token(&changed_claims(|claims| claims.acr = None)),
            401,
            r#"Bearer realm="api", error="insufficient_user_authentication", error_description="The user must authenticate in another way, or again", acr_values="1 2""#,
        ),
        (
            with_token(&Claims {
                cnf: Some(bound),
                ..valid_claims()
            }),
            401,
            r#"Bearer realm="api", error="invalid_token", error_description="The access token is invalid""#,
        ),
    ] {
        let (actual, headers, body) = respond(request).await;
        assert_eq!(
            (actual, headers[WWW_AUTHENTICATE].to_str().unwrap()),
            (status, challenge)
        );
        assert_eq!(headers[CACHE_CONTROL], "no-store");
        assert_eq!(body.is_empty(), !challenge.contains("error"), "{body}");
    }
}

fn changed_claims(change: impl Fn(&mut Claims)) -> Claims {
    let mut claims = valid_claims();
    change(&mut claims);
    claims
}

#[tokio::test]
async fn stale_data_is_503_without_challenge() {
    let issuer = FeedIssuer::start().await;
    let verifier = issuer.followed_by(issuer.subscriber()).await;
    let bearer = || {
        let token = format!("Bearer {}", issuer.token(1));
        Request::builder().header(AUTHORIZATION, token)
    };
    assert_eq!(call(app(verifier.clone()), bearer()).await.0, 200);
    issuer.clock.advance(Duration::from_secs(61));
    let (status, headers, body) = call(app(verifier), bearer()).await;
    assert_eq!(
        (status, &headers[RETRY_AFTER]),
        (503, &"2".parse().unwrap())
    );
    assert!(!headers.contains_key(WWW_AUTHENTICATE));
    assert!(
        body.starts_with(r#"{"error":"temporarily_unavailable""#),
        "{body}"
    );
}
