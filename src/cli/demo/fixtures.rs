//! The fixtures of the demo: a user, an API that reads the revocation feed, an application, and the registration of
//! an application that a developer brings.

use anyhow::Context;

use crate::accounts::password::Password;
use crate::accounts::user::{User, Username};
use crate::admin::clients::Rules;
use crate::admin::users::NewUser;
use crate::admin::{clients, resources, users};
use crate::app::App;
use crate::audit::Actor;
use crate::id::{self, ClientId, UserId};
use crate::keys::Alg;
use crate::oauth::client::Client;
use crate::oauth::request::scope::Scope;
use crate::oauth::resource::Resource;
use crate::secret::{Entropy, Secret};
use crate::time::Timestamp;

/// The user name of the demo user.
pub const USERNAME: &str = "demo";
/// The scope that the applications request.
pub const SCOPE: &str = "openid orders:read";

/// Redirect URIs of a developer's application: any port of the loopback addresses, and the usual ports of local
/// development.
const OWN_REDIRECT_URIS: [&str; 5] = [
    "http://127.0.0.1/callback",
    "http://[::1]/callback",
    "http://localhost:3000/callback",
    "http://localhost:5173/callback",
    "http://localhost:8000/callback",
];

/// The fixtures, with the secrets of this run.
pub struct Fixtures {
    /// The user's password.
    pub password: Secret,
    /// URL of the application.
    pub application: String,
    /// URL and audience of the API.
    pub audience: String,
    /// The application's client id.
    pub client_id: ClientId,
    /// The application's secret.
    pub client_secret: Secret,
    /// The client id with which the API reads the revocation feed.
    pub api_client_id: ClientId,
    /// The API's secret.
    pub api_client_secret: Secret,
    own_client_id: ClientId,
    own_client_secret: Secret,
}

impl Fixtures {
    /// Creates user, API and applications in the empty database.
    ///
    /// # Errors
    /// The error of the database or of the password hash.
    pub async fn register(app: &App, application: &str) -> anyhow::Result<Self> {
        let now = app.clock.now();
        let fixtures = Self {
            password: Secret::readable(&app.entropy),
            application: application.to_owned(),
            audience: format!("{application}/api"),
            client_id: ClientId::from("demo-application"),
            client_secret: Secret::client_secret(&app.entropy),
            api_client_id: ClientId::from("demo-api"),
            api_client_secret: Secret::client_secret(&app.entropy),
            own_client_id: ClientId::from("my-application"),
            own_client_secret: Secret::client_secret(&app.entropy),
        };
        let password = Password::parse(fixtures.password.expose())
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
        let resource = fixtures.resource(&app.entropy, now)?;
        let demo = fixtures.client(
            &fixtures.client_id,
            "Demo application",
            vec![format!("{application}/callback")],
            now,
        )?;
        let own_uris = OWN_REDIRECT_URIS.map(str::to_owned).to_vec();
        let own = fixtures.client(&fixtures.own_client_id, "My application", own_uris, now)?;
        let api = fixtures.resource_server(now)?;
        let clients = [
            (demo, fixtures.client_secret.clone()),
            (api, fixtures.api_client_secret.clone()),
            (own, fixtures.own_client_secret.clone()),
        ];
        let ctx = crate::admin::Context::new(Actor::Operator, app.entropy.clone(), now);
        let rules = Rules::of(&app.config)?;
        let keys = app.config.keys.clone();
        crate::admin::execute(&app.store, ctx, move |tx, ctx| {
            let new = NewUser {
                user,
                password_hash: Some(phc),
                admin: None,
            };
            users::create(tx, ctx, new)?;
            resources::create(tx, ctx, &keys, &resource)?;
            let text = "See your orders in the demo shop";
            resources::describe_scope(tx, ctx, "orders:read", Some(text))?;
            for (client, secret) in clients {
                clients::create(tx, ctx, &rules, client, Some(secret))?;
            }
            Ok(())
        })
        .await?;
        Ok(fixtures)
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

    /// Returns the API as a client, which requests no tokens and may read the revocation feed.
    fn resource_server(&self, now: Timestamp) -> anyhow::Result<Client> {
        let client = self.client(&self.api_client_id, "Demo orders API", Vec::new(), now)?;
        Ok(Client {
            grant_types: Vec::new(),
            scopes: Scope::default(),
            resources: Vec::new(),
            serves: vec![self.audience.clone()],
            ..client
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
            name: name.to_owned(),
            redirect_uris,
            scopes: Scope::parse(SCOPE).map_err(|_| anyhow::anyhow!("scope"))?,
            resources: vec![self.audience.clone()],
            ..Client::new(id.clone(), now)
        })
    }

    /// Prints the URL of the demo and the settings for a developer's application.
    pub fn print_instructions(&self, app: &App) {
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
            println!("\n  You are connected over ssh. On your own machine, run:");
            println!(
                "    ssh -L {0}:localhost:{0} -L {1}:localhost:{1} <this host>",
                ports.0, ports.1
            );
        }
        println!(
            "\n  All data is in a temporary directory. Ctrl-C stops the demo and removes it.\n"
        );
    }
}
