//! Open event streams: their limits, and which of them may continue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::config::limits::{STREAMS, STREAMS_PER_CLIENT};
use crate::id::ClientId;

/// The open streams of a node, by subscriber.
#[derive(Default)]
pub struct Streams {
    open: Arc<Mutex<HashMap<ClientId, usize>>>,
    active: watch::Sender<Arc<ActiveSubscribers>>,
}

/// The enabled subscribers with their auth epochs, read once for all streams after each change of a
/// registration.
#[derive(Debug, Default)]
pub struct ActiveSubscribers(HashMap<ClientId, i64>);

impl ActiveSubscribers {
    /// Returns whether a stream that was opened with this auth epoch may continue.
    pub fn includes(&self, client: &ClientId, auth_epoch: i64) -> bool {
        self.0.get(client) == Some(&auth_epoch)
    }
}

/// An open stream, which counts until it is dropped.
#[derive(Debug)]
pub struct Stream {
    client: ClientId,
    open: Arc<Mutex<HashMap<ClientId, usize>>>,
}

/// The node or the subscriber has too many open streams.
#[derive(Debug)]
pub struct TooManyStreams;

impl Streams {
    /// Opens a stream for a subscriber.
    ///
    /// # Errors
    /// [`TooManyStreams`].
    pub fn open(&self, client: &ClientId) -> Result<Stream, TooManyStreams> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = open.get(client).copied().unwrap_or(0);
        if own >= STREAMS_PER_CLIENT || open.values().sum::<usize>() >= STREAMS {
            return Err(TooManyStreams);
        }
        open.insert(client.clone(), own + 1);
        Ok(Stream {
            client: client.clone(),
            open: Arc::clone(&self.open),
        })
    }

    /// Lets the streams of these subscribers continue, and ends all others.
    pub fn keep(&self, subscribers: HashMap<ClientId, i64>) {
        self.active
            .send_replace(Arc::new(ActiveSubscribers(subscribers)));
    }

    /// Watches the subscribers of [`Streams::keep`]. Subscribe before checking a subscriber, so that no
    /// change is missed.
    pub fn active_subscribers(&self) -> watch::Receiver<Arc<ActiveSubscribers>> {
        self.active.subscribe()
    }

    /// Returns the number of open streams.
    pub fn count(&self) -> usize {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().sum()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = open.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_stream_makes_room_for_another() {
        let streams = Streams::default();
        let (one, other) = (ClientId::from("one"), ClientId::from("other"));
        let mut held: Vec<Stream> = (0..STREAMS_PER_CLIENT)
            .map(|_| streams.open(&one).unwrap())
            .collect();
        assert!(streams.open(&one).is_err());
        held.push(streams.open(&other).unwrap());
        held.remove(0);
        held.push(streams.open(&one).unwrap());
        assert_eq!(streams.count(), STREAMS_PER_CLIENT + 1);
        drop(held);
        assert_eq!(streams.count(), 0);
    }
}
