//! Rows of the catalogue: signing in, the session that follows, and its end.

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
use crate::expect::{logged, login_page, redirected, seen};
use crate::fixtures::{Answer, Browser, Server, TestClient};

pub const SESSION: &str = "__Host-sid";

pub const INTERACTION: &str = "__Host-ix";

pub const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");

/// 43 characters of which nobody knows anything.
pub const RANDOM: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// A login page and the browser that has it.
#[derive(Clone)]
pub struct Door {
    pub browser: Browser,
    pub authorization: String,
    pub csrf: String,
}

impl Door {
    pub async fn opens(server: &Server, client: &TestClient) -> Self {
        let mut browser = server.browser();
        let page = browser.opens(&client.request(&[])).await;
        Self {
            authorization: page.hidden("authorization"),
            csrf: page.hidden("csrf"),
            browser,
        }
    }

    /// The same, elsewhere, as a proxy tells that the server trusts.
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

/// A person with this password; none for somebody who was only invited.
pub async fn person(server: &Server, username: &str, password: Option<&str>) -> UserId {
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

/// The ordinary failure page.
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

/// Signed in: on to the authorization, with a session.
pub fn passed(answer: &Answer) -> Result<(), String> {
    let on = answer.status == 200
        && answer
            .onward()
            .is_some_and(|to| to.starts_with("/oauth2/authorize?authorization="));
    if on && crate::expect::sets_session(answer) {
        Ok(())
    } else {
        Err(format!("got {}, want a session", seen(answer)))
    }
}

pub fn sessions(stage: &Stage) -> i64 {
    stage.server.count("SELECT count(*) AS n FROM sessions")
}

/// Whether the cookie's browser is signed in, as the authorization endpoint sees it.
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

/// This cookie is nobody's, and the server says so in its log.
pub async fn is_nobody(
    stage: &Stage,
    case: usize,
    server: &Server,
    web: &TestClient,
    cookie: &str,
) {
    let (is_in, answer) = signed_in(server, web, cookie).await;
    stage.check(case, !is_in, || format!("signed in: {}", seen(&answer)));
    stage.expect(case, redirected(&answer, "login_required", Some("st-4711")));
    stage.expect(case, logged(&answer, "session.invalid", ""));
    let mut browser = server.browser();
    browser
        .cookies
        .insert(SESSION.to_owned(), cookie.to_owned());
    let account = browser.get("/account").await;
    stage.check(case, account.body.contains("not signed in"), || {
        seen(&account)
    });
    stage.expect(case, logged(&account, "session.invalid", ""));
}

/// Every address that a page leads to.
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
