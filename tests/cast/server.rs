//! A node: the real server on a real socket, with its own database and a clock to push forward.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::web::Data;
use portcullis::accounts::password::Password;
use portcullis::accounts::session::{ACR_PASSWORD, Login, Session};
use portcullis::accounts::user::{User, Username};
use portcullis::app::App;
use portcullis::config::{Address, Config, DataDir};
use portcullis::db::{self, Store, Transaction};
use portcullis::http::Listeners;
use portcullis::id::{ClientId, Sid, UserId};
use portcullis::keys::{Alg, Use};
use portcullis::oauth::client::{AuthMethod, Client, ClientSecret, ConsentPolicy, GrantType};
use portcullis::oauth::resource::Resource;
use portcullis::oauth::scope::Scope;
use portcullis::secret::{Entropy, Secret};
use portcullis::time::{Clock, Timestamp};
use portcullis_verifier::{Builder, JwkSet, ManualClock, Verifier};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use super::place::empty_folder;
use super::{Browser, Look, Party, log, postgres};

/// The issuer of all stories. TLS ends at a proxy that is not there: the socket is plain loopback.
pub const ISSUER: &str = "https://op.example";
/// The password of everybody.
pub const PASSWORD: &str = "gravel-otter-92-lamp";
/// The API of the stories.
pub const AUDIENCE: &str = "https://api.example";

/// Which database a story runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Db {
    Sqlite,
    Postgres,
}

/// One node and its database.
pub struct Server {
    pub app: Data<App>,
    pub clock: Clock,
    /// The clock of the services, which goes with the server's.
    pub services: ManualClock,
    pub base: String,
    /// Where its management listener answers.
    pub management: String,
    pub config: Config,
    pub db: Db,
    handle: ServerHandle,
    running: Option<JoinHandle<std::io::Result<()>>>,
    follower: Option<JoinHandle<()>>,
}

impl Server {
    /// A node on a database of its own, with alice, bob and dave (switched off), and the API.
    pub async fn start(db: Db) -> Self {
        Self::with(db, |_| {}).await
    }

    /// The same, with settings changed first.
    pub async fn with(db: Db, change: impl FnOnce(&mut Config)) -> Self {
        log::collect();
        let mut config = fresh_database(db).await;
        change(&mut config);
        Self::serve(db, config, Clock::settable(start_of_time())).await
    }

    /// A node on an empty database of a Postgres of the test's own, which it reaches by another URL.
    pub async fn on_cluster(url: &str, by_way_of: &str) -> Self {
        log::collect();
        let mut config = fresh_database(Db::Postgres).await;
        postgres::drop_database(&config.database_url());
        config.database.url = Some(url.to_owned());
        fill(&config).await;
        config.database.url = Some(by_way_of.to_owned());
        Self::serve(Db::Postgres, config, Clock::settable(start_of_time())).await
    }

    /// A node that believes what a proxy on this machine says of addresses.
    pub async fn behind_proxy(db: Db) -> Self {
        let proxy = "127.0.0.1".parse().unwrap();
        Self::with(db, |config| config.http.trusted_proxies = vec![proxy]).await
    }

    /// A node that other machines reach, too.
    pub async fn anywhere(db: Db, change: impl FnOnce(&mut Config)) -> Self {
        Self::with(db, |config| {
            config.listen.public = Address::new("0.0.0.0", 0);
            change(config);
        })
        .await
    }

    /// A node whose issuer is where it listens, so that a verifier finds it; the port of a second node
    /// is set aside.
    pub async fn found_by_services(db: Db, change: impl FnOnce(&mut Config)) -> Self {
        let [first, second] = free_ports();
        Self::with(db, |config| {
            config.issuer = Some(format!("http://127.0.0.1:{first}"));
            config.listen.public = Address::new("127.0.0.1", first);
            config.http.accept_hosts = [
                "op.example".to_owned(),
                format!("127.0.0.1:{first}"),
                format!("127.0.0.1:{second}"),
            ]
            .map(|host| host.parse().unwrap())
            .to_vec();
            change(config);
        })
        .await
    }

    /// Another node on the same database (Postgres only), with the same clock.
    pub async fn node(&self) -> Self {
        self.node_with(|_| {}).await
    }

    /// The same, with settings changed first.
    pub async fn node_with(&self, change: impl FnOnce(&mut Config)) -> Self {
        assert_eq!(self.db, Db::Postgres, "an embedded database has one node");
        let mut config = self.config.clone();
        change(&mut config);
        if let Some(spare) = config.http.accept_hosts.last() {
            config.listen.public = Address::new("127.0.0.1", spare.port().unwrap());
        }
        Self::serve(self.db, config, self.clock.clone()).await
    }

    /// Another node on the same database (Postgres only), whose clock is off by so many microseconds.
    pub async fn skewed_node(&self, off: &Arc<AtomicI64>) -> Self {
        assert_eq!(self.db, Db::Postgres, "an embedded database has one node");
        let Clock::Settable(at) = &self.clock else {
            panic!("the clock cannot be set");
        };
        let clock = Clock::Skewed(Arc::clone(at), Arc::clone(off));
        Self::serve(self.db, self.config.clone(), clock).await
    }

    /// What `/readyz` answers: the status, and the checks that failed.
    pub async fn readiness(&self) -> (u16, Vec<String>) {
        let answer = Browser::new(&self.management).get("/readyz").await;
        let said = answer.json();
        let checks = said["checks"].as_object().unwrap();
        let failed = checks.iter().filter(|(_, word)| *word != "ok");
        (
            answer.status,
            failed.map(|(name, _)| name.clone()).collect(),
        )
    }

    /// Waits until `/readyz` says that a check failed.
    #[track_caller]
    pub fn fails_check(&self, check: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let begun = std::time::Instant::now();
            loop {
                let (status, failed) = self.readiness().await;
                if status == 503 && failed.iter().any(|name| name == check) {
                    return;
                }
                assert!(
                    begun.elapsed() < Duration::from_secs(15),
                    "{caller}: {check} is not named: {status} {failed:?}"
                );
            }
        }
    }

    /// Waits until `/readyz` is 200.
    #[track_caller]
    pub fn gets_ready(&self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let begun = std::time::Instant::now();
            loop {
                let (status, failed) = self.readiness().await;
                if status == 200 {
                    return;
                }
                assert!(
                    begun.elapsed() < Duration::from_secs(15),
                    "{caller}: not ready: {status} {failed:?}"
                );
            }
        }
    }

    /// A service of the API behind a verifier that follows the feed.
    pub async fn service(&self, instance: &str) -> Verifier {
        let api = self.api_server().await;
        self.subscriber(&api, instance).start().await.unwrap()
    }

    /// Such a verifier, to be told more.
    pub fn subscriber(&self, api: &Party, instance: &str) -> Builder {
        Verifier::builder(self.app.issuer.as_str(), AUDIENCE)
            .subscriber(api.id(), api.secret.as_ref().unwrap().expose())
            .instance(instance)
            .clock(&self.services)
    }

    /// Credentials of the API.
    pub async fn api_server(&self) -> Party {
        let id = ClientId::new(&self.app.entropy, self.clock.now());
        self.resource_server(id.as_str(), AUDIENCE).await
    }

    /// A node on a database that is there already.
    pub async fn serve(db: Db, config: Config, clock: Clock) -> Self {
        // Each node its own, so that no two requests of this process have one id.
        static NODES: AtomicUsize = AtomicUsize::new(1);
        let seed = NODES.fetch_add(1, Ordering::SeqCst) as u64;
        let app = App::start(config.clone(), clock.clone(), Entropy::seeded(seed))
            .await
            .unwrap();
        let app = Data::new(app);
        let any = Address::new("127.0.0.1", 0);
        let public = match config.listen.public.host() {
            "localhost" => any.clone(),
            "127.0.0.1" => config.listen.public.clone(),
            host => Address::new(host, 0),
        };
        let listeners = Listeners::bind(&app, &public, &any).unwrap();
        let scheme = match config.listen.tls.files() {
            Some(_) => "https",
            None => "http",
        };
        let port = listeners.addresses()[0].port();
        let base = format!("{scheme}://127.0.0.1:{port}");
        let management = format!("http://{}", listeners.shown().1);
        let handle = listeners.handle();
        let running = Some(actix_web::rt::spawn(listeners.run()));
        let node = app.clone();
        let follower = Some(actix_web::rt::spawn(async move { node.follow().await }));
        Self {
            app,
            services: ManualClock::at(clock.now().secs()),
            clock,
            base,
            management,
            config,
            db,
            handle,
            running,
            follower,
        }
    }

    /// Stops the node and waits until it is gone.
    pub async fn stop(mut self) {
        self.handle.stop(false).await;
        if let Some(running) = self.running.take() {
            running.await.unwrap().unwrap();
        }
        self.unfollow().await;
    }

    /// Stops the node's background work, what it has sent to the database included.
    pub async fn unfollow(&mut self) {
        if let Some(follower) = self.follower.take() {
            follower.abort();
            let _ = follower.await;
        }
        // Work of the aborted task may still run on a thread, and read the clock later than the test means.
        let begun = std::time::Instant::now();
        while self.app.store.pool_figures().busy > 0 {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "the database stays busy"
            );
            tokio::task::yield_now().await;
        }
        // An embedded database has a writer, which works in order.
        let _ = self.app.store.transaction(|_| Ok(())).await;
    }

    /// The same, and its database is gone too. Other nodes on it must have been stopped.
    pub async fn remove(self) {
        let (db, config) = (self.db, self.config.clone());
        self.stop().await;
        match db {
            Db::Sqlite => std::fs::remove_dir_all(&config.data_dir.0).unwrap(),
            Db::Postgres => postgres::drop_database(&config.database_url()),
        }
    }

    /// The node after a restart: everything that it had in memory is gone.
    pub async fn restarted(self) -> Self {
        let (db, config, clock) = (self.db, self.config.clone(), self.clock.clone());
        self.stop().await;
        // The workers' threads let go of an embedded database a little later.
        let stopped = std::time::Instant::now();
        while db::Claim::on(&config.database_url()).is_err() {
            assert!(
                stopped.elapsed() < Duration::from_secs(5),
                "the node does not let go of its database"
            );
            tokio::task::yield_now().await;
        }
        Self::serve(db, config, clock).await
    }

    /// Moves the clock.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.services.advance(by);
    }

    /// Moves the clock back, as a machine's clock may jump.
    pub fn set_back(&self, by: Duration) {
        if let Clock::Settable(at) = &self.clock {
            at.fetch_sub(i64::try_from(by.as_micros()).unwrap(), Ordering::SeqCst);
        }
    }

    /// A browser without cookies.
    pub fn browser(&self) -> Browser {
        let mut browser = Browser::new(&self.base);
        browser.issuer = self.app.issuer.to_string();
        browser
    }

    /// The browser of a person who has signed in.
    pub async fn signed_in(&self, username: &str) -> Browser {
        let web = self.shop().await;
        let mut browser = self.browser();
        browser.signs_in(&web, username).await;
        browser
    }

    /// The browser of a person who has signed in, without the page: hashing a password takes its time.
    pub async fn enters(&self, username: &str) -> Browser {
        let (app, now) = (&self.app, self.clock.now());
        let (name, cookie) = (
            Username::parse(username).unwrap(),
            Secret::opaque(&app.entropy),
        );
        let (sid, id_hash) = (Sid::new(&app.entropy, now), cookie.hash());
        self.write(move |tx| {
            let (user, _) = tx.find_credentials(&name)?.unwrap();
            let login = Login {
                sid,
                user_id: user.id,
                user_epoch: user.auth_epoch,
                auth_time: now,
                acr: ACR_PASSWORD.to_owned(),
                amr: vec!["pwd".to_owned()],
            };
            tx.put_session(&Session {
                id_hash,
                login,
                seen_at: now,
                expires_at: now + Duration::from_secs(12 * 3_600),
            })
        })
        .await;
        let mut browser = self.browser();
        let cookie = cookie.expose().to_owned();
        let name = match self.app.issuer.is_https() {
            true => "__Host-sid",
            false => "sid",
        };
        browser.cookies.insert(name.to_owned(), cookie);
        browser
    }

    /// Ends everything of a person, as `user revoke-sessions` does.
    pub async fn signs_out_everywhere(&self, username: &str) {
        let (name, now) = (Username::parse(username).unwrap(), self.clock.now());
        self.write(move |tx| {
            let (user, _) = tx.find_credentials(&name)?.unwrap();
            tx.cut_off_user(&user.id, "signed out everywhere", "test", now)
        })
        .await;
    }

    /// Writes to the database as an operator would.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, db::Error> + Send + 'static,
    ) -> T {
        let written = self.app.store.transaction(work).await.unwrap();
        // What the poll of a running node does when the database says that something changed.
        self.app.registrations.forget();
        written
    }

    /// Changes what a client's registration says.
    pub async fn alter(&self, id: &ClientId, change: impl FnOnce(&mut Client) + Send + 'static) {
        let id = id.clone();
        self.write(move |tx| {
            let mut client = tx.find_registered(&id)?.unwrap();
            change(&mut client);
            tx.update_client(&client)
        })
        .await;
    }

    /// How many rows a query counts: `SELECT count(*) AS n FROM …`.
    pub fn count(&self, query: &str) -> i64 {
        count(&self.config, query)
    }

    /// Runs a statement behind the server's back.
    pub fn execute(&self, statement: &str) {
        execute(&self.config, statement);
    }

    /// Registers a client; the same id twice is the same client.
    pub async fn register(&self, client: Client) -> Party {
        let secret = client
            .is_confidential()
            .then(|| Secret::client_secret(&self.app.entropy));
        let (now, entropy) = (self.clock.now(), &self.app.entropy);
        let kept = secret
            .iter()
            .map(|secret| ClientSecret::keep(secret, "first", entropy, now));
        let stored = Client {
            secrets: kept.collect(),
            ..client.clone()
        };
        self.write(move |tx| tx.put_client(&stored)).await;
        Party::new(&self.base, client, secret)
    }

    /// `web` of the catalogue: a confidential client.
    pub async fn shop(&self) -> Party {
        let mut client = confidential("", "https://app.example/cb");
        client.id = ClientId::new(&self.app.entropy, self.clock.now());
        self.register(client).await
    }

    /// `native` of the catalogue: a public client on a phone or desktop.
    pub async fn phone(&self) -> Party {
        let mut client = public(
            "",
            &[
                "http://127.0.0.1/cb",
                "http://[::1]/cb",
                "com.example.app:/cb",
            ],
        );
        client.id = ClientId::new(&self.app.entropy, self.clock.now());
        self.register(client).await
    }

    /// A resource server with credentials of its own: it serves one audience.
    pub async fn resource_server(&self, id: &str, audience: &str) -> Party {
        let mut client = confidential(id, "");
        client.redirect_uris.clear();
        client.grant_types = vec![GrantType::ClientCredentials];
        client.serves = vec![audience.to_owned()];
        self.register(client).await
    }

    /// The API's own view: it has the published keys and verifies alone.
    pub fn api(&self) -> Verifier {
        let keys: JwkSet =
            serde_json::from_slice(&self.app.keys().published(Use::Token).bytes).unwrap();
        Verifier::builder(ISSUER, AUDIENCE)
            .keys(keys)
            .build()
            .unwrap()
    }
}

/// Ports that nobody listens on.
fn free_ports<const N: usize>() -> [u16; N] {
    let held: [_; N] = std::array::from_fn(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

/// How many rows a query counts: `SELECT count(*) AS n FROM …`.
#[track_caller]
pub fn count(config: &Config, query: &str) -> i64 {
    Look::at(&config.database_url()).count(query)
}

/// Runs a statement behind the server's back.
#[track_caller]
pub fn execute(config: &Config, statement: &str) {
    Look::at(&config.database_url()).execute(statement);
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
        if let Some(follower) = &self.follower {
            follower.abort();
        }
    }
}

/// A confidential client with `client_secret_basic` and all scopes of the stories.
pub fn confidential(id: &str, redirect_uri: &str) -> Client {
    Client {
        name: "Corner Shop".to_owned(),
        redirect_uris: vec![redirect_uri.to_owned()],
        scopes: Scope::parse("openid profile email offline_access orders:read orders:write")
            .unwrap(),
        resources: vec![AUDIENCE.to_owned()],
        post_logout_redirect_uris: vec!["https://app.example/bye".to_owned()],
        ..Client::new(ClientId::from(id), start_of_time())
    }
}

/// A public client.
pub fn public(id: &str, redirect_uris: &[&str]) -> Client {
    Client {
        auth_method: AuthMethod::None,
        name: "Pocket App".to_owned(),
        redirect_uris: redirect_uris.iter().map(|uri| (*uri).to_owned()).collect(),
        ..confidential(id, "")
    }
}

/// Removes one batch of each kind that is dead, and says how many rows went.
pub fn sweep(tx: &mut Transaction<'_>, now: Timestamp) -> Result<usize, db::Error> {
    let mut removed = 0;
    for (_, sweep) in db::SWEEPS {
        removed += sweep(tx, now)?;
    }
    Ok(removed)
}

/// When every story begins.
pub fn start_of_time() -> Timestamp {
    Timestamp::from_secs(1_800_000_000)
}

/// The folder of this process.
pub fn scratch() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| empty_folder("cast"))
}

/// A database with keys and people in it, copied from one that is made once: RSA keys are slow.
/// A database of its own, with people, the API and the first keys.
pub async fn fresh_database(db: Db) -> Config {
    static SQLITE: OnceCell<Config> = OnceCell::const_new();
    static POSTGRES: OnceCell<Config> = OnceCell::const_new();
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::SeqCst);
    let template = match db {
        Db::Sqlite => SQLITE.get_or_init(|| template(db)).await,
        Db::Postgres => POSTGRES.get_or_init(|| template(db)).await,
    };
    let mut config = template.clone();
    // Each with a KEK file of its own, since the mark of the feed stands beside it.
    let folder = scratch().join(number.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(
        template.keys.kek[0].strip_prefix("file:").unwrap(),
        folder.join("kek"),
    )
    .unwrap();
    config.keys.kek = vec![format!("file:{}", folder.join("kek").display())];
    match db {
        Db::Sqlite => {
            std::fs::copy(
                template.data_dir.0.join("portcullis.db"),
                folder.join("portcullis.db"),
            )
            .unwrap();
            config.data_dir = DataDir(folder.clone());
        }
        Db::Postgres => {
            let name = format!("story_{}_{number}", std::process::id());
            let source = format!("template_{}", std::process::id());
            postgres::execute(&format!("DROP DATABASE IF EXISTS {name}"));
            postgres::execute(&format!("CREATE DATABASE {name} TEMPLATE {source}"));
            config.database.url = Some(postgres::database(&name));
        }
    }
    config
}

async fn template(db: Db) -> Config {
    let folder = scratch().join(format!("template-{db:?}"));
    std::fs::create_dir_all(&folder).unwrap();
    let mut config = Config {
        issuer: Some(ISSUER.to_owned()),
        data_dir: DataDir(folder.clone()),
        ..Config::default()
    };
    config.keys.kek = vec![format!("file:{}", folder.join("kek").display())];
    config.database.auto_migrate = Some(true);
    config.database.pool_size = 8;
    if db == Db::Postgres {
        portcullis::app::write_kek(&folder.join("kek"), &Entropy::seeded(9)).unwrap();
        let name = format!("template_{}", std::process::id());
        config.database.url = Some(postgres::empty_database(&name));
    }
    fill(&config).await;
    settle(&config);
    config
}

/// Writes the people, the API and the keys of the stories into an empty database.
async fn fill(config: &Config) {
    let app = App::start(
        config.clone(),
        Clock::settable(start_of_time()),
        Entropy::seeded(7),
    )
    .await
    .unwrap();
    populate(&app.store, &app.entropy).await;
    app.keeper.keep().await.unwrap();
    // dave's record is the first of every feed.
    app.number_waiting().await.unwrap();
}

/// Waits until the last connection of a template is gone: SQLite merges its log then, and Postgres
/// copies no database that is in use.
fn settle(config: &Config) {
    let url = config.database_url();
    if url.starts_with("sqlite:") {
        Look::at(&url).execute("PRAGMA wal_checkpoint(TRUNCATE)");
    } else {
        let name = format!("template_{}", std::process::id());
        postgres::execute(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        ));
    }
}

async fn populate(store: &Store, entropy: &Entropy) {
    let now = start_of_time();
    let cost = portcullis::config::Argon2::default();
    let phc = Password::parse(PASSWORD)
        .unwrap()
        .hash(&cost, entropy)
        .unwrap();
    let people: Vec<User> = ["alice", "bob", "dave"]
        .iter()
        .map(|name| User {
            id: UserId::new(entropy, now),
            username: Username::parse(name).unwrap(),
            name: None,
            email: Some(format!("{name}@mail.example")),
            email_verified: false,
            claims: serde_json::Map::new(),
            auth_epoch: 1,
            disabled_at: None,
            created_at: now,
            updated_at: now,
        })
        .collect();
    let api = Resource {
        id: portcullis::id::uuid(entropy, now),
        audience: AUDIENCE.to_owned(),
        name: "Orders".to_owned(),
        scopes: Scope::parse("orders:read orders:write").unwrap(),
        access_ttl: None,
        alg: Alg::ES256,
        max_age: portcullis_verifier::MaxAge::STANDARD,
        created_at: now,
    };
    store
        .transaction(move |tx| {
            for person in &people {
                tx.put_user(person)?;
                tx.put_password(&person.id, &phc, now)?;
            }
            tx.disable_user(&people[2].id, "test", now)?;
            tx.put_resource(&api)
        })
        .await
        .unwrap();
}
