//! Tests of the actix-web extractor.

use std::time::Duration;

use actix_web::dev::ServiceResponse;
use actix_web::http::header::{AUTHORIZATION, CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::test::{TestRequest, call_service, init_service, read_body};
use actix_web::{App, web};
use portcullis_verifier::actix::Authorized;
use portcullis_verifier::{Claims, Confirmation, Need, Rejected, Verifier};

use crate::feed_issuer::FeedIssuer;
use crate::signer::{Signer, claims, system_now};

/// Returns claims that are valid now by the system's clock, which the extractor reads.
fn valid_claims() -> Claims {
    let now = system_now();
    Claims {
        iat: now,
        exp: now + 300,
        ..claims()
    }
}

async fn orders(caller: Authorized) -> Result<String, Rejected> {
    caller.require("orders:read")?;
    Ok(caller.sub.clone())
}

async fn respond(request: TestRequest) -> ServiceResponse {
    let verifier = web::Data::new(Signer::es256(1).verifier());
    let app = App::new()
        .app_data(verifier)
        .route("/orders", web::get().to(orders))
        .service(
            web::resource("/payments")
                .app_data(Need::scope("orders:write").acr(["2"]))
                .to(orders),
        );
    call_service(&init_service(app).await, request.to_request()).await
}

fn request() -> TestRequest {
    TestRequest::get().uri("/orders")
}

fn with_token(scheme: &str, claims: &Claims) -> TestRequest {
    request().insert_header((
        AUTHORIZATION,
        format!("{scheme} {}", Signer::es256(1).token(claims)),
    ))
}

/// Sends a request that is rejected. Returns the status, the challenge and the body.
async fn rejection(request: TestRequest) -> (u16, String, String) {
    let response = respond(request).await;
    assert_eq!(response.headers().get(CACHE_CONTROL).unwrap(), "no-store");
    let status = response.status().as_u16();
    let challenge = response
        .headers()
        .get(WWW_AUTHENTICATE)
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    (
        status,
        challenge,
        String::from_utf8(read_body(response).await.to_vec()).unwrap(),
    )
}

#[actix_web::test]
async fn valid_token_reaches_handler() {
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let response = respond(with_token(scheme, &valid_claims())).await;
        assert_eq!(response.status(), 200);
        assert_eq!(read_body(response).await, "alice");
    }
}

#[actix_web::test]
async fn missing_token_challenge_has_no_error() {
    let in_query = TestRequest::get().uri(&format!(
        "/orders?access_token={}",
        Signer::es256(1).token(&valid_claims())
    ));
    let basic = request().insert_header((AUTHORIZATION, "Basic YTpi"));
    for request in [request(), in_query, basic] {
        let response = rejection(request).await;
        assert_eq!(
            response,
            (401, r#"Bearer realm="api""#.into(), String::new())
        );
    }
}

#[actix_web::test]
async fn expired_token_is_invalid_token_401() {
    let expired = Claims {
        iat: 1,
        exp: 2,
        ..claims()
    };
    let (status, challenge, body) = rejection(with_token("Bearer", &expired)).await;
    assert_eq!(status, 401);
    assert_eq!(
        challenge,
        r#"Bearer realm="api", error="invalid_token", error_description="The access token expired""#
    );
    assert_eq!(
        body,
        r#"{"error":"invalid_token","error_description":"The access token expired"}"#
    );
}

#[actix_web::test]
async fn missing_scope_is_403() {
    let (status, challenge, body) = rejection(with_token(
        "Bearer",
        &Claims {
            scope: "email".into(),
            ..valid_claims()
        },
    ))
    .await;
    assert_eq!(status, 403);
    assert!(
        challenge.ends_with(r#", scope="orders:read""#),
        "{challenge}"
    );
    assert!(
        body.starts_with(r#"{"error":"insufficient_scope","#),
        "{body}"
    );
}

#[actix_web::test]
async fn weak_authentication_requires_step_up() {
    let payments = |acr: &str| {
        let claims = Claims {
            acr: Some(acr.into()),
            ..valid_claims()
        };
        with_token("Bearer", &claims).uri("/payments")
    };
    let (status, challenge, body) = rejection(payments("1")).await;
    assert_eq!(status, 401);
    assert_eq!(
        challenge,
        r#"Bearer realm="api", error="insufficient_user_authentication", error_description="The user must authenticate in another way, or again", acr_values="2""#
    );
    assert!(
        body.starts_with(r#"{"error":"insufficient_user_authentication","#),
        "{body}"
    );
    assert_eq!(respond(payments("2")).await.status(), 200);
}

#[actix_web::test]
async fn stale_data_is_503_without_challenge() {
    let issuer = FeedIssuer::start().await;
    let verifier = web::Data::new(issuer.followed_by(issuer.subscriber()).await);
    let app = App::new()
        .app_data(verifier)
        .route("/orders", web::get().to(orders));
    let app = init_service(app).await;
    let call = async || {
        let bearer = format!("Bearer {}", issuer.token(1));
        let request = request().insert_header((AUTHORIZATION, bearer));
        call_service(&app, request.to_request()).await
    };
    assert_eq!(call().await.status(), 200);
    issuer.clock.advance(Duration::from_secs(61));
    let response = call().await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers().get(RETRY_AFTER).unwrap(), "2");
    assert!(!response.headers().contains_key(WWW_AUTHENTICATE));
    assert_eq!(
        read_body(response).await,
        r#"{"error":"temporarily_unavailable","error_description":"Access tokens cannot be verified at the moment"}"#
    );
}

#[actix_web::test]
async fn ambiguous_authorization_headers_are_rejected() {
    let twice =
        with_token("Bearer", &valid_claims()).append_header((AUTHORIZATION, "Bearer other"));
    let both = with_token("Bearer", &valid_claims()).append_header((AUTHORIZATION, "Basic YTpi"));
    let empty = request().insert_header((AUTHORIZATION, "Bearer"));
    let blank = request().insert_header((AUTHORIZATION, "Bearer  "));
    for request in [twice, both, empty, blank] {
        let (status, challenge, _) = rejection(request).await;
        assert_eq!(status, 400);
        assert!(
            challenge.contains(r#"error="invalid_request""#),
            "{challenge}"
        );
    }
}

#[actix_web::test]
async fn key_bound_token_is_rejected() {
    let cnf = Some(Confirmation {
        jkt: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I".into(),
        x5t_s256: None,
    });
    let (status, ..) = rejection(with_token(
        "Bearer",
        &Claims {
            cnf,
            ..valid_claims()
        },
    ))
    .await;
    assert_eq!(status, 401);
}

#[actix_web::test]
async fn missing_verifier_is_500() {
    let app = init_service(App::new().route("/orders", web::get().to(orders))).await;
    let response = call_service(&app, with_token("Bearer", &valid_claims()).to_request()).await;
    assert_eq!(response.status(), 500);
}

#[test]
fn verifier_is_shareable_between_threads() {
    fn is_shareable<T: Clone + Send + Sync + 'static>() {}
    is_shareable::<Verifier>();
}
