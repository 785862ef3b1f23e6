//! `user clear-throttles`.

use std::net::IpAddr;

use serde_json::json;

use super::{find, parse};
use crate::audit::{Event, Name};
use crate::cli::{block_on, open};
use crate::config::Config;
use crate::db::{Error, Transaction};
use crate::id::UserId;
use crate::time::Clock;

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Arguments {
    /// Those of one user, from everywhere: the name to sign in with.
    username: Option<String>,
    /// Those of one address and of its networks, for any name.
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// All of them.
    #[arg(long)]
    all: bool,
}

/// The counters to clear.
enum Which {
    User(UserId),
    Address(IpAddr),
    All,
}

impl Which {
    fn clear(&self, tx: &mut Transaction<'_>) -> Result<usize, Error> {
        match self {
            Self::User(user) => tx.clear_user_throttles(user),
            Self::Address(address) => tx.clear_address_throttles(*address),
            Self::All => tx.clear_throttles(),
        }
    }

    /// The target in the audit log.
    fn target(&self) -> String {
        match self {
            Self::User(user) => format!("user:{user}"),
            Self::Address(address) => format!("address:{}", address.to_canonical()),
            Self::All => "throttles:all".to_owned(),
        }
    }
}

pub fn clear(config: &Config, arguments: &Arguments) -> anyhow::Result<()> {
    let (store, now) = (open(config)?, Clock::System.now());
    let which = match (&arguments.username, arguments.address) {
        (Some(username), _) => Which::User(find(&store, &parse(username)?)?.id),
        (None, Some(address)) => Which::Address(address),
        (None, None) => Which::All,
    };
    let cleared = block_on(async {
        let cleared = store.transaction(move |tx| {
            let cleared = which.clear(tx)?;
            tx.put_audit(&Event {
                at: now,
                name: Name::ThrottlesCleared,
                actor: "cli".to_owned(),
                target: which.target(),
                reason: None,
                detail: json!({ "counters": cleared }),
            })?;
            Ok(cleared)
        });
        Ok(cleared.await?)
    })?;
    println!("Counters of failed sign-ins cleared: {cleared}.");
    Ok(())
}
