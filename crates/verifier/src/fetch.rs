//! HTTP requests for the discovery document (OpenID Connect Discovery §4) and the keys (RFC 7517
//! §5), with limits on time and size and without redirects.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::header::{CACHE_CONTROL, ETAG};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use crate::{DuplicateKid, JwkSet, Keys, StartError};

const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_BYTES: usize = 256 * 1024;

/// Interval between fetches of the keys if the response has no `max-age`.
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(300);
const MIN_MAX_AGE: Duration = Duration::from_secs(30);
const MAX_MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a document could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The connection failed, the response did not arrive in time, or it was incomplete.
    #[error("no complete response")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The status code is not 200. Redirects are not followed, so they are reported here too.
    #[error("the response has the status {0}")]
    Status(u16),
    /// The response exceeds the size limit.
    #[error("the response is too large")]
    TooLarge,
    /// The response is not the expected JSON document.
    #[error("the response is not the expected JSON document")]
    Json(#[from] serde_json::Error),
    /// Two keys have the same `kid`.
    #[error(transparent)]
    DuplicateKid(#[from] DuplicateKid),
    /// The document contains no usable key.
    #[error("the document contains no usable key")]
    NoKeys,
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> Self {
        Self::Unreachable(Box::new(error))
    }
}

/// Fetches the keys of one issuer.
pub(crate) struct Fetcher {
    client: Client,
    jwks_uri: Url,
    introspection_endpoint: Option<String>,
}

/// A successful response with keys.
pub(crate) struct Fetched {
    pub(crate) keys: Keys,
    /// Time until the next scheduled fetch.
    pub(crate) max_age: Duration,
    /// Entity tag of the keys, which the frames of the feed refer to.
    pub(crate) etag: Option<String>,
}

#[derive(Deserialize)]
struct DiscoveryDocument {
    issuer: String,
    jwks_uri: String,
    introspection_endpoint: Option<String>,
}

impl Fetcher {
    /// Fetches the discovery document of the issuer, and creates a fetcher for the `jwks_uri` in
    /// it.
    pub(crate) async fn discover(client: Client, issuer: &str) -> Result<Self, StartError> {
        let url = discovery_url(issuer)?;
        let document =
            fetch_discovery(&client, &url)
                .await
                .map_err(|source| StartError::Discovery {
                    url: url.to_string(),
                    source,
                })?;
        if document.issuer != issuer {
            let expected = issuer.to_owned();
            return Err(StartError::OtherIssuer {
                expected,
                found: document.issuer,
            });
        }
        Ok(Self {
            client,
            jwks_uri: parse_secure_url(&document.jwks_uri)?,
            introspection_endpoint: document.introspection_endpoint,
        })
    }

    /// Creates a fetcher for this URL.
    pub(crate) fn new(client: Client, jwks_uri: &str) -> Result<Self, StartError> {
        Ok(Self {
            client,
            jwks_uri: parse_secure_url(jwks_uri)?,
            introspection_endpoint: None,
        })
    }

    /// Returns the introspection endpoint in the discovery document (RFC 8414 §2), if any.
    pub(crate) fn introspection_endpoint(&self) -> Option<&str> {
        self.introspection_endpoint.as_deref()
    }

    pub(crate) fn jwks_uri(&self) -> &str {
        self.jwks_uri.as_str()
    }

    /// Fetches the keys. With `bypass_caches`, intermediate caches must revalidate their response.
    ///
    /// A document without a usable key is an error, so that it does not replace usable keys. An
    /// issuer that signs tokens always publishes a key.
    pub(crate) async fn keys(&self, bypass_caches: bool) -> Result<Fetched, FetchError> {
        let mut request = self.client.get(self.jwks_uri.clone());
        if bypass_caches {
            request = request.header(CACHE_CONTROL, "no-cache");
        }
        let response = send(request).await?;
        let headers = response.headers();
        let max_age = max_age(&response);
        let etag = headers.get(ETAG).and_then(|tag| tag.to_str().ok());
        let etag = etag.map(str::to_owned);
        let body = read_body(response, MAX_BYTES).await?;
        let document: JwkSet = serde_json::from_slice(&body)?;
        let keys = Keys::parse(&document)?;
        if keys.is_empty() {
            Err(FetchError::NoKeys)
        } else {
            Ok(Fetched {
                keys,
                max_age,
                etag,
            })
        }
    }
}

async fn fetch_discovery(client: &Client, url: &Url) -> Result<DiscoveryDocument, FetchError> {
    let body = read_body(send(client.get(url.clone())).await?, MAX_BYTES).await?;
    Ok(serde_json::from_slice(&body)?)
}

/// Creates an HTTP client that follows no redirects. It has no timeout for responses, because
/// streams do not end. Each request sets its own.
pub(crate) fn http_client() -> Result<Client, StartError> {
    Client::builder()
        .connect_timeout(TIMEOUT)
        .redirect(redirect::Policy::none())
        .build()
        .map_err(|error| StartError::HttpClient(error.into()))
}

async fn send(request: RequestBuilder) -> Result<Response, FetchError> {
    let response = request.timeout(TIMEOUT).send().await?;
    match response.status() {
        StatusCode::OK => Ok(response),
        other => Err(FetchError::Status(other.as_u16())),
    }
}

/// Reads the whole body of a response, up to `max` bytes.
pub(crate) async fn read_body(mut response: Response, max: usize) -> Result<Vec<u8>, FetchError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > max {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns the URL of the discovery document (OpenID Connect Discovery §4). A trailing slash of the
/// issuer is removed, but only for the URL.
pub(crate) fn discovery_url(issuer: &str) -> Result<Url, StartError> {
    let base = issuer.strip_suffix('/').unwrap_or(issuer);
    parse_secure_url(&format!("{base}/.well-known/openid-configuration"))
}

/// Parses an `https` URL, or an `http` URL with a loopback host. An attacker on the network could
/// replace keys that are fetched over plain HTTP.
pub(crate) fn parse_secure_url(url: &str) -> Result<Url, StartError> {
    let insecure = || StartError::Insecure {
        url: url.to_owned(),
    };
    let parsed = Url::parse(url).map_err(|_| insecure())?;
    let allowed = match parsed.scheme() {
        "https" => true,
        "http" => parsed.host_str().is_some_and(is_loopback),
        _ => false,
    };
    if allowed { Ok(parsed) } else { Err(insecure()) }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn max_age(response: &Response) -> Duration {
    let header = response
        .headers()
        .get(CACHE_CONTROL)
        .and_then(|value| value.to_str().ok());
    header
        .and_then(max_age_directive)
        .unwrap_or(DEFAULT_MAX_AGE)
        .clamp(MIN_MAX_AGE, MAX_MAX_AGE)
}

/// Parses the `max-age` directive of a `Cache-Control` header (RFC 9111 §5.2.2.1).
fn max_age_directive(cache_control: &str) -> Option<Duration> {
    cache_control.split(',').find_map(|directive| {
        let (name, seconds) = directive.trim().split_once('=')?;
        let is_max_age = name.eq_ignore_ascii_case("max-age");
        is_max_age
            .then(|| {
                seconds
                    .trim_matches('"')
                    .parse()
                    .ok()
                    .map(Duration::from_secs)
            })
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_allowed_for_loopback_only() {
        for allowed in [
            "https://id.example/jwks",
            "http://localhost:8080/jwks",
            "http://127.0.0.1/jwks",
            "http://127.8.9.1:81/jwks",
            "http://[::1]:8080/jwks",
        ] {
            assert!(parse_secure_url(allowed).is_ok(), "{allowed}");
        }
        for rejected in [
            "http://id.example/jwks",
            "http://localhost.example/jwks",
            "http://127.0.0.1.example/jwks",
            "http://127.0.0.1@id.example/jwks",
            "http://10.0.0.1/jwks",
            "http://0.0.0.0/jwks",
            "ftp://localhost/jwks",
            "file:///etc/passwd",
            "/jwks",
            "",
        ] {
            assert!(parse_secure_url(rejected).is_err(), "{rejected}");
        }
    }

    #[test]
    fn discovery_url_ignores_trailing_slash() {
        let url = |issuer| discovery_url(issuer).unwrap().to_string();
        let expected = "https://id.example/tenant/.well-known/openid-configuration";
        assert_eq!(url("https://id.example/tenant"), expected);
        assert_eq!(url("https://id.example/tenant/"), expected);
    }

    #[test]
    fn max_age_is_parsed_from_cache_control() {
        let parse = |text| max_age_directive(text).map(|age| age.as_secs());
        assert_eq!(
            parse("public, max-age=300, stale-if-error=86400"),
            Some(300)
        );
        assert_eq!(parse("Max-Age=\"60\""), Some(60));
        assert_eq!(parse("s-maxage=9, no-cache"), None);
        assert_eq!(parse("max-age=soon"), None);
    }
}
