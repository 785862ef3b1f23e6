//! Keys from an issuer: found, kept, renewed, and asked for no more often than is due.

use std::time::Duration;

use portcullis_verifier::{Claims, FetchError, Need, Rejected, StartError, Verifier};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time;

use crate::issuer::{Answer, DISCOVERY, Issuer, JWKS, document, ok};
use crate::signer::{AUDIENCE, NOW, Signer, claims};

fn token(issuer: &Issuer, signer: &Signer) -> String {
    signer.token(&Claims {
        iss: issuer.url.clone(),
        ..claims()
    })
}

async fn fresh(verifier: &Verifier, token: &str, now: u64) -> Result<Claims, Rejected> {
    verifier.verify_fresh_at(token, &Need::any(), now).await
}

fn held(verifier: &Verifier, token: &str) -> Result<Claims, Rejected> {
    verifier.verify_at(token, &Need::any(), NOW)
}

/// Answers that no key may be taken from.
fn bad_answers(issuer: &Issuer, signer: &Signer) -> Vec<(&'static str, Answer)> {
    let moved = format!("Location: {}/moved\r\n", issuer.url);
    issuer.answers("/moved", ok(document(&[signer])));
    vec![
        (
            "an error",
            Answer {
                status: 500,
                headers: String::new(),
                body: document(&[signer]),
            },
        ),
        (
            "a redirect",
            Answer {
                status: 302,
                headers: moved,
                body: String::new(),
            },
        ),
        ("not JSON", ok("<html>")),
        ("cut short", ok(&document(&[signer])[..20])),
        ("without keys", ok(r#"{"keys":[]}"#)),
        ("a kid twice", ok(document(&[signer, signer]))),
        (
            "too large",
            ok(document(&[signer]) + &" ".repeat(256 * 1024)),
        ),
    ]
}

#[tokio::test]
async fn keys_are_found_by_discovery() {
    let (ec, rsa) = (Signer::es256(1), Signer::rs256());
    let issuer = Issuer::of(&[&ec, &rsa]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    assert!(held(&verifier, &token(&issuer, &ec)).is_ok());
    assert!(held(&verifier.clone(), &token(&issuer, &rsa)).is_ok());
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn a_hundred_unknown_kids_at_once_cause_one_fetch() {
    let issuer = Issuer::of(&[&Signer::es256(1)]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    let mut callers = JoinSet::new();
    for seed in 100..200 {
        let (verifier, token) = (verifier.clone(), token(&issuer, &Signer::es256(seed)));
        callers.spawn(async move { fresh(&verifier, &token, NOW).await });
    }
    for verdict in callers.join_all().await {
        assert_eq!(verdict, Err(Rejected::UnknownKey));
    }
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn a_hundred_tokens_of_a_new_key_pass_after_one_fetch() {
    let (old, new) = (Signer::es256(1), Signer::es256(2));
    let issuer = Issuer::of(&[&old]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    issuer.publishes(&[&old, &new]);
    let token = token(&issuer, &new);
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let (verifier, token) = (verifier.clone(), token.clone());
        callers.spawn(async move { fresh(&verifier, &token, NOW).await });
    }
    assert!(callers.join_all().await.iter().all(Result::is_ok));
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn strangers_cannot_cause_more_than_one_fetch_in_30_seconds() {
    let issuer = Issuer::of(&[&Signer::es256(1)]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    for (seed, now, fetches) in [
        (2, NOW, 2),
        (3, NOW, 2),
        (4, NOW + 29, 2),
        (5, NOW + 30, 3),
        (6, NOW + 31, 3),
    ] {
        let stranger = token(&issuer, &Signer::es256(seed));
        assert_eq!(
            fresh(&verifier, &stranger, now).await,
            Err(Rejected::UnknownKey)
        );
        assert_eq!(issuer.fetches(), fetches, "after {seed}");
    }
    // What a fetch did not find does not ask again before the next fetch on schedule.
    let again = token(&issuer, &Signer::es256(2));
    assert_eq!(
        fresh(&verifier, &again, NOW + 600).await,
        Err(Rejected::UnknownKey)
    );
    assert_eq!(issuer.fetches(), 3);
}

#[tokio::test]
async fn verify_does_not_wait_and_fetches_all_the_same() {
    let (old, new) = (Signer::es256(1), Signer::es256(2));
    let issuer = Issuer::of(&[&old]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    issuer.publishes(&[&old, &new]);
    let token = token(&issuer, &new);
    assert_eq!(held(&verifier, &token), Err(Rejected::UnknownKey));
    // Joins the fetch that the line above has caused.
    assert!(fresh(&verifier, &token, NOW).await.is_ok());
    assert!(held(&verifier, &token).is_ok());
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn a_key_that_left_the_document_is_dropped() {
    let (old, new) = (Signer::es256(1), Signer::es256(2));
    let issuer = Issuer::of(&[&old]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    issuer.publishes(&[&new]);
    assert!(fresh(&verifier, &token(&issuer, &new), NOW).await.is_ok());
    assert_eq!(
        held(&verifier, &token(&issuer, &old)),
        Err(Rejected::UnknownKey)
    );
}

#[tokio::test]
async fn a_failed_fetch_keeps_the_keys() {
    let (signer, stranger) = (Signer::es256(1), Signer::es256(2));
    let issuer = Issuer::of(&[&signer]).await;
    let verifier = issuer.verifier().start().await.unwrap();
    let (good, unknown) = (token(&issuer, &signer), token(&issuer, &stranger));
    let mut now = NOW;
    for (fetches, (why, answer)) in (2..).zip(bad_answers(&issuer, &stranger)) {
        issuer.answers(JWKS, answer);
        assert_eq!(
            fresh(&verifier, &unknown, now).await,
            Err(Rejected::UnknownKey),
            "{why}"
        );
        assert_eq!(issuer.fetches(), fetches, "{why}");
        assert!(held(&verifier, &good).is_ok(), "{why}");
        now += 30;
    }
    assert!(!issuer.was_asked_for("/moved"));
    issuer.publishes(&[&stranger]);
    assert!(fresh(&verifier, &unknown, now).await.is_ok());
}

#[tokio::test]
async fn keys_are_fetched_anew_when_their_max_age_is_over() {
    let (old, new) = (Signer::es256(1), Signer::es256(2));
    let issuer = Issuer::of(&[&old]).await;
    let headers = "Cache-Control: public, max-age=3600\r\n".to_owned();
    issuer.answers(
        JWKS,
        Answer {
            headers,
            ..ok(document(&[&old]))
        },
    );
    let verifier = issuer.verifier().start().await.unwrap();
    issuer.publishes(&[&old, &new]);

    time::pause();
    time::advance(Duration::from_secs(3600 * 9 / 10 - 10)).await;
    assert_eq!(issuer.fetches(), 1);
    time::advance(Duration::from_secs(3600 / 5 + 20)).await;
    time::resume();

    issuer.fetched(2).await;
    assert!(fresh(&verifier, &token(&issuer, &new), NOW).await.is_ok());
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn nothing_starts_without_keys() {
    let signer = Signer::es256(1);
    let issuer = Issuer::of(&[&signer]).await;
    for (why, answer) in bad_answers(&issuer, &signer) {
        issuer.answers(JWKS, answer);
        let error = issuer.verifier().start().await.unwrap_err();
        assert!(matches!(error, StartError::Keys { .. }), "{why}: {error:?}");
    }
    assert!(!issuer.was_asked_for("/moved"));
}

#[tokio::test]
async fn nothing_starts_without_discovery() {
    let issuer = Issuer::of(&[&Signer::es256(1)]).await;
    let start = async |answer| {
        issuer.answers(DISCOVERY, answer);
        issuer.verifier().start().await.unwrap_err()
    };
    let moved = format!("Location: {}/moved\r\n", issuer.url);
    for answer in [
        Answer {
            status: 404,
            headers: String::new(),
            body: String::new(),
        },
        Answer {
            status: 301,
            headers: moved,
            body: String::new(),
        },
        ok("{}"),
        ok("x".repeat(257 * 1024)),
    ] {
        let error = start(answer).await;
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
async fn plain_http_goes_to_loopback_only() {
    for url in ["http://id.example", "ftp://localhost", "id.example", ""] {
        let error = Verifier::builder(url, AUDIENCE).start().await.unwrap_err();
        assert!(
            matches!(error, StartError::Insecure { .. }),
            "{url}: {error:?}"
        );
    }
}

#[tokio::test]
async fn an_issuer_that_does_not_answer_is_given_up() {
    // Listens, and never accepts. The clock runs ahead while all tasks wait.
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
