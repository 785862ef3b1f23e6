//! Graceful shutdown: a load balancer that follows readiness sees no failed request.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use crate::fixtures::client::{VERIFIER, basic};
use crate::fixtures::{Browser, Db, TestClient, apply, on_both_databases};
use crate::installation::{Installation, Running};
use crate::site::{Site, asks, base, management};

/// A request whose body has not been sent completely.
struct Unfinished {
    stream: TcpStream,
    rest: Vec<u8>,
}

impl Unfinished {
    /// Sends a code exchange without its last bytes, and waits until the server has begun to process it.
    fn exchange(site: &Site, server: &Running, code: &str) -> Self {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", "https://app.example/cb")
            .append_pair("code_verifier", VERIFIER)
            .finish();
        let (begun, rest) = form.split_at(form.len() - 8);
        let mut stream = TcpStream::connect(server.started("listen")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        // The server answers 100 when it wants the body: from then on the request is in progress.
        write!(
            stream,
            "POST /oauth2/token HTTP/1.1\r\nHost: op.example\r\nAuthorization: {}\r\nExpect: 100-continue\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n",
            basic(&site.client_id, site.secret.expose()),
            form.len()
        )
        .unwrap();
        let mut heard = [0; 25];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(begun.as_bytes()).unwrap();
        let rest = rest.as_bytes().to_vec();
        Self { stream, rest }
    }

    fn finishes(mut self) -> String {
        self.stream.write_all(&self.rest).unwrap();
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

fn runs<T>(work: impl Future<Output = T>) -> T {
    actix_web::rt::System::new().block_on(work)
}

/// Returns the browser of alice, and a code for `web`.
async fn signed_in(site: &Site, server: &str) -> (Browser, String) {
    let mut alice = Browser::new(server);
    let answer = alice.signs_in(&site.web(server), "alice").await;
    let code = answer.callback("code").unwrap();
    (alice, code)
}

#[apply(on_both_databases)]
#[test]
fn shutdown_finishes_requests_and_seals_events(#[case] db: Db) {
    let installation = Installation::on(db);
    let site = Site::open(installation);
    let server = site.installation.serve(&[]);
    let (_, code) = runs(signed_in(&site, &base(&server)));
    let exchange = Unfinished::exchange(&site, &server, &code);
    server.signal("-TERM");
    server.waits_for(|line| line.contains("server.stopping"));
    let answer = exchange.finishes();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("\"access_token\""), "{answer}");
    assert!(
        answer
            .to_ascii_lowercase()
            .contains("\r\nconnection: close\r\n"),
        "{answer}"
    );
    assert_eq!(server.ends(), Some(0));
    let unsealed =
        "SELECT count(*) AS n FROM audit_events WHERE id NOT IN (SELECT event_id FROM audit_seals)";
    assert_eq!(site.installation.count(unsealed), 0);
    assert!(
        site.installation
            .count("SELECT count(*) AS n FROM audit_seals")
            > 5
    );
}

#[test]
fn draining_node_keeps_serving_until_second_signal() {
    let site = Site::open(Installation::new());
    let patient = ("PORTCULLIS__SHUTDOWN__DELAY", "5m");
    let server = site.installation.serve(&[patient]);
    let (public, probes) = (base(&server), management(&server));
    runs(async {
        let (status, said) = asks(&probes, "/readyz").await;
        assert_eq!(status, 200, "{said}");
        server.signal("-TERM");
        server.waits_for(|line| line.contains("server.draining"));
        let (status, said) = asks(&probes, "/readyz").await;
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(
            (status, &said["status"], &said["checks"]["serving"]),
            (503, &"draining".into(), &"failed".into())
        );
        assert_eq!(asks(&probes, "/livez").await.0, 200);
        let (_, page) = asks(&probes, "/metrics").await;
        assert!(page.contains("\nportcullis_draining 1\n"));
        // Requests are answered, and the connection is closed afterwards.
        let answer = Browser::new(&public).get("/oauth2/jwks").await;
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, Some("close"))
        );
        // The first exchange of a login that began earlier.
        let (_, code) = signed_in(&site, &public).await;
        site.web(&public).redeems(&code).await.ok();
    });
    let health = site.installation.run(
        &["healthcheck"],
        &[(
            "PORTCULLIS__LISTEN__MANAGEMENT",
            &server.started("management"),
        )],
    );
    assert_eq!(health.status.code(), Some(1));
    let said = String::from_utf8_lossy(&health.stderr).into_owned();
    assert!(said.contains("/readyz has the status 503"), "{said}");
    let signalled = Instant::now();
    server.signal("-TERM");
    assert_eq!(server.ends(), Some(0));
    assert!(
        signalled.elapsed() < Duration::from_secs(5),
        "{:?}",
        signalled.elapsed()
    );
}

#[test]
fn unfinished_requests_are_closed_at_the_timeout() {
    let site = Site::open(Installation::new());
    let server = site
        .installation
        .serve(&[("PORTCULLIS__SHUTDOWN__DRAIN", "1s")]);
    let (_, code) = runs(signed_in(&site, &base(&server)));
    let _exchange = Unfinished::exchange(&site, &server, &code);
    let signalled = Instant::now();
    server.signal("-INT");
    assert_eq!(server.ends(), Some(0));
    let took = signalled.elapsed();
    assert!((1..6).contains(&took.as_secs()), "{took:?}");
    assert_eq!(
        site.installation
            .count("SELECT count(*) AS n FROM codes WHERE used_at IS NOT NULL"),
        0
    );
}

#[test]
fn shutdown_times_out_of_range_are_rejected() {
    let installation = Installation::new();
    for (variable, sentence) in [
        (
            ("PORTCULLIS__SHUTDOWN__DELAY", "6m"),
            "`shutdown.delay`: 6m is out of range",
        ),
        (
            ("PORTCULLIS__SHUTDOWN__DRAIN", "0s"),
            "`shutdown.drain`: 0ms is out of range",
        ),
    ] {
        crate::installation::refused(&installation.run(&["serve"], &[variable]), 78, sentence);
    }
}

/// A load balancer: it polls the readiness of each node, and sends requests to those that are ready.
#[derive(Clone, Default)]
struct Balancer(Arc<Mutex<Vec<Behind>>>);

struct Behind {
    base: String,
    management: String,
    ready: bool,
}

impl Balancer {
    fn add(&self, server: &Running) {
        self.0.lock().unwrap().push(Behind {
            base: base(server),
            management: management(server),
            ready: false,
        });
    }

    /// Polls all nodes continuously, as health checks do.
    async fn probe_continuously(self) {
        let client = crate::fixtures::browser::http("http:");
        let mut turn = actix_web::rt::time::interval(Duration::from_millis(50));
        loop {
            turn.tick().await;
            let addresses: Vec<String> = {
                let nodes = self.0.lock().unwrap();
                nodes.iter().map(|node| node.management.clone()).collect()
            };
            for address in addresses {
                let answer = client.get(format!("{address}/readyz")).send().await;
                let ready = answer.is_ok_and(|answer| answer.status() == 200);
                let mut nodes = self.0.lock().unwrap();
                let node = nodes.iter_mut().find(|node| node.management == address);
                node.unwrap().ready = ready;
            }
        }
    }

    fn knows_as_ready(&self, server: &Running) -> bool {
        let (nodes, base) = (self.0.lock().unwrap(), base(server));
        nodes.iter().any(|node| node.base == base && node.ready)
    }

    /// Returns the next node that is ready.
    fn picks(&self, turn: usize) -> Option<String> {
        let nodes = self.0.lock().unwrap();
        let ready: Vec<&Behind> = nodes.iter().filter(|node| node.ready).collect();
        (!ready.is_empty()).then(|| ready[turn % ready.len()].base.clone())
    }
}

/// Acts as a user who gets a code, exchanges it, refreshes, and requests the keys, each at the next node.
/// Nothing is retried, so any failure ends the test.
async fn goes_round(
    web: TestClient,
    mut alice: Browser,
    nodes: Balancer,
    over: Arc<AtomicBool>,
    done: mpsc::Sender<()>,
) -> usize {
    let mut turn = 0;
    let mut next = || {
        turn += 1;
        nodes.picks(turn).expect("some node is ready")
    };
    let mut requests = 0;
    while !over.load(Ordering::SeqCst) {
        alice = alice.at(&next());
        let answer = alice.get(&web.request(&[])).await;
        let code = answer
            .callback("code")
            .unwrap_or_else(|| panic!("{answer:?}"));
        let tokens = web.at(&next()).redeems(&code).await.ok();
        web.at(&next()).refreshes(tokens.refresh(), &[]).await.ok();
        let (status, _) = asks(&next(), "/oauth2/jwks").await;
        assert_eq!(status, 200);
        requests += 4;
        let _ = done.send(());
    }
    requests
}

#[test]
fn rolling_restart_fails_no_request() {
    const STOPS: usize = 4;
    let site = Site::open(Installation::on_postgres());
    let delay = [("PORTCULLIS__SHUTDOWN__DELAY", "1s")];
    let mut old = site.installation.serve(&delay);
    let mut young = site.installation.serve(&delay);
    let nodes = Balancer::default();
    nodes.add(&old);
    nodes.add(&young);
    let (over, (done, rounds)) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
    let (web, start) = (site.web(&base(&old)), base(&old));
    let load = {
        let (nodes, over) = (nodes.clone(), Arc::clone(&over));
        std::thread::spawn(move || {
            runs(async move {
                let prober = actix_web::rt::spawn(nodes.clone().probe_continuously());
                while nodes.picks(0).is_none() {
                    actix_web::rt::task::yield_now().await;
                }
                let mut people = Vec::new();
                for _ in 0..3 {
                    let mut alice = Browser::new(&start);
                    alice.signs_in(&web, "alice").await;
                    people.push(actix_web::rt::spawn(goes_round(
                        web.clone(),
                        alice,
                        nodes.clone(),
                        Arc::clone(&over),
                        done.clone(),
                    )));
                }
                let mut requests = 0;
                for person in people {
                    requests += person.await.unwrap();
                }
                prober.abort();
                requests
            })
        })
    };
    // Count the rounds that begin from now on, until the newest node has served its share.
    let some_rounds = |youngest: &Running| {
        while rounds.try_recv().is_ok() {}
        let mut left = 15;
        while left > 0 || !nodes.knows_as_ready(youngest) {
            left = i32::max(left - 1, 0);
            let round = rounds.recv_timeout(Duration::from_secs(20));
            round.expect("the people go on");
        }
    };
    for _ in 0..STOPS {
        some_rounds(&young);
        let begun = Instant::now();
        assert_eq!(old.stop(), Some(0));
        // The delay and the drain time, and an allowance for a busy machine.
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "{:?}",
            begun.elapsed()
        );
        some_rounds(&young);
        old = young;
        young = site.installation.serve(&delay);
        nodes.add(&young);
    }
    some_rounds(&young);
    over.store(true, Ordering::SeqCst);
    let requests = load.join().expect("no request fails");
    println!("{requests} requests, {STOPS} nodes stopped, none failed");
}
