//! F16, F32: backup, restore and stop, by the documented commands and with the real binary.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::fixtures::installation::{Installation, Running, refused};
use crate::fixtures::site::{Site, asks, base, management};
use crate::fixtures::{Browser, Look, postgres};
use crate::load_clients::{LoadClient, Promises, redeemed, signed_in};
use crate::runs;
use crate::sqlite::site;

const LOAD_CLIENTS: usize = 4;

/// Runs load on a server until `meanwhile` has ended.
fn load(
    site: &Site,
    server: &Running,
    alice: &Browser,
    promises: &RefCell<Promises>,
    meanwhile: impl AsyncFnOnce(),
) {
    let base = base(server);
    let over = Cell::new(false);
    runs(async {
        let clients: Vec<_> = (0..LOAD_CLIENTS)
            .map(|_| LoadClient::new(site, &base, alice, promises))
            .collect();
        let all = clients.iter().map(|client| client.repeats_until(&over));
        let load = futures_util::future::join_all(all);
        tokio::join!(load, async {
            meanwhile().await;
            over.set(true);
        });
    });
    assert_eq!(promises.borrow().failed, Vec::<String>::new());
}

/// Runs a command while the load continues.
async fn beside(mut command: Command) -> Output {
    let run = move || command.output().unwrap();
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    let (said, printed) = (
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout),
    );
    assert!(output.status.success(), "{said}{printed}");
    printed.into_owned()
}

/// Asserts that a copy is intact, is marked as a copy, and contains everything that was acknowledged before
/// the backup began.
#[track_caller]
fn holds(file: &Path, promises: &Promises) {
    let mut look = Look::at_file(file);
    let sound = look.lines("SELECT integrity_check AS line FROM pragma_integrity_check");
    assert_eq!(sound, ["ok"]);
    assert_eq!(
        look.count("SELECT count(*) AS n FROM pragma_foreign_key_check"),
        0
    );
    assert_eq!(
        look.count("SELECT count(*) AS n FROM feed_head WHERE restored_at IS NOT NULL"),
        1
    );
    promises.are_kept(|query| look.lines(query));
}

/// Compiles the library that makes a disk slow.
fn slow_disk(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/slow.c");
    let library = folder.join("slow.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]);
    succeeded(
        &compiler
            .args([&library, &source])
            .arg("-ldl")
            .output()
            .unwrap(),
    );
    library
}

/// F32: `backup` at many moments of a server under load, to fast storage and to slow storage, where it takes
/// seconds. Each copy is intact and contains what was acknowledged before the backup began.
#[test]
fn f32_backup_is_complete_while_server_runs() {
    use std::os::unix::fs::PermissionsExt;
    let _turn = crate::alone();
    let (site, alice) = site();
    let folder = site.installation.folder.clone();
    let library = slow_disk(&folder);
    let promises = RefCell::new(Promises::default());
    let server = site.installation.serve(&[]);
    load(&site, &server, &alice, &promises, async || {
        for round in 0..12 {
            redeemed(&promises, 3).await;
            let before = promises.borrow().snapshot();
            let file = folder.join(format!("copy-{round}.db"));
            let mut variables = Vec::new();
            if round % 3 == 2 {
                variables = vec![
                    ("LD_PRELOAD", library.to_str().unwrap()),
                    ("PAUSE_US", "15000"),
                ];
            }
            let backup = site
                .installation
                .command(&["backup", file.to_str().unwrap()], &variables);
            let begun = Instant::now();
            let said = succeeded(&beside(backup).await);
            let slow = !variables.is_empty();
            assert!(
                !slow || begun.elapsed() > Duration::from_secs(1),
                "{:?}",
                begun.elapsed()
            );
            assert!(said.contains("contains the database as of"), "{said}");
            assert_eq!(
                std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
                0o600
            );
            holds(&file, &before);
        }
    });
    // It overwrites no file, and leaves no incomplete file.
    let file = folder.join("copy-0.db");
    let name = file.to_str().unwrap();
    refused(
        &site.installation.run(&["backup", name], &[]),
        2,
        "exists; use a new file name",
    );
    let nowhere = folder.join("nowhere/copy.db");
    refused(
        &site
            .installation
            .run(&["backup", nowhere.to_str().unwrap()], &[]),
        1,
        "nowhere/copy.db",
    );
    let left = std::fs::read_dir(&folder).unwrap();
    let parts = left.filter(|file| {
        file.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains(".part")
    });
    assert_eq!(parts.count(), 0);
    assert_eq!(server.stop(), Some(0));
    assert!(promises.borrow().codes.len() > 36);
}

/// F32: a disk without room for the copy.
#[test]
fn f32_backup_without_room_leaves_nothing() {
    let _turn = crate::alone();
    let (site, _) = site();
    let small = site.installation.folder.join("small");
    let Some(disk) = crate::disk::Disk::over(&small, 1) else {
        return;
    };
    disk.fill();
    let file = small.join("copy.db");
    let output = site
        .installation
        .run(&["backup", file.to_str().unwrap()], &[]);
    refused(&output, 1, "copy.db");
    assert_eq!(
        std::fs::read_dir(&small).unwrap().count(),
        1,
        "the ballast alone"
    );
    drop(disk);
}

/// Returns the commands in a section of a document, by code block.
fn commands(document: &str, section: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let text = std::fs::read_to_string(path).unwrap();
    let section = text.split(&format!("\n## {section}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sh\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect()
}

/// Runs documented commands as an operator does, in the folder of the server and with its configuration.
/// `systemctl` starts and stops the server, and /backup is the folder `backup`.
struct Operator<'p> {
    installation: &'p Installation,
    bin: PathBuf,
}

impl<'p> Operator<'p> {
    fn new(installation: &'p Installation) -> Self {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let bin = installation.folder.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(installation.folder.join("backup")).unwrap();
        symlink(env!("CARGO_BIN_EXE_portcullis"), bin.join("portcullis")).unwrap();
        let systemctl = "#!/bin/sh\nset -e\ncase $1 in\n\
            stop) pid=$(cat server.pid); kill -TERM \"$pid\"; \
                  while kill -0 \"$pid\" 2>/dev/null && ! grep -qs '^State:.Z' \"/proc/$pid/status\"; do sleep 0.05; done ;;\n\
            start) rm -f server.log; portcullis serve </dev/null >/dev/null 2>server.log & echo $! >server.pid\n\
                   until grep -qs server.started server.log; do kill -0 $!; sleep 0.05; done ;;\nesac\n";
        std::fs::write(bin.join("systemctl"), systemctl).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(bin.join("systemctl"), mode).unwrap();
        Self { installation, bin }
    }

    fn command(&self, script: &str, variables: &[(&str, &str)]) -> Command {
        let backup = self.installation.folder.join("backup");
        let script = script.replace("/backup/", &format!("{}/", backup.display()));
        let mut command = self.installation.command(&[], variables);
        let environment: Vec<_> = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        let path = format!(
            "{}:{}:/usr/bin:/bin",
            self.bin.display(),
            programs().display()
        );
        command = Command::new("sh");
        command
            .args(["-e", "-c", &script])
            .current_dir(&self.installation.folder);
        command.env_clear().envs(environment).env("PATH", path);
        command
    }

    fn does(&self, script: &str, variables: &[(&str, &str)]) -> String {
        succeeded(&self.command(script, variables).output().unwrap())
    }

    /// Starts the server as documented, and returns the URLs of its two listeners.
    fn starts(&self, variables: &[(&str, &str)]) -> (String, String) {
        self.does("systemctl start portcullis", variables);
        self.listeners()
    }

    fn listeners(&self) -> (String, String) {
        let log = self.installation.read("server.log");
        let line = log
            .lines()
            .find(|line| line.contains("server.started"))
            .unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let at = |name: &str| format!("http://{}", line[name].as_str().unwrap());
        (at("listen"), at("management"))
    }
}

impl Drop for Operator<'_> {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.installation.folder.join("server.pid"));
        if let Ok(pid) = pid {
            let _ = Command::new("kill").args(["-KILL", pid.trim()]).output();
        }
    }
}

/// Returns the folder that contains `pg_dump`.
fn programs() -> PathBuf {
    let installed = Path::new("/usr/lib/postgresql").exists();
    if installed {
        postgres::binaries()
    } else {
        PathBuf::from("/usr/bin")
    }
}

/// F32: `docs/operations.md`, verbatim: a backup under load, then a restore on the same machine, and one on a
/// machine that has only the copy and the KEK. Tokens that were revoked since the backup are never accepted.
#[test]
fn f32_documented_backup_restores_under_load() {
    let _turn = crate::alone();
    let (site, alice) = site();
    let backup = &commands("docs/operations.md", "Back up")[0];
    let restore = &commands("docs/operations.md", "Restore")[0];
    let operator = Operator::new(&site.installation);
    let promises = RefCell::new(Promises::default());
    let (mut revoked, mut before) = (None, Promises::default());
    let server = site.installation.serve(&[]);
    load(&site, &server, &alice, &promises, async || {
        redeemed(&promises, 20).await;
        let web = site.web(&base(&server));
        let mut alice = Browser::new(&base(&server));
        alice.signs_in(&web, "alice").await;
        let tokens = web.redeems(&alice.allows(&web).await).await.ok();
        before = promises.borrow().snapshot();
        succeeded(&beside(operator.command(backup, &[])).await);
        assert_eq!(web.revokes(tokens.refresh()).await.status, 200);
        redeemed(&promises, 5).await;
        revoked = Some(tokens);
    });
    let revoked = revoked.unwrap();
    assert_eq!(server.stop(), Some(0));
    holds(
        &site.installation.folder.join("backup/portcullis.db"),
        &before,
    );
    // 1. The same machine, with a running server before and after.
    operator.starts(&[]);
    operator.does(restore, &[]);
    is_recovered(&site, &operator, &revoked);
    operator.does("systemctl stop portcullis", &[]);
    let data = std::fs::read_dir(site.installation.folder.join("data")).unwrap();
    let mut names: Vec<String> = data
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(
        names[0] == "portcullis.db" && names[2].starts_with("portcullis.db.replaced-"),
        "{names:?}"
    );
    // 2. Another machine. Until `recover` the copy issues nothing, whichever way it was restored.
    std::fs::remove_dir_all(site.installation.folder.join("data")).unwrap();
    std::fs::create_dir(site.installation.folder.join("data")).unwrap();
    for file in std::fs::read_dir(site.installation.folder.join("keys")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some() {
            std::fs::remove_file(path).unwrap();
        }
    }
    let copy = site.installation.folder.join("backup/portcullis.db");
    std::fs::copy(copy, site.installation.folder.join("data/portcullis.db")).unwrap();
    let (public, probes) = operator.starts(&[]);
    runs(async {
        let web = site.web(&public);
        assert_eq!(web.refreshes(revoked.refresh(), &[]).await.status, 503);
        assert_eq!(asks(&public, "/login").await.0, 503);
        assert_eq!(asks(&probes, "/readyz").await.0, 503);
    });
    operator.does(restore, &[]);
    is_recovered(&site, &operator, &revoked);
    // Existing files stay. Without the KEK nothing is created, and a copy of the KEK is enough.
    operator.does("systemctl stop portcullis", &[]);
    let copy = "backup/portcullis.db";
    refused(
        &site.installation.run(&["restore", copy], &[]),
        2,
        "pass --replace",
    );
    let kek = site.installation.read("keys/kek");
    std::fs::remove_file(site.installation.folder.join("keys/kek")).unwrap();
    let lost = site.installation.run(&["serve"], &[]);
    assert_eq!(
        lost.status.code(),
        Some(78),
        "{}",
        String::from_utf8_lossy(&lost.stderr)
    );
    site.installation
        .done(&["keys", "generate-kek", "--out", "keys/kek"]);
    refused(
        &site.installation.run(&["restore", "--replace", copy], &[]),
        78,
        "key-encrypting key of the copy",
    );
    std::fs::write(site.installation.folder.join("keys/kek"), kek).unwrap();
    let (public, _) = operator.starts(&[]);
    runs(are_signed_in(&site, &public));
}

/// Asserts that a new login works, and that a token that was revoked before the restore does not refresh.
fn is_recovered(site: &Site, operator: &Operator, revoked: &crate::fixtures::Tokens) {
    let (public, probes) = operator.listeners();
    runs(async {
        assert_eq!(asks(&probes, "/readyz").await.0, 200);
        let answer = site.web(&public).refreshes(revoked.refresh(), &[]).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (400, &"invalid_grant".into())
        );
        are_signed_in(site, &public).await;
    });
}

async fn are_signed_in(site: &Site, public: &str) {
    let web = site.web(public);
    let mut alice = Browser::new(public);
    alice.signs_in(&web, "alice").await;
    let tokens = web.redeems(&alice.allows(&web).await).await.ok();
    web.refreshes(tokens.refresh(), &[]).await.ok();
}

/// The same on PostgreSQL: `pg_dump` under load, then a restore into a second database.
#[test]
fn f16_documented_dump_of_postgres_restores_under_load() {
    let _turn = crate::alone();
    let Some((host, user)) = connection() else {
        eprintln!(
            "SKIPPED: the Postgres of the tests is not reached by a socket without a password"
        );
        return;
    };
    let site = Site::open(Installation::on_postgres());
    let url = site.installation.database.clone().unwrap();
    let restored = format!("{}_restored", postgres::name(&url));
    let dump = &commands("docs/operations.md", "Back up")[1];
    let [_, restore, recover] = &commands("docs/operations.md", "Restore")[..] else {
        panic!("three blocks");
    };
    let operator = Operator::new(&site.installation);
    let libpq = [
        ("PGHOST", host.as_str()),
        ("PGUSER", user.as_str()),
        ("DATABASE_URL", url.as_str()),
    ];
    let promises = RefCell::new(Promises::default());
    let mut revoked = None;
    let server = site.installation.serve(&[]);
    let alice = runs(signed_in(&site, &base(&server)));
    load(&site, &server, &alice, &promises, async || {
        redeemed(&promises, 10).await;
        let web = site.web(&base(&server));
        let mut alice = Browser::new(&base(&server));
        alice.signs_in(&web, "alice").await;
        let tokens = web.redeems(&alice.allows(&web).await).await.ok();
        succeeded(&beside(operator.command(dump, &libpq)).await);
        assert_eq!(web.revokes(tokens.refresh()).await.status, 200);
        revoked = Some(tokens);
    });
    assert_eq!(server.stop(), Some(0));
    operator.starts(&libpq[..2]);
    operator.does(&restore.replace("portcullis_restored", &restored), &libpq);
    let moved = postgres::database(&restored);
    let moved = [("PORTCULLIS__DATABASE__URL", moved.as_str())];
    operator.does(recover, &moved);
    is_recovered(&site, &operator, &revoked.unwrap());
    operator.does("systemctl stop portcullis", &[]);
    // The errors of `backup` and `restore` name the documented commands.
    refused(
        &site.installation.run(&["backup", "x.db"], &[]),
        2,
        "pg_dump",
    );
    refused(
        &site.installation.run(&["restore", "x.db"], &[]),
        2,
        "pg_restore",
    );
    postgres::drop_database(moved[0].1);
}

/// Returns the settings with which programs of libpq reach the PostgreSQL server of the tests: a socket
/// folder and an account.
fn connection() -> Option<(String, String)> {
    let (_, query) = postgres::url().split_once('?')?;
    let value = |name: &str| {
        let prefix = format!("{name}=");
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(prefix.as_str()))
            .map(str::to_owned)
    };
    Some((value("host")?, value("user")?))
}

/// F32: after exit code 0 a SQLite database is complete in its single file, whatever the server was doing.
#[test]
fn f32_no_log_is_left_after_exit_0_under_load() {
    let _turn = crate::alone();
    let (site, alice) = site();
    let promises = RefCell::new(Promises::default());
    for round in 0..20 {
        let server = site.installation.serve(&[]);
        let base = base(&server);
        runs(async {
            let clients: Vec<_> = (0..LOAD_CLIENTS)
                .map(|_| LoadClient::new(&site, &base, &alice, &promises))
                .collect();
            let all = clients.iter().map(|client| client.repeats(None));
            tokio::join!(futures_util::future::join_all(all), async {
                tokio::time::sleep(Duration::from_millis(50 + round * 37 % 300)).await;
                server.signal("-TERM");
                if round % 4 == 3 {
                    // A second signal stops at once, and leaves no log either.
                    server.signal("-TERM");
                }
            });
        });
        assert_eq!(server.ends(), Some(0));
        for suffix in ["-wal", "-shm"] {
            let name = format!("data/portcullis.db{suffix}");
            assert!(
                !site.installation.folder.join(&name).exists(),
                "round {round}: {name}"
            );
        }
        // The file alone contains everything.
        let copy = site.installation.folder.join("alone.db");
        std::fs::copy(site.installation.folder.join("data/portcullis.db"), &copy).unwrap();
        let mut look = Look::at_file(&copy);
        promises.borrow().are_kept(|query| look.lines(query));
    }
    assert_eq!(promises.borrow().failed, Vec::<String>::new());
    assert!(promises.borrow().codes.len() > 20);
}

/// F16: the server stops at once after it has answered a revocation. The revocation is in the high-water
/// mark, so restoring an earlier copy is detected.
#[test]
fn f16_revocation_right_before_stop_is_in_the_mark() {
    let _turn = crate::alone();
    let (site, _) = site();
    let folder = site.installation.folder.clone();
    for round in 0..4 {
        let server = site.installation.serve(&[]);
        let web = site.web(&base(&server));
        let tokens = runs(async {
            let mut alice = Browser::new(&base(&server));
            alice.signs_in(&web, "alice").await;
            web.redeems(&alice.allows(&web).await).await.ok()
        });
        assert_eq!(server.stop(), Some(0));
        let (database, copy) = (folder.join("data/portcullis.db"), folder.join("before.db"));
        std::fs::copy(&database, &copy).unwrap();
        let server = site.installation.serve(&[]);
        let web = site.web(&base(&server));
        runs(async { assert_eq!(web.revokes(tokens.refresh()).await.status, 200) });
        // In every other round a second signal stops the server at once.
        server.signal("-TERM");
        if round % 2 == 1 {
            server.signal("-TERM");
        }
        assert_eq!(server.ends(), Some(0));
        std::fs::copy(&copy, &database).unwrap();
        let server = site.installation.serve(&[]);
        let web = site.web(&base(&server));
        runs(async {
            let answer = web.refreshes(tokens.refresh(), &[]).await;
            assert_eq!(answer.status, 503, "round {round}: {}", answer.body);
            assert_eq!(asks(&management(&server), "/readyz").await.0, 503);
        });
        assert_eq!(server.stop(), Some(0));
        site.installation.done(&["recover", "--yes"]);
    }
    // A revocation by command while no server runs is in the high-water mark as well.
    let (database, copy) = (folder.join("data/portcullis.db"), folder.join("before.db"));
    std::fs::copy(&database, &copy).unwrap();
    site.installation.done(&["revoke", "user:alice"]);
    std::fs::copy(&copy, &database).unwrap();
    let server = site.installation.serve(&[]);
    assert!(server.log().iter().any(|line| line.contains("db.restored")));
    assert_eq!(server.stop(), Some(0));
}

/// F16: a copy is recovered while a server still runs on the original with the same KEK folder.
#[test]
fn f16_recover_warns_of_server_on_original() {
    let _turn = crate::alone();
    let (site, _) = site();
    site.installation.done(&["backup", "copy.db"]);
    let copy = [("PORTCULLIS__DATABASE__URL", "sqlite:copy.db")];
    let warning = "a server on the original database seems to be running";
    let recover = || {
        let output = site.installation.run(&["recover", "--yes"], &copy);
        succeeded(&output);
        String::from_utf8_lossy(&output.stderr).contains(warning)
    };
    let mark = || {
        let files = std::fs::read_dir(site.installation.folder.join("keys")).unwrap();
        let mut files = files.map(|file| file.unwrap().path());
        let mark = files.find(|file| {
            let name = file.file_name().unwrap().to_string_lossy();
            name.starts_with("feed-") && name.ends_with(".mark")
        });
        std::fs::read_to_string(mark.unwrap()).unwrap()
    };
    let before = mark();
    let server = site.installation.serve(&[]);
    let begun = Instant::now();
    while mark() == before {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "the mark did not move"
        );
    }
    assert!(recover());
    // After the recovery it is a separate database.
    assert!(!recover());
    assert_eq!(server.stop(), Some(0));
}

/// Seals and acknowledgements, which periodic tasks write, are written by a stop right after the event.
#[test]
fn f16_stop_writes_what_periodic_tasks_would() {
    let _turn = crate::alone();
    let (site, _) = site();
    let serves = ["client", "create", "--id", "orders", "--name", "Orders"];
    let more = [
        "--serves",
        crate::fixtures::server::AUDIENCE,
        "--grant-type",
        "client_credentials",
    ];
    let last = ["--scope", "", "--format", "json"];
    let made = site
        .installation
        .done(&[&serves[..], &more, &last].concat());
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let own = crate::fixtures::client::basic("orders", made["client_secret"].as_str().unwrap());
    for round in 0..4 {
        let server = site.installation.serve(&[]);
        runs(async {
            let mut alice = Browser::new(&base(&server));
            alice.signs_in(&site.web(&base(&server)), "alice").await;
            let headers = [
                ("Authorization", own.as_str()),
                ("Content-Type", "application/json"),
            ];
            let instance = format!("round-{round}");
            let ack = serde_json::json!({ "instance": instance, "epoch": 1, "seq": 0, "kids": [] });
            let ack = Some(ack.to_string());
            let answer = Browser::new(&base(&server))
                .send("POST", "/revocations/ack", &headers, ack)
                .await;
            assert_eq!(answer.status, 200, "{}", answer.body);
        });
        assert_eq!(server.stop(), Some(0));
        let count = |query: &str| {
            site.installation
                .count(&format!("SELECT count(*) AS n FROM {query}"))
        };
        assert_eq!(
            count("audit_events WHERE id NOT IN (SELECT event_id FROM audit_seals)"),
            0
        );
        assert_eq!(count("feed_acks"), round + 1);
        assert_eq!(count("revocations WHERE seq IS NULL"), 0);
    }
}

/// `restore` refuses to overwrite data, and reports what is wrong with a copy.
#[test]
fn f32_restore_refuses_damaged_or_incomplete_copies() {
    let _turn = crate::alone();
    let (site, _) = site();
    let folder = site.installation.folder.clone();
    site.installation.done(&["backup", "copy.db"]);
    let restore = |file: &str| site.installation.run(&["restore", "--replace", file], &[]);
    // A server or a command uses the database.
    let server = site.installation.serve(&[]);
    refused(&restore("copy.db"), 69, "another server is using");
    assert_eq!(server.stop(), Some(0));
    let mut look = site.installation.look();
    assert!(look.count("SELECT count(*) AS n FROM users") > 0);
    refused(&restore("copy.db"), 69, "open; stop it first");
    drop(look);
    // Whichever page is damaged, nothing of the copy is restored.
    let good = std::fs::read(folder.join("copy.db")).unwrap();
    let mut torn = good.clone();
    torn[4_096..8_192].fill(0xa5);
    std::fs::write(folder.join("torn.db"), &torn).unwrap();
    refused(&restore("torn.db"), 1, "torn.db");
    std::fs::write(folder.join("short.db"), &good[..good.len() / 2]).unwrap();
    refused(&restore("short.db"), 1, "short.db");
    std::fs::write(folder.join("text.db"), "no database at all").unwrap();
    refused(&restore("text.db"), 1, "text.db");
    std::fs::write(folder.join("empty.db"), "").unwrap();
    refused(&restore("empty.db"), 1, "not a database of portcullis");
    refused(&restore("missing.db"), 2, "is not a file");
    std::fs::copy(folder.join("copy.db"), folder.join("raw.db")).unwrap();
    std::fs::write(folder.join("raw.db-wal"), "log").unwrap();
    refused(&restore("raw.db"), 2, "portcullis backup");
    // The existing database is unchanged and continues to work.
    assert_eq!(site.installation.serve(&[]).stop(), Some(0));
    assert_eq!(
        site.installation
            .count("SELECT count(*) AS n FROM feed_head WHERE restored_at IS NULL"),
        1
    );
    // A damaged database is replaced, after `doctor` has reported it.
    let path = folder.join("data/portcullis.db");
    let mut damaged = std::fs::read(&path).unwrap();
    let last = damaged.len() - 4_096;
    damaged[last..].fill(0xa5);
    std::fs::write(&path, damaged).unwrap();
    let told = site.installation.run(&["doctor"], &[]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("fail  database file"), "{told}");
    succeeded(&restore("copy.db"));
    site.installation.done(&["recover", "--yes"]);
    assert_eq!(site.installation.serve(&[]).stop(), Some(0));
}

/// The acknowledged writes of a load, for [`Promises::are_kept`].
impl Promises {
    fn snapshot(&self) -> Self {
        Self {
            codes: self.codes.clone(),
            generations: self.generations.clone(),
            ended: self.ended.clone(),
            surplus: self.surplus.clone(),
            ..Self::default()
        }
    }
}
