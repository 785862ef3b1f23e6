//! `audit verify` and `audit tail`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Exit, Output, block_on, open, table};
use crate::app::StartError;
use crate::audit::{Chronology, Name, Row};
use crate::cli::command::clock;
use crate::config::Config;
use crate::db::{self, Seal, Store};
use crate::feed::{AuditHead, AuditMark};
use crate::id::{ClientId, UserId};
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

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    let store = open(config)?;
    match &arguments.action {
        Action::Verify { expect } => {
            let expect = expect.as_deref().map(parse_head).transpose()?;
            let (secret, mark) = server_secrets(config, &store)?;
            let (now, marked) = (clock().now(), mark.and_then(|mark| mark.read()));
            let found = block_on(async { Ok(check(&store, &secret, expect, marked, now).await?) })?;
            found.print(output);
            if found.problems.is_empty() {
                return Ok(());
            }
            tracing::error!(
                event = "audit.tampered",
                reason = "verify",
                severity = "critical",
                findings = found.problems.len()
            );
            Err(Exit {
                code: 1,
                message: format!(
                    "the audit log is not as it was written: {} finding(s)",
                    found.problems.len()
                ),
            }
            .into())
        }
        Action::Tail { lines, follow } => block_on(tail(&store, *lines, *follow, output)),
    }
}

/// Returns the server secrets, and the mark of the audit chain beside the KEK.
fn server_secrets(
    config: &Config,
    store: &Store,
) -> anyhow::Result<(ServerSecrets, Option<AuditMark>)> {
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
    let secrets = ServerSecrets::open(&stored, &keychain, now).map_err(StartError::from)?;
    let mark = stored
        .first()
        .and_then(|first| AuditMark::beside(&config.keys.kek, &first.id));
    Ok((secrets, mark))
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
    /// The head beside the KEK, until it is found in the chain.
    marked: Option<AuditHead>,
    /// Whether the head beside the KEK was compared with the chain.
    has_mark: bool,
    /// The order of the events so far.
    order: Chronology,
    /// The first and last number of the events in a row that are dated before earlier ones.
    backdated: Option<(i64, i64)>,
    problems: Vec<Problem>,
}

/// A finding.
#[derive(Debug)]
struct Problem {
    seq: Option<i64>,
    event_id: String,
    what: String,
}

async fn check(
    store: &Store,
    secret: &ServerSecrets,
    expect: Option<(i64, String)>,
    marked: Option<AuditHead>,
    now: Timestamp,
) -> Result<VerifiedChain, crate::db::Error> {
    let mut chain = VerifiedChain {
        has_mark: marked.is_some(),
        marked,
        ..VerifiedChain::default()
    };
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
    chain.report_backdated();
    chain.head = previous
        .as_ref()
        .map(|seal| (seal.seq, base64url(&seal.mac)));
    chain.report_missing_mark();
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
    fn problem(&mut self, seq: Option<i64>, event_id: &str, what: impl Into<String>) {
        self.problems.push(Problem {
            seq,
            event_id: event_id.to_owned(),
            what: what.into(),
        });
    }

    /// Reports the events that are missing if the chain lacks the head beside the KEK.
    fn report_missing_mark(&mut self) {
        let Some(marked) = self.marked.take() else {
            return;
        };
        // The clean-up removed the marked event; the start of the chain has its own check.
        if self.first > marked.seq {
            return;
        }
        let last = self.head.as_ref().map_or(0, |(seq, _)| *seq);
        let what = match last < marked.seq {
            true => format!(
                "events {} to {} were removed: the head beside the KEK is not in the chain",
                last + 1,
                marked.seq
            ),
            false => format!(
                "events up to {} were replaced: the head beside the KEK is not in the chain",
                marked.seq
            ),
        };
        self.problem(Some(marked.seq), "", what);
    }

    /// Records the order in time of an event whose seal is valid.
    fn follow_time(&mut self, seq: i64, row: &Row) {
        if self.order.is_late(row) {
            let first = self.backdated.map_or(seq, |(first, _)| first);
            self.backdated = Some((first, seq));
        } else {
            self.report_backdated();
        }
    }

    /// Reports the events in a row that are dated before earlier ones, once.
    fn report_backdated(&mut self) {
        if let Some((first, last)) = self.backdated.take() {
            let what = format!(
                "events {first} to {last} are dated more than a minute before events that were sealed earlier"
            );
            self.problem(Some(first), "", what);
        }
    }

    /// Checks a seal against the one before it.
    fn link(&mut self, previous: Option<&Seal>, seal: &Seal, secret: &ServerSecrets) {
        self.sealed += 1;
        let (seq, id) = (Some(seal.seq), seal.event_id.as_str());
        let is_marked =
            |marked: &AuditHead| marked.seq == seal.seq && marked.seal == base64url(&seal.mac);
        if self.marked.as_ref().is_some_and(is_marked) {
            self.marked = None;
        }
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
        // A recovery continues an older copy of the log.
        if row.name == Name::DatabaseRecovered.as_str()
            && self
                .marked
                .as_ref()
                .is_some_and(|marked| row.at > marked.at)
        {
            self.marked = None;
        }
        self.follow_time(seal.seq, row);
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
                self.follow_time(seal.seq, row);
            }
            Some(_) => self.problem(seq, id, "seals before it are missing"),
            None => self.unexplained = Some((seal.seq, base64url(&seal.mac))),
        }
    }

    /// Returns what a valid chain shows, and what it does not.
    fn advice(&self, head: &str) -> String {
        match self.has_mark {
            true => {
                "Every seal is valid, and the chain contains the head beside the KEK.".to_owned()
            }
            false => format!(
                "Every seal is valid. There is no head beside the KEK, so keep this one elsewhere: `audit verify --expect {head}` then shows that nothing was removed from the end."
            ),
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
                json!({
                    "sealed": self.sealed, "first": self.first, "head": head,
                    "compared_with_mark": self.has_mark, "problems": problems,
                })
            );
            return;
        }
        println!(
            "{} sealed event(s), from {}; head {head}",
            self.sealed, self.first
        );
        if self.problems.is_empty() {
            println!("{}", self.advice(&head));
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
                    p.what.clone(),
                ]
            })
            .collect();
        table::print(output, &["seq", "event", "finding"], &rows, &Value::Null);
    }
}

async fn tail(store: &Store, lines: i64, follow: bool, output: Output) -> anyhow::Result<()> {
    let mut names = Names::default();
    let mut rows = store.read(move |tx| tx.last_audit(lines)).await?;
    let mut last = String::new();
    loop {
        for row in &rows {
            print(row, &mut names, store, output).await?;
            last.clone_from(&row.id);
        }
        if !follow {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = last.clone();
        rows = store.read(move |tx| tx.audit_after(&after, PAGE)).await?;
    }
}

/// The names of users and clients, by `user:ID` and `client:ID`. An id alone says little to a reader.
#[derive(Default)]
struct Names(BTreeMap<String, Option<String>>);

impl Names {
    /// Returns the current name of an actor or a target, if it has one.
    async fn find(&mut self, store: &Store, subject: &str) -> Result<Option<String>, db::Error> {
        if let Some(known) = self.0.get(subject) {
            return Ok(known.clone());
        }
        let name = match subject.split_once(':') {
            Some(("user", id)) => {
                let id = UserId::from(id);
                let user = store.read(move |tx| tx.find_user(&id)).await?;
                user.map(|user| user.username.as_str().to_owned())
            }
            Some(("client", id)) => {
                let id = ClientId::from(id);
                let client = store.read(move |tx| tx.find_registered(&id)).await?;
                client.map(|client| client.name)
            }
            _ => None,
        };
        self.0.insert(subject.to_owned(), name.clone());
        Ok(name)
    }
}

async fn print(
    row: &Row,
    names: &mut Names,
    store: &Store,
    output: Output,
) -> Result<(), db::Error> {
    let actor = names.find(store, &row.actor).await?;
    let target = names.find(store, &row.target).await?;
    if output == Output::Json {
        let detail: Value = serde_json::from_str(&row.detail).unwrap_or_default();
        let mut event = json!({
            "id": row.id, "at": row.at.to_string(), "name": row.name, "actor": row.actor,
            "target": row.target, "detail": detail,
        });
        for (member, text) in [
            ("reason", &row.reason),
            ("actor_name", &actor),
            ("target_name", &target),
        ] {
            if let Some(text) = text.as_ref().filter(|text| !text.is_empty()) {
                event[member] = text.as_str().into();
            }
        }
        println!("{event}");
        return Ok(());
    }
    let named = |id: &str, name: Option<String>| match name {
        Some(name) => format!("{id} ({})", table::printable(&name)),
        None => table::printable(id),
    };
    let reason = row.reason.as_ref().filter(|reason| !reason.is_empty());
    let reason = reason.map_or_else(String::new, |reason| {
        format!(", because: {}", table::printable(reason))
    });
    println!(
        "{}  {}  {} → {}{reason}",
        row.at,
        row.name,
        named(&row.actor, actor),
        named(&row.target, target)
    );
    Ok(())
}
