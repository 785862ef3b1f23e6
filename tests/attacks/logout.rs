//! Rows of the catalogue: logout at the request of a client (RP-Initiated Logout 1.0).

use std::time::Duration;

use portcullis::id::ClientId;
use serde_json::{Value, json};

use crate::expect::{self, logged, page400, summary, unescape};
use crate::fixtures::client::{claims, header};
use crate::fixtures::receiver::{Behavior, Receiver};
use crate::fixtures::server::confidential;
use crate::fixtures::{Answer, Browser, Server, TestClient, log};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a365_unregistered_logout_redirects_are_not_followed),
    row!(a366_logout_without_hint_and_client_id_never_redirects),
    row!(a368_invalid_logout_hints_never_redirect),
    row!(a369_logout_client_id_must_match_the_hint),
    row!(a370_logout_state_is_percent_encoded),
    row!(a372_hostile_logout_receivers_are_contained),
    row!(a373_logout_tokens_have_the_required_claims),
    row!(a511_logout_without_hint_asks_for_confirmation),
    row!(a534_logout_hint_ends_its_session_without_a_cookie),
];

/// The post-logout redirect URI of every client of these rows.
const BYE: &str = "https://app.example/bye";

fn url(fields: &[(&str, &str)]) -> String {
    let query = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish();
    format!("/oauth2/end_session?{query}")
}

/// Registers a second client with another post-logout redirect URI.
async fn other_client(stage: &Stage) -> TestClient {
    let mut client = confidential("", "https://other.example/cb");
    client.id = ClientId::new(&stage.server.app.entropy, stage.server.clock.now());
    client.name = "Other Shop".to_owned();
    client.post_logout_redirect_uris = vec!["https://other.example/bye".to_owned()];
    stage.server.register(client).await
}

/// Signs a user in at `client`; returns the browser and the client's ID token.
async fn signed_in(stage: &Stage, client: &TestClient, username: &str) -> (Browser, String) {
    let mut browser = stage.server.browser();
    let back = browser.signs_in(client, username).await;
    let tokens = client.redeems(&back.callback("code").unwrap()).await.ok();
    (browser, tokens.0["id_token"].as_str().unwrap().to_owned())
}

/// Returns whether the session of a browser is active.
async fn is_active(browser: &Browser, client: &TestClient) -> bool {
    let silent = browser
        .clone()
        .get(&client.request(&[("prompt", "none")]))
        .await;
    silent.callback("error").is_none()
}

/// Checks CONFIRM: the confirmation page, without a redirect.
fn confirmation_page(answer: &Answer) -> Result<(), String> {
    let asks = answer.body.contains("id=\"logout-confirm\"");
    match answer.status == 200 && asks && answer.location().is_none() {
        true => Ok(()),
        false => Err(format!(
            "got {}, want the confirmation page",
            summary(answer)
        )),
    }
}

/// Checks that the response contains no redirect of any kind.
fn does_not_redirect(answer: &Answer) -> Result<(), String> {
    let leads = answer.location().is_some()
        || answer.body.contains("http-equiv=\"refresh\"")
        || answer.body.contains("id=\"continue\"");
    match leads {
        true => Err(format!("a redirect: {}", summary(answer))),
        false => Ok(()),
    }
}

/// Submits the confirmation form as a browser does.
async fn submit_confirmation(browser: &mut Browser, page: &Answer) -> Answer {
    let names = [
        "csrf",
        "id_token_hint",
        "client_id",
        "post_logout_redirect_uri",
        "state",
    ];
    let sent = |name: &str| page.body.contains(&format!("name=\"{name}\""));
    let fields: Vec<(&str, String)> = names
        .into_iter()
        .filter(|name| sent(name))
        .map(|name| (name, unescape(&page.hidden(name))))
        .collect();
    let fields: Vec<(&str, &str)> = fields
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    browser.post("/oauth2/end_session", &fields).await
}

/// Checks that the page redirects to `uri` (`&` escaped as in HTML).
fn page_continues_to(answer: &Answer, uri: &str) -> Result<(), String> {
    let refresh = format!("content=\"0; url={uri}\"");
    let goes = answer.status == 200 && answer.body.contains(&refresh);
    match goes && answer.header("clear-site-data").is_some() {
        true => Ok(()),
        false => Err(format!(
            "got {}, want a page that goes to {uri}: {}",
            summary(answer),
            answer.body
        )),
    }
}

async fn a365_unregistered_logout_redirects_are_not_followed(stage: &Stage) {
    let web = stage.server.shop().await;
    other_client(stage).await;
    let suffix = format!("{BYE}.evil.example");
    let targets = [
        "https://evil.example/bye",
        "https://other.example/bye",
        &suffix,
        "https://app.example/bye/",
        "https://app.example/bye?x=1",
        "javascript:alert(1)",
    ];
    for (case, target) in (1..).zip(targets) {
        let (browser, hint) = signed_in(stage, &web, "alice").await;
        let url = url(&[
            ("id_token_hint", &hint),
            ("post_logout_redirect_uri", target),
        ]);
        let answer = browser.at(&stage.node(case).base).get(&url).await;
        stage.check(case, answer.status < 500, || summary(&answer));
        stage.expect(case, does_not_redirect(&answer));
        stage.check(case, !answer.body.contains(target), || answer.body.clone());
        stage.expect(case, logged(&answer, "logout.bad_redirect", "unregistered"));
    }
}

async fn a366_logout_without_hint_and_client_id_never_redirects(stage: &Stage) {
    let web = stage.server.shop().await;
    let (mut browser, _) = signed_in(stage, &web, "alice").await;
    let answer = browser
        .get(&url(&[("post_logout_redirect_uri", BYE), ("state", "s")]))
        .await;
    stage.expect(
        1,
        confirmation_page(&answer).and(does_not_redirect(&answer)),
    );
    stage.expect(1, logged(&answer, "logout.confirm", ""));
    stage.expect(1, logged(&answer, "logout.bad_redirect", "client"));
    let done = submit_confirmation(&mut browser, &answer).await;
    stage.check(2, done.status == 200, || summary(&done));
    stage.expect(2, does_not_redirect(&done));
    stage.check(2, !is_active(&browser, &web).await, || {
        "signed in".to_owned()
    });
}

/// Returns a JWT with this header and payload and an invalid signature.
fn forged(header: &Value, payload: &Value) -> String {
    let part = |value: &Value| portcullis::secret::base64url(value.to_string().as_bytes());
    let signature = portcullis::secret::base64url(&[7; 64]);
    format!("{}.{}.{signature}", part(header), part(payload))
}

async fn a368_invalid_logout_hints_never_redirect(stage: &Stage) {
    let web = stage.server.shop().await;
    let (alice, hint) = signed_in(stage, &web, "alice").await;
    let (_, of_bob) = signed_in(stage, &web, "bob").await;
    let claims = crate::fixtures::client::claims(&hint);
    let kid = &crate::fixtures::client::header(&hint)["kid"];
    let mut elsewhere = claims.clone();
    elsewhere["iss"] = json!("https://other.example");
    let keys = stage.server.app.keys();
    let bad_hints = [
        forged(
            &json!({ "alg": "RS256", "typ": "JWT", "kid": kid }),
            &claims,
        ),
        format!(
            "{}.",
            forged(&json!({ "alg": "none", "typ": "JWT" }), &claims)
                .rsplit_once('.')
                .unwrap()
                .0
        ),
        keys.sign(portcullis::keys::Alg::RS256, "JWT", &elsewhere)
            .unwrap(),
        of_bob,
    ];
    for (case, bad) in (1..).zip(&bad_hints) {
        let url = url(&[("id_token_hint", bad), ("post_logout_redirect_uri", BYE)]);
        let answer = alice.at(&stage.node(case).base).get(&url).await;
        stage.expect(
            case,
            confirmation_page(&answer).and(does_not_redirect(&answer)),
        );
        if case < bad_hints.len() {
            stage.expect(case, logged(&answer, "logout.rejected", "id_token_hint"));
        }
        // Without a session there is nothing to confirm, and no redirect unless the client is known.
        let answer = stage.server.browser().get(&url).await;
        if case < bad_hints.len() {
            stage.expect(case, does_not_redirect(&answer));
        }
        stage.check(case, is_active(&alice, &web).await, || {
            "the session has ended".to_owned()
        });
    }
    // Expired but genuine: it names client and session.
    let case = bad_hints.len() + 1;
    stage.server.advance(std::time::Duration::from_secs(600));
    let answer = alice
        .clone()
        .get(&url(&[
            ("id_token_hint", &hint),
            ("post_logout_redirect_uri", BYE),
            ("state", "s"),
        ]))
        .await;
    let to = format!("{BYE}?state=s");
    stage.check(case, answer.location() == Some(to.as_str()), || {
        summary(&answer)
    });
    stage.check(case, !is_active(&alice, &web).await, || {
        "signed in".to_owned()
    });
}

async fn a369_logout_client_id_must_match_the_hint(stage: &Stage) {
    let web = stage.server.shop().await;
    let other = other_client(stage).await;
    let (alice, hint) = signed_in(stage, &web, "alice").await;
    for (case, client_id) in (1..).zip([other.id(), "unknown", "WEB"]) {
        let url = url(&[
            ("id_token_hint", &hint),
            ("client_id", client_id),
            ("post_logout_redirect_uri", BYE),
        ]);
        let answer = alice.at(&stage.node(case).base).get(&url).await;
        stage.expect(case, page400(&answer).and(does_not_redirect(&answer)));
        stage.expect(case, logged(&answer, "logout.rejected", "client_id"));
        stage.check(case, is_active(&alice, &web).await, || {
            "the session has ended".to_owned()
        });
    }
    // The matching `client_id` changes nothing.
    let fields = [
        ("id_token_hint", hint.as_str()),
        ("client_id", web.id()),
        ("post_logout_redirect_uri", BYE),
    ];
    let answer = alice.clone().get(&url(&fields)).await;
    stage.check(4, answer.location() == Some(BYE), || summary(&answer));
    stage.check(4, !is_active(&alice, &web).await, || "signed in".to_owned());
}

async fn a370_logout_state_is_percent_encoded(stage: &Stage) {
    const STATE: &str = "\"><script>alert(1)</script>";
    const ENCODED: &str = "%22%3E%3Cscript%3Ealert%281%29%3C%2Fscript%3E";
    let web = stage.server.shop().await;
    let to = format!("{BYE}?state={ENCODED}");
    let (alice, hint) = signed_in(stage, &web, "alice").await;
    let hinted = [
        ("id_token_hint", hint.as_str()),
        ("post_logout_redirect_uri", BYE),
        ("state", STATE),
    ];
    let answer = alice.clone().get(&url(&hinted)).await;
    stage.check(1, answer.location() == Some(to.as_str()), || {
        summary(&answer)
    });
    let (mut alice, _) = signed_in(stage, &web, "alice").await;
    let named = [
        ("client_id", web.id()),
        ("post_logout_redirect_uri", BYE),
        ("state", STATE),
    ];
    let page = alice.get(&url(&named)).await;
    stage.expect(2, confirmation_page(&page));
    stage.check(2, !page.body.contains("<script"), || page.body.clone());
    let carried = unescape(&page.hidden("state"));
    stage.check(2, carried == STATE, || carried.clone());
    let done = submit_confirmation(&mut alice, &page).await;
    stage.expect(3, page_continues_to(&done, &to));
    stage.check(3, !done.body.contains("<script"), || done.body.clone());
}

async fn a511_logout_without_hint_asks_for_confirmation(stage: &Stage) {
    let web = stage.server.shop().await;
    let other = other_client(stage).await;
    let fields = |client_id| {
        url(&[
            ("client_id", client_id),
            ("post_logout_redirect_uri", BYE),
            ("state", "s2"),
        ])
    };
    let to = format!("{BYE}?state=s2");
    // With a session: the confirmation page names the client and leads to its URI.
    let (mut alice, _) = signed_in(stage, &web, "alice").await;
    let page = alice.get(&fields(web.id())).await;
    stage.expect(1, confirmation_page(&page));
    stage.check(1, page.body.contains("Corner Shop"), || page.body.clone());
    stage.check(1, is_active(&alice, &web).await, || "not asked".to_owned());
    let done = submit_confirmation(&mut alice, &page).await;
    stage.expect(1, page_continues_to(&done, &to));
    stage.check(1, !is_active(&alice, &web).await, || "signed in".to_owned());
    // Without a session: redirected at once.
    for (case, node) in (2..).zip(stage.all()) {
        let answer = node.browser().get(&fields(web.id())).await;
        stage.check(case, answer.location() == Some(to.as_str()), || {
            summary(&answer)
        });
    }
    // A form POST of the client, with and without a session.
    let (mut alice, _) = signed_in(stage, &web, "alice").await;
    let form = [
        ("client_id", web.id()),
        ("post_logout_redirect_uri", BYE),
        ("state", "s2"),
    ];
    let page = alice.post("/oauth2/end_session", &form).await;
    stage.expect(5, confirmation_page(&page));
    let answer = stage
        .server
        .browser()
        .post("/oauth2/end_session", &form)
        .await;
    stage.expect(6, page_continues_to(&answer, &to));
    // The URI of another client; an unknown client; `client_id` twice.
    let twice = format!("{}&client_id={}", fields(web.id()), web.id());
    let bad = [
        (7, fields(other.id()), "unregistered"),
        (8, fields("unknown"), "client"),
    ];
    for (case, url, reason) in bad {
        let page = alice.get(&url).await;
        stage.expect(case, confirmation_page(&page).and(does_not_redirect(&page)));
        stage.expect(case, logged(&page, "logout.bad_redirect", reason));
        let answer = stage.server.browser().get(&url).await;
        stage.check(case, answer.status == 200, || summary(&answer));
        stage.expect(case, does_not_redirect(&answer));
    }
    let answer = alice.get(&twice).await;
    stage.expect(9, page400(&answer).and(does_not_redirect(&answer)));
    stage.expect(9, logged(&answer, "logout.rejected", "dup_param"));
    stage.check(10, is_active(&alice, &web).await, || {
        "the session has ended".to_owned()
    });
}

/// Sends a form as the back end of a client does: without cookies and without the headers of a browser.
async fn back_end_posts(web: &TestClient, base: &str, fields: &[(&str, &str)]) -> Answer {
    web.at(base)
        .posts_raw("/oauth2/end_session", &[], fields)
        .await
}

async fn a534_logout_hint_ends_its_session_without_a_cookie(stage: &Stage) {
    let web = stage.server.shop().await;
    let other = other_client(stage).await;
    let events = |name: &str| {
        stage.server.count(&format!(
            "SELECT count(*) AS n FROM audit_events WHERE name = '{name}' AND actor = 'client:{}'",
            web.id()
        ))
    };
    // 1. Without a cookie: the session of the hint and its refresh tokens end.
    let mut alice = stage.server.browser();
    let back = alice.signs_in(&web, "alice").await;
    let tokens = web.redeems(&back.callback("code").unwrap()).await.ok();
    let hint = tokens.0["id_token"].as_str().unwrap();
    let fields = [
        ("id_token_hint", hint),
        ("post_logout_redirect_uri", BYE),
        ("state", "s"),
    ];
    let answer = back_end_posts(&web, &stage.node(1).base, &fields).await;
    let to = format!("{BYE}?state=s");
    stage.check(1, answer.location() == Some(to.as_str()), || {
        summary(&answer)
    });
    stage.expect(1, logged(&answer, "session.ended", "hint"));
    stage.check(1, !is_active(&alice, &web).await, || "signed in".to_owned());
    let refresh = web.refreshes(tokens.refresh(), &[]).await;
    stage.check(1, refresh.status == 400, || summary(&refresh));
    stage.check(1, events("session.ended") == 1, || "no event".to_owned());
    // A GET without an address to return to, as oauth2-proxy sends it.
    let (carol, hint) = signed_in(stage, &web, "bob").await;
    let url = url(&[("id_token_hint", &hint)]);
    let answer = stage.server.browser().get(&url).await;
    stage.check(1, answer.body.contains("You are signed out"), || {
        summary(&answer)
    });
    stage.check(1, !is_active(&carol, &web).await, || "signed in".to_owned());
    // 2. The cookie of another user's session: the user is asked, and neither session has ended.
    let (alice, hint) = signed_in(stage, &web, "alice").await;
    let (bob, _) = signed_in(stage, &web, "bob").await;
    let fields = [
        ("id_token_hint", hint.as_str()),
        ("post_logout_redirect_uri", BYE),
    ];
    let page = bob.clone().post("/oauth2/end_session", &fields).await;
    stage.expect(2, confirmation_page(&page));
    for browser in [&alice, &bob] {
        stage.check(2, is_active(browser, &web).await, || "not asked".to_owned());
    }
    // 3. A hint of another client than `client_id`.
    let wrong = [
        ("id_token_hint", hint.as_str()),
        ("client_id", other.id()),
        ("post_logout_redirect_uri", BYE),
    ];
    let answer = back_end_posts(&web, &stage.node(2).base, &wrong).await;
    stage.expect(3, page400(&answer));
    stage.check(3, is_active(&alice, &web).await, || "ended".to_owned());
    // A hint with an invalid signature: the response does not claim a logout, and does not lead to the client.
    let broken = format!("{}AAAA", &hint[..hint.len() - 4]);
    let forged = [
        ("id_token_hint", broken.as_str()),
        ("client_id", web.id()),
        ("post_logout_redirect_uri", BYE),
    ];
    let answer = back_end_posts(&web, &stage.node(2).base, &forged).await;
    stage.expect(3, does_not_redirect(&answer));
    let said = answer.body.contains("You are not signed in");
    stage.check(3, said, || answer.body.clone());
    stage.check(3, is_active(&alice, &web).await, || "ended".to_owned());
    // 4. A hint whose session ended before.
    let answer = back_end_posts(&web, &stage.node(1).base, &fields).await;
    stage.check(4, answer.location() == Some(BYE), || summary(&answer));
    let ended = events("session.ended");
    let answer = back_end_posts(&web, &stage.node(2).base, &fields).await;
    stage.check(4, answer.location() == Some(BYE), || summary(&answer));
    stage.check(4, events("session.ended") == ended, || "twice".to_owned());
    stage.check(4, is_active(&bob, &web).await, || {
        "bob has ended".to_owned()
    });
}

/// The id of a client that is told of a logout. It names the database, because both write to one log.
fn told(stage: &Stage, number: usize) -> String {
    format!("told-{:?}-{number}", stage.db())
}

/// Starts a server that may reach the receivers, and signs alice in at one client for each URI.
async fn signed_in_at(stage: &Stage, allowed: &[&Receiver], uris: &[String]) -> (Server, Browser) {
    let allow = allowed
        .iter()
        .map(|receiver| receiver.address.to_string().parse().unwrap())
        .collect();
    let server = Server::found_by_services(stage.server.db, |config| {
        config.outbound.allow = allow;
    })
    .await;
    let mut alice = server.enters("alice").await;
    for (number, uri) in (1..).zip(uris) {
        let mut client = confidential(&told(stage, number), "https://app.example/cb");
        client.backchannel_logout_uri = Some(uri.clone());
        let client = server.register(client).await;
        let code = alice.allows(&client).await;
        client.redeems(&code).await.ok();
    }
    (server, alice)
}

async fn a372_hostile_logout_receivers_are_contained(stage: &Stage) {
    let target = Receiver::start(Behavior::Status(200)).await;
    let redirecting = Receiver::start(Behavior::RedirectTo(target.address.port())).await;
    let silent = Receiver::start(Behavior::Silence).await;
    let failing = Receiver::start(Behavior::Status(500)).await;
    let endless = Receiver::start(Behavior::EndlessBody).await;
    let good = Receiver::start(Behavior::Status(200)).await;
    let uris = [
        "https://169.254.169.254/latest/meta-data".to_owned(),
        "https://127.0.0.1/logout".to_owned(),
        "http://127.0.0.1:1/logout".to_owned(),
        "https://[::ffff:10.0.0.1]/logout".to_owned(),
        redirecting.url(),
        silent.url(),
        failing.url(),
        endless.url(),
        good.url(),
    ];
    let receivers = [&target, &redirecting, &silent, &failing, &endless, &good];
    let (server, mut alice) = signed_in_at(stage, &receivers, &uris).await;
    let mark = log::mark();
    let answer = alice.signs_out().await;
    stage.check(1, answer.status == 200, || summary(&answer));
    let logged = log::since(mark);
    let outcomes = [
        (1, "failed", "destination"),
        (2, "failed", "destination"),
        (3, "failed", "destination"),
        (4, "failed", "destination"),
        (5, "failed", "status"),
        (6, "failed", "unreachable"),
        (7, "failed", "status"),
        (8, "sent", "accepted"),
        (9, "sent", "accepted"),
    ];
    for (case, outcome, reason) in outcomes {
        let event = format!("logout.backchannel_{outcome}");
        let client_id = told(stage, case);
        let fields = [
            ("event", event.as_str()),
            ("reason", reason),
            ("client_id", &client_id),
        ];
        let is_logged = logged.iter().any(|line| log::has(line, &fields));
        stage.check(case, is_logged, || {
            format!("client {case}: no {event} {{{reason}}}: {logged:?}")
        });
    }
    let followed = target.received();
    stage.check(5, followed.is_empty(), || format!("{followed:?}"));
    let waiting = server.count("SELECT count(*) AS n FROM logout_notifications");
    stage.check(7, waiting == 7, || format!("{waiting} rows"));
    // Three repetitions, then it is given up. The silent one is back, which spares the test its time.
    silent.behaves(Behavior::Status(200));
    for pause in [10, 60, 300, 3_600] {
        server.advance(Duration::from_secs(pause));
        server.app.logout_notifier.send_waiting().await;
    }
    let attempts = failing.received().len();
    stage.check(7, attempts == 4, || format!("{attempts} attempts"));
    let client_id = told(stage, 7);
    let fields = [
        ("event", "logout.backchannel_dead"),
        ("client_id", &client_id),
        ("severity", "high"),
    ];
    let given_up = log::since(mark);
    let given_up = given_up
        .iter()
        .filter(|line| log::has(line, &fields))
        .count();
    stage.check(7, given_up == 1, || format!("given up {given_up} times"));
    expect::strike_out_http_issuer();
    server.remove().await;
}

async fn a373_logout_tokens_have_the_required_claims(stage: &Stage) {
    let end = Receiver::start(Behavior::Status(200)).await;
    let (server, mut alice) = signed_in_at(stage, &[&end], &[end.url()]).await;
    alice.signs_out().await;
    for token in end.tokens() {
        let (header, claims) = (header(&token), claims(&token));
        stage.check(1, header["typ"] == "logout+jwt", || header.to_string());
        let names: Vec<&str> = claims
            .as_object()
            .map(|claims| claims.keys().map(String::as_str).collect())
            .unwrap_or_default();
        let wanted = ["aud", "events", "exp", "iat", "iss", "jti", "sid", "sub"];
        let is_complete =
            names.len() == wanted.len() && wanted.iter().all(|one| names.contains(one));
        stage.check(1, is_complete, || claims.to_string());
        let lifetime = claims["exp"].as_u64().zip(claims["iat"].as_u64());
        let is_short = lifetime.is_some_and(|(exp, iat)| exp - iat <= 120);
        stage.check(1, is_short, || claims.to_string());
        let event = json!({"http://schemas.openid.net/event/backchannel-logout": {}});
        stage.check(1, claims["events"] == event, || claims.to_string());
    }
    let told = end.tokens().len();
    stage.check(1, told == 1, || format!("{told} tokens"));
    expect::strike_out_http_issuer();
    server.remove().await;
}
