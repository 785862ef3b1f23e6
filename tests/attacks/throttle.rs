//! Rows of the catalogue: delays after failed sign-ins, and limits per address.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use portcullis::accounts::password::Password;
use portcullis::accounts::user::{User, Username};
use portcullis::config::Config;

use crate::expect::{logged, page, summary};
use crate::fixtures::look::Look;
use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Answer, Browser, Db, Server, journal, log};
use crate::login::{LoginForm, failed, passed};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a089_authorize_flood_is_limited_per_address),
    row!(a112_login_delay_doubles_with_each_failure),
    row!(a113_parallel_guesses_are_counted_and_limited_across_nodes),
    row!(a114_right_password_is_refused_during_the_delay),
    row!(a117_password_spraying_is_limited_per_network),
    row!(a119_credential_stuffing_is_limited_per_network),
    row!(a513_clock_jump_never_throttles_logins),
    row!(a514_simultaneous_logins_are_not_throttled),
    row!(a521_texts_that_are_no_user_names_have_counters_of_their_own),
    row!(a530_login_burst_leaves_connections_to_clients_and_node),
];

const WRONG: &str = "not-the-password";

/// Starts nodes that trust a proxy on this machine, on a separate database.
pub async fn nodes(stage: &Stage, change: impl FnOnce(&mut Config)) -> Vec<Server> {
    let proxy = "127.0.0.1".parse().unwrap();
    let first = Server::with(stage.db(), |config| {
        config.http.trusted_proxies = vec![proxy];
        config.limits.per_ip = 1_000_000;
        change(config);
    })
    .await;
    let mut nodes = vec![first];
    while stage.db() == Db::Postgres && nodes.len() < 3 {
        nodes.push(nodes[0].node().await);
    }
    nodes
}

pub async fn end(nodes: Vec<Server>) {
    let mut nodes = nodes.into_iter();
    let first = nodes.next().unwrap();
    for node in nodes {
        node.stop().await;
    }
    first.remove().await;
}

/// Checks for a 429 page with `Retry-After` and rate headers, logged as throttled.
pub fn throttled(answer: &Answer, wait: u64) -> Result<(), String> {
    logged(answer, "login.throttled", "wait")?;
    let told = answer.header("retry-after") == Some(&wait.to_string());
    let rates = answer.header("ratelimit-limit").is_some();
    page(answer, 429)?;
    if told && rates && answer.body.contains("Too many failed sign-ins") {
        Ok(())
    } else {
        let after = answer.header("retry-after");
        Err(format!(
            "got {} after {after:?}, want 429 after {wait}",
            summary(answer)
        ))
    }
}

async fn a112_login_delay_doubles_with_each_failure(stage: &Stage) {
    let nodes = nodes(stage, |_| {}).await;
    let (server, web) = (&nodes[0], nodes[0].shop().await);
    // The same for an existing and for an unknown user name.
    for (case, name, network) in [(1, "alice", "192.0.2"), (3, "ghost", "203.0.113")] {
        let mut login_form = LoginForm::opens(server, &web)
            .await
            .from(&format!("{network}.1"));
        for _ in 0..5 {
            stage.expect(case, failed(&login_form.tries(name, WRONG).await));
        }
        for wait in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900] {
            server.advance(Duration::from_millis(wait * 1_000 - 600));
            // A new form, because an authorization expires after ten minutes.
            login_form = LoginForm::opens(server, &web)
                .await
                .from(&format!("{network}.1"));
            stage.expect(case, throttled(&login_form.tries(name, WRONG).await, 1));
            server.advance(Duration::from_millis(600));
            stage.expect(case, failed(&login_form.tries(name, WRONG).await));
        }
        stage.expect(case, throttled(&login_form.tries(name, WRONG).await, 900));
    }
    for (case, name, network) in [(2, "bob", "198.51.100"), (4, "phantom", "198.51.101")] {
        for host in 1..=10 {
            let node = &nodes[host % nodes.len()];
            let mut login_form = LoginForm::opens(node, &web.at(&node.base))
                .await
                .from(&format!("{network}.{host}"));
            stage.expect(case, failed(&login_form.tries(name, WRONG).await));
        }
        for (host, wait) in [(11, 30), (12, 30), (13, 30)] {
            let mut login_form = LoginForm::opens(server, &web)
                .await
                .from(&format!("{network}.{host}"));
            stage.expect(case, throttled(&login_form.tries(name, WRONG).await, wait));
            server.advance(Duration::from_secs(30));
            stage.expect(case, failed(&login_form.tries(name, WRONG).await));
        }
    }
    // No account is locked out.
    server.advance(Duration::from_secs(900));
    let mut login_form = LoginForm::opens(server, &web).await.from("192.0.2.1");
    stage.expect(5, passed(&login_form.tries("alice", PASSWORD).await));
    end(nodes).await;
}

async fn a113_parallel_guesses_are_counted_and_limited_across_nodes(stage: &Stage) {
    // 100 concurrent requests need enough database connections.
    let nodes = nodes(stage, |config| config.database.pool_size = 24).await;
    let web = nodes[0].shop().await;
    let mut login_forms = Vec::new();
    for node in &nodes {
        login_forms.push(
            LoginForm::opens(node, &web.at(&node.base))
                .await
                .from("192.0.2.1"),
        );
    }
    let tries: Vec<_> = (0..100)
        .map(|n| {
            let mut login_form = login_forms[n % login_forms.len()].clone();
            actix_web::rt::spawn(async move {
                // On a busy machine the last of 100 requests may wait too long for the lock of the
                // counter, get 503, and retry.
                loop {
                    let answer = login_form.tries("alice", WRONG).await;
                    if answer.status != 503 {
                        return answer;
                    }
                }
            })
        })
        .collect();
    let (mut evaluated, mut throttled_count) = (0, 0);
    for answer in tries {
        let answer = answer.await.unwrap();
        match answer.status {
            200 => evaluated += 1,
            429 => throttled_count += 1,
            _ => stage.check(1, false, || summary(&answer)),
        }
    }
    journal::strike_out(|exchange| exchange.answer.status == 503);
    stage.check(1, evaluated == 5 && throttled_count == 95, || {
        format!("{evaluated} were evaluated, {throttled_count} throttled")
    });
    let attempts = "SELECT attempts AS n FROM throttles WHERE key LIKE 'account:%'";
    let counted = nodes[0].count(attempts);
    stage.check(1, counted == 100, || {
        format!("{counted} attempts are counted")
    });
    end(nodes).await;
}

/// Returns the parts of a response that a user can see.
fn visible(answer: &Answer) -> (u16, Option<String>, String) {
    let id = answer.header("x-request-id").unwrap();
    let after = answer.header("retry-after").map(str::to_owned);
    (answer.status, after, answer.body.replace(id, ""))
}

async fn a114_right_password_is_refused_during_the_delay(stage: &Stage) {
    let nodes = nodes(stage, |_| {}).await;
    let web = nodes[0].shop().await;
    let mut login_form = LoginForm::opens(&nodes[0], &web).await.from("192.0.2.1");
    for _ in 0..5 {
        stage.expect(1, failed(&login_form.tries("alice", WRONG).await));
    }
    let right = login_form.tries("alice", PASSWORD).await;
    stage.expect(1, throttled(&right, 1));
    let wrong = login_form.tries("alice", WRONG).await;
    stage.check(1, visible(&right) == visible(&wrong), || summary(&right));
    nodes[0].advance(Duration::from_secs(1));
    stage.expect(2, passed(&login_form.tries("alice", PASSWORD).await));
    // The success has reset the failure count.
    let mut again = LoginForm::opens(&nodes[0], &web).await.from("192.0.2.1");
    for _ in 0..5 {
        stage.expect(2, failed(&again.tries("alice", WRONG).await));
    }
    // That makes ten failures within an hour. The browser that signed in has its own bucket.
    stage.expect(3, throttled(&again.tries("alice", PASSWORD).await, 30));
    again.browser.cookies.insert(
        "__Host-dev".to_owned(),
        login_form.browser.cookies["__Host-dev"].clone(),
    );
    stage.expect(3, passed(&again.tries("alice", PASSWORD).await));
    end(nodes).await;
}

async fn a117_password_spraying_is_limited_per_network(stage: &Stage) {
    let nodes = nodes(stage, |_| {}).await;
    let web = nodes[0].shop().await;
    let sources: [(usize, fn(usize) -> String); 3] = [
        (1, |_| "192.0.2.77".to_owned()),
        (2, |n| format!("198.51.100.{}", n + 1)),
        (3, |n| format!("2001:db8::{n:x}:1")),
    ];
    for (case, source) in sources {
        let mark = log::mark();
        // The same row on the other database may run at the same time.
        let mut ours = BTreeSet::new();
        for n in 0..34 {
            let node = &nodes[n % nodes.len()];
            let mut login_form = LoginForm::opens(node, &web.at(&node.base))
                .await
                .from(&source(n));
            let answer = login_form
                .tries(&format!("person-{case}-{n}"), "Summer2026!Summer")
                .await;
            ours.extend(answer.header("x-request-id").map(str::to_owned));
            let verdict = if n < 30 {
                failed(&answer)
            } else {
                throttled(&answer, 600)
            };
            stage.expect(case, verdict);
        }
        let alerts = log::since(mark)
            .into_iter()
            .filter(|event| event.get("event").is_some_and(|name| name == "login.spray"))
            .filter(|event| event.get("request_id").is_some_and(|id| ours.contains(id)));
        let alerts: Vec<_> = alerts.collect();
        stage.check(
            case,
            alerts.len() == 1 && alerts[0]["severity"] == "high",
            || format!("{alerts:?}"),
        );
        let mut elsewhere = LoginForm::opens(&nodes[0], &web)
            .await
            .from(&format!("203.0.113.{case}"));
        stage.expect(case, failed(&elsewhere.tries("unknown", WRONG).await));
    }
    end(nodes).await;
}

async fn a119_credential_stuffing_is_limited_per_network(stage: &Stage) {
    let nodes = nodes(stage, |_| {}).await;
    let web = nodes[0].shop().await;
    let mut login_forms = Vec::new();
    for node in &nodes {
        login_forms.push(LoginForm::opens(node, &web.at(&node.base)).await);
    }
    let sources: [(usize, fn(usize) -> String, usize); 2] = [
        // 50 addresses of one /24, then two networks.
        (1, |n| format!("192.0.2.{}", n % 50 + 1), 30),
        (2, |n| format!("10.1.{}.1", n % 2), 60),
    ];
    for (case, source, wanted) in sources {
        let mut evaluated = 0;
        for n in 0..200 {
            let mut login_form = login_forms[n % login_forms.len()].clone().from(&source(n));
            let answer = login_form.tries(&format!("leaked-{case}-{n}"), WRONG).await;
            if answer.status == 429 {
                stage.expect(case, throttled(&answer, 600));
            } else {
                evaluated += 1;
                stage.expect(case, failed(&answer));
            }
        }
        stage.check(case, evaluated == wanted, || {
            format!("{evaluated} pairs were evaluated")
        });
    }
    end(nodes).await;
}

async fn a089_authorize_flood_is_limited_per_address(stage: &Stage) {
    let open = "SELECT count(*) AS n FROM authorizations";
    let columns = "id, client_id, params, state, created_at, expires_at, network";
    // With the default limits the budget of the address is spent long before any cap.
    let strict = Server::with(stage.db(), |_| {}).await;
    let web = strict.shop().await;
    // Clones of one browser share its connections.
    let fresh = strict.browser();
    let (mut begun, mut refused) = (0, 0);
    for _ in 0..6 {
        for _ in 0..((begun == 0) as usize * 270 + 60) {
            let answer = fresh.clone().get(&web.request(&[])).await;
            match answer.status {
                303 => begun += 1,
                429 => {
                    refused += 1;
                    stage.expect(1, logged(&answer, "ratelimit.hit", "ip"));
                }
                _ => stage.check(1, false, || summary(&answer)),
            }
        }
        strict.advance(Duration::from_secs(10));
    }
    stage.check(1, (begun, refused) == (300 + 5 * 50, 30 + 5 * 10), || {
        format!("{begun} begun, {refused} refused")
    });
    strict.remove().await;
    // Without the budget: the cap per address applies, and alice's older authorization stays.
    let nodes = nodes(stage, |_| {}).await;
    let (server, web) = (&nodes[0], nodes[0].shop().await);
    let mut alice = server.browser().from("192.0.2.1");
    let page = alice.opens(&web.request(&[])).await;
    let consent = alice.fills_in(&page, "alice", PASSWORD).await;
    let fresh: Vec<Browser> = nodes.iter().map(Server::browser).collect();
    for n in 0..30 {
        if n == 10 {
            // The other 980 of the 1,010 authorizations are copies, because a request takes longer.
            server.execute(&format!(
                "INSERT INTO authorizations ({columns}) WITH RECURSIVE counting(n) AS
                 (SELECT 1 UNION ALL SELECT n + 1 FROM counting WHERE n < 980)
                 SELECT '11111111-' || n, client_id, params, state, created_at, expires_at, network
                 FROM counting, (SELECT * FROM authorizations WHERE state = 'begun' LIMIT 1) AS one"
            ));
        }
        let mut browser = fresh[n % nodes.len()].from("192.0.2.1");
        let answer = browser.get(&web.request(&[])).await;
        stage.check(2, answer.status == 303, || summary(&answer));
    }
    let kept = server.count(open);
    stage.check(2, kept == 1_001, || format!("{kept} are open"));
    let back = alice.decides(&consent, "allow").await;
    stage.check(2, back.callback("code").is_some(), || summary(&back));
    // The total cap: the oldest authorizations are removed.
    let now = server.clock.now();
    let (long_ago, later) = (now.micros() - 1_000, now.micros() + 600_000_000);
    let values = format!(
        "'00000000-' || n, '{}', '', 'begun', {long_ago}, {later}, 'net' || n",
        web.id()
    );
    server.execute(&format!(
        "INSERT INTO authorizations ({columns}) WITH RECURSIVE counting(n) AS
         (SELECT 1 UNION ALL SELECT n + 1 FROM counting WHERE n < 100000) SELECT {values} FROM counting"
    ));
    for n in 0..300 {
        let from = format!("198.51.{}.{}", n / 200, n % 200);
        let answer = fresh[0].from(&from).get(&web.request(&[])).await;
        stage.check(3, answer.status == 303, || summary(&answer));
    }
    let kept = server.count(open);
    stage.check(3, kept <= 100_000, || format!("{kept} are open"));
    let young =
        server.count("SELECT count(*) AS n FROM authorizations WHERE network LIKE '198.51.%'");
    stage.check(3, young == 300, || {
        format!("{young} of the latest are left")
    });
    end(nodes).await;
}

/// Creates users with [`PASSWORD`].
async fn users(server: &Server, names: &[String]) {
    let (app, now) = (&server.app, server.clock.now());
    let password = Password::parse(PASSWORD).unwrap();
    let phc = password
        .hash(&app.config.login.argon2, &app.entropy)
        .unwrap();
    let users: Vec<User> = names
        .iter()
        .map(|name| User::new(Username::parse(name).unwrap(), &app.entropy, now))
        .collect();
    server
        .write(move |tx| {
            for user in &users {
                tx.put_user(user)?;
                tx.put_password(&user.id, &phc, now)?;
            }
            Ok(())
        })
        .await;
}

const HOUR: i64 = 3_600_000_000;

/// Signs a user in with the right password while the clock of one node is wrong.
async fn signs_in_by_a_wrong_clock(stage: &Stage, case: usize, nodes: &[Server], off: i64) {
    let (server, web) = (&nodes[0], nodes[0].shop().await);
    let skew = Arc::new(AtomicI64::new(0));
    let skewed = match stage.db() {
        Db::Sqlite => None,
        Db::Postgres => Some(server.skewed_node(&skew).await),
    };
    if let Some(node) = &skewed {
        node.gets_ready().await;
        skew.store(off, Ordering::SeqCst);
        node.fails_check("clock").await;
    }
    let shift = Duration::from_micros(off.unsigned_abs());
    match (&skewed, off > 0) {
        (Some(_), _) => {}
        (None, true) => server.advance(shift),
        (None, false) => server.set_back(shift),
    }
    let node = skewed.as_ref().unwrap_or(server);
    let mut browser = node.browser().from("192.0.2.1");
    let page = browser.opens(&web.at(&node.base).request(&[])).await;
    let answer = match page.status {
        503 => page,
        _ => browser.fills_in(&page, "user-0", PASSWORD).await,
    };
    // A node with this much clock skew refuses. An embedded database has no clock of its own.
    let expected = match stage.db() {
        Db::Sqlite => browser.cookies.contains_key("__Host-sid"),
        Db::Postgres => answer.status == 503,
    };
    stage.check(case, expected, || summary(&answer));
    match (skewed, off > 0) {
        (Some(skewed), _) => skewed.stop().await,
        (None, true) => server.set_back(shift),
        (None, false) => server.advance(shift),
    }
}

async fn a513_clock_jump_never_throttles_logins(stage: &Stage) {
    let names: Vec<String> = (0..4).map(|n| format!("user-{n}")).collect();
    for (case, off) in [(1, HOUR), (2, 100 * 24 * HOUR), (3, -HOUR / 6)] {
        let nodes = nodes(stage, |_| {}).await;
        let (server, web) = (&nodes[0], nodes[0].shop().await);
        users(server, &names).await;
        // One more login with the right clock, before and after.
        let mut login_form = LoginForm::opens(server, &web).await.from("192.0.2.1");
        stage.expect(case, passed(&login_form.tries("user-3", PASSWORD).await));
        signs_in_by_a_wrong_clock(stage, case, &nodes, off).await;
        for (n, name) in names.iter().enumerate() {
            let node = &nodes[n % nodes.len()];
            let mut login_form = LoginForm::opens(node, &web.at(&node.base))
                .await
                .from("192.0.2.1");
            stage.expect(case, passed(&login_form.tries(name, PASSWORD).await));
        }
        // The longest delay of the policy is the largest `Retry-After`.
        let mut login_form = LoginForm::opens(server, &web).await.from("192.0.2.1");
        for _ in 0..5 {
            stage.expect(case, failed(&login_form.tries("user-1", WRONG).await));
        }
        stage.expect(case, throttled(&login_form.tries("user-1", WRONG).await, 1));
        end(nodes).await;
    }
    journal::strike_out(|exchange| exchange.answer.status == 503 || exchange.target == "/readyz");
}

/// Checks for 503 with a short wait: other attempts are in progress, and none has failed. On a busy machine
/// an attempt may wait too long for the lock of a row.
fn busy(answer: &Answer) -> Result<(), String> {
    logged(answer, "login.busy", "").or(logged(answer, "storage.error", ""))?;
    let after: u64 = answer
        .header("retry-after")
        .and_then(|after| after.parse().ok())
        .unwrap_or(u64::MAX);
    if answer.status == 503 && after <= 5 {
        Ok(())
    } else {
        Err(format!("got {} after {after} s", summary(answer)))
    }
}

async fn a514_simultaneous_logins_are_not_throttled(stage: &Stage) {
    for (case, many, rounds) in [(1, 8, 6), (2, 40, 2), (3, 60, 2)] {
        let nodes = nodes(stage, |config| config.database.pool_size = 24).await;
        let web = nodes[0].shop().await;
        let names: Vec<String> = (0..many).map(|n| format!("user-{n}")).collect();
        users(&nodes[0], &names).await;
        for _ in 0..rounds {
            let mut tries = Vec::new();
            for (n, name) in names.iter().enumerate() {
                let (node, name) = (&nodes[n % nodes.len()], name.clone());
                let mut login_form = LoginForm::opens(node, &web.at(&node.base))
                    .await
                    .from("192.0.2.1");
                tries.push(
                    async move { (login_form.tries(&name, PASSWORD).await, login_form, name) },
                );
            }
            let tries: Vec<_> = tries.into_iter().map(actix_web::rt::spawn).collect();
            let mut later = Vec::new();
            for answer in tries {
                let (answer, login_form, name) = answer.await.unwrap();
                match answer.status {
                    200 => stage.expect(case, passed(&answer)),
                    _ => {
                        stage.expect(case, busy(&answer));
                        later.push((login_form, name));
                    }
                }
            }
            // A second submit succeeds, since no failure was counted.
            for (mut login_form, name) in later {
                let mut answer = login_form.tries(&name, PASSWORD).await;
                while answer.status == 503 {
                    answer = login_form.tries(&name, PASSWORD).await;
                }
                stage.expect(case, passed(&answer));
            }
        }
        let failures = "SELECT CAST(coalesce(sum(failures), 0) AS BIGINT) AS n FROM throttles";
        let failures = nodes[0].count(failures);
        stage.check(case, failures == 0, || format!("{failures} failures"));
        end(nodes).await;
    }
    // A double click.
    let (nodes, mut answers) = (nodes(stage, |_| {}).await, Vec::new());
    let web = nodes[0].shop().await;
    for round in 0..6 {
        let node = &nodes[round % nodes.len()];
        let login_form = LoginForm::opens(node, &web.at(&node.base)).await;
        let clicks = [login_form.clone(), login_form].map(|mut login_form| {
            actix_web::rt::spawn(async move { login_form.tries("alice", PASSWORD).await })
        });
        for click in clicks {
            answers.push(click.await.unwrap());
        }
    }
    for pair in answers.chunks(2) {
        let passes = pair.iter().filter(|answer| passed(answer).is_ok()).count();
        let others = pair.iter().filter(|answer| {
            passed(answer).is_ok()
                || busy(answer).is_ok()
                || logged(answer, "authorization.replay", "").is_ok()
        });
        stage.check(4, passes > 0 && others.count() == 2, || {
            format!("{} and {}", summary(&pair[0]), summary(&pair[1]))
        });
    }
    end(nodes).await;
    journal::strike_out(|exchange| exchange.answer.status == 503);
}

async fn a521_texts_that_are_no_user_names_have_counters_of_their_own(stage: &Stage) {
    let nodes = nodes(stage, |_| {}).await;
    let (server, web) = (&nodes[0], nodes[0].shop().await);
    for host in 1..=12 {
        let name = ["John Smith", "Jane Smith", "j@hn smith"][host % 3];
        let mut login_form = LoginForm::opens(server, &web)
            .await
            .from(&format!("192.0.{host}.1"));
        stage.expect(1, failed(&login_form.tries(name, WRONG).await));
    }
    let mut login_form = LoginForm::opens(server, &web).await.from("192.0.13.1");
    stage.expect(2, failed(&login_form.tries("Mary Major", WRONG).await));
    // Each text is throttled like a user name.
    for host in 14..=19 {
        let mut login_form = LoginForm::opens(server, &web)
            .await
            .from(&format!("192.0.{host}.1"));
        stage.expect(3, failed(&login_form.tries("John Smith", WRONG).await));
    }
    let mut login_form = LoginForm::opens(server, &web).await.from("192.0.20.1");
    stage.expect(
        4,
        throttled(&login_form.tries("John Smith", WRONG).await, 30),
    );
    end(nodes).await;
}

async fn a530_login_burst_leaves_connections_to_clients_and_node(stage: &Stage) {
    let nodes = nodes(stage, |config| config.database.pool_size = 16).await;
    let (server, web) = (&nodes[0], nodes[0].shop().await);
    let mut tokens = web.redeems(&server.browser().allows(&web).await).await.ok();
    let login_form = LoginForm::opens(server, &web).await;
    // On PostgreSQL every sign-in waits for this lock, so that those in progress hold their connections.
    // An embedded database has one writer, which needs none.
    let is_locked = stage.db() == Db::Postgres;
    let url = server.config.database_url();
    let lock = tokio::task::spawn_blocking(move || {
        let mut look = Look::at(&url);
        if is_locked {
            look.execute("BEGIN; LOCK TABLE throttles");
        }
        look
    });
    let lock = lock.await.unwrap();
    let burst: Vec<_> = (0..200)
        .map(|n| {
            let mut login_form = login_form.clone().from(&format!("10.0.{n}.1"));
            actix_web::rt::spawn(async move { login_form.tries("alice", WRONG).await })
        })
        .collect();
    let begun = Instant::now();
    while is_locked
        && server.app.store.waiting_pages() < 40
        && begun.elapsed() < Duration::from_secs(10)
    {
        actix_web::rt::task::yield_now().await;
    }
    for _ in 0..20 {
        let answer = web.refreshes(tokens.refresh(), &[]).await;
        stage.check(1, answer.status == 200, || summary(&answer));
        if answer.status == 200 {
            tokens = answer.ok();
        }
        let begun = Instant::now();
        let polled = server.app.poll().await;
        let took = begun.elapsed();
        stage.check(2, polled.is_ok() && took < Duration::from_secs(1), || {
            format!("{polled:?} after {took:?}")
        });
        let sealed = server.app.write_acks_and_seals().await;
        stage.check(3, sealed.is_ok(), || format!("{sealed:?}"));
        let (status, failed) = server.readiness().await;
        stage.check(4, status == 200, || format!("{status} {failed:?}"));
    }
    drop(lock);
    let mut surplus = 0;
    for answer in burst {
        let answer = answer.await.unwrap();
        if answer.status == 503 {
            surplus += usize::from(logged(&answer, "login.busy", "").is_ok());
            stage.check(5, answer.header("retry-after") == Some("2"), || {
                format!("{:?}", answer.headers)
            });
        }
    }
    stage.check(5, surplus >= 100 || !is_locked, || {
        format!("{surplus} were told to come back")
    });
    let mut login_form = LoginForm::opens(server, &web).await.from("192.0.2.9");
    stage.expect(6, passed(&login_form.tries("bob", PASSWORD).await));
    end(nodes).await;
    journal::strike_out(|exchange| exchange.answer.status == 503 || exchange.target == "/readyz");
}
