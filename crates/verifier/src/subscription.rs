//! Subscription of a verifier to the revocation feed.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Client;
use tokio::time::timeout;

use crate::feed::Feed;
use crate::fetch::{FetchError, Fetcher, parse_secure_url};
use crate::follower::{Credentials, FollowError, Follower};
use crate::introspect::Introspector;
use crate::key_cache::{KeyCache, Refresher};
use crate::max_age::MaxAges;
use crate::metrics::Counters;
use crate::verifier::Revocations;
use crate::{Clock, StartError};

/// How long the start waits for the first revocation data. If it takes longer, the verifier starts
/// without data and rejects tokens.
const INITIAL_CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// The settings of the builder that concern the feed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subscription {
    pub(crate) credentials: Option<Credentials>,
    pub(crate) max_ages: MaxAges,
    /// Configured base URLs of the feed.
    pub(crate) base_urls: Vec<String>,
    pub(crate) instance: Option<String>,
    /// Whether introspection is enabled.
    pub(crate) introspection: bool,
}

/// The parts of the verifier that the subscription uses.
pub(crate) struct SubscriptionContext<'a> {
    pub(crate) http: Client,
    pub(crate) issuer: &'a str,
    pub(crate) introspection_endpoint: Option<String>,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<Counters>,
    /// The keys that tokens are signed with.
    pub(crate) token_keys: Arc<KeyCache>,
}

impl Subscription {
    /// Subscribes to the feed, and waits for the first data. Returns `None` if there are no
    /// credentials, in which case the verifier does not check revocation.
    pub(crate) async fn start(
        self,
        context: SubscriptionContext<'_>,
    ) -> Result<Option<Revocations>, StartError> {
        let Some(credentials) = self.credentials.clone() else {
            return Ok(None);
        };
        let base_urls = self.base_urls(context.issuer)?;
        let feed = Feed::new(
            context.issuer.into(),
            context.clock.clone(),
            context.counters.clone(),
        );
        let feed = Arc::new(feed);
        feed.announce_max_age(self.max_ages.longest());
        // The keys are only fetched from the first URL, so that a server that forwards the feed at
        // one of the others cannot replace them.
        let fetcher = Fetcher::new(
            context.http.clone(),
            &format!("{}/revocations/jwks", base_urls[0]),
        )?;
        let (feed_keys, refresher) = Refresher::spawn(fetcher, None, context.clock.clone());
        let follower = Arc::new(Follower {
            http: context.http.clone(),
            base_urls,
            credentials: credentials.clone(),
            instance: self.instance.unwrap_or_else(default_instance_name),
            feed: feed.clone(),
            feed_keys,
            token_keys: context.token_keys,
            base_url_index: AtomicUsize::new(0),
            last_frame: ArcSwapOption::empty(),
        });
        initial_catch_up(&follower).await?;
        let introspector = match (self.introspection, context.introspection_endpoint) {
            (false, _) => None,
            (true, endpoint) => {
                let url =
                    endpoint.unwrap_or_else(|| join_url(context.issuer, "/oauth2/introspect"));
                parse_secure_url(&url)?;
                Some(Introspector::new(
                    context.http,
                    url,
                    credentials,
                    context.clock,
                    context.counters,
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

    /// Returns the base URLs of the feed: the configured ones, or the issuer if there are none.
    pub(crate) fn base_urls(&self, issuer: &str) -> Result<Vec<String>, StartError> {
        let configured = self.base_urls.iter().map(String::as_str);
        let issuer = self.base_urls.is_empty().then_some(issuer);
        let base_urls = configured.chain(issuer).map(|url| join_url(url, ""));
        let base_urls: Vec<_> = base_urls.collect();
        for url in &base_urls {
            parse_secure_url(url)?;
        }
        Ok(base_urls)
    }
}

/// Waits for the first data. Only access that every URL denies is an error: one that denies it alone is
/// misconfigured. Other failures may be temporary, and the verifier rejects tokens until they are
/// resolved.
async fn initial_catch_up(follower: &Follower) -> Result<(), StartError> {
    match timeout(INITIAL_CATCH_UP_TIMEOUT, catch_up_where_allowed(follower)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(FollowError::Fetch(FetchError::Status(status @ (401 | 403))))) => {
            Err(StartError::Subscriber { status })
        }
        Ok(Err(error)) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "started without revocation data");
            Ok(())
        }
        Err(_) => {
            tracing::warn!(
                "started without revocation data, because it did not arrive within 10 s"
            );
            Ok(())
        }
    }
}

/// Catches up with the first URL that does not deny access.
async fn catch_up_where_allowed(follower: &Follower) -> Result<(), FollowError> {
    let mut outcome = follower.catch_up().await;
    for _ in 1..follower.base_urls.len() {
        let Err(FollowError::Fetch(FetchError::Status(status @ (401 | 403)))) = outcome else {
            return outcome;
        };
        tracing::warn!(
            status,
            address = follower.base_url(),
            "access to the revocation feed is denied"
        );
        follower.use_next_url();
        outcome = follower.catch_up().await;
    }
    outcome
}

/// Appends a path to a URL, of which a trailing slash is removed.
fn join_url(base: &str, path: &str) -> String {
    format!("{}{path}", base.strip_suffix('/').unwrap_or(base))
}

/// Returns the value of `HOSTNAME`, which containers and services have, or a random name.
fn default_instance_name() -> String {
    if let Some(name) = std::env::var("HOSTNAME")
        .ok()
        .filter(|name| !name.is_empty())
    {
        return name;
    }
    let mut random = [0; 9];
    // If randomness is unavailable, two instances may have the same name. This only affects
    // operators who wait for the acknowledgements of both.
    let _ = rand::fill(&mut random);
    URL_SAFE_NO_PAD.encode(random)
}
