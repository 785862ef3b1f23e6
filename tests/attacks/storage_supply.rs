//! Rows of the catalogue: the database and its connection, numeric limits, and the supply chain.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::{Connection, PgConnection};
use portcullis::app::{App, key_table};
use portcullis::audit::Actor;
use portcullis::config::{Overrides, load};
use portcullis::db::{Error, Store};
use portcullis::id::{ClientId, UserId};
use portcullis::key_manager::Act;
use portcullis::oauth::client::GrantType;
use portcullis::oauth::code::Code;
use portcullis::oauth::redirect_uri::Localhost;
use portcullis::secret::{Entropy, Hash, Secret};
use portcullis::time::Timestamp;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::database_outage::until;
use crate::expect::{json_error, logged, summary};
use crate::fixtures::client::header;
use crate::fixtures::cluster::Cluster;
use crate::fixtures::installation::empty_folder;
use crate::fixtures::relay::Relay;
use crate::fixtures::server::{AUDIENCE, confidential, sweep};
use crate::fixtures::{Answer, Browser, Db, Look, Server, TestClient, journal, log, postgres};
use crate::process::Site;
use crate::token_code::Flow;
use crate::token_refresh::redeem_new_code;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a476_database_role_cannot_change_the_schema),
    row!(a477_unverified_database_tls_is_refused),
    row!(a478_sqlite_file_is_private_and_locked),
    row!(a480_extreme_lifetimes_and_clocks_do_not_overflow),
    row!(a481_ids_are_never_reused),
    row!(a482_values_of_another_kind_are_unknown),
    row!(a484_stale_replica_is_never_read_for_decisions),
    row!(a485_raced_consumes_succeed_once),
    row!(a486_clean_up_under_load_removes_only_expired_rows),
    row!(a488_ci_rejects_untrusted_dependencies),
    row!(a489_own_crates_forbid_unsafe_code),
    row!(a490_insecure_configuration_is_refused),
    row!(a524_read_only_database_causes_503),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns an empty folder for this row.
fn folder(stage: &Stage, row: &str) -> PathBuf {
    empty_folder(&format!("{row}-{:?}", stage.db()))
}

/// Runs the binary with only these variables; returns its output.
fn runs(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("PORTCULLIS__LISTEN__PUBLIC", "localhost:0")
        .env("PORTCULLIS__LISTEN__MANAGEMENT", "127.0.0.1:0")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Checks that the start failed with this exit code and this text on stderr.
fn start_is_refused(stage: &Stage, case: usize, output: &Output, code: i32, sentence: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    stage.check(
        case,
        output.status.code() == Some(code) && said.contains(sentence),
        || format!("exit code {:?}: {said}", output.status.code()),
    );
}

/// A role that may only read and write rows is enough for the server.
async fn a476_database_role_cannot_change_the_schema(stage: &Stage) {
    if stage.db() == Db::Sqlite {
        // An embedded database has no roles.
        return stage.check(0, true, String::new);
    }
    let owner = stage.server.config.database_url();
    let name = postgres::name(&owner).to_owned();
    let role = format!("app_{name}");
    let grants = format!(
        "CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
         REVOKE CREATE ON SCHEMA public FROM PUBLIC;
         GRANT USAGE ON SCHEMA public TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role};
         GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {role};
         REVOKE UPDATE ON audit_events, audit_seals FROM {role};
         CREATE SCHEMA other; CREATE TABLE other.secrets (x TEXT);"
    );
    let connect = |url: &str| PgConnection::establish(url).unwrap();
    connect(&owner).batch_execute(&grants).unwrap();
    let as_role = owner.replace("user=postgres", &format!("user={role}"));
    // The role cannot connect to a cluster that requires a password.
    if as_role != owner {
        let mut app = connect(&as_role);
        let denied = [
            "CREATE TABLE mine (x TEXT)",
            "DROP TABLE users",
            "ALTER TABLE users ADD COLUMN x TEXT",
            "TRUNCATE audit_events",
            "UPDATE audit_events SET actor = 'attacker'",
            "UPDATE audit_seals SET seq = seq + 1",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT pg_reload_conf()",
            "COPY users TO PROGRAM 'cat'",
            "COPY users FROM '/etc/passwd'",
            "SELECT * FROM other.secrets",
            "CREATE ROLE other SUPERUSER",
            "SELECT * FROM pg_authid",
        ];
        for (case, statement) in (1..).zip(denied) {
            let done = app.batch_execute(statement);
            stage.check(case, done.is_err(), || format!("{statement} is done"));
        }
        drop(app);
        // The server works with that role, including key rotation and clean-up.
        let mut config = stage.server.config.clone();
        config.database.url = Some(as_role);
        config.database.auto_migrate = Some(false);
        let clock = stage.server.clock.clone();
        let app = App::start(config, clock, Entropy::seeded(5)).await;
        let app = app.map_err(|error| error.to_string());
        stage.check(14, app.is_ok(), || format!("{:?}", app.as_ref().err()));
        if let Ok(app) = app {
            let now = app.clock.now();
            stage.check(14, app.key_manager.run_maintenance().await.is_ok(), || {
                "keeper".to_owned()
            });
            let swept = app.store.transaction(move |tx| sweep(tx, now)).await;
            stage.check(14, swept.is_ok(), || format!("{:?}", swept.err()));
        }
    }
    let cleared = format!("DROP OWNED BY {role}; DROP ROLE {role}; DROP SCHEMA other CASCADE");
    connect(&owner).batch_execute(&cleared).unwrap();
}

/// A fake PostgreSQL server that reports whether a client sends data after the TLS handshake.
struct FakePostgres {
    port: u16,
    heard: std::sync::mpsc::Receiver<bool>,
}

impl FakePostgres {
    /// Starts the server. With `None` it refuses TLS.
    fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else {
                return;
            };
            let patience = Some(Duration::from_secs(5));
            let _ = stream.set_read_timeout(patience);
            // SSLRequest: eight bytes.
            let mut request = [0; 8];
            let asked = stream.read_exact(&mut request).is_ok();
            let Some(tls) = tls else {
                let _ = stream.write_all(b"N");
                // Data that follows would be in the clear.
                let said = stream.read(&mut [0; 64]).unwrap_or(0);
                return tell.send(asked && said > 0).unwrap_or(());
            };
            let _ = stream.write_all(b"S");
            let server = rustls::ServerConnection::new(tls).unwrap();
            let mut server = rustls::StreamOwned::new(server, stream);
            // The start-up message with user and database.
            let said = server.read(&mut [0; 64]).unwrap_or(0);
            let _ = tell.send(asked && said > 0);
        });
        Self { port, heard }
    }

    /// Returns whether the client sent any data.
    fn was_trusted(&self) -> bool {
        self.heard
            .recv_timeout(Duration::from_secs(10))
            .unwrap_or(false)
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(2090, 1, 1);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    fn server(&self, name: &str) -> Arc<rustls::ServerConfig> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2089, 1, 1);
        // Not the name of the authority, or the certificate would count as self-signed.
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key);
        Arc::new(config.unwrap())
    }
}

async fn a477_unverified_database_tls_is_refused(stage: &Stage) {
    if stage.db() == Db::Sqlite {
        return stage.check(0, true, String::new);
    }
    let folder = folder(stage, "a477");
    let status = |url: &str| runs(&folder, &["migrate", "status"], &[("DATABASE_URL", url)]);
    // 1. Without TLS: another host is refused before anything is sent; an omitted `sslmode` is set.
    for weak in ["disable", "prefer", "require", "verify-ca"] {
        let url = format!("postgres://p:secret@db.example/p?sslmode={weak}");
        let output = status(&url);
        start_is_refused(stage, 1, &output, 78, "database.url");
        let said = String::from_utf8_lossy(&output.stderr);
        stage.check(1, !said.contains("secret"), || said.to_string());
    }
    let (good, other) = (Authority::new(), Authority::new());
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (ours, theirs) = (file("ca.pem", &good.pem), file("other.pem", &other.pem));
    let at = |peer: &FakePostgres, ca: &str| {
        status(&format!(
            "postgres://p@localhost:{}/p?sslmode=verify-full&sslrootcert={ca}&hostaddr=127.0.0.1",
            peer.port
        ))
    };
    let plain = FakePostgres::start(None);
    start_is_refused(stage, 1, &at(&plain, &ours), 69, "SSL");
    stage.check(1, !plain.was_trusted(), || {
        "spoken to in the clear".to_owned()
    });
    // 2. A certificate of another authority. 3. A certificate for another host name.
    let peer = FakePostgres::start(Some(good.server("localhost")));
    start_is_refused(stage, 2, &at(&peer, &theirs), 69, "SSL error");
    stage.check(2, !peer.was_trusted(), || "trusted".to_owned());
    let peer = FakePostgres::start(Some(good.server("db.other.example")));
    start_is_refused(stage, 3, &at(&peer, &ours), 69, "host name");
    stage.check(3, !peer.was_trusted(), || "trusted".to_owned());
    // The right certificate is accepted. Otherwise the cases above would prove nothing.
    let peer = FakePostgres::start(Some(good.server("localhost")));
    at(&peer, &ours);
    stage.check(3, peer.was_trusted(), || "the right one is not".to_owned());
    // 4. A Unix socket needs no TLS.
    let url = stage.server.config.database_url();
    let output = status(&url);
    stage.check(4, output.status.success(), || {
        String::from_utf8_lossy(&output.stderr).into_owned()
    });
    std::fs::remove_dir_all(&folder).unwrap();
}

async fn a478_sqlite_file_is_private_and_locked(stage: &Stage) {
    use std::os::unix::fs::PermissionsExt;
    if stage.db() == Db::Postgres {
        return stage.check(0, true, String::new);
    }
    // 1. Files that other users can read get mode 0600.
    let server = Server::start(Db::Sqlite).await;
    let config = server.config.clone();
    server.stop().await;
    let path = config.data_dir.0.join("portcullis.db");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let (mark, url) = (log::mark(), config.database_url());
    let store = portcullis::db::Store::open(&url, 2, Entropy::system()).unwrap();
    stage.check(1, mode(&path) == 0o600, || format!("{:o}", mode(&path)));
    for beside in std::fs::read_dir(&config.data_dir.0).unwrap() {
        let beside = beside.unwrap().path();
        let open = mode(&beside) & 0o077 != 0;
        stage.check(1, !open, || beside.display().to_string());
    }
    let told = log::since(mark)
        .iter()
        .any(|event| event.get("event").is_some_and(|name| name == "db.mode"));
    stage.check(1, told, || "no db.mode".to_owned());
    drop(store);
    // 2. No file is served from disk: pages and their assets are compiled in.
    for path in [
        "/portcullis.db",
        "/data/portcullis.db",
        "/assets/../data/portcullis.db",
    ] {
        let answer = stage.server.browser().get(path).await;
        stage.check(2, answer.status == 404, || summary(&answer));
    }
    // 3. The WAL of a crash is recovered. 4. A second process is refused.
    let site = Site::open(Db::Sqlite);
    let node = site.starts();
    let second = runs(
        site.folder(),
        &["serve"],
        &[
            ("DATABASE_URL", site.url()),
            ("PORTCULLIS__KEYS__KEK", &site.kek()),
        ],
    );
    start_is_refused(stage, 4, &second, 69, "another server is using");
    let before = site.look().count("SELECT count(*) AS n FROM audit_events");
    node.dies();
    let left = site.files();
    let wal = left.iter().any(|name| name.ends_with("-wal"));
    stage.check(3, wal, || format!("nothing was left: {left:?}"));
    let node = site.starts();
    let after = site.look().count("SELECT count(*) AS n FROM audit_events");
    stage.check(3, after >= before, || format!("{before} rows, now {after}"));
    drop(node);
    let sound = site
        .look()
        .lines("SELECT integrity_check AS line FROM pragma_integrity_check");
    stage.check(3, sound == ["ok"], || format!("{sound:?}"));
}

async fn a480_extreme_lifetimes_and_clocks_do_not_overflow(stage: &Stage) {
    let folder = folder(stage, "a480");
    let variables = [
        "TOKENS__ACCESS",
        "TOKENS__CODE",
        "TOKENS__REFRESH_ABSOLUTE",
        "LOGIN__SESSION_IDLE",
        "KEYS__ROTATE_EVERY",
    ];
    for (case, value) in [
        (1, "2147483648s"),
        (2, "9223372036854775808s"),
        (2, "18446744073709551616s"),
        (2, "9223372036854775807d"),
        (3, "-1s"),
        (3, "-1"),
    ] {
        for variable in variables {
            let name = format!("PORTCULLIS__{variable}");
            let key = variable.to_lowercase().replace("__", ".");
            let output = runs(&folder, &["serve"], &[(&name, value)]);
            start_is_refused(stage, case, &output, 78, &key);
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    // The end of 32-bit seconds, signed and unsigned, and the last year of four digits.
    for (case, second) in [(4, 2_147_483_647), (5, 4_294_967_295), (6, 253_402_200_000)] {
        let server = Server::start(stage.db()).await;
        server.advance(Timestamp::from_secs(second).since(server.clock.now()));
        server.app.poll().await.ok();
        server.app.key_manager.run_maintenance().await.ok();
        server.app.poll().await.ok();
        let mut flow = Flow::begin(&server).await;
        let tokens = redeem_new_code(&mut flow).await;
        let claims = tokens.access_claims();
        let issued = claims["iat"].as_i64().unwrap_or_default();
        stage.check(case, issued >= i64::try_from(second).unwrap(), || {
            claims.to_string()
        });
        server.advance(Duration::from_secs(2));
        let refreshed = flow.web.refreshes(tokens.refresh(), &[]).await;
        stage.check(case, refreshed.status == 200, || summary(&refreshed));
        let revoked = flow.web.revokes(tokens.refresh()).await;
        stage.check(case, revoked.status == 200, || summary(&revoked));
        let again = flow.web.refreshes(tokens.refresh(), &[]).await;
        stage.check(case, again.status == 400, || summary(&again));
        server.remove().await;
    }
}

async fn a481_ids_are_never_reused(stage: &Stage) {
    const TIMES: usize = 10_000;
    let (entropy, now) = (Entropy::system(), stage.server.clock.now());
    let mut known = HashSet::new();
    for _ in 0..TIMES {
        let client = ClientId::new(&entropy, now).to_string();
        let user = UserId::new(&entropy, now).to_string();
        stage.check(1, known.insert(client) && known.insert(user), || {
            "an id twice".to_owned()
        });
    }
    // A deleted client leaves a tombstone, so that its id is never reused.
    for batch in 0..10 {
        let made = stage.server.write(move |tx| {
            let mut ids = Vec::new();
            for n in 0..100 {
                let id = format!("client-{batch}-{n}");
                tx.put_client(&confidential(&id, "https://app.example/cb"))?;
                tx.delete_client(&ClientId::from(id.as_str()), &Actor::Operator, now)?;
                ids.push(id);
            }
            Ok(ids)
        });
        for id in made.await.into_iter().step_by(25) {
            let again = confidential(&id, "https://app.example/cb");
            let put = stage
                .server
                .app
                .store
                .transaction(move |tx| tx.put_client(&again));
            let put = put.await;
            stage.check(2, matches!(put, Err(Error::Duplicate(_))), || {
                format!("{id} is given out again")
            });
        }
    }
}

async fn a482_values_of_another_kind_are_unknown(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let tokens = redeem_new_code(&mut flow).await;
    let (refresh, access) = (tokens.refresh().to_owned(), tokens.access().to_owned());
    let bare = |value: &str| value.rsplit_once('_').unwrap().1.to_owned();
    let as_refresh = [
        code.clone(),
        format!("pcl_rt_{}", bare(&code)),
        format!("pcl_sec_{}", bare(&refresh)),
        bare(&refresh),
        access.clone(),
        refresh[..refresh.len() - 1].to_owned(),
        format!("{refresh}A"),
        format!(" {refresh}x"),
    ];
    for (case, value) in (1..).zip(as_refresh) {
        let answer = flow.web.refreshes(&value, &[]).await;
        stage.expect(case, json_error(&answer, 400, "invalid_grant"));
        stage.expect(case, logged(&answer, "token.rejected", ""));
        if case == 1 {
            stage.expect(case, logged(&answer, "token.rejected", "kind"));
        }
    }
    let as_code = [
        refresh.clone(),
        format!("pcl_ac_{}", bare(&refresh)),
        bare(&code),
        access,
        code[..code.len() - 1].to_owned(),
        format!("{code}A"),
    ];
    for (case, value) in (11..).zip(as_code) {
        let answer = flow.web.redeems(&value).await;
        stage.expect(case, json_error(&answer, 400, "invalid_grant"));
        stage.expect(case, logged(&answer, "token.rejected", ""));
    }
    let answer = flow.web.redeems(&code).await;
    stage.check(17, answer.status == 200, || summary(&answer));
    let answer = flow.web.refreshes(&refresh, &[]).await;
    stage.check(17, answer.status == 200, || summary(&answer));
}

/// There is one database, and no setting for a replica that may lag.
async fn a484_stale_replica_is_never_read_for_decisions(stage: &Stage) {
    for key in ["REPLICA_URL", "READ_URL", "REPLICAS"] {
        let variable = format!("PORTCULLIS__DATABASE__{key}");
        let value = (variable, "postgres:///p".to_owned());
        let refused = load(&Overrides::default(), [value]).err();
        let why = refused
            .map(|refused| refused.to_string())
            .unwrap_or_default();
        stage.check(1, why.contains("unknown key"), || why);
    }
}

async fn a485_raced_consumes_succeed_once(stage: &Stage) {
    const ROUNDS: usize = 60;
    const RACERS: usize = 16;
    let (web, mut alice) = stage.web_and_alice().await;
    let now = stage.server.clock.now();
    let code = alice.allows(&web).await;
    let hash = Hash::of(&code);
    let taken = stage
        .server
        .write(move |tx| tx.take_code(&hash, now))
        .await
        .unwrap();
    for round in 0..ROUNDS {
        let secret = Secret::code(&Entropy::system());
        let fresh = Code {
            hash: secret.hash(),
            ..taken.clone()
        };
        stage.server.write(move |tx| tx.put_code(&fresh)).await;
        let racers: Vec<_> = (0..RACERS)
            .map(|n| {
                let (store, hash) = (stage.node(n).app.store.clone(), secret.hash());
                actix_web::rt::spawn(async move {
                    store.transaction(move |tx| tx.take_code(&hash, now)).await
                })
            })
            .collect();
        let (mut winners, mut losers) = (0, 0);
        for racer in racers {
            match racer.await.unwrap() {
                Ok(Some(_)) => winners += 1,
                Ok(None) => losers += 1,
                // Rejected because the pool is busy: neither a win nor a loss.
                Err(Error::Unavailable(_)) => {}
                Err(error) => stage.check(2, false, || error.to_string()),
            }
        }
        stage.check(1, winners == 1 && losers > 0, || {
            format!("round {round}: {winners} winners, {losers} losers")
        });
    }
}

async fn a486_clean_up_under_load_removes_only_expired_rows(stage: &Stage) {
    const DEAD: i64 = 3_500;
    let (web, _) = stage.web_and_alice().await;
    // Expired rows are kept for an hour.
    let now = stage.server.clock.now().micros() - 3_600_000_000;
    let numbers = match stage.db() {
        Db::Sqlite => format!(
            "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {DEAD} + 500) SELECT n FROM numbers"
        ),
        Db::Postgres => format!("SELECT n FROM generate_series(1, {DEAD} + 500) AS g (n)"),
    };
    // The last 500 rows have not expired.
    stage.server.execute(&format!(
        "INSERT INTO authorizations (id, client_id, params, state, created_at, expires_at)
         SELECT 'old-' || n, '{}', '', 'begun', {now}, CASE WHEN n > {DEAD} THEN {now} + 3660000000 ELSE {now} - 1 END
         FROM ({numbers}) AS numbers",
        web.id()
    ));
    let left = || {
        stage
            .server
            .count("SELECT count(*) AS n FROM authorizations WHERE id LIKE 'old-%'")
    };
    let mut expected = DEAD + 500;
    for _ in 0..5 {
        let now = stage.server.clock.now();
        stage.server.write(move |tx| sweep(tx, now)).await;
        let gone = (expected - 500).min(1_000);
        expected -= gone;
        stage.check(1, left() == expected, || {
            format!("{} are left, not {expected}", left())
        });
    }
    stage.check(2, left() == 500, || format!("{} live", left()));
}

/// Checks the configuration of `cargo deny`, `cargo audit` and the public CI. Refusals were tested by hand.
async fn a488_ci_rejects_untrusted_dependencies(stage: &Stage) {
    let file = config::File::from(root().join("deny.toml")).format(config::FileFormat::Toml);
    let deny = config::Config::builder().add_source(file).build().unwrap();
    let text = |key: &str| deny.get_string(key).unwrap_or_default();
    // 1. Advisories, with one exception and its reason.
    let ignored = deny.get_array("advisories.ignore").unwrap();
    let only = ignored[0].clone().into_table().unwrap();
    stage.check(
        1,
        ignored.len() == 1
            && only["id"].to_string() == "RUSTSEC-2023-0071"
            && only["reason"].to_string().len() > 40,
        || format!("{ignored:?}"),
    );
    let audit = std::fs::read_to_string(root().join(".cargo/audit.toml")).unwrap();
    stage.check(1, audit.matches("RUSTSEC-").count() == 1, || audit.clone());
    // 2. Yanked. 3. Git and other registries. 4. Build scripts by name. 5. Licences by name.
    stage.check(2, text("advisories.yanked") == "deny", || {
        "yanked".to_owned()
    });
    for key in ["sources.unknown-git", "sources.unknown-registry"] {
        stage.check(3, text(key) == "deny", || key.to_owned());
    }
    let scripts = deny.get_array("bans.build.allow-build-scripts");
    stage.check(4, scripts.is_ok_and(|list| !list.is_empty()), || {
        "build scripts".to_owned()
    });
    let licences = deny.get_array("licenses.allow").unwrap();
    let copyleft = |name: &str| name.contains("GPL");
    stage.check(
        5,
        licences.iter().all(|name| !copyleft(&name.to_string())),
        || format!("{licences:?}"),
    );
    // 6. The lock file is committed and names one registry only.
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let odd = lock
        .lines()
        .filter(|line| line.starts_with("source = "))
        .find(|line| !line.contains("registry+https://github.com/rust-lang/crates.io-index"));
    stage.check(6, odd.is_none(), || odd.unwrap_or_default().to_owned());
    // 7. The public CI runs all checks.
    let ci = std::fs::read_to_string(root().join(".github/workflows/ci.yml")).unwrap();
    for step in [
        "check advisories bans licenses sources",
        "cargo audit",
        "cargo cyclonedx",
        "tests/run",
        "--locked",
    ] {
        stage.check(7, ci.contains(step), || format!("no {step}"));
    }
}

/// Each of our crates and binaries forbids unsafe code.
async fn a489_own_crates_forbid_unsafe_code(stage: &Stage) {
    let crates = std::fs::read_dir(root().join("crates")).unwrap();
    let crates = crates.map(|entry| entry.unwrap().path());
    let mut roots = 0;
    for folder in crates.chain([root().to_owned()]) {
        for file in ["src/lib.rs", "src/main.rs"] {
            let Ok(text) = std::fs::read_to_string(folder.join(file)) else {
                continue;
            };
            roots += 1;
            stage.check(1, text.contains("#![forbid(unsafe_code)]"), || {
                format!("{}: {file}", folder.display())
            });
        }
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        stage.check(1, manifest.contains("[lints]\nworkspace = true"), || {
            folder.display().to_string()
        });
    }
    stage.check(1, roots >= 3, || format!("{roots} crates"));
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    stage.check(1, manifest.contains("unsafe_code = \"forbid\""), || {
        "the workspace's lints".to_owned()
    });
}

async fn a490_insecure_configuration_is_refused(stage: &Stage) {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder(stage, "a490");
    let with = |text: &str| {
        std::fs::write(folder.join("config.toml"), text).unwrap();
        runs(&folder, &["--config", "config.toml", "serve"], &[])
    };
    let unknown = with("[tokens]\nacess = \"5m\"\n");
    start_is_refused(stage, 1, &unknown, 78, "tokens.acess");
    let secret = folder.join("url");
    std::fs::write(&secret, "postgres:///p").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = with("[database]\nurl_file = \"url\"\n");
    start_is_refused(stage, 2, &open, 78, "database.url_file");
    let kek = folder.join("kek");
    portcullis::key_manager::write_kek(&kek, &Entropy::seeded(1)).unwrap();
    std::fs::set_permissions(&kek, std::fs::Permissions::from_mode(0o640)).unwrap();
    let open = with("[keys]\nkek = [\"file:kek\"]\n");
    start_is_refused(stage, 2, &open, 78, "kek");
    let plain = with("issuer = \"http://id.example.com\"\n");
    start_is_refused(stage, 3, &plain, 78, "issuer");
    // 4. CORS origins are set per client, so no key can contain `*`, and neither can a client.
    let star = with("[http]\ncors = [\"*\"]\n");
    start_is_refused(stage, 4, &star, 78, "http.cors");
    let mut client = confidential("star", "https://app.example/cb");
    client.cors_origins = vec!["*".to_owned()];
    stage.check(4, client.check(Localhost::Forbidden).is_err(), || {
        "accepted".to_owned()
    });
    let long = with("[tokens]\naccess = \"16m\"\n");
    start_is_refused(stage, 5, &long, 78, "tokens.access");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Registers a client of the client credentials grant. Its tokens need no row, so only the lease keeps a
/// node from signing them.
async fn machine_client(server: &Server) -> TestClient {
    let mut robot = confidential("", "");
    robot.id = ClientId::new(&server.app.entropy, server.clock.now());
    robot.redirect_uris.clear();
    robot.grant_types = vec![GrantType::ClientCredentials];
    robot.resources = vec![AUDIENCE.to_owned()];
    server.register(robot).await
}

async fn asks_for_token(client: &TestClient) -> Answer {
    let fields = [("grant_type", "client_credentials"), ("resource", AUDIENCE)];
    client.posts("/oauth2/token", &fields).await
}

/// Checks that requests which need state get 503.
async fn refuses_state(
    stage: &Stage,
    case: usize,
    robot: &TestClient,
    alice: &mut Browser,
    url: &str,
) {
    let answer = asks_for_token(robot).await;
    stage.expect(case, json_error(&answer, 503, "temporarily_unavailable"));
    for path in [url, "/login?authorization=x", "/account"] {
        let answer = alice.get(path).await;
        let is_503 = answer.status == 503
            || answer.callback("error").as_deref() == Some("temporarily_unavailable");
        stage.check(case, is_503, || format!("{path}: {}", summary(&answer)));
    }
}

/// Returns how long `client` gets 503 from now on, and the first other response.
async fn is_served_again(client: &TestClient) -> (Duration, Answer) {
    let begun = Instant::now();
    loop {
        let answer = asks_for_token(client).await;
        if answer.status != 503 || begun.elapsed() > Duration::from_secs(10) {
            return (begun.elapsed(), answer);
        }
    }
}

async fn a524_read_only_database_causes_503(stage: &Stage) {
    if stage.db() == Db::Sqlite {
        // A server of the operator, which the test must not change.
        return stage.check(0, true, String::new);
    }
    let primary = Cluster::new();
    let (url, relay) = (primary.database(), Relay::before(primary.folder()));
    let standby = primary.standby();
    let promoted = standby.url(postgres::name(&url));
    let server = Server::on_cluster(&url, &relay.through(&url)).await;
    let (good, bad, web) = (
        machine_client(&server).await,
        machine_client(&server).await,
        server.shop().await,
    );
    let mut alice = server.enters("alice").await;
    let request = web.request(&[]);
    let before = asks_for_token(&bad).await;
    stage.check(1, before.status == 200, || summary(&before));
    let kid = header(before.ok().access())["kid"].clone();
    let mark = log::mark();

    // 1. A failover that this node does not notice: its address leads to the old primary, which is now a
    //    standby without a primary. On the new primary a client is disabled and a key is revoked.
    primary.is_followed_by(&standby);
    standby.is_promoted();
    primary.is_demoted();
    let (store, now) = (
        Store::open(&promoted, 2, Entropy::system()).unwrap(),
        server.clock.now(),
    );
    let id = bad.client.id.clone();
    let disabled = store.transaction(move |tx| tx.disable_client(&id, &Actor::Operator, now));
    stage.check(1, disabled.await.unwrap(), || "not disabled".to_owned());
    let table = key_table(&server.config, &store, &server.app.entropy);
    let act = Act {
        actor: portcullis::audit::Actor::Operator,
        now,
    };
    let revoked = table.await.unwrap();
    revoked
        .revoke(kid.as_str().unwrap(), "leaked", &act)
        .await
        .unwrap();
    server.fails_check("database").await;
    // The next poll tells.
    let is_told = || {
        log::since(mark).iter().any(|event| {
            let is = |field: &str, value: &str| event.get(field).is_some_and(|is| is == value);
            is("event", "node.degraded") && is("reason", "poll") && is("severity", "high")
        })
    };
    stage.check(1, until(is_told).await, || "no node.degraded".to_owned());

    // 2. No signature after 30 s, even for cached clients.
    server.advance(Duration::from_secs(31));
    for client in [&good, &bad] {
        refuses_state(stage, 2, client, &mut alice, &request).await;
        let refused = asks_for_token(client).await;
        stage.expect(2, logged(&refused, "key.unusable", "lease"));
    }
    server.fails_check("write").await;

    // 3. The address leads to the primary: requests are served again, with its state.
    relay.leads_to(standby.folder());
    let (took, answer) = is_served_again(&good).await;
    stage.check(
        3,
        answer.status == 200 && took < Duration::from_secs(5),
        || format!("{took:?}: {}", summary(&answer)),
    );
    stage.check(3, header(answer.ok().access())["kid"] != kid, || {
        "signed with the revoked key".to_owned()
    });
    let refused = asks_for_token(&bad).await;
    stage.expect(3, json_error(&refused, 401, "invalid_client"));
    server.gets_ready().await;

    // 4. The primary itself becomes read-only; then the same with closed connections.
    let mut look = Look::at(&standby.url("postgres"));
    look.execute("ALTER SYSTEM SET default_transaction_read_only = on");
    look.execute("SELECT pg_reload_conf()");
    server.fails_check("database").await;
    relay.hangs_up();
    server.fails_check("database").await;
    server.advance(Duration::from_secs(31));
    refuses_state(stage, 4, &good, &mut alice, &request).await;
    look.execute("SET transaction_read_only = off; SET default_transaction_read_only = off");
    look.execute("ALTER SYSTEM RESET default_transaction_read_only");
    look.execute("SELECT pg_reload_conf()");
    let (took, answer) = is_served_again(&good).await;
    stage.check(
        4,
        answer.status == 200 && took < Duration::from_secs(5),
        || format!("{took:?}: {}", summary(&answer)),
    );
    server.gets_ready().await;
    drop(store);
    // The general checks are skipped: without TLS there is no HSTS header here.
    journal::begin();
    server.remove().await;
}
