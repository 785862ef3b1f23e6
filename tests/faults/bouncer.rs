//! F38: PgBouncer between the server and PostgreSQL.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::fixtures::Look;
use crate::fixtures::installation::{Installation, refused};
use crate::fixtures::site::{Site, asks, base, management};
use crate::fixtures::{Browser, postgres};
use crate::runs;

const SOCKET: &str = ".s.PGSQL.5432";

/// A pooler in front of the PostgreSQL server of the tests, which is stopped at the end of the test.
struct Bouncer {
    folder: PathBuf,
    child: Child,
}

impl Bouncer {
    fn start(mode: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let folder = std::env::temp_dir().join(format!("bouncer-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let ini = folder.join("pgbouncer.ini");
        let installation = folder.display();
        let settings = format!(
            "[databases]\n* = {}\n[pgbouncer]\npool_mode = {mode}\nauth_type = any\nlisten_port = 5432\n\
             unix_socket_dir = {installation}\nlogfile = {installation}/log\ndefault_pool_size = 40\nmax_client_conn = 200\n",
            real()
        );
        std::fs::write(&ini, settings).unwrap();
        let mut child = program(&folder)
            .arg(&ini)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("pgbouncer is missing; tests/run installs it");
        let begun = Instant::now();
        while !folder.join(SOCKET).exists() {
            assert!(child.try_wait().unwrap().is_none(), "pgbouncer ended");
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "pgbouncer does not answer"
            );
            std::thread::yield_now();
        }
        Self { folder, child }
    }

    /// Returns the URL of a database through this pooler.
    fn through(&self, url: &str) -> String {
        let name = postgres::name(url);
        format!(
            "postgres:///{name}?host={}&user=postgres",
            self.folder.display()
        )
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Returns the address of the PostgreSQL server of the tests, as the configuration of the pooler names it.
fn real() -> String {
    let (server, query) = postgres::url()
        .split_once('?')
        .unwrap_or((postgres::url(), ""));
    let mut parts = vec![];
    if let Some(url) = url::Url::parse(server).ok().filter(|url| url.has_host()) {
        parts.extend(url.host_str().map(|host| format!("host={host}")));
        parts.extend(url.port().map(|port| format!("port={port}")));
        parts.push(format!("user={}", url.username()));
        parts.extend(
            url.password()
                .map(|password| format!("password={password}")),
        );
    }
    let query = form_urlencoded::parse(query.as_bytes());
    parts.extend(query.map(|(name, value)| format!("{name}={value}")));
    parts.join(" ")
}

/// Returns the command that starts PgBouncer. PgBouncer refuses to run as root, so `setpriv` changes the
/// account and then executes it in the same process. The process that the test kills is therefore PgBouncer
/// itself.
fn program(folder: &Path) -> Command {
    let bouncer = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    let bouncer = bouncer.unwrap_or("pgbouncer");
    if !postgres::is_root() {
        return Command::new(bouncer);
    }
    let given = Command::new("chown")
        .args(["-R", "postgres"])
        .arg(folder)
        .status()
        .unwrap();
    assert!(given.success());
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=postgres",
        "--regid=postgres",
        "--clear-groups",
        bouncer,
    ]);
    command
}

/// F38. If connections move to other clients between transactions, time limits, prepared statements and the
/// lock of a migration would be those of another client. So no command starts, and each error says what to
/// do.
#[test]
fn f38_transaction_mode_pooler_is_rejected() {
    let _turn = crate::alone();
    let installation = Installation::on_postgres();
    let bouncer = Bouncer::start("transaction");
    let url = bouncer.through(installation.database.as_deref().unwrap());
    let through = [("PORTCULLIS__DATABASE__URL", url.as_str())];
    let sentence = "set the pooler to session mode";
    // It also refuses while the pooler has idle connections, as it may beside other nodes.
    let busy: Vec<_> = (0..4).map(|_| hold(&url)).collect();
    for _ in 0..3 {
        refused(&installation.run(&["serve"], &through), 78, sentence);
    }
    drop(busy);
    for _ in 0..3 {
        refused(&installation.run(&["serve"], &through), 78, sentence);
    }
    refused(
        &installation.run(&["migrate", "status"], &through),
        78,
        sentence,
    );
    refused(&installation.run(&["user", "list"], &through), 78, sentence);
    let doctor = installation.run(&["doctor"], &through);
    let said = String::from_utf8(doctor.stdout).unwrap();
    let line = said.lines().find(|line| line.starts_with("fail  database"));
    assert!(line.is_some_and(|line| line.contains(sentence)), "{said}");
    // The same installation without the pooler.
    assert_eq!(installation.serve(&[]).stop(), Some(0));
}

/// Opens a transaction, which occupies one of the pooler's connections.
fn hold(url: &str) -> Look {
    let mut look = Look::at(url);
    look.execute("BEGIN; SELECT 1");
    look
}

/// F38. In session mode each client of the pooler has its own connection, and everything works.
#[test]
fn f38_session_mode_pooler_works() {
    let _turn = crate::alone();
    let mut site = Site::open(Installation::on_postgres());
    let bouncer = Bouncer::start("session");
    let url = bouncer.through(site.installation.database.as_deref().unwrap());
    site.installation
        .told
        .push(("PORTCULLIS__DATABASE__URL", url));
    let server = site.installation.serve(&[]);
    let public = base(&server);
    runs(async {
        let web = site.web(&public);
        let mut alice = Browser::new(&public);
        alice.signs_in(&web, "alice").await;
        let tokens = web.redeems(&alice.allows(&web).await).await.ok();
        let next = web.refreshes(tokens.refresh(), &[]).await.ok();
        assert_eq!(alice.asks_userinfo("GET", next.access()).await.status, 200);
        assert_eq!(web.revokes(next.refresh()).await.status, 200);
        let ended = web.refreshes(next.refresh(), &[]).await;
        assert_eq!(
            (ended.status, &ended.json()["error"]),
            (400, &"invalid_grant".into())
        );
        assert_eq!(alice.asks_userinfo("GET", next.access()).await.status, 401);
        // The sequencer of the feed assigns a number to the record through the pooler.
        let begun = Instant::now();
        let waiting = "SELECT count(*) AS n FROM revocations WHERE kind = 'G' AND seq IS NOT NULL";
        while site.installation.count(waiting) == 0 {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "{:#?}",
                server.log()
            );
        }
        assert_eq!(asks(&management(&server), "/readyz").await.0, 200);
    });
    assert!(
        !server
            .log()
            .iter()
            .any(|line| line.contains("storage.error"))
    );
    let doctor = String::from_utf8(site.installation.run(&["doctor"], &[]).stdout).unwrap();
    assert!(doctor.contains("ok    database"), "{doctor}");
    assert_eq!(server.stop(), Some(0));
}
