//! `migrate`: migrates the database schema.

use clap::Subcommand;
use serde_json::json;

use super::{Exit, Output};
use crate::app::{self, StartError};
use crate::cli::command::entropy;
use crate::config::Config;
use crate::db::Schema;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Apply the missing migrations. Several nodes may run it at the same time.
    Up,
    /// Show whether migrations are missing. The exit code is 1 if some are.
    Status,
}

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    let store = app::open(config, entropy())?;
    let schema = store.schema().map_err(StartError::from)?;
    match (&arguments.action, schema) {
        (_, Schema::Newer(unknown)) => Err(StartError::Configuration(format!(
            "the database was migrated by a newer version of portcullis ({})",
            unknown.join(", ")
        ))
        .into()),
        (Action::Status, Schema::Current) => {
            output.print(&json!({ "missing": [] }), "the schema is up to date");
            Ok(())
        }
        (Action::Status, Schema::Older(missing)) => {
            let count = missing.len();
            let text = format!("{count} migration(s) are missing: {}", missing.join(", "));
            output.print(&json!({ "missing": missing }), text);
            Err(Exit {
                code: 1,
                message: "the schema is not up to date; run `portcullis migrate up`".to_owned(),
            }
            .into())
        }
        (Action::Up, _) => {
            let applied = store.migrate().map_err(StartError::from)?;
            let text = format!("{} migration(s) applied", applied.len());
            output.print(&json!({ "applied": applied }), text);
            Ok(())
        }
    }
}
