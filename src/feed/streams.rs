//! Open event streams: how many there are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::limits::{STREAMS, STREAMS_PER_CLIENT};
use crate::id::ClientId;

/// The open streams of a node, by subscriber.
#[derive(Default)]
pub struct Streams {
    open: Arc<Mutex<HashMap<ClientId, usize>>>,
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
