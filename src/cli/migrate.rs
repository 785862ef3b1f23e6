//! `migrate`: migrates the database schema.

use clap::Subcommand;

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
    /// Show whether migrations are missing.
    Status,
}

pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    let store = app::open(config, entropy())?;
    let schema = store.schema().map_err(StartError::from)?;
    match (&arguments.action, schema) {
        (_, Schema::Newer(unknown)) => Err(StartError::Configuration(format!(
            "the database was migrated by a newer version of portcullis ({})",
            unknown.join(", ")
        ))
        .into()),
        (Action::Status, Schema::Current) => {
            println!("the schema is up to date");
            Ok(())
        }
        (Action::Status, Schema::Older(missing)) => {
            println!(
                "{} migration(s) are missing: {}",
                missing.len(),
                missing.join(", ")
            );
            Ok(())
        }
        (Action::Up, _) => {
            let applied = store.migrate().map_err(StartError::from)?;
            println!("{} migration(s) applied", applied.len());
            Ok(())
        }
    }
}
