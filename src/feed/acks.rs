//! What the instances of subscribers have applied, as this node heard it. Written down in the database
//! now and then, so that every node and the command line can see it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use portcullis_verifier::Ack;

use super::signed;
use crate::config::limits::{ACK_KEPT, INSTANCES};
use crate::db::Acknowledged;
use crate::id::ClientId;
use crate::time::{Clock, Timestamp};

/// A subscriber has more instances than are kept apart.
#[derive(Debug)]
pub struct TooManyInstances;

/// The newest acknowledgement of each instance.
pub struct Acks {
    clock: Clock,
    heard: Mutex<HashMap<ClientId, HashMap<String, InstanceAck>>>,
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
            heard: Mutex::default(),
        }
    }

    /// Notes what an instance says, and when.
    ///
    /// # Errors
    /// [`TooManyInstances`].
    pub fn note(&self, client: &ClientId, ack: Ack) -> Result<(), TooManyInstances> {
        let now = self.clock.now();
        let mut heard = self.lock();
        let theirs = heard.entry(client.clone()).or_default();
        if theirs.len() >= INSTANCES && !theirs.contains_key(&ack.instance) {
            theirs.retain(|_, heard| heard.is_recent(now));
            if theirs.len() >= INSTANCES {
                return Err(TooManyInstances);
            }
        }
        let noted = Acknowledged {
            client_id: client.clone(),
            instance: ack.instance.clone(),
            epoch: signed(ack.epoch),
            seq: signed(ack.seq),
            kids: ack.kids,
            max_age: ack.max_age.map(signed),
            acked_at: now,
        };
        let new = InstanceAck {
            ack: noted,
            is_written: false,
        };
        theirs.insert(ack.instance, new);
        Ok(())
    }

    /// What was not written down yet. It counts as written until [`Acks::put_back`]. Instances that were
    /// not heard of for long are forgotten.
    pub fn take_unwritten(&self) -> Vec<Acknowledged> {
        let now = self.clock.now();
        let mut heard = self.lock();
        heard.retain(|_, theirs| {
            theirs.retain(|_, heard| !heard.is_written || heard.is_recent(now));
            !theirs.is_empty()
        });
        let all = heard.values_mut().flat_map(HashMap::values_mut);
        let new = all.filter(|heard| !heard.is_written);
        let new = new.map(|heard| {
            heard.is_written = true;
            heard.ack.clone()
        });
        let mut new: Vec<Acknowledged> = new.collect();
        // In one order on every node: two that write the same rows wait for each other, and not in a ring.
        new.sort_by(|a, b| {
            (a.client_id.as_str(), &a.instance).cmp(&(b.client_id.as_str(), &b.instance))
        });
        new
    }

    /// These could not be written.
    pub fn put_back(&self, acks: &[Acknowledged]) {
        let mut heard = self.lock();
        for ack in acks {
            let theirs = heard.get_mut(&ack.client_id);
            if let Some(known) = theirs.and_then(|theirs| theirs.get_mut(&ack.instance)) {
                known.is_written = false;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientId, HashMap<String, InstanceAck>>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_that_is_gone_for_long_is_forgotten() {
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
        acks.note(&client, ack("gone")).unwrap();
        assert_eq!(acks.take_unwritten().len(), 1);
        clock.advance(ACK_KEPT);
        acks.note(&client, ack("here")).unwrap();
        assert_eq!(acks.take_unwritten().len(), 1);
        let heard = acks.lock();
        let names: Vec<&String> = heard[&client].keys().collect();
        assert_eq!(names, ["here"]);
    }
}
