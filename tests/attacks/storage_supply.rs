//! Area storage-supply: configuration, files, identifiers, and what is stored under which kind.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use portcullis::config::{self, Overrides};
use portcullis::db::{self, Store};
use portcullis::id::{ClientId, UserId};
use portcullis::time::Timestamp;

use crate::cast::server::{confidential, scratch};
use crate::cast::{Db, Server};
use crate::process::Site;
use crate::{Row, Stage, expect, row};

pub const ROWS: &[Row] = &[
    row!(a478),
    row!(a480),
    row!(a481),
    row!(a482),
    row!(a489),
    row!(a490),
];

/// The embedded database's file.
async fn a478(stage: &Stage) {
    use std::os::unix::fs::PermissionsExt;
    let folder = scratch().join(format!("a478-{:?}", stage.db()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("loose.db");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let url = format!("sqlite:{}", path.display());
    let store = Store::open(&url, 2).unwrap();
    store.migrate().unwrap();
    for file in ["loose.db", "loose.db-wal", "loose.db-shm"] {
        let found =
            std::fs::metadata(folder.join(file)).map(|meta| meta.permissions().mode() & 0o777);
        stage.check(1, found.as_ref().is_ok_and(|mode| *mode == 0o600), || {
            format!("{file}: {found:?}")
        });
    }
    // 2: there is no folder whose files are served: pages are compiled in.
    let answer = stage.server.browser().get("/assets/portcullis.db").await;
    stage.expect(2, expect::page(&answer, 404));
    // 3: a node that was killed outright leaves its log behind; what was answered is there again.
    let site = Site::open(Db::Sqlite);
    let node = site.starts();
    let before = site.look().count("SELECT count(*) AS n FROM audit_events");
    node.dies();
    let again = site.starts();
    let after = site.look().count("SELECT count(*) AS n FROM audit_events");
    stage.check(3, after >= before && before > 0, || {
        format!("{before} events, then {after}")
    });
    drop(again);
    // 4: a second server.
    let _first = db::Claim::on(&url).unwrap();
    let second = db::Claim::on(&url).map(drop);
    stage.check(4, second.is_err(), || {
        "a second server may use the file".to_owned()
    });
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Numbers that do not fit, and years far away.
async fn a480(stage: &Stage) {
    let keys = [
        "tokens.code",
        "tokens.access",
        "tokens.id",
        "tokens.refresh_idle",
        "tokens.refresh_absolute",
        "tokens.refresh_grace",
        "tokens.secret_overlap",
        "tokens.clock_leeway",
        "login.authorization",
        "login.session_idle",
        "login.session_absolute",
        "login.consent_max_age",
        "keys.rotate_every",
        "bootstrap.link",
    ];
    for (case, value) in [
        (1, "2147483648s"),
        (2, "9223372036854775808s"),
        (2, "106751991168d"),
        (3, "-1s"),
    ] {
        for key in keys {
            let variable = format!("PORTCULLIS__{}", key.to_uppercase().replace('.', "__"));
            let loaded = config::load(&Overrides::default(), [(variable, value.to_owned())]);
            let told = loaded
                .map(|_| "is accepted".to_owned())
                .unwrap_or_else(|refused| refused.to_string());
            let named =
                told.contains(key) || (told.contains("is no duration") && told.contains(value));
            stage.check(case, named, || format!("{key} = {value}: {told}"));
        }
    }
    // 4, 5: somebody signs in and refreshes in 2038, beyond 32-bit seconds, and at the end of 9999.
    let years = [
        (4, 2_147_483_648_u64 + 86_400),
        (5, 253_402_300_799 - 40 * 86_400),
    ];
    let server = Server::start(stage.db()).await;
    for (case, secs) in years {
        let by = Timestamp::from_secs(secs).since(server.clock.now());
        server.advance(by);
        server.app.keeper.poll().await.unwrap();
        server.app.keeper.keep().await.unwrap();
        server.app.keeper.poll().await.unwrap();
        let shop = server.shop().await;
        let code = server.browser().allows(&shop).await;
        let answer = shop.redeems(&code).await;
        stage.check(case, answer.status == 200, || expect::seen(&answer));
        let tokens = answer.ok();
        let claims = tokens.access_claims();
        let life = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
        stage.check(
            case,
            life == 300 && claims["iat"].as_u64().unwrap() >= secs,
            || claims.to_string(),
        );
        let again = shop.refreshes(tokens.refresh(), &[]).await;
        stage.check(case, again.status == 200, || expect::seen(&again));
    }
    server.remove().await;
}

/// No id is given out twice.
async fn a481(stage: &Stage) {
    let (entropy, now) = (&stage.server.app.entropy, stage.server.clock.now());
    let mut users = BTreeSet::new();
    let mut clients = BTreeSet::new();
    for _ in 0..10_000 {
        users.insert(UserId::new(entropy, now));
        clients.insert(ClientId::new(entropy, now));
    }
    stage.check(1, users.len() == 10_000, || {
        format!("{} of 10,000 users", users.len())
    });
    stage.check(2, clients.len() == 10_000, || {
        format!("{} of 10,000 clients", clients.len())
    });
    // A deleted client's id stays taken, and nobody can delete a person.
    for n in 0..50 {
        let client = confidential(&format!("gone-{n}"), "https://app.example/cb");
        let id = client.id.clone();
        stage.server.register(client.clone()).await;
        stage
            .server
            .write(move |tx| tx.delete_client(&id, "test", now))
            .await;
        let again = stage
            .server
            .app
            .store
            .transaction(move |tx| tx.put_client(&client))
            .await;
        let refused = matches!(again, Err(db::Error::Duplicate(_)));
        stage.check(2, refused, || format!("{again:?}"));
    }
}

/// A value of one kind is unknown as every other.
async fn a482(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let code = alice.allows(&web).await;
    let tokens = web.redeems(&code).await.ok();
    let fresh = alice.allows(&web).await;
    let (refresh, access) = (tokens.refresh(), tokens.access());
    let swapped = fresh.replacen("pcl_ac_", "pcl_rt_", 1);
    let as_refresh = [
        (1, fresh.as_str(), "kind"),
        (2, access, "kind"),
        (2, swapped.as_str(), "unknown"),
        (2, "pcl_xx_1", "kind"),
    ];
    for (case, value, reason) in as_refresh {
        let answer = web.refreshes(value, &[]).await;
        stage.expect(case, expect::json_error(&answer, 400, "invalid_grant"));
        stage.expect(case, expect::logged(&answer, "token.rejected", reason));
    }
    let cut = &refresh[..refresh.len() - 1];
    let longer = format!("{refresh}A");
    for value in [cut, &longer] {
        let answer = web.refreshes(value, &[]).await;
        stage.expect(3, expect::json_error(&answer, 400, "invalid_grant"));
    }
    let (cut, longer) = (&fresh[..fresh.len() - 1], format!("{fresh}A"));
    for (case, value) in [(2, refresh), (2, access), (3, cut), (3, &longer)] {
        let answer = web.redeems(value).await;
        stage.expect(case, expect::json_error(&answer, 400, "invalid_grant"));
        let told = answer.logged();
        let rejected = told.iter().any(|(event, _)| event == "token.rejected");
        stage.check(case, rejected, || format!("{told:?}"));
    }
    // Nothing of it used anything up.
    stage.check(4, web.redeems(&fresh).await.status == 200, || {
        "the code is gone".to_owned()
    });
    stage.check(4, web.refreshes(refresh, &[]).await.status == 200, || {
        "the refresh token is gone".to_owned()
    });
}

/// No crate of ours can be unsafe.
async fn a489(stage: &Stage) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut roots = vec![root.join("src/lib.rs"), root.join("src/main.rs")];
    for entry in std::fs::read_dir(root.join("crates")).unwrap() {
        let source = entry.unwrap().path().join("src");
        let found = ["lib.rs", "main.rs"].map(|name| source.join(name));
        roots.extend(found.into_iter().filter(|file| file.exists()));
    }
    stage.check(1, roots.len() >= 3, || format!("{roots:?}"));
    for file in roots {
        let text = std::fs::read_to_string(&file).unwrap();
        let forbids = text.contains("#![forbid(unsafe_code)]");
        stage.check(1, forbids, || {
            format!("{} does not forbid it", file.display())
        });
    }
}

/// A configuration that must not be started with: 78 and the key.
async fn a490(stage: &Stage) {
    use std::os::unix::fs::PermissionsExt;
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let folder = scratch().join(format!("a490-{}", NUMBER.fetch_add(1, Ordering::SeqCst)));
    std::fs::create_dir_all(&folder).unwrap();
    let secret = folder.join("url");
    std::fs::write(&secret, "sqlite:x.db").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    let cases = [
        (
            1,
            "[tokens]\nacess = \"1m\"\n",
            "unknown key `tokens.acess`",
        ),
        (1, "[tokens.access]\nlife = \"1m\"\n", "`tokens.access"),
        (
            2,
            "[database]\nurl_file = \"url\"\n",
            "`database.url_file`: url can be read by others",
        ),
        (
            3,
            "issuer = \"http://id.example.com\"\n",
            "`issuer`: `http://id.example.com` must be https",
        ),
        (
            4,
            "[http]\ncors_origins = [\"*\"]\n",
            "unknown key `http.cors_origins`",
        ),
        (
            5,
            "[tokens]\naccess = \"16m\"\n",
            "`tokens.access`: 16m is out of range",
        ),
        (
            5,
            "[login]\nsession_absolute = \"31d\"\n",
            "`login.session_absolute`: 31d is out of range",
        ),
    ];
    for (case, text, sentence) in cases {
        std::fs::write(folder.join("config.toml"), text).unwrap();
        for verb in [&["serve"][..], &["config", "check"]] {
            let output = starts(&folder, verb);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let refused = output.status.code() == Some(78) && said.contains(sentence);
            stage.check(case, refused, || {
                format!("{:?} {said}", output.status.code())
            });
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

fn starts(folder: &Path, verb: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(["--config", "config.toml"]).args(verb);
    command.current_dir(folder).env_clear().stdin(Stdio::null());
    command.output().unwrap()
}
