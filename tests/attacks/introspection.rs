//! Rows of the catalogue: `/oauth2/introspect`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::expect::{json_error, logged, summary};
use crate::fixtures::client::basic;
use crate::fixtures::server::{AUDIENCE, confidential, public};
use crate::fixtures::{Answer, Db, Server, TestClient, Tokens, postgres, raw};
use crate::token_code::{Flow, median, not_logged};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a335_introspection_requires_client_authentication),
    row!(a336_inactive_introspection_answers_are_indistinguishable),
    row!(a337_any_revocation_makes_a_token_inactive),
    row!(a338_refresh_token_introspection_is_limited_to_its_client),
    row!(a340_introspection_by_get_is_rejected_and_jwt_needs_registration),
    row!(a341_introspection_answers_are_uncacheable_booleans),
    row!(a342_introspection_without_database_answers_503),
    row!(a510_expired_access_token_is_inactive_without_leeway),
];

const INTROSPECT: &str = "/oauth2/introspect";
const INACTIVE: &str = r#"{"active":false}"#;
/// A node may cache a client registration for this long.
const CACHED: Duration = Duration::from_secs(6);

/// `rs1` and `rs2` of the catalogue, and the flow in which alice gets tokens for `rs1`.
struct Setup {
    flow: Flow,
    rs1: TestClient,
    rs2: TestClient,
}

impl Setup {
    async fn create(stage: &Stage) -> Self {
        let server = &stage.server;
        let rs1 = server.resource_server("rs1", AUDIENCE).await;
        let other = "https://other.example";
        let rs2 = server.resource_server("rs2", other).await;
        Self {
            flow: Flow::begin(server).await,
            rs1,
            rs2,
        }
    }

    async fn tokens(&mut self) -> Tokens {
        let url = self.flow.web.request(&[("scope", "openid orders:read")]);
        let code = self.flow.alice.allows_request(&url).await;
        self.flow.web.redeems(&code).await.ok()
    }
}

/// Checks for 200 with exactly `{"active":false}`.
fn inactive(answer: &Answer) -> Result<(), String> {
    if answer.status == 200 && answer.body == INACTIVE {
        active_member(answer).map(drop)
    } else {
        Err(format!("got {}, want {INACTIVE}", summary(answer)))
    }
}

/// Returns `active` of a JSON response that is `no-store` and in which `active` is a boolean.
fn active_member(answer: &Answer) -> Result<bool, String> {
    let headers = (
        answer.header("content-type"),
        answer.header("cache-control"),
    );
    if answer.status != 200 || headers != (Some("application/json"), Some("no-store")) {
        return Err(format!("got {} with {headers:?}", summary(answer)));
    }
    answer.json()["active"]
        .as_bool()
        .ok_or_else(|| format!("active is no boolean: {}", answer.body))
}

/// Samples of each case; thousands are run by hand.
const SAMPLES: usize = 40;
/// The limit of the catalogue applies to a release build on an idle machine.
const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 8 } else { 2 });

async fn a335_introspection_requires_client_authentication(stage: &Stage) {
    let mut setup = Setup::create(stage).await;
    let tokens = setup.tokens().await;
    let spa = public("spa", &["https://spa.example/cb"]);
    let spa = stage.server.register(spa).await;
    let token = ("token", tokens.access());
    let wrong = basic(setup.rs1.id(), "wrong");
    let tries: [(&[(&str, &str)], &[(&str, &str)]); 3] = [
        (&[], &[token]),
        (&[("Authorization", &wrong)], &[token]),
        (&[], &[token, ("client_id", spa.id())]),
    ];
    for (case, (headers, fields)) in (1..).zip(tries) {
        let at = setup.rs1.at(&stage.node(case).base);
        let answer = at.posts_raw(INTROSPECT, headers, fields).await;
        stage.expect(case, json_error(&answer, 401, "invalid_client"));
        stage.expect(case, logged(&answer, "client.auth_failed", ""));
        let described = answer.json()["error_description"] == "Client authentication failed.";
        stage.check(case, described, || answer.body.clone());
    }
    // An authenticated client that is not a resource server: the text fits the endpoint.
    let answer = setup.flow.web.introspects(tokens.access()).await;
    stage.expect(4, json_error(&answer, 400, "unauthorized_client"));
    let text = answer.json()["error_description"].to_string();
    stage.check(4, text.contains("introspect"), || text.clone());
}

async fn a336_inactive_introspection_answers_are_indistinguishable(stage: &Stage) {
    let mut scene = Setup::create(stage).await;
    let late = scene.tokens().await;
    stage.server.advance(Duration::from_secs(6 * 60));
    scene.flow.alice = stage.server.enters("alice").await;
    let (live, dead) = (scene.tokens().await, scene.tokens().await);
    scene.flow.web.revokes(dead.access()).await;
    let told = scene.rs1.introspects(live.access()).await;
    stage.check(7, active_member(&told) == Ok(true), || summary(&told));

    let unknown = format!("pcl_rt_{}", "A".repeat(86));
    let cut = &live.access()[..live.access().len() * 4 / 5];
    let tries = [
        (&scene.rs1, unknown.as_str()),
        (&scene.rs1, late.access()),
        (&scene.rs1, dead.access()),
        (&scene.rs1, "not.a.token"),
        (&scene.rs1, cut),
        (&scene.rs2, live.access()),
    ];
    let mut spread = Duration::MAX;
    for _ in 0..6 {
        let mut took: [Vec<Duration>; 6] = Default::default();
        for _ in 0..SAMPLES {
            for (case, (server, token)) in tries.iter().enumerate() {
                let started = Instant::now();
                let answer = server.introspects(token).await;
                took[case].push(started.elapsed());
                stage.expect(case + 1, inactive(&answer));
            }
        }
        let medians: Vec<Duration> = took.iter_mut().map(|took| median(took)).collect();
        spread = spread.min(*medians.iter().max().unwrap() - *medians.iter().min().unwrap());
        if spread <= LIMIT {
            break;
        }
    }
    stage.check(8, spread <= LIMIT, || {
        format!("the medians are {spread:?} apart")
    });
}

async fn a337_any_revocation_makes_a_token_inactive(stage: &Stage) {
    let mut scene = Setup::create(stage).await;
    let id = scene.flow.web.id().to_owned();
    let cuts = [
        "UPDATE users SET auth_epoch = auth_epoch + 1 WHERE username = 'alice'".to_owned(),
        format!("UPDATE clients SET auth_epoch = auth_epoch + 1 WHERE id = '{id}'"),
        "UPDATE feed_head SET epoch = epoch + 1".to_owned(),
    ];
    let mends = cuts.clone().map(|cut| cut.replace(" + 1", " - 1"));
    for combination in 0..16_usize {
        let is_set = |bit: usize| combination & (1 << bit) != 0;
        let tokens = scene.tokens().await;
        if is_set(3) {
            scene.flow.web.revokes(tokens.access()).await;
        }
        for bit in (0..3).filter(|bit| is_set(*bit)) {
            stage.server.execute(&cuts[bit]);
        }
        stage.server.advance(CACHED);
        for node in stage.all() {
            let answer = scene.rs1.at(&node.base).introspects(tokens.access()).await;
            let active = active_member(&answer);
            stage.check(combination + 1, active == Ok(combination == 0), || {
                format!("{combination:04b}: {}", summary(&answer))
            });
        }
        // A feed epoch never decreases: a node would take that for an older copy of the database.
        for bit in (0..2).filter(|bit| is_set(*bit)) {
            stage.server.execute(&mends[bit]);
        }
        stage.server.advance(CACHED);
    }
}

async fn a338_refresh_token_introspection_is_limited_to_its_client(stage: &Stage) {
    let mut scene = Setup::create(stage).await;
    let tokens = scene.tokens().await;
    for (case, server) in [(1, &scene.rs1), (2, &scene.rs2)] {
        let answer = server.introspects(tokens.refresh()).await;
        stage.expect(case, inactive(&answer));
    }
    // Introspection consumed nothing.
    let next = scene.flow.web.refreshes(tokens.refresh(), &[]).await;
    stage.check(1, next.status == 200, || summary(&next));
}

async fn a340_introspection_by_get_is_rejected_and_jwt_needs_registration(stage: &Stage) {
    let mut scene = Setup::create(stage).await;
    let tokens = scene.tokens().await;
    let header = basic(scene.rs1.id(), scene.rs1.secret.as_ref().unwrap().expose());
    let authorization = ("Authorization", header.as_str());
    let target = format!("{INTROSPECT}?token={}", tokens.access());
    let mut browser = stage.server.browser();
    let answer = browser.send("GET", &target, &[authorization], None).await;
    let allow = answer.header("allow") == Some("POST");
    stage.check(1, answer.status == 405 && allow, || summary(&answer));
    stage.expect(1, logged(&answer, "http.method", ""));
    stage.expect(1, not_logged(&answer, tokens.access()));
    let signed = ("Accept", "application/token-introspection+jwt");
    let fields = [("token", tokens.access())];
    let headers = [authorization, signed];
    let answer = scene.rs1.posts_raw(INTROSPECT, &headers, &fields).await;
    stage.check(2, active_member(&answer) == Ok(true), || summary(&answer));
}

async fn a341_introspection_answers_are_uncacheable_booleans(stage: &Stage) {
    let mut scene = Setup::create(stage).await;
    let (tokens, dead) = (scene.tokens().await, scene.tokens().await);
    scene.flow.web.revokes(dead.refresh()).await;
    // 1. Active, with the token's claims and nothing about the user.
    let answer = scene.rs1.introspects(tokens.access()).await;
    stage.check(1, active_member(&answer) == Ok(true), || summary(&answer));
    let told = answer.json();
    let members: BTreeSet<&str> = told
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let claims = tokens.access_claims();
    for (name, value) in claims.as_object().unwrap() {
        stage.check(1, told[name] == *value, || format!("{name}: {told}"));
    }
    let more: Vec<&&str> = members
        .iter()
        .filter(|name| claims.get(**name).is_none())
        .collect();
    stage.check(1, more == [&"active", &"token_type"], || {
        format!("{more:?}")
    });
    // 2. Inactive. 3. Malformed request. 4. No credentials. 5. A client that is not a resource server.
    stage.expect(2, inactive(&scene.rs1.introspects(dead.access()).await));
    stage.expect(2, inactive(&scene.rs1.introspects("x").await));
    let answer = scene.rs1.posts(INTROSPECT, &[]).await;
    stage.expect(3, json_error(&answer, 400, "invalid_request"));
    stage.expect(3, logged(&answer, "token.rejected", "token"));
    let twice = [("token", tokens.access()), ("token", tokens.access())];
    let answer = scene.rs1.posts(INTROSPECT, &twice).await;
    stage.expect(3, json_error(&answer, 400, "invalid_request"));
    let fields = [("token", tokens.access()), ("client_id", "rs1")];
    let answer = scene.rs1.posts_raw(INTROSPECT, &[], &fields).await;
    stage.expect(4, json_error(&answer, 401, "invalid_client"));
    stage.expect(4, logged(&answer, "client.auth_failed", ""));
    let idle = confidential("web2", "https://app2.example/cb");
    let idle = stage.server.register(idle).await;
    for client in [&idle, &scene.flow.web] {
        let answer = client.introspects(tokens.access()).await;
        stage.expect(5, json_error(&answer, 400, "unauthorized_client"));
        stage.expect(5, logged(&answer, "introspection.denied", ""));
    }
}

async fn a510_expired_access_token_is_inactive_without_leeway(stage: &Stage) {
    let mut scene = Setup::create(stage).await;
    let tokens = scene.tokens().await;
    let exp = tokens.access_claims()["exp"].as_u64().unwrap();
    for (case, at) in [(1, exp - 1), (2, exp), (3, exp + 1), (4, exp + 29)] {
        let now = stage.server.clock.now().secs();
        stage.server.advance(Duration::from_secs(at - now));
        for node in stage.all() {
            let answer = scene.rs1.at(&node.base).introspects(tokens.access()).await;
            match at < exp {
                true => stage.check(case, active_member(&answer) == Ok(true), || {
                    summary(&answer)
                }),
                false => stage.expect(case, inactive(&answer)),
            }
        }
    }
}

async fn a342_introspection_without_database_answers_503(stage: &Stage) {
    let mut scene = Setup::create(stage).await;
    let tokens = scene.tokens().await;
    // The node has cached the resource server and has seen the token active.
    let before = scene.rs1.introspects(tokens.access()).await;
    stage.check(1, active_member(&before) == Ok(true), || summary(&before));
    let header = basic(scene.rs1.id(), scene.rs1.secret.as_ref().unwrap().expose());
    let body = format!("token={}", tokens.access());
    // Sent raw, outside the journal, because this row expects a 5xx.
    let request = raw::post(INTROSPECT, &[("Authorization", &header)], &body);
    let down = DatabaseOutage::begin(&stage.server);
    for _ in 0..2 {
        let answer = raw::bytes(&stage.server.base, request.clone()).await;
        let answer = answer.unwrap();
        stage.expect(1, json_error(&answer, 503, "temporarily_unavailable"));
        stage.check(1, answer.header("retry-after").is_some(), || {
            format!("{:?}", answer.headers)
        });
        stage.expect(1, logged(&answer, "introspection.degraded", ""));
    }
    down.end();
    // Each closed connection of the pool costs one more request; then the node answers again.
    let mut after = raw::bytes(&stage.server.base, request.clone()).await;
    for _ in 0..stage.server.config.database.pool_size {
        if after.as_ref().is_some_and(|after| after.status == 200) {
            break;
        }
        after = raw::bytes(&stage.server.base, request.clone()).await;
    }
    let after = after.unwrap();
    stage.check(2, active_member(&after) == Ok(true), || summary(&after));
}

/// A database outage: PostgreSQL closes and refuses connections; a table of SQLite is renamed.
struct DatabaseOutage<'a>(&'a Server);

impl<'a> DatabaseOutage<'a> {
    fn begin(server: &'a Server) -> Self {
        match server.db {
            Db::Sqlite => server.execute("ALTER TABLE grants RENAME TO away"),
            Db::Postgres => {
                let url = server.config.database_url();
                let name = postgres::name(&url);
                postgres::execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"));
                postgres::execute(&format!(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
                ));
            }
        }
        Self(server)
    }

    fn end(self) {
        match self.0.db {
            Db::Sqlite => self.0.execute("ALTER TABLE away RENAME TO grants"),
            Db::Postgres => {
                let url = self.0.config.database_url();
                let name = postgres::name(&url);
                postgres::execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
            }
        }
    }
}
