//! `healthcheck`: queries the management listener of this configuration, for images without curl.

use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::request::explain;
use super::{Exit, Output, block_on};
use crate::config::{Address, Config, Listen};

/// Maximum time of the request.
const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
pub struct Arguments {
    /// Check only whether the process responds, not whether it is ready.
    #[arg(long)]
    live: bool,
}

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    let path = if arguments.live { "/livez" } else { "/readyz" };
    let failed = |message: String| Exit { code: 1, message };
    let (status, body) = block_on(request(&config.listen, path)).map_err(|error| {
        failed(format!(
            "the server does not respond on {} (`listen.management`): {}",
            config.listen.management,
            match error.downcast_ref() {
                Some(error) => explain(error),
                None => format!("{error:#}"),
            }
        ))
    })?;
    let checks: Value = serde_json::from_str(&body).unwrap_or_default();
    let view = json!({ "path": path, "status": status, "body": checks });
    output.print(&view, body.trim_end());
    if status == 200 {
        return Ok(());
    }
    Err(failed(format!("{path} has the status {status}")).into())
}

async fn request(listen: &Listen, path: &str) -> anyhow::Result<(u16, String)> {
    let builder = reqwest::Client::builder().timeout(TIMEOUT).no_proxy();
    let (builder, authority) = match &listen.management {
        Address::Unix(socket) => (
            builder.unix_socket(socket.as_path()),
            "localhost".to_owned(),
        ),
        Address::Tcp { host, port } => (builder, format!("{}:{port}", reachable(host))),
    };
    let (builder, scheme) = match listen.management_tls.files() {
        // The certificate is not for this address. The request contains no secret, and only the status of the
        // response is used.
        Some(_) => (builder.tls_danger_accept_invalid_certs(true), "https"),
        None => (builder.tls_certs_only([]), "http"),
    };
    let client = builder.build().context("cannot create the HTTP client")?;
    let response = client
        .get(format!("{scheme}://{authority}{path}"))
        .send()
        .await?;
    let status = response.status().as_u16();
    Ok((status, response.text().await?))
}

/// Returns the loopback address of a listener that is bound to all addresses.
fn reachable(host: &str) -> &str {
    match host {
        "0.0.0.0" => "127.0.0.1",
        "[::]" => "[::1]",
        host => host,
    }
}
