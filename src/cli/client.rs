//! `client`: registered applications.

mod check;
mod registration;
mod secret;
mod view;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Exit, Output, block_on, confirm, open, open_or_make, table};
use crate::audit::{Event, Name};
use crate::config::Config;
use crate::db::{self, Store, Transaction};
use crate::id::ClientId;
use crate::keys::ring::offered;
use crate::oauth::client::{Client, ClientSecret};
use crate::secret::{Entropy, Secret};
use crate::time::{Clock, Timestamp};
pub use check::{check, check_names};
pub use registration::Fields;
use secret::RotateSecret;
pub use view::view;
use view::{row, view_with_secrets};

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
    /// One application, with the life of its secrets.
    Get {
        /// Its client id.
        id: String,
    },
    /// Change what a registration says: what is not given stays as it is.
    Update(Box<Update>),
    /// Give a confidential application a fresh secret, printed once.
    RotateSecret(RotateSecret),
    /// Switch an application off. Every code, grant and token that it got is dead.
    Disable {
        /// Its client id.
        id: String,
    },
    /// Switch an application on again. What it held before stays dead.
    Enable {
        /// Its client id.
        id: String,
    },
    /// Delete an application. Its id is never given out again.
    Delete {
        /// Its client id.
        id: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(clap::Args)]
struct Create {
    /// Its client id; made up if absent.
    #[arg(long)]
    id: Option<String>,
    /// A public client (native app, single-page app): no secret.
    #[arg(long)]
    public: bool,
    #[command(flatten)]
    fields: Fields,
}

#[derive(clap::Args)]
struct Update {
    /// Its client id.
    id: String,
    #[command(flatten)]
    fields: Fields,
}

pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    let output = arguments.format;
    match &arguments.action {
        Action::Create(create) => register(create, config, output),
        Action::List => list(config, output),
        Action::Get { id } => {
            let client = find(&open(config)?, id)?;
            table::print_one(output, &view_with_secrets(&client));
            Ok(())
        }
        Action::Update(update) => change(update, config, output),
        Action::RotateSecret(rotate) => rotate.run(config, output),
        Action::Disable { id } => {
            switch(config, id, Name::ClientDisabled, |tx, id, now| {
                tx.disable_client(id, "cli", now)
            })?;
            println!("{id} is off. Every code, grant and token that it got is dead.");
            Ok(())
        }
        Action::Enable { id } => {
            switch(config, id, Name::ClientEnabled, |tx, id, _| {
                tx.enable_client(id)
            })?;
            println!("{id} is on. What it held before stays dead.");
            Ok(())
        }
        Action::Delete { id, yes } => {
            find(&open(config)?, id)?;
            confirm(&format!("Delete {id} and everything that it holds?"), *yes)?;
            switch(config, id, Name::ClientDeleted, |tx, id, now| {
                tx.delete_client(id, "cli", now)
            })?;
            println!("{id} is deleted. Every code, grant and token that it got is dead.");
            Ok(())
        }
    }
}

fn list(config: &Config, output: Output) -> anyhow::Result<()> {
    let store = open(config)?;
    let clients = block_on(async { Ok(store.read(|tx| tx.list_clients()).await?) })?;
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
    let wanted = ClientId::from(id);
    let found = block_on(async { Ok(store.read(move |tx| tx.find_registered(&wanted)).await?) })?;
    found.ok_or_else(|| {
        Exit {
            code: 1,
            message: format!("there is no client `{id}`"),
        }
        .into()
    })
}

fn register(create: &Create, config: &Config, output: Output) -> anyhow::Result<()> {
    let (entropy, now) = (Entropy::system(), Clock::System.now());
    let id = create.id.as_deref();
    let id = id.map_or_else(|| ClientId::new(&entropy, now), ClientId::from);
    let algorithms = offered(&config.keys);
    let client = create.fields.create(id, create.public, &algorithms, now)?;
    let client = checked(client, config)?;
    let store = open_or_make(config)?;
    let (stored, secret) = with_secret(client.clone(), &entropy, now);
    let event = event(Name::ClientCreated, &client.id, view(&client), now);
    write(&store, (None, &client), move |tx| {
        tx.put_client(&stored)?;
        tx.put_audit(&event)
    })?;
    let mut shown = view(&client);
    shown["client_secret"] = secret.map_or(Value::Null, |secret| secret.expose().into());
    table::print_one(output, &shown);
    Ok(())
}

/// A new client with its first secret, if it can keep one.
pub fn with_secret(
    mut client: Client,
    entropy: &Entropy,
    now: Timestamp,
) -> (Client, Option<Secret>) {
    let secret = client
        .is_confidential()
        .then(|| Secret::client_secret(entropy));
    let kept = secret
        .iter()
        .map(|secret| ClientSecret::keep(secret, "first", entropy, now));
    client.secrets = kept.collect();
    (client, secret)
}

fn change(update: &Update, config: &Config, output: Output) -> anyhow::Result<()> {
    let (store, now) = (open(config)?, Clock::System.now());
    let before = find(&store, &update.id)?;
    let after = checked(update.fields.update(before.clone())?, config)?;
    let detail = json!({ "before": view(&before), "after": view(&after) });
    let event = event(Name::ClientUpdated, &after.id, detail, now);
    let stored = after.clone();
    write(&store, (Some(&before), &after), move |tx| {
        tx.update_client(&stored)?;
        tx.put_audit(&event)
    })?;
    table::print_one(output, &view(&after));
    Ok(())
}

fn checked(client: Client, config: &Config) -> anyhow::Result<Client> {
    check(&client, config).map_err(|message| Exit { code: 1, message })?;
    Ok(client)
}

/// Runs `work` if what the client names is registered. An unchanged name may have lost its meaning since.
fn write(
    store: &Store,
    (before, client): (Option<&Client>, &Client),
    work: impl FnOnce(&mut Transaction<'_>) -> Result<(), db::Error> + Send + 'static,
) -> anyhow::Result<()> {
    let is_same = before.is_some_and(|before| {
        before.resources == client.resources
            && before.serves == client.serves
            && before.scopes == client.scopes
    });
    let named = client.clone();
    let seen = before.map(|before| (before.id.clone(), view(before)));
    let written = block_on(async {
        let written = store.transaction(move |tx| {
            if let Some((id, seen)) = seen {
                let present = tx.find_registered_to_change(&id)?;
                if present.is_none_or(|present| view(&present) != seen) {
                    return Err(db::Error::Overtaken(format!("the client `{id}`")));
                }
            }
            let right = match is_same {
                true => Ok(()),
                false => check_names(&named, &tx.list_resources()?),
            };
            if right.is_ok() {
                work(tx)?;
            }
            Ok(right)
        });
        Ok(written.await)
    })?;
    let message = match written {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(why)) => why,
        Err(db::Error::Duplicate(_)) => format!(
            "the client id `{}` exists already; none is given out twice",
            client.id
        ),
        Err(error) => return Err(error.into()),
    };
    Err(Exit { code: 1, message }.into())
}

/// Changes the state of a client, if it is not in it already.
fn switch(
    config: &Config,
    id: &str,
    name: Name,
    act: impl FnOnce(&mut Transaction<'_>, &ClientId, Timestamp) -> Result<bool, db::Error>
    + Send
    + 'static,
) -> anyhow::Result<()> {
    let (store, now) = (open(config)?, Clock::System.now());
    let wanted = find(&store, id)?.id;
    let changed = block_on(async {
        let changed = store.transaction(move |tx| {
            let changed = act(tx, &wanted, now)?;
            if changed {
                tx.put_audit(&event(name, &wanted, json!({}), now))?;
            }
            Ok(changed)
        });
        Ok(changed.await?)
    })?;
    if changed {
        return Ok(());
    }
    Err(Exit {
        code: 1,
        message: format!("nothing to do for `{id}`"),
    }
    .into())
}

/// An operator's change of a client.
pub fn event(name: Name, client: &ClientId, detail: Value, now: Timestamp) -> Event {
    Event {
        at: now,
        name,
        actor: "cli".to_owned(),
        target: format!("client:{client}"),
        reason: None,
        detail,
    }
}
