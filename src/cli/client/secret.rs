//! `client rotate-secret`: a fresh secret beside the old ones, which end after an overlap.

use serde_json::json;

use super::find;
use crate::admin::clients::{self, NewSecret, OldSecrets};
use crate::cli::command::{context, execute};
use crate::cli::{Exit, Output, open, table};
use crate::config::Config;
use crate::config::HumanDuration;
use crate::config::limits::{CLIENT_NAME_CHARS, SECRET_OVERLAP_CAP};

#[derive(clap::Args)]
pub struct RotateSecret {
    /// Its client id.
    id: String,
    /// What to call the new secret, such as the place that it is for.
    #[arg(long, default_value = "rotated")]
    label: String,
    /// How long the new secret is good, such as 90d; for ever if absent.
    #[arg(long, value_name = "SPAN")]
    expires_in: Option<HumanDuration>,
    /// How long the old secrets go on beside it, at most 7d (`tokens.secret_overlap`).
    #[arg(long, value_name = "SPAN", conflicts_with_all = ["keep", "compromised"])]
    overlap: Option<HumanDuration>,
    /// Let the old secrets be: several live side by side.
    #[arg(long, conflicts_with = "compromised")]
    keep: bool,
    /// Somebody else knows an old secret: they end at once, and so does every code, grant and token
    /// of the client.
    #[arg(long)]
    compromised: bool,
}

impl RotateSecret {
    pub fn run(&self, config: &Config, output: Output) -> anyhow::Result<()> {
        let refused = |message: String| Exit { code: 2, message };
        if self.label.is_empty() || self.label.chars().count() > CLIENT_NAME_CHARS {
            let why = format!("a label has 1 to {CLIENT_NAME_CHARS} characters");
            return Err(refused(why).into());
        }
        let overlap = self.overlap.unwrap_or(config.tokens.secret_overlap).0;
        if overlap > SECRET_OVERLAP_CAP {
            return Err(refused("old secrets go on for at most 7d".to_owned()).into());
        }
        let (store, ctx) = (open(config)?, context());
        let id = find(&store, &self.id)?.id;
        let new = NewSecret {
            label: self.label.clone(),
            expires_at: self.expires_in.map(|span| ctx.now + span.0),
            old: match (self.keep, self.compromised) {
                (true, _) => OldSecrets::Keep,
                (_, true) => OldSecrets::Compromised,
                _ => OldSecrets::ExpireAfter(overlap),
            },
        };
        let (now, wanted, stored) = (ctx.now, id.clone(), new.clone());
        let secret = execute(&store, ctx, move |tx, ctx| {
            clients::rotate_secret(tx, ctx, &wanted, &stored)
        })?;
        let shown = json!({
            "client_id": id.as_str(),
            "client_secret": secret.expose(),
            "label": new.label,
            "expires_at": new.expires_at.map(|at| at.to_string()),
            "old_secrets_end_at": match new.old {
                OldSecrets::Keep => None,
                OldSecrets::Compromised => Some(now.to_string()),
                OldSecrets::ExpireAfter(time) => Some((now + time).to_string()),
            },
        });
        table::print_one(output, &shown);
        Ok(())
    }
}
