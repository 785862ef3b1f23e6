//! Starts the verifier: fetches the issuer's keys, and retries until the issuer can be reached.

use std::time::Duration;

use portcullis_verifier::{Builder, StartError, Verifier};
use tokio::time::sleep;

use crate::Exit;
use crate::settings::Settings;

/// Delay before the first retry. It doubles with each retry, up to [`MAX_DELAY`].
const INITIAL_DELAY: Duration = Duration::from_millis(250);
/// Maximum delay between retries.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Returns the builder of the verifier, which all routes share. The audience is checked per
/// request.
pub fn verifier_builder(settings: &Settings) -> Builder {
    let subscriber = &settings.subscriber;
    let mut builder = Verifier::builder(&settings.issuer, "")
        .any_audience()
        .subscriber(&subscriber.client_id, &subscriber.client_secret.0);
    if let Some(instance) = &subscriber.instance {
        builder = builder.instance(instance);
    }
    if subscriber.introspection {
        builder = builder.introspection();
    }
    subscriber.feed.iter().fold(builder, Builder::feed_at)
}

/// Starts the verifier, retrying until it succeeds.
///
/// # Errors
/// Errors that a retry cannot fix: an insecure URL, another issuer, or a client that must not read
/// the revocation feed.
pub async fn start_verifier(builder: Builder) -> Result<Verifier, Exit> {
    let mut delay = INITIAL_DELAY;
    loop {
        let error = match builder.clone().start().await {
            Ok(verifier) => return Ok(verifier),
            Err(error) => error,
        };
        let message = error_chain(&error);
        match error {
            StartError::Insecure { .. } | StartError::OtherIssuer { .. } => {
                return Err(Exit::settings(message));
            }
            StartError::Subscriber { .. } => return Err(Exit { code: 77, message }),
            _ => tracing::warn!(event = "guard.waiting", reason = message),
        }
        sleep(delay).await;
        delay = MAX_DELAY.min(delay * 2);
    }
}

/// Formats an error and its sources.
fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
