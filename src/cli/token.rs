//! `token introspect`: what a token is and whether it still stands, as the server itself sees it.

use clap::Subcommand;
use portcullis_verifier::{Need, Verifier};
use serde_json::{Value, json};

use super::{Output, block_on, open, read_secret, table};
use crate::app::key_table;
use crate::cli::command::{clock, entropy};
use crate::config::Config;
use crate::db::Store;
use crate::key_manager::Snapshot;
use crate::keys::{KeyView, Keychain, ServerSecrets, Use};
use crate::oauth::introspection;
use crate::time::Timestamp;

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
    /// Read a token, an access token or a refresh token, and say whether it stands and why not. The
    /// token comes from stdin or a prompt, never from the command line.
    Introspect,
}

pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    let Action::Introspect = arguments.action;
    let piped = !std::io::IsTerminal::is_terminal(&std::io::stdin());
    let token = read_secret("Token: ", piped)?;
    let described = describe(token.trim(), config, clock().now())?;
    table::print_one(arguments.format, &described);
    Ok(())
}

fn describe(token: &str, config: &Config, now: Timestamp) -> anyhow::Result<Value> {
    let store = open(config)?;
    let (rows, keychain) = block_on(async {
        let table = key_table(config, &store, &entropy()).await?;
        Ok((table.read(now).await?, table.keychain()))
    })?;
    let secrets = ServerSecrets::open(&rows.secrets, &keychain, now)?;
    if let Some((grant, generation)) = secrets.read_refresh_token(token) {
        let id = grant.clone();
        let found = block_on(async {
            let found = store.read(move |tx| {
                let Some(grant) = tx.find_active_grant(&grant, now)? else {
                    return Ok(None);
                };
                let registration = tx.find_registration(&grant.client_id)?;
                let within = registration
                    .and_then(|known| Some(grant.within(&known.client, &known.resources)?.scope));
                Ok(Some((grant, within)))
            });
            Ok(found.await?)
        })?;
        let Some((grant, within)) = found else {
            return Ok(
                json!({ "active": false, "kind": "refresh_token", "grant_id": id.as_str(),
                "why": "its grant ended, or what it rests on did" }),
            );
        };
        return Ok(match within {
            None => json!({ "active": false, "kind": "refresh_token", "grant_id": id.as_str(),
                "why": "its client is no longer registered for what was granted" }),
            Some(_) if grant.generation != generation => {
                json!({ "active": false, "kind": "refresh_token", "grant_id": id.as_str(),
                    "why": format!("it is generation {generation}, the grant is at {}", grant.generation) })
            }
            Some(scope) => {
                json!({ "active": true, "kind": "refresh_token", "grant_id": id.as_str(),
                "client_id": grant.client_id.as_str(), "sub": grant.user_id.as_str(),
                "scope": scope.to_string(), "offline": grant.offline,
                "ends_at": grant.idle_until.min(grant.expires_at).to_string() })
            }
        });
    }
    access_token(
        token,
        &verifier(config, &rows, &keychain, now)?,
        &store,
        now,
    )
}

/// Reads our own access tokens, whatever their audience, with the keys that stand in these rows.
///
/// # Errors
/// Of the configuration, or when no key can be used.
pub fn verifier(
    config: &Config,
    rows: &Snapshot,
    keychain: &Keychain,
    now: Timestamp,
) -> anyhow::Result<Verifier> {
    let issuer = config.issuer()?;
    let view = KeyView::build(&rows.keys, &rows.blocked, keychain, None, now)?;
    Ok(Verifier::builder(issuer.as_str(), issuer.as_str())
        .any_audience()
        .leeway(config.tokens.clock_leeway.0)
        .keys(view.published(Use::Token).set.clone())
        .build()?)
}

fn access_token(
    token: &str,
    verifier: &Verifier,
    store: &Store,
    now: Timestamp,
) -> anyhow::Result<Value> {
    let claims = match introspection::verify_own(verifier, token, &Need::any(), now) {
        Ok(claims) => claims,
        Err(rejected) => {
            return Ok(json!({ "active": false, "why": rejected.to_string() }));
        }
    };
    let asked = claims.clone();
    let stands = block_on(async {
        let stands = store.read(move |tx| tx.is_token_active(&asked));
        Ok(stands.await?)
    })?;
    let mut told = Value::Object(introspection::access(&claims));
    told["kind"] = "access_token".into();
    told["active"] = stands.into();
    if !stands {
        told["why"] = "it is revoked, or what it rests on has ended".into();
    }
    Ok(told)
}
