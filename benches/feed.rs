//! Measures the time from a revocation to the refusal of the token, and the cost of a thousand
//! subscribers. `cargo bench --bench feed`.
//!
//! `cargo bench --bench feed -- EVENTS` sets the number of revocations (default: 20,000). Three services
//! follow the feed over sockets; on PostgreSQL one of them is connected to a second node.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/fixtures/mod.rs"]
mod fixtures;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fixtures::installation::{Installation, Running};
use fixtures::{Db, Server};
use portcullis::audit::{Actor, RevocationReason};
use portcullis::id::uuid;
use portcullis::keys::Alg;
use portcullis::time::Timestamp;
use portcullis_verifier::{Need, Rejected, Rev, Verifier};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Interval between two revocations.
const PACE: Duration = Duration::from_millis(5);
const SERVICES: usize = 3;
const SUBSCRIBERS: usize = 1_000;
const STREAMS_PER_CLIENT: usize = 16;
/// Revocations per second, and for how many seconds, while the subscribers are connected.
const REVOCATIONS: u32 = 10;
const SECONDS: u32 = 20;

fn main() {
    let events = std::env::args().find_map(|text| text.parse().ok());
    let events: usize = events.unwrap_or(20_000);
    actix_web::rt::System::new().block_on(async {
        for db in [Db::Sqlite, Db::Postgres] {
            refusals(db, events).await;
        }
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(subscribers());
}

/// Returns the `jti` of a token, and the token as the server signs it.
fn token(server: &Server, number: usize) -> (String, String) {
    let now = server.clock.now();
    let jti = uuid(&server.app.entropy, now);
    let claims = portcullis_verifier::Claims {
        iss: server.app.issuer.to_string(),
        sub: format!("person-{number}"),
        aud: fixtures::server::AUDIENCE.to_owned(),
        client_id: "shop".to_owned(),
        scope: "orders:read".to_owned(),
        iat: now.secs(),
        exp: now.secs() + 300,
        jti: jti.clone(),
        rev: Rev {
            feed_epoch: 1,
            client_epoch: 1,
            user_epoch: Some(1),
        },
        grant_id: None,
        auth_time: Some(now.secs()),
        acr: None,
        sid: None,
        cnf: None,
        nbf: None,
        roles: Vec::new(),
        groups: Vec::new(),
        entitlements: Vec::new(),
    };
    let keys = server.app.keys();
    (jti, keys.sign(Alg::ES256, "at+jwt", &claims).unwrap())
}

struct Waiting {
    token: String,
    committed: Instant,
    refused: [bool; SERVICES],
}

async fn refusals(db: Db, events: usize) {
    let server = Server::found_by_services(db, |_| {}).await;
    let other = match db {
        Db::Postgres => Some(server.node().await),
        Db::Sqlite => None,
    };
    let elsewhere = other.as_ref().map_or(&server.base, |node| &node.base);
    let api = server.api_server().await;
    let mut services: Vec<Verifier> = Vec::new();
    for number in 0..SERVICES {
        let mut builder = server.subscriber(&api, &format!("service-{number}"));
        if number == SERVICES - 1 {
            builder = builder.feed_at(elsewhere.as_str());
        }
        services.push(builder.start().await.unwrap());
    }
    let mut waiting: VecDeque<Waiting> = VecDeque::new();
    let mut took: Vec<Duration> = Vec::with_capacity(events * SERVICES);
    let (mut begun, mut next) = (0, Instant::now());
    let (done, mut committed) = tokio::sync::mpsc::unbounded_channel::<Waiting>();
    while took.len() < events * SERVICES {
        if begun < events && Instant::now() >= next {
            next += PACE;
            let (jti, token) = token(&server, begun);
            begun += 1;
            for service in &services {
                service.verify(&token, &Need::any()).unwrap();
            }
            let (store, now, done) = (server.app.store.clone(), server.clock.now(), done.clone());
            actix_web::rt::spawn(async move {
                let exp = now + Duration::from_secs(300);
                let revoke = store.transaction(move |tx| {
                    tx.revoke_token(&jti, exp, &RevocationReason::Revoked, &Actor::Operator, now)
                });
                revoke.await.unwrap();
                let _ = done.send(Waiting {
                    token,
                    committed: Instant::now(),
                    refused: [false; SERVICES],
                });
            });
        }
        while let Ok(event) = committed.try_recv() {
            waiting.push_back(event);
        }
        for event in &mut waiting {
            for (service, refused) in services.iter().zip(&mut event.refused) {
                if !*refused && service.verify(&event.token, &Need::any()) == Err(Rejected::Revoked)
                {
                    *refused = true;
                    took.push(event.committed.elapsed());
                }
            }
        }
        waiting.retain(|event| event.refused.contains(&false));
        // Use a blocking thread, so that the runtime can poll the sockets.
        tokio::task::spawn_blocking(std::thread::yield_now)
            .await
            .unwrap();
    }
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!(
        "{db:?}: {events} revocations to {SERVICES} services: p50 {:.1?}, p99 {:.1?}, worst {:.1?}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// Returns the user and system time of a process in seconds, and its resident memory in MiB (proc(5)).
fn spent(running: &Running) -> (f64, f64) {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.child.id())).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let number = |index: usize| fields[index].parse::<f64>().unwrap();
    // The units are hundredths of a second and pages of 4 KiB.
    ((number(11) + number(12)) / 100.0, number(21) / 256.0)
}

/// Measures a real server with a thousand streams, one heartbeat per second, and ten revocations per
/// second.
async fn subscribers() {
    let installation = Installation::new();
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let issuer = format!("http://127.0.0.1:{port}");
    let listen = format!("127.0.0.1:{port}");
    let server = installation.serve(&[
        ("PORTCULLIS__ISSUER", issuer.as_str()),
        ("PORTCULLIS__LISTEN__PUBLIC", listen.as_str()),
        // All streams come from one address, and each request authenticates a client.
        ("PORTCULLIS__LIMITS__PER_IP", "1000000"),
    ]);
    let api = "https://orders.example";
    installation.done(&["resource", "create", "--audience", api, "--name", "Orders"]);
    let (_, before) = spent(&server);
    let mut open = Vec::new();
    for number in 0..SUBSCRIBERS {
        static SECRET: std::sync::Mutex<String> = std::sync::Mutex::new(String::new());
        let client = number / STREAMS_PER_CLIENT;
        if number % STREAMS_PER_CLIENT == 0 {
            let (id, name) = (format!("service-{client}"), format!("Service {client}"));
            let created = installation.done(&[
                "client",
                "create",
                "--id",
                &id,
                "--name",
                &name,
                "--serves",
                api,
                "--scope",
                "",
                "--grant-type",
                "client_credentials",
                "--format",
                "json",
            ]);
            let created: serde_json::Value = serde_json::from_str(&created).unwrap();
            let secret = created["client_secret"].as_str().unwrap();
            *SECRET.lock().unwrap() = secret.to_owned();
        }
        let secret = SECRET.lock().unwrap().clone();
        let basic = fixtures::client::basic(&format!("service-{client}"), &secret);
        let mut stream = TcpStream::connect(&listen).await.unwrap();
        let head = format!(
            "GET /revocations/stream HTTP/1.1\r\nHost: {listen}\r\nAuthorization: {basic}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        open.push(tokio::spawn(async move {
            let mut bytes = vec![0; 16 * 1024];
            let mut read = 0;
            while let Ok(count) = stream.read(&mut bytes).await {
                if count == 0 {
                    break;
                }
                read += count;
            }
            read
        }));
    }
    let (idle_from, memory) = spent(&server);
    tokio::time::sleep(Duration::from_secs(u64::from(SECONDS))).await;
    let (idle_to, calm) = spent(&server);
    let store = portcullis::db::Store::open(
        &format!(
            "sqlite:{}",
            installation.folder.join("data/portcullis.db").display()
        ),
        2,
        portcullis::secret::Entropy::system(),
    )
    .unwrap();
    let mut turn = tokio::time::interval(Duration::from_secs(1) / REVOCATIONS);
    for number in 0..REVOCATIONS * SECONDS {
        turn.tick().await;
        let now = portcullis::time::Clock::System.now();
        let end = move |tx: &mut portcullis::db::Transaction<'_>| {
            tx.revoke_token(
                &format!("token-{number}"),
                later(now),
                &RevocationReason::Revoked,
                &Actor::Operator,
                now,
            )
        };
        store.transaction(end).await.unwrap();
    }
    let (busy_to, busy_memory) = spent(&server);
    let each = |resident: f64| (resident - before) * 1024.0 / f64::from(1_000_u16);
    println!(
        "{SUBSCRIBERS} streams: resident {before:.1} MiB before, {memory:.1} once they came, {calm:.1} after {SECONDS} s ({:.1} KiB each), {busy_memory:.1} with {REVOCATIONS} revocations a second ({:.1} KiB each); {:.1} % of a core at a heartbeat a second, {:.1} % with the revocations",
        each(calm),
        each(busy_memory),
        (idle_to - idle_from) / f64::from(SECONDS) * 100.0,
        (busy_to - idle_to) / f64::from(SECONDS) * 100.0,
    );
    drop(server);
    for stream in open {
        assert!(stream.await.unwrap() > 0);
    }
}

fn later(now: Timestamp) -> Timestamp {
    now + Duration::from_secs(300)
}
