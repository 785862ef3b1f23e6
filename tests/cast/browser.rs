//! A person with a browser: it keeps cookies, and follows a redirect only when told to.

use std::collections::BTreeMap;

use super::client::Party;
use super::journal::{self, Exchange};
use super::log;
use super::server::{ISSUER, PASSWORD};
use super::tls;

/// A browser at the issuer.
#[derive(Clone)]
pub struct Browser {
    base: String,
    /// The issuer, whose pages these are.
    pub issuer: String,
    http: reqwest::Client,
    pub cookies: BTreeMap<String, String>,
    /// Where the proxy in front says that it is, if there is one.
    pub address: Option<String>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: String,
}

/// A client that follows nothing and trusts the stories' certificate alone: reading the system's takes
/// longer than a whole sign-in.
pub fn http(base: &str) -> reqwest::Client {
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        // The server closes an idle connection after five seconds; a request must not cross that.
        .pool_idle_timeout(std::time::Duration::from_secs(3));
    let certificates = match base.starts_with("https:") {
        true => vec![reqwest::Certificate::from_pem(tls::ours().pem.as_bytes()).unwrap()],
        false => Vec::new(),
    };
    builder.tls_certs_only(certificates).build().unwrap()
}

impl Browser {
    pub fn new(base: &str) -> Self {
        Self {
            base: base.to_owned(),
            issuer: ISSUER.to_owned(),
            http: http(base),
            cookies: BTreeMap::new(),
            address: None,
        }
    }

    /// The same cookies, elsewhere, as a proxy tells that the server trusts.
    pub fn from(&self, address: &str) -> Self {
        Self {
            address: Some(address.to_owned()),
            ..self.clone()
        }
    }

    /// The same cookies, at another node.
    pub fn at(&self, base: &str) -> Self {
        Self {
            base: base.to_owned(),
            ..self.clone()
        }
    }

    /// A request that carries and keeps cookies.
    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> Answer {
        let path = path.strip_prefix(self.issuer.as_str()).unwrap_or(path);
        let mut request = self
            .http
            .request(method.parse().unwrap(), format!("{}{path}", self.base))
            .header("Host", "op.example");
        if !self.cookies.is_empty() {
            let cookies: Vec<String> = self
                .cookies
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            request = request.header("Cookie", cookies.join("; "));
        }
        if let Some(address) = &self.address {
            request = request.header("X-Forwarded-For", address);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body.clone() {
            request = request.body(body);
        }
        let started = std::time::Instant::now();
        let answer = Answer::read(request.send().await.unwrap()).await;
        journal::note(|| Exchange {
            method: method.to_owned(),
            target: path.to_owned(),
            body,
            answer: answer.clone(),
            took: started.elapsed(),
        });
        for cookie in answer.headers.get_all("set-cookie") {
            self.keep(cookie.to_str().unwrap());
        }
        answer
    }

    fn keep(&mut self, cookie: &str) {
        let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
        if cookie.contains("Max-Age=0") {
            self.cookies.remove(name);
        } else {
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path, &[], None).await
    }

    /// Posts a form as a page of ours does.
    pub async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let issuer = self.issuer.clone();
        let headers = [
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Origin", issuer.as_str()),
            ("Sec-Fetch-Site", "same-origin"),
        ];
        self.send("POST", path, &headers, Some(body)).await
    }

    /// Opens a request of `client` and follows our own redirects to a page or to the client.
    pub async fn opens(&mut self, url: &str) -> Answer {
        let mut answer = self.get(url).await;
        while let Some(next) = answer.own_redirect() {
            answer = self.get(&next).await;
        }
        answer
    }

    /// Asks userinfo with a bearer token.
    pub async fn asks_userinfo(&mut self, method: &str, token: &str) -> Answer {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str())];
        self.send(method, "/oauth2/userinfo", &headers, None).await
    }

    /// Fills in the login page that `page` is.
    pub async fn fills_in(&mut self, page: &Answer, username: &str, password: &str) -> Answer {
        let (authorization, csrf) = (page.hidden("authorization"), page.hidden("csrf"));
        let fields = [
            ("authorization", authorization.as_str()),
            ("csrf", &csrf),
            ("username", username),
            ("password", password),
        ];
        let answer = self.post("/login", &fields).await;
        match answer.own_redirect() {
            Some(next) => self.opens(&next).await,
            None => answer,
        }
    }

    /// Answers the consent page that `page` is, with everything ticked.
    pub async fn decides(&mut self, page: &Answer, decision: &str) -> Answer {
        let (authorization, csrf) = (page.hidden("authorization"), page.hidden("csrf"));
        let scopes = page.values("scope");
        let mut fields = vec![
            ("authorization", authorization.as_str()),
            ("csrf", &csrf),
            ("decision", decision),
        ];
        fields.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
        let answer = self.post("/consent", &fields).await;
        match answer.own_redirect() {
            Some(next) => self.opens(&next).await,
            None => answer,
        }
    }

    /// Signs in at `client`, allows it everything, and is back there.
    pub async fn signs_in(&mut self, client: &Party, username: &str) -> Answer {
        let page = self.opens(&client.request(&[])).await;
        assert!(
            page.body.contains("login-submit"),
            "no login page: {} {}",
            page.status,
            page.body
        );
        let page = self.fills_in(&page, username, PASSWORD).await;
        if page.body.contains("consent-allow") {
            self.decides(&page, "allow").await
        } else {
            page
        }
    }

    /// Signs out, by the button of the account page.
    pub async fn signs_out(&mut self) -> Answer {
        let csrf = self.get("/account").await.hidden("csrf");
        self.post("/oauth2/end_session", &[("csrf", &csrf)]).await
    }

    /// Goes through whatever is asked and returns the code that the client gets.
    pub async fn allows(&mut self, client: &Party) -> String {
        self.allows_request(&client.request(&[])).await
    }

    /// The same for one particular request. Whoever is not signed in is alice.
    pub async fn allows_request(&mut self, url: &str) -> String {
        let mut answer = self.opens(url).await;
        if answer.body.contains("login-submit") {
            answer = self.fills_in(&answer, "alice", PASSWORD).await;
        }
        if answer.body.contains("consent-allow") {
            answer = self.decides(&answer, "allow").await;
        }
        answer.callback("code").unwrap_or_else(|| {
            panic!(
                "no code: {} {:?} {}",
                answer.status,
                answer.location(),
                answer.body
            )
        })
    }
}

impl Answer {
    pub async fn read(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self {
            status,
            headers,
            body: response.text().await.unwrap_or_default(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn location(&self) -> Option<&str> {
        self.header("location")
    }

    /// Where the browser goes by itself: the redirect, or the refresh of a page that continues.
    pub fn onward(&self) -> Option<String> {
        let refresh = || {
            let rest = self
                .body
                .split_once("http-equiv=\"refresh\" content=\"0; url=")?
                .1;
            Some(rest.split_once('"')?.0.replace("&#38;", "&"))
        };
        self.location().map(str::to_owned).or_else(refresh)
    }

    /// The way onward, if it stays at the issuer.
    pub fn own_redirect(&self) -> Option<String> {
        self.onward().filter(|to| to.starts_with('/'))
    }

    /// A parameter of the redirect to the client.
    pub fn callback(&self, name: &str) -> Option<String> {
        let url = url::Url::parse(self.location()?).ok()?;
        url.query_pairs()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The value of a hidden field.
    pub fn hidden(&self, name: &str) -> String {
        self.values(name)
            .pop()
            .unwrap_or_else(|| panic!("no field {name} in {}", self.body))
    }

    /// The values of all inputs of a name.
    pub fn values(&self, name: &str) -> Vec<String> {
        self.body
            .split("<input")
            .skip(1)
            .map(|rest| rest.split('>').next().unwrap_or_default())
            .filter(|input| input.contains(&format!("name=\"{name}\"")))
            .filter_map(|input| {
                Some(
                    input
                        .split_once("value=\"")?
                        .1
                        .split_once('"')?
                        .0
                        .to_owned(),
                )
            })
            .collect()
    }

    /// The log's (event, reason) pairs of this request.
    pub fn logged(&self) -> Vec<(String, String)> {
        let field = |event: &log::Event, name: &str| event.get(name).cloned().unwrap_or_default();
        log::of(self.header("x-request-id").unwrap_or_default())
            .iter()
            .map(|event| (field(event, "event"), field(event, "reason")))
            .collect()
    }

    /// Asserts a refusal: public code and private reason.
    #[track_caller]
    pub fn refused(&self, code: &str, event: &str, reason: &str) {
        let public = self
            .callback("error")
            .unwrap_or_else(|| self.json()["error"].as_str().unwrap_or_default().to_owned());
        assert_eq!(public, code, "{}", self.body);
        let wanted = (event.to_owned(), reason.to_owned());
        assert!(
            self.logged().contains(&wanted),
            "logged {:?}, not {wanted:?}",
            self.logged()
        );
    }
}
