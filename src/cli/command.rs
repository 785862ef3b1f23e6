//! How a command performs operations: as the operator of the host, by the clock and the randomness of the
//! system, in one transaction.

use super::{Exit, block_on};
use crate::admin::{self, AdminError, Context};
use crate::audit::Actor;
use crate::db::{self, Store, Transaction};
use crate::secret::Entropy;
use crate::time::Clock;

/// The circumstances of a command.
pub fn context() -> Context {
    Context::new(Actor::Operator, Entropy::system(), Clock::System.now())
}

/// Runs operations in one transaction.
///
/// # Errors
/// [`Exit`] with code 1 and all reasons for a refusal; the storage error itself.
pub fn execute<T: Send + 'static>(
    store: &Store,
    ctx: Context,
    operations: impl FnOnce(&mut Transaction<'_>, &Context) -> Result<T, AdminError> + Send + 'static,
) -> anyhow::Result<T> {
    let done = block_on(async { Ok(admin::execute(store, ctx, operations).await) })?;
    done.map_err(refused)
}

/// Reads from the database.
///
/// # Errors
/// The storage error.
pub fn read<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&mut Transaction<'_>) -> Result<T, db::Error> + Send + 'static,
) -> anyhow::Result<T> {
    block_on(async { Ok(store.read(work).await?) })
}

fn refused(error: AdminError) -> anyhow::Error {
    match error {
        AdminError::Storage(error) => error.into(),
        refused => Exit {
            code: 1,
            message: refused.to_string(),
        }
        .into(),
    }
}
