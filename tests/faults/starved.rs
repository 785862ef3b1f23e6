//! A machine without enough processor time or memory (F25), file descriptors or threads (F30).

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

/// Returns a command that runs another one under a limit.
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

/// Gets a code as a signed-in user, exchanges it, and refreshes. Returns the last tokens.
async fn completes_flow(alice: &mut Browser, web: &TestClient) -> String {
    let code = alice.allows(web).await;
    let tokens = web.redeems(&code).await.ok();
    let tokens = web.refreshes(tokens.refresh(), &[]).await.ok();
    tokens.refresh().to_owned()
}

/// Returns how often that is possible in a time.
async fn counts_rounds_for(time: Duration, alice: &mut Browser, web: &TestClient) -> usize {
    let (begun, mut rounds) = (Instant::now(), 0);
    while begun.elapsed() < time {
        completes_flow(alice, web).await;
        rounds += 1;
    }
    rounds
}

/// F25. Eight processes use all processor time they get for 8 s. Every request is answered correctly, the
/// service manager receives watchdog messages, and afterwards the server is as fast as before.
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
    // The server sends two watchdog messages in this time.
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
            completes_flow(&mut alice, &web).await;
            let before = counts_rounds_for(Duration::from_secs(2), &mut alice, &web).await;
            let told = heard.load(Ordering::SeqCst);
            let hogs = Hogs::start(8);
            let during = counts_rounds_for(Duration::from_secs(8), &mut alice, &web).await;
            drop(hogs);
            (before, during, heard.load(Ordering::SeqCst) - told)
        });
        let ready = until(Duration::from_secs(10), "readiness", || is_ready(&server));
        let mut after = 0;
        // Another process may use this machine for a while.
        for _ in 0..5 {
            after = runs(counts_rounds_for(Duration::from_secs(2), &mut alice, &web));
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
        // A service manager would restart a server without a message for 2 s.
        assert!(alive >= 4, "{alive}");
    });
    assert_eq!(panics(&server), 0);
    std::fs::remove_file(path).unwrap();
}

/// A memory cgroup for this test, if it may create one.
struct Cgroup(PathBuf);

impl Cgroup {
    /// Limits the memory that the process may allocate from now on.
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

    /// Lifts the limit.
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
        // A cgroup can be removed once it contains no process.
        let begun = Instant::now();
        while std::fs::remove_dir(&self.0).is_err() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Repeats the flow until the server does not answer any more, and records each issued token. Each time it
/// signs in without a known device.
async fn repeats_until(
    end: Instant,
    base: String,
    web: TestClient,
    known: Option<Browser>,
    given: &Mutex<Vec<String>>,
) {
    while Instant::now() < end {
        // Starts again if there is no response, or if the server is busy.
        let one = async {
            let mut alice = known.clone().unwrap_or_else(|| Browser::new(&base));
            completes_flow(&mut alice, &web).await
        };
        match std::panic::AssertUnwindSafe(one).catch_unwind().await {
            Ok(token) => given.lock().unwrap().push(token),
            Err(_) if TcpStream::connect(base.trim_start_matches("http://")).is_err() => break,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// Returns the grant of a refresh token.
fn grant(token: &str) -> uuid::Uuid {
    let bytes = URL_SAFE_NO_PAD
        .decode(token.strip_prefix("pcl_rt_").unwrap())
        .unwrap();
    uuid::Uuid::from_slice(&bytes[1..17]).unwrap()
}

/// F25. The memory limit is slightly above what the server uses. Four clients send requests, then four more
/// sign in repeatedly, and each hash needs 19 MiB. The server responds with 503 or is killed, and after a
/// restart everything acknowledged is there. The limit is that of a memory cgroup where the test may create
/// one, else that of the address space.
#[test]
fn f25_memory_exhaustion_loses_no_acknowledged_write() {
    let _turn = crate::alone();
    let site = Site::open(Installation::new());
    let mut server = site.installation.serve(&[]);
    let public = base(&server);
    let web = site.web(&public);
    let given = Mutex::new(Vec::new());
    let mut known = Browser::new(&public);
    given
        .lock()
        .unwrap()
        .push(runs(completes_flow(&mut known, &web)));
    let proc = Proc(server.child.id());
    let group = Cgroup::around(server.child.id(), 24);
    if group.is_none() {
        proc.limit(None, ADDRESS_SPACE, Some(proc.address_space()));
    }
    // Errors of clients of a dying server are expected.
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
                runs(repeats_until(begun + time * 3, public, web, known, given));
            });
        }
    });
    let _ = std::panic::take_hook();
    // A killed process may not have exited yet.
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
        // If the server was not killed, it recovers once it may use more memory.
        match &group {
            Some(group) => group.opens(),
            None => proc.limit(None, ADDRESS_SPACE, None),
        }
        until(Duration::from_secs(10), "readiness", || is_ready(&server));
    }
    // Killed if it still runs.
    drop(server);
    drop(group);
    let server = site.installation.serve(&[]);
    assert!(given.len() > 10, "{}", given.len());
    for token in &given {
        let id = grant(token);
        let rows = "SELECT count(*) AS n FROM grants WHERE generation > 0 AND id = ";
        assert_eq!(site.installation.count(&format!("{rows}'{id}'")), 1, "{id}");
    }
    runs(completes_flow(
        &mut Browser::new(&base(&server)),
        &site.web(&base(&server)),
    ));
}

/// Returns whether a new connection is answered within 1 s.
fn answers(to: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(to).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let keys = b"GET /oauth2/jwks HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\n\r\n";
    let mut heard = [0; 12];
    stream.write_all(keys).is_ok() && stream.read_exact(&mut heard).is_ok() && &heard[9..] == b"200"
}

/// F30. The server has 64 file descriptors. A hundred connections take the remaining ones, and no new
/// connection is answered. The server does not busy-loop, and answers again once they are closed.
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
    runs(completes_flow(&mut alice, &web));
    let (lines, cpu) = (server.log().len(), proc.cpu());
    let begun = Instant::now();
    // They send nothing, so the server closes each after 5 s and the next takes its slot.
    let crowd: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(to).unwrap()).collect();
    assert!(!answers(to), "there are files left");
    // The time over which the processor time is measured.
    std::thread::sleep(Duration::from_secs(4));
    let (spent, over) = (proc.cpu() - cpu, begun.elapsed().as_secs_f64());
    drop(crowd);
    let back = until(Duration::from_secs(15), "an answer", || answers(to));
    let lines = server.log().len() - lines;
    println!("{spent} s of processor time in {over} s; back after {back:?}; {lines} lines");
    assert!(spent < over / 2.0, "{spent} s of {over} s");
    assert!(lines < 400, "{:#?}", server.log());
    assert_eq!(panics(&server), 0);
    // Reading and writing the database needs files as well.
    runs(completes_flow(&mut alice, &web));
    assert!(is_ready(&server));
}

/// The name of the limit for `prlimit`.
const ADDRESS_SPACE: (&str, Resource) = ("as", Resource::As);
const THREADS: (&str, Resource) = ("nproc", Resource::Nproc);

/// A system user other than root, whose threads the limit counts.
const OTHER_USER: u32 = 61_734;

/// F30. The system refuses new threads. The server continues with the threads that it has and does not panic,
/// and later it may create threads again. The limit does not apply to root, so the server then runs as
/// another user.
#[test]
fn f30_server_continues_when_threads_run_out() {
    let _turn = crate::alone();
    // A user other than root may not be able to reach the target folder.
    let folder = std::env::temp_dir().join(format!("pcl-threads-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let site = Site::open(Installation {
        folder,
        database: None,
        told: Vec::new(),
    });
    let serve = site.installation.command(&["serve"], &[]);
    let other_user = rustix::process::getuid().is_root().then_some(OTHER_USER);
    let server = match other_user {
        None => site.installation.starts(serve),
        Some(_) => {
            let owner = format!("{OTHER_USER}:{OTHER_USER}");
            let mut chown = Command::new("chown");
            let chown = chown.args(["-R", &owner]).arg(&site.installation.folder);
            assert!(chown.status().unwrap().success());
            let (user, group) = (
                format!("--reuid={OTHER_USER}"),
                format!("--regid={OTHER_USER}"),
            );
            let as_user = ["setpriv", &user, &group, "--clear-groups"];
            site.installation.starts(behind(&as_user, &serve))
        }
    };
    let proc = Proc(server.child.id());
    let public = base(&server);
    let web = site.web(&public);
    let mut alice = Browser::new(&public);
    // All its workers are running once new connections have been answered.
    runs(async {
        for _ in 0..8 {
            assert_eq!(asks(&public, "/oauth2/jwks").await.0, 200);
        }
    });
    proc.limit(other_user, THREADS, Some(1));
    let threads = proc.threads();
    let rounds = runs(counts_rounds_for(Duration::from_secs(2), &mut alice, &web));
    println!(
        "{rounds} rounds with {threads} threads, {} in the end",
        proc.threads()
    );
    assert!(rounds > 0 && proc.threads() <= threads, "{rounds}");
    assert_eq!(panics(&server), 0);
    proc.limit(other_user, THREADS, None);
    runs(async {
        let all: Vec<_> = (0..4)
            .map(|_| {
                let (public, web) = (public.clone(), web.clone());
                actix_web::rt::spawn(async move {
                    completes_flow(&mut Browser::new(&public), &web).await
                })
            })
            .collect();
        for one in all {
            one.await.unwrap();
        }
    });
    assert!(is_ready(&server));
}
