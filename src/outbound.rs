//! The HTTP client for requests to URLs that clients or administrators supply: client keys, sector
//! documents, back-channel logout, discovery of external issuers.
//!
//! It protects the server's own network from such URLs (server-side request forgery). By default it
//! connects to public addresses on port 443 over https only. The address is checked when the connection
//! is opened, so a name that resolves differently the second time gains nothing. It follows no redirects
//! and uses no proxy from the environment.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::HeaderMap;
use reqwest::{Certificate, Client, RequestBuilder, redirect};
use tokio::sync::Semaphore;
use url::{Host, Url};

use crate::config::{self, ConfigError, Destination};

const HTTPS_PORT: u16 = 443;

/// Who supplied a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlSource {
    /// An administrator registered it. [`Rules::allow`] and [`Rules::extra_ca`] apply.
    Administrator,
    /// It comes from dynamic registration or a metadata document. Only public addresses are allowed.
    Untrusted,
}

/// What the operator permits in addition to https on port 443 of public addresses, for URLs that an
/// administrator registered.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Additional destinations.
    pub allow: Vec<Destination>,
    /// Additional certificate authorities.
    pub extra_ca: Vec<Certificate>,
    /// Whether the destinations in `allow` may be reached over plain http.
    pub plain_http: bool,
}

impl Rules {
    /// Returns the rules of a configuration. `plain_http` as in the field.
    ///
    /// # Errors
    /// [`ConfigError`]: the file of certificate authorities cannot be read.
    pub fn new(config: &config::Outbound, plain_http: bool) -> Result<Self, ConfigError> {
        let extra_ca = match config.certificate_authorities()? {
            None => Vec::new(),
            Some(pem) => Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|certificates| !certificates.is_empty())
                .ok_or_else(|| {
                    ConfigError::key("outbound.ca_file", "contains no certificate in PEM")
                })?,
        };
        Ok(Self {
            allow: config.allow.clone(),
            extra_ca,
            plain_http,
        })
    }
}

/// Limits on one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum time from the start of the request to the end of the response.
    pub time: Duration,
    /// Maximum size of the response body.
    pub bytes: usize,
}

/// A complete response, with any status code.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The URL is invalid, or its scheme is not allowed.
    #[error("the URL is invalid or not https")]
    Url,
    /// The port or the resolved address is not allowed.
    #[error("the destination is not allowed: {0}")]
    Destination(String),
    /// The connection failed, the response was incomplete, or it did not arrive in time.
    #[error("no complete response: {0}")]
    Unreachable(#[source] reqwest::Error),
    /// The response body exceeds [`Limits::bytes`].
    #[error("the response is too large")]
    TooLarge,
}

impl From<reqwest::Error> for OutboundError {
    fn from(error: reqwest::Error) -> Self {
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(refused) = cause.downcast_ref::<NotAllowed>() {
                return Self::Destination(refused.0.clone());
            }
            source = cause.source();
        }
        // The URL of a client may have a secret in its query.
        Self::Unreachable(error.without_url())
    }
}

/// The guarded client. It has one connection pool per port, because the check of an address depends on
/// the port.
pub struct Outbound {
    registered: BTreeMap<u16, Client>,
    untrusted: Client,
    rules: Rules,
}

impl Outbound {
    /// Creates the client.
    ///
    /// # Errors
    /// When the TLS configuration cannot be created.
    pub fn new(rules: Rules) -> Result<Self, reqwest::Error> {
        let mut ports: BTreeSet<u16> = rules.allow.iter().map(Destination::port).collect();
        ports.insert(HTTPS_PORT);
        let registered = ports
            .into_iter()
            .map(|port| Ok((port, client(port, &rules)?)))
            .collect::<Result<_, reqwest::Error>>()?;
        Ok(Self {
            registered,
            untrusted: client(HTTPS_PORT, &Rules::default())?,
            rules,
        })
    }

    /// Sends a GET request.
    ///
    /// # Errors
    /// [`OutboundError`]. A status code other than 200 is not an error.
    pub async fn get(
        &self,
        source: UrlSource,
        url: &str,
        limits: Limits,
    ) -> Result<Response, OutboundError> {
        let (client, url) = self.client_for(source, url)?;
        send(client.get(url), limits).await
    }

    /// Sends a POST request with a form, and returns the status code of the response. The body is not read.
    ///
    /// # Errors
    /// [`OutboundError`]. A status code other than 200 is not an error.
    pub async fn post_form(
        &self,
        source: UrlSource,
        url: &str,
        form: &[(&str, &str)],
        time: Duration,
    ) -> Result<u16, OutboundError> {
        let (client, url) = self.client_for(source, url)?;
        let response = client.post(url).form(form).timeout(time).send().await?;
        Ok(response.status().as_u16())
    }

    /// Checks everything about a URL except the addresses of its name, which are checked when they are
    /// resolved.
    fn client_for(&self, source: UrlSource, url: &str) -> Result<(&Client, Url), OutboundError> {
        let url = Url::parse(url).map_err(|_| OutboundError::Url)?;
        let allow = match source {
            UrlSource::Administrator => self.rules.allow.as_slice(),
            UrlSource::Untrusted => &[],
        };
        let host = url.host().ok_or(OutboundError::Url)?;
        let port = url.port_or_known_default().ok_or(OutboundError::Url)?;
        // Port 443 of a public address needs no entry in `allow`, so plain http must not reach it.
        let is_plain = url.scheme() == "http"
            && self.rules.plain_http
            && !allow.is_empty()
            && port != HTTPS_PORT;
        let has_user_info = !url.username().is_empty() || url.password().is_some();
        if (url.scheme() != "https" && !is_plain) || has_user_info {
            return Err(OutboundError::Url);
        }
        let address = match host {
            Host::Ipv4(address) => Some(IpAddr::from(address)),
            Host::Ipv6(address) => Some(IpAddr::from(address)),
            Host::Domain(_) => None,
        };
        if address.is_some_and(|address| !is_allowed(allow, "", address, port)) {
            return Err(OutboundError::Destination(format!("{host}:{port}")));
        }
        let client = match source {
            UrlSource::Administrator => self.registered.get(&port),
            UrlSource::Untrusted => Some(&self.untrusted).filter(|_| port == HTTPS_PORT),
        };
        let client = client.ok_or_else(|| OutboundError::Destination(format!("port {port}")))?;
        Ok((client, url))
    }
}

fn client(port: u16, rules: &Rules) -> Result<Client, reqwest::Error> {
    let resolver = CheckedResolver {
        port,
        allow: rules.allow.clone().into(),
        lookups: Arc::new(Semaphore::new(LOOKUPS)),
    };
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .referer(false)
        .dns_resolver(resolver)
        .tls_certs_merge(rules.extra_ca.clone())
        .build()
}

async fn send(request: RequestBuilder, limits: Limits) -> Result<Response, OutboundError> {
    let mut response = request.timeout(limits.time).send().await?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limits.bytes {
            return Err(OutboundError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Response {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body,
    })
}

/// A name that resolves to an address that is not allowed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotAllowed(String);

/// Name look-ups of one client that may run at the same time. A look-up occupies a thread until the resolver of
/// the operating system gives up, whatever the limit of its request, and other work needs these threads.
const LOOKUPS: usize = 8;

/// Resolves names, and fails if one of the addresses is not allowed.
struct CheckedResolver {
    port: u16,
    allow: Arc<[Destination]>,
    lookups: Arc<Semaphore>,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (port, allow, lookups) = (self.port, self.allow.clone(), self.lookups.clone());
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let permit = lookups.try_acquire_owned()?;
            let queried = host.clone();
            let addresses = tokio::task::spawn_blocking(move || {
                // Kept until the look-up ends, even if the request was given up.
                let _permit = permit;
                (queried.as_str(), port).to_socket_addrs()
            });
            let addresses: Vec<SocketAddr> = addresses.await??.collect();
            let mut refused = addresses
                .iter()
                .filter(|address| !is_allowed(&allow, &host, address.ip(), port));
            match refused.next() {
                Some(address) => Err(NotAllowed(format!("{host} at {address}")).into()),
                None => Ok(Box::new(addresses.into_iter()) as Addrs),
            }
        })
    }
}

/// Returns whether the client may connect to `address`, which `host` resolved to.
fn is_allowed(allow: &[Destination], host: &str, address: IpAddr, port: u16) -> bool {
    let is_allowed = |allowed: &Destination| allowed.includes(host, address, port);
    (port == HTTPS_PORT && is_public(address)) || allow.iter().any(is_allowed)
}

/// Returns whether an address is globally reachable (IANA special-purpose address registries, RFC 6890).
/// Addresses that embed an IPv4 address (6to4, Teredo, NAT64) are not, because they may lead to a private
/// one.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            !(a == 0
                || a >= 240
                || address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_documentation()
                // Shared address space (RFC 6598), IETF protocols and 6to4 relays, benchmarks (RFC 2544).
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 192 && b == 88 && c == 99)
                || (a == 198 && (b == 18 || b == 19)))
        }
        IpAddr::V6(address) => {
            let [a, b, ..] = address.segments();
            // Global unicast (2000::/3) without IETF protocols and Teredo (2001::/23), 6to4 (2002::/16) and
            // documentation (2001:db8::/32, 3fff::/20).
            a & 0xe000 == 0x2000
                && !(a == 0x2001 && (b < 0x0200 || b == 0x0db8))
                && a != 0x2002
                && !(a == 0x3fff && b < 0x1000)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    const LIMITS: Limits = Limits {
        time: Duration::from_secs(5),
        bytes: 64,
    };

    /// Answers one connection with `response`, and keeps it open if `response` is empty.
    fn serve(response: String) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(response.as_bytes());
            if response.is_empty() {
                // Returns when the client closes the connection.
                let _ = stream.read(&mut request);
            }
        });
        port
    }

    fn ok(body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
    }

    fn client(allow: &[String], plain_http: bool) -> Outbound {
        Outbound::new(Rules {
            allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
            plain_http,
            ..Rules::default()
        })
        .unwrap()
    }

    async fn get(client: &Outbound, url: &str) -> Result<Response, OutboundError> {
        client.get(UrlSource::Administrator, url, LIMITS).await
    }

    #[tokio::test]
    async fn allowed_destination_is_reached_by_address_and_by_name() {
        for host in ["127.0.0.1", "localhost"] {
            let port = serve(ok("{}"));
            let client = client(&[format!("{host}:{port}")], true);
            let answer = get(&client, &format!("http://{host}:{port}/jwks")).await;
            let answer = answer.unwrap();
            assert_eq!((answer.status, answer.body.as_slice()), (200, &b"{}"[..]));
            // The same URL from another source is refused.
            let form = [("logout_token", "x")];
            let url = format!("http://{host}:{port}/");
            let refused = client.post_form(UrlSource::Untrusted, &url, &form, LIMITS.time);
            assert!(matches!(refused.await, Err(OutboundError::Url)));
        }
    }

    #[tokio::test]
    async fn private_addresses_are_refused_before_and_after_resolution() {
        let client = client(&[], false);
        for url in [
            "https://127.0.0.1/",
            "https://0x7f.1/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://169.254.169.254/latest/meta-data",
            "https://localhost/",
            "https://example.com:8443/",
        ] {
            for source in [UrlSource::Administrator, UrlSource::Untrusted] {
                let refused = client.get(source, url, LIMITS).await;
                assert!(
                    matches!(refused, Err(OutboundError::Destination(_))),
                    "{url}: {refused:?}"
                );
            }
        }
        for url in [
            "http://example.com/",
            "ftp://example.com/",
            "x",
            "https://u:p@example.com/",
        ] {
            assert!(matches!(get(&client, url).await, Err(OutboundError::Url)));
        }
    }

    #[tokio::test]
    async fn plain_http_reaches_only_allowed_destinations() {
        let client = client(&["127.0.0.1:8080".to_owned()], true);
        for url in ["http://example.com:443/", "http://1.1.1.1:443/"] {
            assert!(
                matches!(get(&client, url).await, Err(OutboundError::Url)),
                "{url}"
            );
        }
    }

    #[tokio::test]
    async fn allowed_network_applies_to_its_port_only() {
        let client = client(&["127.0.0.0/8:8443".to_owned()], true);
        for url in [
            "https://localhost/",
            "http://localhost/",
            "https://127.0.0.1/",
        ] {
            let refused = get(&client, url).await;
            assert!(
                matches!(refused, Err(OutboundError::Destination(_))),
                "{url}: {refused:?}"
            );
        }
    }

    #[tokio::test]
    async fn size_time_and_redirects_are_limited() {
        let large = serve(ok(&"x".repeat(65)));
        let silent = serve(String::new());
        let moved = serve(
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
                .into(),
        );
        let allow = [large, silent, moved].map(|port| format!("127.0.0.1:{port}"));
        let client = client(&allow, true);
        let url = |port: u16| format!("http://127.0.0.1:{port}/");
        let refused = get(&client, &url(large)).await;
        assert!(matches!(refused, Err(OutboundError::TooLarge)));
        assert_eq!(get(&client, &url(moved)).await.unwrap().status, 302);
        let short = Limits {
            time: Duration::from_millis(50),
            ..LIMITS
        };
        let url = url(silent);
        let late = client.get(UrlSource::Administrator, &url, short).await;
        assert!(matches!(late, Err(OutboundError::Unreachable(_))));
    }

    #[test]
    fn special_purpose_addresses_are_not_public() {
        for public in ["1.1.1.1", "192.0.1.1", "2606:4700::1111", "2001:4860::8888"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for special in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "172.16.0.1",
            "192.0.0.1",
            "192.168.0.1",
            "198.18.0.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "fc00::1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!is_public(special.parse().unwrap()), "{special}");
        }
    }
}
