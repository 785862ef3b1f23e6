//! How a command performs operations: as the operator of the host, with the clock and the randomness of
//! the system, in one transaction.

use std::io::IsTerminal;

use anyhow::Context as _;

use super::{Exit, block_on, invalid};
use crate::admin::{self, AdminError, Context};
use crate::audit::Actor;
use crate::db::{self, Store, Transaction};
use crate::secret::Entropy;
use crate::time::Clock;

/// Returns the clock of the system.
pub fn clock() -> Clock {
    Clock::System
}

/// Returns the randomness of the system.
pub fn entropy() -> Entropy {
    Entropy::system()
}

/// Returns the context of an operation that the operator starts now.
pub fn context() -> Context {
    Context::new(operator(), entropy(), clock().now())
}

/// Returns the user of the operating system who runs this command. The environment can be changed by that user, so
/// the kernel and `/etc/passwd` say who it is.
pub fn operator() -> Actor {
    let uid = rustix::process::getuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    Actor::LocalUser(name.unwrap_or(uid))
}

/// Performs operations in one transaction.
///
/// # Errors
/// [`Exit`] with code 2 for invalid fields and 1 if an operation is refused, with all reasons; the storage error
/// itself.
pub fn execute<T: Send + 'static>(
    store: &Store,
    ctx: Context,
    operations: impl FnOnce(&mut Transaction<'_>, &Context) -> Result<T, AdminError> + Send + 'static,
) -> anyhow::Result<T> {
    let result = block_on(async { Ok(admin::execute(store, ctx, operations).await) })?;
    result.map_err(|error| match error {
        AdminError::Storage(error) => error.into(),
        AdminError::Invalid(errors) => invalid(&errors).into(),
        refused => Exit {
            code: 1,
            message: refused.to_string(),
        }
        .into(),
    })
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

/// Asks for confirmation of a change that cannot be undone, unless `yes` is set.
///
/// # Errors
/// [`Exit`] with code 2 if the operator declines or there is no terminal.
pub fn confirm(question: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    let refuse = |message: &str| Exit {
        code: 2,
        message: message.to_owned(),
    };
    if !std::io::stdin().is_terminal() {
        return Err(refuse("confirmation needs a terminal; pass --yes").into());
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .context("cannot read from the terminal")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(refuse("nothing was changed").into()),
    }
}
