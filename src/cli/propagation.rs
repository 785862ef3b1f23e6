//! The propagation of a revocation: its position in the feed, and the services that have applied it. Used by
//! `revoke` and `keys revoke`.

use std::time::Duration;

use serde_json::{Value, json};

use super::feed::is_connected;
use super::{Exit, Output, block_on};
use crate::cli::command::clock;
use crate::config::limits::RESOURCE_ACCESS_CAP;
use crate::config::{Config, HumanDuration};
use crate::db::{Acknowledged, Store};
use crate::feed::{mark_database, number_revocations};
use crate::time::Timestamp;

/// Interval between reads of the acknowledgements. Nodes write them once a second.
const READ_EVERY: Duration = Duration::from_millis(50);
/// Maximum difference between the clocks of server and verifier before the verifier rejects the feed.
const CLOCK_ERROR: Duration = Duration::from_secs(30);

/// Options about waiting.
#[derive(clap::Args, Clone)]
pub struct Wait {
    /// Wait until every connected instance has applied it, by default for 10s. The exit code is 75 if it takes
    /// longer.
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "10s")]
    wait: Option<HumanDuration>,
    /// Instances to wait for: `registered` also waits for resource servers without a connected instance.
    #[arg(long, value_enum, default_value_t)]
    require: Require,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Require {
    #[default]
    Connected,
    Registered,
}

/// The propagation of one revocation.
pub struct Propagated {
    name: String,
    position: String,
    committed_at: Timestamp,
    /// `None` if the command does not wait.
    acks: Option<Acks>,
}

/// Assigns positions to new records and moves the high-water mark, because no server may be running. Waits if the
/// options require it.
///
/// # Errors
/// The storage error; [`Exit`] with code 75 if the database is marked as restored, because records get no positions
/// then.
pub fn propagate(
    name: &str,
    config: &Config,
    store: &Store,
    wait: &Wait,
) -> anyhow::Result<Propagated> {
    block_on(async {
        number_revocations(store, &clock()).await?;
        let head = store.read(|tx| tx.read_head()).await?;
        // The record has no position then, so no instance can have applied it.
        if head.restored_at.is_some() {
            return Err(Exit {
                code: 75,
                message: format!(
                    "{name} is revoked, but no service has received it because the database was restored from an older copy; run `portcullis recover`"
                ),
            }
            .into());
        }
        mark_database(&config.keys.kek, store).await?;
        let mut propagated = Propagated {
            name: name.to_owned(),
            position: format!("{}:{}", head.epoch, head.seq),
            committed_at: head.database.unwrap_or_else(|| clock().now()),
            acks: None,
        };
        let Some(limit) = wait.wait else {
            return Ok(propagated);
        };
        let start = clock().uptime();
        loop {
            let position = (head.epoch, head.seq);
            let acks = read_acks(store, wait.require, position, propagated.committed_at).await?;
            if acks.waiting.is_empty() || clock().uptime().since(start) >= limit.0 {
                propagated.acks = Some(acks);
                return Ok(propagated);
            }
            tokio::time::sleep(READ_EVERY).await;
        }
    })
}

impl Propagated {
    /// Prints the propagation.
    ///
    /// # Errors
    /// As [`Self::require_confirmed`].
    pub fn report(&self, output: Output) -> anyhow::Result<()> {
        output.print(&self.view(), self);
        self.require_confirmed()
    }

    /// Fails if an instance has not applied the revocation.
    ///
    /// # Errors
    /// [`Exit`] with code 75.
    pub fn require_confirmed(&self) -> anyhow::Result<()> {
        match &self.acks {
            Some(acks) if !acks.waiting.is_empty() => Err(Exit {
                code: 75,
                message: format!(
                    "{} is revoked; not every service has confirmed it",
                    self.name
                ),
            }
            .into()),
            _ => Ok(()),
        }
    }

    /// Returns the propagation as JSON.
    pub fn view(&self) -> Value {
        let mut view = json!({ "revoked": true, "position": self.position });
        if let Some(acks) = &self.acks {
            view["applied"] = acks.applied.into();
            view["instances"] = (acks.applied + acks.waiting.len()).into();
            view["last_ms"] = u64::try_from(acks.last.as_millis())
                .unwrap_or(u64::MAX)
                .into();
            let waiting = acks.waiting.iter().map(|waiting| {
                let until = waiting.refuses_from(self.committed_at);
                json!({ "instance": waiting.name, "refuses_from": until.map(|at| at.to_string()) })
            });
            view["waiting"] = waiting.collect::<Vec<Value>>().into();
        }
        view
    }
}

impl std::fmt::Display for Propagated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is revoked: {} of the feed", self.name, self.position)?;
        let Some(acks) = &self.acks else {
            return Ok(());
        };
        let all = acks.applied + acks.waiting.len();
        if all == 0 {
            return write!(
                f,
                "\nno instance is connected; services receive it when they connect"
            );
        }
        write!(
            f,
            "\napplied by {} of {all} connected instances",
            acks.applied
        )?;
        if acks.applied > 0 {
            write!(f, ", the last after {} ms", acks.last.as_millis())?;
        }
        for waiting in &acks.waiting {
            write!(f, "\nwaiting: {}; ", waiting.name)?;
            match waiting.refuses_from(self.committed_at) {
                Some(at) => write!(f, "refuses at the latest at {at}")?,
                None => write!(
                    f,
                    "it fails open, so it may accept tokens until they expire"
                )?,
            }
        }
        Ok(())
    }
}

/// The instances that have applied a revocation, and those that have not.
struct Acks {
    applied: usize,
    last: Duration,
    waiting: Vec<Waiting>,
}

struct Waiting {
    name: String,
    max_age: Option<i64>,
}

async fn read_acks(
    store: &Store,
    require: Require,
    (epoch, seq): (i64, i64),
    committed_at: Timestamp,
) -> anyhow::Result<Acks> {
    let read = store.read(|tx| Ok((tx.list_acks()?, tx.list_clients()?)));
    let (acks, clients) = read.await?;
    let connected: Vec<&Acknowledged> = acks
        .iter()
        .filter(|ack| is_connected(ack, committed_at))
        .collect();
    let has_applied = |ack: &&&Acknowledged| (ack.epoch, ack.seq) >= (epoch, seq);
    let applied: Vec<&&Acknowledged> = connected.iter().filter(has_applied).collect();
    let late = connected.iter().filter(|ack| !has_applied(ack));
    let mut waiting: Vec<Waiting> = late
        .map(|ack| Waiting {
            name: format!("{} {}", ack.client_id, ack.instance),
            max_age: ack.max_age,
        })
        .collect();
    if require == Require::Registered {
        let silent = clients.iter().filter(|client| {
            !client.serves.is_empty()
                && client.disabled_at.is_none()
                && connected.iter().all(|ack| ack.client_id != client.id)
        });
        waiting.extend(silent.map(|client| Waiting {
            name: format!("{} (not connected)", client.id),
            max_age: Some(RESOURCE_ACCESS_CAP.as_secs().try_into().unwrap_or(i64::MAX)),
        }));
    }
    let last = applied
        .iter()
        .map(|ack| ack.acked_at.since(committed_at))
        .max();
    Ok(Acks {
        applied: applied.len(),
        last: last.unwrap_or_default(),
        waiting,
    })
}

impl Waiting {
    /// Returns the time from which the instance refuses all tokens: without this record, its revocation data is not
    /// newer than the commit, so it becomes too old.
    fn refuses_from(&self, committed_at: Timestamp) -> Option<Timestamp> {
        let secs = self.max_age.and_then(|secs| u64::try_from(secs).ok());
        secs.map(|secs| committed_at + Duration::from_secs(secs) + CLOCK_ERROR)
    }
}
