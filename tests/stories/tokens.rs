//! Refresh tokens: rotation, reuse and expiry.

use std::time::Duration;

use crate::fixtures::server::sweep;
use crate::fixtures::{Db, Server, TestClient, Tokens, apply, on_both_databases};

/// Signs alice in at `shop`, and returns the tokens.
async fn tokens(server: &Server, shop: &TestClient) -> Tokens {
    shop.redeems(&server.browser().allows(shop).await)
        .await
        .ok()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn refresh_rotates_token_and_keeps_grant(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let first = tokens(&server, &shop).await;
    server.advance(seconds(100));
    let second = shop.refreshes(first.refresh(), &[]).await.ok();
    assert_ne!(first.refresh(), second.refresh());
    let (before, after) = (first.id_claims(), second.id_claims());
    for same in ["iss", "sub", "aud", "auth_time", "sid", "acr"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    assert!(after["nonce"].is_null() && after["iat"].as_u64() > before["iat"].as_u64());
    assert_eq!(
        second.access_claims()["grant_id"],
        first.access_claims()["grant_id"]
    );
    assert_eq!(
        server.count("SELECT count(*) AS n FROM grants"),
        1,
        "nothing grows with use"
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn concurrent_refreshes_get_the_same_successor(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let token = tokens(&server, &shop).await;
    let (one, other) = tokio::join!(
        shop.refreshes(token.refresh(), &[]),
        shop.refreshes(token.refresh(), &[])
    );
    let (one, other) = (one.ok(), other.ok());
    assert_eq!(
        one.refresh(),
        other.refresh(),
        "both tabs hold the same successor"
    );
    for tab in [&one, &other] {
        let answer = server.browser().asks_userinfo("GET", tab.access()).await;
        assert_eq!(answer.status, 200, "each refresh returns an access token");
    }
    assert_ne!(one.access(), other.access());
    // Later one tab refreshes for both, and the session continues.
    let next = shop.refreshes(one.refresh(), &[]).await.ok();
    shop.refreshes(next.refresh(), &[]).await.ok();
    assert_eq!(reuse_count(&server), 0);
}

/// Returns how many grants were revoked because a refresh token was reused.
fn reuse_count(server: &Server) -> i64 {
    server.count("SELECT count(*) AS n FROM audit_events WHERE name = 'token.refresh_reuse'")
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn refresh_after_lost_response_returns_same_token(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let token = tokens(&server, &shop).await;
    let lost = shop.refreshes(token.refresh(), &[]).await.ok();
    // The phone did not receive the response, and retries with the only token that it has.
    server.advance(seconds(29));
    let answer = shop.refreshes(token.refresh(), &[]).await;
    let again = answer.ok();
    assert_eq!(lost.refresh(), again.refresh());
    assert!(
        answer
            .logged()
            .contains(&("token.refresh_grace".to_owned(), "again".to_owned()))
    );
    // From here on the old token counts as used, and no reuse was reported.
    shop.refreshes(again.refresh(), &[]).await.ok();
    assert_eq!(reuse_count(&server), 0);
}

/// Returns the generation in a refresh token.
fn generation(tokens: &Tokens) -> u32 {
    use base64::Engine;
    let text = tokens.refresh().strip_prefix("pcl_rt_").unwrap();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(text)
        .unwrap();
    u32::from_be_bytes(bytes[17..21].try_into().unwrap())
}

// F13 of docs/faults.md.
#[apply(on_both_databases)]
#[actix_web::test]
async fn f13_refreshes_survive_clock_step_of_two_seconds(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let first = tokens(&server, &shop).await;
    let mut held = first.clone();
    for turn in 1..=8 {
        server.advance(seconds(1));
        let refreshing = shop.refreshes(held.refresh(), &[]);
        let (one, ()) = tokio::join!(refreshing, async { server.set_back(seconds(2)) });
        // A retry with a clock reading before the rotation gets the same token.
        let (one, again) = (one.ok(), shop.refreshes(held.refresh(), &[]).await.ok());
        assert_eq!(one.refresh(), again.refresh());
        assert_eq!(generation(&one), generation(&first) + turn);
        for tokens in [&one, &again] {
            let answer = server.browser().asks_userinfo("GET", tokens.access()).await;
            assert_eq!(answer.status, 200, "turn {turn}");
        }
        held = one;
    }
    let live = server.count("SELECT count(*) AS n FROM grants WHERE ended_at IS NULL");
    assert_eq!((live, reuse_count(&server)), (1, 0));
    // A used token stays used for any clock reading.
    let answer = shop.refreshes(first.refresh(), &[]).await;
    answer.refused("invalid_grant", "token.refresh_reuse", "reused");
    assert_eq!(reuse_count(&server), 1);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn replayed_refresh_token_revokes_grant(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let stolen = tokens(&server, &shop).await;
    let other = tokens(&server, &shop).await;
    // The client refreshes twice. Then an attacker uses the token that was stolen first.
    let next = shop.refreshes(stolen.refresh(), &[]).await.ok();
    let live = shop.refreshes(next.refresh(), &[]).await.ok();
    server.advance(seconds(1));
    shop.refreshes(stolen.refresh(), &[]).await.refused(
        "invalid_grant",
        "token.refresh_reuse",
        "reused",
    );
    // The server cannot tell the attacker from the client, so the grant is revoked for both, with all its
    // tokens.
    shop.refreshes(live.refresh(), &[]).await.refused(
        "invalid_grant",
        "token.rejected",
        "grant_ended",
    );
    for tokens in [&stolen, &next, &live] {
        let answer = server.browser().asks_userinfo("GET", tokens.access()).await;
        assert_eq!(answer.status, 401);
    }
    assert_eq!(
        server.count("SELECT count(*) AS n FROM revocations WHERE kind = 'G'"),
        1
    );
    assert_eq!(reuse_count(&server), 1);
    // The grant that alice gave in another browser is not affected.
    shop.refreshes(other.refresh(), &[]).await.ok();
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn stolen_refresh_token_is_detected_when_client_refreshes(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let stolen = tokens(&server, &shop).await;
    let thiefs = shop.refreshes(stolen.refresh(), &[]).await.ok();
    server.advance(seconds(30));
    shop.refreshes(stolen.refresh(), &[]).await.refused(
        "invalid_grant",
        "token.refresh_reuse",
        "reused",
    );
    shop.refreshes(thiefs.refresh(), &[]).await.refused(
        "invalid_grant",
        "token.rejected",
        "grant_ended",
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn refresh_token_of_another_client_changes_nothing(#[case] db: Db) {
    let server = Server::start(db).await;
    let (shop, other) = (server.shop().await, server.shop().await);
    let token = tokens(&server, &shop).await;
    other.refreshes(token.refresh(), &[]).await.refused(
        "invalid_grant",
        "token.rejected",
        "client",
    );
    let fields = [
        ("grant_type", "refresh_token"),
        ("refresh_token", token.refresh()),
        ("client_id", shop.id()),
    ];
    let bare = shop.posts_raw("/oauth2/token", &[], &fields).await;
    bare.refused("invalid_client", "client.auth_failed", "method");
    let mut forged = token.refresh().to_owned();
    forged.replace_range(30..31, if &forged[30..31] == "A" { "B" } else { "A" });
    shop.refreshes(&forged, &[])
        .await
        .refused("invalid_grant", "token.rejected", "unknown");
    shop.refreshes("pcl_rt_", &[])
        .await
        .refused("invalid_grant", "token.rejected", "unknown");
    shop.refreshes(token.refresh(), &[]).await.ok();
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn narrowed_scope_applies_to_one_token(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let url = shop.request(&[("scope", "openid orders:read orders:write")]);
    let first = shop
        .redeems(&server.browser().allows_request(&url).await)
        .await
        .ok();
    let narrow = shop
        .refreshes(first.refresh(), &[("scope", "orders:read")])
        .await
        .ok();
    assert_eq!(narrow.0["scope"], "orders:read");
    assert!(narrow.0["id_token"].is_null());
    let more = shop
        .refreshes(narrow.refresh(), &[("scope", "openid profile")])
        .await;
    more.refused("invalid_scope", "token.rejected", "scope");
    let whole = shop.refreshes(narrow.refresh(), &[]).await.ok();
    assert_eq!(whole.0["scope"], "openid orders:read orders:write");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn grant_expires_when_idle_and_at_its_absolute_lifetime(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let url = shop.request(&[("scope", "openid offline_access")]);
    let rested = shop
        .redeems(&server.browser().allows_request(&url).await)
        .await
        .ok();
    server.advance(seconds(14 * 86_400));
    shop.refreshes(rested.refresh(), &[])
        .await
        .refused("invalid_grant", "token.expired", "grant");

    let mut used = shop
        .redeems(&server.browser().allows_request(&url).await)
        .await
        .ok();
    for _ in 0..29 {
        server.advance(seconds(86_400));
        used = shop.refreshes(used.refresh(), &[]).await.ok();
    }
    server.advance(seconds(86_400));
    shop.refreshes(used.refresh(), &[])
        .await
        .refused("invalid_grant", "token.expired", "grant");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn only_offline_grants_survive_logout(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let bound = shop.redeems(&alice.allows(&shop).await).await.ok();
    let url = shop.request(&[("scope", "openid offline_access")]);
    let offline = shop.redeems(&alice.allows_request(&url).await).await.ok();
    assert!(offline.access_claims()["sid"].is_null() && bound.access_claims()["sid"].is_string());
    let page = alice.get("/oauth2/end_session").await;
    alice
        .post("/oauth2/end_session", &[("csrf", &page.hidden("csrf"))])
        .await;
    shop.refreshes(bound.refresh(), &[]).await.refused(
        "invalid_grant",
        "token.rejected",
        "grant_ended",
    );
    shop.refreshes(offline.refresh(), &[]).await.ok();
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn sign_out_everywhere_revokes_every_grant(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    // Alice is signed in at home, on her phone, and has an offline grant, which outlives every session.
    let (mut home, mut phone) = (server.browser(), server.browser());
    let bound = shop.redeems(&home.allows(&shop).await).await.ok();
    let url = shop.request(&[("scope", "openid offline_access")]);
    let offline = shop.redeems(&phone.allows_request(&url).await).await.ok();
    let unused = home.allows(&shop).await;

    server.signs_out_everywhere("alice").await;
    for browser in [&mut home, &mut phone] {
        let silent = browser.get(&shop.request(&[("prompt", "none")])).await;
        assert_eq!(silent.callback("error").as_deref(), Some("login_required"));
    }
    for tokens in [&bound, &offline] {
        shop.refreshes(tokens.refresh(), &[]).await.refused(
            "invalid_grant",
            "token.rejected",
            "grant_ended",
        );
        let answer = server.browser().asks_userinfo("GET", tokens.access()).await;
        assert_eq!(answer.status, 401);
    }
    shop.redeems(&unused)
        .await
        .refused("invalid_grant", "token.rejected", "grant_ended");
    // One record revokes them at every API, and tokens issued from now on are valid.
    let record = "SELECT count(*) AS n FROM revocations WHERE reason = 'signed out everywhere' AND kind = 'U' AND floor = 2";
    assert_eq!(server.count(record), 1);
    tokens(&server, &shop).await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn tables_stay_flat_under_constant_use(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let count = |server: &Server| {
        ["codes", "grants", "sessions", "authorizations"]
            .map(|table| server.count(&format!("SELECT count(*) AS n FROM {table}")))
    };
    let mut after_a_day = Vec::new();
    for _ in 0..3 {
        for _ in 0..4 {
            let token = tokens(&server, &shop).await;
            shop.refreshes(token.refresh(), &[]).await.ok();
        }
        let living = tokens(&server, &shop).await;
        let now = server.clock.now();
        assert_eq!(
            server.write(move |tx| sweep(tx, now)).await,
            0,
            "no active row is deleted"
        );
        shop.refreshes(living.refresh(), &[]).await.ok();
        server.advance(seconds(31 * 86_400));
        let now = server.clock.now();
        while server.write(move |tx| sweep(tx, now)).await > 0 {}
        after_a_day.push(count(&server));
    }
    assert_eq!(after_a_day, [[0; 4]; 3]);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn expired_session_leaves_grant_active(#[case] db: Db) {
    let server = Server::start(db).await;
    let shop = server.shop().await;
    let mut alice = server.browser();
    let token = shop.redeems(&alice.allows(&shop).await).await.ok();
    server.advance(seconds(13 * 3_600));
    let page = alice.opens(&shop.request(&[])).await;
    assert!(
        page.body.contains("login-submit"),
        "the session has expired"
    );
    shop.refreshes(token.refresh(), &[]).await.ok();
}
