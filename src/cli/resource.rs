//! `resource`: manages registered APIs.

mod registration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::command::{confirm, context, execute, read};
use super::{Exit, Output, invalid, open, open_or_create, table};
use crate::admin::resources::{self, view};
use crate::admin::{AdminError, Context};
use crate::config::Config;
use crate::db::Transaction;
use crate::oauth::resource::{Resource, check_description};
pub use registration::Fields;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Register an API.
    #[command(after_help = "\
Values of absent options:
  --alg         ES256
  --access-ttl  `tokens.access`
  --max-age     60s

Examples:
  portcullis resource create --audience https://orders.example.com --name Orders --scope \"orders:read=See your orders\"")]
    Create {
        /// The audience, an absolute URI: `aud` of its tokens.
        #[arg(long, value_name = "URI")]
        audience: String,
        #[command(flatten)]
        scopes: Scopes,
        #[command(flatten)]
        fields: Fields,
    },
    /// List all APIs.
    List,
    /// Show an API.
    Get {
        /// The audience.
        audience: String,
    },
    /// Change a registration. Fields without an option keep their value.
    #[command(after_help = "\
An absent option leaves its field unchanged. The scopes are replaced as a whole.

Examples:
  portcullis resource update https://orders.example.com --max-age 3s")]
    Update {
        /// The audience.
        audience: String,
        #[command(flatten)]
        scopes: Scopes,
        #[command(flatten)]
        fields: Fields,
    },
    /// Delete an API that no client names.
    Delete {
        /// The audience.
        audience: String,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(clap::Args)]
struct Scopes {
    /// Scopes of the API, separated by spaces. `orders:read=See your orders` also sets the description on the
    /// consent page; repeat the option for each such scope.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
}

impl Scopes {
    /// Returns the names of the scopes, or `None` without the option.
    fn names(&self) -> Option<String> {
        let names = self.scopes.iter().map(|scope| {
            let named = scope.split_once('=');
            named.map_or(scope.as_str(), |(name, _)| name)
        });
        let names: Vec<&str> = names.collect();
        (!names.is_empty()).then(|| names.join(" "))
    }

    /// Returns the scopes that have a description.
    fn described(&self) -> anyhow::Result<Vec<(String, String)>> {
        let described = self.scopes.iter().filter_map(|scope| scope.split_once('='));
        described
            .map(|(scope, text)| {
                check_description(text).map_err(|why| Exit {
                    code: 2,
                    message: format!("the description of `{scope}` {why}"),
                })?;
                Ok((scope.to_owned(), text.to_owned()))
            })
            .collect()
    }
}

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    match &arguments.action {
        Action::Create {
            audience,
            scopes,
            fields,
        } => {
            let ctx = context();
            let described = scopes.described()?;
            let mut fields = fields.clone();
            fields.scope = scopes.names();
            let resource = fields.create(audience, &ctx.entropy, ctx.now)?;
            check(&resource, config)?;
            let (stored, keys) = (resource.clone(), config.keys.clone());
            execute(&open_or_create(config)?, ctx, move |tx, ctx| {
                resources::create(tx, ctx, &keys, &stored)?;
                describe(tx, ctx, &described)
            })?;
            print(output, &[resource]);
            Ok(())
        }
        Action::List => {
            let resources = read(&open(config)?, |tx| tx.list_resources())?;
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
            let after = fields.update(before.clone())?;
            let (stored, keys) = (after.clone(), config.keys.clone());
            execute(&open(config)?, context(), move |tx, ctx| {
                resources::update(tx, ctx, &keys, &before, &stored)?;
                describe(tx, ctx, &described)
            })?;
            print(output, &[after]);
            Ok(())
        }
        Action::Delete { audience, yes } => {
            find(config, audience)?;
            confirm(&format!("Delete {audience}?"), *yes)?;
            let deleted = audience.clone();
            execute(&open(config)?, context(), move |tx, ctx| {
                resources::delete(tx, ctx, &deleted)
            })?;
            output.print(
                &json!({ "audience": audience, "deleted": true }),
                format!("{audience} is deleted."),
            );
            Ok(())
        }
    }
}

fn find(config: &Config, audience: &str) -> anyhow::Result<Resource> {
    let audiences = [audience.to_owned()];
    let resources = read(&open(config)?, move |tx| tx.find_resources(&audiences))?;
    resources.into_iter().next().ok_or_else(|| {
        Exit {
            code: 1,
            message: format!("there is no resource `{audience}`"),
        }
        .into()
    })
}

/// Rejects an invalid registration before a database is created for it.
fn check(resource: &Resource, config: &Config) -> anyhow::Result<()> {
    let checked = resources::validate(resource, &config.keys);
    Ok(checked.map_err(|errors| invalid(&errors))?)
}

fn describe(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    described: &[(String, String)],
) -> Result<(), AdminError> {
    described
        .iter()
        .try_for_each(|(scope, text)| resources::describe_scope(tx, ctx, scope, Some(text)))
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
