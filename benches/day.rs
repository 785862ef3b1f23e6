//! Simulates a day of sign-ins and refreshes with a moving clock, and prints the number of rows of each
//! table after every hour. The tables must not grow with use. `cargo bench --bench day`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/fixtures/mod.rs"]
mod fixtures;

use std::time::{Duration, Instant};

use fixtures::server::sweep;
use fixtures::{Db, Server};
use portcullis::config::HumanDuration;

const TABLES: [&str; 5] = [
    "sessions",
    "authorizations",
    "codes",
    "grants",
    "revocations",
];
/// Sign-ins per hour. Each has one code and `REFRESHES` refreshes; one in ten is revoked.
const SIGN_INS: usize = 60;
const REFRESHES: usize = 3;

fn main() {
    for db in [Db::Sqlite, Db::Postgres] {
        actix_web::rt::System::new().block_on(day(db));
    }
}

async fn day(db: Db) {
    // Lifetimes of hours instead of weeks, so that rows expire within the simulated day.
    let server = Server::with(db, |config| {
        config.limits.mode = portcullis::config::Mode::Count;
        config.tokens.refresh_idle = HumanDuration::secs(2 * 3_600);
        config.tokens.refresh_absolute = HumanDuration::secs(4 * 3_600);
    })
    .await;
    let shop = server.shop().await;
    println!("\n{db:?}: rows after each hour; ms for one sign-in with its code and refreshes");
    println!(
        "hour  {}      ms",
        TABLES.map(|name| format!("{name:>14}")).join(" ")
    );
    let mut counts = Vec::new();
    for hour in 1..=24 {
        let begun = Instant::now();
        for n in 0..SIGN_INS {
            if n % 20 == 0 {
                server.advance(Duration::from_secs(20 * 60));
            }
            live(&server, &shop, n % 10 == 0).await;
        }
        let each = begun.elapsed().as_secs_f64() * 1e3 / SIGN_INS as f64;
        let now = server.clock.now();
        while server.write(move |tx| sweep(tx, now)).await > 0 {}
        let rows = TABLES.map(|table| server.count(&format!("SELECT count(*) AS n FROM {table}")));
        println!(
            "{hour:>4}  {} {each:>7.1}",
            rows.map(|n| format!("{n:>14}")).join(" ")
        );
        counts.push(rows[..4].iter().sum::<i64>());
    }
    let flat = counts[23] <= counts[11] + counts[11] / 20;
    assert!(
        flat,
        "the tables grow: {} rows at noon, {} at midnight",
        counts[11], counts[23]
    );
    server.remove().await;
}

async fn live(server: &Server, shop: &fixtures::TestClient, revoked: bool) {
    let code = server.browser().allows(shop).await;
    let mut tokens = shop.redeems(&code).await.ok();
    for _ in 0..REFRESHES {
        let token = tokens.0["refresh_token"].as_str().unwrap().to_owned();
        let fields = [("grant_type", "refresh_token"), ("refresh_token", &token)];
        tokens = shop.posts("/oauth2/token", &fields).await.ok();
    }
    if revoked {
        let token = tokens.0["refresh_token"].as_str().unwrap().to_owned();
        shop.posts("/oauth2/revoke", &[("token", &token)]).await;
    }
}
