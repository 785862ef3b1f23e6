//! `user clear-throttles`.

use std::net::IpAddr;

use serde_json::json;

use super::{find, parse};
use crate::admin::throttles::{self, Counters};
use crate::cli::command::{context, execute};
use crate::cli::{Output, open};
use crate::config::Config;

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Arguments {
    /// Name of the user whose counters are cleared, for all addresses.
    username: Option<String>,
    /// Address whose counters are cleared, with those of its networks, for all users.
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Clear all counters.
    #[arg(long)]
    all: bool,
}

pub fn clear(config: &Config, arguments: &Arguments, output: Output) -> anyhow::Result<()> {
    let store = open(config)?;
    let which = match (&arguments.username, arguments.address) {
        (Some(username), _) => Counters::User(find(&store, &parse(username)?)?.id),
        (None, Some(address)) => Counters::Address(address),
        (None, None) => Counters::All,
    };
    let cleared = execute(&store, context(), move |tx, ctx| {
        throttles::clear(tx, ctx, &which)
    })?;
    output.print(
        &json!({ "cleared": cleared }),
        format!("Counters of failed sign-ins cleared: {cleared}."),
    );
    Ok(())
}
