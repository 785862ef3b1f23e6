//! What a node remembers of clients and their resources, so that a token request need not read them:
//! for five seconds, or until the database says that one of them changed.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Error, Store};
use crate::config::limits::{REGISTRATION_AGE, REGISTRATIONS};
use crate::id::ClientId;
use crate::oauth::client::Registration;
use crate::time::Timestamp;

/// The clients that this node has seen lately. Only live ones are kept: an unknown id costs a read
/// each time, and no memory.
#[derive(Default)]
pub struct Registrations {
    known: RwLock<HashMap<ClientId, CachedClient>>,
}

struct CachedClient {
    registration: Arc<Registration>,
    read_at: Timestamp,
}

impl CachedClient {
    /// Never when the clock went back.
    fn is_fresh(&self, now: Timestamp) -> bool {
        now >= self.read_at && now.since(self.read_at) < REGISTRATION_AGE
    }
}

impl Registrations {
    /// A client as it was at most five seconds ago.
    pub fn recall(&self, id: &ClientId, now: Timestamp) -> Option<Arc<Registration>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(id).filter(|known| known.is_fresh(now))?;
        Some(Arc::clone(&known.registration))
    }

    /// A client as it is now; remembered from then on.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn read(
        &self,
        store: &Store,
        id: &ClientId,
        now: Timestamp,
    ) -> Result<Option<Arc<Registration>>, Error> {
        let wanted = id.clone();
        let found = store.read(move |tx| tx.find_registration(&wanted)).await?;
        let found = found.map(Arc::new);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match &found {
            None => drop(known.remove(id)),
            Some(registration) => {
                if known.len() >= REGISTRATIONS {
                    known.retain(|_, known| known.is_fresh(now));
                }
                if known.len() < REGISTRATIONS {
                    let registration = Arc::clone(registration);
                    known.insert(
                        id.clone(),
                        CachedClient {
                            registration,
                            read_at: now,
                        },
                    );
                }
            }
        }
        Ok(found)
    }

    /// A client as it was at most five seconds ago, or as it is now.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn find(
        &self,
        store: &Store,
        id: &ClientId,
        now: Timestamp,
    ) -> Result<Option<Arc<Registration>>, Error> {
        match self.recall(id, now) {
            Some(known) => Ok(Some(known)),
            None => self.read(store, id, now).await,
        }
    }

    /// Forgets everything: some client or resource changed.
    pub fn clear(&self) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.clear();
    }
}
