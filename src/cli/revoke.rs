//! `revoke KIND:VALUE`: ends a token, session, grant, user's or client's everything, and if asked waits
//! until every connected service has applied it.

use std::time::Duration;

use portcullis_verifier::{Need, Verifier};
use serde_json::{Value, json};

use super::feed::is_connected;
use super::{Exit, Output, block_on, open, read_secret};
use crate::accounts::user::Username;
use crate::app::{key_table, number};
use crate::audit::{Event, Name};
use crate::config::limits::RESOURCE_ACCESS_CAP;
use crate::config::{Config, Span};
use crate::db::{Acknowledged, Error, Store, Transaction};
use crate::id::{ClientId, GrantId, Sid, UserId};
use crate::keys::{KeyView, Use};
use crate::secret::Entropy;
use crate::time::{Clock, Timestamp};

/// Between two looks at what was acknowledged; nodes write that down once a second.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How far clocks may be apart before a verifier stops trusting what it hears.
const CLOCK_ERROR: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub struct Arguments {
    /// token:JTI, token:- (the JWT comes from stdin), session:SID, grant:ID, user:SUB or user:NAME,
    /// client:ID. For a signing key use `keys revoke`.
    #[arg(value_name = "KIND:VALUE", value_parser = target)]
    target: Target,
    /// With user: only what this application holds of the person.
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// Why; it stands in the audit log.
    #[arg(long, default_value = "revoked")]
    reason: String,
    #[command(flatten)]
    wait: Wait,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Output,
}

/// Whether, and for whom, to wait.
#[derive(clap::Args, Clone)]
pub struct Wait {
    /// Wait until every connected instance has applied it; exit code 75 when that takes longer.
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "10s")]
    wait: Option<Span>,
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

#[derive(Clone, Debug)]
enum Target {
    Token(String),
    Session(String),
    Grant(String),
    User(String),
    Client(String),
}

fn target(text: &str) -> Result<Target, String> {
    let (kind, value) = text.split_once(':').unwrap_or((text, ""));
    if value.is_empty() {
        return Err("write KIND:VALUE, such as user:alice".to_owned());
    }
    let value = value.to_owned();
    match kind {
        "token" => Ok(Target::Token(value)),
        "session" => Ok(Target::Session(value)),
        "grant" => Ok(Target::Grant(value)),
        "user" => Ok(Target::User(value)),
        "client" => Ok(Target::Client(value)),
        "key" => Err("signing keys are revoked with `keys revoke KID --reason …`".to_owned()),
        other => Err(format!(
            "`{other}` cannot be revoked; token, session, grant, user and client can"
        )),
    }
}

pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    if arguments.client.is_some() && !matches!(arguments.target, Target::User(_)) {
        return Err(usage("--client goes with user:…"));
    }
    if arguments.reason.trim().is_empty() {
        return Err(usage("--reason is empty"));
    }
    let store = open(config)?;
    let act = Act {
        now: Clock::System.now(),
        reason: arguments.reason.clone(),
        client: arguments.client.clone().map(ClientId::from),
    };
    let what = resolve(&arguments.target, config, &store, act.now)?;
    let name = what.to_string();
    let ended = block_on(async { Ok(store.transaction(move |tx| what.end(tx, &act)).await?) })?;
    match ended {
        Ended::Nothing => Err(failed(format!("{name} is unknown"))),
        Ended::Before => {
            say(
                arguments.format,
                &json!({ "revoked": false }),
                &format!("{name} had ended before"),
            );
            Ok(())
        }
        Ended::Now => propagate(&name, &store, &arguments.wait)?.say(arguments.format),
    }
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Now,
    Before,
    Nothing,
}

struct Act {
    now: Timestamp,
    reason: String,
    client: Option<ClientId>,
}

/// What is to end, found.
enum Found {
    Token(String, Timestamp),
    Session(Sid),
    Grant(GrantId),
    User(UserId),
    Client(ClientId),
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token(jti, _) => write!(f, "token:{jti}"),
            Self::Session(sid) => write!(f, "session:{sid}"),
            Self::Grant(id) => write!(f, "grant:{id}"),
            Self::User(id) => write!(f, "user:{id}"),
            Self::Client(id) => write!(f, "client:{id}"),
        }
    }
}

fn resolve(
    target: &Target,
    config: &Config,
    store: &Store,
    now: Timestamp,
) -> anyhow::Result<Found> {
    Ok(match target {
        Target::Token(jti) if jti == "-" => {
            let piped = !std::io::IsTerminal::is_terminal(&std::io::stdin());
            let token = read_secret("Token: ", piped)?;
            let (jti, expires_at) = read_token(token.trim(), config, store, now)?;
            Found::Token(jti, expires_at)
        }
        // Nobody has written down when it expires; no token lives longer than this.
        Target::Token(jti) => Found::Token(jti.clone(), now + RESOURCE_ACCESS_CAP),
        Target::Session(sid) => Found::Session(Sid::from(sid.clone())),
        Target::Grant(id) => Found::Grant(GrantId::from(id.clone())),
        Target::Client(id) => Found::Client(ClientId::from(id.clone())),
        Target::User(text) => {
            let (id, name) = (UserId::from(text.clone()), Username::parse(text));
            let find = move |tx: &mut Transaction<'_>| {
                if let Some(user) = tx.find_user(&id)? {
                    return Ok(Some(user.id));
                }
                let named = name.map(|name| tx.find_credentials(&name)).transpose()?;
                Ok(named.flatten().map(|(user, _)| user.id))
            };
            let found = block_on(async { Ok(store.read(find).await?) })?;
            let found = found.ok_or_else(|| failed(format!("there is no user {text}")))?;
            Found::User(found)
        }
    })
}

/// The `jti` and `exp` of a token of ours that has not expired.
fn read_token(
    token: &str,
    config: &Config,
    store: &Store,
    now: Timestamp,
) -> anyhow::Result<(String, Timestamp)> {
    let issuer = config.issuer()?;
    let (rows, keychain) = block_on(async {
        let table = key_table(config, store, &Entropy::system()).await?;
        Ok((table.read(now).await?, table.keychain()))
    })?;
    let view = KeyView::build(&rows.keys, &rows.blocked, &keychain, None, now)?;
    let verifier = Verifier::builder(issuer.as_str(), issuer.as_str())
        .any_audience()
        .leeway(config.tokens.clock_leeway.0)
        .keys(view.published(Use::Token).set.clone())
        .build()?;
    let claims = verifier
        .verify_at(token, &Need::any(), now.secs())
        .map_err(|rejected| failed(format!("this token is no good anyway: {rejected}")))?;
    Ok((claims.jti, Timestamp::from_secs(claims.exp)))
}

impl Found {
    fn end(&self, tx: &mut Transaction<'_>, act: &Act) -> Result<Ended, Error> {
        let (reason, now) = (act.reason.as_str(), act.now);
        let changed = match self {
            Self::Token(jti, expires_at) => {
                tx.end_token(jti, *expires_at, "cli", now)?;
                true
            }
            Self::Session(sid) => tx.end_session(sid, reason, "cli", now)?,
            Self::Grant(id) => tx.end_grant(id, reason, "cli", now)?,
            Self::Client(id) => tx.cut_off_client(id, reason, "cli", now)?,
            Self::User(id) => match &act.client {
                Some(client) => tx.end_grants_of(id, client, reason, "cli", now)? > 0,
                None => {
                    tx.cut_off_user(id, reason, "cli", now)?;
                    true
                }
            },
        };
        if !changed {
            return Ok(match self {
                Self::Client(_) => Ended::Nothing,
                _ => Ended::Before,
            });
        }
        tx.put_audit(&Event {
            at: now,
            name: Name::RevocationDone,
            actor: "cli".to_owned(),
            target: self.to_string(),
            reason: Some(act.reason.clone()),
            detail: json!({ "client": act.client.as_ref().map(ClientId::as_str) }),
        })?;
        Ok(Ended::Now)
    }
}

/// How far what was revoked has come.
pub struct Propagated {
    name: String,
    position: String,
    done: Timestamp,
    /// Without waiting nobody was looked at.
    seen: Option<Seen>,
}

/// Gives the numbers, and waits if asked.
///
/// # Errors
/// Of the database; [`Exit`] with code 75 while it stands as restored, since nothing is numbered then.
pub fn propagate(name: &str, store: &Store, wait: &Wait) -> anyhow::Result<Propagated> {
    block_on(async {
        number(store, Clock::System).await?;
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
        let mut propagated = Propagated {
            name: name.to_owned(),
            position: format!("{}:{}", head.epoch, head.seq),
            done: head.database.unwrap_or_else(|| Clock::System.now()),
            seen: None,
        };
        let Some(span) = wait.wait else {
            return Ok(propagated);
        };
        let begun = Clock::System.uptime();
        loop {
            let at = (head.epoch, head.seq);
            let seen = look(store, wait.require, at, propagated.done).await?;
            if seen.waiting.is_empty() || Clock::System.uptime().since(begun) >= span.0 {
                propagated.seen = Some(seen);
                return Ok(propagated);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
}

impl Propagated {
    /// Says it, and fails with exit code 75 when not everybody has confirmed it.
    fn say(&self, output: Output) -> anyhow::Result<()> {
        say(output, &self.view(), &self.to_string());
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
        write!(f, "{} is {}", self.name, self.position)?;
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
            "\napplied by {} of {all} connected instances, the last after {} ms",
            seen.applied,
            seen.last.as_millis()
        )?;
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
struct Seen {
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
) -> anyhow::Result<Seen> {
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
    Ok(Seen {
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

fn say(output: Output, value: &Value, text: &str) {
    match output {
        Output::Json => println!("{value:#}"),
        Output::Table => println!("{text}"),
    }
}

fn usage(message: &str) -> anyhow::Error {
    Exit {
        code: 2,
        message: message.to_owned(),
    }
    .into()
}

fn failed(message: String) -> anyhow::Error {
    Exit { code: 1, message }.into()
}
