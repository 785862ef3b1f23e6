//! A bounded pool for password hashes, so that many sign-ins at once do not use up the processors.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::App;
use crate::accounts::password::Password;
use crate::config::limits::{HASH_QUEUE, HASH_WAIT};

/// The queue for password hashes is full, or the wait took too long.
#[derive(Debug)]
pub struct Busy;

/// Limits how many passwords are hashed at the same time.
pub(super) struct Hashing {
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Hashing {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(threads)),
            waiting: AtomicUsize::new(0),
        }
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, Busy> {
        let queued = Queued(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::SeqCst) >= HASH_QUEUE {
            return Err(Busy);
        }
        let permit =
            tokio::time::timeout(HASH_WAIT, Arc::clone(&self.permits).acquire_owned()).await;
        drop(queued);
        permit.map_err(|_| Busy)?.map_err(|_| Busy)
    }
}

/// A place in the queue, which is also given up when the client disconnects.
struct Queued<'a>(&'a AtomicUsize);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl App {
    /// Verifies a password against a stored hash. Without one it does the same work and returns
    /// `false`.
    ///
    /// # Errors
    /// [`Busy`] when 64 passwords wait already, or after 2 s of waiting.
    pub async fn password_matches(
        &self,
        password: Password,
        stored: Option<String>,
    ) -> Result<(Password, bool), Busy> {
        let permit = self.hashing.permit().await?;
        let cost = self.config.login.argon2;
        tokio::task::spawn_blocking(move || {
            let matches = password.matches(stored.as_deref(), &cost);
            drop(permit);
            (password, matches)
        })
        .await
        .map_err(|_| Busy)
    }

    /// Hashes a password.
    ///
    /// # Errors
    /// [`Busy`], as [`App::password_matches`].
    pub async fn password_hash(&self, password: Password) -> Result<String, Busy> {
        let permit = self.hashing.permit().await?;
        let (cost, entropy) = (self.config.login.argon2, self.entropy.clone());
        tokio::task::spawn_blocking(move || {
            let phc = password.hash(&cost, &entropy);
            drop(permit);
            phc
        })
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or(Busy)
    }

    /// Returns how many passwords are being hashed, and how many wait.
    pub fn hashing(&self) -> (usize, usize) {
        let idle = self.hashing.permits.available_permits();
        let running = self.config.login.hash_threads().saturating_sub(idle);
        (running, self.hashing.waiting.load(Ordering::SeqCst))
    }
}
