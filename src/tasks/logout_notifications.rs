//! Tells clients that a session has ended: OpenID Connect Back-Channel Logout 1.0.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::MissedTickBehavior;

use crate::config::limits::{LOGOUT_NOTIFICATIONS_EVERY, LOGOUT_TIME};
use crate::db::{self, LogoutNotification, Store};
use crate::id::{self, Sid};
use crate::key_manager::KeyManager;
use crate::metrics::BACKCHANNEL_LOGOUTS;
use crate::oauth::logout::{LOGOUT_TOKEN_TYP, LogoutClaims};
use crate::outbound::{Outbound, OutboundError, UrlSource};
use crate::secret::Entropy;
use crate::time::Clock;

/// Requests that a node sends at the same time.
const AT_ONCE: i64 = 32;

/// Sends the notifications that the transactions of ended sessions stored.
pub struct LogoutNotifier {
    /// The database.
    pub store: Store,
    /// The clock of the node.
    pub clock: Clock,
    /// Randomness for the `jti` of logout tokens.
    pub entropy: Entropy,
    /// The issuer of the tokens.
    pub issuer: String,
    /// The keys that sign them.
    pub key_manager: Arc<KeyManager>,
    /// The HTTP client.
    pub outbound: Outbound,
}

/// Why an attempt failed.
enum Failure {
    /// The request failed.
    Request(OutboundError),
    /// The client answered with another status than 200 or 204 (Back-Channel Logout §2.8).
    Status(u16),
    /// There is no key to sign with.
    Unsigned(String),
}

impl Failure {
    fn reason(&self) -> &'static str {
        match self {
            Self::Request(OutboundError::Url) => "url",
            Self::Request(OutboundError::Destination(_)) => "destination",
            Self::Request(_) => "unreachable",
            Self::Status(_) => "status",
            Self::Unsigned(_) => "unsigned",
        }
    }

    fn source(&self) -> String {
        match self {
            Self::Request(error) => error.to_string(),
            Self::Status(status) => status.to_string(),
            Self::Unsigned(error) => error.clone(),
        }
    }
}

impl LogoutNotifier {
    /// Sends due notifications, of sessions that ended elsewhere and of attempts that failed. Never returns.
    pub async fn run(&self) {
        let mut ticks = tokio::time::interval(LOGOUT_NOTIFICATIONS_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.send_waiting().await;
        }
    }

    /// Sends all due notifications once.
    pub async fn send_waiting(&self) {
        self.send_due(None).await;
    }

    /// Makes the first attempt for a session that has just ended. Waits at most 3 s for the clients, in parallel. What
    /// fails is repeated later.
    pub async fn session_ended(&self, sid: &Sid) {
        self.send_due(Some(sid.clone())).await;
    }

    async fn send_due(&self, sid: Option<Sid>) {
        // A node that must not sign leaves the notifications to others.
        if self.key_manager.check().await.is_err() {
            return;
        }
        loop {
            let taken = match self.take(sid.clone()).await {
                Ok(taken) => taken,
                Err(error) => {
                    tracing::error!(event = "storage.error", reason = "logout_notifications", severity = "high", %error);
                    return;
                }
            };
            if taken.is_empty() {
                return;
            }
            let (taken, sent) = (taken.len(), taken.into_iter().map(|one| self.send(one)));
            join_all(sent).await;
            // A user waits for the first attempt only.
            if sid.is_some() || i64::try_from(taken).is_ok_and(|taken| taken < AT_ONCE) {
                return;
            }
        }
    }

    async fn take(&self, sid: Option<Sid>) -> Result<Vec<LogoutNotification>, db::Error> {
        let (now, wanted) = (self.clock.now(), sid.clone());
        let is_due = self
            .store
            .read(move |tx| tx.has_due_logout_notification(wanted.as_ref(), now));
        if !is_due.await? {
            return Ok(Vec::new());
        }
        let taken = self
            .store
            .transaction(move |tx| tx.take_logout_notifications(sid.as_ref(), AT_ONCE, now));
        taken.await
    }

    async fn send(&self, notification: LogoutNotification) {
        let (client_id, attempt) = (notification.client_id.to_string(), notification.attempts);
        let outcome = self.post(&notification).await;
        let stored = match &outcome {
            Ok(()) => {
                tracing::info!(
                    event = "logout.backchannel_sent",
                    reason = "accepted",
                    client_id,
                    attempt
                );
                BACKCHANNEL_LOGOUTS.count(["sent".into()]);
                self.store
                    .transaction(move |tx| tx.drop_logout_notification(&notification))
                    .await
            }
            Err(failure) => {
                let (reason, source) = (failure.reason(), failure.source());
                tracing::warn!(
                    event = "logout.backchannel_failed",
                    reason,
                    client_id,
                    attempt,
                    source
                );
                BACKCHANNEL_LOGOUTS.count(["failed".into()]);
                match notification.is_last_attempt() {
                    true => self.give_up(notification, reason).await,
                    false => Ok(()),
                }
            }
        };
        if let Err(error) = stored {
            tracing::error!(event = "storage.error", reason = "logout_notifications", severity = "high", %error);
        }
    }

    async fn give_up(
        &self,
        notification: LogoutNotification,
        reason: &'static str,
    ) -> Result<(), db::Error> {
        let client_id = notification.client_id.to_string();
        let given_up = self
            .store
            .transaction(move |tx| tx.give_up_logout_notification(&notification));
        if given_up.await? {
            tracing::error!(
                event = "logout.backchannel_dead",
                reason,
                severity = "high",
                client_id
            );
            BACKCHANNEL_LOGOUTS.count(["dead".into()]);
        }
        Ok(())
    }

    async fn post(&self, notification: &LogoutNotification) -> Result<(), Failure> {
        let now = self.clock.now();
        let claims = LogoutClaims::new(
            &self.issuer,
            &notification.client_id,
            &notification.user_id,
            &notification.sid,
            id::uuid(&self.entropy, now),
            now,
        );
        let (keys, alg) = (self.key_manager.view(), notification.alg);
        // RSA is slow.
        let signed =
            tokio::task::spawn_blocking(move || keys.sign(alg, LOGOUT_TOKEN_TYP, &claims)).await;
        let token = match signed {
            Ok(Ok(token)) => token,
            Ok(Err(error)) => return Err(Failure::Unsigned(error.to_string())),
            Err(error) => return Err(Failure::Unsigned(error.to_string())),
        };
        let form = [("logout_token", token.as_str())];
        let sent = self.outbound.post_form(
            UrlSource::Administrator,
            &notification.uri,
            &form,
            LOGOUT_TIME,
        );
        match sent.await.map_err(Failure::Request)? {
            200 | 204 => Ok(()),
            status => Err(Failure::Status(status)),
        }
    }
}
