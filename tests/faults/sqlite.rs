//! F32: a SQLite database whose server is killed, or whose files are copied.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::Disk;
use crate::fixtures::Browser;
use crate::fixtures::Look;
use crate::fixtures::installation::{Installation, Running, refused};
use crate::fixtures::site::{Site, base};
use crate::load_clients::{LoadClient, Promises, are_honoured, reached, signed_in};
use crate::runs;

/// The number of concurrent load clients.
const LOAD_CLIENTS: usize = 6;

/// The number of cycles whose acknowledged writes are checked. A revoked grant leaves the revocation list
/// when its last access token has expired, after five minutes.
const REMEMBERED: u64 = 50;

/// Opens a site on a SQLite database, with alice signed in.
pub fn site() -> (Site, Browser) {
    let mut site = Site::open(Installation::new());
    site.installation.told.push((
        "PORTCULLIS__LOG__LEVEL",
        "warn,portcullis=info,access=off,audit=off".to_owned(),
    ));
    let server = site.installation.serve(&[]);
    let alice = runs(signed_in(&site, &base(&server)));
    assert_eq!(server.stop(), Some(0));
    (site, alice)
}

/// Runs load on a server while `meanwhile` happens to it. The load ends when the server does not answer.
fn load(
    site: &Site,
    server: &Running,
    alice: &Browser,
    promises: &RefCell<Promises>,
    meanwhile: impl AsyncFnOnce(),
) {
    let base = base(server);
    runs(async {
        let clients: Vec<_> = (0..LOAD_CLIENTS)
            .map(|_| LoadClient::new(site, &base, alice, promises))
            .collect();
        let all = clients.iter().map(|client| client.repeats(None));
        let load = futures_util::future::join_all(all);
        tokio::join!(load, meanwhile());
    });
    assert_eq!(promises.borrow().failed, Vec::<String>::new());
}

/// Waits for a moment of the load: an offset that differs between cycles, not a condition.
async fn moment(cycle: u64) {
    tokio::time::sleep(Duration::from_millis(30 + cycle * 37 % 200)).await;
}

/// Copies the files of the database, without the index of the WAL, which SQLite creates again.
pub fn copied(from: &Path, to: &Path) -> PathBuf {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for name in ["portcullis.db", "portcullis.db-wal"] {
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
    to.join("portcullis.db")
}

/// Asserts that a file is intact and contains all acknowledged writes.
#[track_caller]
fn keeps(file: &Path, promises: &Promises) {
    let mut look = Look::at_file(file);
    let sound = look.lines("SELECT integrity_check AS line FROM pragma_integrity_check");
    assert_eq!(sound, ["ok"]);
    promises.are_kept(|query| look.lines(query));
}

/// Runs cycles of load that end when the server is killed, and checks the files that `kept` returns.
/// `goes_on` runs before the next start. Prints how many codes were redeemed and grants revoked, none of
/// which is lost.
pub fn kill_cycles(
    cycles: u64,
    (site, alice): &(Site, Browser),
    variables: &[(&str, &str)],
    kept: &Path,
    goes_on: impl Fn(),
) -> (u64, u64) {
    let promises = RefCell::new(Promises::default());
    let (mut codes, mut ended) = (0, 0);
    let mut count = |promises: &Promises| {
        codes += promises.codes.len() as u64;
        ended += promises.ended.len() as u64;
    };
    for cycle in 0..cycles {
        if cycle.is_multiple_of(REMEMBERED) {
            count(&promises.take());
        }
        let server = site.installation.serve(variables);
        let before = promises.borrow().ended.len();
        load(site, &server, alice, &promises, async || {
            // On a machine of any speed, the load runs when the server is killed.
            reached(&promises, |promises| promises.ended.len() > before).await;
            moment(cycle).await;
            server.signal("-KILL");
        });
        drop(server);
        let copy = copied(kept, &site.installation.folder.join("copy"));
        keeps(&copy, &promises.borrow());
        goes_on();
    }
    let promises = promises.into_inner();
    count(&promises);
    println!("{cycles} times: {codes} codes redeemed, {ended} grants revoked, none lost");
    let server = site.installation.serve(&[]);
    runs(are_honoured(&promises, &site.web(&base(&server))));
    assert_eq!(server.stop(), Some(0));
    (codes, ended)
}

fn survives_kills(cycles: u64) {
    let stage = site();
    let data = stage.0.installation.folder.join("data");
    let (codes, ended) = kill_cycles(cycles, &stage, &[], &data, || ());
    assert!(codes > cycles && ended > cycles / 2);
}

/// F32: killed under load, repeatedly. Each time the files, copied without the index of the WAL, are intact
/// and contain what was acknowledged, and the next server starts on them.
#[test]
fn f32_server_killed_during_commits_loses_nothing() {
    let _turn = crate::alone();
    survives_kills(16);
}

#[test]
#[ignore = "slow: the catalogue's thousand cycles"]
fn f32_server_killed_during_commits_loses_nothing_in_full() {
    let _turn = crate::alone();
    survives_kills(1_000);
}

/// F32: the files of a running server are copied at many moments, both at one instant.
#[test]
fn f32_files_of_running_server_can_be_copied_with_their_wal() {
    let _turn = crate::alone();
    let (site, alice) = site();
    let promises = RefCell::new(Promises::default());
    let (data, copy) = (
        site.installation.folder.join("data"),
        site.installation.folder.join("copy"),
    );
    let server = site.installation.serve(&[]);
    load(&site, &server, &alice, &promises, async || {
        for cycle in 0..20 {
            moment(cycle).await;
            server.signal("-STOP");
            let file = copied(&data, &copy);
            keeps(&file, &promises.borrow());
            server.signal("-CONT");
        }
        server.signal("-KILL");
    });
    assert!(promises.borrow().codes.len() > 20);
}

/// F32: a folder that is not writable.
#[test]
fn f32_read_only_folder_is_reported() {
    let _turn = crate::alone();
    let installation = Installation::new();
    let Some(disk) = Disk::over(&installation.folder.join("data"), 8) else {
        return;
    };
    let installation = Site::open(installation).installation;
    disk.becomes_read_only();
    for command in [["serve"].as_slice(), &["user", "list"]] {
        let output = installation.run(command, &[]);
        refused(&output, 69, "data/portcullis.db");
        refused(&output, 69, "Read-only file system");
    }
    drop(disk);
}
