//! What others see: the issuer as clients reach it, and the listeners of this host.

use std::time::Duration;

use serde_json::Value;

use super::files::expiry;
use super::{Finding, fail, ok, warn};
use crate::config::{Address, Config, Issuer};
use crate::http::expiry_of;
use crate::keys::ring::offered;
use crate::oauth::discovery::Metadata;

const PATIENCE: Duration = Duration::from_secs(5);

pub async fn check(config: &Config) -> Vec<Finding> {
    let Ok(issuer) = config.issuer() else {
        return Vec::new();
    };
    let mut findings = self::issuer(config, &issuer).await;
    findings.push(public(&config.listen.public).await);
    findings.push(management(config).await);
    findings
}

fn client(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, String> {
    builder
        .timeout(PATIENCE)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|error| told(&error))
}

/// An error with everything that stands below it.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        text = format!("{text}: {source}");
        below = source.source();
    }
    text
}

/// The metadata as every client fetches it.
async fn issuer(config: &Config, issuer: &Issuer) -> Vec<Finding> {
    let url = issuer.url("/.well-known/openid-configuration");
    let fetched = match client(reqwest::Client::builder().tls_info(true)) {
        Ok(client) => client.get(&url).send().await.map_err(|error| told(&error)),
        Err(why) => Err(why),
    };
    let answer = match fetched {
        Ok(answer) => answer,
        Err(why) => {
            let what = format!(
                "{why}. Clients cannot reach {issuer} from here: is the server running, does the name lead here, is the certificate trusted?"
            );
            return vec![fail("issuer", what)];
        }
    };
    let certificate = answer
        .extensions()
        .get::<reqwest::tls::TlsInfo>()
        .and_then(|info| expiry_of(info.peer_certificate()?))
        .map(|at| expiry("issuer TLS", &format!("the certificate of {issuer}"), at));
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
            format!("{url} gives no JSON: something else than portcullis answers there"),
        ),
        (421, _) => fail(
            "issuer",
            format!(
                "{url} gives 421: the proxy in front must pass the host name on (`Host: {}`)",
                issuer.authority()
            ),
        ),
        (300..=399, _) => fail(
            "issuer",
            format!(
                "{url} redirects to {}: set `issuer` to where clients end",
                location
                    .as_ref()
                    .map_or("nowhere", |to| to.to_str().unwrap_or("?"))
            ),
        ),
        (status, _) => fail("issuer", format!("{url} gives {status}")),
    };
    let mut findings = vec![metadata];
    findings.extend(certificate);
    if let Some(proxy) = proxy.filter(|_| config.http.trusted_proxies.is_empty()) {
        findings.push(warn(
            "proxy",
            format!("`{proxy}` answers for the issuer, and `http.trusted_proxies` is empty: all people share its address and their limits. Name the addresses that it connects from"),
        ));
    }
    findings
}

/// Whether it is what this configuration publishes.
fn compare(config: &Config, issuer: &Issuer, seen: &Value) -> Finding {
    let wanted =
        serde_json::to_value(Metadata::of(issuer, &offered(&config.keys))).unwrap_or_default();
    if seen["issuer"] != wanted["issuer"] {
        let other = seen["issuer"].as_str().unwrap_or("nobody");
        return fail(
            "issuer",
            format!(
                "a server that calls itself {other} answers at {issuer}: `issuer` must be the same in all nodes"
            ),
        );
    }
    let members = wanted.as_object().into_iter().flatten();
    let other: Vec<&str> = members
        .filter(|(name, value)| seen[name.as_str()] != **value)
        .map(|(name, _)| name.as_str())
        .collect();
    match other.is_empty() {
        true => ok(
            "issuer",
            format!("{issuer} is reached, its metadata is ours"),
        ),
        false => warn(
            "issuer",
            format!(
                "{issuer} publishes other values than this version does: {}. Does another version run, or does a cache stand in front?",
                few(&other)
            ),
        ),
    }
}

/// The first of many names.
fn few(names: &[&str]) -> String {
    let shown = names.iter().take(3).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0..=3 => shown,
        all => format!("{shown} and {} more", all - 3),
    }
}

/// What to connect to: who listens on every address answers on loopback.
fn reachable(address: &Address) -> String {
    let text = address.to_string();
    let bound = [("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")];
    bound
        .iter()
        .find_map(|(every, loopback)| Some(format!("{loopback}{}", text.strip_prefix(every)?)))
        .unwrap_or(text)
}

/// Whether somebody takes a connection.
async fn listens(address: &Address) -> bool {
    let target = reachable(address);
    match target.strip_prefix("unix:") {
        Some(path) => std::os::unix::net::UnixStream::connect(path).is_ok(),
        None => {
            let connecting = tokio::net::TcpStream::connect(&target);
            matches!(tokio::time::timeout(PATIENCE, connecting).await, Ok(Ok(_)))
        }
    }
}

async fn public(address: &Address) -> Finding {
    match listens(address).await {
        true => ok("listen.public", format!("somebody listens on {address}")),
        false => warn(
            "listen.public",
            format!("nobody listens on {address}: no server runs here"),
        ),
    }
}

/// Readiness, as load balancers ask for it.
async fn management(config: &Config) -> Finding {
    let check = "listen.management";
    let address = &config.listen.management;
    if reachable(address).starts_with("unix:") {
        return match listens(address).await {
            true => ok(check, format!("somebody listens on {address}")),
            false => warn(
                check,
                format!("nobody listens on {address}: no server runs here"),
            ),
        };
    }
    let scheme = match config.listen.management_tls.files() {
        Some(_) => "https",
        None => "http",
    };
    let url = format!("{scheme}://{}/readyz", reachable(address));
    // It is ourselves that are asked, by an address that no certificate names.
    let fetched = match client(reqwest::Client::builder().tls_danger_accept_invalid_certs(true)) {
        Ok(client) => client.get(&url).send().await.map_err(|error| told(&error)),
        Err(why) => Err(why),
    };
    let answer = match fetched {
        Ok(answer) => answer,
        Err(_) => {
            let what = format!("nobody answers on {address}: no server runs here");
            return warn(check, what);
        }
    };
    let status = answer.status().as_u16();
    let told: Value = answer.json().await.unwrap_or_default();
    if status == 200 {
        return ok(check, format!("the server on {address} is ready"));
    }
    let checks = told["checks"].as_object().into_iter().flatten();
    let failed: Vec<&str> = checks
        .filter(|(_, word)| *word != "ok")
        .map(|(name, _)| name.as_str())
        .collect();
    fail(
        check,
        format!(
            "the server on {address} is not ready ({status}): {}; look at its log",
            failed.join(", ")
        ),
    )
}
