//! `client create`, `client list`, `client get`.

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{Exit, Output, block_on, open, table};
use crate::audit::{Event, Name};
use crate::config::Config;
use crate::id::ClientId;
use crate::keys::Alg;
use crate::oauth::client::{AuthMethod, Client, ClientSecret, ConsentPolicy, GrantType};
use crate::oauth::scope::Scope;
use crate::secret::{Entropy, Secret};
use crate::time::{Clock, Timestamp};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// How to print.
    #[arg(long, global = true, value_enum, default_value_t)]
    format: Output,
}

#[derive(Subcommand)]
enum Action {
    /// Register an application. A confidential one gets a secret, printed once.
    Create(Box<Create>),
    /// All applications.
    List,
    /// One application.
    Get {
        /// Its client id.
        id: String,
    },
}

#[derive(clap::Args)]
struct Create {
    /// What people see on the consent page.
    #[arg(long)]
    name: String,
    /// Its client id; made up if absent.
    #[arg(long)]
    id: Option<String>,
    /// Where answers may go; repeatable, compared byte for byte.
    #[arg(long = "redirect-uri", value_name = "URI")]
    redirect_uris: Vec<String>,
    /// A public client (native app, single-page app): no secret.
    #[arg(long)]
    public: bool,
    /// How a confidential client authenticates.
    #[arg(long, value_enum, default_value = "client_secret_basic")]
    auth_method: Method,
    /// The scopes it may ask for, separated by spaces.
    #[arg(long, default_value = "openid profile email")]
    scope: String,
    /// The grants it may use; repeatable.
    #[arg(long = "grant-type", value_name = "GRANT", default_values = ["authorization_code", "refresh_token"])]
    grant_types: Vec<String>,
    /// An API that it may ask tokens for, by audience; repeatable, the first is the default.
    #[arg(long = "resource", value_name = "AUDIENCE")]
    resources: Vec<String>,
    /// Origin whose scripts may call the token endpoint; repeatable.
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    cors_origins: Vec<String>,
    /// Where a browser may be sent after logout; repeatable.
    #[arg(long = "post-logout-redirect-uri", value_name = "URI")]
    post_logout_redirect_uris: Vec<String>,
    /// Signature algorithm of its ID tokens: RS256 or ES256.
    #[arg(long, default_value = "RS256")]
    id_token_alg: String,
    /// When people are asked for consent.
    #[arg(long, value_enum, default_value = "remember")]
    consent: Consent,
    /// Do not require PKCE (confidential clients only; for libraries that cannot).
    #[arg(long)]
    no_pkce: bool,
    /// Accept http://localhost redirect URIs.
    #[arg(long)]
    allow_localhost_redirect: bool,
    /// Its home page (https).
    #[arg(long)]
    client_uri: Option<String>,
    /// Its privacy policy (https).
    #[arg(long)]
    policy_uri: Option<String>,
    /// Its terms of service (https).
    #[arg(long)]
    tos_uri: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Method {
    ClientSecretBasic,
    ClientSecretPost,
}

#[derive(Clone, Copy, ValueEnum)]
enum Consent {
    /// Once, and again when more is asked for.
    Remember,
    /// Each time.
    Always,
    /// Never: your own application.
    Skip,
}

pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    match &arguments.action {
        Action::Create(create) => register(create, config, arguments.format),
        Action::List => {
            let store = open(config)?;
            let clients = block_on(async { Ok(store.read(|tx| tx.list_clients()).await?) })?;
            let rows: Vec<Vec<String>> = clients.iter().map(row).collect();
            let values: Vec<Value> = clients.iter().map(view).collect();
            table::print(
                arguments.format,
                &["client id", "name", "authentication", "redirect uris"],
                &rows,
                &values.into(),
            );
            Ok(())
        }
        Action::Get { id } => {
            let (store, wanted) = (open(config)?, ClientId::from(id.as_str()));
            let client =
                block_on(async { Ok(store.read(move |tx| tx.find_client(&wanted)).await?) })?;
            let client = client.ok_or_else(|| Exit {
                code: 1,
                message: format!("there is no client `{id}`"),
            })?;
            print_one(arguments.format, &view(&client));
            Ok(())
        }
    }
}

fn register(create: &Create, config: &Config, output: Output) -> anyhow::Result<()> {
    let (entropy, now) = (Entropy::system(), Clock::System.now());
    let client = create.client(&entropy, now)?;
    client
        .check(config.issuer()?.is_loopback())
        .map_err(|(_, why)| Exit {
            code: 1,
            message: why,
        })?;
    let store = open(config)?;
    let secret = client
        .is_confidential()
        .then(|| Secret::client_secret(&entropy));
    let kept = secret
        .iter()
        .map(|secret| ClientSecret::keep(secret, "first", &entropy, now));
    let stored = Client {
        secrets: kept.collect(),
        ..client.clone()
    };
    let known = block_on(async {
        Ok(store
            .transaction(move |tx| {
                let client = stored;
                let known = tx.find_resources(&client.resources)?.len();
                if known == client.resources.len() {
                    tx.put_client(&client)?;
                    tx.put_audit(&created(&client, now))?;
                }
                Ok(known)
            })
            .await?)
    })?;
    if known < client.resources.len() {
        return Err(Exit {
            code: 1,
            message: "a resource is not registered; see `portcullis resource list`".into(),
        }
        .into());
    }
    let mut shown = view(&client);
    shown["client_secret"] = secret.map_or(Value::Null, |secret| secret.expose().into());
    print_one(output, &shown);
    Ok(())
}

fn created(client: &Client, now: Timestamp) -> Event {
    Event {
        at: now,
        name: Name::ClientCreated,
        actor: "cli".to_owned(),
        target: format!("client:{}", client.id),
        reason: None,
        detail: view(client),
    }
}

impl Create {
    fn client(&self, entropy: &Entropy, now: Timestamp) -> anyhow::Result<Client> {
        let wrong = |message: String| Exit { code: 2, message };
        let auth_method = match (self.public, self.auth_method) {
            (true, _) => AuthMethod::None,
            (false, Method::ClientSecretBasic) => AuthMethod::Basic,
            (false, Method::ClientSecretPost) => AuthMethod::Post,
        };
        Ok(Client {
            id: self
                .id
                .clone()
                .map_or_else(|| ClientId::new(entropy, now), ClientId::from),
            name: self.name.clone(),
            auth_method,
            redirect_uris: self.redirect_uris.clone(),
            grant_types: self
                .grant_types
                .iter()
                .map(|name| {
                    GrantType::parse(name)
                        .ok_or_else(|| wrong(format!("`{name}` is no grant type that is offered")))
                })
                .collect::<Result<_, _>>()?,
            scopes: Scope::parse(&self.scope)
                .map_err(|_| wrong(format!("`{}` is no scope", self.scope)))?,
            resources: self.resources.clone(),
            cors_origins: self.cors_origins.clone(),
            post_logout_redirect_uris: self.post_logout_redirect_uris.clone(),
            id_token_alg: Alg::from_name(&self.id_token_alg).ok_or_else(|| {
                wrong(format!(
                    "`{}` is neither RS256 nor ES256",
                    self.id_token_alg
                ))
            })?,
            consent: match self.consent {
                Consent::Remember => ConsentPolicy::Remember,
                Consent::Always => ConsentPolicy::Always,
                Consent::Skip => ConsentPolicy::Skip,
            },
            require_pkce: !self.no_pkce,
            allow_localhost_redirect: self.allow_localhost_redirect,
            client_uri: self.client_uri.clone(),
            policy_uri: self.policy_uri.clone(),
            tos_uri: self.tos_uri.clone(),
            auth_epoch: 1,
            serves: Vec::new(),
            userinfo_alg: None,
            disabled_at: None,
            deleted_at: None,
            created_at: now,
            secrets: Vec::new(),
        })
    }
}

fn row(client: &Client) -> Vec<String> {
    vec![
        client.id.to_string(),
        client.name.clone(),
        client.auth_method.as_str().to_owned(),
        client.redirect_uris.join(" "),
    ]
}

/// The names of RFC 7591 §2 where it has one.
fn view(client: &Client) -> Value {
    json!({
        "client_id": client.id.as_str(),
        "client_name": client.name,
        "token_endpoint_auth_method": client.auth_method.as_str(),
        "redirect_uris": client.redirect_uris,
        "grant_types": client.grant_types.iter().map(|grant| grant.as_str()).collect::<Vec<_>>(),
        "scope": client.scopes.to_string(),
        "resources": client.resources,
        "cors_origins": client.cors_origins,
        "post_logout_redirect_uris": client.post_logout_redirect_uris,
        "id_token_signed_response_alg": client.id_token_alg.name(),
        "consent": client.consent.as_str(),
        "require_pkce": client.require_pkce,
        "disabled": client.disabled_at.is_some(),
        "created_at": client.created_at.to_string(),
    })
}

fn print_one(output: Output, value: &Value) {
    let rows: Vec<Vec<String>> = value
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| {
            vec![
                name.clone(),
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned),
            ]
        })
        .collect();
    table::print(output, &["field", "value"], &rows, value);
}
