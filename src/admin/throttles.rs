//! Counters of failed sign-ins.

use std::net::IpAddr;

use serde_json::json;

use super::context::{AdminError, Context};
use crate::audit::{Name, Target};
use crate::db::Transaction;
use crate::id::UserId;

/// The counters to clear.
#[derive(Clone, Debug)]
pub enum Counters {
    /// Those of one user, from every address.
    User(UserId),
    /// Those of one address and of its networks, for every user name.
    Address(IpAddr),
    /// All counters.
    All,
}

/// Clears counters of failed sign-ins, and returns how many there were.
///
/// # Errors
/// [`AdminError::Storage`].
pub fn clear(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    which: &Counters,
) -> Result<usize, AdminError> {
    let (cleared, target) = match which {
        Counters::User(user) => (tx.clear_user_throttles(user)?, Target::User(user.clone())),
        Counters::Address(address) => (
            tx.clear_address_throttles(*address)?,
            Target::Address(*address),
        ),
        Counters::All => (tx.clear_throttles()?, Target::Throttles),
    };
    let detail = json!({ "counters": cleared });
    ctx.record(tx, Name::ThrottlesCleared, target, detail)?;
    Ok(cleared)
}
