//! A client of the stories: it begins requests and redeems codes.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use portcullis::oauth::client::{AuthMethod, Client};
use portcullis::secret::{Secret, sha256};
use serde_json::Value;

use super::browser::{self, Answer};
use super::journal::{self, Exchange};

/// The PKCE verifier of all stories.
pub const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

/// The challenge of a verifier (RFC 7636 §4.2).
pub fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(sha256(verifier.as_bytes()))
}

/// A registered client and its secret.
#[derive(Clone)]
pub struct Party {
    pub client: Client,
    pub secret: Option<Secret>,
    base: String,
    http: reqwest::Client,
}

/// A token answer.
#[derive(Clone, Debug)]
pub struct Tokens(pub Value);

impl Party {
    pub fn new(base: &str, client: Client, secret: Option<Secret>) -> Self {
        Self {
            client,
            secret,
            base: base.to_owned(),
            http: browser::http(base),
        }
    }

    /// The same client, talking to another node.
    pub fn at(&self, base: &str) -> Self {
        Self {
            base: base.to_owned(),
            ..self.clone()
        }
    }

    pub fn id(&self) -> &str {
        self.client.id.as_str()
    }

    pub fn redirect_uri(&self) -> &str {
        &self.client.redirect_uris[0]
    }

    /// The parameters of a valid request, with some replaced, added, or (when empty) left out.
    pub fn parameters(&self, changed: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut parameters: Vec<(String, String)> = [
            ("client_id", self.id()),
            ("redirect_uri", self.redirect_uri()),
            ("response_type", "code"),
            ("scope", "openid"),
            ("state", "st-4711"),
            ("nonce", "n-0815"),
            ("code_challenge", &challenge(VERIFIER)),
            ("code_challenge_method", "S256"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        for (name, value) in changed {
            parameters.retain(|(known, _)| known != name);
            if !value.is_empty() {
                parameters.push(((*name).to_owned(), (*value).to_owned()));
            }
        }
        parameters
    }

    /// A request as the path that the browser opens.
    pub fn request(&self, changed: &[(&str, &str)]) -> String {
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(self.parameters(changed))
            .finish();
        format!("/oauth2/authorize?{query}")
    }

    /// A form post with this client's own authentication.
    pub async fn posts(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let mut fields = fields.to_vec();
        let mut authorization = None;
        let secret = self
            .secret
            .as_ref()
            .map(|secret| secret.expose().to_owned())
            .unwrap_or_default();
        match self.client.auth_method {
            AuthMethod::Basic => authorization = Some(basic(self.id(), &secret)),
            AuthMethod::Post => {
                fields.extend([("client_id", self.id()), ("client_secret", secret.as_str())])
            }
            AuthMethod::None => fields.push(("client_id", self.id())),
        }
        let headers: Vec<(&str, &str)> = authorization
            .iter()
            .map(|value| ("Authorization", value.as_str()))
            .collect();
        self.posts_raw(path, &headers, &fields).await
    }

    /// A form post with nothing added.
    pub async fn posts_raw(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        fields: &[(&str, &str)],
    ) -> Answer {
        let mut request = self
            .http
            .post(format!("{}{path}", self.base))
            .header("Host", "op.example")
            .form(fields);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let started = std::time::Instant::now();
        let answer = Answer::read(request.send().await.unwrap()).await;
        journal::note(|| Exchange {
            method: "POST".to_owned(),
            target: path.to_owned(),
            body: Some(
                form_urlencoded::Serializer::new(String::new())
                    .extend_pairs(fields)
                    .finish(),
            ),
            answer: answer.clone(),
            took: started.elapsed(),
        });
        answer
    }

    /// Redeems a code.
    pub async fn redeems(&self, code: &str) -> Answer {
        self.redeems_with(code, &[]).await
    }

    /// Redeems a code with some parameters replaced or (when empty) left out.
    pub async fn redeems_with(&self, code: &str, changed: &[(&str, &str)]) -> Answer {
        let mut fields = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", self.redirect_uri()),
            ("code_verifier", VERIFIER),
        ];
        for (name, value) in changed {
            fields.retain(|(known, _)| known != name);
            if !value.is_empty() {
                fields.push((name, value));
            }
        }
        self.posts("/oauth2/token", &fields).await
    }

    /// Refreshes, with more parameters if wanted.
    pub async fn refreshes(&self, token: &str, more: &[(&str, &str)]) -> Answer {
        let mut fields = vec![("grant_type", "refresh_token"), ("refresh_token", token)];
        fields.extend_from_slice(more);
        self.posts("/oauth2/token", &fields).await
    }

    /// Asks about a token, as a resource server does.
    pub async fn introspects(&self, token: &str) -> Answer {
        self.posts("/oauth2/introspect", &[("token", token)]).await
    }

    /// Revokes a token of either kind.
    pub async fn revokes(&self, token: &str) -> Answer {
        self.posts("/oauth2/revoke", &[("token", token)]).await
    }
}

/// The value of a Basic header.
pub fn basic(id: &str, secret: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")))
}

impl Answer {
    /// The tokens of a success.
    #[track_caller]
    pub fn ok(&self) -> Tokens {
        assert_eq!(self.status, 200, "{}", self.body);
        Tokens(self.json())
    }
}

impl Tokens {
    pub fn access(&self) -> &str {
        self.0["access_token"].as_str().unwrap()
    }

    pub fn refresh(&self) -> &str {
        self.0["refresh_token"].as_str().unwrap()
    }

    pub fn id_claims(&self) -> Value {
        claims(self.0["id_token"].as_str().unwrap())
    }

    pub fn access_claims(&self) -> Value {
        claims(self.access())
    }
}

/// The claims of a JWT, unverified.
pub fn claims(token: &str) -> Value {
    part(token, 1)
}

/// The header of a JWT.
pub fn header(token: &str) -> Value {
    part(token, 0)
}

fn part(token: &str, index: usize) -> Value {
    let text = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
}
