//! Revocation (RFC 7009): the application revokes its tokens, and measures how soon its API refuses the access token
//! that it has just accepted.

use std::time::Duration;

use reqwest::StatusCode;
use tokio::time::{sleep, timeout};

use super::Application;
use super::messages::Answer;
use super::visit::{Finding, Outcome, Panel, Visit};

/// Maximum time until the API refuses the token (3 s), three times the promised time.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Interval between two calls.
const PAUSE: Duration = Duration::from_millis(5);

/// The refusal of the access token.
struct Refusal {
    answer: Answer,
    /// Number of calls that the API accepted before.
    accepted: u32,
    /// Time since the revocation request.
    after: Duration,
}

impl Application {
    /// Revokes the refresh token, and shows that both tokens are refused.
    pub async fn revoke(&self, visit: &mut Visit) {
        if visit.revoked {
            return;
        }
        // The token must not expire during the measurement. The API allows 30 s of leeway, so a token that has not
        // expired yet is sufficient.
        if (visit.tokens.as_ref()).is_some_and(|tokens| tokens.expires_at <= self.clock.now()) {
            self.refresh(visit).await;
        }
        let Some(tokens) = visit.tokens.clone() else {
            return;
        };
        let before = self.orders(&tokens.access).await;
        let start = self.clock.uptime();
        let form = [("token", tokens.refresh.as_str())];
        let (sent, answer) = self.post("/oauth2/revoke", &form).await;
        let refusal = self
            .refusal(&tokens.access)
            .await
            .map(|(answer, accepted)| Refusal {
                answer,
                accepted,
                after: self.clock.uptime().since(start),
            });
        let (_, retried) = self.send_refresh_token(&tokens.refresh).await;
        visit.revoked = answer.is(StatusCode::OK) && retried.is(StatusCode::BAD_REQUEST);
        let panels = vec![
            Panel::new("Sent by the application, with its client secret", sent),
            Panel::new("The response", answer.to_string()),
            Panel::new(
                "The same access token, at the API",
                match &refusal {
                    Some(refusal) => refusal.answer.to_string(),
                    None => format!("not refused within {} s", TIMEOUT.as_secs()),
                },
            ),
            Panel::new(
                "The same refresh token, tried once more",
                retried.to_string(),
            ),
        ];
        visit.show(6, Outcome::of(visit.revoked && refusal.is_some()), panels);
        // If the API refused the token before, the time means nothing.
        if let Some(refusal) = refusal.filter(|_| before.is(StatusCode::OK)) {
            visit.find(6, refusal.finding());
        }
    }

    /// Sends the code a second time, and shows that the grant is revoked.
    pub async fn replay_code(&self, visit: &mut Visit) {
        if visit.revoked || visit.tokens.is_none() {
            return;
        }
        let (sent, answer) = self.send_code(visit).await;
        self.show_theft(visit, 7, sent, &answer).await;
    }

    /// Sends a refresh token that was replaced twice, and shows that the grant is revoked. The token that was replaced
    /// once has a grace period, for clients that lost a response.
    pub async fn reuse_refresh_token(&self, visit: &mut Visit) {
        let Some(first) = visit.tokens.clone().filter(|_| !visit.revoked) else {
            return;
        };
        for _ in 0..2 {
            self.refresh(visit).await;
        }
        let (sent, answer) = self.send_refresh_token(&first.refresh).await;
        self.show_theft(visit, 8, sent, &answer).await;
    }

    /// Shows how the server answered an attacker, and that the API refuses the application's own access token.
    async fn show_theft(&self, visit: &mut Visit, step: usize, sent: String, answer: &Answer) {
        let Some(tokens) = visit.tokens.clone() else {
            return;
        };
        let refusal = self.refusal(&tokens.access).await;
        visit.revoked = answer.is(StatusCode::BAD_REQUEST) && refusal.is_some();
        let panels = vec![
            Panel::new("Sent by an attacker who has the client secret, too", sent),
            Panel::new("The response", answer.to_string()),
            Panel::new(
                "The access token of the application, at the API",
                match &refusal {
                    Some((answer, _)) => answer.to_string(),
                    None => format!("not refused within {} s", TIMEOUT.as_secs()),
                },
            ),
        ];
        visit.show(step, Outcome::of(visit.revoked), panels);
    }

    /// Calls the API until it refuses the token. Returns the response, and how often the API accepted the token before.
    async fn refusal(&self, access: &str) -> Option<(Answer, u32)> {
        let calls = async {
            let mut accepted = 0;
            loop {
                let answer = self.orders(access).await;
                if answer.is(StatusCode::UNAUTHORIZED) {
                    return (answer, accepted);
                }
                accepted += u32::from(answer.is(StatusCode::OK));
                sleep(PAUSE).await;
            }
        };
        timeout(TIMEOUT, calls).await.ok()
    }
}

impl Refusal {
    fn finding(&self) -> Finding {
        let meanwhile = match self.accepted {
            0 => String::new(),
            1 => ", and once more in the meantime".to_owned(),
            times => format!(", and {times} more times in the meantime"),
        };
        Finding {
            figure: format!("{} ms", self.after.as_millis().max(1)),
            text: format!(
                "from the revocation request until the API, which does not call the server, refused \
                 the access token. It accepted the token just before{meanwhile}."
            ),
        }
    }
}
