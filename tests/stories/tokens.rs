//! Tokens that live and die: refresh.

use std::time::Duration;

use crate::cast::{Party, Server, Tokens};
use crate::story;

/// Signs alice in at `shop` and returns what her code buys.
async fn tokens(server: &Server, shop: &Party) -> Tokens {
    shop.redeems(&server.browser().allows(shop).await)
        .await
        .ok()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

story! {
    async fn a_refresh_gives_the_next_token_and_keeps_what_was_granted(server: Server) {
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
        assert_eq!(second.access_claims()["grant_id"], first.access_claims()["grant_id"]);
        assert_eq!(server.count("SELECT count(*) AS n FROM grants"), 1, "nothing grows with use");
    }
}

story! {
    async fn two_tabs_refresh_at_once(server: Server) {
        let shop = server.shop().await;
        let token = tokens(&server, &shop).await;
        let (one, other) = futures_join(shop.refreshes(token.refresh(), &[]), shop.refreshes(token.refresh(), &[])).await;
        assert_eq!(one.ok().refresh(), other.ok().refresh(), "both tabs hold the same successor");
    }
}

async fn futures_join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    tokio::join!(a, b)
}

story! {
    async fn the_answer_was_lost(server: Server) {
        let shop = server.shop().await;
        let token = tokens(&server, &shop).await;
        let lost = shop.refreshes(token.refresh(), &[]).await.ok();
        server.advance(seconds(29));
        let again = shop.refreshes(token.refresh(), &[]).await.ok();
        assert_eq!(lost.refresh(), again.refresh());
        shop.refreshes(again.refresh(), &[]).await.ok();
        assert_eq!(server.count("SELECT count(*) AS n FROM audit_events WHERE name = 'token.refresh_reuse'"), 0);
    }
}

story! {
    async fn a_thief_replays(server: Server) {
        let shop = server.shop().await;
        let stolen = tokens(&server, &shop).await;
        let next = shop.refreshes(stolen.refresh(), &[]).await.ok();
        let live = shop.refreshes(next.refresh(), &[]).await.ok();
        server.advance(seconds(1));
        shop.refreshes(stolen.refresh(), &[]).await.refused("invalid_grant", "token.refresh_reuse", "reused");
        shop.refreshes(live.refresh(), &[]).await.refused("invalid_grant", "token.rejected", "grant_ended");
        assert_eq!(server.count("SELECT count(*) AS n FROM revocations WHERE kind = 'G'"), 1);
        assert_eq!(server.count("SELECT count(*) AS n FROM audit_events WHERE name = 'token.refresh_reuse'"), 1);

        let late = tokens(&server, &shop).await;
        shop.refreshes(late.refresh(), &[]).await.ok();
        server.advance(seconds(30));
        shop.refreshes(late.refresh(), &[]).await.refused("invalid_grant", "token.refresh_reuse", "reused");
    }
}

story! {
    async fn a_stranger_with_her_token_changes_nothing(server: Server) {
        let (shop, other) = (server.shop().await, server.shop().await);
        let token = tokens(&server, &shop).await;
        other.refreshes(token.refresh(), &[]).await.refused("invalid_grant", "token.rejected", "client");
        let fields = [("grant_type", "refresh_token"), ("refresh_token", token.refresh()), ("client_id", shop.id())];
        let bare = shop.posts_raw("/oauth2/token", &[], &fields).await;
        bare.refused("invalid_client", "client.auth_failed", "method");
        let mut forged = token.refresh().to_owned();
        forged.replace_range(30..31, if &forged[30..31] == "A" { "B" } else { "A" });
        shop.refreshes(&forged, &[]).await.refused("invalid_grant", "token.rejected", "unknown");
        shop.refreshes("pcl_rt_", &[]).await.refused("invalid_grant", "token.rejected", "unknown");
        shop.refreshes(token.refresh(), &[]).await.ok();
    }
}

story! {
    async fn a_narrower_scope_is_for_one_token_alone(server: Server) {
        let shop = server.shop().await;
        let url = shop.request(&[("scope", "openid orders:read orders:write")]);
        let first = shop.redeems(&server.browser().allows_request(&url).await).await.ok();
        let narrow = shop.refreshes(first.refresh(), &[("scope", "orders:read")]).await.ok();
        assert_eq!(narrow.0["scope"], "orders:read");
        assert!(narrow.0["id_token"].is_null());
        let more = shop.refreshes(narrow.refresh(), &[("scope", "openid profile")]).await;
        more.refused("invalid_scope", "token.rejected", "scope");
        let whole = shop.refreshes(narrow.refresh(), &[]).await.ok();
        assert_eq!(whole.0["scope"], "openid orders:read orders:write");
    }
}

story! {
    async fn a_grant_ends_unused_and_in_the_end(server: Server) {
        let shop = server.shop().await;
        let url = shop.request(&[("scope", "openid offline_access")]);
        let rested = shop.redeems(&server.browser().allows_request(&url).await).await.ok();
        server.advance(seconds(14 * 86_400));
        shop.refreshes(rested.refresh(), &[]).await.refused("invalid_grant", "token.rejected", "grant_ended");

        let mut used = shop.redeems(&server.browser().allows_request(&url).await).await.ok();
        for _ in 0..29 {
            server.advance(seconds(86_400));
            used = shop.refreshes(used.refresh(), &[]).await.ok();
        }
        server.advance(seconds(86_400));
        shop.refreshes(used.refresh(), &[]).await.refused("invalid_grant", "token.rejected", "grant_ended");
    }
}

story! {
    async fn an_offline_grant_outlives_the_logout_and_no_other_does(server: Server) {
        let shop = server.shop().await;
        let mut alice = server.browser();
        let bound = shop.redeems(&alice.allows(&shop).await).await.ok();
        let url = shop.request(&[("scope", "openid offline_access")]);
        let offline = shop.redeems(&alice.allows_request(&url).await).await.ok();
        assert!(offline.access_claims()["sid"].is_null() && bound.access_claims()["sid"].is_string());
        let page = alice.get("/oauth2/end_session").await;
        alice.post("/oauth2/end_session", &[("csrf", &page.hidden("csrf"))]).await;
        shop.refreshes(bound.refresh(), &[]).await.refused("invalid_grant", "token.rejected", "grant_ended");
        shop.refreshes(offline.refresh(), &[]).await.ok();
    }
}

story! {
    async fn alice_signs_out_everywhere(server: Server) {
        let shop = server.shop().await;
        let url = shop.request(&[("scope", "openid offline_access")]);
        let offline = shop.redeems(&server.browser().allows_request(&url).await).await.ok();
        let name = portcullis::accounts::user::Username::parse("alice").unwrap();
        let now = server.clock.now();
        server
            .write(move |tx| {
                let (alice, _) = tx.find_credentials(&name)?.unwrap();
                tx.cut_off_user(&alice.id, "sign out everywhere", "test", now)
            })
            .await;
        shop.refreshes(offline.refresh(), &[]).await.refused("invalid_grant", "token.rejected", "grant_ended");
        tokens(&server, &shop).await;
    }
}

story! {
    async fn sixteen_refreshes_of_one_token_make_one_generation(server: Server) {
        let shop = server.shop().await;
        let mut token = tokens(&server, &shop).await;
        for round in 1..=10 {
            let tasks: Vec<_> = (0..16)
                .map(|_| {
                    let (shop, token) = (shop.clone(), token.refresh().to_owned());
                    actix_web::rt::spawn(async move { shop.refreshes(&token, &[]).await.ok() })
                })
                .collect();
            let mut answers = Vec::new();
            for task in tasks {
                answers.push(task.await.unwrap());
            }
            assert!(answers.iter().all(|answer| answer.refresh() == answers[0].refresh()));
            assert_eq!(server.count("SELECT generation AS n FROM grants"), round);
            token = answers.swap_remove(0);
        }
    }
}

story! {
    async fn tables_stay_flat_while_people_come_and_go(server: Server) {
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
            assert_eq!(server.write(move |tx| tx.sweep(now)).await, 0, "nothing that lives goes");
            shop.refreshes(living.refresh(), &[]).await.ok();
            server.advance(seconds(31 * 86_400));
            let now = server.clock.now();
            while server.write(move |tx| tx.sweep(now)).await > 0 {}
            after_a_day.push(count(&server));
        }
        assert_eq!(after_a_day, [[0; 4]; 3]);
    }
}

story! {
    async fn a_login_that_ran_out_of_time_ends_no_grant(server: Server) {
        let shop = server.shop().await;
        let mut alice = server.browser();
        let token = shop.redeems(&alice.allows(&shop).await).await.ok();
        server.advance(seconds(13 * 3_600));
        let page = alice.opens(&shop.request(&[])).await;
        assert!(page.body.contains("login-submit"), "the login is over");
        shop.refreshes(token.refresh(), &[]).await.ok();
    }
}
