//! The whole way: caller, real proxy, guard, service.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::http::{Answer, send, upgrade};
use crate::issuer::Issuer;
use crate::process::{Guard, bearer};
use crate::proxies::{Proxy, broken_haproxy, caddy, haproxy, nginx};
use crate::service;

const CATALOGUE: &str = include_str!("../../../../tests/attacks/attacks.tsv");

/// A proxy with what stands around it.
struct Scene {
    issuer: Issuer,
    guard: Guard,
    proxy: Proxy,
}

impl Scene {
    async fn set(start: impl AsyncFn(SocketAddr, SocketAddr) -> Proxy) -> Self {
        let issuer = Issuer::start().await;
        let guard = Guard::of(&issuer).await;
        let proxy = start(guard.at, service::start().await).await;
        Self {
            issuer,
            guard,
            proxy,
        }
    }

    async fn call(&self, line: &str, headers: &[&str]) -> Answer {
        send(self.proxy.at, line, headers).await
    }

    async fn status(&self, line: &str, token: &str) -> u16 {
        self.call(line, &[&bearer(token)]).await.status
    }

    /// Everything that a proxy must do: the rows of the attack catalogue in the area `forward-auth`.
    async fn holds(mut self) {
        self.good_tokens_pass().await;
        let rows = CATALOGUE
            .lines()
            .map(|line| line.split('\t').collect::<Vec<_>>());
        let due = rows.filter(|cells| cells[2] == "forward-auth");
        let due: Vec<&str> = due.map(|cells| cells[0]).collect();
        assert_eq!(due.len(), 7, "{due:?}");
        for row in due {
            self.play(row).await;
        }
        self.nobody_opens_a_tunnel().await;
        self.good_tokens_pass().await;
    }

    async fn play(&mut self, row: &str) {
        match row {
            "A550" => self.others_are_told_why_not().await,
            "A551" => self.nobody_brings_an_identity().await,
            "A552" => self.paths_have_one_reading().await,
            "A553" => self.methods_are_their_own().await,
            "A554" => self.revoked_tokens_are_refused().await,
            "A555" => self.old_news_is_503().await,
            "A556" => self.without_a_guard_nobody_passes().await,
            other => panic!("{other} has no case"),
        }
    }

    async fn good_tokens_pass(&self) {
        let token = bearer(&self.issuer.token(1));
        let answer = self.call("GET /orders/7?x=1&y=%2F..", &[&token]).await;
        assert_eq!(
            answer.status,
            200,
            "{} {}",
            answer.body,
            self.proxy.running.log()
        );
        let seen = answer.body.to_lowercase();
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
        let machine = self.issuer.token_of(2, |claims| claims.acr = None);
        let answer = self.call("GET /orders", &[&bearer(&machine)]).await;
        let body = answer.body.to_lowercase();
        let mut acr = body
            .lines()
            .filter_map(|line| line.strip_prefix("x-portcullis-acr:"));
        assert!(acr.all(|value| value.trim().is_empty()), "{body}");
        // A body goes to the service, not to the guard.
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
        // What the service itself refuses is its own answer.
        let teapot = self.call("GET /orders/teapot", &[&token]).await;
        assert_eq!(teapot.status, 403);
        assert!(teapot.body.starts_with("reached"), "{}", teapot.body);
    }

    async fn others_are_told_why_not(&self) {
        let reader = self
            .issuer
            .token_of(1, |claims| claims.scope = "orders:read".into());
        let foreign = self
            .issuer
            .token_of(1, |claims| claims.aud = "https://other.example".into());
        let good = self.issuer.token(1);
        for (line, token, status, told) in [
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
            let answer = self.call(line, &headers).await;
            assert_eq!(answer.status, status, "{line}: {}", answer.body);
            assert!(!answer.body.contains("reached"), "{line}: {}", answer.body);
            let challenge = answer.header("www-authenticate");
            assert!(challenge.contains(told), "{line}: {challenge}");
            assert_eq!(challenge.is_empty(), told.is_empty(), "{line}: {challenge}");
        }
        // Too large for the guard, or for the proxy.
        for bytes in [6 * 1024, 20 * 1024, 100 * 1024] {
            let answer = self
                .call("GET /orders", &[&bearer(&"a".repeat(bytes))])
                .await;
            assert!(
                [400, 401, 403, 431].contains(&answer.status),
                "{bytes}: {} {}",
                answer.status,
                answer.body
            );
        }
    }

    async fn nobody_brings_an_identity(&self) {
        let token = bearer(&self.issuer.token_of(1, |claims| claims.acr = None));
        for forged in [
            "X-Portcullis-Subject: root",
            "x-portcullis-acr: 2",
            "X-Portcullis-Roles: admin",
        ] {
            for headers in [&[token.as_str(), forged][..], &[forged]] {
                let answer = self.call("GET /orders", headers).await;
                assert_eq!(answer.status, 403, "{forged}");
            }
        }
        // Refused, or gone before it reaches anybody.
        for forged in [
            "X_Portcullis_Acr: 2",
            "x_portcullis-subject: root",
            "X.Portcullis.Subject: root",
            "X*Portcullis*Subject: root",
        ] {
            let answer = self.call("GET /orders", &[&token, forged]).await;
            let came_through = answer.body.to_lowercase().contains(&forged.to_lowercase());
            assert!(
                answer.status == 403 || !came_through,
                "{forged}: {}",
                answer.body
            );
        }
        // Headers that a caller declares to be of this connection alone (RFC 9110 §7.6.1).
        for trick in [
            "Connection: X-Portcullis-Subject",
            "Connection: close, x-portcullis-ACR",
            "Connection: close, X-Forwarded-Uri, Authorization",
        ] {
            let answer = self.call("GET /orders", &[&token, trick]).await;
            let seen = answer.body.to_lowercase();
            let is_named = seen.contains("x-portcullis-subject: alice");
            assert!(answer.status != 200 || is_named, "{trick}: {}", answer.body);
        }
        // What the guard is asked about is the proxy's to say.
        let answer = self
            .call(
                "GET /admin",
                &[
                    &token,
                    "X-Forwarded-Uri: /orders",
                    "X-Forwarded-Method: GET",
                ],
            )
            .await;
        assert_eq!(answer.status, 403, "{}", answer.body);
    }

    /// Behind a 101 everything would come to the service unseen. Ours answers so to every offer.
    async fn nobody_opens_a_tunnel(&self) {
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
            let answer = upgrade(self.proxy.at, "GET /orders", &headers).await;
            // 400 from who refuses what stands there twice. 200 is what the service answers where no
            // offer has come to it: nginx 1.22 looks at the first of two, and passes none on.
            assert!(
                [200, 400, 403].contains(&answer.status),
                "{offer:?}: {answer:?}"
            );
            let is_one = offer
                .iter()
                .filter(|header| header.starts_with("Upgrade"))
                .count()
                == 1;
            assert!(answer.status != 200 || !is_one, "{offer:?}: {answer:?}");
        }
        // nginx opens none unless it is told to; the others do, for whom the guard lets pass.
        let offer = [
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ];
        let headers = [&[token.as_str()][..], &offer].concat();
        let answer = upgrade(self.proxy.at, "GET /orders", &headers).await;
        assert!([101, 200].contains(&answer.status), "{answer:?}");
        let answer = upgrade(self.proxy.at, "GET /orders", &offer).await;
        assert_eq!(answer.status, 401, "{answer:?}");
    }

    async fn paths_have_one_reading(&self) {
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
            let answer = self.call(&format!("GET {target}"), &[&token]).await;
            // The proxy has a say before the guard, and may be stricter.
            assert!(
                [400, 403].contains(&answer.status),
                "{target}: {} {}",
                answer.status,
                answer.body
            );
        }
        for (target, status) in [
            ("/orders?/../admin", 200),
            ("/orders/?q=//%2e%2e", 200),
            ("/orders/caf%C3%A9/a%20b", 200),
            ("/admin?/orders", 403),
            ("/ordersx", 403),
        ] {
            let answer = self.call(&format!("GET {target}"), &[&token]).await;
            assert_eq!(answer.status, status, "{target}: {}", answer.body);
            let line = format!("GET {target} HTTP/1.1");
            assert_eq!(
                answer.body.contains(&line),
                status == 200,
                "{target}: {}",
                answer.body
            );
        }
    }

    async fn methods_are_their_own(&self) {
        let reader = self
            .issuer
            .token_of(1, |claims| claims.scope = "orders:read".into());
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
            let answer = self.call("GET /orders", &[&token, other]).await;
            assert_eq!(answer.status, 403, "{other}: {}", answer.body);
        }
        for target in ["/admin?/orders", "/?/orders", "/?x=/orders"] {
            assert_eq!(
                self.status(&format!("GET {target}"), &reader).await,
                403,
                "{target}"
            );
        }
    }

    async fn revoked_tokens_are_refused(&self) {
        let (one, two) = (self.issuer.token(11), self.issuer.token(12));
        assert_eq!(self.status("GET /orders", &one).await, 200);
        let begin = Instant::now();
        self.issuer.revoke(11);
        while self.status("GET /orders", &one).await != 401 {
            assert!(begin.elapsed() < Duration::from_secs(1), "still accepted");
        }
        assert_eq!(self.status("GET /orders", &two).await, 200);
    }

    async fn old_news_is_503(&self) {
        let token = self.issuer.token(1);
        self.guard
            .until("not fresh", async || {
                self.status("GET /fresh", &token).await == 200
            })
            .await;
        self.issuer.fall_silent();
        self.guard
            .until("not stale", async || {
                self.status("GET /fresh", &token).await == 503
            })
            .await;
        let answer = self.call("GET /fresh", &[&bearer(&token)]).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, "2"));
        self.issuer.speak();
    }

    async fn without_a_guard_nobody_passes(&mut self) {
        let token = self.issuer.token(1);
        self.guard.kill().await;
        let answer = self.call("GET /orders", &[&bearer(&token)]).await;
        assert!(
            [502, 503].contains(&answer.status),
            "{} {}",
            answer.status,
            answer.body
        );
        self.guard.restart().await;
        self.guard
            .until("not back", async || {
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
async fn nginx_lets_nobody_pass_whom_the_guard_refuses() {
    Scene::set(nginx).await.holds().await;
}

#[tokio::test]
async fn caddy_lets_nobody_pass_whom_the_guard_refuses() {
    Scene::set(caddy).await.holds().await;
}

#[tokio::test]
async fn haproxy_lets_nobody_pass_whom_the_guard_refuses() {
    Scene::set(haproxy).await.holds().await;
}

#[tokio::test]
async fn haproxy_refuses_what_it_would_show_the_guard_in_part() {
    let scene = Scene::set(haproxy).await;
    let token = bearer(&scene.issuer.token(1));
    for trick in [
        "Connection: X-Portcullis-Subject",
        "Trailer: X-Portcullis-Subject",
    ] {
        let answer = scene.call("GET /orders", &[&token, trick]).await;
        assert_eq!(answer.status, 403, "{trick}: {}", answer.body);
    }
    // Nobody asks the service for trailers either.
    let answer = scene.call("GET /orders", &[&token, "TE: trailers"]).await;
    assert_eq!(answer.status, 200);
    assert!(
        !answer.body.to_lowercase().contains("\nte:"),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn haproxy_lets_nobody_pass_when_its_script_fails() {
    let scene = Scene::set(broken_haproxy).await;
    let token = bearer(&scene.issuer.token(1));
    let answer = scene.call("GET /orders", &[&token]).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "2"));
    assert!(!answer.body.contains("reached"), "{}", answer.body);
}
