//! `client`: manages registered applications.

mod registration;
mod secret;
mod view;

use clap::Subcommand;
use serde_json::{Value, json};

use super::command::{confirm, context, execute, read};
use super::{Exit, Output, invalid, open, open_or_create, shown_once, table};
use crate::admin::clients::{self, Rules, view};
use crate::admin::{AdminError, Context};
use crate::config::Config;
use crate::db::{Store, Transaction};
use crate::id::ClientId;
use crate::keys::ring::offered;
use crate::oauth::client::Client;
pub use registration::Fields;
use secret::RotateSecret;
use view::{row, view_with_secrets};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Register an application. The secret of a confidential client is printed once.
    Create(Box<Create>),
    /// List all applications.
    List,
    /// Show an application, with the dates of its secrets.
    Get {
        /// The client id.
        id: String,
    },
    /// Change a registration. Fields without an option keep their value.
    Update(Box<Update>),
    /// Create a new secret for a confidential client, and print it once.
    RotateSecret(RotateSecret),
    /// Disable an application, and revoke all its codes, grants and tokens.
    Disable {
        /// The client id.
        id: String,
    },
    /// Enable an application. Its earlier codes, grants and tokens stay revoked.
    Enable {
        /// The client id.
        id: String,
    },
    /// Delete an application. Its id is never assigned again.
    Delete {
        /// The client id.
        id: String,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(clap::Args)]
#[command(after_help = "\
A client has at least --name and, unless it only uses client_credentials, --redirect-uri.

Values of absent options:
  --auth-method    client_secret
  --scope          openid profile email
  --grant-type     authorization_code and refresh_token
  --id-token-alg   RS256 if `keys.algorithms` contains it, otherwise ES256
  --userinfo-alg   none: plain JSON
  --consent        remember
  --require-pkce   true

Examples:
  portcullis client create --name Shop --redirect-uri https://shop.example.com/callback
  portcullis client create --name App --public --redirect-uri http://127.0.0.1/callback
  portcullis client create --name Job --grant-type client_credentials --scope orders:read --resource https://orders.example.com")]
struct Create {
    /// The client id. Generated if absent.
    #[arg(long)]
    id: Option<String>,
    /// Register a public client (native app, single-page app), which has no secret.
    #[arg(long)]
    public: bool,
    #[command(flatten)]
    fields: Fields,
}

#[derive(clap::Args)]
#[command(after_help = "\
An absent option leaves its field unchanged. A list is replaced as a whole; one empty value empties it.

Examples:
  portcullis client update shop --name \"Corner shop\"
  portcullis client update shop --redirect-uri https://shop.example.com/a --redirect-uri https://shop.example.com/b
  portcullis client update shop --post-logout-redirect-uri \"\"")]
struct Update {
    /// The client id.
    id: String,
    #[command(flatten)]
    fields: Fields,
}

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    match &arguments.action {
        Action::Create(create) => register(create, config, output),
        Action::List => list(config, output),
        Action::Get { id } => {
            let client = find(&open(config)?, id)?;
            table::print_one(output, &view_with_secrets(&client));
            Ok(())
        }
        Action::Update(changes) => update(changes, config, output),
        Action::RotateSecret(rotate) => rotate.run(config, output),
        Action::Disable { id } => {
            change(config, id, clients::disable)?;
            output.print(
                &json!({ "client_id": id, "disabled": true }),
                format!("{id} is disabled. All its codes, grants and tokens are revoked."),
            );
            Ok(())
        }
        Action::Enable { id } => {
            change(config, id, clients::enable)?;
            output.print(
                &json!({ "client_id": id, "disabled": false }),
                format!("{id} is enabled. Its earlier codes, grants and tokens stay revoked."),
            );
            Ok(())
        }
        Action::Delete { id, yes } => {
            find(&open(config)?, id)?;
            confirm(&format!("Delete {id} and all its grants and tokens?"), *yes)?;
            change(config, id, clients::delete)?;
            output.print(
                &json!({ "client_id": id, "deleted": true }),
                format!("{id} is deleted. All its codes, grants and tokens are revoked."),
            );
            Ok(())
        }
    }
}

fn list(config: &Config, output: Output) -> anyhow::Result<()> {
    let clients = read(&open(config)?, |tx| tx.list_clients())?;
    let rows: Vec<Vec<String>> = clients.iter().map(row).collect();
    let values: Vec<Value> = clients.iter().map(view).collect();
    table::print(
        output,
        &[
            "client id",
            "name",
            "authentication",
            "state",
            "redirect uris",
        ],
        &rows,
        &values.into(),
    );
    Ok(())
}

fn find(store: &Store, id: &str) -> anyhow::Result<Client> {
    let client_id = ClientId::from(id);
    let client = read(store, move |tx| tx.find_registered(&client_id))?;
    client.ok_or_else(|| {
        Exit {
            code: 1,
            message: format!("there is no client `{id}`"),
        }
        .into()
    })
}

fn register(create: &Create, config: &Config, output: Output) -> anyhow::Result<()> {
    let ctx = context();
    let id = create.id.as_deref().map(ClientId::from);
    let algorithms = offered(&config.keys);
    let fields = &create.fields;
    let client = fields.create(id, create.public, &algorithms, ctx.now)?;
    let rules = Rules::of(config)?;
    check(&rules, &client)?;
    let store = open_or_create(config)?;
    let created = execute(&store, ctx, move |tx, ctx| {
        clients::create(tx, ctx, &rules, client, None)
    })?;
    let mut shown = view(&created.client);
    match (output, created.secret) {
        (Output::Table, Some(secret)) => {
            table::print_one(output, &shown);
            let named = [("Client secret".to_owned(), &secret)];
            println!("{}", shown_once::announce(named, config)?);
        }
        (_, secret) => {
            shown["client_secret"] = secret.map_or(Value::Null, |secret| secret.expose().into());
            shown_once::add_issuer(&mut shown, config)?;
            table::print_one(output, &shown);
        }
    }
    Ok(())
}

fn update(update: &Update, config: &Config, output: Output) -> anyhow::Result<()> {
    let store = open(config)?;
    let before = find(&store, &update.id)?;
    let after = update.fields.update(before.clone())?;
    let (rules, stored) = (Rules::of(config)?, after.clone());
    execute(&store, context(), move |tx, ctx| {
        clients::update(tx, ctx, &rules, &before, &stored)
    })?;
    table::print_one(output, &view(&after));
    Ok(())
}

/// Rejects an invalid registration before a database is created for it.
fn check(rules: &Rules, client: &Client) -> anyhow::Result<()> {
    Ok(rules.check(client).map_err(|errors| invalid(&errors))?)
}

/// Performs an operation on a client.
fn change(
    config: &Config,
    id: &str,
    operation: impl FnOnce(&mut Transaction<'_>, &Context, &ClientId) -> Result<(), AdminError>
    + Send
    + 'static,
) -> anyhow::Result<()> {
    let id = ClientId::from(id);
    execute(&open(config)?, context(), move |tx, ctx| {
        operation(tx, ctx, &id)
    })
}
