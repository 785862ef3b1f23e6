//! `feed status`: shows the subscribers of the revocation feed, and the position of each instance.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Output, block_on, open, table};
use crate::cli::command::clock;
use crate::config::Config;
use crate::config::limits::ACK_CONNECTED;
use crate::db::{Acknowledged, Head};
use crate::time::Timestamp;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show every instance that acknowledged within a day: its position, its lag and its keys.
    Status,
}

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    let Action::Status = arguments.action;
    let store = open(config)?;
    let read = store.read(|tx| Ok((tx.read_head()?, tx.list_acks()?)));
    let (head, acks) = block_on(async { Ok(read.await?) })?;
    let now = head.database.unwrap_or_else(|| clock().now());
    if output == Output::Table {
        println!(
            "feed at {}:{}, {} behind the clock{}",
            head.epoch,
            head.seq,
            seconds(now.since(head.beat)),
            match head.restored_at {
                Some(_) =>
                    "; THE DATABASE WAS RESTORED FROM AN OLDER COPY: run `portcullis recover`",
                None => "",
            }
        );
    }
    let rows: Vec<Vec<String>> = acks.iter().map(|ack| row(ack, &head, now)).collect();
    let view = json!({
        "epoch": head.epoch, "seq": head.seq, "as_of": head.beat.to_string(),
        "restored": head.restored_at.is_some(),
        "subscribers": acks.iter().map(|ack| view(ack, &head, now)).collect::<Vec<Value>>(),
    });
    table::print(
        output,
        &[
            "subscriber",
            "instance",
            "position",
            "behind",
            "max age",
            "keys",
            "last ack",
            "connected",
        ],
        &rows,
        &view,
    );
    Ok(())
}

/// Returns whether the last acknowledgement of an instance is recent enough to count as connected.
pub fn is_connected(ack: &Acknowledged, now: Timestamp) -> bool {
    now.since(ack.acked_at) <= ACK_CONNECTED
}

/// Returns the number of records that an instance lacks, or `None` if it is in another epoch.
fn behind(ack: &Acknowledged, head: &Head) -> Option<i64> {
    (ack.epoch == head.epoch).then(|| (head.seq - ack.seq).max(0))
}

fn row(ack: &Acknowledged, head: &Head, now: Timestamp) -> Vec<String> {
    vec![
        ack.client_id.to_string(),
        ack.instance.clone(),
        format!("{}:{}", ack.epoch, ack.seq),
        behind(ack, head).map_or_else(|| "an epoch".to_owned(), |count| count.to_string()),
        ack.max_age
            .map_or_else(|| "any (fails open)".to_owned(), |secs| format!("{secs} s")),
        ack.kids.len().to_string(),
        format!("{} ago", seconds(now.since(ack.acked_at))),
        if is_connected(ack, now) { "yes" } else { "no" }.to_owned(),
    ]
}

fn view(ack: &Acknowledged, head: &Head, now: Timestamp) -> Value {
    json!({
        "client_id": ack.client_id.as_str(), "instance": ack.instance,
        "epoch": ack.epoch, "seq": ack.seq, "behind": behind(ack, head),
        "max_age": ack.max_age, "kids": ack.kids,
        "acked_at": ack.acked_at.to_string(), "connected": is_connected(ack, now),
    })
}

fn seconds(duration: std::time::Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
