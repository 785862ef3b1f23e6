//! `apply`: creates and changes applications, APIs, scopes and users as described in files. Objects that no file names
//! are kept unless `--prune` is given. All changes are made in one transaction.

mod file;
mod plan;
mod write;

use std::path::PathBuf;

use serde_json::{Value, json};

use super::command::{confirm, context, execute, read};
use super::{Exit, Output, open_or_create, shown_once, table};
use crate::admin::{self, AdminError};
use crate::config::Config;
use file::Wanted;
use plan::{Change, Plan, Rules, Stored};
use write::Secrets;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  portcullis apply --dry-run installation.toml
  portcullis apply clients.toml users.toml
  portcullis apply --prune --yes installation.toml")]
pub struct Arguments {
    /// Files (TOML), which together form one description.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only show the changes.
    #[arg(long)]
    dry_run: bool,
    /// Remove objects that the files do not name, of the kinds that the files contain: delete clients, resources and
    /// scopes, and lock accounts. Administrators are kept.
    #[arg(long)]
    prune: bool,
    /// Do not ask for confirmation before something is removed.
    #[arg(long)]
    yes: bool,
}

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    let refused = |message: String| Exit { code: 2, message };
    // 1. The description and the stored objects.
    let wanted = Wanted::read(&arguments.files).map_err(refused)?;
    let store = open_or_create(config)?;
    let ctx = context();
    let rules = Rules {
        prune: arguments.prune,
        config: config.clone(),
        clients: admin::clients::Rules::of(config)?,
        now: ctx.now,
        entropy: ctx.entropy.clone(),
    };
    let with_users = wanted.users.is_some();
    let stored = read(&store, move |tx| Stored::read(tx, with_users))?;
    let plan = Plan::of(&wanted, &stored, &rules).map_err(refused)?;
    // 2. The changes.
    if output == Output::Table {
        show(&plan);
    }
    if arguments.dry_run || plan.changes.is_empty() {
        finish(output, config, &plan, None)?;
        return Ok(());
    }
    let removed = plan.removed();
    if !removed.is_empty() {
        confirm(&format!("Remove {}?", removed.join(", ")), arguments.yes)?;
    }
    // 3. One transaction. The changes must still be those that were shown.
    let shown = plan.difference();
    let secrets = execute(&store, ctx, move |tx, ctx| {
        let stored = Stored::read(tx, with_users)?;
        match Plan::of(&wanted, &stored, &rules) {
            Ok(plan) if plan.difference() == shown => plan.write(tx, ctx, &rules),
            _ => Err(AdminError::Conflict(
                "the same objects were changed concurrently; nothing was changed, run it again"
                    .to_owned(),
            )),
        }
    })?;
    finish(output, config, &plan, Some(secrets))?;
    Ok(())
}

fn show(plan: &Plan) {
    let text = |value: &Value| match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let rows: Vec<Vec<String>> = plan
        .changes
        .iter()
        .flat_map(|change| {
            let head = [change.act, change.kind, &change.name].map(str::to_owned);
            let mut rows: Vec<Vec<String>> = change
                .fields
                .iter()
                .map(|field| {
                    let more = [field.name.clone(), text(&field.before), text(&field.after)];
                    [head.as_slice(), &more].concat()
                })
                .collect();
            if rows.is_empty() {
                rows.push(head.to_vec());
                rows[0].resize(6, String::new());
            }
            rows
        })
        .collect();
    if rows.is_empty() {
        println!("Nothing to change.");
        return;
    }
    let columns = ["change", "kind", "name", "field", "before", "after"];
    table::print(Output::Table, &columns, &rows, &Value::Null);
}

/// Prints the result, including the secrets of new clients, which are not shown again.
fn finish(
    output: Output,
    config: &Config,
    plan: &Plan,
    applied: Option<Secrets>,
) -> anyhow::Result<()> {
    let without_password = plan.without_password();
    if output == Output::Json {
        let secrets = applied.iter().flatten();
        let secrets: serde_json::Map<String, Value> = secrets
            .map(|(id, secret)| (id.clone(), secret.expose().into()))
            .collect();
        let changes: Vec<Value> = plan.changes.iter().map(Change::view).collect();
        let result = json!({ "changes": changes, "applied": applied.is_some(), "client_secrets": secrets, "without_password": without_password });
        println!("{result:#}");
        return Ok(());
    }
    match applied {
        None if plan.changes.is_empty() => {}
        None => println!("\nNothing was changed: this was a dry run."),
        Some(secrets) => {
            let fields: usize = plan.changes.iter().map(|change| change.fields.len()).sum();
            let count = |count: usize, what: &str| match count {
                1 => format!("1 {what}"),
                many => format!("{many} {what}s"),
            };
            println!(
                "\nApplied: {}, {}.",
                count(plan.changes.len(), "object"),
                count(fields, "field")
            );
            if !without_password.is_empty() {
                println!(
                    "Accounts without a password, which cannot sign in yet: {}. Set one with `portcullis user set-password NAME`.",
                    without_password.join(", ")
                );
            }
            if !secrets.is_empty() {
                let named = secrets.iter();
                let named = named.map(|(id, secret)| (format!("Secret of {id}"), secret));
                println!("{}", shown_once::announce(named, config)?);
            }
        }
    }
    Ok(())
}
