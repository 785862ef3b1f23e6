//! F01, F03, F04, F06, F08, F09, F33: Postgres dies, is busy, slow, or out of reach, and nodes are
//! killed, while people shop.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};

use crate::fixtures::Browser;
use crate::fixtures::Look;
use crate::fixtures::cluster::Cluster;
use crate::fixtures::installation::{Installation, Running};
use crate::fixtures::relay::Relay;
use crate::fixtures::site::{Site, asks, base, management};
use crate::load_clients::{Promises, Shopper, are_honoured, reached, redeemed, signed_in};
use crate::runs;

/// How many people shop at each node.
const SHOPPERS: usize = 2;
/// Until a node that was all right takes requests again: the catalogue's two seconds, on a machine that
/// has a second server and a database to start.
const BACK_IN: Duration = Duration::from_secs(5);

/// One database, its nodes, and alice signed in.
pub struct House {
    pub site: Site,
    pub nodes: Vec<Running>,
    pub alice: Browser,
    pub promises: RefCell<Promises>,
}

impl House {
    /// On the database of a installation, with nodes that have these settings besides.
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

    /// People shop at these nodes until all that happens meanwhile has happened.
    pub async fn open_for(&self, nodes: &[&Running], meanwhile: impl Future<Output = ()>) {
        let over = Cell::new(false);
        let shoppers: Vec<_> = nodes
            .iter()
            .flat_map(|node| (0..SHOPPERS).map(|_| base(node)))
            .map(|base| Shopper::new(&self.site, &base, &self.alice, &self.promises))
            .collect();
        let shopping = join_all(shoppers.iter().map(|shopper| shopper.shops_until(&over)));
        let meanwhile = async {
            meanwhile.await;
            over.set(true);
        };
        join(shopping, meanwhile).await;
    }

    /// How many requests are answered in so long.
    async fn rate(&self, nodes: &[&Running], span: Duration) -> usize {
        let before = self.promises.borrow().took.len();
        self.open_for(nodes, tokio::time::sleep(span)).await;
        self.promises.borrow().took.len() - before
    }

    /// Check K: what was answered is stored, enforced at every node and in the feed; the feed has no
    /// gap; each ring has one generation of a number; the audit log is whole.
    pub fn keeps_its_word(&self) {
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

    /// Until a count is zero.
    #[track_caller]
    fn waits_until(&self, query: &str) {
        let begun = Instant::now();
        while self.site.installation.count(query) != 0 {
            assert!(begun.elapsed() < Duration::from_secs(10), "{query}");
            std::thread::yield_now();
        }
    }

    /// How long a node takes until it gives a code again.
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

/// Something that takes its time, beside what is asynchronous.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// People shop a little: so many milliseconds, other ones in each round.
async fn moment(round: u64) {
    tokio::time::sleep(Duration::from_millis(100 + round * 137 % 300)).await;
}

/// What needs no database is answered, twenty times each; the longest that it took.
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
    let house = House::open(installation, &[&[], &[], &[]]);
    let nodes: Vec<&Running> = house.nodes.iter().collect();
    let (mut slowest, mut rates) = (Duration::ZERO, Vec::new());
    runs(async {
        rates.push(house.rate(&nodes, Duration::from_secs(1)).await);
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
                    slowest = slowest.max(house.is_back(node).await);
                }
            }
        };
        house.open_for(&nodes, blows).await;
        // Whoever else works on this machine may have its share for a while.
        while rates.len() < 6 && rates.iter().skip(1).all(|rate| rate * 2 <= rates[0]) {
            rates.push(house.rate(&nodes, Duration::from_secs(1)).await);
        }
    });
    let (refused, codes) = {
        let promises = house.promises.borrow();
        (promises.refused, promises.codes.len())
    };
    println!(
        "{rounds} times: {codes} codes, {refused} answers of 503, back after {slowest:?} at most; {rates:?} requests a second before and after"
    );
    assert!(codes > 20 && refused > 0);
    // The catalogue wants 95 %; a second of two busy cores tells no more than this.
    assert!(rates[rates.len() - 1] * 2 > rates[0], "{rates:?}");
    house.keeps_its_word();
}

/// F01, scaled from 200 rounds. What was on its way is answered with 503 or, asked again, as if nothing
/// had been; nothing that was confirmed is lost.
#[test]
fn f01_killed_postgres_causes_only_503() {
    let _turn = crate::alone();
    three_nodes_survive(5, Cluster::is_killed);
}

/// F33 on Postgres: stopped without a flush, started from its log.
#[test]
fn f33_postgres_power_cut_loses_no_confirmed_write() {
    let _turn = crate::alone();
    three_nodes_survive(3, Cluster::loses_power);
}

/// F03: somebody holds a lock that every refresh needs, while hundreds come.
#[test]
fn f03_exhausted_pool_answers_503_and_serves_keys() {
    let _turn = crate::alone();
    let pool = ("PORTCULLIS__DATABASE__POOL_SIZE", "4");
    let house = House::open(Installation::on_postgres(), &[&[pool]]);
    let node = &house.nodes[0];
    let (public, probes) = (base(node), management(node));
    let web = house.site.web(&public);
    runs(async {
        let tokens = web
            .redeems(&house.alice.at(&public).allows(&web).await)
            .await
            .ok();
        let url = house.site.installation.database.as_deref().unwrap();
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
        // Each waits half a second for the pool, or a second for the lock.
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        holder.execute("ROLLBACK");
        web.refreshes(tokens.refresh(), &[]).await.ok();
    });
}

/// Lets a fifth of the writes to grants and codes fail as a busy database makes them fail.
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

/// F04: whoever loses a conflict is told to come back, and has used nothing up.
#[test]
fn f04_serialization_failures_answer_503_and_consume_nothing() {
    let _turn = crate::alone();
    let house = House::open(Installation::on_postgres(), &[&[], &[]]);
    let nodes: Vec<&Running> = house.nodes.iter().collect();
    house.site.installation.execute(BUSY);
    runs(async {
        house
            .open_for(&nodes, reached(&house.promises, |load| load.refused > 5))
            .await;
    });
    let quiet =
        "DROP TRIGGER busy ON grants; DROP TRIGGER busy ON codes; DROP FUNCTION fail_now_and_then";
    house.site.installation.execute(quiet);
    let refused = house.promises.borrow().refused;
    println!(
        "{refused} of {} were asked to come back",
        house.promises.borrow().took.len()
    );
    assert!(refused > 5);
    house.keeps_its_word();
}

/// A node whose way to the database is a relay, and if wanted one beside it.
fn behind(relay: &Relay, beside: bool) -> House {
    let installation = Installation::on_postgres();
    let url = relay.through(installation.database.as_deref().unwrap());
    let way: &[(&str, &str)] = &[("PORTCULLIS__DATABASE__URL", &url)];
    let nodes: &[&[(&str, &str)]] = if beside { &[way, &[]] } else { &[way] };
    House::open(installation, nodes)
}

/// F06: each answer of the database comes half a second late, and later one message in a hundred
/// is answered by hanging up.
#[test]
fn f06_slow_database_delays_or_answers_503() {
    let _turn = crate::alone();
    let relay = Relay::new().expect("the Postgres of the tests is reached over its socket");
    let house = behind(&relay, false);
    let node = &house.nodes[0];
    let public = base(node);
    let web = house.site.web(&public);
    runs(async {
        let tokens = web
            .redeems(&house.alice.at(&public).allows(&web).await)
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
        // Few connections, each as slow as its database: the others are not kept waiting.
        assert!(good > 0 && good < 100);
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");

        relay.is_flaky();
        house
            .open_for(&[node], tokio::time::sleep(Duration::from_secs(3)))
            .await;
        relay.heals();
        house.is_back(node).await;
        house.open_for(&[node], redeemed(&house.promises, 10)).await;
    });
    assert!(house.promises.borrow().refused > 0);
    house.keeps_its_word();
}

/// F08: one of two nodes is cut off, in both directions and in each. That it signs nothing once its
/// lease is over is in `tests/rotation/faults.rs`; that its feed stands still, in A330.
#[test]
fn f08_disconnected_node_is_not_ready_and_others_serve() {
    let _turn = crate::alone();
    let relay = Relay::new().expect("the Postgres of the tests is reached over its socket");
    let house = behind(&relay, true);
    let (cut, whole) = (&house.nodes[0], &house.nodes[1]);
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
            house.open_for(&[whole], outage).await;
            assert_eq!(house.promises.borrow().refused, 0, "the other node felt it");
            relay.heals();
            let back = house.is_back(cut).await;
            let begun = Instant::now();
            while asks(&probes, "/readyz").await.0 != 200 {
                assert!(begun.elapsed() < BACK_IN);
                tokio::task::yield_now().await;
            }
            println!("back after {back:?}, ready {:?} later", begun.elapsed());
        }
        house
            .open_for(&[cut, whole], redeemed(&house.promises, 20))
            .await;
    });
    house.keeps_its_word();
}

/// F09, at random moments: nodes are killed in turn while people shop at the others, and come back.
/// The named places are A197 and A328, and `tests/rotation/processes.rs` for keys.
#[test]
fn f09_killed_nodes_lose_no_confirmed_write() {
    let _turn = crate::alone();
    let mut house = House::open(Installation::on_postgres(), &[&[], &[], &[]]);
    for round in 0..9 {
        let killed = round % 3;
        let nodes: Vec<&Running> = house.nodes.iter().collect();
        runs(house.open_for(&nodes, async {
            moment(round as u64).await;
            nodes[killed].signal("-KILL");
            moment(round as u64 + 1).await;
        }));
        house.nodes[killed] = house.site.installation.serve(&[]);
    }
    let codes = house.promises.borrow().codes.len();
    println!("9 kills: {codes} codes redeemed, none lost");
    assert!(codes > 20);
    house.keeps_its_word();
}
