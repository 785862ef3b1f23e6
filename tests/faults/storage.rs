//! F07: a full disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::fixtures::Look;
use crate::fixtures::installation::Installation;
use crate::fixtures::site::{Site, asks, base, management, sample};
use crate::fixtures::{Answer, Browser, postgres};
use crate::runs;

/// The number of requests that may still be answered before the last page is full.
const ROOM: i64 = 3_000;

/// F07. A disk of 16 or 32 MiB instead of 64. The third part in the catalogue, the log, is in
/// `tests/operations/lines.rs`.
#[test]
fn f07_full_sqlite_disk_answers_503_and_recovers() {
    let _turn = crate::alone();
    let installation = Installation::new();
    let Some(disk) = Disk::over(&installation.folder.join("data"), 16) else {
        return;
    };
    let site = Site::open(installation);
    is_survived(&site, &disk);
    let sound = site
        .installation
        .count("SELECT count(*) AS n FROM pragma_integrity_check WHERE integrity_check = 'ok'");
    assert_eq!(sound, 1);
    // The disk is unmounted before the folder below it is deleted.
    drop(disk);
}

/// F07 on PostgreSQL: the disk of the tables. When the disk of its log is full, PostgreSQL itself stops.
#[test]
fn f07_full_postgres_disk_answers_503_and_recovers() {
    let _turn = crate::alone();
    let setting = "SELECT setting AS line FROM pg_settings WHERE name = 'data_directory'";
    let data = Look::at(postgres::url()).lines(setting);
    let data = PathBuf::from(&data[0]);
    if !data.exists() {
        eprintln!("SKIPPED: the Postgres of the tests is on another machine");
        return;
    }
    let folder = std::env::temp_dir().join(format!("tablespace-{}", std::process::id()));
    let Some(disk) = Disk::over(&folder, 32) else {
        return;
    };
    disk.belongs_like(&data);
    let installation = Installation::on_postgres();
    let space = Tablespace::at(&folder);
    let name = postgres::name(installation.database.as_deref().unwrap()).to_owned();
    postgres::execute(&format!("ALTER DATABASE {name} SET TABLESPACE {}", space.0));
    let site = Site::open(installation);
    is_survived(&site, &disk);
    drop(site);
    drop(space);
    drop(disk);
    let _ = std::fs::remove_dir(&folder);
}

struct Tablespace(String);

impl Tablespace {
    fn at(folder: &Path) -> Self {
        let name = format!("small_{}", std::process::id());
        postgres::execute(&format!(
            "CREATE TABLESPACE {name} LOCATION '{}'",
            folder.display()
        ));
        Self(name)
    }
}

impl Drop for Tablespace {
    fn drop(&mut self) {
        // After a failure the folder may still contain files.
        let drop = format!("DROP TABLESPACE {}", self.0);
        let _ = std::panic::catch_unwind(|| postgres::execute(&drop));
    }
}

/// Returns whether a request got a code. Otherwise asserts that the server reported that it cannot write, by
/// a page or by a redirect to the client.
#[track_caller]
fn is_written(answer: &Answer) -> bool {
    if answer.callback("code").is_some() {
        return true;
    }
    match answer.callback("error") {
        Some(error) => assert_eq!(error, "temporarily_unavailable"),
        None => {
            assert_eq!(answer.status, 503, "{}", answer.body);
            assert!(answer.header("retry-after").is_some());
        }
    }
    false
}

fn is_survived(site: &Site, disk: &Disk) {
    // The code must not expire during the outage.
    let server = site
        .installation
        .serve(&[("PORTCULLIS__TOKENS__CODE", "10m")]);
    let (public, probes) = (base(&server), management(&server));
    let codes = || site.installation.count("SELECT count(*) AS n FROM codes");
    let widows = "SELECT count(*) AS n FROM grants WHERE id NOT IN (SELECT grant_id FROM codes)";
    runs(async {
        let web = site.web(&public);
        let mut alice = Browser::new(&public);
        alice.signs_in(&web, "alice").await;
        let code = alice.allows(&web).await;
        let tokens = web.redeems(&alice.allows(&web).await).await.ok();
        let before = codes();

        disk.fill();
        let mut written = 0;
        while is_written(&alice.get(&web.request(&[])).await) {
            written += 1;
            assert!(written < ROOM, "the disk does not fill");
        }
        // Each write is complete or absent: acknowledged ones are there, and rejected ones are not.
        assert_eq!(codes(), before + written);
        assert_eq!(site.installation.count(widows), 0);
        // A table may still have room in its last page, so each request may succeed or fail, and its result
        // must last.
        let redeemed = web.redeems(&code).await;
        let refreshed = web.refreshes(tokens.refresh(), &[]).await;
        for answer in [&redeemed, &refreshed] {
            match answer.status {
                200 => {}
                503 => assert_eq!(answer.json()["error"], "temporarily_unavailable"),
                other => panic!("{other}: {}", answer.body),
            }
        }
        if site.installation.database.is_none() {
            assert_eq!((redeemed.status, refreshed.status), (503, 503));
        }
        // Requests that only read are not affected.
        for path in ["/oauth2/jwks", "/.well-known/openid-configuration"] {
            assert_eq!(alice.get(path).await.status, 200, "{path}");
        }
        assert_eq!(
            alice.asks_userinfo("GET", tokens.access()).await.status,
            200
        );
        assert_eq!(asks(&probes, "/livez").await.0, 200);
        server.waits_for(|line| {
            line.contains("storage.error")
                && (line.contains("is full") || line.contains("No space"))
        });
        // The tables of PostgreSQL may have room to update a single row, and its log is on another disk.
        if site.installation.database.is_none() {
            let begun = Instant::now();
            loop {
                let (status, said) = asks(&probes, "/readyz").await;
                if status == 503 && said.contains("\"write\":\"failed\"") {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(20), "{status} {said}");
            }
            println!("not ready after {:?}", begun.elapsed());
        }
        let (_, page) = asks(&probes, "/metrics").await;
        let alarm = "portcullis_events_total{event=\"storage.error\",severity=\"high\"}";
        assert!(sample(&page, alarm).unwrap() > 0.0);

        disk.empty();
        let healed = Instant::now();
        while !is_written(&alice.get(&web.request(&[])).await) {
            assert!(
                healed.elapsed() < Duration::from_secs(10),
                "{:#?}",
                server.log()
            );
        }
        println!(
            "writes again after {:?}; {written} were written on the full disk",
            healed.elapsed()
        );
        if redeemed.status == 503 {
            web.redeems(&code).await.ok();
        }
        let next = match refreshed.status {
            503 => web.refreshes(tokens.refresh(), &[]).await.ok(),
            _ => refreshed.ok(),
        };
        web.refreshes(next.refresh(), &[]).await.ok();
        let begun = Instant::now();
        while asks(&probes, "/readyz").await.0 != 200 {
            assert!(begun.elapsed() < Duration::from_secs(5), "not ready");
        }
    });
    assert!(
        !server
            .log()
            .iter()
            .any(|line| line.contains("server.panicked"))
    );
    assert_eq!(server.stop(), Some(0));
}
