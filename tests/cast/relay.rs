//! A way to Postgres that can be cut: a socket like Postgres's own, in front of the real one.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::postgres;

/// The name of Postgres's socket in its folder.
const SOCKET: &str = ".s.PGSQL.5432";

/// What becomes of what is said, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open,
    /// Nothing arrives, and nobody is told: a network that swallows packets, perhaps in one direction.
    Silent {
        there: bool,
        back: bool,
    },
    /// Answers come late.
    Slow(Duration),
    /// One message in a hundred is answered by hanging up.
    Flaky,
    /// Everybody is hung up on.
    Broken,
}

pub struct Relay {
    folder: PathBuf,
    real: String,
    shared: Arc<Shared>,
}

struct Shared {
    /// The socket that new connections are joined to.
    server: Mutex<PathBuf>,
    way: Mutex<Way>,
    changed: Condvar,
    /// Messages, while it is flaky.
    passed: AtomicUsize,
    /// Both ends of each connection that there ever was.
    ends: Mutex<Vec<UnixStream>>,
}

impl Relay {
    /// In front of the Postgres of the tests; `None` if that is reached by network.
    pub fn new() -> Option<Self> {
        let query = postgres::url().split_once('?')?.1;
        let host = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "host");
        let (_, real) = host.filter(|(_, host)| host.starts_with('/'))?;
        Some(Self::before(Path::new(real.as_ref())))
    }

    /// In front of the server whose socket is in a folder.
    pub fn before(real: &Path) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        let folder = std::env::temp_dir().join(format!("relay-{process}-{number}"));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let listener = UnixListener::bind(folder.join(SOCKET)).unwrap();
        let shared = Arc::new(Shared {
            server: Mutex::new(real.join(SOCKET)),
            way: Mutex::new(Way::Open),
            changed: Condvar::new(),
            passed: AtomicUsize::new(0),
            ends: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        // It ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = accepting.server.lock().unwrap().clone();
                if accepting.way() != Way::Broken
                    && let Ok(server) = UnixStream::connect(&server)
                {
                    accepting.join(client, server);
                }
            }
        });
        Self {
            folder,
            real: real.display().to_string(),
            shared,
        }
    }

    /// New connections lead to another server from now on; those that there are stay.
    pub fn leads_to(&self, real: &Path) {
        *self.shared.server.lock().unwrap() = real.join(SOCKET);
    }

    /// Closes all connections and accepts new ones.
    pub fn hangs_up(&self) {
        for end in self.shared.ends.lock().unwrap().drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// The URL of a database, by way of this relay.
    pub fn through(&self, url: &str) -> String {
        url.replace(&self.real, &self.folder.display().to_string())
    }

    /// From now on nothing arrives, in either direction.
    pub fn falls_silent(&self) {
        self.falls_silent_in(true, true);
    }

    /// From now on nothing arrives there, or comes back.
    pub fn falls_silent_in(&self, there: bool, back: bool) {
        self.shared.becomes(Way::Silent { there, back });
    }

    /// From now on each answer comes so late.
    pub fn slows_down(&self, by: Duration) {
        self.shared.becomes(Way::Slow(by));
    }

    /// From now on one message in a hundred is answered by hanging up.
    pub fn is_flaky(&self) {
        self.shared.becomes(Way::Flaky);
    }

    /// From now on everybody is hung up on; so are those who are there.
    pub fn breaks(&self) {
        self.shared.becomes(Way::Broken);
        self.hangs_up();
    }

    /// All is well again. What was held back arrives now.
    pub fn heals(&self) {
        self.shared.becomes(Way::Open);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.breaks();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Shared {
    fn way(&self) -> Way {
        *self.way.lock().unwrap()
    }

    fn becomes(&self, way: Way) {
        *self.way.lock().unwrap() = way;
        self.changed.notify_all();
    }

    /// Passes on what two ends say to each other.
    fn join(self: &Arc<Self>, client: UnixStream, server: UnixStream) {
        let copies = [&client, &server].map(|end| end.try_clone().unwrap());
        self.ends.lock().unwrap().extend(copies);
        let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
        for (from, to, is_back) in [(client, server, false), (back.0, back.1, true)] {
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.pass(from, to, is_back));
        }
    }

    fn pass(&self, mut from: UnixStream, mut to: UnixStream, is_back: bool) {
        let mut bytes = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            let way = self.way.lock().unwrap();
            let holds = |way: &mut Way| match way {
                Way::Silent { there, back } => *(if is_back { back } else { there }),
                _ => false,
            };
            let way = *self.changed.wait_while(way, holds).unwrap();
            let is_broken = match way {
                Way::Broken => true,
                Way::Flaky => self.passed.fetch_add(1, Ordering::SeqCst) % 100 == 99,
                Way::Slow(by) if is_back => {
                    std::thread::sleep(by);
                    false
                }
                _ => false,
            };
            if is_broken || to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
