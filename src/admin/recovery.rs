//! Recovery of a database that was restored from an older copy.

use serde_json::json;

use super::{AdminError, Context};
use crate::audit::{Name, Target};
use crate::db::{Recovered, Transaction};
use crate::key_manager::{Act, KeyWrite};

/// Begins a new feed epoch: revokes every session, grant, code and token, and replaces all keys by `renewal`. What
/// was issued since the copy was made is unknown, and what was revoked since would be active again.
///
/// # Errors
/// [`AdminError::Storage`] with [`Overtaken`](crate::db::Error::Overtaken) or
/// [`Duplicate`](crate::db::Error::Duplicate) if the keys were changed since `renewal` was prepared.
pub fn recover(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    renewal: &KeyWrite,
) -> Result<Recovered, AdminError> {
    let recovered = tx.recover(ctx.now)?;
    let act = Act {
        actor: ctx.actor.clone(),
        now: ctx.now,
    };
    // After the epoch, so that the records of the keys are numbered in the new one.
    renewal.run(tx, &act)?;
    let target = Target::Feed(recovered.epoch);
    let detail = json!({ "last_known": recovered.last_beat.to_string() });
    ctx.record(tx, Name::DatabaseRecovered, target, detail)?;
    Ok(recovered)
}
