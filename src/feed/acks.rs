//! Acknowledgements that this node received from instances of subscribers. A background task stores them
//! in the database, so that every node and the command line can read them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use portcullis_verifier::Ack;

use super::feed_position::signed;
use crate::config::limits::{ACK_KEPT, INSTANCES};
use crate::db::Acknowledged;
use crate::id::ClientId;
use crate::time::{Clock, Timestamp};

/// A subscriber has more than [`INSTANCES`] instances.
#[derive(Debug)]
pub struct TooManyInstances;

/// The newest acknowledgement of each instance.
pub struct Acks {
    clock: Clock,
    by_client: Mutex<HashMap<ClientId, HashMap<String, InstanceAck>>>,
}

struct InstanceAck {
    ack: Acknowledged,
    is_written: bool,
}

impl InstanceAck {
    fn is_recent(&self, now: Timestamp) -> bool {
        now.since(self.ack.acked_at) < ACK_KEPT
    }
}

impl Acks {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            by_client: Mutex::default(),
        }
    }

    /// Records an acknowledgement with the current time.
    ///
    /// # Errors
    /// [`TooManyInstances`].
    pub fn record(&self, client: &ClientId, ack: Ack) -> Result<(), TooManyInstances> {
        let now = self.clock.now();
        let mut by_client = self.lock();
        let instances = by_client.entry(client.clone()).or_default();
        if instances.len() >= INSTANCES && !instances.contains_key(&ack.instance) {
            instances.retain(|_, ack| ack.is_recent(now));
            if instances.len() >= INSTANCES {
                return Err(TooManyInstances);
            }
        }
        let ack_row = Acknowledged {
            client_id: client.clone(),
            instance: ack.instance.clone(),
            epoch: signed(ack.epoch),
            seq: signed(ack.seq),
            kids: ack.kids,
            max_age: ack.max_age.map(signed),
            acked_at: now,
        };
        let new = InstanceAck {
            ack: ack_row,
            is_written: false,
        };
        instances.insert(ack.instance, new);
        Ok(())
    }

    /// Returns acknowledgements that are not stored yet, and marks them as stored until [`Acks::put_back`].
    /// Removes instances that sent nothing for [`ACK_KEPT`].
    pub fn take_unwritten(&self) -> Vec<Acknowledged> {
        let now = self.clock.now();
        let mut by_client = self.lock();
        by_client.retain(|_, instances| {
            instances.retain(|_, ack| !ack.is_written || ack.is_recent(now));
            !instances.is_empty()
        });
        let all = by_client.values_mut().flat_map(HashMap::values_mut);
        let new = all.filter(|ack| !ack.is_written);
        let new = new.map(|new| {
            new.is_written = true;
            new.ack.clone()
        });
        let mut new: Vec<Acknowledged> = new.collect();
        // In the same order on every node, so that concurrent writers of the same rows cannot deadlock.
        new.sort_by(|a, b| {
            (a.client_id.as_str(), &a.instance).cmp(&(b.client_id.as_str(), &b.instance))
        });
        new
    }

    /// Marks acknowledgements as not stored, because storing them failed.
    pub fn put_back(&self, acks: &[Acknowledged]) {
        let mut by_client = self.lock();
        for ack in acks {
            let instances = by_client.get_mut(&ack.client_id);
            if let Some(known) = instances.and_then(|instances| instances.get_mut(&ack.instance)) {
                known.is_written = false;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientId, HashMap<String, InstanceAck>>> {
        self.by_client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_instance_is_removed() {
        let clock = Clock::settable(Timestamp::from_secs(1_000));
        let acks = Acks::new(clock.clone());
        let ack = |instance: &str| Ack {
            instance: instance.to_owned(),
            epoch: 1,
            seq: 7,
            kids: Vec::new(),
            max_age: None,
            frame: None,
        };
        let client = ClientId::from("orders".to_owned());
        acks.record(&client, ack("gone")).unwrap();
        assert_eq!(acks.take_unwritten().len(), 1);
        clock.advance(ACK_KEPT);
        acks.record(&client, ack("here")).unwrap();
        assert_eq!(acks.take_unwritten().len(), 1);
        let by_client = acks.lock();
        let names: Vec<&String> = by_client[&client].keys().collect();
        assert_eq!(names, ["here"]);
    }
}
