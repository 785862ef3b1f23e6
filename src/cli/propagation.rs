//! How far a revocation has come: its number, and which services have applied it. For `revoke` and
//! `keys revoke`.

use std::time::Duration;

use serde_json::{Value, json};

use super::feed::is_connected;
use super::{Exit, Output, block_on};
use crate::app::{mark_database, number};
use crate::cli::command::clock;
use crate::config::limits::RESOURCE_ACCESS_CAP;
use crate::config::{Config, HumanDuration};
use crate::db::{Acknowledged, Store};
use crate::time::Timestamp;

/// Between two looks at what was acknowledged; nodes write that down once a second.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How far clocks may be apart before a verifier stops trusting what it hears.
const CLOCK_ERROR: Duration = Duration::from_secs(30);

/// Whether, and for whom, to wait.
#[derive(clap::Args, Clone)]
pub struct Wait {
    /// Wait until every connected instance has applied it, 10s if nothing else is said; exit code 75
    /// when that takes longer.
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "10s")]
    wait: Option<HumanDuration>,
    /// `registered` also waits for resource servers of which no instance is connected.
    #[arg(long, value_enum, default_value_t)]
    require: Require,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Require {
    #[default]
    Connected,
    Registered,
}

/// How far what was revoked has come.
pub struct Propagated {
    name: String,
    position: String,
    done: Timestamp,
    /// Without waiting nobody was looked at.
    seen: Option<InstanceAck>,
}

/// Gives the numbers, moves the mark of the database there, because no server may be running, and
/// waits if asked.
///
/// # Errors
/// Of the database; [`Exit`] with code 75 while it stands as restored, since nothing is numbered then.
pub fn propagate(
    name: &str,
    config: &Config,
    store: &Store,
    wait: &Wait,
) -> anyhow::Result<Propagated> {
    block_on(async {
        number(store, clock()).await?;
        let head = store.read(|tx| tx.read_head()).await?;
        // It has no number then, and the place that instances have confirmed is before it.
        if head.restored_at.is_some() {
            return Err(Exit {
                code: 75,
                message: format!(
                    "{name} is revoked, and no service has learnt it: the database was restored from an older copy; run `portcullis recover`"
                ),
            }
            .into());
        }
        mark_database(config, store).await?;
        let mut propagated = Propagated {
            name: name.to_owned(),
            position: format!("{}:{}", head.epoch, head.seq),
            done: head.database.unwrap_or_else(|| clock().now()),
            seen: None,
        };
        let Some(span) = wait.wait else {
            return Ok(propagated);
        };
        let begun = clock().uptime();
        loop {
            let at = (head.epoch, head.seq);
            let seen = look(store, wait.require, at, propagated.done).await?;
            if seen.waiting.is_empty() || clock().uptime().since(begun) >= span.0 {
                propagated.seen = Some(seen);
                return Ok(propagated);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
}

impl Propagated {
    /// Says it, and fails with exit code 75 when not everybody has confirmed it.
    ///
    /// # Errors
    /// [`Propagated::confirmed`].
    pub fn say(&self, output: Output) -> anyhow::Result<()> {
        output.say(&self.view(), self);
        self.confirmed()
    }

    /// # Errors
    /// [`Exit`] with code 75 when not everybody who was waited for has confirmed it.
    pub fn confirmed(&self) -> anyhow::Result<()> {
        match &self.seen {
            Some(seen) if !seen.waiting.is_empty() => Err(Exit {
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

    /// For scripts.
    pub fn view(&self) -> Value {
        let mut view = json!({ "revoked": true, "position": self.position });
        if let Some(seen) = &self.seen {
            view["applied"] = seen.applied.into();
            view["instances"] = (seen.applied + seen.waiting.len()).into();
            view["last_ms"] = u64::try_from(seen.last.as_millis())
                .unwrap_or(u64::MAX)
                .into();
            let waiting = seen.waiting.iter().map(|waiting| {
                let until = waiting.refuses_from(self.done);
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
        let Some(seen) = &self.seen else {
            return Ok(());
        };
        let all = seen.applied + seen.waiting.len();
        if all == 0 {
            return write!(
                f,
                "\nno instance is connected; services that follow the feed learn of it when they are"
            );
        }
        write!(
            f,
            "\napplied by {} of {all} connected instances",
            seen.applied
        )?;
        if seen.applied > 0 {
            write!(f, ", the last after {} ms", seen.last.as_millis())?;
        }
        for waiting in &seen.waiting {
            write!(f, "\nwaiting: {}; ", waiting.name)?;
            match waiting.refuses_from(self.done) {
                Some(at) => write!(f, "refuses at the latest at {at}")?,
                None => write!(
                    f,
                    "it fails open, and may accept for as long as tokens live"
                )?,
            }
        }
        Ok(())
    }
}

/// Who has applied it, and who has not.
struct InstanceAck {
    applied: usize,
    last: Duration,
    waiting: Vec<Waiting>,
}

struct Waiting {
    name: String,
    max_age: Option<i64>,
}

async fn look(
    store: &Store,
    require: Require,
    (epoch, seq): (i64, i64),
    done: Timestamp,
) -> anyhow::Result<InstanceAck> {
    let read = store.read(|tx| Ok((tx.list_acks()?, tx.list_clients()?)));
    let (acks, clients) = read.await?;
    let connected: Vec<&Acknowledged> = acks.iter().filter(|ack| is_connected(ack, done)).collect();
    let has = |ack: &&&Acknowledged| (ack.epoch, ack.seq) >= (epoch, seq);
    let applied: Vec<&&Acknowledged> = connected.iter().filter(has).collect();
    let late = connected.iter().filter(|ack| !has(ack));
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
    let last = applied.iter().map(|ack| ack.acked_at.since(done)).max();
    Ok(InstanceAck {
        applied: applied.len(),
        last: last.unwrap_or_default(),
        waiting,
    })
}

impl Waiting {
    /// Without the record its news cannot be younger than the commit, so from then on it is too old.
    fn refuses_from(&self, done: Timestamp) -> Option<Timestamp> {
        let secs = self.max_age.and_then(|secs| u64::try_from(secs).ok());
        secs.map(|secs| done + Duration::from_secs(secs) + CLOCK_ERROR)
    }
}
