//! Administrative operations: all changes outside the protocol. The command line, `apply`, the pages and the
//! demo call them, and no other code creates a user, a client or a resource.
//!
//! An operation validates its complete input, changes the rows, and inserts its audit event and, if it
//! revokes something, its revocation record, all in one transaction. It performs no other I/O: slow work, such
//! as hashing a password, precedes it, and the result is part of the input.

pub mod clients;
pub mod consents;
mod context;
pub mod first_admin;
pub mod recovery;
pub mod resources;
pub mod revocations;
pub mod sessions;
pub mod throttles;
pub mod users;

use std::sync::{Arc, Mutex, PoisonError};

pub use context::{AdminError, Context};

use crate::db::{self, Store, Transaction};

/// Runs operations in one transaction: commits if they succeed, and rolls all of them back otherwise.
///
/// # Errors
/// [`AdminError`] of an operation or of the database.
pub async fn execute<T: Send + 'static>(
    store: &Store,
    ctx: Context,
    operations: impl FnOnce(&mut Transaction<'_>, &Context) -> Result<T, AdminError> + Send + 'static,
) -> Result<T, AdminError> {
    // A transaction can fail only with a storage error, so another error is returned through a slot.
    let refusal = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&refusal);
    let done = store.transaction(move |tx| {
        operations(tx, &ctx).map_err(|error| match error {
            AdminError::Storage(error) => error,
            refused => {
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(refused);
                db::Error::Statement("the operation was refused".to_owned())
            }
        })
    });
    done.await.map_err(|error| {
        let mut refusal = refusal.lock().unwrap_or_else(PoisonError::into_inner);
        refusal.take().unwrap_or(AdminError::Storage(error))
    })
}
