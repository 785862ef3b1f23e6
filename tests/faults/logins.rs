//! F24: very many users sign in at the same time.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::fixtures::installation::{Installation, Running};
use crate::fixtures::proc::{Proc, most_files};
use crate::fixtures::site::{Site, asks, base, management, sample};
use crate::fixtures::{Answer, Browser, Tokens};
use crate::runs;

/// The number of users. The catalogue says 10,000.
const LOGINS: usize = 1_000;

/// Starts a server that trusts the client addresses reported by the test.
fn open() -> (Site, Running) {
    let site = Site::open(Installation::new());
    let server = site
        .installation
        .serve(&[("PORTCULLIS__HTTP__TRUSTED_PROXIES", "127.0.0.1")]);
    (site, server)
}

/// Returns the address of a user. Each user has their own network and name, so that no throttle applies.
fn address(n: usize) -> String {
    format!("10.{}.{}.1", n / 250, n % 250)
}

/// Returns the form of an unknown user, which costs as much work as any other.
fn form(page: &Answer, n: usize) -> Vec<(String, String)> {
    [
        ("authorization", page.hidden("authorization")),
        ("csrf", page.hidden("csrf")),
        ("username", format!("unknown-{n}")),
        ("password", "gravel-otter-93-lamp".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// Returns how many passwords are being hashed, and how many wait.
async fn passwords(probes: &str) -> (usize, usize) {
    let (_, page) = asks(probes, "/metrics").await;
    let figure = |state: &str| {
        let series = format!("portcullis_passwords{{state=\"{state}\"}}");
        sample(&page, &series).unwrap() as usize
    };
    (figure("hashed"), figure("waiting"))
}

/// The results of a client that requests metrics, keys and tokens all the time.
#[derive(Default)]
struct Seen {
    hashed: usize,
    waiting: usize,
    times: Vec<Duration>,
}

async fn watches(
    site: &Site,
    server: &Running,
    mut grants: Vec<Tokens>,
    over: &AtomicBool,
) -> Seen {
    let (public, probes) = (base(server), management(server));
    let web = site.web(&public);
    let mut seen = Seen::default();
    while !over.load(Ordering::SeqCst) {
        let (hashed, waiting) = passwords(&probes).await;
        seen.hashed = seen.hashed.max(hashed);
        seen.waiting = seen.waiting.max(waiting);
        let begun = Instant::now();
        assert_eq!(asks(&public, "/oauth2/jwks").await.0, 200);
        seen.times.push(begun.elapsed());
        // Each grant may be refreshed 30 times a minute, so the grants take turns.
        let grant = seen.times.len() % grants.len();
        let begun = Instant::now();
        if seen.times.len() < 20 * grants.len() {
            grants[grant] = web.refreshes(grants[grant].refresh(), &[]).await.ok();
            seen.times.push(begun.elapsed());
        }
    }
    seen
}

async fn signs_in(browser: Browser, page: Answer, n: usize) -> (Answer, Duration) {
    let mut user = browser.from(&address(n));
    let form = form(&page, n);
    let form: Vec<_> = form.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let begun = Instant::now();
    (user.post("/login", &form).await, begun.elapsed())
}

/// A thousand users at the same time, with the real cost of a hash. Not more passwords are hashed than there
/// are threads and not more wait than the limit; the other users get an error, and requests for tokens and
/// keys are served.
#[test]
fn f24_login_storm_leaves_other_requests_unaffected() {
    let _turn = crate::alone();
    most_files();
    let (site, server) = open();
    let proc = Proc(server.child.id());
    let web = site.web(&base(&server));
    let (browser, page, grants) = runs(async {
        let mut alice = Browser::new(&base(&server)).from("192.0.2.1");
        let mut grants = Vec::new();
        for _ in 0..6 {
            let code = alice.allows(&web).await;
            grants.push(web.redeems(&code).await.ok());
        }
        let mut browser = Browser::new(&base(&server));
        let page = browser.opens(&web.request(&[])).await;
        (browser, page, grants)
    });
    let before = proc.resident();
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    let (answers, seen) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| runs(watches(&site, &server, grants, &over)));
        let answers = runs(async {
            let all: Vec<_> = (0..LOGINS)
                .map(|n| actix_web::rt::spawn(signs_in(browser.clone(), page.clone(), n)))
                .collect();
            let mut answers = Vec::new();
            for one in all {
                answers.push(one.await.unwrap());
            }
            answers
        });
        over.store(true, Ordering::SeqCst);
        (answers, watcher.join().unwrap())
    });
    let took = begun.elapsed();
    let with = |status: u16| -> Vec<&(Answer, Duration)> {
        let all = answers.iter();
        all.filter(|(answer, _)| answer.status == status).collect()
    };
    let (checked, busy, put_off) = (with(200), with(503), with(429));
    let slowest = |some: &[&(Answer, Duration)]| some.iter().map(|(_, took)| *took).max();
    println!(
        "{LOGINS} logins within {took:?}: {} checked ({:?} at most), {} told 503 ({:?}), {} told 429",
        checked.len(),
        slowest(&checked),
        busy.len(),
        slowest(&busy),
        put_off.len()
    );
    let memory = proc.peak();
    let longest = seen.times.iter().max().unwrap();
    println!(
        "hashed at once: {}, waiting: {}; {before} MiB before, {memory} at most; {} others, {longest:?} at most",
        seen.hashed,
        seen.waiting,
        seen.times.len()
    );
    let others: Vec<&Answer> = answers
        .iter()
        .map(|(answer, _)| answer)
        .filter(|answer| ![200, 429, 503].contains(&answer.status))
        .collect();
    assert!(others.is_empty(), "{}: {:?}", others.len(), others[0]);
    assert!(checked.len() >= 30, "{}", checked.len());
    assert!(busy.len() >= 100, "{}", busy.len());
    for (answer, _) in &busy {
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
    let threads = std::thread::available_parallelism().unwrap().get().min(4);
    assert!((1..=threads).contains(&seen.hashed), "{}", seen.hashed);
    assert!((32..=64).contains(&seen.waiting), "{}", seen.waiting);
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert!(memory < before + 4 * 64, "{before}, {memory}");
    assert!(seen.times.len() > 10, "{}", seen.times.len());
    assert!(*longest < Duration::from_secs(3), "{longest:?}");
    // Then everything is as before.
    let code = runs(async {
        assert_eq!(passwords(&management(&server)).await, (0, 0));
        let mut bob = Browser::new(&base(&server)).from("192.0.2.2");
        bob.allows(&web).await
    });
    assert!(code.starts_with("pcl_ac_"));
}

/// Sends a login, and resets the connection.
fn hung_up_on(to: SocketAddr, browser: &Browser, page: &Answer, n: usize) -> TcpStream {
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(form(page, n))
        .finish();
    let cookies: Vec<String> = browser
        .cookies
        .iter()
        .map(|(n, v)| format!("{n}={v}"))
        .collect();
    let mut stream = TcpStream::connect(to).unwrap();
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    write!(
        stream,
        "POST /login HTTP/1.1\r\nHost: op.example\r\nOrigin: https://op.example\r\nSec-Fetch-Site: same-origin\r\n\
         Cookie: {}\r\nX-Forwarded-For: {}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\n\r\n{body}",
        cookies.join("; "),
        address(n),
        body.len()
    )
    .unwrap();
    stream
}

/// The queue has 64 slots. Three times as many clients send a login and disconnect, and the queue is empty
/// again.
#[test]
fn f24_disconnected_clients_leave_the_queue() {
    let _turn = crate::alone();
    let (site, server) = open();
    let (public, probes) = (base(&server), management(&server));
    let to = server.started("listen").parse().unwrap();
    let web = site.web(&public);
    runs(async {
        let mut browser = Browser::new(&public);
        let page = browser.opens(&web.request(&[])).await;
        for round in 0..3 {
            let all: Vec<TcpStream> = (0..66)
                .map(|n| hung_up_on(to, &browser, &page, round * 66 + n))
                .collect();
            let mut waiting = 0;
            let begun = Instant::now();
            while waiting < 20 && begun.elapsed() < Duration::from_secs(10) {
                waiting = waiting.max(passwords(&probes).await.1);
            }
            assert!(waiting >= 20, "{waiting}");
            drop(all);
            let begun = Instant::now();
            while passwords(&probes).await != (0, 0) {
                assert!(begun.elapsed() < Duration::from_secs(10), "{round}");
            }
            println!("{waiting} waited; none after {:?}", begun.elapsed());
        }
        let mut alice = Browser::new(&public).from("192.0.2.1");
        alice.allows(&web).await;
    });
}
