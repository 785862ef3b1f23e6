//! `token introspect`: shows what a token is and whether it is active, by the rules of the server.

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
}

#[derive(Subcommand)]
enum Action {
    /// Show whether an access token or a refresh token is active, and if not, why. Reads the token from stdin or a
    /// prompt, because arguments are visible to other users.
    Introspect,
}

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    let Action::Introspect = arguments.action;
    let is_piped = !std::io::IsTerminal::is_terminal(&std::io::stdin());
    let token = read_secret("Token: ", is_piped)?;
    let described = describe(token.trim(), config, clock().now())?;
    table::print_one(output, &described);
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
        let grant = block_on(async {
            let read = store.read(move |tx| {
                let Some(grant) = tx.find_active_grant(&grant, now)? else {
                    return Ok(None);
                };
                let registration = tx.find_registration(&grant.client_id)?;
                let allowed = registration.and_then(|cached| {
                    Some(
                        grant
                            .within(&cached.client.scopes, &cached.resources)?
                            .scope,
                    )
                });
                Ok(Some((grant, allowed)))
            });
            Ok(read.await?)
        })?;
        let Some((grant, allowed)) = grant else {
            return Ok(
                json!({ "active": false, "kind": "refresh_token", "grant_id": id.as_str(),
                "why": "its grant, or the session that it depends on, is revoked or expired" }),
            );
        };
        return Ok(match allowed {
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

/// Returns a verifier of this server's access tokens for any audience, with the keys of a snapshot.
///
/// # Errors
/// An invalid configuration, or no usable key.
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
    let presented = claims.clone();
    let is_active = block_on(async {
        let read = store.read(move |tx| tx.is_token_active(&presented));
        Ok(read.await?)
    })?;
    let mut described = Value::Object(introspection::access(&claims));
    described["kind"] = "access_token".into();
    described["active"] = is_active.into();
    if !is_active {
        described["why"] =
            "it is revoked, or its grant, session or client is no longer active".into();
    }
    Ok(described)
}
