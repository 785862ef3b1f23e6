//! Cache of clients and their resources, so that a token request need not read them. An entry is valid
//! for 5 s, and a change of any registration empties the cache.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Error, Store};
use crate::config::limits::{REGISTRATION_AGE, REGISTRATIONS};
use crate::id::ClientId;
use crate::oauth::client::Registration;
use crate::time::Timestamp;

/// The cached clients of a node. Only existing clients are cached, so unknown ids use no memory; each
/// lookup of one reads the database.
#[derive(Default)]
pub struct Registrations {
    clients: RwLock<HashMap<ClientId, CachedClient>>,
}

struct CachedClient {
    registration: Arc<Registration>,
    read_at: Timestamp,
}

impl CachedClient {
    /// Returns whether the entry may be used. After the clock went back it may not.
    fn is_fresh(&self, now: Timestamp) -> bool {
        now >= self.read_at && now.since(self.read_at) < REGISTRATION_AGE
    }
}

impl Registrations {
    /// Returns a cached client, at most 5 s old.
    pub fn recall(&self, id: &ClientId, now: Timestamp) -> Option<Arc<Registration>> {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        let cached = clients.get(id).filter(|cached| cached.is_fresh(now))?;
        Some(Arc::clone(&cached.registration))
    }

    /// Reads a client from the database and caches it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn read(
        &self,
        store: &Store,
        id: &ClientId,
        now: Timestamp,
    ) -> Result<Option<Arc<Registration>>, Error> {
        let client = id.clone();
        let found = store.read(move |tx| tx.find_registration(&client)).await?;
        let found = found.map(Arc::new);
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        match &found {
            None => drop(clients.remove(id)),
            Some(registration) => {
                if clients.len() >= REGISTRATIONS {
                    clients.retain(|_, cached| cached.is_fresh(now));
                }
                if clients.len() < REGISTRATIONS {
                    let registration = Arc::clone(registration);
                    clients.insert(
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

    /// Returns a client from the cache or the database.
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
            Some(registration) => Ok(Some(registration)),
            None => self.read(store, id, now).await,
        }
    }

    /// Empties the cache after a change of a client or resource.
    pub fn clear(&self) {
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        clients.clear();
    }
}
