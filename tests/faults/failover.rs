//! F02, F05: the database fails over, or the address leads to a server that accepts no writes. `/readyz` must
//! name each reason for a 503.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::fixtures::client::header;
use crate::fixtures::cluster::Cluster;
use crate::fixtures::installation::{Installation, Running, refused};
use crate::fixtures::relay::Relay;
use crate::fixtures::server::{AUDIENCE, confidential};
use crate::fixtures::site::{asks, base, management};
use crate::fixtures::{Answer, Browser, Db, Look, Server, TestClient, postgres};
use crate::load_clients::redeemed;
use crate::postgres::{NodeGroup, aside};
use crate::runs;

/// The time until a node serves again once its address leads to the primary.
const BACK_IN: Duration = Duration::from_secs(5);

/// A primary with a standby, and an installation whose nodes reach them through a relay.
struct Pair {
    primary: Cluster,
    standby: Cluster,
    relay: Relay,
    /// The database on the primary, without the relay.
    url: String,
}

impl Pair {
    fn new() -> Self {
        let primary = Cluster::new();
        Self {
            relay: Relay::before(primary.folder()),
            url: primary.database(),
            standby: primary.standby(),
            primary,
        }
    }

    /// Returns the URL of the same database on the standby.
    fn promoted(&self) -> String {
        self.standby.url(postgres::name(&self.url))
    }

    /// Starts a node that uses the relay.
    fn group(&self) -> NodeGroup {
        let installation = migrated(self.url.clone());
        let way = self.relay.through(&self.url);
        NodeGroup::open(installation, &[&[("PORTCULLIS__DATABASE__URL", &way)]])
    }
}

/// Creates an installation on an empty database, and migrates its schema.
fn migrated(url: String) -> Installation {
    let mut installation = Installation::new();
    installation.database = Some(url);
    installation.done(&["migrate", "up"]);
    installation.done(&["keys", "generate-kek", "--out", "keys/kek"]);
    installation
}

/// Returns the status of `/readyz`, and the failed checks.
async fn readiness(node: &Running) -> (u16, Vec<String>) {
    let (status, body) = asks(&management(node), "/readyz").await;
    let said: serde_json::Value = serde_json::from_str(&body).unwrap();
    let checks = said["checks"].as_object().unwrap();
    let failed = checks.iter().filter(|(_, word)| *word != "ok");
    (status, failed.map(|(name, _)| name.clone()).collect())
}

/// Waits until `/readyz` has this status, and names this check if one is given.
async fn becomes(node: &Running, wanted: u16, check: Option<&str>) -> Duration {
    let begun = Instant::now();
    loop {
        let (status, failed) = readiness(node).await;
        let named = check.is_none_or(|check| failed.iter().any(|name| name == check));
        if status == wanted && named {
            return begun.elapsed();
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{wanted} {check:?}: {status} {failed:?}: {:#?}",
            node.log()
        );
    }
}

async fn asks_for_token(client: &TestClient) -> Answer {
    let fields = [("grant_type", "client_credentials"), ("resource", AUDIENCE)];
    client.posts("/oauth2/token", &fields).await
}

/// Registers a client of the client credentials grant.
fn robot(group: &NodeGroup) -> TestClient {
    let create = ["client", "create", "--name", "Robot", "--format", "json"];
    let may = ["--grant-type", "client_credentials", "--resource", AUDIENCE];
    let made = group.site.installation.done(&[&create[..], &may].concat());
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let client = confidential(made["client_id"].as_str().unwrap(), "");
    let secret = portcullis::secret::Secret::from_text(made["client_secret"].as_str().unwrap());
    TestClient::new(&base(&group.nodes[0]), client, Some(secret))
}

/// Runs load for a while, and asserts that all acknowledged writes are kept.
fn keeps_acknowledged_writes(group: &NodeGroup) {
    let nodes: Vec<&Running> = group.nodes.iter().collect();
    runs(group.open_for(&nodes, redeemed(&group.promises, 20)));
    group.keeps_acknowledged_writes();
}

/// R32: the address led to a standby for a while. The node served 503 for half an hour, because its pool kept
/// the connections, and reported that it was ready.
#[test]
fn node_recovers_when_its_address_leads_to_the_primary() {
    let _turn = crate::alone();
    let pair = Pair::new();
    let group = pair.group();
    let node = &group.nodes[0];
    let request = group.site.web(&base(node)).request(&[]);
    let mut alice = group.alice.at(&base(node));
    runs(async {
        for _ in 0..2 {
            pair.relay.leads_to(pair.standby.folder());
            pair.relay.hangs_up();
            let unready = becomes(node, 503, Some("database")).await;
            // A standby stays read-only, so waiting does not help.
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(4) {
                assert_eq!(readiness(node).await.0, 503);
                assert!(alice.get(&request).await.callback("code").is_none());
            }
            pair.relay.leads_to(pair.primary.folder());
            let begun = Instant::now();
            group.is_back(node).await;
            let back = begun.elapsed();
            becomes(node, 200, None).await;
            println!("not ready after {unready:?}; served after {back:?}");
            assert!(begun.elapsed() < BACK_IN, "{:?}", begun.elapsed());
        }
    });
    keeps_acknowledged_writes(&group);
}

/// R32: after a failover the address leads to the old primary, which is now a standby without a primary. The
/// node continued to sign for a disabled client, with a revoked key.
#[test]
fn read_only_database_is_not_ready_and_stops_signing() {
    let _turn = crate::alone();
    let pair = Pair::new();
    let mut group = pair.group();
    let (good, bad) = (robot(&group), robot(&group));
    let promoted = pair.promoted();
    runs(async {
        assert_eq!(asks_for_token(&good).await.status, 200);
        let kid = header(asks_for_token(&bad).await.ok().access())["kid"]
            .as_str()
            .unwrap()
            .to_owned();
        pair.primary.is_followed_by(&pair.standby);
        pair.standby.is_promoted();
        pair.primary.is_demoted();
        let begun = Instant::now();
        group.site.installation.database = Some(promoted.clone());
        let installation = &group.site.installation;
        installation.done(&["client", "disable", bad.id()]);
        installation.done(&["keys", "revoke", &kid, "--reason", "leaked", "--yes"]);
        let node = &group.nodes[0];
        becomes(node, 503, Some("database")).await;
        println!("not ready {:?} after the failover", begun.elapsed());
        // The lease is 30 s. A token that needs the database is refused earlier.
        while asks_for_token(&bad).await.status == 200 {
            assert!(begun.elapsed() < Duration::from_secs(30), "still signing");
        }
        println!("no signature {:?} after the failover", begun.elapsed());
        while begun.elapsed() < Duration::from_secs(12) {
            for client in [&good, &bad] {
                let answer = asks_for_token(client).await;
                assert_eq!(answer.status, 503, "{}", answer.body);
            }
        }
        becomes(node, 503, Some("write")).await;
        // `doctor`, which an operator runs there, reports the cause.
        let stale = [("PORTCULLIS__DATABASE__URL", pair.url.as_str())];
        for command in [["user", "list"].as_slice(), &["migrate", "up"]] {
            refused(&installation.run(command, &stale), 69, "accepts no writes");
        }
        let doctor = installation.run(&["doctor"], &stale);
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(
            said.lines()
                .any(|line| line.starts_with("fail  database") && line.contains("no writes")),
            "{said}"
        );

        pair.relay.leads_to(pair.standby.folder());
        let begun = Instant::now();
        // The lease has not expired, so the key that is revoked there may sign until the first poll.
        let signs_anew = async || {
            let answer = asks_for_token(&good).await;
            answer.status == 200 && header(answer.ok().access())["kid"] != kid.as_str()
        };
        while !signs_anew().await {
            assert!(begun.elapsed() < BACK_IN, "{:#?}", node.log());
        }
        println!("served again after {:?}", begun.elapsed());
        assert_eq!(asks_for_token(&bad).await.status, 401);
        becomes(node, 200, None).await;
    });
    keeps_acknowledged_writes(&group);
}

/// The primary itself accepts no writes for a while: `default_transaction_read_only`, as set by operators,
/// and by database hosts whose disk is full.
#[test]
fn default_transaction_read_only_is_not_ready_and_heals() {
    let _turn = crate::alone();
    let cluster = Cluster::new();
    let relay = Relay::before(cluster.folder());
    let url = cluster.database();
    let way = relay.through(&url);
    let group = NodeGroup::open(migrated(url), &[&[("PORTCULLIS__DATABASE__URL", &way)]]);
    let node = &group.nodes[0];
    // This connection was opened earlier, so it may undo the setting.
    let mut operator = Look::at(&cluster.url("postgres"));
    operator.execute("SET default_transaction_read_only = off");
    runs(async {
        for cut in [false, true] {
            operator.execute("ALTER SYSTEM SET default_transaction_read_only = on");
            operator.execute("SELECT pg_reload_conf()");
            if cut {
                relay.hangs_up();
            }
            becomes(node, 503, Some("database")).await;
            operator.execute("ALTER SYSTEM RESET default_transaction_read_only");
            operator.execute("SELECT pg_reload_conf()");
            let back = group.is_back(node).await;
            becomes(node, 200, None).await;
            println!("cut: {cut}; served again after {back:?}");
        }
    });
    keeps_acknowledged_writes(&group);
}

/// F02: the primary is killed under load and the synchronous standby is promoted. The URL names both.
#[test]
fn f02_failover_loses_no_acknowledged_write() {
    let _turn = crate::alone();
    let primary = Cluster::new();
    let standby = Arc::new(primary.standby());
    primary.replicates_synchronously();
    let url = primary.database();
    let both = format!(
        "host={},{}",
        primary.folder().display(),
        standby.folder().display()
    );
    let url = url.replace(&format!("host={}", primary.folder().display()), &both);
    let url = format!("{url}&target_session_attrs=read-write");
    let group = NodeGroup::open(migrated(url), &[&[], &[], &[]]);
    let nodes: Vec<&Running> = group.nodes.iter().collect();
    let slowest = std::cell::Cell::new(Duration::ZERO);
    runs(async {
        let failover = async {
            redeemed(&group.promises, 20).await;
            primary.is_killed();
            let promoted = standby.clone();
            aside(move || promoted.is_promoted()).await;
            for node in &nodes {
                slowest.set(slowest.get().max(group.is_back(node).await));
                becomes(node, 200, None).await;
            }
            redeemed(&group.promises, 20).await;
        };
        group.open_for(&nodes, failover).await;
    });
    let (refused, codes) = {
        let promises = group.promises.borrow();
        (promises.refused, promises.codes.len())
    };
    println!(
        "{codes} codes, {refused} answers of 503, back {:?} after the promotion",
        slowest.get()
    );
    // How many requests fail while there is no primary depends on the machine.
    assert!(codes > 10);
    for node in &group.nodes {
        assert!(!node.log().iter().any(|line| line.contains("db.restored")));
    }
    group.keeps_acknowledged_writes();
}

/// A file system becomes read-only under a running server, as after a disk error, and under a stopped one.
#[test]
fn read_only_sqlite_file_is_not_ready() {
    let _turn = crate::alone();
    let installation = Installation::new();
    let Some(disk) = Disk::that_fails(&installation.folder.join("data"), 32) else {
        return;
    };
    let site = crate::fixtures::site::Site::open(installation);
    let node = site.installation.serve(&[]);
    runs(async {
        becomes(&node, 200, None).await;
        disk.fails();
        let took = becomes(&node, 503, Some("write")).await;
        println!("not ready after {took:?}");
        let page = Browser::new(&base(&node))
            .opens(&site.web(&base(&node)).request(&[]))
            .await;
        assert_eq!(page.status, 503, "{}", page.body);
    });
    drop(node);
    let doctor = site.installation.run(&["doctor"], &[]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(
        said.lines()
            .any(|line| line.starts_with("fail  database") && line.contains("Read-only")),
        "{said}"
    );
    refused(
        &site.installation.run(&["user", "list"], &[]),
        69,
        "cannot be written to",
    );
    drop(disk);
}

/// Asserts that `/readyz` fails this check and that the endpoints respond with 503.
async fn endpoints_and_readiness_refuse(server: &Server, web: &TestClient, check: &str) {
    server.fails_check(check).await;
    let answer = web.refreshes("pcl_rt_none", &[]).await;
    assert_eq!(answer.status, 503, "{check}: {}", answer.body);
    let answer = server.browser().get(&web.request(&[])).await;
    assert!(
        answer.status == 503
            || answer.callback("error").as_deref() == Some("temporarily_unavailable"),
        "{check}: {} {}",
        answer.status,
        answer.body
    );
}

async fn is_served(server: &Server, web: &TestClient) {
    server.gets_ready().await;
    let answer = web.refreshes("pcl_rt_none", &[]).await;
    assert_eq!(answer.status, 400, "{}", answer.body);
}

#[test]
fn readyz_reports_each_cause_of_503() {
    let _turn = crate::alone();
    runs(async {
        for db in [Db::Sqlite, Db::Postgres] {
            let server = Server::start(db).await;
            let web = server.shop().await;
            is_served(&server, &web).await;

            // Another session holds the lock that each write needs, for longer than the lease.
            let mut holder = Look::at(&server.config.database_url());
            holder.execute(match db {
                Db::Sqlite => "BEGIN IMMEDIATE",
                Db::Postgres => "BEGIN; LOCK TABLE feed_head IN SHARE MODE",
            });
            server.advance(Duration::from_secs(31));
            endpoints_and_readiness_refuse(&server, &web, "write").await;
            endpoints_and_readiness_refuse(&server, &web, "keys").await;
            holder.execute("ROLLBACK");
            is_served(&server, &web).await;

            // Restored from an older copy.
            server.execute("UPDATE feed_head SET restored_at = 1");
            endpoints_and_readiness_refuse(&server, &web, "feed").await;
            server.execute("UPDATE feed_head SET restored_at = NULL");
            is_served(&server, &web).await;
            server.remove().await;
        }

        // Causes that need a server of their own.
        let relay = Relay::new().expect("the Postgres of the tests is reached over its socket");
        let server = Server::start(Db::Postgres).await;
        let off = Arc::new(AtomicI64::new(0));
        let url = server.config.database_url();
        let cut = server
            .node_with(|config| config.database.url = Some(relay.through(&url)))
            .await;
        let skewed = server.skewed_node(&off).await;
        let web = server.shop().await;
        let (at_cut, at_skewed) = (web.at(&cut.base), web.at(&skewed.base));
        is_served(&cut, &at_cut).await;
        is_served(&skewed, &at_skewed).await;

        relay.breaks();
        endpoints_and_readiness_refuse(&cut, &at_cut, "database").await;
        relay.heals();
        is_served(&cut, &at_cut).await;

        let name = postgres::name(&url).to_owned();
        let read_only = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
        postgres::execute(&read_only);
        relay.hangs_up();
        endpoints_and_readiness_refuse(&cut, &at_cut, "database").await;
        let reset = format!("ALTER DATABASE {name} RESET default_transaction_read_only");
        postgres::execute(&reset);
        is_served(&cut, &at_cut).await;

        off.store(-90_000_000, Ordering::SeqCst);
        endpoints_and_readiness_refuse(&skewed, &at_skewed, "clock").await;
        off.store(0, Ordering::SeqCst);
        skewed.app.poll().await.unwrap();
        server.advance(Duration::from_secs(6));
        is_served(&skewed, &at_skewed).await;

        cut.stop().await;
        skewed.stop().await;
        server.remove().await;
    });
}
