//! `revoke KIND:VALUE`: revokes a token, a session, a grant, or everything of a user or client, and optionally
//! waits until every connected service has applied it.

use portcullis_verifier::Need;
use serde_json::json;

use super::command::{context, entropy, execute, read};
use super::propagation::{Wait, propagate};
use super::{Exit, Output, block_on, open, read_secret};
use crate::accounts::user::Username;
use crate::admin::revocations::{Revocation, Revoked, revoke};
use crate::app::key_table;
use crate::config::Config;
use crate::config::limits::RESOURCE_ACCESS_CAP;
use crate::db::{Store, Transaction};
use crate::id::{ClientId, GrantId, Sid, UserId};
use crate::time::Timestamp;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  portcullis revoke user:alice
  portcullis revoke user:alice --client shop --reason \"device lost\" --wait
  portcullis revoke token:-")]
pub struct Arguments {
    /// What to revoke: token:JTI, token:- (reads the token from stdin), session:SID, grant:ID, user:SUB, user:NAME or
    /// client:ID. For a signing key, use `keys revoke`.
    #[arg(value_name = "KIND:VALUE", value_parser = target)]
    target: Target,
    /// With user: revoke only the grants and tokens of this application.
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// Reason, for the audit log.
    #[arg(long, default_value = "revoked")]
    reason: String,
    #[command(flatten)]
    wait: Wait,
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
        return Err("expected KIND:VALUE, such as user:alice".to_owned());
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
            "unknown kind `{other}`; expected token, session, grant, user or client"
        )),
    }
}

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    if arguments.client.is_some() && !matches!(arguments.target, Target::User(_)) {
        return Err(usage("--client requires user:…"));
    }
    if arguments.reason.trim().is_empty() {
        return Err(usage("--reason is empty"));
    }
    if let Target::Token(jti) = &arguments.target
        && jti != "-"
        && !is_identifier(jti)
    {
        // The value is not printed because it may be a token.
        return Err(usage(
            "`token:` expects a `jti`; to revoke a complete token use `token:-` and pass it on stdin",
        ));
    }
    let store = open(config)?;
    let ctx = context().with_reason(&*arguments.reason);
    let client = arguments.client.clone().map(ClientId::from);
    let revocation = resolve(&arguments.target, client, config, &store, ctx.now)?;
    let name = revocation.target().to_string();
    match execute(&store, ctx, move |tx, ctx| revoke(tx, ctx, &revocation))? {
        Revoked::Unknown => Err(failed(format!(
            "{name} is unknown; check that this is the configuration of the server"
        ))),
        Revoked::Before => {
            let text = format!("{name} was already revoked");
            output.print(&json!({ "revoked": false }), text);
            Ok(())
        }
        Revoked::Now => propagate(&name, config, &store, &arguments.wait)?.report(output),
    }
}

/// Returns whether a text has the form of an access token's `jti`, which is a UUID.
fn is_identifier(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

fn resolve(
    target: &Target,
    client: Option<ClientId>,
    config: &Config,
    store: &Store,
    now: Timestamp,
) -> anyhow::Result<Revocation> {
    Ok(match target {
        Target::Token(jti) if jti == "-" => {
            let is_piped = !std::io::IsTerminal::is_terminal(&std::io::stdin());
            let token = read_secret("Token: ", is_piped)?;
            let (jti, expires_at) = read_token(token.trim(), config, store, now)?;
            Revocation::Token(jti, expires_at)
        }
        // The expiry of the token is not stored. No token has a longer lifetime than this.
        Target::Token(jti) => Revocation::Token(jti.clone(), now + RESOURCE_ACCESS_CAP),
        Target::Session(sid) => Revocation::Session(Sid::from(sid.clone())),
        Target::Grant(id) => Revocation::Grant(GrantId::from(id.clone())),
        Target::Client(id) => Revocation::Client(ClientId::from(id.clone())),
        Target::User(text) => {
            let (id, name) = (UserId::from(text.clone()), Username::parse(text));
            let find = move |tx: &mut Transaction<'_>| {
                if let Some(user) = tx.find_user(&id)? {
                    return Ok(Some(user.id));
                }
                let named = name.map(|name| tx.find_credentials(&name)).transpose()?;
                Ok(named.flatten().map(|(user, _)| user.id))
            };
            let user = read(store, find)?;
            let user = user.ok_or_else(|| failed(format!("there is no user {text}")))?;
            Revocation::User(user, client)
        }
    })
}

/// Returns the `jti` and `exp` of a valid token of this server.
fn read_token(
    token: &str,
    config: &Config,
    store: &Store,
    now: Timestamp,
) -> anyhow::Result<(String, Timestamp)> {
    let (rows, keychain) = block_on(async {
        let table = key_table(config, store, &entropy()).await?;
        Ok((table.read(now).await?, table.keychain()))
    })?;
    let claims = super::token::verifier(config, &rows, &keychain, now)?
        .verify_at(token, &Need::any(), now.secs())
        .map_err(|rejected| failed(format!("the token is already invalid: {rejected}")))?;
    Ok((claims.jti, Timestamp::from_secs(claims.exp)))
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
