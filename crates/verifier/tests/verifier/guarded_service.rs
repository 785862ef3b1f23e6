//! The actix extractor, seen from outside.

use std::time::Duration;

use actix_web::dev::ServiceResponse;
use actix_web::http::header::{AUTHORIZATION, CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::test::{TestRequest, call_service, init_service, read_body};
use actix_web::{App, web};
use portcullis_verifier::actix::Authorized;
use portcullis_verifier::{Claims, Confirmation, Need, Rejected, Verifier};

use crate::feed_issuer::FeedIssuer;
use crate::signer::{Signer, claims};

/// Good by any clock: the extractor reads the system's.
fn good() -> Claims {
    Claims {
        iat: 0,
        exp: u64::MAX,
        ..claims()
    }
}

async fn orders(caller: Authorized) -> Result<String, Rejected> {
    caller.require("orders:read")?;
    Ok(caller.sub.clone())
}

async fn answer(request: TestRequest) -> ServiceResponse {
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

async fn refused(request: TestRequest) -> (u16, String, String) {
    let answer = answer(request).await;
    assert_eq!(answer.headers().get(CACHE_CONTROL).unwrap(), "no-store");
    let status = answer.status().as_u16();
    let challenge = answer
        .headers()
        .get(WWW_AUTHENTICATE)
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    (
        status,
        challenge,
        String::from_utf8(read_body(answer).await.to_vec()).unwrap(),
    )
}

#[actix_web::test]
async fn a_good_token_reaches_the_handler() {
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let answer = answer(with_token(scheme, &good())).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(read_body(answer).await, "alice");
    }
}

#[actix_web::test]
async fn no_token_is_challenged_and_told_no_error() {
    let in_query = TestRequest::get().uri(&format!(
        "/orders?access_token={}",
        Signer::es256(1).token(&good())
    ));
    let basic = request().insert_header((AUTHORIZATION, "Basic YTpi"));
    for request in [request(), in_query, basic] {
        let answer = refused(request).await;
        assert_eq!(answer, (401, r#"Bearer realm="api""#.into(), String::new()));
    }
}

#[actix_web::test]
async fn a_bad_token_is_invalid() {
    let expired = Claims {
        iat: 1,
        exp: 2,
        ..claims()
    };
    let (status, challenge, body) = refused(with_token("Bearer", &expired)).await;
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
async fn a_scope_that_was_not_granted_is_forbidden() {
    let (status, challenge, body) = refused(with_token(
        "Bearer",
        &Claims {
            scope: "email".into(),
            ..good()
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
async fn a_login_that_is_too_weak_is_stepped_up() {
    let payments = |acr: &str| {
        let claims = Claims {
            acr: Some(acr.into()),
            ..good()
        };
        with_token("Bearer", &claims).uri("/payments")
    };
    let (status, challenge, body) = refused(payments("1")).await;
    assert_eq!(status, 401);
    assert_eq!(
        challenge,
        r#"Bearer realm="api", error="insufficient_user_authentication", error_description="The user must authenticate in another way, or anew", acr_values="2""#
    );
    assert!(
        body.starts_with(r#"{"error":"insufficient_user_authentication","#),
        "{body}"
    );
    assert_eq!(answer(payments("2")).await.status(), 200);
}

#[actix_web::test]
async fn stale_news_is_no_fault_of_the_caller() {
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
    let answer = call().await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers().get(RETRY_AFTER).unwrap(), "2");
    assert!(!answer.headers().contains_key(WWW_AUTHENTICATE));
    assert_eq!(
        read_body(answer).await,
        r#"{"error":"temporarily_unavailable","error_description":"Access tokens cannot be verified at the moment"}"#
    );
}

#[actix_web::test]
async fn a_header_that_can_be_read_in_two_ways_is_refused() {
    let twice = with_token("Bearer", &good()).append_header((AUTHORIZATION, "Bearer other"));
    let both = with_token("Bearer", &good()).append_header((AUTHORIZATION, "Basic YTpi"));
    let empty = request().insert_header((AUTHORIZATION, "Bearer"));
    let blank = request().insert_header((AUTHORIZATION, "Bearer  "));
    for request in [twice, both, empty, blank] {
        let (status, challenge, _) = refused(request).await;
        assert_eq!(status, 400);
        assert!(
            challenge.contains(r#"error="invalid_request""#),
            "{challenge}"
        );
    }
}

#[actix_web::test]
async fn a_token_bound_to_a_key_is_no_bearer_token() {
    let cnf = Some(Confirmation {
        jkt: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I".into(),
        x5t_s256: None,
    });
    let (status, ..) = refused(with_token("Bearer", &Claims { cnf, ..good() })).await;
    assert_eq!(status, 401);
}

#[actix_web::test]
async fn without_a_verifier_nobody_enters() {
    let app = init_service(App::new().route("/orders", web::get().to(orders))).await;
    let answer = call_service(&app, with_token("Bearer", &good()).to_request()).await;
    assert_eq!(answer.status(), 500);
}

#[test]
fn a_verifier_can_be_shared_between_workers() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    shared::<Verifier>();
}
