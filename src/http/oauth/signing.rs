//! The thread on which tokens are signed.

use actix_web::web;

use crate::oauth::Error;

/// Runs `work`, which makes signatures. RSA is slow, so it runs outside the event loop. An ES256 signature takes less
/// time than to hand it to another thread.
///
/// # Errors
/// 503 if the work could not be run.
pub(super) async fn sign<T: Send + 'static>(
    needs_rsa: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    match needs_rsa {
        true => web::block(work).await.map_err(Error::unsigned),
        false => Ok(work()),
    }
}
