//! A place with people, an API and an application, whose servers are spoken to over HTTP.

use portcullis::secret::Secret;

use super::place::{Place, Running};
use super::server::{AUDIENCE, PASSWORD, confidential};
use super::{Browser, ISSUER, Party};

pub struct Site {
    pub place: Place,
    pub client_id: String,
    pub secret: Secret,
}

impl Site {
    /// alice, `web` and the API of the stories, and rates that no test meets.
    pub fn open(mut place: Place) -> Self {
        place.told = [
            ("PORTCULLIS__ISSUER", ISSUER),
            ("PORTCULLIS__LISTEN__PUBLIC", "127.0.0.1:0"),
            ("PORTCULLIS__LIMITS__PER_IP", "1000000"),
            ("PORTCULLIS__LIMITS__PER_CLIENT", "1000000"),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .to_vec();
        let json = ["--format", "json"];
        let api = ["--audience", AUDIENCE, "--name", "Orders"];
        let scope = ["--scope", "orders:read"];
        place.done(&[&["resource", "create"], &api[..], &scope].concat());
        place.told(&["user", "create", "alice", "--password-stdin"], PASSWORD);
        let web = ["client", "create", "--name", "Corner Shop"];
        let more = [
            "--redirect-uri",
            "https://app.example/cb",
            "--scope",
            "openid",
        ];
        let web = place.done(&[&web[..], &["--resource", AUDIENCE], &more, &json].concat());
        let web: serde_json::Value = serde_json::from_str(&web).unwrap();
        Self {
            place,
            client_id: web["client_id"].as_str().unwrap().to_owned(),
            secret: Secret::from_text(web["client_secret"].as_str().unwrap()),
        }
    }

    /// `web`, at a server.
    pub fn web(&self, base: &str) -> Party {
        let client = confidential(&self.client_id, "https://app.example/cb");
        Party::new(base, client, Some(self.secret.clone()))
    }
}

/// Where a server answers.
pub fn base(running: &Running) -> String {
    format!("http://{}", running.started("listen"))
}

/// Its management listener.
pub fn management(running: &Running) -> String {
    format!("http://{}", running.started("management"))
}

/// What a path of a listener says: status and text.
pub async fn asks(base: &str, path: &str) -> (u16, String) {
    let answer = Browser::new(base).get(path).await;
    (answer.status, answer.body)
}

/// A sample of a page of figures.
pub fn sample(page: &str, series: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(series))?;
    line.strip_prefix(' ')?.parse().ok()
}
