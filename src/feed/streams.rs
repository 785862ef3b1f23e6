//! Open event streams: how many there are, and whose may go on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::config::limits::{STREAMS, STREAMS_PER_CLIENT};
use crate::id::ClientId;

/// The open streams of a node, by subscriber.
#[derive(Default)]
pub struct Streams {
    open: Arc<Mutex<HashMap<ClientId, usize>>>,
    standing: watch::Sender<Arc<Standing>>,
}

/// The subscribers of this moment, with their auth epochs: one look for all streams, whenever some
/// registration changed.
#[derive(Debug, Default)]
pub struct Standing(HashMap<ClientId, i64>);

impl Standing {
    /// Whether a stream that began with this auth epoch may go on.
    pub fn includes(&self, client: &ClientId, auth_epoch: i64) -> bool {
        self.0.get(client) == Some(&auth_epoch)
    }
}

/// One of them; it counts until it is dropped.
#[derive(Debug)]
pub struct Stream {
    client: ClientId,
    open: Arc<Mutex<HashMap<ClientId, usize>>>,
}

/// There is no room for one more.
#[derive(Debug)]
pub struct TooManyStreams;

impl Streams {
    /// Opens one for a subscriber.
    ///
    /// # Errors
    /// [`TooManyStreams`].
    pub fn open(&self, client: &ClientId) -> Result<Stream, TooManyStreams> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = open.get(client).copied().unwrap_or(0);
        if theirs >= STREAMS_PER_CLIENT || open.values().sum::<usize>() >= STREAMS {
            return Err(TooManyStreams);
        }
        open.insert(client.clone(), theirs + 1);
        Ok(Stream {
            client: client.clone(),
            open: Arc::clone(&self.open),
        })
    }

    /// These may go on, and no others.
    pub fn keep(&self, subscribers: HashMap<ClientId, i64>) {
        self.standing.send_replace(Arc::new(Standing(subscribers)));
    }

    /// Changes with [`Streams::keep`]. To be had before a subscriber is looked at, so that nothing is
    /// missed in between.
    pub fn standing(&self) -> watch::Receiver<Arc<Standing>> {
        self.standing.subscribe()
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().sum()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(theirs) = open.get_mut(&self.client) {
            *theirs -= 1;
            if *theirs == 0 {
                open.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_has_sixteen_and_gets_back_what_it_closes() {
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
