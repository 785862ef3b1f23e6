//! `GET /metrics` on the management listener: counters, and gauges that are measured for each scrape. Each part of the
//! server has its own function below.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::web::Data;

use crate::app::App;
use crate::metrics::{self, Page};

/// Handles `GET /metrics`.
pub async fn get(app: Data<App>) -> HttpResponse {
    let mut page = metrics::page();
    build(&mut page, &app);
    pool(&mut page, &app);
    passwords(&mut page, &app);
    keys(&mut page, &app);
    feed(&mut page, &app);
    process(&mut page);
    HttpResponse::Ok()
        .insert_header(("Content-Type", "text/plain; version=0.0.4; charset=utf-8"))
        .insert_header(("Cache-Control", "no-store"))
        .body(page.finish())
}

fn build(page: &mut Page, app: &App) {
    let database = if app.store.is_sqlite() {
        "sqlite"
    } else {
        "postgres"
    };
    page.gauge("portcullis_build_info", "Version and database of this node")
        .sample(
            [
                ("version", env!("CARGO_PKG_VERSION")),
                ("database", database),
            ],
            1,
        );
    page.gauge("portcullis_draining", "Whether this node is draining")
        .sample([], u8::from(app.draining.is_on()));
}

fn pool(page: &mut Page, app: &App) {
    let pool = app.store.pool_metrics();
    for (name, help, value) in [
        (
            "portcullis_db_pool_size",
            "Connections that may be open",
            pool.size,
        ),
        (
            "portcullis_db_pool_open",
            "Connections that are open",
            pool.open,
        ),
        (
            "portcullis_db_pool_idle",
            "Connections that are open and unused",
            pool.idle,
        ),
    ] {
        page.gauge(name, help).sample([], value);
    }
}

fn passwords(page: &mut Page, app: &App) {
    let (running, waiting) = app.hashing();
    let mut passwords = page.gauge(
        "portcullis_passwords",
        "Passwords that are being hashed or wait for it",
    );
    passwords.sample([("state", "hashed")], running);
    passwords.sample([("state", "waiting")], waiting);
}

/// Adds the gauges of the keys (docs/keys.md).
fn keys(page: &mut Page, app: &App) {
    let metrics = app.key_metrics();
    let labels = |ring: &crate::key_manager::KeySetMetrics| {
        [
            ("use", ring.ring.use_.as_str()),
            ("alg", ring.ring.alg.name()),
        ]
    };
    let mut age = page.gauge(
        "portcullis_signing_key_age_seconds",
        "How long the signing key has been in use",
    );
    for ring in &metrics.rings {
        if let Some(signing) = ring.age {
            age.sample(labels(ring), signing.as_secs());
        }
    }
    let mut next = page.gauge(
        "portcullis_signing_key_next_rotation_seconds",
        "Time until the next key signs; negative if overdue",
    );
    for ring in &metrics.rings {
        if let Some(seconds) = ring.next_rotation_secs {
            next.sample(labels(ring), seconds);
        }
    }
    let mut standby = page.gauge(
        "portcullis_signing_key_standby",
        "Whether the next key is published",
    );
    for ring in &metrics.rings {
        standby.sample(labels(ring), u8::from(ring.standby));
    }
    let mut corrupt = page.gauge(
        "portcullis_signing_key_corrupt",
        "Keys that cannot be decrypted or do not match their row",
    );
    for ring in &metrics.rings {
        corrupt.sample(labels(ring), ring.corrupt);
    }
    let mut values = page.gauge(
        "portcullis_kek_values",
        "Values sealed under each key-encrypting key; the first of the list seals",
    );
    for (kek, count) in &metrics.kek_values {
        let first = if *kek == metrics.first_kek {
            "yes"
        } else {
            "no"
        };
        values.sample([("kek", kek.as_str()), ("first", first)], count);
    }
    page.gauge(
        "portcullis_key_view_age_seconds",
        "Time since the database last confirmed the keys",
    )
    .sample([], seconds(metrics.view_age));
    if let Some(age) = app.key_manager.write_age() {
        page.gauge(
            "portcullis_write_age_seconds",
            "Time since the last write of this node",
        )
        .sample([], seconds(age));
    }
    page.gauge(
        "portcullis_clock_agrees",
        "Whether the clocks of this node and of the database agree",
    )
    .sample([], u8::from(app.key_manager.clock_ready()));
    let verifier = app.verifier().metrics();
    let unknown = verifier.rejected.get("unknown_key").copied();
    page.counter(
        "portcullis_verifier_unknown_kid_total",
        "Tokens with the issuer of this server and an unknown key",
    )
    .sample([], unknown.unwrap_or_default());
}

/// Adds the gauges of the revocation feed (docs/revocation.md).
fn feed(page: &mut Page, app: &App) {
    let position = app.feed.position();
    page.gauge(
        "portcullis_feed_live_records",
        "Revocation records in memory",
    )
    .sample([], app.feed.live_records());
    page.gauge("portcullis_feed_position", "Records of this feed epoch")
        .sample([], position.map_or(0, |position| position.seq));
    if let Some(position) = position {
        page.gauge(
            "portcullis_feed_as_of_age_seconds",
            "Age of the revocation data of this node",
        )
        .sample([], seconds(app.clock.now().since(position.beat)));
    }
    page.gauge("portcullis_feed_subscribers", "Open event streams")
        .sample([], app.feed.streams.count());
    page.gauge(
        "portcullis_feed_restored",
        "Whether the database was restored and waits for `recover`",
    )
    .sample([], u8::from(app.feed.is_restored()));
}

/// Adds the process metrics that Prometheus client libraries export under these names. Linux only.
fn process(page: &mut Page) {
    let Some(process) = Process::read() else {
        return;
    };
    page.counter("process_cpu_seconds_total", "Processor time used")
        .sample([], process.cpu_seconds);
    page.gauge("process_resident_memory_bytes", "Memory in use")
        .sample([], process.resident_bytes);
    page.gauge("process_open_fds", "Open files and sockets")
        .sample([], process.open_files);
    page.gauge(
        "process_start_time_seconds",
        "Start of the process in Unix time",
    )
    .sample([], process.started_at);
}

struct Process {
    cpu_seconds: f64,
    resident_bytes: u64,
    open_files: usize,
    started_at: f64,
}

impl Process {
    /// Reads the fields of `/proc/self/stat` (proc(5)) after the closing parenthesis of the command. The
    /// first one is the state.
    #[allow(clippy::cast_precision_loss)] // ticks of centuries fit
    fn read() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?;
        let boot: f64 = boot.trim().parse().ok()?;
        Some(Self {
            cpu_seconds: (number(11)? + number(12)?) as f64 / ticks,
            resident_bytes: number(21)? * rustix::param::page_size() as u64,
            open_files: std::fs::read_dir("/proc/self/fd").ok()?.count(),
            started_at: boot + number(19)? as f64 / ticks,
        })
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
