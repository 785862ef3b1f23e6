//! A machine that has not enough: of processor time and memory (F25), of file descriptors and threads
//! (F30).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt;
use rustix::process::Resource;

use crate::fixtures::installation::{Installation, Running};
use crate::fixtures::proc::{Hogs, Proc};
use crate::fixtures::site::{Site, asks, base, management};
use crate::fixtures::wait::until;
use crate::fixtures::{Browser, TestClient};
use crate::runs;

/// A command behind another one, which limits it.
fn behind(first: &[&str], command: &Command) -> Command {
    let mut behind = Command::new(first[0]);
    behind
        .args(&first[1..])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(command.get_current_dir().unwrap())
        .env_clear()
        .envs(command.get_envs().filter_map(|(n, v)| Some((n, v?))))
        .stdin(std::process::Stdio::null());
    behind
}

fn is_ready(server: &Running) -> bool {
    runs(asks(&management(server), "/readyz")).0 == 200
}

fn panics(server: &Running) -> usize {
    let log = server.log();
    log.iter()
        .filter(|line| line.contains("server.panicked"))
        .count()
}

/// Somebody who is signed in gets a code, and tokens for it, and refreshes them: the tokens in the end.
async fn shops(alice: &mut Browser, web: &TestClient) -> String {
    let code = alice.allows(web).await;
    let tokens = web.redeems(&code).await.ok();
    let tokens = web.refreshes(tokens.refresh(), &[]).await.ok();
    tokens.refresh().to_owned()
}

/// How often that is done in a time.
async fn shops_for(time: Duration, alice: &mut Browser, web: &TestClient) -> usize {
    let (begun, mut rounds) = (Instant::now(), 0);
    while begun.elapsed() < time {
        shops(alice, web).await;
        rounds += 1;
    }
    rounds
}

/// F25. Eight processes take all the time they get for eight seconds. Every request is answered, and rightly;
/// the service manager hears that the server lives; then all is as fast as before.
#[test]
fn f25_cpu_starvation_only_slows_the_server() {
    let _turn = crate::alone();
    let site = Site::open(Installation::new());
    let path = std::env::temp_dir().join(format!("pcl-starved-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    // The server says that it lives twice in this time.
    let server = site.installation.serve(&[
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "2000000"),
    ]);
    let (over, heard) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut message = [0; 512];
            while !over.load(Ordering::SeqCst) {
                let length = manager.recv(&mut message).unwrap();
                if message[..length].starts_with(b"WATCHDOG=1") {
                    heard.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let web = site.web(&base(&server));
        let mut alice = Browser::new(&base(&server));
        let (before, during, alive) = runs(async {
            shops(&mut alice, &web).await;
            let before = shops_for(Duration::from_secs(2), &mut alice, &web).await;
            let told = heard.load(Ordering::SeqCst);
            let hogs = Hogs::start(8);
            let during = shops_for(Duration::from_secs(8), &mut alice, &web).await;
            drop(hogs);
            (before, during, heard.load(Ordering::SeqCst) - told)
        });
        let ready = until(Duration::from_secs(10), "readiness", || is_ready(&server));
        let mut after = 0;
        // Whoever else works on this machine may have its share for a while.
        for _ in 0..5 {
            after = runs(shops_for(Duration::from_secs(2), &mut alice, &web));
            if after * 2 > before {
                break;
            }
        }
        println!(
            "rounds in 2 s: {before} before, {} starved, {after} after; ready after {ready:?}; \
             the manager heard {alive} times in 8 s",
            during as f64 / 4.0
        );
        over.store(true, Ordering::SeqCst);
        assert!(
            during > 0 && after * 2 > before,
            "{before} {during} {after}"
        );
        // A manager that hears nothing for two seconds would restart it.
        assert!(alive >= 4, "{alive}");
    });
    assert_eq!(panics(&server), 0);
    std::fs::remove_file(path).unwrap();
}

/// A memory cgroup of our own, where we may make one.
struct Cgroup(PathBuf);

impl Cgroup {
    /// With so much room for what a process asks for from now on.
    fn around(process: u32, mebibytes: u64) -> Option<Self> {
        let name = format!("portcullis-{}", std::process::id());
        let (one, two) = ("/sys/fs/cgroup/memory", "/sys/fs/cgroup");
        let (folder, limit) = match std::path::Path::new(one).exists() {
            true => (PathBuf::from(one).join(name), "memory.limit_in_bytes"),
            false => (PathBuf::from(two).join(name), "memory.max"),
        };
        std::fs::create_dir(&folder).ok()?;
        let group = Self(folder);
        let bytes = (mebibytes << 20).to_string();
        std::fs::write(group.0.join(limit), bytes).ok()?;
        std::fs::write(group.0.join("cgroup.procs"), process.to_string()).ok()?;
        Some(group)
    }

    /// As much as anybody wants.
    fn opens(&self) {
        for (limit, most) in [("memory.limit_in_bytes", "-1"), ("memory.max", "max")] {
            if self.0.join(limit).exists() {
                std::fs::write(self.0.join(limit), most).unwrap();
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Only once nobody is in it.
        let begun = Instant::now();
        while std::fs::remove_dir(&self.0).is_err() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Shops until nobody answers any more, and notes each token that is given; signs in anew each time without
/// a browser that is known.
async fn shops_until(
    end: Instant,
    base: String,
    web: TestClient,
    known: Option<Browser>,
    given: &Mutex<Vec<String>>,
) {
    while Instant::now() < end {
        // Whoever gets no answer, or that the server is busy, begins again.
        let one = async {
            let mut alice = known.clone().unwrap_or_else(|| Browser::new(&base));
            shops(&mut alice, &web).await
        };
        match std::panic::AssertUnwindSafe(one).catch_unwind().await {
            Ok(token) => given.lock().unwrap().push(token),
            Err(_) if TcpStream::connect(base.trim_start_matches("http://")).is_err() => break,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// The grant that a refresh token is of.
fn grant(token: &str) -> uuid::Uuid {
    let bytes = URL_SAFE_NO_PAD
        .decode(token.strip_prefix("pcl_rt_").unwrap())
        .unwrap();
    uuid::Uuid::from_slice(&bytes[1..17]).unwrap()
}

/// F25. What the server may have of memory is just above what it has; four people shop, then four more sign
/// in again and again, and a hash needs 19 MiB. It answers 503, or it ends; after a restart everything is
/// there that was acknowledged. In a memory cgroup where we may make one, else by a limit of the address
/// space.
#[test]
fn f25_memory_exhaustion_loses_no_acknowledged_write() {
    let _turn = crate::alone();
    let site = Site::open(Installation::new());
    let mut server = site.installation.serve(&[]);
    let public = base(&server);
    let web = site.web(&public);
    let given = Mutex::new(Vec::new());
    let mut known = Browser::new(&public);
    given.lock().unwrap().push(runs(shops(&mut known, &web)));
    let proc = Proc(server.child.id());
    let group = Cgroup::around(server.child.id(), 24);
    if group.is_none() {
        proc.limit(None, ADDRESS_SPACE, Some(proc.address_space()));
    }
    // What the shoppers of a dying server find is no news.
    std::panic::set_hook(Box::new(|_| {}));
    let (begun, time) = (Instant::now(), Duration::from_secs(2));
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (public, web, given) = (public.clone(), web.clone(), &given);
            // A connection belongs to the runtime that opened it.
            let known = (n < 4).then(|| {
                let mut browser = Browser::new(&public);
                browser.cookies.clone_from(&known.cookies);
                browser
            });
            scope.spawn(move || {
                if known.is_none() {
                    until(time * 2, "a time", || begun.elapsed() > time);
                }
                runs(shops_until(begun + time * 3, public, web, known, given));
            });
        }
    });
    let _ = std::panic::take_hook();
    // Whoever is killed may not be gone yet.
    let dying = TcpStream::connect(public.trim_start_matches("http://")).is_err();
    let ended = match dying {
        true => Some(server.child.wait().unwrap()),
        false => server.child.try_wait().unwrap(),
    };
    let given = given.into_inner().unwrap();
    println!(
        "by {}: {ended:?} after {} tokens",
        if group.is_some() {
            "a cgroup"
        } else {
            "the address space"
        },
        given.len()
    );
    if ended.is_none() {
        // It went on all the time: it does so when it may have more again.
        match &group {
            Some(group) => group.opens(),
            None => proc.limit(None, ADDRESS_SPACE, None),
        }
        until(Duration::from_secs(10), "readiness", || is_ready(&server));
    }
    // Killed if it is still there.
    drop(server);
    drop(group);
    let server = site.installation.serve(&[]);
    assert!(given.len() > 10, "{}", given.len());
    for token in &given {
        let id = grant(token);
        let rows = "SELECT count(*) AS n FROM grants WHERE generation > 0 AND id = ";
        assert_eq!(site.installation.count(&format!("{rows}'{id}'")), 1, "{id}");
    }
    runs(shops(
        &mut Browser::new(&base(&server)),
        &site.web(&base(&server)),
    ));
}

/// Whether a new connection is answered within a second.
fn answers(to: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(to).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let keys = b"GET /oauth2/jwks HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\n\r\n";
    let mut heard = [0; 12];
    stream.write_all(keys).is_ok() && stream.read_exact(&mut heard).is_ok() && &heard[9..] == b"200"
}

/// F30. With 64 file descriptors, from the start. A hundred connections take what is left; nobody is
/// answered then, but the server does not turn in circles, and when they are gone it answers again.
#[test]
fn f30_listener_recovers_from_descriptor_exhaustion() {
    let _turn = crate::alone();
    let site = Site::open(Installation::new());
    let serve = site.installation.command(&["serve"], &[]);
    let limited = ["sh", "-c", "ulimit -n 64 && exec \"$0\" \"$@\""];
    let server = site.installation.starts(behind(&limited, &serve));
    let proc = Proc(server.child.id());
    let to: SocketAddr = server.started("listen").parse().unwrap();
    let public = base(&server);
    let web = site.web(&public);
    let mut alice = Browser::new(&public);
    runs(shops(&mut alice, &web));
    let (lines, cpu) = (server.log().len(), proc.cpu());
    let begun = Instant::now();
    // They say nothing: each is hung up on after five seconds, and the next takes its slot.
    let crowd: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(to).unwrap()).collect();
    assert!(!answers(to), "there are files left");
    // The span over which the processor time is measured.
    std::thread::sleep(Duration::from_secs(4));
    let (spent, over) = (proc.cpu() - cpu, begun.elapsed().as_secs_f64());
    drop(crowd);
    let back = until(Duration::from_secs(15), "an answer", || answers(to));
    let lines = server.log().len() - lines;
    println!("{spent} s of processor time in {over} s; back after {back:?}; {lines} lines");
    assert!(spent < over / 2.0, "{spent} s of {over} s");
    assert!(lines < 400, "{:#?}", server.log());
    assert_eq!(panics(&server), 0);
    // Reading people's rows and writing them needs files, too.
    runs(shops(&mut alice, &web));
    assert!(is_ready(&server));
}

/// What `prlimit` calls them.
const ADDRESS_SPACE: (&str, Resource) = ("as", Resource::As);
const THREADS: (&str, Resource) = ("nproc", Resource::Nproc);

/// A user of the system who is not root, whose threads a limit counts.
const NOBODY: u32 = 61_734;

/// F30. The system gives no thread more. What runs goes on with the threads that there are, and nothing
/// panics; afterwards there are more again. Root has no such limit: then the server runs as somebody else.
#[test]
fn f30_server_continues_when_threads_run_out() {
    let _turn = crate::alone();
    // Whoever is not root may not reach the target folder.
    let folder = std::env::temp_dir().join(format!("pcl-threads-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let site = Site::open(Installation {
        folder,
        database: None,
        told: Vec::new(),
    });
    let serve = site.installation.command(&["serve"], &[]);
    let nobody = rustix::process::getuid().is_root().then_some(NOBODY);
    let server = match nobody {
        None => site.installation.starts(serve),
        Some(_) => {
            let owner = format!("{NOBODY}:{NOBODY}");
            let mut chown = Command::new("chown");
            let chown = chown.args(["-R", &owner]).arg(&site.installation.folder);
            assert!(chown.status().unwrap().success());
            let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
            let somebody = ["setpriv", &user, &group, "--clear-groups"];
            site.installation.starts(behind(&somebody, &serve))
        }
    };
    let proc = Proc(server.child.id());
    let public = base(&server);
    let web = site.web(&public);
    let mut alice = Browser::new(&public);
    // All its workers are there when new connections have been answered.
    runs(async {
        for _ in 0..8 {
            assert_eq!(asks(&public, "/oauth2/jwks").await.0, 200);
        }
    });
    proc.limit(nobody, THREADS, Some(1));
    let threads = proc.threads();
    let rounds = runs(shops_for(Duration::from_secs(2), &mut alice, &web));
    println!(
        "{rounds} rounds with {threads} threads, {} in the end",
        proc.threads()
    );
    assert!(rounds > 0 && proc.threads() <= threads, "{rounds}");
    assert_eq!(panics(&server), 0);
    proc.limit(nobody, THREADS, None);
    runs(async {
        let all: Vec<_> = (0..4)
            .map(|_| {
                let (public, web) = (public.clone(), web.clone());
                actix_web::rt::spawn(async move { shops(&mut Browser::new(&public), &web).await })
            })
            .collect();
        for one in all {
            one.await.unwrap();
        }
    });
    assert!(is_ready(&server));
}
