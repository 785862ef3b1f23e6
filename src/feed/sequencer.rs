//! The sequencer: numbers the records of committed revocations.

use crate::db::{Error, Store};
use crate::time::Clock;

/// Numbers records until none is left without a number. Any node may do this, and the command line.
///
/// # Errors
/// [`Error`].
pub async fn number_revocations(store: &Store, clock: &Clock) -> Result<(), Error> {
    loop {
        let clock = clock.clone();
        let more = store.transaction(move |tx| tx.number_revocations(&clock));
        if !more.await? {
            return Ok(());
        }
    }
}
