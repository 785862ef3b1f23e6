//! Clients are told that a session has ended: OpenID Connect Back-Channel Logout 1.0.

use std::collections::HashSet;
use std::time::Duration;

use portcullis::audit::Actor;
use portcullis::id::ClientId;
use portcullis::keys::Alg;
use portcullis::oauth::client::Client;
use portcullis::oauth::redirect_uri::Localhost;

use crate::fixtures::client::{claims, header};
use crate::fixtures::receiver::{Behavior, Receiver};
use crate::fixtures::server::{confidential, sweep};
use crate::fixtures::{Browser, Db, Server, TestClient, Tokens, apply, log, on_both_databases};

/// Starts a server that may send plain http to this machine.
async fn server(db: Db, receivers: &[&Receiver]) -> Server {
    let allow = receivers
        .iter()
        .map(|receiver| receiver.address.to_string().parse().unwrap())
        .collect();
    Server::found_by_services(db, |config| config.outbound.allow = allow).await
}

/// Registers a client that is told at `uri`.
async fn client(server: &Server, name: &str, uri: Option<String>) -> TestClient {
    let mut client = confidential("", &format!("https://{name}.example/cb"));
    client.id = ClientId::new(&server.app.entropy, server.clock.now());
    client.name = name.to_owned();
    client.backchannel_logout_uri = uri;
    server.register(client).await
}

async fn signs_in(browser: &mut Browser, client: &TestClient) -> Tokens {
    client.redeems(&browser.allows(client).await).await.ok()
}

fn waiting(server: &Server) -> i64 {
    server.count("SELECT count(*) AS n FROM logout_notifications WHERE next_at IS NOT NULL")
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn clients_of_a_session_are_told_before_the_browser_returns(#[case] db: Db) {
    let (shop_end, blog_end) = (
        Receiver::start(Behavior::Status(200)).await,
        Receiver::start(Behavior::Status(204)).await,
    );
    let server = server(db, &[&shop_end, &blog_end]).await;
    let shop = client(&server, "shop", Some(shop_end.url())).await;
    let blog = client(&server, "blog", Some(blog_end.url())).await;
    server
        .alter(&ClientId::from(blog.id()), |client| {
            client.id_token_alg = Alg::ES256;
        })
        .await;
    let quiet = client(&server, "quiet", None).await;
    let mut alice = server.enters("alice").await;
    let mut other_browser = server.enters("alice").await;
    let at_shop = signs_in(&mut alice, &shop).await;
    let at_blog = signs_in(&mut alice, &blog).await;
    signs_in(&mut alice, &quiet).await;
    signs_in(&mut other_browser, &shop).await;

    let mark = log::mark();
    let hint = at_shop.0["id_token"].as_str().unwrap();
    let left = alice
        .get(&format!("/oauth2/end_session?id_token_hint={hint}"))
        .await;
    assert_eq!(left.status, 200, "{}", left.body);
    assert!(left.body.contains("signed out"), "{}", left.body);
    for (end, client, tokens, alg) in [
        (&shop_end, &shop, &at_shop, "RS256"),
        (&blog_end, &blog, &at_blog, "ES256"),
    ] {
        let [(head, _)] = &end.received()[..] else {
            panic!("{:?}", end.received());
        };
        assert!(head.starts_with("POST /logout HTTP/1.1\r\n"), "{head}");
        let form = "content-type: application/x-www-form-urlencoded";
        assert!(head.to_ascii_lowercase().contains(form), "{head}");
        let token = &end.tokens()[0];
        let (signed_header, claims) = (header(token), claims(token));
        assert_eq!(signed_header["typ"], "logout+jwt");
        assert_eq!(signed_header["alg"], alg);
        assert!(server.app.keys().verify(token, "logout+jwt").is_some());
        let id_token = tokens.id_claims();
        for same in ["iss", "sub", "aud", "sid"] {
            assert_eq!(claims[same], id_token[same], "{same}");
        }
        assert_eq!(claims["aud"], client.id());
        let (iat, exp) = (claims["iat"].as_u64(), claims["exp"].as_u64());
        assert_eq!(iat, Some(server.clock.now().secs()));
        assert_eq!(exp, iat.map(|iat| iat + 120));
        assert!(claims["jti"].as_str().is_some_and(|jti| jti.len() == 36));
        assert_eq!(
            claims["events"],
            serde_json::json!({"http://schemas.openid.net/event/backchannel-logout": {}})
        );
        assert!(claims.get("nonce").is_none());
    }
    assert_eq!(
        server.count("SELECT count(*) AS n FROM logout_notifications"),
        0
    );
    let sent = log::since(mark);
    let sent = sent.iter().filter(|line| {
        let is_sent = |client| {
            let fields = [("event", "logout.backchannel_sent"), ("client_id", client)];
            log::has(line, &fields)
        };
        is_sent(shop.id()) || is_sent(blog.id())
    });
    assert_eq!(sent.count(), 2);
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn failed_notifications_are_repeated_three_times_and_given_up(#[case] db: Db) {
    let end = Receiver::start(Behavior::Status(500)).await;
    let server = server(db, &[&end]).await;
    let shop = client(&server, "shop", Some(end.url())).await;
    let mut alice = server.enters("alice").await;
    signs_in(&mut alice, &shop).await;
    let mark = log::mark();
    alice.signs_out().await;
    assert_eq!(end.tokens().len(), 1);
    for (attempts, pause) in [(2, 10), (3, 60), (4, 300)] {
        server.advance(seconds(pause - 1));
        server.app.logout_notifier.send_waiting().await;
        assert_eq!(end.tokens().len(), attempts - 1, "too early");
        server.advance(seconds(1));
        server.app.logout_notifier.send_waiting().await;
        assert_eq!(end.tokens().len(), attempts);
    }
    assert_eq!(waiting(&server), 0);
    server.advance(seconds(3_600));
    server.app.logout_notifier.send_waiting().await;
    assert_eq!(end.tokens().len(), 4, "it was given up");
    let jtis = end.tokens();
    let jtis: HashSet<_> = jtis
        .iter()
        .map(|token| claims(token)["jti"].to_string())
        .collect();
    assert_eq!(jtis.len(), 4, "each attempt has a token of its own");
    let logged = log::since(mark);
    let of_shop = |event: &str, reason: &str| {
        let fields = [
            ("event", event),
            ("reason", reason),
            ("client_id", shop.id()),
        ];
        let same = logged.iter().filter(|line| log::has(line, &fields));
        same.count()
    };
    assert_eq!(of_shop("logout.backchannel_failed", "status"), 4);
    assert_eq!(of_shop("logout.backchannel_dead", "status"), 1);
    // What was given up is kept for a week.
    let rows = || server.count("SELECT count(*) AS n FROM logout_notifications");
    let now = server.clock.now();
    server
        .write(move |tx| sweep(tx, now + seconds(6 * 86_400)))
        .await;
    assert_eq!(rows(), 1);
    server
        .write(move |tx| sweep(tx, now + seconds(8 * 86_400)))
        .await;
    assert_eq!(rows(), 0);
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn notification_that_failed_once_arrives_later(#[case] db: Db) {
    let end = Receiver::start(Behavior::Status(503)).await;
    let server = server(db, &[&end]).await;
    let shop = client(&server, "shop", Some(end.url())).await;
    let mut alice = server.enters("alice").await;
    signs_in(&mut alice, &shop).await;
    alice.signs_out().await;
    end.behaves(Behavior::Status(200));
    server.advance(seconds(10));
    server.app.logout_notifier.send_waiting().await;
    server.advance(seconds(3_600));
    server.app.logout_notifier.send_waiting().await;
    assert_eq!(end.tokens().len(), 2);
    assert_eq!(waiting(&server), 0);
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn every_session_of_a_user_who_is_signed_out_everywhere_is_told(#[case] db: Db) {
    let end = Receiver::start(Behavior::Status(200)).await;
    let server = server(db, &[&end]).await;
    let shop = client(&server, "shop", Some(end.url())).await;
    let mut sids = HashSet::new();
    for _ in 0..2 {
        let mut browser = server.enters("alice").await;
        let tokens = signs_in(&mut browser, &shop).await;
        sids.insert(tokens.id_claims()["sid"].to_string());
    }
    let mut bob = server.enters("bob").await;
    signs_in(&mut bob, &shop).await;
    server.signs_out_everywhere("alice").await;
    // A second time: these sessions have ended already.
    server.app.logout_notifier.send_waiting().await;
    server.signs_out_everywhere("alice").await;
    server.app.logout_notifier.send_waiting().await;
    let told: Vec<String> = end
        .tokens()
        .iter()
        .map(|token| claims(token)["sid"].to_string())
        .collect();
    assert_eq!(told.len(), 2);
    assert_eq!(told.into_iter().collect::<HashSet<_>>(), sids);
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn another_user_in_the_same_browser_ends_the_session_at_the_client(#[case] db: Db) {
    let end = Receiver::start(Behavior::Status(200)).await;
    let server = server(db, &[&end]).await;
    let shop = client(&server, "shop", Some(end.url())).await;
    let mut browser = server.enters("alice").await;
    let tokens = signs_in(&mut browser, &shop).await;
    let page = browser.opens(&shop.request(&[("prompt", "login")])).await;
    browser
        .fills_in(&page, "bob", crate::fixtures::server::PASSWORD)
        .await;
    server.app.logout_notifier.send_waiting().await;
    let told = end.tokens();
    assert_eq!(told.len(), 1);
    assert_eq!(claims(&told[0])["sid"], tokens.id_claims()["sid"]);
    server.remove().await;
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn client_that_withdrew_its_uri_or_is_disabled_is_not_told(#[case] db: Db) {
    let end = Receiver::start(Behavior::Status(500)).await;
    let server = server(db, &[&end]).await;
    let shop = client(&server, "shop", Some(end.url())).await;
    let mut alice = server.enters("alice").await;
    signs_in(&mut alice, &shop).await;
    alice.signs_out().await;
    assert_eq!(end.tokens().len(), 1);
    let id = ClientId::from(shop.id());
    server
        .alter(&id, |client| client.backchannel_logout_uri = None)
        .await;
    server.advance(seconds(10));
    server.app.logout_notifier.send_waiting().await;
    assert_eq!(end.tokens().len(), 1);
    assert_eq!(waiting(&server), 0);
    // A client that was disabled before the second attempt.
    let blog = client(&server, "blog", Some(end.url())).await;
    let mut bob = server.enters("bob").await;
    signs_in(&mut bob, &blog).await;
    bob.signs_out().await;
    assert_eq!((end.tokens().len(), waiting(&server)), (2, 1));
    let (id, now) = (ClientId::from(blog.id()), server.clock.now());
    server
        .write(move |tx| tx.disable_client(&id, &Actor::Operator, now))
        .await;
    server.advance(seconds(10));
    server.app.logout_notifier.send_waiting().await;
    assert_eq!((end.tokens().len(), waiting(&server)), (2, 0));
    server.remove().await;
}

#[actix_web::test]
async fn two_nodes_at_once_send_one_notification() {
    let end = Receiver::start(Behavior::Status(200)).await;
    let server = server(Db::Postgres, &[&end]).await;
    let shop = client(&server, "shop", Some(end.url())).await;
    let node = server.node().await;
    for round in 1..=5 {
        let mut alice = server.enters("alice").await;
        signs_in(&mut alice, &shop).await;
        server.signs_out_everywhere("alice").await;
        tokio::join!(
            server.app.logout_notifier.send_waiting(),
            node.app.logout_notifier.send_waiting(),
            server.app.logout_notifier.send_waiting()
        );
        assert_eq!(end.tokens().len(), round);
    }
    node.stop().await;
    server.remove().await;
}

#[test]
fn backchannel_logout_uri_is_checked_at_registration() {
    let errors = |uri: &str, localhost| {
        let client = Client {
            backchannel_logout_uri: Some(uri.to_owned()),
            ..confidential("shop", "https://shop.example/cb")
        };
        client.check(localhost).err().map(|errors| {
            assert_eq!(errors.0.len(), 1);
            errors.0[0].field
        })
    };
    for good in [
        "https://shop.example/logout?tenant=1",
        "https://10.0.0.1:8443/",
    ] {
        assert_eq!(errors(good, Localhost::Forbidden), None, "{good}");
    }
    let plain = "http://localhost:3000/logout";
    assert_eq!(errors(plain, Localhost::Allowed), None);
    for bad in [
        plain,
        "",
        "/logout",
        "ftp://shop.example/",
        "javascript:alert(1)",
        "https://shop.example/#fragment",
        "https://user@shop.example/",
    ] {
        let field = errors(bad, Localhost::Forbidden);
        assert_eq!(field, Some("backchannel_logout_uri"), "{bad}");
    }
    let without_uri = Client {
        backchannel_logout_session_required: true,
        ..confidential("shop", "https://shop.example/cb")
    };
    assert!(without_uri.check(Localhost::Forbidden).is_err());
}
