//! The way to the issuer: its keys and its revocation feed, tried for until they are there.

use std::time::Duration;

use portcullis_verifier::{Builder, StartError, Verifier};
use tokio::time::sleep;

use crate::Exit;
use crate::settings::Settings;

/// Between tries while the issuer is away: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// Describes the one verifier of all routes; each request says which audience it is for.
pub fn describe(settings: &Settings) -> Builder {
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

/// A verifier, however long it takes.
///
/// # Errors
/// What no waiting would mend.
pub async fn reach(builder: Builder) -> Result<Verifier, Exit> {
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match builder.clone().start().await {
            Ok(verifier) => return Ok(verifier),
            Err(error) => error,
        };
        let message = in_full(&error);
        match error {
            StartError::Insecure { .. } | StartError::OtherIssuer { .. } => {
                return Err(Exit::settings(message));
            }
            StartError::Subscriber { .. } => return Err(Exit { code: 77, message }),
            _ => tracing::warn!(event = "guard.waiting", reason = message),
        }
        sleep(pause).await;
        pause = LAST_PAUSE.min(pause * 2);
    }
}

/// An error with all that caused it.
fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
