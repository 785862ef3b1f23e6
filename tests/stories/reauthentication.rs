//! No sequence of pages leads to a code without the login that the request requires.

use std::time::Duration;

use portcullis::time::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::fixtures::client::TestClient;
use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Answer, Browser, Db, Server, apply, on_both_databases};

/// What a request requires of the login.
#[derive(Clone, Copy, Debug)]
enum Demand {
    Nothing,
    NewLogin,
    MaxAge(u64),
}

impl Demand {
    fn request(self, web: &TestClient) -> String {
        match self {
            Self::Nothing => web.request(&[]),
            Self::NewLogin => web.request(&[("prompt", "login")]),
            Self::MaxAge(seconds) => web.request(&[("max_age", &seconds.to_string())]),
        }
    }
}

/// An authorization that was started in one of the tabs.
struct Begun {
    id: String,
    demand: Demand,
    at: Timestamp,
    csrf: Option<String>,
}

/// A user who goes through the pages in any order, in several tabs of one browser.
struct Walk<'a> {
    server: &'a Server,
    web: &'a TestClient,
    browser: Browser,
    login_csrf: Option<String>,
    begun: Vec<Begun>,
    /// The steps so far, for the failure message.
    trace: Vec<String>,
    codes: usize,
}

impl Walk<'_> {
    async fn begin(&mut self, demand: Demand) {
        let at = self.server.clock.now();
        let answer = self.browser.get(&demand.request(self.web)).await;
        self.trace.push(format!("begin {demand:?}"));
        if let Some(to) = answer.own_redirect() {
            let id = to.rsplit_once("authorization=").unwrap().1.to_owned();
            self.begun.push(Begun {
                id,
                demand,
                at,
                csrf: None,
            });
        } else {
            self.look_for_code(&answer, demand, at).await;
        }
    }

    /// Asserts that a code rests on a login that its request allows.
    async fn look_for_code(&mut self, answer: &Answer, demand: Demand, begun: Timestamp) {
        let Some(code) = answer.callback("code") else {
            return;
        };
        self.codes += 1;
        let claims = self.web.redeems(&code).await.ok().id_claims();
        let login = claims["auth_time"].as_u64();
        let earliest = match demand {
            Demand::Nothing => return,
            Demand::NewLogin => begun.secs(),
            // The login may be this much older than the response, or was done for this request.
            Demand::MaxAge(seconds) => begun.secs().min(self.server.clock.now().secs() - seconds),
        };
        assert!(
            login.is_some_and(|login| login >= earliest),
            "a code for {demand:?} begun at {}, with a login at {login:?}: {:#?}",
            begun.secs(),
            self.trace
        );
    }

    async fn step(&mut self, random: &mut StdRng) {
        let action = random.gen_range(0..10);
        if action == 0 || self.begun.is_empty() {
            let demand = match random.gen_range(0..4) {
                0 => Demand::Nothing,
                1 => Demand::MaxAge(0),
                2 => Demand::MaxAge(60),
                _ => Demand::NewLogin,
            };
            return self.begin(demand).await;
        }
        let n = random.gen_range(0..self.begun.len());
        let Begun {
            id,
            demand,
            at,
            csrf,
        } = &self.begun[n];
        let (id, demand, at, csrf) = (id.clone(), *demand, *at, csrf.clone());
        let answer = match action {
            1 => {
                self.trace.push(format!("open login {n}"));
                let page = self
                    .browser
                    .get(&format!("/login?authorization={id}"))
                    .await;
                if page.body.contains("login-submit") {
                    self.login_csrf = Some(page.hidden("csrf"));
                }
                page
            }
            2 | 3 => {
                self.trace.push(format!("open consent {n}"));
                let page = self
                    .browser
                    .get(&format!("/consent?authorization={id}"))
                    .await;
                if page.body.contains("consent-allow") {
                    self.begun[n].csrf = Some(page.hidden("csrf"));
                }
                page
            }
            4 => {
                self.trace.push(format!("sign in {n}"));
                let csrf = self.login_csrf.clone().unwrap_or_default();
                let form = [
                    ("authorization", id.as_str()),
                    ("csrf", csrf.as_str()),
                    ("username", "alice"),
                    ("password", PASSWORD),
                ];
                self.browser.post("/login", &form).await
            }
            5 | 6 => {
                let decision = if random.gen_ratio(1, 8) {
                    "deny"
                } else {
                    "allow"
                };
                self.trace.push(format!("{decision} {n}"));
                let csrf = csrf.unwrap_or_default();
                let form = [
                    ("authorization", id.as_str()),
                    ("csrf", csrf.as_str()),
                    ("scope", "openid"),
                    ("decision", decision),
                ];
                self.browser.post("/consent", &form).await
            }
            7 | 8 => {
                self.trace.push(format!("continue {n}"));
                let path = format!("/oauth2/authorize?authorization={id}");
                self.browser.get(&path).await
            }
            _ => {
                let seconds = random.gen_range(1..50);
                self.trace.push(format!("wait {seconds} s"));
                self.server.advance(Duration::from_secs(seconds));
                return;
            }
        };
        self.look_for_code(&answer, demand, at).await;
    }
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn random_page_walk_yields_no_code_without_required_login(#[case] db: Db) {
    let server = Server::start(db).await;
    let web = server.shop().await;
    let mut codes = 0;
    for seed in 0..24 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut browser = server.browser();
        // Half of the users begin with a session and a remembered consent.
        if seed % 2 == 0 {
            browser.signs_in(&web, "alice").await;
            server.advance(Duration::from_secs(5));
        }
        let mut walk = Walk {
            server: &server,
            web: &web,
            browser,
            login_csrf: None,
            begun: Vec::new(),
            trace: Vec::new(),
            codes: 0,
        };
        for _ in 0..60 {
            walk.step(&mut random).await;
        }
        codes += walk.codes;
    }
    assert!(
        codes > 50,
        "only {codes} codes, which is too few to show anything"
    );
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn pages_of_rejected_request_lead_to_the_dispatcher(#[case] db: Db) {
    let server = Server::start(db).await;
    let web = server.shop().await;
    let mut alice = server.browser();
    let login = alice.opens(&web.request(&[])).await;
    let consent = alice.fills_in(&login, "alice", PASSWORD).await;
    let (id, csrf) = (consent.hidden("authorization"), consent.hidden("csrf"));
    let form = [
        ("authorization", id.as_str()),
        ("csrf", &csrf),
        ("decision", "deny"),
    ];
    let denied = alice.post("/consent", &form).await;
    assert_eq!(denied.status, 200);
    // A login does not undo the denial by the user.
    let on = format!("/oauth2/authorize?authorization={id}");
    let opened = alice.get(&format!("/login?authorization={id}")).await;
    assert_eq!(opened.location(), Some(on.as_str()));
    let form = [
        ("authorization", id.as_str()),
        ("csrf", &login.hidden("csrf")),
        ("username", "alice"),
        ("password", PASSWORD),
    ];
    assert_eq!(
        alice.post("/login", &form).await.own_redirect(),
        Some(on.clone())
    );
    let back = alice.get(&on).await;
    assert_eq!(back.callback("error").as_deref(), Some("access_denied"));
}

#[apply(on_both_databases)]
#[actix_web::test]
async fn form_of_request_rejected_later_returns_to_the_client(#[case] db: Db) {
    let server = Server::start(db).await;
    let web = server.shop().await;
    let mut alice = server.browser();
    let login = alice
        .opens(&web.request(&[("scope", "openid orders:read")]))
        .await;
    // The registration is narrowed while the page is open.
    let narrowed = portcullis::oauth::request::scope::Scope::parse("openid").unwrap();
    server
        .alter(&web.client.id, |client| client.scopes = narrowed)
        .await;
    let (authorization, csrf) = (login.hidden("authorization"), login.hidden("csrf"));
    let form = [
        ("authorization", authorization.as_str()),
        ("csrf", &csrf),
        ("username", "alice"),
        ("password", PASSWORD),
    ];
    let answer = alice.post("/login", &form).await;
    assert_eq!(
        (answer.status, answer.location()),
        (200, None),
        "no redirect leaves a form"
    );
    let onward = answer.onward().unwrap();
    assert!(
        onward.starts_with("https://app.example/cb?error=invalid_scope"),
        "{onward}"
    );
}
