//! `setup link`: shows the one-time link that creates the first administrator.

use clap::Subcommand;
use serde_json::json;

use super::command::context;
use super::{Exit, Output, block_on, open};
use crate::app::setup_link;
use crate::config::Config;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Create a link for the first administrator. It works once.
    Link,
}

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    let Action::Link = &arguments.action;
    let store = open(config)?;
    let ctx = context();
    let link = setup_link(config, &store, ctx.actor, &ctx.entropy, ctx.now);
    let link = block_on(async { Ok(link.await?) })?;
    let Some(link) = link else {
        return Err(Exit {
            code: 1,
            message: "there is an administrator already; create another one with `portcullis user create NAME --admin`".to_owned(),
        }
        .into());
    };
    output.print(&json!({ "link": link }), &link);
    Ok(())
}
