//! `apply`: applications, APIs, scopes and people as files say. What no file names is left alone, unless
//! `--prune` is given. All of it in one transaction, or nothing.

mod file;
mod plan;
mod write;

use std::path::PathBuf;

use serde_json::{Value, json};

use super::command::{confirm, context, execute, read};
use super::{Exit, Output, open_or_make, table};
use crate::admin::{self, AdminError};
use crate::config::Config;
use file::Wanted;
use plan::{Change, Plan, Rules, Stored};
use write::Secrets;

#[derive(clap::Args)]
pub struct Arguments {
    /// Files (TOML); together they are one description.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only show the difference.
    #[arg(long)]
    dry_run: bool,
    /// Remove what the files do not name: clients, resources and scopes are deleted, accounts locked, of
    /// the kinds that the files hold at all. Administrators stay.
    #[arg(long)]
    prune: bool,
    /// Do not ask before something is removed.
    #[arg(long)]
    yes: bool,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Output,
}

pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    let refused = |message: String| Exit { code: 1, message };
    // 1. What is wanted, and what there is.
    let wanted = Wanted::read(&arguments.files).map_err(refused)?;
    let store = open_or_make(config)?;
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
    // 2. The difference.
    if arguments.format == Output::Table {
        show(&plan);
    }
    if arguments.dry_run || plan.changes.is_empty() {
        finish(arguments, &plan, None);
        return Ok(());
    }
    let removed = plan.removed();
    if !removed.is_empty() {
        confirm(&format!("Remove {}?", removed.join(", ")), arguments.yes)?;
    }
    // 3. All of it, or nothing: what was shown must be what is done.
    let shown = plan.difference();
    let secrets = execute(&store, ctx, move |tx, ctx| {
        let stored = Stored::read(tx, with_users)?;
        match Plan::of(&wanted, &stored, &rules) {
            Ok(again) if again.difference() == shown => again.write(tx, ctx, &rules),
            _ => Err(AdminError::Conflict(
                "the same objects were changed concurrently; nothing is changed, run it again"
                    .to_owned(),
            )),
        }
    })?;
    finish(arguments, &plan, Some(secrets));
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

/// Says what was done; secrets of new clients are shown here and never again.
fn finish(arguments: &Arguments, plan: &Plan, applied: Option<Secrets>) {
    if arguments.format == Output::Json {
        let secrets = applied.iter().flatten();
        let secrets: serde_json::Map<String, Value> = secrets
            .map(|(id, secret)| (id.clone(), secret.expose().into()))
            .collect();
        let changes: Vec<Value> = plan.changes.iter().map(Change::view).collect();
        let told =
            json!({ "changes": changes, "applied": applied.is_some(), "client_secrets": secrets });
        println!("{told:#}");
        return;
    }
    match applied {
        None if plan.changes.is_empty() => {}
        None => println!("\nNothing is changed: this was a dry run."),
        Some(secrets) => {
            match plan.changes.len() {
                1 => println!("\n1 change is made."),
                many => println!("\n{many} changes are made."),
            }
            if !secrets.is_empty() {
                println!("Secrets of new clients, shown only now:");
            }
            for (id, secret) in &secrets {
                println!("  {id}  {}", secret.expose());
            }
        }
    }
}
