//! Reload by SIGHUP, and replacing a key-encrypting key without a restart.

use crate::fixtures::Browser;
use crate::fixtures::tls::Pair;
use crate::fixtures::{Db, apply, on_both_databases};
use crate::installation::{Installation, Running};
use crate::site::{Site, asks, base, management, sample};

fn runs<T>(work: impl Future<Output = T>) -> T {
    actix_web::rt::System::new().block_on(work)
}

/// Reloads, and waits for the log line with the result.
fn reloads(server: &Running, event: &str) -> String {
    let count = |log: &[String]| log.iter().filter(|line| line.contains(event)).count();
    let before = count(&server.log());
    server.signal("-HUP");
    server.waits_for(|_| count(&server.log()) > before);
    let log = server.log();
    log.into_iter().rfind(|line| line.contains(event)).unwrap()
}

/// Writes the settings to the configuration file, and removes those of limits and KEKs from the environment.
fn configured(site: &mut Site, text: &str) {
    site.installation
        .told
        .retain(|(name, _)| !name.contains("LIMITS") && !name.contains("KEK"));
    site.installation.write("portcullis.toml", text);
}

fn serves(site: &Site) -> Running {
    let path = site.installation.folder.join("portcullis.toml");
    site.installation
        .serve_with(&["--config", path.to_str().unwrap(), "serve"], &[])
}

/// Returns how many of this many requests are rejected.
fn turned_away(server: &Running, requests: usize) -> usize {
    let public = base(server);
    runs(async {
        let mut away = 0;
        for _ in 0..requests {
            away += usize::from(Browser::new(&public).get("/account").await.status == 429);
        }
        away
    })
}

#[test]
fn reload_applies_limits_and_level_and_rejects_errors() {
    let mut site = Site::open(Installation::new());
    configured(&mut site, "[limits]\nper_ip = 5\n");
    let server = serves(&site);
    assert_eq!(turned_away(&server, 8), 3);
    site.installation.write(
        "portcullis.toml",
        "[limits]\nper_ip = 1000\n[log]\nlevel = \"warn\"\n[tokens]\naccess = \"1m\"\n",
    );
    let logged = reloads(&server, "config.restart_needed");
    assert!(
        logged.contains("tokens.access") && !logged.contains("limits"),
        "{logged}"
    );
    assert_eq!(turned_away(&server, 20), 0);
    // At `warn` there are no access log lines.
    let accesses = |server: &Running| {
        let log = server.log();
        log.iter()
            .filter(|line| line.contains("\"http.request\""))
            .count()
    };
    let before = accesses(&server);
    turned_away(&server, 5);
    for (text, wanted) in [
        ("[limits]\nper_ip = 0\n", "limits.per_ip"),
        ("[limit]\nper_ip = 7\n", "unknown key `limit.per_ip`"),
        ("[log]\nlevel = \"loud\"\n", "invalid level"),
        ("this is no TOML", "portcullis.toml"),
    ] {
        site.installation.write("portcullis.toml", text);
        let logged = reloads(&server, "config.rejected");
        assert!(logged.contains(wanted), "{logged}");
    }
    assert_eq!(turned_away(&server, 20), 0, "what was in force stays");
    assert_eq!(accesses(&server), before);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn reload_keeps_budgets_with_unchanged_rate() {
    let mut site = Site::open(Installation::new());
    // A budget that is not refilled during the test.
    configured(&mut site, "[limits]\nper_ip = 2\n");
    let server = serves(&site);
    assert_eq!(turned_away(&server, 4), 2);
    let other = "[limits]\nper_ip = 2\nper_client = 7\n";
    site.installation.write("portcullis.toml", other);
    reloads(&server, "config.reloaded");
    assert_eq!(turned_away(&server, 1), 1, "it was full again");
    let other = "[limits]\nper_ip = 3\nper_client = 7\n";
    site.installation.write("portcullis.toml", other);
    reloads(&server, "config.reloaded");
    assert_eq!(turned_away(&server, 1), 0);
}

#[test]
fn reload_rereads_certificates_and_reports_bad_ones() {
    let site = Site::open(Installation::new());
    let folder = &site.installation.folder;
    let (old, new) = (
        Pair::new(folder, "old", None),
        Pair::new(folder, "new", None),
    );
    let server = site.installation.serve(&[
        (
            "PORTCULLIS__LISTEN__TLS__CERTIFICATE",
            old.certificate.to_str().unwrap(),
        ),
        ("PORTCULLIS__LISTEN__TLS__KEY", old.key.to_str().unwrap()),
    ]);
    std::fs::write(&old.certificate, "garbage").unwrap();
    server.waits_for(|line| line.contains("tls.reload_failed"));
    // The periodic checks do not log it again, and a reload does.
    reloads(&server, "tls.reload_failed");
    new.replaces(&old);
    server.signal("-HUP");
    server.waits_for(|line| line.contains("tls.reloaded"));
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn certificate_outside_validity_is_reported() {
    let site = Site::open(Installation::new());
    let folder = &site.installation.folder;
    let year = |year| rcgen::date_time_ymd(year, 1, 1);
    let early = Pair::valid(folder, "early", year(2088), year(2090));
    let expired = Pair::valid(folder, "expired", year(2020), year(2021));
    let (good, used) = (
        Pair::new(folder, "good", None),
        Pair::valid(folder, "used", year(2088), year(2090)),
    );
    let variables = |pair: &Pair| {
        [
            ("CERTIFICATE", pair.certificate.clone()),
            ("KEY", pair.key.clone()),
        ]
        .map(|(name, path)| {
            (
                format!("PORTCULLIS__LISTEN__TLS__{name}"),
                path.display().to_string(),
            )
        })
    };
    for (pair, said) in [
        (&early, "is not valid before 2088-01-01"),
        (&expired, "expired at 2021-01-01"),
    ] {
        let variables = variables(pair);
        let variables: Vec<_> = variables
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        let doctor = site.installation.run(&["doctor"], &variables);
        let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(
            told.lines()
                .any(|line| line.starts_with("fail  certificate") && line.contains(said)),
            "{told}"
        );
    }
    // A start is possible, because the clock may be wrong.
    let used_variables = variables(&used);
    let used_variables: Vec<_> = used_variables
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let server = site.installation.serve(&used_variables);
    server.waits_for(|line| line.contains("tls.not_valid") && line.contains("not_before"));
    good.replaces(&used);
    server.waits_for(|line| line.contains("tls.reloaded"));
    for (pair, reason) in [(&expired, "not_after"), (&early, "not_before")] {
        pair.replaces(&used);
        server.waits_for(|line| line.contains("tls.reload_failed") && line.contains(reason));
    }
    let reloads = server
        .log()
        .iter()
        .filter(|line| line.contains("tls.reloaded"))
        .count();
    assert_eq!(reloads, 1, "the good certificate is kept");
    assert_eq!(server.stop(), Some(0));
}

#[apply(on_both_databases)]
#[test]
fn kek_is_replaced_under_running_server(#[case] db: Db) {
    let installation = Installation::on(db);
    let mut site = Site::open(installation);
    let list = |keks: &[&str]| {
        let keks: Vec<String> = keks.iter().map(|kek| format!("\"file:{kek}\"")).collect();
        format!("[keys]\nkek = [{}]\n", keks.join(", "))
    };
    configured(&mut site, &list(&["keys/kek"]));
    let server = serves(&site);
    let (public, probes) = (base(&server), management(&server));
    let values = |first: &str| {
        let page = runs(async { asks(&probes, "/metrics").await.1 });
        let marked = format!("first=\"{first}\"");
        let lines = page
            .lines()
            .filter(|line| line.starts_with("portcullis_kek_values{") && line.contains(&marked));
        lines
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum::<u64>()
    };
    // The server secret, and a signer and a next key of each of three rings.
    server.waits_for(|_| values("yes") == 7);
    let all = 7;
    site.installation
        .done(&["keys", "generate-kek", "--out", "keys/new"]);
    // 1. Append the new KEK to the list. 2. Move it to the front. 3. Rewrap. 4. Remove the old one.
    site.installation
        .write("portcullis.toml", &list(&["keys/kek", "keys/new"]));
    reloads(&server, "config.reloaded");
    server.waits_for(|_| (values("yes"), values("no")) == (all, 0));
    // Too early: no value is under the new KEK yet, and all values are under the old one.
    site.installation
        .write("portcullis.toml", &list(&["keys/new"]));
    let logged = reloads(&server, "config.rejected");
    assert!(logged.contains("not configured"), "{logged}");
    site.installation
        .write("portcullis.toml", &list(&["keys/new", "keys/kek"]));
    reloads(&server, "config.reloaded");
    server.waits_for(|_| (values("yes"), values("no")) == (0, all));
    let path = site.installation.folder.join("portcullis.toml");
    let path = path.to_str().unwrap().to_owned();
    site.installation
        .done(&["--config", &path, "keys", "rewrap"]);
    site.installation
        .write("portcullis.toml", &list(&["keys/new"]));
    reloads(&server, "config.reloaded");
    std::fs::remove_file(site.installation.folder.join("keys/kek")).unwrap();
    server.waits_for(|_| (values("yes"), values("no")) == (all, 0));
    // The server signs, refreshes and reads what it made before.
    runs(async {
        let web = site.web(&public);
        let code = Browser::new(&public).allows(&web).await;
        let tokens = web.redeems(&code).await.ok();
        web.refreshes(tokens.refresh(), &[]).await.ok();
        let page = asks(&probes, "/metrics").await.1;
        assert_eq!(
            sample(
                &page,
                "portcullis_signing_key_corrupt{use=\"token\",alg=\"ES256\"}"
            ),
            Some(0.0)
        );
    });
    assert_eq!(server.stop(), Some(0));
}
