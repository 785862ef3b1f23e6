//! The headers, host, path and rate of requests.

use crate::expect::{logged, summary};
use crate::fixtures::client::basic;
use crate::fixtures::{Server, log, raw};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a453_oversized_headers_are_rejected),
    row!(a454_invalid_hosts_are_rejected),
    row!(a455_foreign_methods_are_rejected),
    row!(a456_static_file_traversal_gets_404),
    row!(a465_rate_limits_cannot_be_evaded),
    row!(a466_management_paths_are_not_on_the_public_listener),
    row!(a516_every_response_is_rate_limited),
    row!(a518_management_listener_checks_host_and_path),
    row!(a519_unusable_forwarded_addresses_are_charged_to_the_proxy),
];

async fn a453_oversized_headers_are_rejected(stage: &Stage) {
    let server = &stage.server;
    let get = |headers: Vec<String>| {
        let text = format!(
            "GET /oauth2/jwks HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\n{}\r\n",
            headers.concat()
        );
        raw::bytes(&server.base, text.into_bytes())
    };
    let many = |n: usize| (0..n).map(|n| format!("X-{n}: 1\r\n")).collect::<Vec<_>>();
    // Host and Connection are two of them. The HTTP parser already stops at 96.
    for (case, headers, wanted) in [
        (1, many(99), 431),
        (2, many(200), 431),
        (3, vec![format!("X: {}\r\n", "x".repeat(64 * 1024))], 431),
        (
            4,
            vec![format!("Cookie: a={}\r\n", "x".repeat(8 * 1024))],
            200,
        ),
        (5, many(90), 200),
    ] {
        let status = get(headers).await.map(|answer| answer.status);
        stage.check(case, status == Some(wanted), || {
            format!("{status:?}, want {wanted}")
        });
    }
}

async fn a454_invalid_hosts_are_rejected(stage: &Stage) {
    let server = &stage.server;
    let ask = |head: &str| {
        let text = format!("{head}Connection: close\r\n\r\n");
        raw::bytes(&server.base, text.into_bytes())
    };
    for (case, head, wanted) in [
        (1, "GET /account HTTP/1.1\r\n", 400),
        (
            2,
            "GET /account HTTP/1.1\r\nHost: op.example\r\nHost: op.example\r\n",
            400,
        ),
        (
            2,
            "GET /account HTTP/1.1\r\nHost: op.example\r\nHost: evil.example\r\n",
            400,
        ),
        (3, "GET /account HTTP/1.1\r\nHost: evil.example\r\n", 421),
        (
            4,
            "GET https://evil.example/account HTTP/1.1\r\nHost: op.example\r\n",
            421,
        ),
        (
            4,
            "GET https://evil.example/account HTTP/1.1\r\nHost: evil.example\r\n",
            421,
        ),
        (
            6,
            "GET https://op.example/account HTTP/1.1\r\nHost: op.example\r\n",
            200,
        ),
    ] {
        let Some(answer) = ask(head).await else {
            stage.check(case, false, || format!("{head}: no answer"));
            continue;
        };
        stage.check(case, answer.status == wanted, || {
            format!("{head}: {}", summary(&answer))
        });
        // The HTTP layer already rejects requests without `Host` or with two.
        if wanted == 421 {
            stage.expect(case, logged(&answer, "http.bad_host", ""));
        }
    }
    let forwarded = [
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Proto", "http"),
        ("Forwarded", "host=evil.example;proto=http"),
    ];
    let web = server.shop().await;
    for path in [
        web.request(&[]),
        "/.well-known/openid-configuration".to_owned(),
    ] {
        let answer = server.browser().send("GET", &path, &forwarded, None).await;
        let told = format!("{:?} {}", answer.headers, answer.body);
        stage.check(
            5,
            answer.status < 400 && !told.contains("evil.example"),
            || summary(&answer),
        );
    }
}

async fn a455_foreign_methods_are_rejected(stage: &Stage) {
    let base = &stage.server.base;
    let overridden = "GET /account?_method=DELETE HTTP/1.1\r\nX-HTTP-Method-Override: DELETE\r\n";
    for (case, head, wanted) in [
        (1, overridden, 200),
        (2, "TRACE /account HTTP/1.1\r\n", 405),
        (3, "CONNECT op.example:443 HTTP/1.1\r\n", 405),
        (3, "CONNECT elsewhere.example:25 HTTP/1.1\r\n", 405),
        (4, "PROPFIND /account HTTP/1.1\r\n", 405),
        (5, "DELETE /oauth2/token HTTP/1.1\r\n", 405),
    ] {
        let text = format!("{head}Host: op.example\r\nConnection: close\r\n\r\n");
        let answer = raw::bytes(base, text.into_bytes()).await;
        let status = answer.as_ref().map(|answer| answer.status);
        stage.check(case, status == Some(wanted), || {
            format!("{head}: {status:?}")
        });
        if let Some(answer) = answer.filter(|_| wanted == 405) {
            stage.expect(case, logged(&answer, "http.method", "method"));
        }
    }
    let text = "CONNECT op.example:443 HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\n\r\n";
    let answer = raw::bytes(&stage.server.management, text.as_bytes().to_vec()).await;
    let status = answer.map(|answer| answer.status);
    stage.check(6, status == Some(405), || format!("management: {status:?}"));
}

async fn a456_static_file_traversal_gets_404(stage: &Stage) {
    let sheet = &stage.server.browser().get("/account").await;
    let style = sheet.body.split("href=\"/assets/").nth(1).unwrap();
    let style = style.split('"').next().unwrap();
    let paths = [
        "/assets/../Cargo.toml",
        "/assets/%2e%2e/Cargo.toml",
        "/assets/..%2fCargo.toml",
        "/assets/%00",
        "/assets/.env",
        "/assets/.git/config",
        "/.git/config",
        "/.env",
        "/assets/",
        "/assets",
        "/assets/..",
        "/assets//etc/passwd",
        "/assets/C:%5Cboot.ini",
        "/assets/....//x",
    ];
    let derived = ["%00", ".map", ".bak", "~", "/", "%2e", ".css", "?x=1/../"]
        .map(|end| format!("/assets/{style}{end}"));
    for (case, path) in (1..).zip(paths.map(str::to_owned).into_iter().chain(derived)) {
        let wanted = if path.contains('?') { 200 } else { 404 };
        let answer = raw::request(&stage.server.base, "GET", &path, &[], "").await;
        stage.check(
            case,
            answer
                .as_ref()
                .is_some_and(|answer| answer.status == wanted),
            || format!("{path}: {:?}", answer.as_ref().map(summary)),
        );
        if let Some(answer) = answer.filter(|_| wanted == 404) {
            stage.expect(case, logged(&answer, "http.404", "path"));
        }
    }
}

async fn a465_rate_limits_cannot_be_evaded(stage: &Stage) {
    let nodes = crate::throttle::nodes(stage, |config| config.limits.per_ip = 12).await;
    let server = &nodes[0];
    let mut answered = 0;
    let spellings = [
        "/oauth2/authorize",
        "/OAuth2/Authorize",
        "/oauth2/authorize/",
        "/oauth2/authorize?client_id=",
    ];
    for n in 0..40 {
        let path = format!(
            "{}{}",
            spellings[n % 4],
            if n % 4 == 3 {
                format!("client-{n}")
            } else {
                String::new()
            }
        );
        // Another address of the same /64, another connection, another version each time.
        let from = format!("X-Forwarded-For: 2001:db8::{n:x}:{n:x}");
        let version = if n % 5 == 0 { "1.0" } else { "1.1" };
        let text = format!(
            "GET {path} HTTP/{version}\r\nHost: op.example\r\n{from}\r\nConnection: close\r\n\r\n"
        );
        let answer = raw::bytes(&server.base, text.into_bytes()).await.unwrap();
        if answer.status == 429 {
            stage.expect(1, logged(&answer, "ratelimit.hit", "ip"));
            stage.check(1, answer.header("ratelimit-remaining") == Some("0"), || {
                summary(&answer)
            });
        } else {
            answered += 1;
        }
    }
    stage.check(1, answered == 12, || format!("{answered} were answered"));
    let neighbour = server
        .browser()
        .from("2001:db8:0:1::1")
        .get("/oauth2/authorize")
        .await;
    stage.check(2, neighbour.status == 400, || summary(&neighbour));
    crate::throttle::end(nodes).await;
}

async fn a466_management_paths_are_not_on_the_public_listener(stage: &Stage) {
    for (case, path) in (1..).zip([
        "/metrics",
        "/livez",
        "/readyz",
        "/healthz",
        "/startupz",
        "/version",
        "/debug",
        "/debug/pprof",
        "/actuator",
        "/actuator/health",
        "/api/admin/v1/users",
        "/api/openapi.json",
        "/admin",
    ]) {
        for method in ["GET", "POST", "HEAD"] {
            let answer = stage.server.browser().send(method, path, &[], None).await;
            stage.check(case, answer.status == 404, || {
                format!("{method} {path}: {}", summary(&answer))
            });
            stage.expect(case, logged(&answer, "http.404", "path"));
        }
    }
}

async fn a516_every_response_is_rate_limited(stage: &Stage) {
    let nodes = crate::throttle::nodes(stage, |config| config.limits.per_ip = 20).await;
    let server = &nodes[0];
    for (case, method, host, wanted) in [
        (1, "GET", "op.example", 404),
        (2, "PUT", "op.example", 405),
        (3, "GET", "evil.example", 421),
    ] {
        let (mut answered, mut limited) = (0, 0);
        for n in 0..40 {
            let path = match wanted {
                404 => format!("/nothing{n}"),
                405 => "/oauth2/userinfo".to_owned(),
                _ => "/login".to_owned(),
            };
            let text = format!(
                "{method} {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: 192.0.2.{case}\r\nConnection: close\r\n\r\n"
            );
            let answer = raw::bytes(&server.base, text.into_bytes()).await.unwrap();
            match answer.status {
                429 => {
                    limited += 1;
                    stage.expect(case, logged(&answer, "ratelimit.hit", "ip"));
                }
                status => {
                    answered += 1;
                    stage.check(case, status == wanted, || summary(&answer));
                }
            }
        }
        stage.check(case, (answered, limited) == (20, 20), || {
            format!("{answered} were answered, {limited} limited")
        });
    }
    crate::throttle::end(nodes).await;
}

async fn a518_management_listener_checks_host_and_path(stage: &Stage) {
    let server = &stage.server;
    let ask = |path: &str, host: &str| {
        let text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        raw::bytes(&server.management, text.into_bytes())
    };
    for (case, path, host, wanted) in [
        (1, "/metrics", "evil.test", 421),
        (1, "/metrics", "evil.test:9000", 421),
        (1, "/readyz", "127.0.0.1.evil.test", 421),
        (1, "/metrics", "127.0.0.1@evil.test", 421),
        (2, "/%6detrics", "127.0.0.1", 404),
        (3, "//metrics", "127.0.0.1", 404),
        (4, "/metrics/", "127.0.0.1", 404),
        // Scrapers and health checks use an address, a name of their network, or a name of this server.
        (5, "/metrics", "127.0.0.1:9000", 200),
        (5, "/metrics", "[::1]:9000", 200),
        (5, "/livez", "localhost", 200),
        (5, "/livez", "portcullis:9000", 200),
        (5, "/livez", "op.example:9000", 200),
    ] {
        let answer = ask(path, host).await;
        let status = answer.as_ref().map(|answer| answer.status);
        stage.check(case, status == Some(wanted), || {
            format!("{path} at {host}: {status:?}, want {wanted}")
        });
        if let Some(answer) = answer.filter(|_| wanted == 421) {
            stage.expect(case, logged(&answer, "http.bad_host", ""));
        }
    }
    for (case, head, wanted) in [
        (6, "GET /livez HTTP/1.1\r\n", 400),
        (6, "GET /livez HTTP/1.0\r\n", 200),
    ] {
        let text = format!("{head}Connection: close\r\n\r\n");
        let answer = raw::bytes(&server.management, text.into_bytes()).await;
        let status = answer.map(|answer| answer.status);
        stage.check(case, status == Some(wanted), || {
            format!("{head}: {status:?}")
        });
    }
}

async fn a519_unusable_forwarded_addresses_are_charged_to_the_proxy(stage: &Stage) {
    let trusting = Server::behind_proxy(stage.db()).await;
    let xff = "X-Forwarded-For";
    let legal: [&[(&str, &str)]; 8] = [
        &[(xff, "203.0.113.7, unknown")],
        &[(xff, "")],
        &[(xff, "203.0.113.7,")],
        &[(xff, "fe80::1%eth0")],
        &[("Forwarded", "for=_hidden")],
        &[("Forwarded", "for=unknown")],
        &[("Forwarded", "by=203.0.113.43;proto=https")],
        &[
            ("Forwarded", "by=203.0.113.43;proto=https"),
            (xff, "203.0.113.7"),
        ],
    ];
    for (case, headers) in (1..).zip(legal) {
        let answer = trusting
            .browser()
            .send("GET", "/account", headers, None)
            .await;
        stage.check(case, answer.status == 200, || summary(&answer));
        stage.expect(case, logged(&answer, "http.bad_forwarded", "unknown"));
        let events = log::of(answer.header("x-request-id").unwrap());
        stage.check(
            case,
            events
                .iter()
                .all(|event| event.get("ip").is_none_or(|ip| ip == "127.0.0.1")),
            || format!("{events:?}"),
        );
    }
    let refused: [&[(&str, &str)]; 4] = [
        &[(xff, "not-an-ip")],
        &[("Forwarded", "for=not-an-ip")],
        &[("Forwarded", "for=192.0.2.1;for=192.0.2.1")],
        &[(xff, "203.0.113.7"), ("Forwarded", "for=198.51.100.7")],
    ];
    for headers in refused {
        let answer = trusting
            .browser()
            .send("GET", "/account", headers, None)
            .await;
        stage.check(9, answer.status == 400, || summary(&answer));
        stage.expect(9, logged(&answer, "http.bad_forwarded", "address"));
    }
    // A client with networks of its own is not in the network of the proxy.
    let web = trusting.shop().await;
    let id = web.client.id.clone();
    let local = "127.0.0.0/8".parse().unwrap();
    trusting
        .alter(&id, move |client| client.allow_networks = vec![local])
        .await;
    let secret = web.secret.as_ref().unwrap().expose();
    let proof = basic(web.id(), secret);
    let fields = [("grant_type", "refresh_token"), ("refresh_token", "x")];
    for (headers, wanted) in [
        (legal[7].to_vec(), "invalid_client"),
        (vec![], "invalid_grant"),
    ] {
        let headers = [&headers[..], &[("Authorization", proof.as_str())]].concat();
        let answer = web.posts_raw("/oauth2/token", &headers, &fields).await;
        stage.check(11, answer.body.contains(wanted), || summary(&answer));
        if wanted == "invalid_client" {
            stage.expect(11, logged(&answer, "client.auth_failed", "network"));
        }
    }
    trusting.remove().await;
    // A client that is not named may be in a denied network.
    let denying = Server::with(stage.db(), |config| {
        config.http.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
        config.http.deny = vec!["203.0.113.0/24".parse().unwrap()];
    })
    .await;
    let hidden = [("Forwarded", "proto=https"), (xff, "203.0.113.7")];
    let answer = denying
        .browser()
        .send("GET", "/account", &hidden, None)
        .await;
    stage.check(10, answer.status == 403, || summary(&answer));
    denying.remove().await;
}
