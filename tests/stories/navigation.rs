//! Requests that are not a navigation of the user change nothing.

use crate::fixtures::{Db, Server, apply, on_both_databases};

const PREFETCHES: [(&str, &str); 3] = [
    ("Sec-Purpose", "prefetch;prerender"),
    ("Purpose", "prefetch"),
    ("X-Moz", "prefetch"),
];

const SUBRESOURCES: [(&str, &str); 6] = [
    ("Sec-Fetch-Dest", "empty"),
    ("Sec-Fetch-Dest", "image"),
    ("Sec-Fetch-Dest", "script"),
    ("Sec-Fetch-Dest", "object"),
    ("Sec-Fetch-Dest", "fencedframe"),
    ("Sec-Fetch-Dest", "iframe"),
];

#[apply(on_both_databases)]
#[actix_web::test]
async fn pages_reject_loads_that_are_not_a_navigation(#[case] db: Db) {
    let server = Server::start(db).await;
    let web = server.shop().await;
    let mut alice = server.browser();
    let back = alice.signs_in(&web, "alice").await;
    let tokens = web.redeems(&back.callback("code").unwrap()).await.ok();
    let hint = tokens.0["id_token"].as_str().unwrap();
    let pages = [
        web.request(&[]),
        format!("/oauth2/end_session?id_token_hint={hint}"),
        "/login?authorization=x".to_owned(),
        "/consent?authorization=x".to_owned(),
        "/setup?token=x".to_owned(),
        "/account".to_owned(),
    ];
    for page in &pages {
        for header in PREFETCHES {
            let answer = alice.send("GET", page, &[header], None).await;
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (204, ""),
                "{page} {header:?}"
            );
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            assert_eq!(answer.header("set-cookie"), None);
            assert!(
                answer
                    .logged()
                    .contains(&("authz.rejected".into(), "fetch_dest".into()))
            );
        }
        for header in SUBRESOURCES {
            let answer = alice.send("GET", page, &[header], None).await;
            assert_eq!(
                (answer.status, answer.location()),
                (400, None),
                "{page} {header:?}"
            );
            assert!(
                answer
                    .logged()
                    .contains(&("authz.rejected".into(), "fetch_dest".into()))
            );
        }
    }
    let still = alice.get(&web.request(&[("prompt", "none")])).await;
    assert!(still.callback("code").is_some(), "the session is active");
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn silent_renewal_works_only_in_same_site_frame(#[case] db: Db) {
    let server = Server::start(db).await;
    let web = server.shop().await;
    let mut alice = server.browser();
    alice.signs_in(&web, "alice").await;
    let silent = web.request(&[("prompt", "none")]);
    let frame = ("Sec-Fetch-Dest", "iframe");
    for site in ["same-origin", "same-site"] {
        let answer = alice
            .send("GET", &silent, &[frame, ("Sec-Fetch-Site", site)], None)
            .await;
        assert!(answer.callback("code").is_some(), "{site}");
    }
    // A browser sends no cookie in this case. The server would ignore one.
    for site in ["cross-site", "none"] {
        let answer = alice
            .send("GET", &silent, &[frame, ("Sec-Fetch-Site", site)], None)
            .await;
        answer.refused("login_required", "authz.rejected", "cross_site_frame");
    }
    // The request is a POST of the client, and the frame follows its redirect.
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(web.parameters(&[("prompt", "none")]))
        .finish();
    let posted = [
        ("Content-Type", "application/x-www-form-urlencoded"),
        frame,
        ("Sec-Fetch-Site", "same-site"),
    ];
    let stored = alice
        .send("POST", "/oauth2/authorize", &posted, Some(body))
        .await;
    let on = stored.own_redirect().unwrap();
    let answer = alice
        .send("GET", &on, &[frame, ("Sec-Fetch-Site", "same-site")], None)
        .await;
    assert!(answer.callback("code").is_some(), "{}", answer.status);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn cross_site_logout_by_post_asks_first(#[case] db: Db) {
    let server = Server::start(db).await;
    let web = server.shop().await;
    let mut alice = server.browser();
    alice.signs_in(&web, "alice").await;
    let session = alice.cookies["__Host-sid"].clone();
    // The form of another site arrives without the cookie (SameSite=Lax).
    let mut stranger = server.browser();
    let headers = [
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Origin", "https://evil.example"),
        ("Sec-Fetch-Site", "cross-site"),
    ];
    let form = format!("client_id={}&state=s", web.id());
    let posted = stranger
        .send("POST", "/oauth2/end_session", &headers, Some(form))
        .await;
    assert_eq!(posted.status, 303);
    assert_eq!(
        posted.header("set-cookie"),
        None,
        "the browser keeps its session"
    );
    // The browser follows the redirect with the cookie, and the user is asked.
    let asked = alice.get(posted.location().unwrap()).await;
    assert!(asked.body.contains("logout-confirm"), "{}", asked.body);
    assert_eq!(alice.cookies["__Host-sid"], session);
}
