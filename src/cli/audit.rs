//! `audit verify` and `audit tail`.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Exit, Output, block_on, open, table};
use crate::app::StartError;
use crate::audit::{Name, Row};
use crate::cli::command::clock;
use crate::config::Config;
use crate::db::{Seal, Store};
use crate::keys::{Keychain, ServerSecrets};
use crate::secret::base64url;
use crate::time::Timestamp;

/// Time after which an event without a seal is reported, because every node seals events.
const SEALED_BY: Duration = Duration::from_secs(60);
/// The number of seals that are read at once.
const PAGE: i64 = 1_000;
/// The maximum number of findings that are printed as text.
const PRINTED: usize = 100;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// How to print.
    #[arg(long, global = true, value_enum, default_value_t)]
    format: Output,
}

#[derive(Subcommand)]
enum Action {
    /// Check every seal. Exit code 1 if something was changed, added or removed.
    Verify {
        /// A head that an earlier run printed: everything up to it must still be there.
        #[arg(long, value_name = "SEQ:SEAL")]
        expect: Option<String>,
    },
    /// The newest events.
    Tail {
        /// How many.
        #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        lines: i64,
        /// Continue with new ones until interrupted.
        #[arg(long, short)]
        follow: bool,
    },
}

pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    let store = open(config)?;
    match &arguments.action {
        Action::Verify { expect } => {
            let expect = expect.as_deref().map(parse_head).transpose()?;
            let secret = server_secrets(config, &store)?;
            let now = clock().now();
            let found = block_on(async { Ok(check(&store, &secret, expect, now).await?) })?;
            found.print(arguments.format);
            if found.problems.is_empty() {
                return Ok(());
            }
            Err(Exit {
                code: 1,
                message: format!(
                    "the audit log is not as it was written: {} finding(s)",
                    found.problems.len()
                ),
            }
            .into())
        }
        Action::Tail { lines, follow } => block_on(tail(&store, *lines, *follow, arguments.format)),
    }
}

fn server_secrets(config: &Config, store: &Store) -> anyhow::Result<ServerSecrets> {
    let stored = block_on(async { Ok(store.read(|tx| tx.list_server_secrets()).await?) })?;
    if stored.is_empty() {
        return Err(Exit {
            code: 1,
            message: "the database has no server secret; no server was started on it".into(),
        }
        .into());
    }
    let keychain = Keychain::read(&config.keys.kek).map_err(StartError::from)?;
    let now = clock().now();
    Ok(ServerSecrets::open(&stored, &keychain, now).map_err(StartError::from)?)
}

fn parse_head(text: &str) -> anyhow::Result<(i64, String)> {
    let head = text
        .split_once(':')
        .and_then(|(seq, mac)| Some((seq.parse().ok()?, mac.to_owned())));
    head.ok_or_else(|| {
        Exit {
            code: 2,
            message: format!("`{text}` is not a head such as 42:AbC…; `audit verify` prints one"),
        }
        .into()
    })
}

/// The result of a check.
#[derive(Debug, Default)]
struct VerifiedChain {
    sealed: u64,
    first: i64,
    head: Option<(i64, String)>,
    /// The first seal if its event was removed, until a sealed event shows that clean-up removed it.
    unexplained: Option<(i64, String)>,
    problems: Vec<Problem>,
}

/// A finding.
#[derive(Debug)]
struct Problem {
    seq: Option<i64>,
    event_id: String,
    what: &'static str,
}

async fn check(
    store: &Store,
    secret: &ServerSecrets,
    expect: Option<(i64, String)>,
    now: Timestamp,
) -> Result<VerifiedChain, crate::db::Error> {
    let mut chain = VerifiedChain::default();
    let mut expect = expect;
    let mut previous: Option<Seal> = None;
    loop {
        let after = previous.as_ref().map_or(0, |seal| seal.seq);
        let page = store.read(move |tx| tx.list_seals(after, PAGE)).await?;
        if page.is_empty() {
            break;
        }
        for seal in page {
            chain.link(previous.as_ref(), &seal, secret);
            if expect
                .as_ref()
                .is_some_and(|(seq, mac)| *seq == seal.seq && *mac == base64url(&seal.mac))
            {
                expect = None;
            }
            previous = Some(seal);
        }
    }
    if let Some((seq, _)) = chain.unexplained.take() {
        chain.problem(
            Some(seq),
            "",
            "events up to it were removed, not by the clean-up",
        );
    }
    chain.head = previous
        .as_ref()
        .map(|seal| (seal.seq, base64url(&seal.mac)));
    if let Some((seq, _)) = expect {
        chain.problem(Some(seq), "", "the expected head is not in the chain");
    }
    let unsealed = store
        .read(move |tx| tx.list_unsealed_audit(now - SEALED_BY, PAGE))
        .await?;
    for id in unsealed {
        chain.problem(None, &id, "an event without a seal");
    }
    Ok(chain)
}

impl VerifiedChain {
    fn problem(&mut self, seq: Option<i64>, event_id: &str, what: &'static str) {
        self.problems.push(Problem {
            seq,
            event_id: event_id.to_owned(),
            what,
        });
    }

    /// Checks a seal against the one before it.
    fn link(&mut self, previous: Option<&Seal>, seal: &Seal, secret: &ServerSecrets) {
        self.sealed += 1;
        let (seq, id) = (Some(seal.seq), seal.event_id.as_str());
        let Some(before) = previous else {
            self.first = seal.seq;
            return self.check_first(seal, secret);
        };
        if before.seq + 1 != seal.seq {
            self.problem(seq, id, "seals before it are missing");
        }
        let Some(row) = &seal.row else {
            return self.problem(seq, id, "its event is missing");
        };
        if !secret.accepts_seal(&seal.mac, seal.seq, &before.mac, row) {
            self.problem(seq, id, "the event or its seal was changed");
        }
        if row.name == Name::AuditSwept.as_str() && self.explains_start(row) {
            self.unexplained = None;
        }
    }

    /// Returns whether the event records the clean-up that removed the start of the chain.
    fn explains_start(&self, row: &Row) -> bool {
        let detail: Value = serde_json::from_str(&row.detail).unwrap_or_default();
        self.unexplained
            .as_ref()
            .is_some_and(|(seq, mac)| detail["through"] == *seq && detail["seal"] == **mac)
    }

    /// Checks the first seal: the chain starts at 1, or after a clean-up at a seal without its event.
    fn check_first(&mut self, seal: &Seal, secret: &ServerSecrets) {
        let (seq, id) = (Some(seal.seq), seal.event_id.as_str());
        match &seal.row {
            Some(row) if seal.seq == 1 => {
                if !secret.accepts_seal(&seal.mac, 1, &[], row) {
                    self.problem(seq, id, "the event or its seal was changed");
                }
            }
            Some(_) => self.problem(seq, id, "seals before it are missing"),
            None => self.unexplained = Some((seal.seq, base64url(&seal.mac))),
        }
    }

    fn print(&self, output: Output) {
        let head = self
            .head
            .as_ref()
            .map(|(seq, mac)| format!("{seq}:{mac}"))
            .unwrap_or_default();
        let problems: Vec<Value> = self
            .problems
            .iter()
            .map(|p| json!({ "seq": p.seq, "event_id": p.event_id, "what": p.what }))
            .collect();
        if output == Output::Json {
            println!(
                "{:#}",
                json!({ "sealed": self.sealed, "first": self.first, "head": head, "problems": problems })
            );
            return;
        }
        println!(
            "{} sealed event(s), from {}; head {head}",
            self.sealed, self.first
        );
        if self.problems.is_empty() {
            println!(
                "Every seal holds. Keep the head elsewhere: `audit verify --expect {head}` then shows that nothing was cut off."
            );
            return;
        }
        let rows: Vec<Vec<String>> = self
            .problems
            .iter()
            .take(PRINTED)
            .map(|p| {
                vec![
                    p.seq.map_or_else(String::new, |seq| seq.to_string()),
                    p.event_id.clone(),
                    p.what.to_owned(),
                ]
            })
            .collect();
        table::print(output, &["seq", "event", "finding"], &rows, &Value::Null);
    }
}

async fn tail(store: &Store, lines: i64, follow: bool, output: Output) -> anyhow::Result<()> {
    let rows = store.read(move |tx| tx.last_audit(lines)).await?;
    rows.iter().for_each(|row| print(row, output));
    if !follow {
        return Ok(());
    }
    let mut last = rows.last().map(|row| row.id.clone()).unwrap_or_default();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = last.clone();
        for row in store.read(move |tx| tx.audit_after(&after, PAGE)).await? {
            print(&row, output);
            last.clone_from(&row.id);
        }
    }
}

fn print(row: &Row, output: Output) {
    let detail: Value = serde_json::from_str(&row.detail).unwrap_or_default();
    if output == Output::Json {
        println!(
            "{}",
            json!({
                "id": row.id, "at": row.at.to_string(), "name": row.name, "actor": row.actor,
                "target": row.target, "reason": row.reason, "detail": detail,
            })
        );
        return;
    }
    let reason = row
        .reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(" ({reason})"));
    println!(
        "{}  {}  {} → {}{reason}",
        row.at, row.name, row.actor, row.target
    );
}
