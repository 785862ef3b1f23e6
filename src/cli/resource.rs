//! `resource`: registered APIs.

mod registration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Exit, Output, block_on, confirm, open, open_or_make, table};
use crate::audit::{Event, Name};
use crate::config::{Config, Span};
use crate::db::{self, Store, Transaction};
use crate::keys::ring::check_offered;
use crate::oauth::resource::{Resource, check_description};
use crate::secret::Entropy;
use crate::time::{Clock, Timestamp};
pub use registration::Fields;

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
        #[command(flatten)]
        scopes: Scopes,
        #[command(flatten)]
        fields: Fields,
    },
    /// All APIs.
    List,
    /// One API.
    Get {
        /// Its identifier.
        audience: String,
    },
    /// Change what a registration says: what is not given stays as it is.
    Update {
        /// Its identifier.
        audience: String,
        #[command(flatten)]
        scopes: Scopes,
        #[command(flatten)]
        fields: Fields,
    },
    /// Take an API out of the register, once no client names it any more.
    Delete {
        /// Its identifier.
        audience: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(clap::Args)]
struct Scopes {
    /// What can be asked of it, separated by spaces. `orders:read=See your orders` also sets the
    /// text of the consent page; repeat the option then.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
}

impl Scopes {
    /// The names alone, if any was given.
    fn names(&self) -> Option<String> {
        let names = self.scopes.iter().map(|scope| {
            let named = scope.split_once('=');
            named.map_or(scope.as_str(), |(name, _)| name)
        });
        let names: Vec<&str> = names.collect();
        (!names.is_empty()).then(|| names.join(" "))
    }

    /// The names that have a text.
    fn described(&self) -> anyhow::Result<Vec<(String, String)>> {
        let described = self.scopes.iter().filter_map(|scope| scope.split_once('='));
        described
            .map(|(scope, text)| {
                check_description(text).map_err(|why| Exit {
                    code: 1,
                    message: format!("the text of `{scope}` {why}"),
                })?;
                Ok((scope.to_owned(), text.to_owned()))
            })
            .collect()
    }
}

pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    let (entropy, now) = (Entropy::system(), Clock::System.now());
    let output = arguments.format;
    match &arguments.action {
        Action::Create {
            audience,
            scopes,
            fields,
        } => {
            let described = scopes.described()?;
            let mut fields = fields.clone();
            fields.scope = scopes.names();
            let resource = checked(fields.create(audience, &entropy, now)?, config)?;
            let stored = resource.clone();
            write(open_or_make(config)?, move |tx| {
                tx.put_resource(&stored)?;
                describe(tx, &described)?;
                let detail = view(&stored);
                tx.put_audit(&event(Name::ResourceCreated, &stored.audience, detail, now))
            })?;
            print(output, &[resource]);
            Ok(())
        }
        Action::List => {
            let store = open(config)?;
            let resources = block_on(async { Ok(store.read(|tx| tx.list_resources()).await?) })?;
            print(output, &resources);
            Ok(())
        }
        Action::Get { audience } => {
            print(output, &[find(config, audience)?]);
            Ok(())
        }
        Action::Update {
            audience,
            scopes,
            fields,
        } => {
            let described = scopes.described()?;
            let mut fields = fields.clone();
            fields.scope = scopes.names();
            let before = find(config, audience)?;
            let after = checked(fields.update(before.clone())?, config)?;
            let stored = after.clone();
            write(open(config)?, move |tx| {
                let present = tx.find_resource_to_change(&stored.audience)?;
                if present.is_none_or(|present| view(&present) != view(&before)) {
                    let what = format!("the resource `{}`", stored.audience);
                    return Err(db::Error::Overtaken(what));
                }
                tx.update_resource(&stored, now)?;
                describe(tx, &described)?;
                let detail = json!({ "before": view(&before), "after": view(&stored) });
                tx.put_audit(&event(Name::ResourceUpdated, &stored.audience, detail, now))
            })?;
            print(output, &[after]);
            Ok(())
        }
        Action::Delete { audience, yes } => {
            let before = find(config, audience)?;
            confirm(&format!("Delete {audience}?"), *yes)?;
            delete(config, before, now)?;
            println!("{audience} is deleted.");
            Ok(())
        }
    }
}

fn find(config: &Config, audience: &str) -> anyhow::Result<Resource> {
    let (store, wanted) = (open(config)?, [audience.to_owned()]);
    let found = block_on(async { Ok(store.read(move |tx| tx.find_resources(&wanted)).await?) })?;
    found.into_iter().next().ok_or_else(|| {
        Exit {
            code: 1,
            message: format!("there is no resource `{audience}`"),
        }
        .into()
    })
}

/// Whether a server of this configuration would serve the API.
///
/// # Errors
/// A sentence that begins with the field.
pub fn check(resource: &Resource, config: &Config) -> Result<(), String> {
    resource.check()?;
    check_offered(&config.keys, resource.alg)
}

fn checked(resource: Resource, config: &Config) -> anyhow::Result<Resource> {
    check(&resource, config).map_err(|message| Exit { code: 1, message })?;
    Ok(resource)
}

fn describe(tx: &mut Transaction<'_>, described: &[(String, String)]) -> Result<(), db::Error> {
    described
        .iter()
        .try_for_each(|(scope, text)| tx.put_scope_description(scope, text))
}

fn write(
    store: Store,
    work: impl FnOnce(&mut Transaction<'_>) -> Result<(), db::Error> + Send + 'static,
) -> anyhow::Result<()> {
    match block_on(async { Ok(store.transaction(work).await) })? {
        Err(db::Error::Duplicate(_)) => Err(Exit {
            code: 1,
            message: "there is a resource with this audience already".to_owned(),
        }
        .into()),
        other => Ok(other?),
    }
}

fn delete(config: &Config, resource: Resource, now: Timestamp) -> anyhow::Result<()> {
    let store = open(config)?;
    let named = block_on(async {
        let deleted = store.transaction(move |tx| {
            let audience = &resource.audience;
            let clients = tx.list_clients()?;
            if let Some(client) = clients.into_iter().find(|client| client.names(audience)) {
                return Ok(Some(client.id));
            }
            tx.delete_resource(audience)?;
            let detail = view(&resource);
            tx.put_audit(&event(Name::ResourceDeleted, audience, detail, now))?;
            Ok(None)
        });
        Ok(deleted.await?)
    })?;
    match named {
        None => Ok(()),
        Some(client) => Err(Exit {
            code: 1,
            message: format!("the client `{client}` still names this resource"),
        }
        .into()),
    }
}

/// An operator's change of an API.
pub fn event(name: Name, audience: &str, detail: Value, now: Timestamp) -> Event {
    Event {
        at: now,
        name,
        actor: "cli".to_owned(),
        target: format!("resource:{audience}"),
        reason: None,
        detail,
    }
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

/// What commands show of an API.
pub fn view(resource: &Resource) -> Value {
    json!({
        "audience": resource.audience,
        "name": resource.name,
        "scope": resource.scopes.to_string(),
        "alg": resource.alg.name(),
        "access_ttl": resource.access_ttl.map(|ttl| Span(ttl).to_string()),
        "max_age": registration::written(resource.max_age),
    })
}
