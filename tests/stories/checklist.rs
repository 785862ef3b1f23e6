//! Cases of the OpenID conformance profiles, and the test that shows each of them. `tests/run` prints their number.

use std::path::Path;
use std::time::Duration;
use std::{fs, iter};

use serde_json::Value;

use crate::fixtures::client::TestClient;
use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Answer, Browser, Db, Server, apply, on_both_databases};

/// A case by the section of the checklist, and the file and name of a test that asserts all that the case requires.
/// A case that is shown in part is not listed.
const ROWS: &[(&str, &str, &str)] = &[
    (
        "5.1 no nonce",
        "stories/checklist.rs",
        "request_without_nonce_gets_id_token_without_nonce",
    ),
    (
        "5.2 prompt=login with a live session",
        "attacks/authorize/user_parameters.rs",
        "a020_prompt_login_and_max_age_0_require_a_new_login",
    ),
    (
        "5.2 prompt=none, not signed in",
        "stories/checklist.rs",
        "prompt_none_without_session_returns_login_required",
    ),
    (
        "5.2 prompt=none, signed in",
        "stories/checklist.rs",
        "prompt_none_with_session_keeps_sub_and_auth_time",
    ),
    (
        "5.2 prompt=none with id_token_hint of the first login",
        "stories/checklist.rs",
        "prompt_none_with_session_keeps_sub_and_auth_time",
    ),
    (
        "5.2 prompt=consent",
        "stories/code_flow.rs",
        "remembered_consent_is_skipped_until_scope_grows",
    ),
    (
        "5.2 max_age=1 after 2 s",
        "stories/checklist.rs",
        "max_age_1_after_2_s_requires_a_new_login",
    ),
    (
        "5.2 max_age=15000, then max_age=10000",
        "stories/checklist.rs",
        "long_max_age_requires_no_second_login",
    ),
    (
        "5.2 display=page, display=popup",
        "stories/checklist.rs",
        "display_and_hints_are_never_an_error",
    ),
    (
        "5.2 login_hint, ui_locales=se, claims_locales=se",
        "stories/checklist.rs",
        "display_and_hints_are_never_an_error",
    ),
    (
        "5.2 acr_values with all supported values",
        "stories/checklist.rs",
        "supported_acr_values_yield_one_of_them",
    ),
    (
        "5.2 the user denies the request",
        "stories/code_flow.rs",
        "denied_consent_returns_access_denied",
    ),
    (
        "7 private_key_jwt, RS256, aud = token endpoint URL",
        "stories/private_key_jwt.rs",
        "audience_is_the_issuer_or_by_setting_the_token_endpoint",
    ),
    (
        "7 private_key_jwt, RS256, aud = issuer",
        "stories/private_key_jwt.rs",
        "assertion_of_each_algorithm_is_accepted_once",
    ),
    (
        "10.1 URI not registered; registered URI with a query added",
        "attacks/logout.rs",
        "a365_unregistered_logout_redirects_are_not_followed",
    ),
    (
        "10.1 hint with alg none; hint signed by an unknown key",
        "attacks/logout.rs",
        "a368_invalid_logout_hints_never_redirect",
    ),
    (
        "10.1 post_logout_redirect_uri without a hint",
        "attacks/logout.rs",
        "a366_logout_without_hint_and_client_id_never_redirects",
    ),
    (
        "10.2 request",
        "stories/backchannel_logout.rs",
        "clients_of_a_session_are_told_before_the_browser_returns",
    ),
    (
        "10.2 claims",
        "stories/backchannel_logout.rs",
        "clients_of_a_session_are_told_before_the_browser_returns",
    ),
    (
        "10.2 sub, sid",
        "stories/backchannel_logout.rs",
        "clients_of_a_session_are_told_before_the_browser_returns",
    ),
    (
        "10.2 nonce",
        "stories/backchannel_logout.rs",
        "clients_of_a_session_are_told_before_the_browser_returns",
    ),
    (
        "10.2 signature",
        "stories/backchannel_logout.rs",
        "clients_of_a_session_are_told_before_the_browser_returns",
    ),
    (
        "10.2 ID token",
        "stories/backchannel_logout.rs",
        "clients_of_a_session_are_told_before_the_browser_returns",
    ),
];

#[test]
fn every_row_names_an_existing_test() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for (n, (case, file, test)) in ROWS.iter().enumerate() {
        let text = fs::read_to_string(tests.join(file)).unwrap();
        assert!(
            text.contains(&format!("fn {test}(")),
            "{case}: {file} has no test {test}"
        );
        assert!(
            ROWS[..n].iter().all(|(earlier, ..)| earlier != case),
            "{case} is listed twice"
        );
    }
    println!("checklist: {} rows have a test", ROWS.len());
}

/// Exchanges the code of a response that asked for no page, and returns the claims of the ID token.
async fn id_claims(shop: &TestClient, answer: &Answer) -> Value {
    let code = answer.callback("code").unwrap();
    shop.redeems(&code).await.ok().id_claims()
}

/// Returns a signed-in browser whose user allowed `shop`, and the tokens' claims of that login.
async fn first_login(server: &Server, shop: &TestClient) -> (Browser, Value) {
    let mut alice = server.browser();
    let first = alice.signs_in(shop, "alice").await;
    let claims = id_claims(shop, &first).await;
    (alice, claims)
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn request_without_nonce_gets_id_token_without_nonce(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let (mut alice, _) = first_login(&server, &shop).await;
    // An empty value omits the parameter.
    let answer = alice.opens(&shop.request(&[("nonce", "")])).await;
    assert_eq!(id_claims(&shop, &answer).await.get("nonce"), None);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn prompt_none_without_session_returns_login_required(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let state: String = iter::repeat_n("aZ09-._~", 16).collect();
    assert_eq!(state.len(), 128);
    let request = shop.request(&[("prompt", "none"), ("state", &state)]);
    let answer = server.browser().opens(&request).await;
    assert_eq!(answer.callback("error").as_deref(), Some("login_required"));
    assert_eq!(answer.callback("state"), Some(state));
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn prompt_none_with_session_keeps_sub_and_auth_time(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let first = alice.signs_in(&shop, "alice").await;
    let tokens = shop.redeems(&first.callback("code").unwrap()).await.ok();
    let (first, hint) = (tokens.id_claims(), tokens.0["id_token"].as_str().unwrap());
    for hint in [None, Some(hint)] {
        server.advance(Duration::from_secs(5));
        let mut fields = vec![("prompt", "none")];
        fields.extend(hint.map(|hint| ("id_token_hint", hint)));
        let answer = alice.opens(&shop.request(&fields)).await;
        let claims = id_claims(&shop, &answer).await;
        assert_eq!(claims["sub"], first["sub"]);
        assert!(first["auth_time"].is_u64());
        assert_eq!(claims["auth_time"], first["auth_time"]);
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn max_age_1_after_2_s_requires_a_new_login(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let (mut alice, first) = first_login(&server, &shop).await;
    server.advance(Duration::from_secs(2));
    let page = alice.opens(&shop.request(&[("max_age", "1")])).await;
    assert!(page.body.contains("login-submit"), "{}", page.body);
    let answer = alice.fills_in(&page, "alice", PASSWORD).await;
    let claims = id_claims(&shop, &answer).await;
    assert_eq!(claims["auth_time"], server.clock.now().secs());
    assert!(claims["auth_time"].as_u64() > first["auth_time"].as_u64());
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn long_max_age_requires_no_second_login(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let (mut alice, first) = first_login(&server, &shop).await;
    assert!(first["auth_time"].is_u64());
    for max_age in ["15000", "10000"] {
        server.advance(Duration::from_secs(5));
        let answer = alice.opens(&shop.request(&[("max_age", max_age)])).await;
        let claims = id_claims(&shop, &answer).await;
        assert_eq!(claims["auth_time"], first["auth_time"]);
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn display_and_hints_are_never_an_error(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let (mut alice, _) = first_login(&server, &shop).await;
    for field in [
        ("display", "page"),
        ("display", "popup"),
        ("display", "unknown"),
        ("login_hint", "alice"),
        ("login_hint", "unknown"),
        ("ui_locales", "se"),
        ("claims_locales", "se"),
    ] {
        let page = server.browser().opens(&shop.request(&[field])).await;
        assert!(page.body.contains("login-submit"), "{field:?}");
        let answer = alice.opens(&shop.request(&[field])).await;
        assert!(answer.callback("code").is_some(), "{field:?}");
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn supported_acr_values_yield_one_of_them(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let (mut alice, _) = first_login(&server, &shop).await;
    let metadata = alice.get("/.well-known/openid-configuration").await.json();
    let supported = metadata["acr_values_supported"].as_array().unwrap();
    let names: Vec<_> = supported.iter().filter_map(Value::as_str).collect();
    let request = shop.request(&[("acr_values", &names.join(" "))]);
    let claims = id_claims(&shop, &alice.opens(&request).await).await;
    assert!(supported.contains(&claims["acr"]), "{}", claims["acr"]);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn prompt_login_consent_shows_both_pages(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let (mut alice, _) = first_login(&server, &shop).await;
    for prompt in ["login consent", "consent login"] {
        let page = alice.opens(&shop.request(&[("prompt", prompt)])).await;
        assert!(page.body.contains("login-submit"), "{prompt}");
        let page = alice.fills_in(&page, "alice", PASSWORD).await;
        assert!(page.body.contains("consent-allow"), "{prompt}");
        let answer = alice.decides(&page, "allow").await;
        assert!(answer.callback("code").is_some(), "{prompt}");
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn prompt_none_with_another_value_is_rejected(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let (mut alice, _) = first_login(&server, &shop).await;
    for prompt in [
        "none login",
        "login none",
        "none consent",
        "none select_account",
    ] {
        let answer = alice.opens(&shop.request(&[("prompt", prompt)])).await;
        answer.refused("invalid_request", "authz.rejected", "prompt");
    }
}
