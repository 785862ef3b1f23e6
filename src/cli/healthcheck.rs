//! `healthcheck`: asks the management listener of this configuration, for images without curl.

use std::time::Duration;

use anyhow::Context;

use super::{Exit, block_on};
use crate::config::{Address, Config, Listen};

const PATIENCE: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
pub struct Arguments {
    /// Ask only whether the process answers, not whether it can serve.
    #[arg(long)]
    live: bool,
}

pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    let path = if arguments.live { "/livez" } else { "/readyz" };
    let failed = |message: String| Exit { code: 1, message };
    let (status, said) = block_on(ask(&config.listen, path)).map_err(|error| {
        failed(format!(
            "no answer from {}: {error:#}",
            config.listen.management
        ))
    })?;
    println!("{said}");
    if status == 200 {
        return Ok(());
    }
    Err(failed(format!("{path} says {status}")).into())
}

async fn ask(listen: &Listen, path: &str) -> anyhow::Result<(u16, String)> {
    let builder = reqwest::Client::builder().timeout(PATIENCE).no_proxy();
    let (builder, authority) = match &listen.management {
        Address::Unix(socket) => (
            builder.unix_socket(socket.as_path()),
            "localhost".to_owned(),
        ),
        Address::Tcp { host, port } => (builder, format!("{}:{port}", reachable(host))),
    };
    let (builder, scheme) = match listen.management_tls.files() {
        // Its certificate is for other names than this one. Nothing secret is said here, and nothing is
        // believed but a status.
        Some(_) => (builder.tls_danger_accept_invalid_certs(true), "https"),
        None => (builder.tls_certs_only([]), "http"),
    };
    let client = builder.build().context("the client cannot be made")?;
    let answer = client
        .get(format!("{scheme}://{authority}{path}"))
        .send()
        .await?;
    let status = answer.status().as_u16();
    Ok((status, answer.text().await?))
}

/// Where to reach a listener that is bound to every address.
fn reachable(host: &str) -> &str {
    match host {
        "0.0.0.0" => "127.0.0.1",
        "[::]" => "[::1]",
        host => host,
    }
}
