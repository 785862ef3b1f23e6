//! What the application says to the server and to its API, over its own connection, and how that is
//! shown.

use std::fmt;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::WWW_AUTHENTICATE;
use serde_json::{Value, json};

use super::Application;
use super::visit::{Outcome, Panel, Tokens, Visit};
use crate::secret::from_base64url;

impl Application {
    /// Trades the code for tokens.
    pub async fn redeem(&self, visit: &mut Visit, code: &str) {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", &self.callback()),
            ("code_verifier", &visit.verifier),
        ];
        let (sent, answer) = self.asks("/oauth2/token", &form).await;
        let genuine = decoded(&answer.body, "id_token")
            .is_some_and(|(_, claims)| claims["nonce"] == visit.nonce.as_str());
        visit.tokens = self.tokens(&answer.body).filter(|_| genuine);
        visit.show(
            3,
            Outcome::of(visit.tokens.is_some()),
            told(sent, &answer.body),
        );
    }

    /// Buys the next tokens with the refresh token.
    pub async fn refresh(&self, visit: &mut Visit) {
        let Some(held) = visit.tokens.clone() else {
            return;
        };
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", held.refresh.as_str()),
        ];
        let (sent, answer) = self.asks("/oauth2/token", &form).await;
        let next = self.tokens(&answer.body);
        visit.show(5, Outcome::of(next.is_some()), told(sent, &answer.body));
        visit.tokens = next.or(Some(held));
    }

    /// Calls the API with the access token.
    pub async fn call(&self, visit: &mut Visit) {
        let Some(Tokens { access, .. }) = visit.tokens.clone() else {
            return;
        };
        let answer = self.orders(&access).await;
        let start = &access[..access.len().min(24)];
        let sent = format!("GET {}\nAuthorization: Bearer {start}…", self.api());
        let panels = vec![
            Panel::new("Sent by the application", sent),
            Panel::new("The API's answer", answer.to_string()),
        ];
        let outcome = match visit.revoked && answer.is(StatusCode::UNAUTHORIZED) {
            true => Outcome::Refused,
            false => Outcome::of(answer.is(StatusCode::OK)),
        };
        visit.show(4, outcome, panels);
    }

    /// What the API answers to this access token.
    pub async fn orders(&self, access: &str) -> Answer {
        Answer::of(self.http.get(self.api()).bearer_auth(access)).await
    }

    fn api(&self) -> String {
        format!("{}/api/orders", self.home)
    }

    /// A form with the client's credentials: what was sent, and what came back.
    pub async fn asks(&self, path: &str, form: &[(&str, &str)]) -> (String, Answer) {
        let url = format!("{}{path}", self.issuer);
        let secret = Some(self.client_secret.expose());
        let request = self.http.post(&url).form(form);
        let request = request.basic_auth(self.client_id.as_str(), secret);
        (message("POST", &url, form), Answer::of(request).await)
    }

    fn tokens(&self, answer: &Value) -> Option<Tokens> {
        let text = |name: &str| answer[name].as_str().map(str::to_owned);
        let lifetime = Duration::from_secs(answer["expires_in"].as_u64()?);
        Some(Tokens {
            access: text("access_token")?,
            refresh: text("refresh_token")?,
            expires_at: self.clock.now() + lifetime,
        })
    }
}

/// What came back.
pub struct Answer {
    /// `None`: nothing did.
    status: Option<StatusCode>,
    /// Why a token was refused (RFC 6750 §3).
    challenge: Option<String>,
    body: Value,
}

impl Answer {
    async fn of(request: reqwest::RequestBuilder) -> Self {
        match request.send().await {
            Ok(response) => {
                let challenge = response.headers().get(WWW_AUTHENTICATE);
                Self {
                    status: Some(response.status()),
                    challenge: challenge.and_then(|text| Some(text.to_str().ok()?.to_owned())),
                    body: response.json().await.unwrap_or_default(),
                }
            }
            Err(error) => Self {
                status: None,
                challenge: None,
                body: json!({ "error": error.to_string() }),
            },
        }
    }

    /// Whether the status is this one.
    pub fn is(&self, status: StatusCode) -> bool {
        self.status == Some(status)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}")?,
            None => write!(f, "no answer")?,
        }
        if let Some(challenge) = &self.challenge {
            write!(f, "\nWWW-Authenticate: {challenge}")?;
        }
        match &self.body {
            Value::Null => Ok(()),
            body => write!(f, "\n\n{body:#}"),
        }
    }
}

fn told(sent: String, answer: &Value) -> Vec<Panel> {
    let mut panels = vec![Panel::new(
        "Sent by the application, with its client secret",
        sent,
    )];
    for (name, label) in [
        ("id_token", "ID token, decoded: who signed in"),
        (
            "access_token",
            "Access token, decoded: what the API will see",
        ),
    ] {
        if let Some((header, claims)) = decoded(answer, name) {
            panels.push(Panel::new(label, format!("{header:#}\n{claims:#}")));
        }
    }
    if panels.len() == 1 {
        panels.push(Panel::new("The answer", format!("{answer:#}")));
    }
    panels
}

/// A message as people read it.
pub fn message(method: &str, url: &str, parameters: &[(&str, &str)]) -> String {
    let lines: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("  {name} = {value}"))
        .collect();
    format!("{method} {url}\n{}", lines.join("\n"))
}

/// Header and claims of a JWT, to be looked at; the API verifies, this page only shows.
fn decoded(answer: &Value, name: &str) -> Option<(Value, Value)> {
    let mut parts = answer[name].as_str()?.split('.');
    let mut part = || serde_json::from_slice(&from_base64url(parts.next()?)?).ok();
    Some((part()?, part()?))
}
