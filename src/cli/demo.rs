//! `demo`: a server on a fresh embedded database with a demo user, a demo application and a demo API
//! guarded by the verifier. It relaxes nothing, and nothing of it exists in `serve`.

mod application;

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use actix_web::web::Data;
use anyhow::Context;

use super::Exit;
use super::serve::{StopSignals, background, bind, run_until_stopped};
use crate::accounts::password::Password;
use crate::accounts::user::{User, Username};
use crate::app::App;
use crate::config::{Address, Config, DataDir, Span};
use crate::db::{self, Transaction};
use crate::id::{self, ClientId, UserId};
use crate::keys::Alg;
use crate::oauth::client::{AuthMethod, Client, ClientSecret, ConsentPolicy, GrantType};
use crate::oauth::resource::Resource;
use crate::oauth::scope::Scope;
use crate::secret::{Entropy, Secret};
use crate::time::{Clock, Timestamp};
use crate::{log, metrics};

const USERNAME: &str = "demo";
const SCOPE: &str = "openid orders:read";

/// Where an application of one's own may be answered: any port of the loopback literals, and the
/// usual ports of local development.
const OWN_REDIRECT_URIS: [&str; 5] = [
    "http://127.0.0.1/callback",
    "http://[::1]/callback",
    "http://localhost:3000/callback",
    "http://localhost:5173/callback",
    "http://localhost:8000/callback",
];

#[derive(clap::Args)]
pub struct Arguments {
    /// Port of the server; the demo application takes the next one. Default: 8080, or the next pair
    /// that is free.
    #[arg(long)]
    port: Option<u16>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let port = choose_port(arguments.port)?;
    let folder = Folder::fresh()?;
    let config = configuration(port, &folder.0);
    log::start(&config.log);
    metrics::begin();
    actix_web::rt::System::new().block_on(demonstrate(config, port))
}

/// A folder for this run alone, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn fresh() -> anyhow::Result<Self> {
        let name = format!(
            "portcullis-demo-{}",
            id::uuid(&Entropy::system(), Clock::System.now())
        );
        let path = std::env::temp_dir().join(name);
        let mut builder = std::fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder
            .create(&path)
            .with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The asked-for pair of ports, or the first free one from 8080 on.
fn choose_port(asked: Option<u16>) -> anyhow::Result<u16> {
    let free = |port: u16| port < u16::MAX && [port, port + 1].into_iter().all(is_free);
    match asked {
        Some(port) if free(port) => Ok(port),
        Some(port) => Err(Exit {
            code: 1,
            message: format!(
                "port {port} or {} is taken; choose another one with --port",
                u32::from(port) + 1
            ),
        }
        .into()),
        None => (0..50)
            .map(|step| 8080 + 2 * step)
            .find(|port| free(*port))
            .ok_or_else(|| {
                Exit {
                    code: 1,
                    message: "no free port from 8080 on; choose one with --port".into(),
                }
                .into()
            }),
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
        && TcpListener::bind(("::1", port)).map_or_else(
            |error| error.kind() != std::io::ErrorKind::AddrInUse,
            |_| true,
        )
}

fn configuration(port: u16, folder: &Path) -> Config {
    let mut config = Config {
        data_dir: DataDir(folder.to_owned()),
        ..Config::default()
    };
    config.keys.kek = vec![format!("file:{}", folder.join("kek").display())];
    config.listen.public = Address::new("localhost", port);
    config.listen.management = Address::new("127.0.0.1", 0);
    config.log.level = "warn".to_owned();
    // Nothing stands in front of it.
    config.shutdown.delay = Span::secs(0);
    config
}

async fn demonstrate(config: Config, port: u16) -> anyhow::Result<()> {
    let app = Data::new(App::start(config, Clock::System, Entropy::system()).await?);
    let application = format!("http://localhost:{}", port + 1);
    let cast = Cast::register(&app, &application).await?;
    let (listeners, signals) = (bind(&app)?, StopSignals::catch()?);
    let tasks = background(&app);
    let server = actix_web::rt::spawn(run_until_stopped(app.clone(), listeners, signals, tasks));
    let demo = application::start(&app, &cast, port + 1).await?;
    cast.introduce(&app);
    server.await.context("the server failed")??;
    demo.stop(true).await;
    Ok(())
}

/// Who takes part, with this run's secrets.
struct Cast {
    password: Secret,
    application: String,
    audience: String,
    client_id: ClientId,
    client_secret: Secret,
    own_client_id: ClientId,
    own_client_secret: Secret,
}

impl Cast {
    /// Writes user, API and applications into the fresh database.
    async fn register(app: &App, application: &str) -> anyhow::Result<Self> {
        let now = app.clock.now();
        let cast = Self {
            password: Secret::readable(&app.entropy),
            application: application.to_owned(),
            audience: format!("{application}/api"),
            client_id: ClientId::from("demo-application"),
            client_secret: Secret::client_secret(&app.entropy),
            own_client_id: ClientId::from("my-application"),
            own_client_secret: Secret::client_secret(&app.entropy),
        };
        let password = Password::parse(cast.password.expose())
            .map_err(|_| anyhow::anyhow!("the demo password"))?;
        let phc = app
            .password_hash(password)
            .await
            .map_err(|_| anyhow::anyhow!("password hashing"))?;
        let username = Username::parse(USERNAME).context("the demo user name")?;
        let user = User {
            id: UserId::new(&app.entropy, now),
            username,
            name: Some("Demo User".to_owned()),
            email: None,
            email_verified: false,
            claims: serde_json::Map::new(),
            auth_epoch: 1,
            disabled_at: None,
            created_at: now,
            updated_at: now,
        };
        let resource = cast.resource(&app.entropy, now)?;
        let demo = cast.client(
            &cast.client_id,
            "Demo application",
            vec![format!("{application}/callback")],
            now,
        )?;
        let own_uris = OWN_REDIRECT_URIS.map(str::to_owned).to_vec();
        let own = cast.client(&cast.own_client_id, "My application", own_uris, now)?;
        let clients = [
            (demo, cast.client_secret.clone()),
            (own, cast.own_client_secret.clone()),
        ];
        let entropy = app.entropy.clone();
        app.store
            .transaction(move |tx: &mut Transaction<'_>| -> Result<(), db::Error> {
                tx.put_user(&user)?;
                tx.put_password(&user.id, &phc, now)?;
                tx.put_resource(&resource)?;
                tx.put_scope_description("orders:read", "See your orders in the demo shop")?;
                for (mut client, secret) in clients {
                    let kept = ClientSecret::keep(&secret, "first", &entropy, now);
                    client.secrets.push(kept);
                    tx.put_client(&client)?;
                }
                Ok(())
            })
            .await?;
        Ok(cast)
    }

    fn resource(&self, entropy: &Entropy, now: Timestamp) -> anyhow::Result<Resource> {
        Ok(Resource {
            max_age: portcullis_verifier::MaxAge::STANDARD,
            id: id::uuid(entropy, now),
            audience: self.audience.clone(),
            name: "Demo orders API".to_owned(),
            scopes: Scope::parse("orders:read").map_err(|_| anyhow::anyhow!("scope"))?,
            access_ttl: None,
            alg: Alg::ES256,
            created_at: now,
        })
    }

    fn client(
        &self,
        id: &ClientId,
        name: &str,
        redirect_uris: Vec<String>,
        now: Timestamp,
    ) -> anyhow::Result<Client> {
        Ok(Client {
            id: id.clone(),
            name: name.to_owned(),
            auth_method: AuthMethod::Basic,
            redirect_uris,
            grant_types: vec![GrantType::AuthorizationCode, GrantType::RefreshToken],
            scopes: Scope::parse(SCOPE).map_err(|_| anyhow::anyhow!("scope"))?,
            resources: vec![self.audience.clone()],
            cors_origins: Vec::new(),
            post_logout_redirect_uris: Vec::new(),
            id_token_alg: Alg::RS256,
            consent: ConsentPolicy::Remember,
            require_pkce: true,
            allow_localhost_redirect: false,
            client_uri: None,
            policy_uri: None,
            tos_uri: None,
            auth_epoch: 1,
            serves: Vec::new(),
            userinfo_alg: None,
            allow_networks: Vec::new(),
            deny_networks: Vec::new(),
            disabled_at: None,
            deleted_at: None,
            created_at: now,
            secrets: Vec::new(),
        })
    }

    /// Says where to look and what an application of one's own needs.
    fn introduce(&self, app: &App) {
        let issuer = app.issuer.as_str();
        println!("\n  Open    {}/\n", self.application);
        println!(
            "  Sign in as   {USERNAME}\n  Password     {}\n",
            self.password.expose()
        );
        println!("  To attach an application of your own:");
        println!("    issuer         {issuer}");
        println!("    client id      {}", self.own_client_id);
        println!("    client secret  {}", self.own_client_secret.expose());
        println!("    scopes         {SCOPE}");
        println!(
            "    redirect URIs  {} (any port)",
            OWN_REDIRECT_URIS[..2].join(", ")
        );
        println!("                   {}", OWN_REDIRECT_URIS[2..].join(", "));
        if std::env::var_os("SSH_CONNECTION").is_some() {
            let port = app.config.listen.public.port().unwrap_or_default();
            let ports = (port, port + 1);
            println!("\n  You are here over ssh. On your own machine, run:");
            println!(
                "    ssh -L {0}:localhost:{0} -L {1}:localhost:{1} <this host>",
                ports.0, ports.1
            );
        }
        println!(
            "\n  Everything is in memory of this run and in a temporary folder. Ctrl-C ends it.\n"
        );
    }
}
