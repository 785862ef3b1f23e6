//! Requests of the application to the server and to its API, and how they are displayed.

use std::fmt;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::WWW_AUTHENTICATE;
use serde_json::{Value, json};

use super::Application;
use super::visit::{Outcome, Panel, Tokens, Visit};
use crate::secret::from_base64url;

impl Application {
    /// Exchanges the code for tokens.
    pub async fn redeem(&self, visit: &mut Visit) {
        let (sent, answer) = self.send_code(visit).await;
        let is_genuine = decoded(&answer.body, "id_token")
            .is_some_and(|(_, claims)| claims["nonce"] == visit.nonce.as_str());
        visit.tokens = self.tokens(&answer.body).filter(|_| is_genuine);
        visit.show(
            3,
            Outcome::of(visit.tokens.is_some()),
            panels(sent, &answer.body),
        );
    }

    /// Sends the code to the token endpoint.
    pub async fn send_code(&self, visit: &Visit) -> (String, Answer) {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", visit.code.as_str()),
            ("redirect_uri", &self.callback()),
            ("code_verifier", &visit.verifier),
        ];
        self.post("/oauth2/token", &form).await
    }

    /// Sends a refresh token to the token endpoint.
    pub async fn send_refresh_token(&self, token: &str) -> (String, Answer) {
        let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
        self.post("/oauth2/token", &form).await
    }

    /// Requests new tokens with the refresh token.
    pub async fn refresh(&self, visit: &mut Visit) {
        let Some(tokens) = visit.tokens.clone() else {
            return;
        };
        let (sent, answer) = self.send_refresh_token(&tokens.refresh).await;
        let next = self.tokens(&answer.body);
        visit.show(5, Outcome::of(next.is_some()), panels(sent, &answer.body));
        visit.tokens = next.or(Some(tokens));
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
            Panel::new("The API's response", answer.to_string()),
        ];
        let outcome = match visit.revoked && answer.is(StatusCode::UNAUTHORIZED) {
            true => Outcome::Refused,
            false => Outcome::of(answer.is(StatusCode::OK)),
        };
        visit.show(4, outcome, panels);
    }

    /// Returns the API's response to this access token.
    pub async fn orders(&self, access: &str) -> Answer {
        Answer::of(self.http.get(self.api()).bearer_auth(access)).await
    }

    fn api(&self) -> String {
        format!("{}/api/orders", self.home)
    }

    /// Posts a form with the client's credentials. Returns the displayed request and the response.
    pub async fn post(&self, path: &str, form: &[(&str, &str)]) -> (String, Answer) {
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

/// A response.
pub struct Answer {
    /// `None` if there was no response.
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

    /// Returns whether the response has this status.
    pub fn is(&self, status: StatusCode) -> bool {
        self.status == Some(status)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}")?,
            None => write!(f, "no response")?,
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

fn panels(sent: String, answer: &Value) -> Vec<Panel> {
    let mut panels = vec![Panel::new(
        "Sent by the application, with its client secret",
        sent,
    )];
    for (name, label) in [
        ("id_token", "ID token, decoded: who signed in"),
        (
            "access_token",
            "Access token, decoded: what the API receives",
        ),
    ] {
        if let Some((header, claims)) = decoded(answer, name) {
            panels.push(Panel::new(label, format!("{header:#}\n{claims:#}")));
        }
    }
    if panels.len() == 1 {
        panels.push(Panel::new("The response", format!("{answer:#}")));
    }
    panels
}

/// Formats a request for display.
pub fn message(method: &str, url: &str, parameters: &[(&str, &str)]) -> String {
    let lines: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("  {name} = {value}"))
        .collect();
    format!("{method} {url}\n{}", lines.join("\n"))
}

/// Decodes header and claims of a JWT for display, without verification.
fn decoded(answer: &Value, name: &str) -> Option<(Value, Value)> {
    let mut parts = answer[name].as_str()?.split('.');
    let mut part = || serde_json::from_slice(&from_base64url(parts.next()?)?).ok();
    Some((part()?, part()?))
}
