//! Fetching, refreshing and caching of the issuer's keys.

use std::time::Duration;

use portcullis_verifier::{Claims, FetchError, Need, Rejected, StartError, Verifier};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time;

use crate::issuer::{DISCOVERY, Issuer, JWKS, Response, jwks, ok};
use crate::signer::{AUDIENCE, NOW, Signer, claims};

fn token(issuer: &Issuer, signer: &Signer) -> String {
    signer.token(&Claims {
        iss: issuer.url.clone(),
        ..claims()
    })
}

async fn verify_fresh(verifier: &Verifier, token: &str, now: u64) -> Result<Claims, Rejected> {
    verifier.verify_fresh_at(token, &Need::any(), now).await
}

fn verify(verifier: &Verifier, token: &str) -> Result<Claims, Rejected> {
    verifier.verify_at(token, &Need::any(), NOW)
}

/// Returns responses that must be rejected as a whole.
fn invalid_responses(issuer: &Issuer, signer: &Signer) -> Vec<(&'static str, Response)> {
    let moved = format!("Location: {}/moved\r\n", issuer.url);
    issuer.respond("/moved", ok(jwks(&[signer])));
    vec![
        (
            "an error",
            Response {
                status: 500,
                headers: String::new(),
                body: jwks(&[signer]),
            },
        ),
        (
            "a redirect",
            Response {
                status: 302,
                headers: moved,
                body: String::new(),
            },
        ),
        ("not JSON", ok("<html>")),
        ("cut short", ok(&jwks(&[signer])[..20])),
        ("without keys", ok(r#"{"keys":[]}"#)),
        ("a kid twice", ok(jwks(&[signer, signer]))),
        ("too large", ok(jwks(&[signer]) + &" ".repeat(256 * 1024))),
    ]
}

#[tokio::test]
async fn keys_are_fetched_by_discovery() {
    let (ec, rsa) = (Signer::es256(1), Signer::rs256());
    let issuer = Issuer::start(&[&ec, &rsa]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    assert!(verify(&verifier, &token(&issuer, &ec)).is_ok());
    assert!(verify(&verifier.clone(), &token(&issuer, &rsa)).is_ok());
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn concurrent_unknown_kids_cause_one_fetch() {
    let issuer = Issuer::start(&[&Signer::es256(1)]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    let mut callers = JoinSet::new();
    for seed in 100..200 {
        let (verifier, token) = (verifier.clone(), token(&issuer, &Signer::es256(seed)));
        callers.spawn(async move { verify_fresh(&verifier, &token, NOW).await });
    }
    for result in callers.join_all().await {
        assert_eq!(result, Err(Rejected::UnknownKey));
    }
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn concurrent_tokens_of_new_key_cause_one_fetch() {
    let (old, new) = (Signer::es256(1), Signer::es256(2));
    let issuer = Issuer::start(&[&old]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    issuer.publish(&[&old, &new]);
    let token = token(&issuer, &new);
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let (verifier, token) = (verifier.clone(), token.clone());
        callers.spawn(async move { verify_fresh(&verifier, &token, NOW).await });
    }
    assert!(callers.join_all().await.iter().all(Result::is_ok));
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn unknown_kids_cause_one_fetch_in_30_seconds() {
    let issuer = Issuer::start(&[&Signer::es256(1)]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    for (seed, now, fetches) in [
        (2, NOW, 2),
        (3, NOW, 2),
        (4, NOW + 29, 2),
        (5, NOW + 30, 3),
        (6, NOW + 31, 3),
    ] {
        let unknown = token(&issuer, &Signer::es256(seed));
        assert_eq!(
            verify_fresh(&verifier, &unknown, now).await,
            Err(Rejected::UnknownKey)
        );
        assert_eq!(issuer.fetches(), fetches, "after {seed}");
    }
    // A `kid` that a fetch did not find causes no fetch before the next scheduled one.
    let absent = token(&issuer, &Signer::es256(2));
    assert_eq!(
        verify_fresh(&verifier, &absent, NOW + 600).await,
        Err(Rejected::UnknownKey)
    );
    assert_eq!(issuer.fetches(), 3);
}

#[tokio::test]
async fn verify_fetches_without_waiting() {
    let (old, new) = (Signer::es256(1), Signer::es256(2));
    let issuer = Issuer::start(&[&old]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    issuer.publish(&[&old, &new]);
    let token = token(&issuer, &new);
    assert_eq!(verify(&verifier, &token), Err(Rejected::UnknownKey));
    // Joins the fetch that `verify` has requested.
    assert!(verify_fresh(&verifier, &token, NOW).await.is_ok());
    assert!(verify(&verifier, &token).is_ok());
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn removed_key_is_dropped() {
    let (old, new) = (Signer::es256(1), Signer::es256(2));
    let issuer = Issuer::start(&[&old]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    issuer.publish(&[&new]);
    assert!(
        verify_fresh(&verifier, &token(&issuer, &new), NOW)
            .await
            .is_ok()
    );
    assert_eq!(
        verify(&verifier, &token(&issuer, &old)),
        Err(Rejected::UnknownKey)
    );
}

#[tokio::test]
async fn failed_fetch_keeps_keys() {
    let (signer, other) = (Signer::es256(1), Signer::es256(2));
    let issuer = Issuer::start(&[&signer]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    let (good, unknown) = (token(&issuer, &signer), token(&issuer, &other));
    let mut now = NOW;
    for (fetches, (why, response)) in (2..).zip(invalid_responses(&issuer, &other)) {
        issuer.respond(JWKS, response);
        assert_eq!(
            verify_fresh(&verifier, &unknown, now).await,
            Err(Rejected::UnknownKey),
            "{why}"
        );
        assert_eq!(issuer.fetches(), fetches, "{why}");
        assert!(verify(&verifier, &good).is_ok(), "{why}");
        now += 30;
    }
    assert!(!issuer.was_requested("/moved"));
    issuer.publish(&[&other]);
    assert!(verify_fresh(&verifier, &unknown, now).await.is_ok());
}

#[tokio::test]
async fn keys_are_refreshed_after_max_age() {
    let (old, new) = (Signer::es256(1), Signer::es256(2));
    let issuer = Issuer::start(&[&old]).await;
    let headers = "Cache-Control: public, max-age=3600\r\n".to_owned();
    issuer.respond(
        JWKS,
        Response {
            headers,
            ..ok(jwks(&[&old]))
        },
    );
    let verifier = issuer.verifier().start().await.unwrap();
    issuer.publish(&[&old, &new]);

    time::pause();
    time::advance(Duration::from_secs(3600 * 9 / 10 - 10)).await;
    assert_eq!(issuer.fetches(), 1);
    time::advance(Duration::from_secs(3600 / 5 + 20)).await;
    time::resume();

    issuer.wait_for_fetches(2).await;
    assert!(
        verify_fresh(&verifier, &token(&issuer, &new), NOW)
            .await
            .is_ok()
    );
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn start_fails_without_keys() {
    let signer = Signer::es256(1);
    let issuer = Issuer::start(&[&signer]).await;
    for (why, response) in invalid_responses(&issuer, &signer) {
        issuer.respond(JWKS, response);
        let error = issuer.verifier().start().await.unwrap_err();
        assert!(matches!(error, StartError::Keys { .. }), "{why}: {error:?}");
    }
    assert!(!issuer.was_requested("/moved"));
}

#[tokio::test]
async fn start_fails_without_discovery() {
    let issuer = Issuer::start(&[&Signer::es256(1)]).await;
    let start = async |response| {
        issuer.respond(DISCOVERY, response);
        issuer.verifier().start().await.unwrap_err()
    };
    let moved = format!("Location: {}/moved\r\n", issuer.url);
    for response in [
        Response {
            status: 404,
            headers: String::new(),
            body: String::new(),
        },
        Response {
            status: 301,
            headers: moved,
            body: String::new(),
        },
        ok("{}"),
        ok("x".repeat(257 * 1024)),
    ] {
        let error = start(response).await;
        assert!(matches!(error, StartError::Discovery { .. }), "{error:?}");
    }

    let document = |issuer: &str, jwks_uri: &str| {
        ok(serde_json::json!({ "issuer": issuer, "jwks_uri": jwks_uri }).to_string())
    };
    let other = document(
        &format!("{}/", issuer.url),
        &format!("{}{JWKS}", issuer.url),
    );
    assert!(matches!(start(other).await, StartError::OtherIssuer { .. }));
    let insecure = document(&issuer.url, "http://id.example/jwks");
    assert!(matches!(start(insecure).await, StartError::Insecure { .. }));
    assert_eq!(issuer.fetches(), 0);
}

#[tokio::test]
async fn plain_http_issuer_is_rejected() {
    for url in ["http://id.example", "ftp://localhost", "id.example", ""] {
        let error = Verifier::builder(url, AUDIENCE).start().await.unwrap_err();
        assert!(
            matches!(error, StartError::Insecure { .. }),
            "{url}: {error:?}"
        );
    }
}

#[tokio::test]
async fn start_times_out_without_response() {
    // The server never accepts connections. The paused clock advances while all tasks wait.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    time::pause();
    let error = Verifier::builder(url, AUDIENCE).start().await.unwrap_err();
    assert!(
        matches!(
            error,
            StartError::Discovery {
                source: FetchError::Unreachable(_),
                ..
            }
        ),
        "{error:?}"
    );
}
