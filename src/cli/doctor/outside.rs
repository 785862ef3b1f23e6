//! Checks from outside: the issuer as clients reach it, and the listeners of this host.

use std::time::Duration;

use serde_json::Value;

use super::files::validity;
use super::{Finding, Verdict, fail, ok, warn};
use crate::cli::request::explain;
use crate::config::{Address, Config, Issuer};
use crate::http::Validity;
use crate::keys::ring::offered;
use crate::oauth::discovery::Metadata;

/// Maximum time of a request.
const TIMEOUT: Duration = Duration::from_secs(5);

pub async fn check(config: &Config) -> Vec<Finding> {
    let Ok(issuer) = config.issuer() else {
        return Vec::new();
    };
    let listen = &config.listen;
    let runs_here =
        accepts_connections(&listen.public).await || accepts_connections(&listen.management).await;
    let seen = self::issuer(config, &issuer).await;
    match (runs_here, seen) {
        // One finding for one cause.
        (false, Err(_)) => {
            let what = format!(
                "no server is running: no program listens on {} or {}, and {issuer} does not respond. Start it with `portcullis serve`",
                listen.public, listen.management
            );
            vec![fail("server", what)]
        }
        (false, Ok(mut findings)) => {
            let what = format!(
                "no server is running here: no program listens on {} or {}",
                listen.public, listen.management
            );
            findings.push(warn("server", what));
            findings
        }
        (true, seen) => {
            let mut findings = seen.unwrap_or_else(|why| vec![fail("issuer", why)]);
            findings.push(public(&listen.public).await);
            findings.push(management(config).await);
            findings
        }
    }
}

fn client(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, String> {
    builder
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|error| explain(&error))
}

/// Fetches the metadata from the issuer, as clients do.
///
/// # Errors
/// Why there is no response.
async fn issuer(config: &Config, issuer: &Issuer) -> Result<Vec<Finding>, String> {
    let url = issuer.url("/.well-known/openid-configuration");
    let fetched = match client(reqwest::Client::builder().tls_info(true)) {
        Ok(client) => client
            .get(&url)
            .send()
            .await
            .map_err(|error| explain(&error)),
        Err(why) => Err(why),
    };
    let answer = fetched.map_err(|why| {
        format!(
            "clients cannot reach {issuer} from here: {why}. Check that the name resolves to this server, and that the certificate is trusted"
        )
    })?;
    let certificate = answer
        .extensions()
        .get::<reqwest::tls::TlsInfo>()
        .and_then(|info| Validity::of(info.peer_certificate()?))
        .map(|found| validity("issuer TLS", &format!("the certificate of {issuer}"), found));
    let proxy = ["via", "server"]
        .iter()
        .find_map(|name| answer.headers().get(*name))
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let status = answer.status().as_u16();
    let location = answer.headers().get("location").cloned();
    let document: Option<Value> = answer.json().await.ok();
    let metadata = match (status, document) {
        (200, Some(document)) => compare(config, issuer, &document),
        (200, None) => fail(
            "issuer",
            format!("{url} does not return JSON: another program responds there"),
        ),
        (421, _) => fail(
            "issuer",
            format!(
                "{url} returns 421: the reverse proxy must pass on the host name (`Host: {}`)",
                issuer.authority()
            ),
        ),
        (300..=399, _) => fail(
            "issuer",
            format!(
                "{url} redirects to {}: set `issuer` to the final URL",
                location
                    .as_ref()
                    .map_or("nowhere", |to| to.to_str().unwrap_or("?"))
            ),
        ),
        (status, _) => fail("issuer", format!("{url} returns {status}")),
    };
    let metadata = match metadata.verdict {
        Verdict::Fail => explain_path_prefix(config, issuer, metadata).await,
        _ => metadata,
    };
    let mut findings = vec![metadata];
    findings.extend(certificate);
    if let Some(proxy) = proxy.filter(|_| config.http.trusted_proxies.is_empty()) {
        findings.push(warn(
            "proxy",
            format!("`{proxy}` responds for the issuer, and `http.trusted_proxies` is empty: all users share its address and one limit. Add the addresses that it connects from"),
        ));
    }
    Ok(findings)
}

/// Adds the probable cause if the server on this host publishes its metadata, but the issuer's address does not lead to
/// it: a proxy serves it below a path, or does not serve it.
async fn explain_path_prefix(config: &Config, issuer: &Issuer, finding: Finding) -> Finding {
    match metadata_of_node(config, issuer).await {
        Some(document) if document["issuer"] == issuer.as_str() => fail(
            "issuer",
            format!(
                "{}. The server on {} publishes its metadata: the proxy must pass {issuer}/ on to it without a path prefix, because an issuer has no path (docs/tls.md)",
                finding.what, config.listen.public
            ),
        ),
        _ => finding,
    }
}

/// Fetches the metadata from the public listener of this host, past any proxy.
async fn metadata_of_node(config: &Config, issuer: &Issuer) -> Option<Value> {
    let scheme = match config.listen.tls.files() {
        Some(_) => "https",
        None => "http",
    };
    let address = reachable(&config.listen.public);
    if address.starts_with("unix:") {
        return None;
    }
    let client = client(reqwest::Client::builder().tls_danger_accept_invalid_certs(true)).ok()?;
    let request = client
        .get(format!(
            "{scheme}://{address}/.well-known/openid-configuration"
        ))
        .header("Host", issuer.authority().to_string());
    request.send().await.ok()?.json().await.ok()
}

/// Compares published metadata with that of this configuration.
fn compare(config: &Config, issuer: &Issuer, published: &Value) -> Finding {
    let expected =
        serde_json::to_value(Metadata::of(issuer, &offered(&config.keys))).unwrap_or_default();
    if published["issuer"] != expected["issuer"] {
        let other = published["issuer"].as_str().unwrap_or("(none)");
        return fail(
            "issuer",
            format!(
                "a server with the issuer {other} responds at {issuer}: `issuer` must be the same on all nodes"
            ),
        );
    }
    let members = expected.as_object().into_iter().flatten();
    let other: Vec<&str> = members
        .filter(|(name, value)| published[name.as_str()] != **value)
        .map(|(name, _)| name.as_str())
        .collect();
    match other.is_empty() {
        true => ok(
            "issuer",
            format!("{issuer} is reachable, its metadata is that of this configuration"),
        ),
        false => warn(
            "issuer",
            format!(
                "{issuer} publishes values that differ from those of this version: {}. Check whether another version is running or a cache returns old metadata",
                abbreviate(&other)
            ),
        ),
    }
}

/// Joins names, at most three of them.
fn abbreviate(names: &[&str]) -> String {
    let shown = names.iter().take(3).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0..=3 => shown,
        all => format!("{shown} and {} more", all - 3),
    }
}

/// Returns the address to connect to: loopback for a listener that is bound to all addresses.
fn reachable(address: &Address) -> String {
    let text = address.to_string();
    let bound = [("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")];
    bound
        .iter()
        .find_map(|(every, loopback)| Some(format!("{loopback}{}", text.strip_prefix(every)?)))
        .unwrap_or(text)
}

/// Returns whether a program accepts connections.
async fn accepts_connections(address: &Address) -> bool {
    let target = reachable(address);
    match target.strip_prefix("unix:") {
        Some(path) => std::os::unix::net::UnixStream::connect(path).is_ok(),
        None => {
            let connecting = tokio::net::TcpStream::connect(&target);
            matches!(tokio::time::timeout(TIMEOUT, connecting).await, Ok(Ok(_)))
        }
    }
}

async fn public(address: &Address) -> Finding {
    match accepts_connections(address).await {
        true => ok("listen.public", format!("a program listens on {address}")),
        false => warn(
            "listen.public",
            format!("no program listens on {address}: no server is running here"),
        ),
    }
}

/// Queries readiness, as load balancers do.
async fn management(config: &Config) -> Finding {
    let check = "listen.management";
    let address = &config.listen.management;
    if reachable(address).starts_with("unix:") {
        return match accepts_connections(address).await {
            true => ok(check, format!("a program listens on {address}")),
            false => warn(
                check,
                format!("no program listens on {address}: no server is running here"),
            ),
        };
    }
    let scheme = match config.listen.management_tls.files() {
        Some(_) => "https",
        None => "http",
    };
    let url = format!("{scheme}://{}/readyz", reachable(address));
    // The request goes to this host, by an address that no certificate names.
    let fetched = match client(reqwest::Client::builder().tls_danger_accept_invalid_certs(true)) {
        Ok(client) => client
            .get(&url)
            .send()
            .await
            .map_err(|error| explain(&error)),
        Err(why) => Err(why),
    };
    let answer = match fetched {
        Ok(answer) => answer,
        Err(_) => {
            let what = format!("no response on {address}: no server is running here");
            return warn(check, what);
        }
    };
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap_or_default();
    if status == 200 {
        return ok(check, format!("the server on {address} is ready"));
    }
    let checks = body["checks"].as_object().into_iter().flatten();
    let failed: Vec<&str> = checks
        .filter(|(_, word)| *word != "ok")
        .map(|(name, _)| name.as_str())
        .collect();
    fail(
        check,
        format!(
            "the server on {address} is not ready ({status}): {}; see its log",
            failed.join(", ")
        ),
    )
}
