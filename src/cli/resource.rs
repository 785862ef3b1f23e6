//! `resource create`, `resource list`.

use clap::Subcommand;
use portcullis_verifier::MaxAge;
use serde_json::{Value, json};

use super::{Exit, Output, block_on, open, table};
use crate::audit::{Event, Name};
use crate::config::{Config, Span};
use crate::id;
use crate::keys::Alg;
use crate::keys::ring::check_offered;
use crate::oauth::resource::Resource;
use crate::oauth::scope::Scope;
use crate::secret::Entropy;
use crate::time::Clock;

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
    /// Register an API.
    Create {
        /// Its identifier, an absolute URI: the `aud` of its tokens.
        #[arg(long, value_name = "URI")]
        audience: String,
        /// What people see.
        #[arg(long)]
        name: String,
        /// What can be asked of it, separated by spaces. `orders:read=See your orders` also sets the
        /// text of the consent page; repeat the option then.
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
        /// Signature algorithm of its access tokens: ES256 or RS256.
        #[arg(long, default_value = "ES256")]
        alg: String,
        /// Lifetime of its access tokens, if not the server's; at most 60m.
        #[arg(long, value_name = "DURATION")]
        access_ttl: Option<Span>,
        /// How old the news of revocations may be on which its services accept tokens, such as 60s or 3s;
        /// `none` for any age.
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = max_age)]
        max_age: MaxAge,
    },
    /// All APIs.
    List,
}

pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    match &arguments.action {
        Action::Create {
            audience,
            name,
            scopes,
            alg,
            access_ttl,
            max_age,
        } => {
            let (entropy, now) = (Entropy::system(), Clock::System.now());
            let wrong = |message: String| Exit { code: 2, message };
            let described: Vec<(String, String)> = scopes
                .iter()
                .filter_map(|scope| scope.split_once('='))
                .map(|(scope, text)| (scope.to_owned(), text.to_owned()))
                .collect();
            let names: Vec<&str> = scopes
                .iter()
                .map(|scope| {
                    scope
                        .split_once('=')
                        .map_or(scope.as_str(), |(name, _)| name)
                })
                .collect();
            let resource = Resource {
                id: id::uuid(&entropy, now),
                audience: audience.clone(),
                name: name.clone(),
                scopes: Scope::parse(&names.join(" "))
                    .map_err(|_| wrong("a scope is malformed".into()))?,
                access_ttl: access_ttl.map(|span| span.0),
                alg: Alg::from_name(alg)
                    .ok_or_else(|| wrong(format!("`{alg}` is neither ES256 nor RS256")))?,
                max_age: *max_age,
                created_at: now,
            };
            resource
                .check()
                .and_then(|()| check_offered(&config.keys, resource.alg))
                .map_err(|message| Exit { code: 1, message })?;
            let store = open(config)?;
            let stored = resource.clone();
            block_on(async {
                Ok(store
                    .transaction(move |tx| {
                        tx.put_resource(&stored)?;
                        for (scope, text) in &described {
                            tx.put_scope_description(scope, text)?;
                        }
                        tx.put_audit(&Event {
                            at: now,
                            name: Name::ResourceCreated,
                            actor: "cli".to_owned(),
                            target: format!("resource:{}", stored.audience),
                            reason: None,
                            detail: view(&stored),
                        })
                    })
                    .await?)
            })?;
            print(arguments.format, &[resource]);
            Ok(())
        }
        Action::List => {
            let store = open(config)?;
            let resources = block_on(async { Ok(store.read(|tx| tx.list_resources()).await?) })?;
            print(arguments.format, &resources);
            Ok(())
        }
    }
}

fn max_age(text: &str) -> Result<MaxAge, String> {
    if text == "none" {
        return Ok(MaxAge::FAIL_OPEN);
    }
    let span: Span = text.parse()?;
    Ok(MaxAge::secs(span.0.as_secs()))
}

fn print(output: Output, resources: &[Resource]) {
    let rows: Vec<Vec<String>> = resources
        .iter()
        .map(|r| {
            vec![
                r.audience.clone(),
                r.name.clone(),
                r.scopes.to_string(),
                r.alg.name().to_owned(),
            ]
        })
        .collect();
    let values: Vec<Value> = resources.iter().map(view).collect();
    table::print(
        output,
        &["audience", "name", "scopes", "algorithm"],
        &rows,
        &values.into(),
    );
}

fn view(resource: &Resource) -> Value {
    json!({
        "audience": resource.audience,
        "name": resource.name,
        "scope": resource.scopes.to_string(),
        "alg": resource.alg.name(),
        "access_ttl": resource.access_ttl.map(|ttl| Span(ttl).to_string()),
        "max_age": resource.max_age.as_secs(),
    })
}
