//! What the application says to the server and to its API, over its own connection, and how that is
//! shown.

use serde_json::{Value, json};

use super::Application;
use super::visit::{Panel, Tokens, Visit};
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
        let (sent, _, answer) = self.asks("/oauth2/token", &form).await;
        let genuine = decoded(&answer, "id_token")
            .is_some_and(|(_, claims)| claims["nonce"] == visit.nonce.as_str());
        visit.tokens = tokens(&answer).filter(|_| genuine);
        visit.show(3, visit.tokens.is_some(), told(sent, &answer));
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
        let (sent, _, answer) = self.asks("/oauth2/token", &form).await;
        let next = tokens(&answer);
        visit.show(5, next.is_some(), told(sent, &answer));
        visit.tokens = next.or(Some(held));
    }

    /// Hands the refresh token back, and shows that it buys nothing any more.
    pub async fn revoke(&self, visit: &mut Visit) {
        let Some(held) = visit.tokens.clone() else {
            return;
        };
        let form = [("token", held.refresh.as_str())];
        let (sent, status, _) = self.asks("/oauth2/revoke", &form).await;
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", held.refresh.as_str()),
        ];
        let (_, after, answer) = self.asks("/oauth2/token", &form).await;
        visit.revoked = status.starts_with("200") && after.starts_with("400");
        let panels = vec![
            Panel::new("Sent by the application, with its client secret", sent),
            Panel::new("The answer", status),
            Panel::new(
                "The same refresh token, tried once more",
                format!("{after}\n\n{answer:#}"),
            ),
        ];
        visit.show(6, visit.revoked, panels);
    }

    /// Calls the API with the access token.
    pub async fn call(&self, visit: &mut Visit) {
        let Some(Tokens { access, .. }) = visit.tokens.clone() else {
            return;
        };
        let url = format!("{}/api/orders", self.home);
        let request = self.http.get(&url).bearer_auth(&access);
        let (status, body) = read(request).await;
        let start = &access[..access.len().min(24)];
        let sent = format!("GET {url}\nAuthorization: Bearer {start}…");
        let answer = match body {
            Value::Null => status.clone(),
            body => format!("{status}\n\n{body:#}"),
        };
        let panels = vec![
            Panel::new("Sent by the application", sent),
            Panel::new("The API's answer", answer),
        ];
        visit.show(4, status.starts_with("200"), panels);
    }

    /// A form with the client's credentials: what was sent, the status, the answer.
    async fn asks(&self, path: &str, form: &[(&str, &str)]) -> (String, String, Value) {
        let url = format!("{}{path}", self.issuer);
        let secret = Some(self.client_secret.expose());
        let request = self.http.post(&url).form(form);
        let request = request.basic_auth(self.client_id.as_str(), secret);
        let (status, answer) = read(request).await;
        (message("POST", &url, form), status, answer)
    }
}

async fn read(request: reqwest::RequestBuilder) -> (String, Value) {
    match request.send().await {
        Ok(response) => {
            let status = response.status().to_string();
            (status, response.json().await.unwrap_or_default())
        }
        Err(error) => (
            "no answer".to_owned(),
            json!({ "error": error.to_string() }),
        ),
    }
}

fn tokens(answer: &Value) -> Option<Tokens> {
    let text = |name: &str| answer[name].as_str().map(str::to_owned);
    Some(Tokens {
        access: text("access_token")?,
        refresh: text("refresh_token")?,
    })
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
