//! OpenID Connect Discovery §4 and RFC 7517 §5 over HTTP: short, bounded, and to nowhere else.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::header::{CACHE_CONTROL, ETAG};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use crate::{DuplicateKid, JwkSet, Keys, StartError};

const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_BYTES: usize = 256 * 1024;

/// How long keys count as fresh if the answer does not say.
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(300);
const MIN_MAX_AGE: Duration = Duration::from_secs(30);
const MAX_MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a document could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No connection, no answer in time, or one that broke off.
    #[error("no answer")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A status other than 200; a redirect is one of these.
    #[error("the answer has the status {0}")]
    Status(u16),
    /// More bytes than any honest one.
    #[error("the answer is too large")]
    TooLarge,
    /// Not the JSON that it should be.
    #[error("the answer is not the document asked for")]
    Json(#[from] serde_json::Error),
    /// A `kid` appears twice.
    #[error(transparent)]
    DuplicateKid(#[from] DuplicateKid),
    /// The document holds no key that can be used.
    #[error("the document holds no usable key")]
    NoKeys,
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> Self {
        Self::Unreachable(Box::new(error))
    }
}

/// Fetches one issuer's keys.
pub(crate) struct Fetcher {
    client: Client,
    jwks_uri: Url,
    introspection_endpoint: Option<String>,
}

/// A good answer.
pub(crate) struct Fetched {
    pub(crate) keys: Keys,
    /// How long the keys count as fresh.
    pub(crate) max_age: Duration,
    /// What the feed calls this state of the keys.
    pub(crate) etag: Option<String>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
    introspection_endpoint: Option<String>,
}

impl Fetcher {
    /// Asks the issuer where its keys are.
    pub(crate) async fn discover(client: Client, issuer: &str) -> Result<Self, StartError> {
        let url = discovery_url(issuer)?;
        let document = discovery(&client, &url)
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
            jwks_uri: secure(&document.jwks_uri)?,
            introspection_endpoint: document.introspection_endpoint,
        })
    }

    /// For the keys at this address.
    pub(crate) fn at(client: Client, jwks_uri: &str) -> Result<Self, StartError> {
        Ok(Self {
            client,
            jwks_uri: secure(jwks_uri)?,
            introspection_endpoint: None,
        })
    }

    /// Where the issuer says that tokens can be introspected (RFC 8414 §2).
    pub(crate) fn introspection_endpoint(&self) -> Option<&str> {
        self.introspection_endpoint.as_deref()
    }

    pub(crate) fn jwks_uri(&self) -> &str {
        self.jwks_uri.as_str()
    }

    /// Fetches the keys, past all caches on the way if they are known to have changed. A document without a usable key is an error: an issuer that signs always
    /// has one, so good keys are not given up for it.
    pub(crate) async fn keys(&self, have_changed: bool) -> Result<Fetched, FetchError> {
        let mut request = self.client.get(self.jwks_uri.clone());
        if have_changed {
            request = request.header(CACHE_CONTROL, "no-cache");
        }
        let answer = answer(request).await?;
        let max_age = max_age(&answer);
        let etag = answer.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
        let etag = etag.map(str::to_owned);
        let document: JwkSet = serde_json::from_slice(&body(answer, MAX_BYTES).await?)?;
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

async fn discovery(client: &Client, url: &Url) -> Result<Discovery, FetchError> {
    let body = body(answer(client.get(url.clone())).await?, MAX_BYTES).await?;
    Ok(serde_json::from_slice(&body)?)
}

/// A client that goes where it is told to and nowhere else. How long an answer may take is a matter
/// of each request, since streams take for ever.
pub(crate) fn client() -> Result<Client, StartError> {
    Client::builder()
        .connect_timeout(TIMEOUT)
        .redirect(redirect::Policy::none())
        .build()
        .map_err(|error| StartError::HttpClient(error.into()))
}

async fn answer(request: RequestBuilder) -> Result<Response, FetchError> {
    let answer = request.timeout(TIMEOUT).send().await?;
    match answer.status() {
        StatusCode::OK => Ok(answer),
        other => Err(FetchError::Status(other.as_u16())),
    }
}

/// All of an answer, if it has no more bytes than this.
pub(crate) async fn body(mut answer: Response, max: usize) -> Result<Vec<u8>, FetchError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > max {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// OpenID Connect Discovery §4: a slash at the end of the issuer is dropped, for the URL only.
pub(crate) fn discovery_url(issuer: &str) -> Result<Url, StartError> {
    let base = issuer.strip_suffix('/').unwrap_or(issuer);
    secure(&format!("{base}/.well-known/openid-configuration"))
}

/// Keys that come over plain HTTP are whoever's is on the way; only loopback has no way.
pub(crate) fn secure(url: &str) -> Result<Url, StartError> {
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

fn max_age(answer: &Response) -> Duration {
    let header = answer
        .headers()
        .get(CACHE_CONTROL)
        .and_then(|value| value.to_str().ok());
    header
        .and_then(max_age_directive)
        .unwrap_or(DEFAULT_MAX_AGE)
        .clamp(MIN_MAX_AGE, MAX_MAX_AGE)
}

/// RFC 9111 §5.2.2.1.
fn max_age_directive(cache_control: &str) -> Option<Duration> {
    cache_control.split(',').find_map(|directive| {
        let (name, seconds) = directive.trim().split_once('=')?;
        let named = name.eq_ignore_ascii_case("max-age");
        named
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
    fn plain_http_is_for_loopback_only() {
        for allowed in [
            "https://id.example/jwks",
            "http://localhost:8080/jwks",
            "http://127.0.0.1/jwks",
            "http://127.8.9.1:81/jwks",
            "http://[::1]:8080/jwks",
        ] {
            assert!(secure(allowed).is_ok(), "{allowed}");
        }
        for refused in [
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
            assert!(secure(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn the_discovery_document_lies_under_the_issuer() {
        let url = |issuer| discovery_url(issuer).unwrap().to_string();
        let expected = "https://id.example/tenant/.well-known/openid-configuration";
        assert_eq!(url("https://id.example/tenant"), expected);
        assert_eq!(url("https://id.example/tenant/"), expected);
    }

    #[test]
    fn max_age_is_read_from_cache_control() {
        let read = |text| max_age_directive(text).map(|age| age.as_secs());
        assert_eq!(read("public, max-age=300, stale-if-error=86400"), Some(300));
        assert_eq!(read("Max-Age=\"60\""), Some(60));
        assert_eq!(read("s-maxage=9, no-cache"), None);
        assert_eq!(read("max-age=soon"), None);
    }
}
