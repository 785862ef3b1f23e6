//! F34: a clean-up with a great deal to do, killed in the middle of it.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crate::cast::place::{Place, Running};
use crate::cast::site::{Site, base};
use crate::shoppers::{Promises, Shopper, signed_in};
use crate::storage::runs;

/// Rows that live on among those that have expired.
const LIVING: i64 = 500;

/// Authorizations that ended unanswered: so many that expired long ago, and some that did not.
fn abandoned(site: &Site, rows: i64) {
    let all = rows + LIVING;
    let numbers = match site.place.database {
        None => format!(
            "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {all}) SELECT n FROM numbers"
        ),
        Some(_) => format!("SELECT n FROM generate_series(1, {all}) AS g (n)"),
    };
    site.place.execute(&format!(
        "INSERT INTO authorizations (id, client_id, params, state, created_at, expires_at)
         SELECT 'old-' || n, '{}', '', 'begun', 1, CASE WHEN n > {rows} THEN 9000000000000000 ELSE n END
         FROM ({numbers}) AS numbers",
        site.client_id
    ));
}

fn expired(site: &Site) -> i64 {
    site.place.count("SELECT count(*) AS n FROM authorizations WHERE id LIKE 'old-%' AND expires_at < 9000000000000000")
}

/// Shops for a while, as four people do.
async fn shop(shoppers: &[Shopper<'_>], time: Duration) {
    let end = Some(Instant::now() + time);
    futures_util::future::join_all(shoppers.iter().map(|one| one.shops(end))).await;
}

/// Waits until fewer than so many have expired; how long that took.
async fn falls_below(site: &Site, rows: i64, nodes: &[&Running]) -> Duration {
    let begun = Instant::now();
    while expired(site) >= rows {
        let logs: Vec<_> = nodes.iter().map(|node| node.log()).collect();
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "{} are left: {logs:#?}",
            expired(site)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    begun.elapsed()
}

fn goes_on(place: Place, nodes: usize, rows: i64) {
    let mut site = Site::open(place);
    site.place.told.push((
        "PORTCULLIS__LOG__LEVEL",
        "info,access=off,audit=off".to_owned(),
    ));
    let servers: Vec<_> = (0..nodes).map(|_| site.place.serve(&[])).collect();
    let public = base(servers.last().unwrap());
    let (usual, meanwhile) = (RefCell::default(), RefCell::default());
    runs(async {
        let alice = signed_in(&site, &public).await;
        let four = |promises| -> Vec<Shopper<'_>> {
            (0..4)
                .map(|_| Shopper::new(&site, &public, &alice, promises))
                .collect()
        };
        shop(&four(&usual), Duration::from_secs(2)).await;
        for server in servers {
            assert_eq!(server.stop(), Some(0));
        }
        abandoned(&site, rows);

        // The first clean-up begins with the server; it is killed in the middle.
        let first = site.place.serve(&[]);
        falls_below(&site, rows * 9 / 10, &[&first]).await;
        first.signal("-KILL");
        drop(first);
        let left = expired(&site);
        assert!(left > 0, "all gone already: not killed midway");

        // All nodes start again, people shop meanwhile, and it goes on where it was.
        let servers: Vec<_> = (0..nodes).map(|_| site.place.serve(&[])).collect();
        let public = base(servers.last().unwrap());
        let shoppers: Vec<_> = (0..4)
            .map(|_| Shopper::new(&site, &public, &alice, &meanwhile))
            .collect();
        let watched: Vec<_> = servers.iter().collect();
        let (took, ()) = tokio::join!(
            falls_below(&site, 1, &watched),
            shop(&shoppers, Duration::from_secs(3))
        );
        println!("{left} of {rows} were left, gone after {took:?}");
        assert_eq!(
            site.place
                .count("SELECT count(*) AS n FROM authorizations WHERE id LIKE 'old-%'"),
            LIVING
        );
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

/// Requests beside a clean-up: none fails, and they take longer by a bounded factor.
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

#[test]
fn f34_a_clean_up_killed_midway_goes_on_under_postgres() {
    let _turn = crate::alone();
    goes_on(Place::on_postgres(), 2, 400_000);
}

#[test]
fn f34_a_clean_up_killed_midway_goes_on_under_sqlite() {
    let _turn = crate::alone();
    goes_on(Place::new(), 1, 150_000);
}

#[test]
#[ignore = "slow: two million rows"]
fn f34_a_clean_up_killed_midway_goes_on_with_two_million_rows() {
    let _turn = crate::alone();
    goes_on(Place::on_postgres(), 3, 2_000_000);
}
