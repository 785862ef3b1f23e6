//! Rate limits, client addresses and networks. Rates are counted in memory, so one database is enough.

use std::time::Duration;

use portcullis::config::{Config, Mode};
use portcullis::oauth::client::{Client, GrantType};

use crate::fixtures::server::confidential;
use crate::fixtures::{Answer, Db, Server, TestClient, apply, on_both_databases, raw};

const RATES: [&str; 3] = ["limit", "remaining", "reset"];

/// Returns the budget that a response reports, which is the same in both families of headers.
#[track_caller]
fn budget(answer: &Answer) -> Option<[u64; 3]> {
    let values = RATES.map(|name| {
        let value = answer.header(&format!("ratelimit-{name}"));
        assert_eq!(
            value,
            answer.header(&format!("x-ratelimit-{name}")),
            "{name}"
        );
        value.map(|value| value.parse().unwrap())
    });
    assert!(
        values
            .iter()
            .all(|value| value.is_some() == values[0].is_some()),
        "{values:?}"
    );
    values[0].is_some().then(|| values.map(Option::unwrap))
}

async fn limited(change: impl FnOnce(&mut Config)) -> Server {
    Server::with(Db::Sqlite, change).await
}

/// Registers a client that may use the client credentials grant.
async fn machine(server: &Server, id: &str) -> TestClient {
    server
        .register(Client {
            grant_types: vec![GrantType::ClientCredentials],
            ..confidential(id, "https://app.example/cb")
        })
        .await
}

impl TestClient {
    async fn asks_for_itself(&self) -> Answer {
        self.posts("/oauth2/token", &[("grant_type", "client_credentials")])
            .await
    }
}

#[actix_web::test]
async fn address_budget_refills_every_200_ms() {
    let server = limited(|_| {}).await;
    let mut stranger = server.browser();
    for n in 1..=300_u64 {
        let answer = stranger.get("/account").await;
        assert_eq!(answer.status, 200, "request {n}");
        assert_eq!(
            budget(&answer),
            Some([300, 300 - n, n.div_ceil(5)]),
            "request {n}"
        );
    }
    let refused = stranger.get("/account").await;
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (429, Some("1"))
    );
    assert_eq!(budget(&refused), Some([300, 0, 60]));
    assert!(
        refused.body.contains("Too many requests"),
        "{}",
        refused.body
    );
    assert_eq!(
        refused.logged(),
        [("ratelimit.hit".to_owned(), "ip".to_owned())]
    );
    for n in [1, 4, 2_u64] {
        server.advance(Duration::from_millis(200 * n));
        for _ in 0..n {
            assert_eq!(stranger.get("/account").await.status, 200);
        }
        assert_eq!(
            stranger.get("/account").await.status,
            429,
            "{n} steps allow {n} more"
        );
    }
    // Another class of routes has its own budget.
    assert_eq!(
        budget(&stranger.get("/oauth2/userinfo").await),
        Some([300, 299, 1])
    );
    server.advance(Duration::from_secs(60));
    assert_eq!(budget(&stranger.get("/account").await), Some([300, 299, 1]));
}

#[actix_web::test]
async fn equivalent_paths_share_a_budget_and_programs_get_json() {
    let server = limited(|config| config.limits.per_ip = 4).await;
    let mut stranger = server.browser();
    assert_eq!(
        stranger
            .send("POST", "/oauth2/token", &[], None)
            .await
            .status,
        400
    );
    for other in ["/OAuth2/Token", "/oauth2/token/", "/oauth2/TOKEN//"] {
        assert_eq!(
            stranger.send("POST", other, &[], None).await.status,
            404,
            "{other}"
        );
    }
    let refused = stranger.send("POST", "/oauth2/token", &[], None).await;
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (429, Some("15"))
    );
    assert_eq!(refused.body, r#"{"error":"temporarily_unavailable"}"#);
    assert_eq!(refused.header("cache-control"), Some("no-store"));
    assert_eq!(refused.header("content-type"), Some("application/json"));
    assert_eq!(budget(&refused), Some([4, 0, 60]));
    // Assets belong to pages that were counted already.
    assert_eq!(budget(&stranger.get("/assets/none.css").await), None);
}

#[actix_web::test]
async fn cacheable_responses_carry_ratelimit_only_on_429() {
    let server = limited(|config| config.limits.per_ip = 2).await;
    let mut stranger = server.browser();
    for path in ["/.well-known/openid-configuration", "/oauth2/jwks"] {
        let answer = stranger.get(path).await;
        assert_eq!((answer.status, budget(&answer)), (200, None), "{path}");
    }
    let refused = stranger.get("/.well-known/jwks.json").await;
    assert_eq!((refused.status, budget(&refused)), (429, Some([2, 0, 60])));
    assert_eq!(refused.header("cache-control"), Some("no-store"));
}

#[actix_web::test]
async fn authenticated_client_spends_its_own_budget() {
    let server = limited(|config| {
        config.limits.per_ip = 3;
        config.limits.per_client = 5;
    })
    .await;
    let (one, other) = (
        machine(&server, "one").await,
        machine(&server, "other").await,
    );
    for n in 1..=5 {
        let answer = one.asks_for_itself().await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        // Headers report the bucket with the least left: the address has all three requests left, the client
        // five and fewer.
        let wanted = if n < 3 { [3, 3, 0] } else { [5, 5 - n, 12 * n] };
        assert_eq!(budget(&answer), Some(wanted), "request {n}");
    }
    let refused = one.asks_for_itself().await;
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (429, Some("12"))
    );
    assert_eq!(refused.body, r#"{"error":"temporarily_unavailable"}"#);
    assert_eq!(
        refused.logged(),
        [("ratelimit.hit".to_owned(), "client".to_owned())]
    );
    assert_eq!(
        one.revokes("x").await.status,
        429,
        "one budget for all three endpoints"
    );
    assert_eq!(
        other.asks_for_itself().await.status,
        200,
        "another client is not concerned"
    );
    // A request without client authentication is charged to the address.
    let mut thief = one.clone();
    thief.secret = other.secret.clone();
    for _ in 0..3 {
        assert_eq!(thief.asks_for_itself().await.status, 401);
    }
    let refused = thief.asks_for_itself().await;
    assert_eq!((refused.status, budget(&refused)), (429, Some([3, 0, 60])));
    // A right secret still passes, and only the client is charged.
    let answer = other.asks_for_itself().await;
    assert_eq!((answer.status, budget(&answer)), (200, Some([5, 3, 24])));
    for _ in 0..3 {
        assert_eq!(other.asks_for_itself().await.status, 200);
    }
    let refused = other.asks_for_itself().await;
    assert_eq!((refused.status, budget(&refused)), (429, Some([5, 0, 60])));
    assert_eq!(
        refused.logged(),
        [("ratelimit.hit".to_owned(), "client".to_owned())]
    );
}

#[actix_web::test]
async fn public_client_spends_the_address_budget() {
    let server = limited(|config| config.limits.per_ip = 3).await;
    let phone = server.phone().await;
    for left in [2, 1, 0] {
        let answer = phone.redeems("pcl_ac_nothing").await;
        answer.refused("invalid_grant", "token.rejected", "unknown");
        assert_eq!(budget(&answer).unwrap()[..2], [3, left]);
    }
    assert_eq!(phone.redeems("pcl_ac_nothing").await.status, 429);
}

#[actix_web::test]
async fn grant_refreshes_thirty_times_a_minute() {
    let server = limited(|_| {}).await;
    let shop = server.shop().await;
    let mut tokens = shop
        .redeems(&server.browser().allows(&shop).await)
        .await
        .ok();
    for _ in 0..30 {
        tokens = shop.refreshes(tokens.refresh(), &[]).await.ok();
    }
    let refused = shop.refreshes(tokens.refresh(), &[]).await;
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (429, Some("2"))
    );
    assert_eq!(budget(&refused), Some([30, 0, 60]));
    assert_eq!(
        refused.logged(),
        [("ratelimit.hit".to_owned(), "refresh".to_owned())]
    );
    server.advance(Duration::from_secs(2));
    // The rejected refresh token is still valid.
    shop.refreshes(tokens.refresh(), &[]).await.ok();
}

#[actix_web::test]
async fn report_only_mode_rejects_nothing() {
    let server = limited(|config| {
        config.limits.per_ip = 2;
        config.limits.mode = Mode::Count;
    })
    .await;
    let mut stranger = server.browser();
    stranger.get("/account").await;
    assert!(stranger.get("/account").await.logged().is_empty());
    let beyond = stranger.get("/account").await;
    assert_eq!((beyond.status, budget(&beyond)), (200, Some([2, 0, 60])));
    assert_eq!(
        beyond.logged(),
        [("ratelimit.counted".to_owned(), "ip".to_owned())]
    );
}

/// Returns how many requests of these addresses are answered before one is rejected.
async fn answered(server: &Server, addresses: &[&str]) -> usize {
    for (n, address) in addresses.iter().enumerate() {
        let status = server.browser().from(address).get("/account").await.status;
        if status == 429 {
            return n;
        }
        assert_eq!(status, 200, "{address}");
    }
    addresses.len()
}

#[actix_web::test]
async fn trusted_proxy_sets_address_and_ipv6_64_is_one_client() {
    let proxy = "127.0.0.1".parse().unwrap();
    let change = |config: &mut Config| {
        config.limits.per_ip = 2;
        config.http.trusted_proxies = vec![proxy, "10.0.0.0/8".parse().unwrap()];
    };
    let server = limited(change).await;
    let v4 = ["192.0.2.1", "192.0.2.2", "192.0.2.1", "::ffff:192.0.2.1"];
    assert_eq!(answered(&server, &v4).await, 3);
    let forged = [
        "1.1.1.1, 203.0.113.1",
        "2.2.2.2, 203.0.113.1, 10.1.1.1",
        "3.3.3.3, 203.0.113.1",
    ];
    assert_eq!(
        answered(&server, &forged).await,
        2,
        "what a client makes up is not believed"
    );
    let v6 = ["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:0:1:2:3:4"];
    assert_eq!(
        answered(&server, &v6).await,
        2,
        "all addresses of a /64 share a budget"
    );
    assert_eq!(answered(&server, &["2001:db8:0:1::1"]).await, 1);
    let odd = server.browser().from("not-an-ip").get("/account").await;
    assert_eq!(odd.status, 400);
    assert_eq!(
        odd.logged(),
        [("http.bad_forwarded".to_owned(), "address".to_owned())]
    );

    let open = limited(|config| config.limits.per_ip = 2).await;
    assert_eq!(
        answered(&open, &v4).await,
        2,
        "the header of an untrusted peer is ignored"
    );
}

#[actix_web::test]
async fn allowed_and_denied_networks_are_enforced() {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let server = limited(|config| {
        config.http.trusted_proxies = nets(&["127.0.0.1"]);
        config.http.allow = nets(&["192.0.2.0/24", "2001:db8::/32"]);
        config.http.deny = nets(&["192.0.2.128/25"]);
    })
    .await;
    for (address, status) in [
        ("192.0.2.1", 200),
        ("2001:db8::1", 200),
        ("192.0.2.200", 403),
        ("203.0.113.1", 403),
        ("2001:db9::1", 403),
    ] {
        let answer = server.browser().from(address).get("/account").await;
        assert_eq!(answer.status, status, "{address}");
        if status == 403 {
            assert_eq!(
                answer.logged(),
                [("http.denied".to_owned(), "network".to_owned())]
            );
            assert!(answer.header("x-content-type-options").is_some());
        }
    }
}

#[actix_web::test]
async fn denied_addresses_are_rate_limited() {
    let server = limited(|config| {
        config.limits.per_ip = 2;
        config.http.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
        config.http.deny = vec!["192.0.2.0/24".parse().unwrap()];
    })
    .await;
    for (address, status) in [("192.0.2.7", 403), ("not-an-ip", 400)] {
        for expected in [status, status, 429, 429] {
            let answer = server.browser().from(address).get("/account").await;
            assert_eq!(answer.status, expected, "{address}");
            assert_eq!(answer.logged().len(), 1, "{address}");
        }
    }
    // Requests without a valid client address were charged to the proxy, and not to the clients behind it.
    assert_eq!(answered(&server, &["203.0.113.1"]).await, 1);
}

/// The document states the rules of the throttles and the limits of the code.
#[test]
fn limits_document_matches_policy() {
    use portcullis::accounts::throttle::{ACCOUNT, ACCOUNT_AND_ADDRESS, CLIENTS, DEVICE, NETWORK};
    use portcullis::config::limits::{
        CONNECTIONS, CONNECTIONS_PER_IP, HANDSHAKES, HANDSHAKES_PER_IP, HASH_QUEUE, WAITING_PAGES,
    };

    let text = include_str!("../../docs/limits.md").replace(',', "");
    for row in [
        format!(
            "| account and address | {} | a wait of 1 2 4 … {} s |",
            ACCOUNT_AND_ADDRESS.free,
            ACCOUNT_AND_ADDRESS.most.as_secs()
        ),
        format!(
            "| account | {} an hour | one attempt every {} s |",
            ACCOUNT.free,
            ACCOUNT.step.as_secs()
        ),
        format!("| account consecutive failures | {} |", ACCOUNT.in_a_row),
        format!("After {} consecutive failures", ACCOUNT.in_a_row),
        format!("| known device and account | {} an hour |", DEVICE.free),
        format!(
            "| IPv4 address IPv4 /24 IPv6 /64 | {} in {} minutes |",
            NETWORK.free,
            NETWORK.window.as_secs() / 60
        ),
        format!(
            "| address clients that fail to authenticate | {} a minute |",
            CLIENTS.free
        ),
        format!("| connections | {CONNECTIONS} per node; {CONNECTIONS_PER_IP} per"),
        format!(
            "{HANDSHAKES_PER_IP} open ones per IPv4 address or IPv6 /64; {HANDSHAKES} per node"
        ),
        format!("{HASH_QUEUE} more wait"),
        format!("while {WAITING_PAGES} wait"),
    ] {
        assert!(text.contains(&row), "docs/limits.md lacks: {row}");
    }
}

/// Pools of common clients and proxies keep a connection for up to 60 s or more, and do not repeat a POST.
#[actix_web::test]
async fn idle_connection_is_kept_75_s() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    assert_eq!(portcullis::config::limits::KEEP_ALIVE.as_secs(), 75);
    assert!(include_str!("../../docs/limits.md").contains("closed 75 s after a response"));
    let server = limited(|_| {}).await;
    let mut wire = raw::wire(&server.base).await.unwrap();
    let request = "GET /oauth2/jwks HTTP/1.1\r\nHost: op.example\r\n\r\n";
    let mut received = vec![0; 64 * 1024];
    for _ in 0..2 {
        wire.write_all(request.as_bytes()).await.unwrap();
        let n = wire.read(&mut received).await.unwrap();
        let text = String::from_utf8_lossy(&received[..n]).into_owned();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        // Longer than a first request head may take.
        let closed = tokio::time::timeout(Duration::from_secs(7), async {
            while wire.read(&mut received).await.unwrap() > 0 {}
        });
        assert!(closed.await.is_err(), "the connection is closed");
    }
}

/// A body without end gets 413, and is then read only so far that the client can receive the response.
#[actix_web::test]
async fn endless_body_is_cut_after_its_response() {
    use tokio::io::AsyncWriteExt;

    let server = limited(|_| {}).await;
    let mut wire = raw::wire(&server.base).await.unwrap();
    let head = "POST /oauth2/token HTTP/1.1\r\nHost: op.example\r\n\
        Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("4000\r\n{}\r\n", "a".repeat(0x4000));
    wire.write_all(head.as_bytes()).await.unwrap();
    let mut sent = 0;
    while wire.write_all(chunk.as_bytes()).await.is_ok() {
        sent += chunk.len();
        // The buffers of the kernel hold most of it.
        assert!(sent < 16 * 1024 * 1024, "the body is still read");
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn oldest_session_ends_at_the_session_limit(#[case] db: Db) {
    let server = Server::start(db).await;
    let mut first = server.enters("alice").await;
    let mut second = server.enters("alice").await;
    for _ in 2..50 {
        server.advance(Duration::from_secs(1));
        server.enters("alice").await;
    }
    let account = |answer: &Answer| answer.body.contains("Signed in as");
    server.advance(Duration::from_secs(1));
    assert!(
        account(&first.get("/account").await),
        "fifty sessions are allowed"
    );
    let mut last = server.signed_in("alice").await;
    assert!(account(&last.get("/account").await));
    let ended = "SELECT count(*) AS n FROM sessions WHERE ended_at IS NOT NULL";
    assert_eq!(server.count(ended), 1);
    // The two oldest sessions began at the same instant, so one of them has ended.
    let standing = [first.get("/account").await, second.get("/account").await];
    assert_eq!(standing.iter().filter(|answer| account(answer)).count(), 1);
    let recorded = "SELECT count(*) AS n FROM revocations WHERE kind = 'S'";
    assert_eq!(server.count(recorded), 1);
    let audited = "SELECT count(*) AS n FROM audit_events WHERE name = 'session.ended' AND reason = 'too many sessions'";
    assert_eq!(server.count(audited), 1);
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn oldest_grant_is_revoked_at_the_grant_limit(#[case] db: Db) {
    let server = Server::start(db).await;
    let (shop, other) = (server.shop().await, server.shop().await);
    let mut alice = server.signed_in("alice").await;
    let elsewhere = other.redeems(&alice.allows(&other).await).await.ok();
    // `signed_in` consented to another client. Here are twenty grants of this client, and one more.
    let mut families = Vec::new();
    for _ in 0..21 {
        families.push(shop.redeems(&alice.allows(&shop).await).await.ok());
        server.advance(Duration::from_secs(1));
    }
    let gone = shop.refreshes(families[0].refresh(), &[]).await;
    gone.refused("invalid_grant", "token.rejected", "grant_ended");
    for family in &families[1..] {
        shop.refreshes(family.refresh(), &[]).await.ok();
    }
    // Grants with another client, and of another user, are not affected.
    other.refreshes(elsewhere.refresh(), &[]).await.ok();
    let recorded = "SELECT count(*) AS n FROM revocations WHERE kind = 'G'";
    assert_eq!(server.count(recorded), 1);
}
