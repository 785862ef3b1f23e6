//! How a verifier comes to follow the revocation feed.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Client;
use tokio::time::timeout;

use crate::cache::{Cache, Refresher};
use crate::feed::Feed;
use crate::fetch::{FetchError, Fetcher, secure};
use crate::follow::{Credentials, Ended, Follower};
use crate::introspect::Introspector;
use crate::max_age::MaxAges;
use crate::metrics::Counters;
use crate::verifier::Revocations;
use crate::{Clock, StartError};

/// How long a start waits for the feed before it goes on without it, refusing tokens.
const FIRST_NEWS: Duration = Duration::from_secs(10);

/// What the builder was told about the feed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subscription {
    pub(crate) credentials: Option<Credentials>,
    pub(crate) max_ages: MaxAges,
    pub(crate) addresses: Vec<String>,
    pub(crate) instance: Option<String>,
    pub(crate) introspects: bool,
}

/// What a verifier has already when it subscribes.
pub(crate) struct Base<'a> {
    pub(crate) http: Client,
    pub(crate) issuer: &'a str,
    pub(crate) introspection_endpoint: Option<String>,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<Counters>,
    pub(crate) cache: Arc<Cache>,
}

impl Subscription {
    /// Subscribes, and waits for the first news. `None` without credentials: then revocations are
    /// nothing to this verifier.
    pub(crate) async fn start(self, base: Base<'_>) -> Result<Option<Revocations>, StartError> {
        let Some(credentials) = self.credentials.clone() else {
            return Ok(None);
        };
        let addresses = self.addresses_for(base.issuer)?;
        let feed = Feed::new(
            base.issuer.into(),
            base.clock.clone(),
            base.counters.clone(),
        );
        let feed = Arc::new(feed);
        feed.expect(self.max_ages.longest());
        // The keys have one address; whoever forwards the feed need not be able to sign it.
        let fetcher = Fetcher::at(
            base.http.clone(),
            &format!("{}/revocations/jwks", addresses[0]),
        )?;
        let (feed_keys, refresher) = Refresher::spawn(fetcher, None, base.clock.clone());
        let follower = Arc::new(Follower {
            http: base.http.clone(),
            addresses,
            credentials: credentials.clone(),
            instance: self.instance.unwrap_or_else(a_name),
            feed: feed.clone(),
            feed_keys,
            token_keys: base.cache,
            address: AtomicUsize::new(0),
            last_frame: ArcSwapOption::empty(),
        });
        first_news(&follower).await?;
        let introspector = match (self.introspects, base.introspection_endpoint) {
            (false, _) => None,
            (true, endpoint) => {
                let url = endpoint.unwrap_or_else(|| at(base.issuer, "/oauth2/introspect"));
                secure(&url)?;
                Some(Introspector::new(
                    base.http,
                    url,
                    credentials,
                    base.clock,
                    base.counters,
                ))
            }
        };
        Ok(Some(Revocations {
            feed,
            max_ages: self.max_ages,
            introspector,
            _tasks: (follower.spawn(), refresher),
        }))
    }

    /// Where the feed is asked for: at the addresses that were given, else at the issuer.
    pub(crate) fn addresses_for(&self, issuer: &str) -> Result<Vec<String>, StartError> {
        let given = self.addresses.iter().map(String::as_str);
        let issuer = self.addresses.is_empty().then_some(issuer);
        let addresses = given.chain(issuer).map(|url| at(url, ""));
        let addresses: Vec<_> = addresses.collect();
        for address in &addresses {
            secure(address)?;
        }
        Ok(addresses)
    }
}

/// Wrong credentials are told at the start. Whatever else is wrong may pass, and until it does the
/// verifier refuses.
async fn first_news(follower: &Follower) -> Result<(), StartError> {
    match timeout(FIRST_NEWS, follower.catch_up()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Ended::Fetch(FetchError::Status(status @ (401 | 403))))) => {
            Err(StartError::Subscriber { status })
        }
        Ok(Err(ended)) => {
            let error = &ended as &dyn std::error::Error;
            tracing::warn!(error, "started without the revocation feed");
            Ok(())
        }
        Err(_) => {
            tracing::warn!("started without the revocation feed, which takes too long");
            Ok(())
        }
    }
}

fn at(base: &str, path: &str) -> String {
    format!("{}{path}", base.strip_suffix('/').unwrap_or(base))
}

/// The host's name, as containers and services have it; else one by chance.
fn a_name() -> String {
    if let Some(name) = std::env::var("HOSTNAME")
        .ok()
        .filter(|name| !name.is_empty())
    {
        return name;
    }
    let mut random = [0; 9];
    // Without randomness two instances may share a name; only who waits for them would notice.
    let _ = rand::fill(&mut random);
    URL_SAFE_NO_PAD.encode(random)
}
