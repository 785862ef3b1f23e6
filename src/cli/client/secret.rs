//! `client rotate-secret`: creates a new secret. The old secrets expire after an overlap.

use serde_json::json;

use super::find;
use crate::admin::clients::{self, NewSecret, OldSecrets};
use crate::cli::command::{context, execute};
use crate::cli::{Exit, Output, open, shown_once, table};
use crate::config::Config;
use crate::config::HumanDuration;
use crate::config::limits::{CLIENT_NAME_CHARS, SECRET_LIFETIME_CAP, SECRET_OVERLAP_CAP};

#[derive(clap::Args)]
pub struct RotateSecret {
    /// The client id.
    id: String,
    /// Label of the new secret, for example where it is used.
    #[arg(long, default_value = "rotated")]
    label: String,
    /// Lifetime of the new secret, such as 90d, at most 3650d. Unlimited if absent.
    #[arg(long, value_name = "DURATION")]
    expires_in: Option<HumanDuration>,
    /// Time that the old secrets stay valid, at most 7d [default: `tokens.secret_overlap`].
    #[arg(long, value_name = "DURATION", conflicts_with_all = ["keep", "compromised"])]
    overlap: Option<HumanDuration>,
    /// Keep the old secrets valid beside the new one.
    #[arg(long, conflicts_with = "compromised")]
    keep: bool,
    /// Revoke the old secrets at once, and all codes, grants and tokens of the client. Use it if an attacker may
    /// know a secret.
    #[arg(long)]
    compromised: bool,
}

impl RotateSecret {
    pub fn run(&self, config: &Config, output: Output) -> anyhow::Result<()> {
        let refused = |message: String| Exit { code: 2, message };
        if self.label.is_empty() || self.label.chars().count() > CLIENT_NAME_CHARS {
            let why = format!("a label must have 1 to {CLIENT_NAME_CHARS} characters");
            return Err(refused(why).into());
        }
        let overlap = self.overlap.unwrap_or(config.tokens.secret_overlap).0;
        if overlap > SECRET_OVERLAP_CAP {
            return Err(refused("old secrets may stay valid for at most 7d".to_owned()).into());
        }
        if self
            .expires_in
            .is_some_and(|lifetime| lifetime.0 > SECRET_LIFETIME_CAP)
        {
            let most = HumanDuration(SECRET_LIFETIME_CAP);
            let why = format!("--expires-in: a secret may be valid for at most {most}");
            return Err(refused(why).into());
        }
        let (store, ctx) = (open(config)?, context());
        let id = find(&store, &self.id)?.id;
        let new = NewSecret {
            label: self.label.clone(),
            expires_at: self.expires_in.map(|lifetime| ctx.now + lifetime.0),
            old: match (self.keep, self.compromised) {
                (true, _) => OldSecrets::Keep,
                (_, true) => OldSecrets::Compromised,
                _ => OldSecrets::ExpireAfter(overlap),
            },
        };
        let (now, client_id, stored) = (ctx.now, id.clone(), new.clone());
        let secret = execute(&store, ctx, move |tx, ctx| {
            clients::rotate_secret(tx, ctx, &client_id, &stored)
        })?;
        let mut shown = json!({
            "client_id": id.as_str(),
            "label": new.label,
            "expires_at": new.expires_at.map(|at| at.to_string()),
            "old_secrets_end_at": match new.old {
                OldSecrets::Keep => None,
                OldSecrets::Compromised => Some(now.to_string()),
                OldSecrets::ExpireAfter(time) => Some((now + time).to_string()),
            },
        });
        match output {
            Output::Table => {
                table::print_one(output, &shown);
                let named = [("Client secret".to_owned(), &secret)];
                println!("{}", shown_once::announce(named, config)?);
            }
            Output::Json => {
                shown["client_secret"] = secret.expose().into();
                shown_once::add_issuer(&mut shown, config)?;
                table::print_one(output, &shown);
            }
        }
        Ok(())
    }
}
