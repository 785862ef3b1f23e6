//! Rows of the catalogue: sign-in, sessions, and their end.

pub mod account;
pub mod cookies;
pub mod forms;
pub mod kinds;
pub mod pages;
pub mod passwords;
pub mod sessions;

use portcullis::accounts::password::Password;
use portcullis::accounts::user::{User, Username};
use portcullis::id::UserId;

use crate::Stage;
use crate::expect::{logged, login_page, redirected, summary};
use crate::fixtures::{Answer, Browser, Server, TestClient};

pub const SESSION: &str = "__Host-sid";

pub const INTERACTION: &str = "__Host-ix";

pub const DEVICE: &str = "__Host-dev";

pub const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");

/// A well-formed value of 43 characters that the server never issued.
pub const RANDOM: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// An open login page and its browser.
#[derive(Clone)]
pub struct LoginForm {
    pub browser: Browser,
    pub authorization: String,
    pub csrf: String,
}

impl LoginForm {
    pub async fn opens(server: &Server, client: &TestClient) -> Self {
        let mut browser = server.browser();
        let page = browser.opens(&client.request(&[])).await;
        Self {
            authorization: page.hidden("authorization"),
            csrf: page.hidden("csrf"),
            browser,
        }
    }

    /// Returns the form with another client address, which a trusted proxy reports.
    pub fn from(self, address: &str) -> Self {
        Self {
            browser: self.browser.from(address),
            ..self
        }
    }

    pub fn fields<'a>(&'a self, username: &'a str, password: &'a str) -> [(&'a str, &'a str); 4] {
        [
            ("authorization", &self.authorization),
            ("csrf", &self.csrf),
            ("username", username),
            ("password", password),
        ]
    }

    pub async fn tries(&mut self, username: &str, password: &str) -> Answer {
        let fields = self
            .fields(username, password)
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let fields: Vec<(&str, &str)> = fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        self.browser.post("/login", &fields).await
    }
}

/// Creates a user with this password. An invited user has none.
pub async fn create_user(server: &Server, username: &str, password: Option<&str>) -> UserId {
    let (app, now) = (&server.app, server.clock.now());
    let user = User {
        id: UserId::new(&app.entropy, now),
        username: Username::parse(username).unwrap(),
        name: None,
        email: None,
        email_verified: false,
        claims: Default::default(),
        auth_epoch: 1,
        disabled_at: None,
        created_at: now,
        updated_at: now,
    };
    let phc = password.map(|password| {
        Password::parse(password)
            .unwrap()
            .hash(&app.config.login.argon2, &app.entropy)
            .unwrap()
    });
    let id = user.id.clone();
    server
        .write(move |tx| {
            tx.put_user(&user)?;
            phc.map_or(Ok(()), |phc| tx.put_password(&user.id, &phc, now))
        })
        .await;
    id
}

/// Checks that the response is the ordinary failure page.
pub fn failed(answer: &Answer) -> Result<(), String> {
    login_page(answer)?;
    logged(answer, "login.failed", "credentials")?;
    if answer.body.contains("Invalid user name or password") && !crate::expect::sets_session(answer)
    {
        Ok(())
    } else {
        Err(answer.body.clone())
    }
}

/// Checks that the user is signed in: the response sets a session and continues the authorization.
pub fn passed(answer: &Answer) -> Result<(), String> {
    let on = answer.status == 200
        && answer
            .onward()
            .is_some_and(|to| to.starts_with("/oauth2/authorize?authorization="));
    if on && crate::expect::sets_session(answer) {
        Ok(())
    } else {
        Err(format!("got {}, want a session", summary(answer)))
    }
}

pub fn sessions(stage: &Stage) -> i64 {
    stage.server.count("SELECT count(*) AS n FROM sessions")
}

/// Returns whether the authorization endpoint accepts the session cookie, and its response.
pub async fn signed_in(server: &Server, client: &TestClient, cookie: &str) -> (bool, Answer) {
    let mut browser = server.browser();
    browser
        .cookies
        .insert(SESSION.to_owned(), cookie.to_owned());
    let answer = browser.get(&client.request(&[("prompt", "none")])).await;
    (
        answer.callback("error").as_deref() != Some("login_required"),
        answer,
    )
}

/// Checks that the cookie is not a session, and that the server logs it.
pub async fn is_unknown_session(
    stage: &Stage,
    case: usize,
    server: &Server,
    web: &TestClient,
    cookie: &str,
) {
    let (is_in, answer) = signed_in(server, web, cookie).await;
    stage.check(case, !is_in, || format!("signed in: {}", summary(&answer)));
    stage.expect(case, redirected(&answer, "login_required", Some("st-4711")));
    stage.expect(case, logged(&answer, "session.invalid", ""));
    let mut browser = server.browser();
    browser
        .cookies
        .insert(SESSION.to_owned(), cookie.to_owned());
    let account = browser.get("/account").await;
    stage.check(case, account.body.contains("not signed in"), || {
        summary(&account)
    });
    stage.expect(case, logged(&account, "session.invalid", ""));
}

/// Returns every URL that a page refers to.
pub fn targets(body: &str) -> Vec<String> {
    ["href=\"", "action=\"", "src=\"", "url="]
        .iter()
        .flat_map(|attribute| {
            body.split(attribute)
                .skip(1)
                .filter_map(|rest| rest.split('"').next())
        })
        .map(str::to_owned)
        .collect()
}
