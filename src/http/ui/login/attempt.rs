//! Throttling of sign-ins (policy §4). An admitted attempt occupies the room of one failure in its buckets until its
//! outcome is recorded.

use std::time::Duration;

use actix_web::HttpRequest;

use crate::accounts::throttle::{self, ACCOUNT_AND_ADDRESS, Attempt, Bucket, Verdict};
use crate::accounts::user::Username;
use crate::app::App;
use crate::http::error::HandlerError;
use crate::http::response::whole_seconds;
use crate::http::server::client_address::ClientAddress;
use crate::id::UserId;
use crate::metrics::LOGINS;
use crate::secret::{Secret, base64url};

/// An attempt whose outcome is open.
pub(super) struct AdmittedAttempt {
    attempt: Attempt,
    user_ref: String,
    is_from_known_device: bool,
}

/// Whether the password of an attempt may be checked.
pub(super) enum Admission {
    Admitted(AdmittedAttempt),
    /// So many attempts are open that a failure of all of them would exhaust the bucket.
    Busy,
    Throttled(Throttled),
}

/// Log reason, retry delay and user-facing text of a throttled sign-in.
pub(super) struct Throttled {
    pub(super) reason: &'static str,
    pub(super) retry_after: Duration,
    pub(super) advice: String,
}

impl AdmittedAttempt {
    /// Reserves room for an attempt with a user name, of which `user_ref` is the keyed hash.
    pub(super) async fn admit(
        request: &HttpRequest,
        app: &App,
        username: Option<&Username>,
        user_ref: String,
        device: Option<&Secret>,
    ) -> Result<Admission, HandlerError> {
        let (clock, address) = (app.clock.clone(), ClientAddress::of(request));
        let (username, device) = (username.cloned(), device.map(Secret::hash));
        let hashed_name = user_ref.clone();
        let admitted = app.page_store.transaction(move |tx| {
            let now = tx.database_time(&clock)?;
            let is_known = match &device {
                Some(device) => tx.is_known_device(device, username.as_ref(), now)?,
                None => false,
            };
            let user = match &username {
                Some(username) => tx.find_user_id(username)?,
                None => None,
            };
            let attempt = match &device {
                Some(device) if is_known => {
                    let device = base64url(device.as_bytes());
                    Attempt::from_known_device(&hashed_name, user.as_ref(), &device)
                }
                _ => Attempt::from_anywhere(&hashed_name, user.as_ref(), address),
            };
            let verdict = tx.admit(&attempt, now)?;
            Ok((attempt, is_known, verdict))
        });
        let (attempt, is_from_known_device, verdict) = admitted.await?;
        Ok(match verdict {
            Verdict::Admitted => Admission::Admitted(Self {
                attempt,
                user_ref,
                is_from_known_device,
            }),
            Verdict::Busy => Admission::Busy,
            Verdict::Wait(wait) => Admission::Throttled(Throttled::wait(wait)),
            Verdict::Exhausted => Admission::Throttled(Throttled {
                reason: "in_a_row",
                retry_after: ACCOUNT_AND_ADDRESS.most,
                advice: "Use a browser that signed in before, or ask for a new password."
                    .to_owned(),
            }),
        })
    }

    /// Returns whether the device cookie was issued to a browser in which this user signed in before.
    pub(super) fn is_from_known_device(&self) -> bool {
        self.is_from_known_device
    }

    /// Returns the attempt and the bucket that counts the account of `user` from any address.
    pub(super) fn buckets(&self, user: &UserId) -> (Attempt, Bucket) {
        let account = throttle::account(&self.user_ref, Some(user));
        (self.attempt.clone(), account)
    }

    /// Counts a failure, before it is answered. Returns whether the network has used the last of its free failures.
    pub(super) async fn record_failure(self, app: &App) -> Result<bool, HandlerError> {
        let clock = app.clock.clone();
        let counted = app.page_store.transaction(move |tx| {
            let now = tx.database_time(&clock)?;
            tx.record_failure(&self.attempt, now)
        });
        Ok(counted.await?)
    }

    /// Returns the room of an attempt that was not evaluated, or whose session was not stored. Does not wait behind
    /// other pages, because the attempt counts as abandoned if this fails.
    pub(super) async fn refund(self, app: &App) {
        let refunded = app
            .store
            .transaction(move |tx| tx.refund_attempt(&self.attempt));
        if let Err(error) = refunded.await {
            tracing::warn!(event = "storage.error", reason = "throttle", %error);
        }
    }
}

impl Throttled {
    fn wait(wait: Duration) -> Self {
        let seconds = whole_seconds(wait);
        let wait_for = match seconds {
            1 => "a second".to_owned(),
            2..=90 => format!("{seconds} seconds"),
            _ => format!("{} minutes", seconds.div_ceil(60)),
        };
        Self {
            reason: "wait",
            retry_after: wait,
            advice: format!("Wait {wait_for}, then try again."),
        }
    }
}

/// Counts the result of a sign-in in the metrics.
pub(super) fn count(result: &'static str) {
    LOGINS.count(["password".into(), result.into()]);
}
