//! Cache of clients and their resources, so that a token request need not read them. An entry is valid
//! for 5 s, and a change of any registration empties the cache.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use super::{Error, Store};
use crate::config::limits::{REGISTRATION_AGE, REGISTRATIONS};
use crate::id::ClientId;
use crate::oauth::client::{Client, Registration};
use crate::time::Timestamp;

/// The cached clients of a node. Only existing clients are cached, so unknown ids use no memory; each
/// lookup of one reads the database.
#[derive(Default)]
pub struct Registrations {
    clients: RwLock<HashMap<ClientId, CachedClient>>,
    origins: RwLock<CachedOrigins>,
}

/// The origins that clients registered for cross-origin calls.
#[derive(Default)]
struct CachedOrigins {
    origins: HashSet<String>,
    /// When they were read; `None` if they must be read before the next use.
    read_at: Option<Timestamp>,
}

struct CachedClient {
    registration: Arc<Registration>,
    read_at: Timestamp,
}

/// Returns whether an entry may be used. After the clock went back it may not.
fn is_fresh(read_at: Timestamp, now: Timestamp) -> bool {
    now >= read_at && now.since(read_at) < REGISTRATION_AGE
}

impl Registrations {
    /// Returns a cached client, at most 5 s old.
    pub fn recall(&self, id: &ClientId, now: Timestamp) -> Option<Arc<Registration>> {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        let cached = clients
            .get(id)
            .filter(|cached| is_fresh(cached.read_at, now))?;
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
        let read = self.read_if(store, id, now, (), |_| Ok(())).await?;
        Ok(read.ok().map(|(registration, ())| registration))
    }

    /// Reads a client, and if `accepts` returns `Ok` for it, the rest of its registration in the same transaction,
    /// which is cached. Otherwise there is one statement, whether or not there is such a client.
    ///
    /// # Errors
    /// [`Error`]; the inner error is the one of `accepts`, or `unknown` if there is no such client.
    pub async fn read_if<T: Send + 'static, E: Send + 'static>(
        &self,
        store: &Store,
        id: &ClientId,
        now: Timestamp,
        unknown: E,
        accepts: impl FnOnce(&Client) -> Result<T, E> + Send + 'static,
    ) -> Result<Result<(Arc<Registration>, T), E>, Error> {
        let client_id = id.clone();
        let read = store.read(move |tx| {
            let Some(client) = tx.find_client(&client_id)? else {
                return Ok(Err(unknown));
            };
            Ok(match accepts(&client) {
                Ok(accepted) => Ok((Arc::new(tx.registration_of(client)?), accepted)),
                Err(error) => Err(error),
            })
        });
        let read = read.await?;
        match &read {
            Ok((registration, _)) => self.keep(id, registration, now),
            Err(_) => self.forget(id),
        }
        Ok(read)
    }

    fn forget(&self, id: &ClientId) {
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        clients.remove(id);
    }

    fn keep(&self, id: &ClientId, registration: &Arc<Registration>, now: Timestamp) {
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= REGISTRATIONS {
            clients.retain(|_, cached| is_fresh(cached.read_at, now));
        }
        if clients.len() < REGISTRATIONS {
            let registration = Arc::clone(registration);
            let read_at = now;
            clients.insert(
                id.clone(),
                CachedClient {
                    registration,
                    read_at,
                },
            );
        }
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

    /// Returns whether an enabled client has registered the origin for cross-origin calls. The answer is at most 5 s
    /// old, so that refused requests do not each read the database; while the database is away it may be older.
    pub async fn is_cors_origin(&self, store: &Store, origin: &str, now: Timestamp) -> bool {
        if let Some(known) = self.recall_origin(origin, now) {
            return known;
        }
        let read = store.read(|tx| tx.list_cors_origins()).await;
        let mut cached = self.origins.write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(origins) = read {
            cached.origins = origins;
        }
        cached.read_at = Some(now);
        cached.origins.contains(origin)
    }

    fn recall_origin(&self, origin: &str, now: Timestamp) -> Option<bool> {
        let cached = self.origins.read().unwrap_or_else(PoisonError::into_inner);
        let read_at = cached.read_at?;
        is_fresh(read_at, now).then(|| cached.origins.contains(origin))
    }

    /// Empties the cache after a change of a client or resource.
    pub fn clear(&self) {
        let mut origins = self.origins.write().unwrap_or_else(PoisonError::into_inner);
        origins.read_at = None;
        drop(origins);
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        clients.clear();
    }
}
