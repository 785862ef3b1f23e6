//! `client rotate-secret`: a fresh secret beside the old ones, which end after an overlap.

use serde_json::json;

use super::find;
use crate::audit::{Event, Name};
use crate::cli::{Exit, Output, block_on, open, table};
use crate::config::Config;
use crate::config::Span;
use crate::config::limits::{CLIENT_NAME_CHARS, SECRET_OVERLAP_CAP};
use crate::oauth::client::ClientSecret;
use crate::secret::{Entropy, Secret};
use crate::time::Clock;

#[derive(clap::Args)]
pub struct RotateSecret {
    /// Its client id.
    id: String,
    /// What to call the new secret, such as the place that it is for.
    #[arg(long, default_value = "rotated")]
    label: String,
    /// How long the new secret is good, such as 90d; for ever if absent.
    #[arg(long, value_name = "SPAN")]
    expires_in: Option<Span>,
    /// How long the old secrets go on beside it, at most 7d (`tokens.secret_overlap`).
    #[arg(long, value_name = "SPAN", conflicts_with_all = ["keep", "compromised"])]
    overlap: Option<Span>,
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
        let store = open(config)?;
        let client = find(&store, &self.id)?;
        if !client.is_confidential() {
            let why = format!("`{}` is a public client: it has no secret", client.id);
            return Err(Exit {
                code: 1,
                message: why,
            }
            .into());
        }
        let (entropy, now) = (Entropy::system(), Clock::System.now());
        let secret = Secret::client_secret(&entropy);
        let kept = ClientSecret {
            expires_at: self.expires_in.map(|span| now + span.0),
            ..ClientSecret::keep(&secret, &self.label, &entropy, now)
        };
        let shown = json!({
            "client_id": client.id.as_str(),
            "client_secret": secret.expose(),
            "label": kept.label,
            "expires_at": kept.expires_at.map(|at| at.to_string()),
            "old_secrets_end_at": match (self.keep, self.compromised) {
                (true, _) => None,
                (_, true) => Some(now.to_string()),
                _ => Some((now + overlap).to_string()),
            },
        });
        let (keep, compromised) = (self.keep, self.compromised);
        block_on(async {
            let rotated = store.transaction(move |tx| {
                tx.put_client_secret(&client.id, &kept)?;
                if compromised {
                    tx.expire_client_secrets(&client.id, &kept.id, now)?;
                    tx.cut_off_client(&client.id, "secret compromised", "cli", now)?;
                } else if !keep {
                    tx.expire_client_secrets(&client.id, &kept.id, now + overlap)?;
                }
                tx.put_audit(&Event {
                    at: now,
                    name: Name::ClientSecretCreated,
                    actor: "cli".to_owned(),
                    target: format!("client:{}", client.id),
                    reason: compromised.then(|| "compromised".to_owned()),
                    detail: json!({ "secret": kept.id, "label": kept.label }),
                })
            });
            Ok(rotated.await?)
        })?;
        table::print_one(output, &shown);
        Ok(())
    }
}
