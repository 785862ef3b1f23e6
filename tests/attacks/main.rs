//! The attack catalogue, row by row: `attacks.tsv` says what must hold, `shipped.txt` what is due.
//!
//! `cargo test --test attacks -- [ROW | AREA]… [--sqlite | --postgres]`. Each row runs on a fresh
//! database, on SQLite with one node and on Postgres with three, and some rows of each area once more
//! over TLS (`--tls`: all of them). `ATTACKS_VERBOSE=1` prints each case.
#![allow(
    // tables of cases are tuples on purpose
    clippy::type_complexity,
    missing_docs, clippy::unwrap_used, clippy::expect_used
)]

#[path = "../fixtures/mod.rs"]
mod fixtures;

mod admin;
mod authorize;
mod authorize_session;
mod client_auth;
mod consent;
mod cut_off;
mod expect;
mod feed;
#[path = "../../crates/verifier/tests/verifier/feed_issuer.rs"]
#[allow(dead_code, reason = "the verifier's tests use all of it")]
mod feed_issuer;
mod hostile_feed;
mod http_tls;
mod introspection;
mod keys_jwt;
mod keys_use;
mod login;
mod logout;
mod navigation;
mod odd_peer;
mod process;
mod redirect_uri;
mod restores;
mod revocation;
#[path = "../../crates/verifier/tests/verifier/signer.rs"]
#[allow(dead_code, reason = "the verifier's tests use all of it")]
mod signer;
mod storage_supply;
mod throttle;
mod token_code;
mod token_refresh;
mod userinfo;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fixtures::{Browser, Db, Server, TestClient, journal};

const AREAS: &[&[Row]] = &[
    admin::ROWS,
    authorize::answers::ROWS,
    authorize::people::ROWS,
    authorize::requests::ROWS,
    authorize::values::ROWS,
    authorize_session::ROWS,
    client_auth::ROWS,
    consent::ROWS,
    cut_off::ROWS,
    feed::ROWS,
    hostile_feed::ROWS,
    http_tls::answers::ROWS,
    http_tls::handshakes::ROWS,
    http_tls::logs::ROWS,
    http_tls::requests::ROWS,
    http_tls::sockets::ROWS,
    introspection::ROWS,
    keys_jwt::ROWS,
    keys_use::ROWS,
    login::cookies::ROWS,
    login::forms::ROWS,
    odd_peer::ROWS,
    login::kinds::ROWS,
    login::pages::ROWS,
    login::passwords::ROWS,
    login::sessions::ROWS,
    logout::ROWS,
    navigation::ROWS,
    redirect_uri::ROWS,
    restores::ROWS,
    revocation::ROWS,
    storage_supply::ROWS,
    throttle::ROWS,
    token_code::answers::ROWS,
    token_code::codes::ROWS,
    token_code::kill::ROWS,
    token_code::requests::ROWS,
    token_code::tokens::ROWS,
    token_refresh::answers::ROWS,
    token_refresh::races::ROWS,
    token_refresh::reuse::ROWS,
    userinfo::ROWS,
];

/// Rows that are played once more over TLS, on SQLite: the way through each endpoint, cookies, headers,
/// bodies, and what only shows on a socket.
const OVER_TLS: &[&str] = &[
    "A001", "A050", "A082", "A110", "A128", "A132", "A160", "A180", "A188", "A210", "A246", "A453",
    "A454", "A458", "A460",
];

/// A row that hangs is a failed row; the slowest take a quarter of this on a busy machine.
const ROW_LIMIT: Duration = Duration::from_secs(180);

/// The code of one row of the catalogue.
pub struct Row {
    pub id: &'static str,
    pub run: for<'a> fn(&'a Stage) -> Pin<Box<dyn Future<Output = ()> + 'a>>,
}

/// Makes a [`Row`] of `async fn a050(stage: &Stage)`.
#[macro_export]
macro_rules! row {
    ($name:ident) => {
        $crate::Row {
            id: stringify!($name),
            run: |stage| Box::pin($name(stage)),
        }
    };
}

/// What a row plays on: a fresh database with its nodes.
pub struct Stage {
    pub server: Server,
    /// Further nodes; none on SQLite.
    pub nodes: Vec<Server>,
    results: RefCell<BTreeMap<usize, Vec<String>>>,
}

impl Stage {
    async fn build(db: Db, over_tls: bool) -> Self {
        let server = Server::with(db, |config| {
            // Rows ask more of one address than anybody does; those about limits bring their own server.
            config.limits.per_ip = 1_000_000;
            config.limits.per_client = 1_000_000;
            if over_tls {
                fixtures::tls::switch_on(config);
            }
        })
        .await;
        let mut nodes = Vec::new();
        if db == Db::Postgres {
            for _ in 0..2 {
                nodes.push(server.node().await);
            }
        }
        Self {
            server,
            nodes,
            results: RefCell::default(),
        }
    }

    pub fn db(&self) -> Db {
        self.server.db
    }

    /// All nodes.
    pub fn all(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.server).chain(&self.nodes)
    }

    /// The node for the n-th case: they take turns.
    pub fn node(&self, n: usize) -> &Server {
        let count = self.nodes.len() + 1;
        self.all().nth(n % count).unwrap()
    }

    /// What the poll of each running node does when the database says that a client changed.
    pub fn all_nodes_learn(&self) {
        for node in self.all() {
            node.app.registrations.forget();
        }
    }

    /// `web`, and alice's browser: signed in, with her consent remembered.
    pub async fn web_and_alice(&self) -> (TestClient, Browser) {
        let web = self.server.shop().await;
        let mut alice = self.server.browser();
        let back = alice.signs_in(&web, "alice").await;
        assert!(back.callback("code").is_some(), "{}", expect::seen(&back));
        (web, alice)
    }

    /// How many rows an attack could have written.
    pub fn rows(&self) -> i64 {
        let tables = ["sessions", "authorizations", "codes", "grants", "consents"];
        let counts = tables.map(|table| format!("(SELECT count(*) FROM {table})"));
        self.server
            .count(&format!("SELECT {} AS n", counts.join(" + ")))
    }

    /// Records a case. More than one check of a case must all hold.
    pub fn check(&self, case: usize, ok: bool, message: impl FnOnce() -> String) {
        let mut results = self.results.borrow_mut();
        let failures = results.entry(case).or_default();
        if !ok {
            let message = message();
            failures.push(message.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }

    /// Records what an assertion of [`expect`] found.
    pub fn expect(&self, case: usize, found: Result<(), String>) {
        let message = found.as_ref().err().cloned().unwrap_or_default();
        self.check(case, found.is_ok(), || message);
    }

    async fn end(self) {
        for node in self.nodes {
            node.stop().await;
        }
        self.server.remove().await;
    }
}

/// One line of the catalogue.
struct Listed {
    id: &'static str,
    area: &'static str,
}

fn catalogue() -> Vec<Listed> {
    include_str!("attacks.tsv")
        .lines()
        .skip(1)
        .map(|line| {
            let mut cells = line.split('\t');
            let (id, _tier, area) = (
                cells.next().unwrap(),
                cells.next().unwrap(),
                cells.next().unwrap(),
            );
            Listed { id, area }
        })
        .collect()
}

/// The ids that are due.
fn shipped(catalogue: &[Listed]) -> Result<BTreeSet<&'static str>, String> {
    let mut due = BTreeSet::new();
    for line in include_str!("shipped.txt")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let named = |listed: &&Listed| match line.strip_prefix("area ") {
            Some(area) => listed.area == area.trim(),
            None => listed.id == line,
        };
        let before = due.len();
        due.extend(catalogue.iter().filter(named).map(|listed| listed.id));
        if due.len() == before {
            return Err(format!(
                "shipped.txt: `{line}` names nothing new of the catalogue"
            ));
        }
    }
    Ok(due)
}

/// What the command line asks for.
struct Wanted {
    names: Vec<String>,
    databases: Vec<Db>,
    /// Everything that is asked for over TLS, and nothing in the clear.
    tls: bool,
}

impl Wanted {
    fn read() -> Self {
        let mut wanted = Self {
            names: Vec::new(),
            databases: Vec::new(),
            tls: false,
        };
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                "--sqlite" => wanted.databases.push(Db::Sqlite),
                "--postgres" => wanted.databases.push(Db::Postgres),
                "--tls" => wanted.tls = true,
                // Flags of the ordinary test harness, which `cargo test -- …` gives to all.
                flag if flag.starts_with('-') => {}
                name => wanted.names.push(name.to_owned()),
            }
        }
        if wanted.databases.is_empty() {
            wanted.databases = vec![Db::Sqlite, Db::Postgres];
        }
        wanted
    }

    fn names(&self, listed: &Listed) -> bool {
        self.names
            .iter()
            .any(|name| name.eq_ignore_ascii_case(listed.id) || name == listed.area)
    }
}

fn find(id: &str) -> Option<&'static Row> {
    AREAS
        .iter()
        .flat_map(|rows| rows.iter())
        .find(|row| row.id.eq_ignore_ascii_case(id))
}

static PASSED: AtomicUsize = AtomicUsize::new(0);
static FAILED: AtomicUsize = AtomicUsize::new(0);
/// Panics outside a row's own thread: in a server.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

thread_local! {
    /// The last panic of this row's thread.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static IS_RUNNER: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn main() -> ExitCode {
    // No row is ignored, so there is nothing to do where only the ignored tests run.
    if std::env::args().any(|argument| ["--list", "--ignored"].contains(&argument.as_str())) {
        return ExitCode::SUCCESS;
    }
    fixtures::log::collect();
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string().replace('\n', " ");
        if IS_RUNNER.get() {
            LAST_PANIC.with_borrow_mut(|last| *last = Some(text));
        } else {
            PANICS
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push(text);
        }
    }));
    let catalogue = catalogue();
    let due = match shipped(&catalogue) {
        Ok(due) => due,
        Err(problem) => {
            println!("FAIL {problem}\n0 passed, 1 failed");
            return ExitCode::FAILURE;
        }
    };
    let mut problems = strays(&catalogue);
    let wanted = Wanted::read();
    let chosen: Vec<&Listed> = catalogue
        .iter()
        .filter(|listed| {
            if wanted.names.is_empty() {
                due.contains(listed.id)
            } else {
                wanted.names(listed) && (due.contains(listed.id) || find(listed.id).is_some())
            }
        })
        .collect();
    // A few at a time: each takes the next row that nobody has.
    let mut jobs: Vec<(&str, Db, bool)> = chosen
        .iter()
        .flat_map(|listed| {
            let databases = wanted.databases.iter();
            databases.map(|db| (listed.id, *db, wanted.tls))
        })
        .collect();
    if !wanted.tls && wanted.databases.contains(&Db::Sqlite) {
        let again = chosen.iter().filter(|listed| OVER_TLS.contains(&listed.id));
        jobs.extend(again.map(|listed| (listed.id, Db::Sqlite, true)));
    }
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                IS_RUNNER.set(true);
                while let Some((id, db, tls)) = jobs.get(next.fetch_add(1, Ordering::SeqCst)) {
                    play(id, *db, *tls);
                }
            });
        }
    });
    problems.extend(
        PANICS
            .lock()
            .unwrap()
            .drain(..)
            .map(|panic| format!("panic in a server: {panic}")),
    );
    for problem in &problems {
        println!("FAIL {problem}");
    }
    println!("{} rows are not yet due", catalogue.len() - due.len());
    let failed = FAILED.load(Ordering::SeqCst) + problems.len();
    println!("{} passed, {failed} failed", PASSED.load(Ordering::SeqCst));
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Rows of ours that the catalogue does not have, or that stand twice.
fn strays(catalogue: &[Listed]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut problems = Vec::new();
    for row in AREAS.iter().flat_map(|rows| rows.iter()) {
        if !catalogue
            .iter()
            .any(|listed| listed.id.eq_ignore_ascii_case(row.id))
        {
            problems.push(format!("{} is not in the catalogue", row.id));
        }
        if !seen.insert(row.id) {
            problems.push(format!("{} stands twice", row.id));
        }
    }
    problems
}

/// Runs one row on one database and prints what came of it.
fn play(id: &'static str, db: Db, tls: bool) {
    let started = std::time::Instant::now();
    let results = match find(id) {
        Some(row) => actix_web::rt::System::new().block_on(perform(row, db, tls)),
        None => BTreeMap::from([(0, vec!["is due but has no code".to_owned()])]),
    };
    let db = match (db, tls) {
        (Db::Sqlite, false) => "sqlite",
        (Db::Sqlite, true) => "sqlite, tls",
        (Db::Postgres, false) => "postgres",
        (Db::Postgres, true) => "postgres, tls",
    };
    let (mut lines, mut passed, mut failed) = (Vec::new(), 0, 0);
    for (case, failures) in &results {
        if failures.is_empty() {
            passed += 1;
            if std::env::var_os("ATTACKS_VERBOSE").is_some() {
                lines.push(format!("{id}/{case:02} ok [{db}]"));
            }
        } else {
            failed += 1;
            lines.extend(
                failures
                    .iter()
                    .map(|failure| format!("{id}/{case:02} FAIL [{db}] {failure}")),
            );
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    lines.push(format!(
        "{id} {verdict} [{db}] {passed} passed, {failed} failed, {} ms",
        started.elapsed().as_millis()
    ));
    PASSED.fetch_add(passed, Ordering::SeqCst);
    FAILED.fetch_add(failed, Ordering::SeqCst);
    println!("{}", lines.join("\n"));
}

/// The cases of a row and their failures. Case 0 is the row as a whole.
async fn perform(row: &Row, db: Db, tls: bool) -> BTreeMap<usize, Vec<String>> {
    let stage = match guarded(Stage::build(db, tls)).await {
        Ok(stage) => stage,
        Err(panic) => return BTreeMap::from([(0, vec![panic])]),
    };
    let mark = fixtures::log::mark();
    journal::begin();
    let outcome = guarded(tokio::time::timeout(ROW_LIMIT, (row.run)(&stage))).await;
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(_)) => stage.check(0, false, || {
            format!("took more than {} s", ROW_LIMIT.as_secs())
        }),
        Err(panic) => stage.check(0, false, || panic),
    }
    if stage.results.borrow().is_empty() {
        stage.check(0, false, || "recorded no case".to_owned());
    }
    for broken in expect::always(&journal::end(), mark) {
        stage.check(0, false, || broken);
    }
    let results = stage.results.take();
    stage.end().await;
    results
}

/// Runs a future to its end or to its panic.
async fn guarded<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(move |context| {
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(_) => {
                std::task::Poll::Ready(Err(LAST_PANIC.take().unwrap_or_else(|| "panic".to_owned())))
            }
        }
    })
    .await
}
