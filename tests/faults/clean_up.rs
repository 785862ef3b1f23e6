//! F34: a clean-up of very many rows is killed halfway.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crate::fixtures::installation::{Installation, Running};
use crate::fixtures::site::{Site, base};
use crate::load_clients::{LoadClient, Promises, signed_in};
use crate::runs;

/// Rows of each kind that are still active among the expired ones.
const LIVING: i64 = 500;

/// The rows of this test, by table: the condition that selects them, and the condition for those that have
/// expired.
const KINDS: [(&str, &str, &str); 4] = [
    (
        "authorizations",
        "id LIKE 'old-%'",
        "expires_at < 9000000000000000",
    ),
    (
        "codes",
        "grant_id LIKE 'old-%'",
        "expires_at < 9000000000000000",
    ),
    ("grants", "id LIKE 'old-%'", "expires_at < 9000000000000000"),
    (
        "sessions",
        "sid LIKE 'old-%'",
        "expires_at < 9000000000000000",
    ),
];

/// Inserts this many unanswered authorizations, and a quarter as many logins, grants and codes. All but a few
/// of each expired long ago. The last login has expired as well, but an active grant depends on it.
fn abandoned(site: &Site, rows: i64) {
    let (quarter, blob) = match site.installation.database {
        None => (rows / 4, "CAST('old-' || n AS BLOB)"),
        Some(_) => (rows / 4, "convert_to('old-' || n, 'UTF8')"),
    };
    let numbers = |rows: i64| {
        let all = rows + LIVING;
        match site.installation.database {
            None => format!(
                "(WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {all}) SELECT n FROM numbers) AS numbers"
            ),
            Some(_) => format!("generate_series(1, {all}) AS numbers (n)"),
        }
    };
    let end = |rows: i64| format!("CASE WHEN n > {rows} THEN 9000000000000000 ELSE n END");
    let (client, user) = (&site.client_id, "'many'");
    let (many, some) = (numbers(rows), numbers(quarter));
    let (soon, later) = (end(rows), end(quarter));
    site.installation.execute(&format!(
        "INSERT INTO users (id, username, email_verified, claims, created_at, updated_at)
         VALUES ({user}, 'many', FALSE, '{{}}', 1, 1);
         INSERT INTO authorizations (id, client_id, params, state, created_at, expires_at)
         SELECT 'old-' || n, '{client}', '', 'begun', 1, {soon} FROM {many};
         INSERT INTO sessions (id_hash, sid, user_id, user_epoch, auth_time, acr, amr, seen_at, expires_at)
         SELECT {blob}, 'old-' || n, {user}, 1, 1, '', '[]', 1, {later} FROM {some};
         INSERT INTO grants (id, client_id, user_id, sid, offline, scope, resources, auth_time, acr, amr,
                             client_epoch, user_epoch, feed_epoch, generation, rotated_at, idle_until, expires_at, created_at)
         SELECT 'old-' || n, '{client}', {user}, 'old-' || n, FALSE, 'openid', '[]', 1, '', '[]', 1, 1, 1, 1, 1, {later}, {later}, 1 FROM {some};
         INSERT INTO codes (hash, grant_id, client_id, redirect_uri, redirect_uri_sent, expires_at)
         SELECT {blob}, 'old-' || n, '{client}', '', TRUE, {later} FROM {some};
         UPDATE sessions SET expires_at = 1 WHERE sid = 'old-{}'", quarter + LIVING
    ));
}

/// Returns how many of these rows have expired, and how many are active.
fn rows(site: &Site) -> (i64, Vec<i64>) {
    let count = |table: &str, condition: String| {
        site.installation.count(&format!(
            "SELECT count(*) AS n FROM {table} WHERE {condition}"
        ))
    };
    let mut expired = 0;
    let mut living = Vec::new();
    for (table, ours, ended) in KINDS {
        expired += count(table, format!("{ours} AND {ended}"));
        living.push(count(table, format!("{ours} AND NOT ({ended})")));
    }
    (expired, living)
}

/// Runs the load of four clients for a while.
async fn run_load(clients: &[LoadClient<'_>], time: Duration) {
    let end = Some(Instant::now() + time);
    futures_util::future::join_all(clients.iter().map(|one| one.repeats(end))).await;
}

/// Waits until a row is deleted. Looks it up by its key, because counting millions of rows would itself add
/// load.
async fn goes(site: &Site, table: &str, number: i64, nodes: &[&Running]) {
    let there = format!("SELECT count(*) AS n FROM {table} WHERE id = 'old-{number}'");
    let begun = Instant::now();
    while site.installation.count(&there) > 0 {
        if begun.elapsed() > Duration::from_secs(600) {
            let logs: Vec<_> = nodes.iter().map(|node| node.log()).collect();
            panic!("{:?} are left: {logs:#?}", rows(site));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn goes_on(installation: Installation, nodes: usize, many: i64) {
    let mut site = Site::open(installation);
    site.installation.told.push((
        "PORTCULLIS__LOG__LEVEL",
        "info,access=off,audit=off".to_owned(),
    ));
    let servers: Vec<_> = (0..nodes).map(|_| site.installation.serve(&[])).collect();
    let public = base(servers.last().unwrap());
    let (usual, meanwhile) = (RefCell::default(), RefCell::default());
    runs(async {
        let alice = signed_in(&site, &public).await;
        let four = |promises| -> Vec<LoadClient<'_>> {
            (0..4)
                .map(|_| LoadClient::new(&site, &public, &alice, promises))
                .collect()
        };
        run_load(&four(&usual), Duration::from_secs(2)).await;
        for server in servers {
            assert_eq!(server.stop(), Some(0));
        }
        abandoned(&site, many);
        let (all, _) = rows(&site);

        // The first clean-up begins with the server, which is killed halfway.
        let first = site.installation.serve(&[]);
        goes(&site, "grants", many / 8, &[&first]).await;
        first.signal("-KILL");
        drop(first);
        let (left, _) = rows(&site);
        assert!(left > all / 2, "not killed midway");

        // All nodes start again under load, and the clean-up continues.
        let servers: Vec<_> = (0..nodes).map(|_| site.installation.serve(&[])).collect();
        let public = base(servers.last().unwrap());
        let clients: Vec<_> = (0..4)
            .map(|_| LoadClient::new(&site, &public, &alice, &meanwhile))
            .collect();
        let watched: Vec<_> = servers.iter().collect();
        let begun = Instant::now();
        let cleaned = async {
            goes(&site, "authorizations", many, &watched).await;
            begun.elapsed()
        };
        let (took, ()) = tokio::join!(cleaned, run_load(&clients, Duration::from_secs(3)));
        println!("{left} of {all} were left, gone after {took:?}");
        let begun = Instant::now();
        while rows(&site).0 > 1 {
            // The other kinds take turns with it, and each leaves the database as much time as it used.
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{:?}",
                rows(&site)
            );
        }
        // Except the login that an active grant depends on.
        let living = vec![LIVING, LIVING, LIVING, LIVING - 1];
        assert_eq!(rows(&site), (1, living));
        let done = |line: &str| line.contains("\"gc.done\"") && line.contains("\"took_ms\":");
        let begun = Instant::now();
        while !servers
            .iter()
            .any(|server| server.log().iter().any(|line| done(line)))
        {
            assert!(begun.elapsed() < Duration::from_secs(10), "no gc.done");
        }
        for server in &servers {
            let log = server.log();
            assert!(
                !log.iter().any(|line| line.contains("storage.error")),
                "{log:#?}"
            );
        }
        for server in servers {
            assert_eq!(server.stop(), Some(0));
        }
    });
    are_served(&usual.into_inner(), &meanwhile.into_inner());
}

/// Compares requests during a clean-up with those before: none fails, and the latency grows by a bounded
/// factor.
fn are_served(usual: &Promises, meanwhile: &Promises) {
    assert_eq!((&usual.failed, &meanwhile.failed), (&vec![], &vec![]));
    for percent in [50, 99] {
        println!(
            "p{percent}: {:?}, during the clean-up {:?}",
            usual.percentile(percent),
            meanwhile.percentile(percent)
        );
    }
    println!(
        "{} requests in 2 s, {} in 3 s",
        usual.took.len(),
        meanwhile.took.len()
    );
    let (before, after) = (usual.percentile(50), meanwhile.percentile(50));
    assert!(
        after < before * 10 + Duration::from_millis(50),
        "{before:?}, then {after:?}"
    );
    assert!(meanwhile.percentile(99) < Duration::from_secs(2));
}

/// F34 with 350,000 rows instead of 50,000,000, and two nodes.
#[test]
fn f34_killed_clean_up_resumes_on_postgres() {
    let _turn = crate::alone();
    goes_on(Installation::on_postgres(), 2, 200_000);
}

#[test]
fn f34_killed_clean_up_resumes_on_sqlite() {
    let _turn = crate::alone();
    goes_on(Installation::new(), 1, 80_000);
}

#[test]
#[ignore = "slow: three and a half million rows"]
fn f34_killed_clean_up_resumes_with_millions_of_rows() {
    let _turn = crate::alone();
    goes_on(Installation::on_postgres(), 3, 2_000_000);
}
