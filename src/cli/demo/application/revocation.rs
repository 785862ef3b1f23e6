//! Revocation (RFC 7009): the application hands its tokens back, and measures how soon its API refuses
//! what it has just accepted.

use std::time::Duration;

use reqwest::StatusCode;
use tokio::time::{sleep, timeout};

use super::Application;
use super::messages::Answer;
use super::visit::{Finding, Outcome, Panel, Visit};

/// How long the API may take: three times what is promised.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two calls.
const PAUSE: Duration = Duration::from_millis(5);

/// The API's refusal.
struct Refusal {
    answer: Answer,
    /// How many calls it answered before.
    accepted: u32,
    /// From the request to revoke on.
    after: Duration,
}

impl Application {
    /// Hands the refresh token back, and shows that neither token is good for anything any more.
    pub async fn revoke(&self, visit: &mut Visit) {
        if visit.revoked {
            return;
        }
        // A token that is about to expire would prove nothing. The API gives 30 s on top, so this
        // one cannot expire while it is tried.
        if (visit.tokens.as_ref()).is_some_and(|held| held.expires_at <= self.clock.now()) {
            self.refresh(visit).await;
        }
        let Some(held) = visit.tokens.clone() else {
            return;
        };
        let before = self.orders(&held.access).await;
        let begun = self.clock.uptime();
        let form = [("token", held.refresh.as_str())];
        let (sent, answer) = self.asks("/oauth2/revoke", &form).await;
        let refusal = self
            .refusal(&held.access)
            .await
            .map(|(answer, accepted)| Refusal {
                answer,
                accepted,
                after: self.clock.uptime().since(begun),
            });
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", held.refresh.as_str()),
        ];
        let (_, retried) = self.asks("/oauth2/token", &form).await;
        visit.revoked = answer.is(StatusCode::OK) && retried.is(StatusCode::BAD_REQUEST);
        let panels = vec![
            Panel::new("Sent by the application, with its client secret", sent),
            Panel::new("The answer", answer.to_string()),
            Panel::new(
                "The same access token, at the API",
                match &refusal {
                    Some(refusal) => refusal.answer.to_string(),
                    None => format!("not refused within {} s", PATIENCE.as_secs()),
                },
            ),
            Panel::new(
                "The same refresh token, tried once more",
                retried.to_string(),
            ),
        ];
        visit.show(6, Outcome::of(visit.revoked && refusal.is_some()), panels);
        // What was refused before says nothing about the time that news takes.
        if let Some(refusal) = refusal.filter(|_| before.is(StatusCode::OK)) {
            visit.find(6, refusal.finding());
        }
    }

    /// Calls the API until it refuses: its answer, and how often it accepted the token before.
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
        timeout(PATIENCE, calls).await.ok()
    }
}

impl Refusal {
    fn finding(&self) -> Finding {
        let meanwhile = match self.accepted {
            0 => String::new(),
            1 => ", and once more meanwhile".to_owned(),
            times => format!(", and {times} times more meanwhile"),
        };
        Finding {
            figure: format!("{} ms", self.after.as_millis().max(1)),
            text: format!(
                "from the request to revoke until the API, which never asked the server, refused \
                 the access token. It accepted the token just before{meanwhile}."
            ),
        }
    }
}
