//! `recover`: revokes everything after the database was restored from an older copy. What was issued since the
//! copy is unknown, and what was revoked since would be active again.

use serde_json::json;

use super::command::{clock, confirm, context, entropy};
use super::{Exit, Output, block_on, open};
use crate::admin::{self, AdminError, recovery};
use crate::app::key_table;
use crate::config::Config;
use crate::db::{Error, Recovered};
use crate::feed::{is_marked_by_another, mark_database, number_revocations};
use crate::key_manager::Act;
use crate::time::Timestamp;

const REASON: &str = "the database was restored from an older copy";
/// Number of attempts if the keys are changed concurrently.
const TRIES: usize = 5;

#[derive(clap::Args)]
pub struct Arguments {
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
}

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    confirm(
        "Begin a new feed epoch? All users are signed out: every session, grant, code and token is revoked, and all signing keys are replaced.",
        arguments.yes,
    )?;
    let store = open(config)?;
    let recovered = block_on(async {
        if is_marked_by_another(&config.keys.kek, &store, &clock()).await? {
            eprintln!(
                "portcullis: warning: the high-water mark beside the KEK is ahead of this database and was moved just now: a server on the original database seems to be running with the same KEK directory. Stop it, or its next start will take its own database for a restored one."
            );
        }
        let table = key_table(config, &store, &entropy()).await?;
        for _ in 0..TRIES {
            let ctx = context().with_reason(REASON);
            let act = Act {
                actor: ctx.actor.clone(),
                now: ctx.now,
            };
            let renewal = table.renewal(REASON, &act).await?;
            let recovered = admin::execute(&store, ctx, move |tx, ctx| {
                recovery::recover(tx, ctx, &renewal)
            });
            match recovered.await {
                Ok(recovered) => {
                    number_revocations(&store, &clock()).await?;
                    mark_database(&config.keys.kek, &store).await?;
                    return Ok((recovered, act.now));
                }
                Err(AdminError::Storage(Error::Overtaken(_) | Error::Duplicate(_))) => {}
                Err(AdminError::Storage(error)) => return Err(error.into()),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Exit {
            code: 1,
            message: "the keys were changed concurrently; run it again".into(),
        }
        .into())
    })?;
    report(output, recovered);
    Ok(())
}

fn report(output: Output, (recovered, now): (Recovered, Timestamp)) {
    let (epoch, from) = (recovered.epoch, recovered.last_beat);
    let view = json!({ "epoch": epoch, "lost_from": from.to_string(), "lost_to": now.to_string() });
    output.print(
        &view,
        format!(
            "Feed epoch {epoch} has begun. All keys and the server secret are replaced. Every session, grant and code is revoked.\n\
             Changes between {from} and now ({now}) are lost.\n\
             Repeat the changes of that time: passwords, locked accounts, disabled clients, rotated client secrets."
        ),
    );
}
