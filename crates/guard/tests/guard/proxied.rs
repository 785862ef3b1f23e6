//! End-to-end tests: caller, real proxy, guard and service.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::http::{Response, send, upgrade};
use crate::issuer::Issuer;
use crate::process::{Guard, bearer};
use crate::proxies::{Proxy, broken_haproxy, caddy, haproxy, nginx};
use crate::service;

const CATALOGUE: &str = include_str!("../../../../tests/attacks/attacks.tsv");

/// A proxy with its guard and issuer.
struct Fixture {
    issuer: Issuer,
    guard: Guard,
    proxy: Proxy,
}

impl Fixture {
    async fn start(start_proxy: impl AsyncFn(SocketAddr, SocketAddr) -> Proxy) -> Self {
        let issuer = Issuer::start().await;
        let guard = Guard::start_ready(&issuer).await;
        let proxy = start_proxy(guard.address, service::start().await).await;
        Self {
            issuer,
            guard,
            proxy,
        }
    }

    async fn call(&self, line: &str, headers: &[&str]) -> Response {
        send(self.proxy.address, line, headers).await
    }

    async fn status(&self, line: &str, token: &str) -> u16 {
        self.call(line, &[&bearer(token)]).await.status
    }

    /// Runs every row of the attack catalogue in the area `forward-auth`.
    async fn run_catalogue(mut self) {
        self.valid_tokens_pass().await;
        let rows = CATALOGUE
            .lines()
            .map(|line| line.split('\t').collect::<Vec<_>>());
        let rows = rows.filter(|cells| cells[2] == "forward-auth");
        let ids: Vec<&str> = rows.map(|cells| cells[0]).collect();
        assert_eq!(ids.len(), 8, "{ids:?}");
        for id in ids {
            self.run_row(id).await;
        }
        self.upgrades_except_websocket_are_refused().await;
        self.valid_tokens_pass().await;
    }

    async fn run_row(&mut self, id: &str) {
        match id {
            "A529" => self.folded_paths_and_routing_headers_are_refused().await,
            "A550" => self.refusals_carry_the_challenge().await,
            "A551" => self.forged_identities_are_refused().await,
            "A552" => self.ambiguous_paths_are_refused().await,
            "A553" => self.unlisted_methods_and_overrides_are_refused().await,
            "A554" => self.revoked_tokens_are_refused_within_one_second().await,
            "A555" => self.stale_feed_is_503().await,
            "A556" => self.requests_fail_while_guard_is_killed().await,
            other => panic!("row {other} is not implemented"),
        }
    }

    async fn valid_tokens_pass(&self) {
        let token = bearer(&self.issuer.token(1));
        let response = self.call("GET /orders/7?x=1&y=%2F..", &[&token]).await;
        assert_eq!(
            response.status,
            200,
            "{} {}",
            response.body,
            self.proxy.process.log()
        );
        let seen = response.body.to_lowercase();
        for line in [
            "get /orders/7?x=1&y=%2f.. http/1.1",
            "x-portcullis-subject: alice",
            "x-portcullis-client: shop",
            "x-portcullis-scope: orders:read orders:write",
            "x-portcullis-acr: 1",
        ] {
            assert_eq!(
                seen.lines().filter(|found| *found == line).count(),
                1,
                "{line}\n{seen}"
            );
        }
        let machine = self.issuer.token_with(2, |claims| claims.acr = None);
        let response = self.call("GET /orders", &[&bearer(&machine)]).await;
        let body = response.body.to_lowercase();
        let mut acr = body
            .lines()
            .filter_map(|line| line.strip_prefix("x-portcullis-acr:"));
        assert!(acr.all(|value| value.trim().is_empty()), "{body}");
        // The body of a request is sent to the service only, not to the guard.
        let posted = self
            .call(
                "POST /orders",
                &[
                    &token,
                    "Content-Length: 5",
                    "Content-Type: text/plain",
                    "",
                    "hello",
                ],
            )
            .await;
        assert_eq!(posted.status, 200, "{}", posted.body);
        // A refusal by the service itself is passed on unchanged.
        let teapot = self.call("GET /orders/teapot", &[&token]).await;
        assert_eq!(teapot.status, 403);
        assert!(teapot.body.starts_with("reached"), "{}", teapot.body);
    }

    async fn refusals_carry_the_challenge(&self) {
        let reader = self
            .issuer
            .token_with(1, |claims| claims.scope = "orders:read".into());
        let foreign = self
            .issuer
            .token_with(1, |claims| claims.aud = "https://other.example".into());
        let good = self.issuer.token(1);
        for (line, token, status, expected) in [
            (
                "GET /orders",
                "",
                401,
                r#"Bearer realm="https://api.example""#,
            ),
            ("GET /orders", &good[1..], 401, r#"error="invalid_token""#),
            ("GET /orders", &foreign, 401, r#"error="invalid_token""#),
            ("POST /orders", &reader, 403, r#"scope="orders:write""#),
            ("GET /admin", &good, 403, r#"scope="admin""#),
            ("GET /payments", &good, 401, r#"acr_values="2""#),
            ("GET /unlisted", &good, 403, ""),
        ] {
            let token = bearer(token);
            let headers = if token.ends_with(' ') {
                vec![]
            } else {
                vec![token.as_str()]
            };
            let response = self.call(line, &headers).await;
            assert_eq!(response.status, status, "{line}: {}", response.body);
            assert!(
                !response.body.contains("reached"),
                "{line}: {}",
                response.body
            );
            let challenge = response.header("www-authenticate");
            assert!(challenge.contains(expected), "{line}: {challenge}");
            assert_eq!(
                challenge.is_empty(),
                expected.is_empty(),
                "{line}: {challenge}"
            );
        }
        // Tokens that are too large for the guard or the proxy.
        for bytes in [6 * 1024, 20 * 1024, 100 * 1024] {
            let response = self
                .call("GET /orders", &[&bearer(&"a".repeat(bytes))])
                .await;
            assert!(
                [400, 401, 403, 431].contains(&response.status),
                "{bytes}: {} {}",
                response.status,
                response.body
            );
        }
    }

    async fn forged_identities_are_refused(&self) {
        let token = bearer(&self.issuer.token_with(1, |claims| claims.acr = None));
        for forged in [
            "X-Portcullis-Subject: root",
            "x-portcullis-acr: 2",
            "X-Portcullis-Roles: admin",
        ] {
            for headers in [&[token.as_str(), forged][..], &[forged]] {
                let response = self.call("GET /orders", headers).await;
                assert_eq!(response.status, 403, "{forged}");
            }
        }
        // Either the request is refused or the header is dropped on the way.
        for forged in [
            "X_Portcullis_Acr: 2",
            "x_portcullis-subject: root",
            "X.Portcullis.Subject: root",
            "X*Portcullis*Subject: root",
        ] {
            let response = self.call("GET /orders", &[&token, forged]).await;
            let reached_service = response
                .body
                .to_lowercase()
                .contains(&forged.to_lowercase());
            assert!(
                response.status == 403 || !reached_service,
                "{forged}: {}",
                response.body
            );
        }
        // Headers that a caller declares to be specific to the connection (RFC 9110 §7.6.1).
        for trick in [
            "Connection: X-Portcullis-Subject",
            "Connection: close, x-portcullis-ACR",
            "Connection: close, X-Forwarded-Uri, Authorization",
        ] {
            let response = self.call("GET /orders", &[&token, trick]).await;
            let seen = response.body.to_lowercase();
            let has_identity = seen.contains("x-portcullis-subject: alice");
            assert!(
                response.status != 200 || has_identity,
                "{trick}: {}",
                response.body
            );
        }
        // The caller cannot choose which request the guard is asked about.
        let response = self
            .call(
                "GET /admin",
                &[
                    &token,
                    "X-Forwarded-Uri: /orders",
                    "X-Forwarded-Method: GET",
                ],
            )
            .await;
        assert_eq!(response.status, 403, "{}", response.body);
    }

    /// After a 101 the guard sees nothing that the caller sends. The service of these tests accepts
    /// every upgrade, so the proxy and the guard must refuse them.
    async fn upgrades_except_websocket_are_refused(&self) {
        let token = bearer(&self.issuer.token(1));
        let settings = "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA";
        for offer in [
            &[
                "Connection: Upgrade, HTTP2-Settings",
                "Upgrade: h2c",
                settings,
            ][..],
            &["Connection: Upgrade", "Upgrade: h2c"],
            &["Connection: Upgrade", "Upgrade: H2C"],
            &["Connection: Upgrade", "Upgrade: websocket, h2c"],
            &["Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"],
            &["Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket"],
            &[
                "Connection: Upgrade, HTTP2-Settings",
                "Upgrade: websocket",
                settings,
            ],
            &["Connection: Upgrade", "Upgrade: TLS/1.2"],
        ] {
            let headers = [&[token.as_str()], offer].concat();
            let response = upgrade(self.proxy.address, "GET /orders", &headers).await;
            // 400 comes from a proxy that refuses duplicate headers. 200 means that the upgrade did
            // not reach the service: nginx 1.22 reads the first of two headers and passes neither
            // on.
            assert!(
                [200, 400, 403].contains(&response.status),
                "{offer:?}: {response:?}"
            );
            let is_single = offer
                .iter()
                .filter(|header| header.starts_with("Upgrade"))
                .count()
                == 1;
            assert!(
                response.status != 200 || !is_single,
                "{offer:?}: {response:?}"
            );
        }
        // WebSocket: nginx passes it on only if configured to. The other proxies open the
        // connection for requests that the guard accepts.
        let offer = [
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ];
        let headers = [&[token.as_str()][..], &offer].concat();
        let response = upgrade(self.proxy.address, "GET /orders", &headers).await;
        assert!([101, 200].contains(&response.status), "{response:?}");
        let response = upgrade(self.proxy.address, "GET /orders", &offer).await;
        assert_eq!(response.status, 401, "{response:?}");
    }

    async fn ambiguous_paths_are_refused(&self) {
        let token = bearer(&self.issuer.token(1));
        for target in [
            "//orders",
            "/orders//",
            "/./orders",
            "/orders/../admin",
            "/orders/..",
            "/orders/%2e%2e/admin",
            "/orders/.%2E/admin",
            "/orders%2f..%2fadmin",
            "/orders%5c..%5cadmin",
            "/orders\\..\\admin",
            "/orders/%252e%252e/admin",
            "/orders/%00",
            "/orders/%0d%0aX-Portcullis-Subject:%20root",
            "/orders;x=1/../admin",
            "/orders/..;/admin",
            "/%6frders",
            "/%61dmin",
            "/Orders",
            "/ORDERS/7",
            "/Admin",
            "/admin.json",
            "/orders.",
            "/orders%20",
            "/%EF%BC%8Forders",
            "/orders/%c0%ae%c0%ae/admin",
            "/orders#/admin",
        ] {
            let response = self.call(&format!("GET {target}"), &[&token]).await;
            // The proxy parses the request before the guard is called, and may be stricter.
            assert!(
                [400, 403].contains(&response.status),
                "{target}: {} {}",
                response.status,
                response.body
            );
        }
        for (target, status) in [
            ("/orders?/../admin", 200),
            ("/orders/?q=//%2e%2e", 200),
            ("/orders/caf%C3%A9/a%20b", 200),
            ("/admin?/orders", 403),
            ("/ordersx", 403),
        ] {
            let response = self.call(&format!("GET {target}"), &[&token]).await;
            assert_eq!(response.status, status, "{target}: {}", response.body);
            let line = format!("GET {target} HTTP/1.1");
            assert_eq!(
                response.body.contains(&line),
                status == 200,
                "{target}: {}",
                response.body
            );
        }
    }

    async fn unlisted_methods_and_overrides_are_refused(&self) {
        let reader = self
            .issuer
            .token_with(1, |claims| claims.scope = "orders:read".into());
        for method in ["DELETE", "PATCH", "PROPFIND"] {
            let status = self.status(&format!("{method} /orders"), &reader).await;
            assert_eq!(status, 403, "{method}");
        }
        let token = bearer(&reader);
        for other in [
            "X-HTTP-Method-Override: DELETE",
            "X-Method-Override: DELETE",
            "X-HTTP-Method: DELETE",
            "X-Original-URL: /admin",
            "X-Rewrite-URL: /admin",
        ] {
            let response = self.call("GET /orders", &[&token, other]).await;
            assert_eq!(response.status, 403, "{other}: {}", response.body);
        }
        for target in ["/admin?/orders", "/?/orders", "/?x=/orders"] {
            assert_eq!(
                self.status(&format!("GET {target}"), &reader).await,
                403,
                "{target}"
            );
        }
    }

    async fn folded_paths_and_routing_headers_are_refused(&self) {
        let token = bearer(&self.issuer.token(1));
        for target in [
            "/%E2%93%90dmin/x",
            "/%F0%9D%90%9Admin/x",
            "/a%CC%8Admin",
            "/%C3%A5dmin",
        ] {
            let response = self.call(&format!("GET {target}"), &[&token]).await;
            // The proxy may be stricter.
            assert!(
                [400, 403].contains(&response.status),
                "{target}: {}",
                response.body
            );
        }
        for header in [
            "X-Original-URI: /admin",
            "X-Original-Method: DELETE",
            "X-Envoy-Original-Path: /admin",
        ] {
            let response = self.call("GET /orders", &[&token, header]).await;
            assert_eq!(response.status, 403, "{header}: {}", response.body);
        }
        // Most proxies refuse these methods themselves.
        for method in ["TRACE", "CONNECT"] {
            let response = self.call(&format!("{method} /orders"), &[&token]).await;
            assert!(
                (400..=501).contains(&response.status),
                "{method}: {}",
                response.status
            );
        }
    }

    async fn revoked_tokens_are_refused_within_one_second(&self) {
        let (one, two) = (self.issuer.token(11), self.issuer.token(12));
        assert_eq!(self.status("GET /orders", &one).await, 200);
        let started = Instant::now();
        self.issuer.revoke(11);
        while self.status("GET /orders", &one).await != 401 {
            assert!(started.elapsed() < Duration::from_secs(1), "still accepted");
        }
        assert_eq!(self.status("GET /orders", &two).await, 200);
    }

    async fn stale_feed_is_503(&self) {
        let token = self.issuer.token(1);
        self.guard
            .wait_until("not fresh", async || {
                self.status("GET /fresh", &token).await == 200
            })
            .await;
        self.issuer.pause_heartbeats();
        self.guard
            .wait_until("not stale", async || {
                self.status("GET /fresh", &token).await == 503
            })
            .await;
        let response = self.call("GET /fresh", &[&bearer(&token)]).await;
        assert_eq!(
            (response.status, response.header("retry-after")),
            (503, "2")
        );
        self.issuer.resume_heartbeats();
    }

    async fn requests_fail_while_guard_is_killed(&mut self) {
        let token = self.issuer.token(1);
        self.guard.kill().await;
        let response = self.call("GET /orders", &[&bearer(&token)]).await;
        assert!(
            [502, 503].contains(&response.status),
            "{} {}",
            response.status,
            response.body
        );
        self.guard.restart().await;
        self.guard
            .wait_until("not back", async || {
                self.status("GET /orders", &token).await == 200
            })
            .await;
        assert_eq!(
            self.status("GET /orders", &self.issuer.token(11)).await,
            401
        );
    }
}

#[tokio::test]
async fn nginx_enforces_decisions_of_guard() {
    Fixture::start(nginx).await.run_catalogue().await;
}

#[tokio::test]
async fn caddy_enforces_decisions_of_guard() {
    Fixture::start(caddy).await.run_catalogue().await;
}

#[tokio::test]
async fn haproxy_enforces_decisions_of_guard() {
    Fixture::start(haproxy).await.run_catalogue().await;
}

#[tokio::test]
async fn haproxy_refuses_identity_in_connection_and_trailers() {
    let fixture = Fixture::start(haproxy).await;
    let token = bearer(&fixture.issuer.token(1));
    for trick in [
        "Connection: X-Portcullis-Subject",
        "Trailer: X-Portcullis-Subject",
    ] {
        let response = fixture.call("GET /orders", &[&token, trick]).await;
        assert_eq!(response.status, 403, "{trick}: {}", response.body);
    }
    // `TE` is removed, so that the service does not send trailers.
    let response = fixture.call("GET /orders", &[&token, "TE: trailers"]).await;
    assert_eq!(response.status, 200);
    assert!(
        !response.body.to_lowercase().contains("\nte:"),
        "{}",
        response.body
    );
}

#[tokio::test]
async fn haproxy_answers_503_when_its_script_fails() {
    let fixture = Fixture::start(broken_haproxy).await;
    let token = bearer(&fixture.issuer.token(1));
    let response = fixture.call("GET /orders", &[&token]).await;
    assert_eq!(
        (response.status, response.header("retry-after")),
        (503, "2")
    );
    assert!(!response.body.contains("reached"), "{}", response.body);
}
