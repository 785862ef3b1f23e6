//! The attack catalogue, row by row: `attacks.tsv` states what must hold, `shipped.txt` lists the rows
//! that are enabled.
//!
//! `cargo test --test attacks -- [FILTER]… [--sqlite | --postgres] [--tls]`. A filter is an area
//! (`token-code`), an id (`A189`), or all or part of a name (`code_guesses`). Each row runs on a fresh
//! database: on SQLite with one node and on PostgreSQL with three. Some rows of each area also run over
//! TLS; with `--tls`, the selected rows run over TLS only. `ATTACKS_VERBOSE=1` prints each case.
#![allow(
    // Tables of cases are tuples on purpose.
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
mod database_outage;
mod expect;
mod feed;
#[path = "../../crates/verifier/tests/verifier/feed_issuer.rs"]
#[allow(dead_code, reason = "the verifier's tests use all of it")]
mod feed_issuer;
mod hostile_feed;
mod hostile_postgres;
mod http_tls;
mod introspection;
mod keys_jwt;
mod keys_use;
mod login;
mod logout;
mod navigation;
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
use portcullis::audit;

const AREAS: &[&[Row]] = &[
    admin::ROWS,
    authorize::answers::ROWS,
    authorize::user_parameters::ROWS,
    authorize::requests::ROWS,
    authorize::values::ROWS,
    authorize_session::ROWS,
    client_auth::ROWS,
    consent::ROWS,
    database_outage::ROWS,
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
    login::account::ROWS,
    login::cookies::ROWS,
    login::forms::ROWS,
    hostile_postgres::ROWS,
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

/// Rows that also run over TLS, on SQLite: they cover each endpoint, cookies, headers, bodies, and
/// behaviour that depends on the socket.
const OVER_TLS: &[&str] = &[
    "A001", "A050", "A082", "A110", "A128", "A132", "A160", "A180", "A188", "A210", "A246", "A453",
    "A454", "A458", "A460",
];

/// Rows whose events are logged by another process, for a request that the journal does not record, or on one database
/// only. Their code checks the log.
const CHECK_THE_LOG: &[&str] = &[
    "A127", "A140", "A184", "A198", "A305", "A342", "A437", "A454", "A455", "A465", "A478", "A514",
    "A516", "A518", "A526", "A527", "A530",
];

/// Rows whose events need the clock of a database server.
const LOGGED_ON_POSTGRES: &[&str] = &["A330", "A513", "A524", "A525"];

/// Time after which a row fails. The slowest rows take a quarter of this on a busy machine.
const ROW_LIMIT: Duration = Duration::from_secs(180);

/// The code of one row of the catalogue.
pub struct Row {
    /// The id in lower case and the meaning: `a189_code_guesses_are_indistinguishable`.
    pub name: &'static str,
    pub run: for<'a> fn(&'a Stage) -> Pin<Box<dyn Future<Output = ()> + 'a>>,
}

impl Row {
    /// Returns the id of the catalogue, such as `A189`: the first four characters of the name.
    fn id(&self) -> String {
        self.name.chars().take(4).collect::<String>().to_uppercase()
    }
}

/// Makes a [`Row`] of `async fn a189_code_guesses_are_indistinguishable(stage: &Stage)`.
#[macro_export]
macro_rules! row {
    ($name:ident) => {
        $crate::Row {
            name: stringify!($name),
            run: |stage| Box::pin($name(stage)),
        }
    };
}

/// The environment of one row: a fresh database and its nodes.
pub struct Stage {
    pub server: Server,
    /// The other nodes; empty on SQLite.
    pub nodes: Vec<Server>,
    /// The failures of each case, by its number.
    results: RefCell<BTreeMap<usize, Vec<String>>>,
}

impl Stage {
    async fn build(db: Db, over_tls: bool) -> Self {
        let server = Server::with(db, |config| {
            // Rows send more requests from one address than any user does. Rows about limits start
            // a server of their own.
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

    /// Returns all nodes.
    pub fn all(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.server).chain(&self.nodes)
    }

    /// Returns the node for the n-th case: cases are spread over the nodes in turn.
    pub fn node(&self, n: usize) -> &Server {
        let count = self.nodes.len() + 1;
        self.all().nth(n % count).unwrap()
    }

    /// Drops the cached registrations of all nodes, as their poll does after a client has changed.
    pub fn forget_registrations(&self) {
        for node in self.all() {
            node.app.registrations.clear();
        }
    }

    /// Returns `web`, and the browser of `alice`, who has a session and whose consent is remembered. The
    /// session is written to the database, because hashing a password takes longer than the flow.
    pub async fn web_and_alice(&self) -> (TestClient, Browser) {
        let web = self.server.shop().await;
        let mut alice = self.server.enters("alice").await;
        alice.allows(&web).await;
        (web, alice)
    }

    /// Counts the rows of the tables that an attack could have written to.
    pub fn rows(&self) -> i64 {
        let tables = ["sessions", "authorizations", "codes", "grants", "consents"];
        let counts = tables.map(|table| format!("(SELECT count(*) FROM {table})"));
        self.server
            .count(&format!("SELECT {} AS n", counts.join(" + ")))
    }

    /// Records a check of a case. A case passes if all of its checks pass.
    pub fn check(&self, case: usize, ok: bool, message: impl FnOnce() -> String) {
        let mut results = self.results.borrow_mut();
        let failures = results.entry(case).or_default();
        if !ok {
            let message = message();
            failures.push(message.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }

    /// Records the result of an assertion of [`expect`].
    pub fn expect(&self, case: usize, result: Result<(), String>) {
        let message = result.as_ref().err().cloned().unwrap_or_default();
        self.check(case, result.is_ok(), || message);
    }

    /// Stops the nodes and removes the database.
    async fn remove(self) {
        for node in self.nodes {
            node.stop().await;
        }
        self.server.remove().await;
    }
}

/// One line of `attacks.tsv`.
struct Entry {
    id: &'static str,
    area: &'static str,
    /// The names of the events that the attack must log.
    events: Vec<&'static str>,
}

fn catalogue() -> Vec<Entry> {
    include_str!("attacks.tsv")
        .lines()
        .skip(1)
        .map(|line| {
            let cells: Vec<&str> = line.split('\t').collect();
            // `event{reason} (severity); event`; `–` for none.
            let items = cells[5].split("; ").filter(|item| item.contains('.'));
            let name = |item: &'static str| item.split(['{', ' ']).next().unwrap_or_default();
            Entry {
                id: cells[0],
                area: cells[2],
                events: items.map(name).collect(),
            }
        })
        .collect()
}

/// Returns the ids of the enabled rows: those that `shipped.txt` names.
fn enabled_rows(catalogue: &[Entry]) -> Result<BTreeSet<&'static str>, String> {
    let mut enabled = BTreeSet::new();
    for line in include_str!("shipped.txt")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let is_named = |entry: &&Entry| match line.strip_prefix("area ") {
            Some(area) => entry.area == area.trim(),
            None => entry.id == line,
        };
        let before = enabled.len();
        enabled.extend(catalogue.iter().filter(is_named).map(|entry| entry.id));
        if enabled.len() == before {
            return Err(format!(
                "shipped.txt: `{line}` is unknown or enables no further row"
            ));
        }
    }
    Ok(enabled)
}

/// The rows and databases that the command line selects.
struct Selection {
    filters: Vec<String>,
    databases: Vec<Db>,
    /// Runs the selected rows over TLS only.
    tls: bool,
}

impl Selection {
    fn from_arguments(arguments: impl Iterator<Item = String>) -> Self {
        let mut selection = Self {
            filters: Vec::new(),
            databases: Vec::new(),
            tls: false,
        };
        for argument in arguments {
            match argument.as_str() {
                "--sqlite" => selection.databases.push(Db::Sqlite),
                "--postgres" => selection.databases.push(Db::Postgres),
                "--tls" => selection.tls = true,
                // Flags of the standard test harness, which `cargo test -- …` passes to every program.
                flag if flag.starts_with('-') => {}
                filter => selection.filters.push(filter.to_lowercase()),
            }
        }
        if selection.databases.is_empty() {
            selection.databases = vec![Db::Sqlite, Db::Postgres];
        }
        selection
    }

    /// Returns whether a filter selects the row. A filter that is an area selects by the area only.
    fn selects(&self, entry: &Entry, areas: &BTreeSet<&str>) -> bool {
        self.filters.iter().any(|filter| {
            if areas.contains(filter.as_str()) {
                filter == entry.area
            } else {
                filter.eq_ignore_ascii_case(entry.id)
                    || find(entry.id).is_some_and(|row| row.name.contains(filter))
            }
        })
    }
}

fn find(id: &str) -> Option<&'static Row> {
    AREAS
        .iter()
        .flat_map(|rows| rows.iter())
        .find(|row| row.id() == id)
}

static PASSED: AtomicUsize = AtomicUsize::new(0);
static FAILED: AtomicUsize = AtomicUsize::new(0);
/// Panics outside the thread of a row: those of a server.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

thread_local! {
    /// The last panic on the thread of this row.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static IS_RUNNER: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn main() -> ExitCode {
    // No row is ignored, so a run of only the ignored tests has nothing to do.
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
    let enabled = match enabled_rows(&catalogue) {
        Ok(enabled) => enabled,
        Err(problem) => {
            println!("FAIL {problem}\n0 passed, 1 failed");
            return ExitCode::FAILURE;
        }
    };
    check_the_name_check();
    let mut problems = name_problems(AREAS.iter().flat_map(|rows| rows.iter()), &catalogue);
    let selection = Selection::from_arguments(std::env::args().skip(1));
    let areas: BTreeSet<&str> = catalogue.iter().map(|entry| entry.area).collect();
    let selected: Vec<&Entry> = catalogue
        .iter()
        .filter(|entry| {
            if selection.filters.is_empty() {
                enabled.contains(entry.id)
            } else {
                selection.selects(entry, &areas)
                    && (enabled.contains(entry.id) || find(entry.id).is_some())
            }
        })
        .collect();
    let mut jobs: Vec<(&str, Db, bool)> = selected
        .iter()
        .flat_map(|entry| {
            let databases = selection.databases.iter();
            databases.map(|db| (entry.id, *db, selection.tls))
        })
        .collect();
    if !selection.tls && selection.databases.contains(&Db::Sqlite) {
        let over_tls = selected.iter().filter(|entry| OVER_TLS.contains(&entry.id));
        jobs.extend(over_tls.map(|entry| (entry.id, Db::Sqlite, true)));
    }
    // Each thread takes the next job from the list.
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                IS_RUNNER.set(true);
                while let Some((id, db, tls)) = jobs.get(next.fetch_add(1, Ordering::SeqCst)) {
                    run_job(id, *db, *tls);
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
    println!(
        "{} rows are not yet enabled",
        catalogue.len() - enabled.len()
    );
    let failed = FAILED.load(Ordering::SeqCst) + problems.len();
    println!("{} passed, {failed} failed", PASSED.load(Ordering::SeqCst));
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Returns what is wrong with the names of the rows: a row that the catalogue does not have, a name
/// without a meaning, and an id that two rows have.
fn name_problems<'a>(rows: impl Iterator<Item = &'a Row>, catalogue: &[Entry]) -> Vec<String> {
    let mut ids = BTreeSet::new();
    let mut problems = Vec::new();
    for row in rows {
        let (name, id) = (row.name, row.id());
        if !catalogue.iter().any(|entry| entry.id == id) {
            problems.push(format!("`{name}`: {id} is not in the catalogue"));
        }
        let meaning = name.get(4..).and_then(|rest| rest.strip_prefix('_'));
        if meaning.is_none_or(|meaning| !meaning.contains('_')) {
            problems.push(format!(
                "`{name}`: expected an id and a meaning of several words"
            ));
        }
        if name.len() > 70 {
            problems.push(format!("`{name}`: expected at most 70 characters"));
        }
        if !ids.insert(id.clone()) {
            problems.push(format!("`{name}`: another row has the id {id}"));
        }
    }
    problems
}

/// Asserts that [`name_problems`] finds each kind of problem. This program has no test harness that
/// could run unit tests.
fn check_the_name_check() {
    let catalogue = [Entry {
        id: "A189",
        area: "token-code",
        events: Vec::new(),
    }];
    let problems = |names: &[&'static str]| {
        let rows: Vec<Row> = names
            .iter()
            .map(|name| Row {
                name,
                run: |_| Box::pin(async {}),
            })
            .collect();
        name_problems(rows.iter(), &catalogue).len()
    };
    assert_eq!(problems(&["a189_codes_are_random"]), 0);
    for name in ["a189", "a189_", "a189_codes", "a190_codes_are_random"] {
        assert_eq!(problems(&[name]), 1, "{name}");
    }
    assert_eq!(
        problems(&["a189_codes_are_random", "a189_codes_are_long"]),
        1
    );
}

/// Runs one row on one database and prints its result.
fn run_job(id: &'static str, db: Db, tls: bool) {
    let started = std::time::Instant::now();
    let (name, results) = match find(id) {
        Some(row) => {
            let results = actix_web::rt::System::new().block_on(run_row(row, db, tls));
            (row.name, results)
        }
        None => {
            let failures = vec!["is enabled but has no code".to_owned()];
            (id, BTreeMap::from([(0, failures)]))
        }
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
                lines.push(format!("{name}/{case:02} ok [{db}]"));
            }
        } else {
            failed += 1;
            lines.extend(
                failures
                    .iter()
                    .map(|failure| format!("{name}/{case:02} FAIL [{db}] {failure}")),
            );
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    lines.push(format!(
        "{name} {verdict} [{db}] {passed} passed, {failed} failed, {} ms",
        started.elapsed().as_millis()
    ));
    PASSED.fetch_add(passed, Ordering::SeqCst);
    FAILED.fetch_add(failed, Ordering::SeqCst);
    println!("{}", lines.join("\n"));
}

/// Runs a row and returns the failures of each case. Case 0 is the row as a whole.
async fn run_row(row: &Row, db: Db, tls: bool) -> BTreeMap<usize, Vec<String>> {
    let stage = match catch_panic(Stage::build(db, tls)).await {
        Ok(stage) => stage,
        Err(panic) => return BTreeMap::from([(0, vec![panic])]),
    };
    let mark = fixtures::log::mark();
    journal::begin();
    let outcome = catch_panic(tokio::time::timeout(ROW_LIMIT, (row.run)(&stage))).await;
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
    let exchanges = journal::end();
    for problem in expect::violations(&exchanges, mark) {
        stage.check(0, false, || problem);
    }
    for event in unlogged_events(row, &stage, &exchanges, mark) {
        stage.check(0, false, || format!("did not log {event}"));
    }
    let results = stage.results.take();
    stage.remove().await;
    results
}

/// Returns the events that the catalogue names for a row and that were not logged since `mark`.
fn unlogged_events(
    row: &Row,
    stage: &Stage,
    exchanges: &[journal::Exchange],
    mark: usize,
) -> Vec<&'static str> {
    let id = row.id();
    let elsewhere = CHECK_THE_LOG.contains(&id.as_str());
    if elsewhere || (stage.db() == Db::Sqlite && LOGGED_ON_POSTGRES.contains(&id.as_str())) {
        return Vec::new();
    }
    // Other rows run at the same time: only the requests of this one count, and events without a request.
    let ids = exchanges.iter().map(|exchange| &exchange.answer);
    let ids: BTreeSet<&str> = ids
        .filter_map(|answer| answer.header("x-request-id"))
        .collect();
    let mut logged = fixtures::log::since(mark);
    logged.retain(|event| {
        let id = event.get("request_id");
        id.is_none_or(|id| ids.contains(id.as_str()))
    });
    let is_logged = |name: &str| {
        let mut names = logged.iter().filter_map(|event| event.get("event"));
        names.any(|event| event == name)
    };
    // The sealer, which no row runs, copies audit events to the log.
    let is_audited = |name: &str| {
        let is_audit_event = audit::Name::ALL.iter().any(|known| known.as_str() == name);
        let query = format!("SELECT count(*) AS n FROM audit_events WHERE name = '{name}'");
        is_audit_event && stage.server.count(&query) > 0
    };
    let entry = catalogue().into_iter().find(|entry| entry.id == id);
    let events = entry.map(|entry| entry.events).unwrap_or_default();
    let is_missing = |name: &&str| !is_logged(name) && !is_audited(name);
    events.into_iter().filter(is_missing).collect()
}

/// Runs a future and returns its output, or the message of its panic.
async fn catch_panic<T>(future: impl Future<Output = T>) -> Result<T, String> {
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
