//! Rows of the catalogue: signing in, the session that follows, and its end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use portcullis::accounts::password::{Password, Weak};
use portcullis::accounts::user::{User, Username};
use portcullis::audit::{Event, Name};
use portcullis::id::UserId;
use portcullis::secret::{from_base64url, sha256};

use crate::cast::server::PASSWORD;
use crate::cast::{Answer, Browser, Db, ISSUER, Party, Server, log, raw};
use crate::expect::{
    consent_page, json_error, logged, login_page, page, page400, redirected, seen,
};
use crate::token_code::Flow;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a110),
    row!(a116),
    row!(a118),
    row!(a120),
    row!(a121),
    row!(a122),
    row!(a124),
    row!(a125),
    row!(a126),
    row!(a128),
    row!(a129),
    row!(a130),
    row!(a132),
    row!(a133),
    row!(a134),
    row!(a136),
    row!(a140),
    row!(a142),
    row!(a144),
    row!(a145),
    row!(a146),
    row!(a148),
    row!(a149),
    row!(a150),
];

const SESSION: &str = "__Host-sid";
const INTERACTION: &str = "__Host-ix";
const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");
/// 43 characters of which nobody knows anything.
const RANDOM: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// A login page and the browser that has it.
struct Door {
    browser: Browser,
    authorization: String,
    csrf: String,
}

impl Door {
    async fn opens(server: &Server, client: &Party) -> Self {
        let mut browser = server.browser();
        let page = browser.opens(&client.request(&[])).await;
        Self {
            authorization: page.hidden("authorization"),
            csrf: page.hidden("csrf"),
            browser,
        }
    }

    fn fields<'a>(&'a self, username: &'a str, password: &'a str) -> [(&'a str, &'a str); 4] {
        [
            ("authorization", &self.authorization),
            ("csrf", &self.csrf),
            ("username", username),
            ("password", password),
        ]
    }

    async fn tries(&mut self, username: &str, password: &str) -> Answer {
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
async fn person(server: &Server, username: &str, password: Option<&str>) -> UserId {
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
fn failed(answer: &Answer) -> Result<(), String> {
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
fn passed(answer: &Answer) -> Result<(), String> {
    let on = answer.status == 303
        && answer
            .location()
            .is_some_and(|to| to.starts_with("/oauth2/authorize?authorization="));
    if on && crate::expect::sets_session(answer) {
        Ok(())
    } else {
        Err(format!("got {}, want a session", seen(answer)))
    }
}

async fn a110(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut door = Door::opens(&stage.server, &web).await;
    let mut seen = BTreeSet::new();
    for (case, username, password) in [
        (1, "alice", "gravel-otter-92-damp"),
        (2, "ghost", PASSWORD),
        (3, "dave", PASSWORD),
    ] {
        let answer = door.tries(username, password).await;
        stage.expect(case, failed(&answer));
        stage.check(
            case,
            answer.header("content-length").unwrap() == answer.body.len().to_string(),
            || format!("{:?}", answer.headers),
        );
        // The field holds what was typed, whoever it is.
        let body = answer
            .body
            .replace(&format!("value=\"{username}\""), "value=\"\"");
        let own = ["x-request-id", "date", "content-length"];
        let headers: BTreeMap<String, String> = answer
            .headers
            .iter()
            .filter(|(name, _)| !own.contains(&name.as_str()))
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        seen.insert((answer.status, headers, body));
    }
    stage.check(4, seen.len() == 1, || format!("{seen:?}"));
}

async fn a116(stage: &Stage) {
    let web = stage.server.shop().await;
    person(&stage.server, "john", Some(PASSWORD)).await;
    person(&stage.server, "j\u{f6}rg", Some(PASSWORD)).await;
    let name = |answer: &Answer| {
        let events = log::of(answer.header("x-request-id").unwrap());
        events
            .iter()
            .find(|event| event["event"] == "login.failed")
            .and_then(|event| event.get("user_ref").cloned())
    };
    let mut names = BTreeMap::<&str, BTreeSet<Option<String>>>::new();
    let spellings = [
        (1, "john", "john"),
        (1, "john", "John"),
        (2, "john", "JOHN"),
        (3, "john", "john "),
        (4, "j\u{f6}rg", "jo\u{308}rg"),
        (4, "j\u{f6}rg", "J\u{d6}RG"),
        (5, "john", "\u{ff4a}\u{ff4f}\u{ff48}\u{ff4e}"),
    ];
    for (case, account, spelling) in spellings {
        let mut door = Door::opens(stage.node(case), &web).await;
        let answer = door.tries(spelling, "wrong").await;
        stage.expect(case, failed(&answer));
        names.entry(account).or_default().insert(name(&answer));
        stage.expect(case, passed(&door.tries(spelling, PASSWORD).await));
        let shown = door.browser.get("/account").await;
        stage.check(
            case,
            shown.body.contains(&format!("<strong>{account}</strong>")),
            || format!("`{spelling}` is {}", shown.body),
        );
    }
    let mut door = Door::opens(&stage.server, &web).await;
    let other = door.tries("j\u{43e}hn", PASSWORD).await;
    stage.expect(6, failed(&other));
    stage.check(7, names.values().all(|names| names.len() == 1), || {
        format!("one name, several in the log: {names:?}")
    });
    let (john, other) = (names["john"].first().unwrap().clone(), name(&other));
    stage.check(
        7,
        john.is_some() && other.is_some() && john != other,
        || format!("{john:?} {other:?}"),
    );
    stage.check(7, !john.unwrap_or_default().contains("john"), || {
        "the log has the name itself".to_owned()
    });
}

async fn a118(stage: &Stage) {
    let web = stage.server.shop().await;
    let sent: [&[(&str, &str)]; 6] = [
        &[("X-Forwarded-For", "203.0.113.9")],
        &[("Forwarded", "for=203.0.113.9")],
        &[("X-Real-IP", "203.0.113.9")],
        &[("CF-Connecting-IP", "203.0.113.9")],
        &[
            ("X-Forwarded-For", "203.0.113.9"),
            ("X-Forwarded-For", "198.51.100.7"),
        ],
        &[("X-Forwarded-For", "not-an-ip")],
    ];
    for (case, forwarded) in (1..).zip(sent) {
        let mut door = Door::opens(stage.node(case), &web).await;
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(door.fields("alice", "wrong"))
            .finish();
        let answer = door
            .browser
            .send(
                "POST",
                "/login",
                &[&[FORM, ("Origin", ISSUER)], forwarded].concat(),
                Some(body),
            )
            .await;
        stage.expect(case, failed(&answer));
        let events = log::of(answer.header("x-request-id").unwrap());
        stage.check(
            case,
            events
                .iter()
                .all(|event| event.get("ip").is_none_or(|ip| ip == "127.0.0.1")),
            || format!("{events:?}"),
        );
    }
}

async fn a120(stage: &Stage) {
    let web = stage.server.shop().await;
    for (case, length) in [(1, 64), (2, 1_024)] {
        let password: String = "k7#Qz".chars().cycle().take(length).collect();
        let username = format!("user{length}");
        person(&stage.server, &username, Some(&password)).await;
        let mut door = Door::opens(stage.node(case), &web).await;
        let changed = format!("{}!", &password[..length - 1]);
        stage.expect(case, failed(&door.tries(&username, &changed).await));
        stage.expect(
            case,
            failed(&door.tries(&username, &password[..length - 1]).await),
        );
        stage.expect(case, passed(&door.tries(&username, &password).await));
    }
    let mut door = Door::opens(&stage.server, &web).await;
    let answer = door.tries("alice", &"x".repeat(1_025)).await;
    stage.expect(3, page400(&answer));
    stage.expect(3, logged(&answer, "login.failed", "too_long"));
    let long = "x".repeat(1_025);
    let [hashed, refused] = fastest(&mut door, [("alice", "x"), ("alice", &long)]).await;
    stage.check(3, refused < hashed / 2, || {
        format!("refused after {refused:?}; with a hash it takes {hashed:?}")
    });
    let cookie = format!("{INTERACTION}={}", door.browser.cookies[INTERACTION]);
    for (case, size) in [(4, 1 << 20), (5, 10 << 20)] {
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(door.fields("alice", &"x".repeat(size)))
            .finish();
        let head = format!(
            "POST /login HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\nCookie: {cookie}\r\nOrigin: {ISSUER}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        match raw::flood(&stage.server.base, head.into_bytes(), body.into_bytes(), 1)
            .await
            .0
        {
            Some(answer) => stage.check(case, answer.status == 413, || seen(&answer)),
            None => stage.check(case, false, || "hung up without an answer".to_owned()),
        }
    }
}

/// The quickest of a few tries of each (user name, password), in turn: what the work takes without
/// what else goes on.
async fn fastest(door: &mut Door, tries: [(&str, &str); 2]) -> [Duration; 2] {
    let mut best = [Duration::MAX; 2];
    for _ in 0..10 {
        for (best, (username, password)) in best.iter_mut().zip(tries) {
            let started = Instant::now();
            door.tries(username, password).await;
            *best = started.elapsed().min(*best);
        }
    }
    best
}

async fn a121(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut door = Door::opens(&stage.server, &web).await;
    let answer = door.tries("alice", "gravel\0otter-92-lamp").await;
    stage.expect(1, page400(&answer));
    for (case, username, set, typed, good) in [
        (
            2,
            "emoji",
            "\u{1f980}\u{1f9a6}\u{1f468}\u{200d}\u{1f373} otter lamp",
            "\u{1f980}\u{1f9a6}\u{1f468}\u{200d}\u{1f373} otter lamp",
            true,
        ),
        (3, "spaces", " gravel otter ", " gravel otter ", true),
        (3, "spaces2", " gravel otter ", "gravel otter", false),
        (
            4,
            "composed",
            "p\u{e4}ssw\u{f6}rd \u{e5}ngstr\u{f6}m",
            "pa\u{308}sswo\u{308}rd a\u{30a}ngstro\u{308}m",
            true,
        ),
        (4, "folded", "STRASSE gravel", "Stra\u{df}e gravel", false),
    ] {
        person(&stage.server, username, Some(set)).await;
        let mut door = Door::opens(stage.node(case), &web).await;
        let answer = door.tries(username, typed).await;
        stage.expect(
            case,
            if good {
                passed(&answer)
            } else {
                failed(&answer)
            },
        );
    }
}

async fn a122(stage: &Stage) {
    let web = stage.server.shop().await;
    person(&stage.server, "invited", None).await;
    let mut door = Door::opens(&stage.server, &web).await;
    for (case, username, password) in [(1, "alice", ""), (2, "invited", ""), (3, "invited", RANDOM)]
    {
        stage.expect(case, failed(&door.tries(username, password).await));
    }
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(&door.fields("invited", "")[..3])
        .finish();
    let answer = door
        .browser
        .send("POST", "/login", &[FORM, ("Origin", ISSUER)], Some(body))
        .await;
    stage.expect(2, failed(&answer));
    let [known, invited] = fastest(&mut door, [("alice", "wrong"), ("invited", "wrong")]).await;
    stage.check(4, invited > known / 3, || {
        format!("no hash for whoever has no password: {invited:?}, else {known:?}")
    });
}

/// Refused as a forgery, and nobody is signed in.
fn forged(stage: &Stage, case: usize, answer: &Answer, before: i64) {
    stage.expect(case, page(answer, 403));
    stage.expect(case, logged(answer, "csrf.rejected", ""));
    let sessions = sessions(stage);
    stage.check(case, sessions == before, || {
        format!("{sessions} sessions, were {before}")
    });
}

fn sessions(stage: &Stage) -> i64 {
    stage.server.count("SELECT count(*) AS n FROM sessions")
}

async fn a124(stage: &Stage) {
    let web = stage.server.shop().await;
    let other = Door::opens(&stage.server, &web).await;
    let (ours, evil, null) = (
        ("Origin", ISSUER),
        ("Origin", "https://evil.test"),
        ("Origin", "null"),
    );
    let (same, cross) = (
        ("Sec-Fetch-Site", "same-origin"),
        ("Sec-Fetch-Site", "cross-site"),
    );
    let cases: [(usize, Option<&str>, &[(&str, &str)]); 9] = [
        (1, Some(""), &[FORM, ours, same]),
        (2, Some(RANDOM), &[FORM, ours, same]),
        (3, Some(&other.csrf), &[FORM, ours, same]),
        (4, None, &[FORM, evil]),
        (4, None, &[FORM, evil, same]),
        (5, None, &[FORM, cross]),
        (5, None, &[FORM, ours, ("Sec-Fetch-Site", "same-site")]),
        (6, Some(RANDOM), &[FORM, null, same]),
        (6, None, &[FORM, null, cross]),
    ];
    for (case, csrf, headers) in cases {
        let mut door = Door::opens(stage.node(case), &web).await;
        let csrf = csrf.map_or_else(|| door.csrf.clone(), str::to_owned);
        let fields = [
            ("authorization", door.authorization.as_str()),
            ("csrf", &csrf),
            ("username", "alice"),
            ("password", PASSWORD),
        ];
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields.into_iter().filter(|(_, value)| !value.is_empty()))
            .finish();
        let answer = door
            .browser
            .send("POST", "/login", headers, Some(body))
            .await;
        forged(stage, case, &answer, 0);
    }
}

async fn a125(stage: &Stage) {
    let web = stage.server.shop().await;
    let attacker = Door::opens(&stage.server, &web).await;
    let victim = Door::opens(&stage.server, &web).await;
    let post = |authorization: &str, csrf: &str| {
        let fields = [
            ("authorization", authorization),
            ("csrf", csrf),
            ("username", "bob"),
            ("password", PASSWORD),
        ];
        Some(
            form_urlencoded::Serializer::new(String::new())
                .extend_pairs(fields)
                .finish(),
        )
    };
    let cross = [
        FORM,
        ("Origin", "https://evil.test"),
        ("Sec-Fetch-Site", "cross-site"),
    ];
    // A browser sends no `Lax` cookie along; one that knows neither `Lax` nor these headers sends all.
    let old = [FORM];
    let cases: [(usize, bool, &[(&str, &str)]); 3] =
        [(1, false, &cross), (2, true, &cross), (3, true, &old)];
    for (case, with_cookies, headers) in cases {
        for authorization in [&attacker.authorization, &victim.authorization] {
            let mut browser = victim.browser.clone();
            if !with_cookies {
                browser.cookies.clear();
            }
            let answer = browser
                .send(
                    "POST",
                    "/login",
                    headers,
                    post(authorization, &attacker.csrf),
                )
                .await;
            forged(stage, case, &answer, 0);
            stage.check(case, !browser.cookies.contains_key(SESSION), || {
                "the victim is the attacker now".to_owned()
            });
        }
    }
}

/// 256 bits.
fn is_random_id(id: &str) -> bool {
    id.len() == 43 && from_base64url(id).is_some_and(|bytes| bytes.len() == 32)
}

/// Whether the cookie's browser is signed in, as the authorization endpoint sees it.
async fn signed_in(server: &Server, client: &Party, cookie: &str) -> (bool, Answer) {
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

async fn a126(stage: &Stage) {
    let web = stage.server.shop().await;
    // 1. The attacker's own live session id, planted.
    let mut attacker = stage.server.browser();
    attacker.signs_in(&web, "bob").await;
    let planted = attacker.cookies[SESSION].clone();
    for (case, name, value) in [
        (1, SESSION, planted.as_str()),
        (2, SESSION, RANDOM),
        (3, "sid", RANDOM),
    ] {
        let mut victim = stage.server.browser();
        victim.cookies.insert(name.to_owned(), value.to_owned());
        let login = victim.opens(&web.request(&[("prompt", "login")])).await;
        stage.expect(case, login_page(&login));
        let (authorization, csrf) = (login.hidden("authorization"), login.hidden("csrf"));
        let answer = victim
            .post(
                "/login",
                &[
                    ("authorization", &authorization),
                    ("csrf", &csrf),
                    ("username", "alice"),
                    ("password", PASSWORD),
                ],
            )
            .await;
        stage.expect(case, passed(&answer));
        stage.expect(case, logged(&answer, "session.rotated", ""));
        let first = victim.cookies[SESSION].clone();
        stage.check(case, first != value && is_random_id(&first), || {
            format!("the new id is {first}")
        });
        let (is_in, _) = signed_in(&stage.server, &web, value).await;
        stage.check(case, !is_in, || "the planted id is signed in".to_owned());
        // Step-up.
        let login = victim.opens(&web.request(&[("prompt", "login")])).await;
        let (authorization, csrf) = (login.hidden("authorization"), login.hidden("csrf"));
        let answer = victim
            .post(
                "/login",
                &[
                    ("authorization", &authorization),
                    ("csrf", &csrf),
                    ("username", "alice"),
                    ("password", PASSWORD),
                ],
            )
            .await;
        stage.expect(case, logged(&answer, "session.rotated", ""));
        let second = victim.cookies[SESSION].clone();
        stage.check(case, second != first && is_random_id(&second), || {
            format!("after step-up the id is {second}")
        });
        let ((old, _), (new, _)) = (
            signed_in(&stage.server, &web, &first).await,
            signed_in(&stage.server, &web, &second).await,
        );
        stage.check(case, !old && new, || {
            format!("old id: {old}, new id: {new}")
        });
    }
    // 4. Two cookies of the name: somebody planted one.
    let alice = stage.server.signed_in("alice").await;
    let cookies = format!("{SESSION}={}; {SESSION}={RANDOM}", alice.cookies[SESSION]);
    let answer = stage
        .server
        .browser()
        .send("GET", "/account", &[("Cookie", &cookies)], None)
        .await;
    stage.check(4, answer.body.contains("not signed in"), || seen(&answer));
}

async fn a128(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.browser();
    let mut set = Vec::new();
    let mut answers = vec![alice.get(&web.request(&[])).await];
    let login = alice.opens(&web.request(&[])).await;
    let (authorization, csrf) = (login.hidden("authorization"), login.hidden("csrf"));
    answers.push(
        alice
            .post(
                "/login",
                &[
                    ("authorization", &authorization),
                    ("csrf", &csrf),
                    ("username", "alice"),
                    ("password", PASSWORD),
                ],
            )
            .await,
    );
    let size: usize = alice
        .cookies
        .iter()
        .map(|(name, value)| name.len() + value.len() + 3)
        .sum();
    stage.check(3, size < 4_096, || format!("{size} bytes"));
    let csrf = alice.get("/account").await.hidden("csrf");
    answers.push(alice.post("/oauth2/end_session", &[("csrf", &csrf)]).await);
    for answer in &answers {
        set.extend(
            answer
                .headers
                .get_all("set-cookie")
                .iter()
                .map(|cookie| cookie.to_str().unwrap().to_owned()),
        );
    }
    for (case, name) in [(1, SESSION), (2, INTERACTION)] {
        stage.check(
            case,
            set.iter().filter(|cookie| cookie.starts_with(name)).count() >= 1,
            || format!("{set:?}"),
        );
    }
    for cookie in &set {
        stage.expect(1, cookie_is_ours(cookie));
    }
}

/// What policy §7 says of each cookie.
pub fn cookie_is_ours(cookie: &str) -> Result<(), String> {
    let mut parts = cookie.split(';').map(str::trim);
    let name = parts
        .next()
        .and_then(|pair| pair.split_once('='))
        .map_or("", |(name, _)| name);
    let attributes: BTreeSet<&str> = parts.collect();
    let same_site = if name == "__Host-admin" {
        "SameSite=Strict"
    } else {
        "SameSite=Lax"
    };
    let all = ["Secure", "HttpOnly", "Path=/", same_site]
        .iter()
        .all(|attribute| attributes.contains(attribute));
    let domain = attributes
        .iter()
        .any(|attribute| attribute.to_ascii_lowercase().starts_with("domain"));
    if name.starts_with("__Host-") && all && !domain {
        Ok(())
    } else {
        Err(format!("{name} {attributes:?}"))
    }
}

/// Every address that a page leads to.
fn targets(body: &str) -> Vec<String> {
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

fn stays(answer: &Answer) -> Result<(), String> {
    let ours = |to: &str| to.starts_with('/') && !to.starts_with("//") && !to.contains('\\');
    let away: Vec<String> = answer
        .location()
        .map(str::to_owned)
        .into_iter()
        .chain(targets(&answer.body))
        .filter(|to| !ours(to) || to.contains("evil"))
        .collect();
    if away.is_empty() {
        Ok(())
    } else {
        Err(format!("{away:?}"))
    }
}

async fn a129(stage: &Stage) {
    let web = stage.server.shop().await;
    for (case, target) in [
        (1, "//evil.test"),
        (2, "https:evil.test"),
        (3, "/\\evil.test"),
        (4, "javascript:alert(1)"),
    ] {
        for name in ["return_to", "next", "redirect", "continue"] {
            let query = form_urlencoded::Serializer::new(String::new())
                .append_pair(name, target)
                .finish();
            let mut door = Door::opens(stage.node(case), &web).await;
            let shown = door
                .browser
                .get(&format!(
                    "/login?authorization={}&{query}",
                    door.authorization
                ))
                .await;
            stage.expect(case, login_page(&shown));
            stage.expect(case, stays(&shown));
            let fields = [door.fields("alice", PASSWORD).as_slice(), &[(name, target)]]
                .concat()
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect::<Vec<_>>();
            let fields: Vec<(&str, &str)> = fields
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            let answer = door.browser.post(&format!("/login?{query}"), &fields).await;
            stage.expect(case, passed(&answer));
            stage.expect(case, stays(&answer));
            let account = door.browser.get(&format!("/account?{query}")).await;
            stage.expect(case, stays(&account));
            stage.expect(
                case,
                stays(
                    &door
                        .browser
                        .get(&format!("/oauth2/end_session?{query}"))
                        .await,
                ),
            );
            let csrf = account.hidden("csrf");
            let out = door
                .browser
                .post(
                    &format!("/oauth2/end_session?{query}"),
                    &[("csrf", &csrf), (name, target)],
                )
                .await;
            stage.check(case, out.status == 200, || seen(&out));
            stage.expect(case, stays(&out));
            stage.expect(
                case,
                stays(&stage.server.browser().get(&format!("/?{query}")).await),
            );
        }
    }
}

/// The tags of a page with the names of their attributes: what a browser would make of it, without texts
/// and values. Two pages with one skeleton run the same scripts.
pub fn skeleton(html: &str) -> String {
    let mut out = String::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let mut quote = None;
        for c in rest.chars() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (Some(_), _) => continue,
                (None, '"' | '\'') => quote = Some(c),
                (None, '>') => break,
                (None, c) => out.push(c),
            }
        }
        out.push('\n');
        rest = rest.find('>').map_or("", |_| rest);
    }
    out
}

/// 200 ways to break out of a text, an attribute, a script or a style.
fn payloads() -> Vec<String> {
    let breaks = [
        "",
        "\"",
        "'",
        "\">",
        "'>",
        "\"/>",
        "</title>",
        "</strong>",
        "</code>",
        "</textarea>",
        "-->",
        "\" x=\"",
        "&quot;>",
        "%22%3e",
        "`",
        "\\\">",
        "]]>",
        "}}",
        "{{7*7}}",
        "\u{feff}\">",
    ];
    let codes = [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<svg/onload=alert(1)>",
        " onfocus=alert(1) autofocus ",
        "<a href=javascript:alert(1)>x</a>",
        "<iframe srcdoc=x>",
        "<style>*{x:y}</style>",
        "<meta http-equiv=refresh content=0>",
        "<base href=//evil.test>",
        "<ScRiPt/x>alert(1)//",
    ];
    breaks
        .iter()
        .flat_map(|open| codes.iter().map(move |code| format!("{open}{code}")))
        .collect()
}

async fn a130(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.signed_in("alice").await;
    let payloads = payloads();
    stage.check(0, payloads.len() == 200, || {
        format!("{} payloads", payloads.len())
    });
    let mut plain = Vec::new();
    for (n, payload) in std::iter::once("plain")
        .chain(payloads.iter().map(String::as_str))
        .enumerate()
    {
        // Behind the back of registration, which would refuse some of them.
        let quoted = payload.replace('\'', "''");
        stage.server.execute(&format!(
            "UPDATE clients SET name = '{quoted}' WHERE id = '{}';
             UPDATE users SET username = '{quoted}', name = '{quoted}' WHERE email = 'alice@mail.example';",
            web.id()
        ));
        let shown = shows(&mut alice, &web, payload).await;
        if n == 0 {
            stage.check(
                1,
                shown
                    .iter()
                    .map(|answer| answer.status)
                    .eq([200, 200, 200, 200, 400, 200]),
                || shown.iter().map(seen).collect(),
            );
            plain = shown.iter().map(|answer| skeleton(&answer.body)).collect();
            continue;
        }
        for (answer, plain) in shown.iter().zip(&plain) {
            let csp = answer.header("content-security-policy").unwrap_or_default();
            stage.check(n, skeleton(&answer.body) == *plain, || {
                format!("`{payload}` changes {}", seen(answer))
            });
            stage.check(
                n,
                csp.starts_with("default-src 'none'") && !csp.contains("unsafe"),
                || csp.to_owned(),
            );
        }
    }
    // What was typed comes back only with a failure, and that costs a hash.
    let mut door = Door::opens(&stage.server, &web).await;
    let plain = skeleton(&door.tries("plain", "x").await.body);
    for (n, payload) in (1..).zip(&payloads).step_by(13) {
        let answer = door.tries(payload, "x").await;
        stage.check(n, skeleton(&answer.body) == plain, || {
            format!("typed `{payload}` changes the login page")
        });
    }
}

/// Every page that shows a name of a person or of a client, or something of the request.
async fn shows(alice: &mut Browser, web: &Party, payload: &str) -> Vec<Answer> {
    vec![
        alice
            .opens(&web.request(&[("prompt", "login"), ("login_hint", payload)]))
            .await,
        alice.opens(&web.request(&[("prompt", "consent")])).await,
        alice.get("/account").await,
        alice
            .get(&format!(
                "/oauth2/end_session?{}",
                form_urlencoded::Serializer::new(String::new())
                    .append_pair("state", payload)
                    .finish()
            ))
            .await,
        alice.get(&web.request(&[("redirect_uri", payload)])).await,
        alice
            .opens(&web.request(&[
                ("response_mode", "form_post"),
                ("prompt", "none"),
                ("scope", payload),
            ]))
            .await,
    ]
}

/// This cookie is nobody's, and the server says so in its log.
async fn is_nobody(stage: &Stage, case: usize, server: &Server, web: &Party, cookie: &str) {
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

async fn a132(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.browser();
    alice.signs_in(&web, "alice").await;
    let real = alice.cookies[SESSION].clone();
    let mut bits = from_base64url(&real).unwrap();
    bits[31] ^= 1;
    let other_case: String = real
        .chars()
        .map(|c| {
            if c.is_ascii_lowercase() {
                c.to_ascii_uppercase()
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect();
    let values = [
        RANDOM.to_owned(),
        real[..34].to_owned(),
        format!("{real}A"),
        portcullis::secret::base64url(&bits),
        other_case,
    ];
    for (case, value) in (1..).zip(&values) {
        is_nobody(stage, case, stage.node(case), &web, value).await;
    }
    // A byte of the stored hash is changed: the whole of it is compared.
    stage.check(6, signed_in(&stage.server, &web, &real).await.0, || {
        "the real one is not signed in".to_owned()
    });
}

async fn a133(stage: &Stage) {
    let web = stage.server.shop().await;
    let hex = if stage.db() == Db::Sqlite {
        "lower(hex(id_hash))"
    } else {
        "encode(id_hash, 'hex')"
    };
    let rows = |cookie: &str| {
        let hash: String = sha256(cookie.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        stage.server.count(&format!(
            "SELECT count(*) AS n FROM sessions WHERE {hex} = '{hash}'"
        ))
    };
    // 1. Idle, since the login: nothing was granted in it.
    let mut alice = stage.server.browser();
    let login = alice.opens(&web.request(&[])).await;
    alice.fills_in(&login, "alice", PASSWORD).await;
    let cookie = alice.cookies[SESSION].clone();
    stage.server.advance(Duration::from_secs(30 * 60 - 1));
    stage.check(1, signed_in(&stage.server, &web, &cookie).await.0, || {
        "over too early".to_owned()
    });
    stage.server.advance(Duration::from_secs(2));
    let answer = alice.get(&web.request(&[])).await;
    stage.expect(1, logged(&answer, "session.expired", "idle"));
    stage.expect(
        1,
        login_page(
            &alice
                .opens(&answer.own_redirect().unwrap_or_default())
                .await,
        ),
    );
    stage.check(1, sessions(stage) == 0, || {
        "the row is still there".to_owned()
    });
    // 2. Absolute, though used each minute. What was granted in it rests on the row, which stays
    //    without its cookie.
    let mut alice = stage.server.browser();
    alice.signs_in(&web, "alice").await;
    let kept = alice.cookies[SESSION].clone();
    stage.check(2, rows(&kept) == 1, || "no row of this cookie".to_owned());
    let silent = web.request(&[("prompt", "none")]);
    for minute in 1..720 {
        stage.server.advance(Duration::from_secs(60));
        let answer = alice.at(&stage.node(minute).base).get(&silent).await;
        stage.check(2, answer.callback("code").is_some(), || {
            format!("over after {minute} min: {}", seen(&answer))
        });
    }
    stage.server.advance(Duration::from_secs(61));
    let (is_in, answer) = signed_in(&stage.server, &web, &kept).await;
    stage.check(2, !is_in, || seen(&answer));
    stage.expect(2, logged(&answer, "session.expired", "absolute"));
    stage.check(2, rows(&kept) == 0, || {
        "the row still has its cookie".to_owned()
    });
    // 3. Replayed.
    for (node, cookie) in stage.all().zip([&cookie, &kept, &cookie]) {
        is_nobody(stage, 3, node, &web, cookie).await;
    }
    is_nobody(stage, 3, &stage.server, &web, &kept).await;
}

async fn a134(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.browser();
    alice.signs_in(&web, "alice").await;
    let cookie = alice.cookies[SESSION].clone();
    for node in stage.all() {
        stage.check(1, signed_in(node, &web, &cookie).await.0, || {
            "not signed in at the start".to_owned()
        });
    }
    let csrf = alice.get("/account").await.hidden("csrf");
    let out = alice.post("/oauth2/end_session", &[("csrf", &csrf)]).await;
    stage.check(
        1,
        out.status == 200
            && out.body.contains("logged out")
            && !alice.cookies.contains_key(SESSION),
        || seen(&out),
    );
    for (case, node) in (1..).zip(stage.all()) {
        is_nobody(stage, case, node, &web, &cookie).await;
    }
}

/// Changes a password as an operator does, and returns the new auth epoch's floor.
async fn changes_password(server: &Server, password: &str) {
    let now = server.clock.now();
    let phc = Password::parse(password)
        .unwrap()
        .hash(&server.app.config.login.argon2, &server.app.entropy)
        .unwrap();
    server
        .write(move |tx| {
            let (user, _) = tx
                .find_credentials(&Username::parse("alice").unwrap())?
                .unwrap();
            tx.put_password(&user.id, &phc, now)?;
            tx.cut_off_user(&user.id, "password changed", "test", now)?;
            tx.put_audit(&Event {
                at: now,
                name: Name::UserCredentialChanged,
                actor: "test".to_owned(),
                target: format!("user:{}", user.id),
                reason: None,
                detail: serde_json::json!({}),
            })
        })
        .await;
}

async fn a136(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let (code, spent) = (flow.code().await, flow.code().await);
    let bought = flow.web.redeems(&spent).await.ok();
    let tokens = bought.access_claims();
    let cookie = flow.alice.cookies[SESSION].clone();
    let new = "a quite different sentence";
    changes_password(&stage.server, new).await;
    for (case, node) in (1..).zip(stage.all()) {
        is_nobody(stage, case, node, &flow.web, &cookie).await;
    }
    let answer = flow.web.at(&stage.node(1).base).redeems(&code).await;
    stage.expect(4, json_error(&answer, 400, "invalid_grant"));
    stage.expect(4, logged(&answer, "token.rejected", ""));
    let answer = refreshes(&flow.web, bought.0["refresh_token"].as_str().unwrap()).await;
    stage.expect(4, json_error(&answer, 400, "invalid_grant"));
    stage.expect(4, logged(&answer, "token.rejected", "grant_ended"));
    let bearer = format!("Bearer {}", bought.access());
    let told = stage
        .server
        .browser()
        .send(
            "GET",
            "/oauth2/userinfo",
            &[("Authorization", &bearer)],
            None,
        )
        .await;
    stage.check(4, told.status == 401, || {
        format!("userinfo: {}", seen(&told))
    });
    let sub = tokens["sub"].as_str().unwrap();
    let record = stage.server.count(&format!(
        "SELECT count(*) AS n FROM revocations WHERE kind = 'U' AND value = '{sub}' AND floor = 2"
    ));
    let epoch = stage.server.count(&format!(
        "SELECT auth_epoch AS n FROM users WHERE id = '{sub}'"
    ));
    stage.check(
        5,
        record == 1 && epoch == 2 && user_epoch(&tokens) == 1,
        || format!("{record} record, epoch {epoch}, token {tokens}"),
    );
    let mut door = Door::opens(&stage.server, &flow.web).await;
    stage.expect(6, failed(&door.tries("alice", PASSWORD).await));
    stage.expect(6, passed(&door.tries("alice", new).await));
    // 7. Codes and refreshes raced with the change: what is still minted began before it, the record
    //    covers it, and it cannot be refreshed.
    let mut current = new.to_owned();
    for round in 0..10 {
        let mut alice = stage.server.browser();
        let page = alice.opens(&flow.web.request(&[])).await;
        let page = alice.fills_in(&page, "alice", &current).await;
        let (code, spare) = (
            page.callback("code").unwrap(),
            alice.allows(&flow.web).await,
        );
        let held = flow.web.redeems(&spare).await.ok().0["refresh_token"]
            .as_str()
            .unwrap()
            .to_owned();
        let (one, other) = (
            flow.web.at(&stage.node(round).base),
            flow.web.at(&stage.node(round + 1).base),
        );
        let racers = [
            actix_web::rt::spawn(async move { one.redeems(&code).await }),
            actix_web::rt::spawn(async move { refreshes(&other, &held).await }),
        ];
        current = format!("sentence number {round} of alice");
        changes_password(&stage.server, &current).await;
        let floor = stage.server.count(&format!(
            "SELECT auth_epoch AS n FROM users WHERE id = '{sub}'"
        ));
        for racer in racers {
            let raced = racer.await.unwrap();
            if raced.status != 200 {
                stage.expect(7, json_error(&raced, 400, "invalid_grant"));
                continue;
            }
            let minted = raced.ok();
            stage.check(7, user_epoch(&minted.access_claims()) < floor, || {
                format!("round {round}: {}", raced.body)
            });
            let next = refreshes(&flow.web, minted.0["refresh_token"].as_str().unwrap()).await;
            stage.expect(7, json_error(&next, 400, "invalid_grant"));
        }
        let late = alice.get(&flow.web.request(&[("prompt", "none")])).await;
        stage.expect(7, redirected(&late, "login_required", Some("st-4711")));
    }
}

async fn refreshes(web: &Party, token: &str) -> Answer {
    web.posts(
        "/oauth2/token",
        &[("grant_type", "refresh_token"), ("refresh_token", token)],
    )
    .await
}

/// The auth epoch of the person in an access token.
fn user_epoch(claims: &serde_json::Value) -> i64 {
    let rev: portcullis_verifier::Rev = serde_json::from_value(claims["rev"].clone()).unwrap();
    i64::try_from(rev.user_epoch.unwrap()).unwrap()
}

async fn a140(stage: &Stage) {
    let web = stage.server.shop().await;
    for (case, target) in [
        (1, "/login".to_owned()),
        (1, web.request(&[])),
        (1, "/.well-known/openid-configuration".to_owned()),
    ] {
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n");
        let answer = raw::bytes(&stage.server.base, request.into_bytes())
            .await
            .expect("an answer");
        stage.check(case, answer.status == 421, || seen(&answer));
        stage.expect(case, logged(&answer, "http.bad_host", ""));
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: <script>alert(1)</script>\r\nConnection: close\r\n\r\n"
        );
        if let Some(answer) = raw::bytes(&stage.server.base, request.into_bytes()).await {
            let html = answer
                .header("content-type")
                .is_some_and(|kind| kind.contains("html"));
            stage.check(case, matches!(answer.status, 400 | 421) && !html, || {
                seen(&answer)
            });
        }
    }
    let forwarded = [
        ("X-Forwarded-Host", "evil.test"),
        ("Forwarded", "host=evil.test;proto=http"),
        ("X-Forwarded-Proto", "http"),
    ];
    let metadata = stage
        .server
        .browser()
        .send("GET", "/.well-known/openid-configuration", &forwarded, None)
        .await;
    stage.check(
        2,
        metadata.json()["issuer"] == ISSUER && !metadata.body.contains("evil"),
        || metadata.body.clone(),
    );
    let mut browser = stage.server.browser();
    let answer = browser
        .send("GET", &web.request(&[]), &forwarded, None)
        .await;
    stage.expect(2, stays(&answer));
    let login = browser
        .send(
            "GET",
            &answer.own_redirect().unwrap_or_default(),
            &forwarded,
            None,
        )
        .await;
    stage.expect(2, login_page(&login));
    stage.expect(2, stays(&login));
}

async fn a142(stage: &Stage) {
    let margarethe = Username::parse("margarethe").unwrap();
    let product = stage.server.app.config.branding.product.clone();
    let passwords = [
        (1, "vK4!tq9#xW2$aa".to_owned(), Err(Weak::Short)),
        (2, "margarethe12345".to_owned(), Err(Weak::Name)),
        (2, "Margarethe!!!!!".to_owned(), Err(Weak::Name)),
        (3, format!("{:!<15}", product), Err(Weak::Name)),
        (4, "password1234567".to_owned(), Err(Weak::Common)),
        (4, "qwertyuiopasdfgh".to_owned(), Err(Weak::Common)),
        (4, "iloveyouiloveyou".to_owned(), Err(Weak::Common)),
        (4, "123456789012345".to_owned(), Err(Weak::Common)),
        (5, "vK4!tq9#xW2$aaZ".to_owned(), Ok(())),
        // The second factor, and with it the shorter password, is still to come.
        (6, "vK4!tq9#".to_owned(), Err(Weak::Short)),
    ];
    for (case, password, want) in passwords {
        let said = Password::parse(&password)
            .unwrap()
            .check_new(&margarethe, &product);
        stage.check(case, said == want, || {
            format!("`{password}`: got {said:?}, want {want:?}")
        });
        stage.check(
            case,
            said.map_or_else(|weak| weak.to_string().len() > 20, |()| true),
            || "no reason is given".to_owned(),
        );
    }
}

/// The answer but for what differs each time.
fn essence(answer: &Answer) -> (u16, Option<String>, String) {
    let id = answer.header("x-request-id").unwrap();
    (
        answer.status,
        answer.location().map(str::to_owned),
        answer.body.replace(id, ""),
    )
}

async fn a144(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let asked = flow
        .alice
        .opens(&flow.web.request(&[("prompt", "consent")]))
        .await;
    let (authorization, csrf) = (asked.hidden("authorization"), asked.hidden("csrf"));
    let (session, interaction) = (
        flow.alice.cookies[SESSION].clone(),
        flow.alice.cookies[INTERACTION].clone(),
    );
    let secret = flow.web.secret.as_ref().unwrap().expose().to_owned();
    let tokens = {
        let spare = flow.code().await;
        flow.web.redeems(&spare).await.ok()
    };
    let refresh = tokens.0["refresh_token"].as_str().unwrap().to_owned();
    let others = |own: &str| {
        [
            ("code", &code),
            ("session", &session),
            ("interaction", &interaction),
            ("authorization", &authorization),
            ("form token", &csrf),
            ("client secret", &secret),
            ("refresh token", &refresh),
        ]
        .into_iter()
        .filter(|(kind, _)| *kind != own)
        .map(|(kind, value)| (kind, value.clone()))
        .chain([
            ("access token", tokens.access().to_owned()),
            (
                "ID token",
                tokens.0["id_token"].as_str().unwrap().to_owned(),
            ),
        ])
        .collect::<Vec<_>>()
    };
    // 1. As a code.
    let random = essence(
        &flow
            .web
            .redeems("pcl_ac_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8")
            .await,
    );
    for (kind, value) in others("code") {
        let answer = flow.web.redeems(&value).await;
        stage.check(1, essence(&answer) == random, || {
            format!("{kind} as a code: {}", seen(&answer))
        });
        stage.expect(1, logged(&answer, "token.rejected", "kind"));
    }
    // 2. As a session.
    let (_, random) = signed_in(&stage.server, &flow.web, RANDOM).await;
    for (kind, value) in others("session") {
        let (_, answer) = signed_in(&stage.server, &flow.web, &value).await;
        stage.check(2, essence(&answer) == essence(&random), || {
            format!("{kind} as a session: {}", seen(&answer))
        });
        stage.expect(2, logged(&answer, "session.invalid", ""));
    }
    // 3. As an authorization, on each page that goes on with one.
    for path in ["/oauth2/authorize", "/login", "/consent"] {
        let random = flow
            .alice
            .get(&format!(
                "{path}?authorization=0190b2f0-0000-7000-8000-000000000000"
            ))
            .await;
        stage.expect(3, page400(&random));
        for (kind, value) in others("authorization") {
            let answer = flow
                .alice
                .get(&format!("{path}?authorization={value}"))
                .await;
            stage.check(3, essence(&answer) == essence(&random), || {
                format!("{kind} at {path}: {}", seen(&answer))
            });
        }
    }
    // 4. As the browser that began the authorization.
    for (kind, value) in others("interaction") {
        let mut browser = stage.server.browser();
        browser.cookies.insert(INTERACTION.to_owned(), value);
        let answer = browser
            .get(&format!("/login?authorization={authorization}"))
            .await;
        stage.check(4, page400(&answer).is_ok(), || {
            format!("{kind} as a browser: {}", seen(&answer))
        });
        stage.expect(4, logged(&answer, "authorization.binding_failed", ""));
    }
    // 5. As a client secret.
    for (kind, value) in others("client secret") {
        let header = crate::cast::client::basic(flow.web.id(), &value);
        let answer = flow
            .web
            .posts_raw(
                "/oauth2/token",
                &[("Authorization", &header)],
                &[("grant_type", "authorization_code"), ("code", &code)],
            )
            .await;
        stage.check(
            5,
            json_error(&answer, 401, "invalid_client").is_ok(),
            || format!("{kind} as a secret: {}", seen(&answer)),
        );
    }
    // 6. As a refresh token.
    let random = essence(&refreshes(&flow.web, &format!("pcl_rt_{RANDOM}")).await);
    for (kind, value) in others("refresh token") {
        let answer = refreshes(&flow.web, &value).await;
        stage.check(6, essence(&answer) == random, || {
            format!("{kind} as a refresh token: {}", seen(&answer))
        });
        stage.expect(6, logged(&answer, "token.rejected", "kind"));
    }
    // 7. Nothing was used up.
    let answer = refreshes(&flow.web, &refresh).await;
    stage.check(7, answer.status == 200, || {
        format!("the refresh token is spent: {}", seen(&answer))
    });
    stage.check(7, flow.web.redeems(&code).await.status == 200, || {
        "the code is spent".to_owned()
    });
    stage.check(
        7,
        signed_in(&stage.server, &flow.web, &session).await.0,
        || "the session is over".to_owned(),
    );
    stage.expect(
        7,
        consent_page(
            &flow
                .alice
                .get(&format!("/consent?authorization={authorization}"))
                .await,
        ),
    );
}

/// Nothing is served at these paths, to a person who is signed in or not, and no page leads there.
async fn absent(stage: &Stage, case: usize, paths: &[&str]) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.browser();
    let login = alice.opens(&web.request(&[])).await;
    let consent = alice.fills_in(&login, "alice", PASSWORD).await;
    let account = alice.get("/account").await;
    for path in paths {
        for method in ["GET", "POST"] {
            let answer = alice
                .send(
                    method,
                    path,
                    &[FORM, ("Origin", ISSUER)],
                    (method == "POST").then(String::new),
                )
                .await;
            stage.expect(case, page(&answer, 404));
        }
        for shown in [&login, &consent, &account] {
            stage.check(
                case,
                !targets(&shown.body).iter().any(|to| to.starts_with(path)),
                || format!("a page leads to {path}"),
            );
        }
    }
}

async fn a145(stage: &Stage) {
    absent(
        stage,
        1,
        &[
            "/login/totp",
            "/login/otp",
            "/mfa",
            "/account/totp",
            "/account/mfa",
        ],
    )
    .await;
    let web = stage.server.shop().await;
    let mut door = Door::opens(&stage.server, &web).await;
    stage.check(
        2,
        !door
            .browser
            .get(&format!("/login?authorization={}", door.authorization))
            .await
            .body
            .contains("otp"),
        || "the page asks for a code".to_owned(),
    );
    // A code in the form is no password.
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(&door.fields("alice", "")[..3])
        .append_pair("otp", "123456")
        .finish();
    let answer = door
        .browser
        .send("POST", "/login", &[FORM, ("Origin", ISSUER)], Some(body))
        .await;
    stage.expect(2, failed(&answer));
}

async fn a146(stage: &Stage) {
    absent(
        stage,
        1,
        &[
            "/login/webauthn",
            "/webauthn",
            "/login/mfa",
            "/account/passkeys",
        ],
    )
    .await;
    // Consent without any login leads back to the login page.
    let web = stage.server.shop().await;
    let mut door = Door::opens(&stage.server, &web).await;
    let answer = door
        .browser
        .opens(&format!("/consent?authorization={}", door.authorization))
        .await;
    stage.expect(2, login_page(&answer));
}

async fn a148(stage: &Stage) {
    absent(
        stage,
        1,
        &[
            "/login/idp",
            "/login/upstream",
            "/idp",
            "/oauth2/callback",
            "/login/callback",
        ],
    )
    .await;
}

async fn a149(stage: &Stage) {
    absent(
        stage,
        1,
        &[
            "/api/account",
            "/api/me",
            "/account/profile",
            "/account/email",
            "/scim/v2/Me",
        ],
    )
    .await;
    let mut alice = stage.server.signed_in("alice").await;
    let answer = alice.post("/account", &[("email_verified", "true")]).await;
    stage.check(2, matches!(answer.status, 403..=405), || seen(&answer));
    let verified = stage
        .server
        .count("SELECT count(*) AS n FROM users WHERE email_verified");
    stage.check(2, verified == 0, || {
        format!("{verified} addresses are verified")
    });
}

async fn a150(stage: &Stage) {
    absent(
        stage,
        1,
        &[
            "/oauth2/device_authorization",
            "/oauth2/bc-authorize",
            "/device",
        ],
    )
    .await;
    let web = stage.server.shop().await;
    for (case, grant) in [
        (2, "urn:ietf:params:oauth:grant-type:device_code"),
        (3, "urn:openid:params:grant-type:ciba"),
    ] {
        let answer = web
            .posts(
                "/oauth2/token",
                &[
                    ("grant_type", grant),
                    ("device_code", "x"),
                    ("auth_req_id", "x"),
                ],
            )
            .await;
        stage.expect(case, json_error(&answer, 400, "unsupported_grant_type"));
    }
}
