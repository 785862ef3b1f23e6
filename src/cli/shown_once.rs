//! Secrets that a command prints once.

use serde_json::Value;

use crate::config::Config;
use crate::secret::Secret;

/// Adds what an application needs beside its secret: the issuer, and the address of its metadata.
pub fn add_issuer(value: &mut Value, config: &Config) -> anyhow::Result<()> {
    let issuer = config.issuer()?;
    value["issuer"] = issuer.as_str().into();
    value["discovery"] = issuer.url(DISCOVERY).into();
    Ok(())
}

/// Returns the lines that announce secrets, each with its name.
pub fn announce<'a>(
    secrets: impl IntoIterator<Item = (String, &'a Secret)>,
    config: &Config,
) -> anyhow::Result<String> {
    let issuer = config.issuer()?;
    let mut lines = vec![String::new()];
    for (name, secret) in secrets {
        lines.push(format!("{name}: {}", secret.expose()));
    }
    lines.push("Store it now: it is not shown again.".to_owned());
    lines.push(String::new());
    lines.push(format!("Issuer:     {issuer}"));
    lines.push(format!("Discovery:  {}", issuer.url(DISCOVERY)));
    Ok(lines.join("\n"))
}

const DISCOVERY: &str = "/.well-known/openid-configuration";
