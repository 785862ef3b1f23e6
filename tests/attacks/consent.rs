//! Rows of the catalogue: the consent page, and the client metadata that it shows.

use std::time::Duration;

use portcullis::oauth::client::{Client, rejected};
use portcullis::oauth::redirect_uri::Localhost;

use crate::expect::{consent_page, json_error, logged, page, redirected, summary};
use crate::fixtures::server::{PASSWORD, confidential, public};
use crate::fixtures::{Answer, Browser, ISSUER, Server};
use crate::login::pages::skeleton;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a160_consent_form_without_valid_csrf_token_is_rejected),
    row!(a161_consent_grants_only_requested_and_ticked_scopes),
    row!(a162_hostile_client_names_are_escaped_or_refused),
    row!(a164_scope_descriptions_are_escaped),
    row!(a165_script_uris_in_client_metadata_are_refused),
    row!(a166_remembered_consent_is_asked_again_after_changes),
    row!(a167_consent_form_of_a_switched_user_is_rejected),
    row!(a168_denied_consent_writes_no_code),
    row!(a505_withdrawn_consent_stops_a_pending_redirect),
    row!(a508_concurrent_first_consents_write_one_row),
    row!(a169_registration_cannot_skip_consent),
    row!(a170_withdrawn_consent_stops_refreshes),
];

const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");
const OURS: [(&str, &str); 3] = [FORM, ("Origin", ISSUER), ("Sec-Fetch-Site", "same-origin")];

fn encoded(fields: &[(&str, &str)]) -> Option<String> {
    Some(
        form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish(),
    )
}

/// Opens the consent page of a new client for a signed-in user.
async fn asks(server: &Server, browser: &mut Browser, scope: &str) -> Answer {
    let web = server.shop().await;
    let page = browser.opens(&web.request(&[("scope", scope)])).await;
    assert!(
        page.body.contains("consent-allow"),
        "no consent page: {}",
        summary(&page)
    );
    page
}

async fn a160_consent_form_without_valid_csrf_token_is_rejected(stage: &Stage) {
    let (mut alice, mut bob) = (
        stage.server.enters("alice").await,
        stage.server.enters("bob").await,
    );
    let shown = asks(&stage.server, &mut alice, "openid").await;
    let his = asks(&stage.server, &mut bob, "openid").await;
    let (authorization, csrf, his_csrf) = (
        shown.hidden("authorization"),
        shown.hidden("csrf"),
        his.hidden("csrf"),
    );
    let rows = || {
        ["grants", "codes", "consents"].map(|table| {
            stage
                .server
                .count(&format!("SELECT count(*) AS n FROM {table}"))
        })
    };
    let before = rows();
    let rest = [
        ("authorization", authorization.as_str()),
        ("decision", "allow"),
        ("scope", "openid"),
    ];
    let with = |csrf: Option<&str>| {
        let mut fields = rest.to_vec();
        fields.extend(csrf.map(|csrf| ("csrf", csrf)));
        encoded(&fields)
    };
    let cross = [FORM, ("Origin", ISSUER), ("Sec-Fetch-Site", "cross-site")];
    let cases: [(usize, bool, &[(&str, &str)], Option<String>); 6] = [
        (1, true, &OURS, with(None)),
        (
            2,
            true,
            &OURS,
            with(Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")),
        ),
        (2, true, &OURS, with(Some(&his_csrf))),
        (3, true, &cross, with(Some(&csrf))),
        (4, false, &OURS, with(Some(&his_csrf))),
        (4, false, &OURS, with(Some(&csrf))),
    ];
    for (case, hers, headers, body) in cases {
        let mut browser = if hers {
            alice.at(&stage.node(case).base)
        } else {
            bob.at(&stage.node(case).base)
        };
        let answer = browser.send("POST", "/consent", headers, body).await;
        stage.expect(case, page(&answer, 403));
        stage.expect(case, logged(&answer, "csrf.rejected", ""));
        stage.check(case, rows() == before, || {
            format!("rows were {before:?}, are {:?}", rows())
        });
    }
}

async fn a161_consent_grants_only_requested_and_ticked_scopes(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.enters("alice").await;
    let asked = [("scope", "openid profile orders:read")];
    let shown = alice.opens(&web.request(&asked)).await;
    let (authorization, csrf) = (shown.hidden("authorization"), shown.hidden("csrf"));
    let own = [
        ("authorization", authorization.as_str()),
        ("csrf", csrf.as_str()),
        ("decision", "allow"),
    ];
    let with = |scopes: &[&'static str]| {
        let mut fields = own.to_vec();
        fields.extend(scopes.iter().map(|scope| ("scope", *scope)));
        fields
    };
    // 1. A scope that was not requested but that the client may have, and a scope that does not exist.
    for added in ["admin", "orders:write"] {
        let answer = alice
            .post("/consent", &with(&["openid", "profile", added]))
            .await;
        stage.expect(1, page(&answer, 400));
        stage.expect(1, logged(&answer, "consent.tampered", "scope"));
    }
    // 3. A duplicate counts once, and a scope that is not ticked is not granted.
    let mut answer = alice
        .post(
            "/consent",
            &with(&["openid", "profile", "profile", "openid"]),
        )
        .await;
    while let Some(next) = answer.own_redirect() {
        answer = alice.get(&next).await;
    }
    let tokens = web
        .redeems(&answer.callback("code").unwrap_or_default())
        .await
        .ok();
    stage.check(
        3,
        tokens.0["scope"] == "openid profile"
            && tokens.access_claims()["scope"] == "openid profile",
        || tokens.0.to_string(),
    );
    // 2. Without `openid`, for a client without any consent.
    let web = stage.server.shop().await;
    let shown = alice.opens(&web.request(&asked)).await;
    let (authorization, csrf) = (shown.hidden("authorization"), shown.hidden("csrf"));
    let fields = [
        ("authorization", authorization.as_str()),
        ("csrf", csrf.as_str()),
        ("decision", "allow"),
        ("scope", "profile"),
    ];
    let posted = alice.post("/consent", &fields).await;
    stage.expect(2, logged(&posted, "consent.tampered", "openid"));
    let answer = alice
        .opens(&posted.own_redirect().unwrap_or_default())
        .await;
    stage.expect(2, redirected(&answer, "access_denied", Some("st-4711")));
}

/// Returns the error of a registration: (event, code, status).
fn registration(client: &Client) -> Result<(), (&'static str, &'static str, u16)> {
    client
        .check(Localhost::Forbidden)
        .map_err(|errors| rejected(&errors))
        .map_err(|error| (error.detail.event, error.code.as_str(), error.code.status()))
}

const REFUSED: (&str, &str, u16) = ("registration.rejected", "invalid_client_metadata", 400);

fn named(id: &str, name: &str) -> Client {
    Client {
        name: name.to_owned(),
        ..confidential(id, "https://app.example/cb")
    }
}

async fn a162_hostile_client_names_are_escaped_or_refused(stage: &Stage) {
    let names = [
        (1, "<img src=x onerror=alert(1)>".to_owned(), true),
        (2, "Corner\u{202e}pohS".to_owned(), false),
        (3, "x".repeat(65), false),
        (4, "x".repeat(10_000), false),
        // Cyrillic `о`.
        (5, "C\u{43e}rner Shop".to_owned(), true),
        (6, "Shop \u{1f6d2}".to_owned(), true),
        (7, "Corner\nShop".to_owned(), false),
        (7, "Corner\u{7}Shop".to_owned(), false),
        (3, "x".repeat(64), true),
    ];
    let mut alice = stage.server.enters("alice").await;
    let plain = stage.server.register(named("plain", "Shop")).await;
    let plain = skeleton(&alice.opens(&plain.request(&[])).await.body);
    for (n, (case, name, good)) in names.into_iter().enumerate() {
        let client = named(&format!("named{n}"), &name);
        let said = registration(&client);
        stage.check(
            case,
            said == if good { Ok(()) } else { Err(REFUSED) },
            || format!("`{name}` got {said:?}"),
        );
        if good {
            let client = stage.server.register(client).await;
            let shown = alice.opens(&client.request(&[])).await;
            stage.expect(case, consent_page(&shown));
            stage.check(case, skeleton(&shown.body) == plain, || {
                format!("`{name}` changes the page")
            });
            // No client has the verified-publisher mark: it cannot be set yet.
            stage.check(
                case,
                !shown.body.to_lowercase().contains("verified"),
                || format!("`{name}` is marked"),
            );
        }
    }
}

async fn a164_scope_descriptions_are_escaped(stage: &Stage) {
    let mut alice = stage.server.enters("alice").await;
    let web = stage.server.shop().await;
    let url = web.request(&[("scope", "openid orders:read")]);
    let describe = async |text: &'static str| {
        stage
            .server
            .write(move |tx| tx.put_scope_description("orders:read", text))
            .await
    };
    describe("Read your orders").await;
    let plain = skeleton(&alice.opens(&url).await.body);
    for (case, text, shown) in [
        (
            1,
            "Read <b>your</b> orders",
            "Read &#60;b&#62;your&#60;/b&#62; orders",
        ),
        (
            2,
            "<script>alert(1)</script>",
            "&#60;script&#62;alert(1)&#60;/script&#62;",
        ),
        (
            3,
            "Orders of {user} {{ user }} {% raw %} ${user} %s",
            "Orders of {user} {{ user }} {% raw %} ${user} %s",
        ),
    ] {
        describe(text).await;
        let page = alice.opens(&url).await;
        stage.expect(case, consent_page(&page));
        stage.check(case, skeleton(&page.body) == plain, || {
            format!("`{text}` changes the page")
        });
        stage.check(case, page.body.contains(shown), || {
            format!("no `{shown}` in {}", page.body)
        });
    }
}

async fn a165_script_uris_in_client_metadata_are_refused(stage: &Stage) {
    type Field = fn(&mut Client) -> &mut Option<String>;
    let fields: [(usize, Field); 3] = [
        (1, |client| &mut client.policy_uri),
        (2, |client| &mut client.tos_uri),
        (3, |client| &mut client.client_uri),
    ];
    for (case, field) in fields {
        for uri in [
            "javascript:alert(1)",
            "JAVASCRIPT:alert(1)",
            "data:text/html,x",
            "http://app.example/",
            "//app.example/",
            "https://u:p@app.example/",
            " javascript:alert(1)",
        ] {
            let mut client = confidential("x", "https://app.example/cb");
            *field(&mut client) = Some(uri.to_owned());
            let said = registration(&client);
            stage.check(case, said == Err(REFUSED), || {
                format!("`{uri}` got {said:?}")
            });
        }
    }
    let mut client = confidential("linked", "https://app.example/cb");
    for (n, (_, field)) in fields.into_iter().enumerate() {
        *field(&mut client) = Some(format!("https://app.example/about/{n}"));
    }
    stage.check(4, registration(&client).is_ok(), || {
        "https is refused".to_owned()
    });
    let client = stage.server.register(client).await;
    let mut alice = stage.server.browser();
    let login = alice.opens(&client.request(&[])).await;
    let consent = alice.fills_in(&login, "alice", PASSWORD).await;
    stage.expect(4, consent_page(&consent));
    for (page, want) in [(&login, 2), (&consent, 3)] {
        let links: Vec<&str> = page
            .body
            .split("<a ")
            .skip(1)
            .filter_map(|rest| rest.split('>').next())
            .filter(|link| link.contains("https://app.example/about/"))
            .collect();
        stage.check(
            4,
            links.len() == want
                && links
                    .iter()
                    .all(|link| link.contains("rel=\"noopener noreferrer\"")),
            || format!("{links:?}"),
        );
    }
}

async fn a166_remembered_consent_is_asked_again_after_changes(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.browser();
    alice.signs_in(&web, "alice").await;
    let prompted = |case: usize, answer: &Answer| {
        stage.expect(case, consent_page(answer));
        stage.expect(case, logged(answer, "consent.prompted", ""));
    };
    let again = alice.opens(&web.request(&[])).await;
    stage.check(1, again.callback("code").is_some(), || {
        format!("it is not remembered: {}", summary(&again))
    });
    // 1. One more scope.
    prompted(
        1,
        &alice
            .opens(&web.request(&[("scope", "openid orders:read")]))
            .await,
    );
    // 2. Changed redirect URIs, which include the one in use.
    let (id, uris) = (
        web.client.id.clone(),
        [
            web.redirect_uri().to_owned(),
            "https://app.example/new".to_owned(),
        ],
    );
    stage
        .server
        .alter(&id, move |client| client.redirect_uris = uris.to_vec())
        .await;
    stage.forget_registrations();
    let asked = alice.opens(&web.request(&[])).await;
    prompted(2, &asked);
    alice.decides(&asked, "allow").await;
    // 3. Clients have no keys yet. 4. A consent older than 180 days.
    stage.server.advance(Duration::from_secs(180 * 86_400 - 60));
    let login = alice.opens(&web.request(&[])).await;
    let back = alice.fills_in(&login, "alice", PASSWORD).await;
    stage.check(4, back.callback("code").is_some(), || {
        format!("it is forgotten too early: {}", summary(&back))
    });
    stage.server.advance(Duration::from_secs(61));
    prompted(4, &alice.opens(&web.request(&[])).await);
    // 5. and 6. `native`, on each request.
    let phone = stage.server.phone().await;
    for (case, uri) in [
        (5, "http://127.0.0.1:40123/cb"),
        (5, "http://[::1]:40123/cb"),
        (6, "com.example.app:/cb"),
    ] {
        for _ in 0..2 {
            let asked = alice.opens(&phone.request(&[("redirect_uri", uri)])).await;
            prompted(case, &asked);
            let back = alice.decides(&asked, "allow").await;
            stage.check(case, back.callback("code").is_some(), || summary(&back));
        }
    }
    // 7. Consent for other public clients is remembered, because no other program can use their redirect URI.
    let spa = stage
        .server
        .register(public("spa", &["https://spa.example/cb"]))
        .await;
    alice.allows(&spa).await;
    let again = alice.opens(&spa.request(&[])).await;
    stage.check(7, again.callback("code").is_some(), || summary(&again));
}

/// The user of the browser changes between the page and its form.
async fn a167_consent_form_of_a_switched_user_is_rejected(stage: &Stage) {
    let mut alice = stage.server.enters("alice").await;
    let bob = stage.server.enters("bob").await;
    let shown = asks(&stage.server, &mut alice, "openid").await;
    let grants = "SELECT (SELECT count(*) FROM grants) + (SELECT count(*) FROM consents) AS n";
    let mut switched = alice.at(&stage.node(1).base);
    let session = crate::login::SESSION;
    switched
        .cookies
        .insert(session.to_owned(), bob.cookies[session].clone());
    let answer = switched.decides(&shown, "allow").await;
    stage.expect(1, page(&answer, 403));
    stage.expect(1, logged(&answer, "csrf.rejected", "token"));
    let written = stage.server.count(grants);
    stage.check(1, written == 0, || format!("{written} rows were written"));
}

async fn a168_denied_consent_writes_no_code(stage: &Stage) {
    let mut alice = stage.server.enters("alice").await;
    let rows = || {
        ["grants", "codes", "consents"].map(|table| {
            stage
                .server
                .count(&format!("SELECT count(*) AS n FROM {table}"))
        })
    };
    let before = rows();
    let shown = asks(&stage.server, &mut alice, "openid").await;
    let (authorization, csrf) = (shown.hidden("authorization"), shown.hidden("csrf"));
    let posted = alice
        .post(
            "/consent",
            &[
                ("authorization", &authorization),
                ("csrf", &csrf),
                ("decision", "deny"),
                ("scope", "openid"),
            ],
        )
        .await;
    stage.expect(1, logged(&posted, "consent.denied", ""));
    let answer = alice
        .opens(&posted.own_redirect().unwrap_or_default())
        .await;
    stage.expect(1, redirected(&answer, "access_denied", Some("st-4711")));
    stage.check(1, rows() == before, || {
        format!("rows were {before:?}, are {:?}", rows())
    });
    // Submitting the form with Enter, or with an unknown decision, is not consent.
    for (case, decision) in [(2, ""), (3, "ALLOW")] {
        let shown = asks(&stage.server, &mut alice, "openid").await;
        let answer = alice.decides(&shown, decision).await;
        stage.expect(case, redirected(&answer, "access_denied", Some("st-4711")));
        stage.check(case, rows() == before, || {
            format!("rows were {before:?}, are {:?}", rows())
        });
    }
}

async fn a169_registration_cannot_skip_consent(stage: &Stage) {
    let clients = || stage.server.count("SELECT count(*) AS n FROM clients");
    let before = clients();
    for (case, member) in [(1, "skip_consent"), (2, "first_party"), (3, "trusted")] {
        let body = format!(
            r#"{{"client_name":"x","redirect_uris":["https://x.example/cb"],"{member}":true}}"#
        );
        let answer = stage
            .node(case)
            .browser()
            .send(
                "POST",
                "/oauth2/register",
                &[("Content-Type", "application/json")],
                Some(body),
            )
            .await;
        stage.expect(case, page(&answer, 404));
        stage.check(case, clients() == before, || {
            "a client was registered".to_owned()
        });
    }
    let metadata = stage
        .server
        .browser()
        .get("/.well-known/openid-configuration")
        .await
        .json();
    stage.check(4, metadata.get("registration_endpoint").is_none(), || {
        metadata.to_string()
    });
}

/// Withdraws a consent while its client refreshes in a loop.
async fn a170_withdrawn_consent_stops_refreshes(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let tokens = web.redeems(&alice.allows(&web).await).await.ok();
    let (access, first) = (tokens.access().to_owned(), tokens.refresh().to_owned());
    let account = alice.get("/account").await;
    let (csrf, consent) = (account.values("csrf"), account.hidden("consent"));
    // The page has two forms: to withdraw, and to log out.
    let fields = [("csrf", csrf[0].as_str()), ("consent", consent.as_str())];
    // Another site, the token of another form, and another user cannot withdraw it.
    let forged = alice
        .post("/account", &[("csrf", csrf[1].as_str()), fields[1]])
        .await;
    stage.expect(1, page(&forged, 403));
    let mut bob = stage.server.signed_in("bob").await;
    let his = bob.get("/account").await.values("csrf");
    let strange = bob
        .post("/account", &[("csrf", his[0].as_str()), fields[1]])
        .await;
    stage.check(1, strange.status == 303, || summary(&strange));
    let active = "SELECT count(*) AS n FROM consents WHERE ended_at IS NULL AND id = ";
    let active = format!("{active}'{consent}'");
    stage.check(1, stage.server.count(&active) == 1, || {
        "another user withdrew it".to_owned()
    });
    // The client refreshes in a loop, on another node where there is one.
    let refresher = web.at(&stage.node(1).base);
    let looping = async {
        let mut live = first;
        let mut refreshed = 0;
        loop {
            let answer = refresher.refreshes(&live, &[]).await;
            if answer.status != 200 {
                break (answer, live, refreshed);
            }
            refreshed += 1;
            live = answer.ok().refresh().to_owned();
            // This row is not about the rate limit of a grant.
            stage.server.advance(Duration::from_secs(2));
        }
    };
    let withdrawing = async {
        // The consent is withdrawn after the loop has started.
        while stage
            .server
            .count("SELECT max(generation) AS n FROM grants")
            < 3
        {
            actix_web::rt::task::yield_now().await;
        }
        alice.post("/account", &fields).await
    };
    let ((refused, live, refreshed), withdrawn) = tokio::join!(looping, withdrawing);
    stage.check(2, withdrawn.location() == Some("/account"), || {
        summary(&withdrawn)
    });
    stage.expect(2, logged(&withdrawn, "consent.revoked", "account"));
    stage.check(2, refreshed >= 3, || format!("{refreshed} refreshes"));
    stage.expect(2, json_error(&refused, 400, "invalid_grant"));
    for node in stage.all() {
        let again = web.at(&node.base).refreshes(&live, &[]).await;
        stage.expect(2, json_error(&again, 400, "invalid_grant"));
    }
    let dead = alice.asks_userinfo("GET", &access).await;
    stage.check(3, dead.status == 401, || summary(&dead));
    let record =
        "SELECT count(*) AS n FROM revocations WHERE kind = 'G' AND reason = 'consent withdrawn'";
    // One grant of the sign-in, one of the flow.
    stage.check(3, stage.server.count(record) == 2, || {
        "the blocklist has no record".to_owned()
    });
    // Consent is asked again.
    let page = alice.opens(&web.request(&[])).await;
    stage.expect(4, consent_page(&page));
}

async fn a505_withdrawn_consent_stops_a_pending_redirect(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.browser();
    let login = alice
        .opens(&web.request(&[("scope", "openid profile")]))
        .await;
    let asked = alice.fills_in(&login, "alice", PASSWORD).await;
    stage.expect(1, consent_page(&asked));
    let mut fields = vec![
        ("authorization", asked.hidden("authorization")),
        ("csrf", asked.hidden("csrf")),
        ("decision", "allow".to_owned()),
    ];
    fields.extend(
        asked
            .values("scope")
            .into_iter()
            .map(|scope| ("scope", scope)),
    );
    let fields: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let given = alice.post("/consent", &fields).await;
    // Withdrawn before the browser follows the redirect.
    let account = alice.get("/account").await;
    let csrf = account.values("csrf");
    let withdrawal = [
        ("csrf", csrf[0].as_str()),
        ("consent", &account.hidden("consent")),
    ];
    stage.check(
        1,
        alice.post("/account", &withdrawal).await.status == 303,
        || "the consent was not withdrawn".to_owned(),
    );
    let on = given.own_redirect().unwrap_or_default();
    let answer = alice.at(&stage.node(1).base).opens(&on).await;
    stage.expect(1, consent_page(&answer));
    let codes = stage.server.count("SELECT count(*) AS n FROM codes");
    stage.check(1, codes == 0, || format!("{codes} codes"));
    // A narrower consent that was given later does not replace it.
    let narrow = alice.opens(&web.request(&[("scope", "openid")])).await;
    let back = alice.decides(&narrow, "allow").await;
    stage.check(1, back.callback("code").is_some(), || summary(&back));
    let answer = alice.opens(&on).await;
    stage.expect(1, consent_page(&answer));
}

async fn a508_concurrent_first_consents_write_one_row(stage: &Stage) {
    let web = stage.server.shop().await;
    for round in 0..4 {
        stage.server.execute("DELETE FROM consents");
        let mut alice = stage.server.browser();
        let login = alice.opens(&web.request(&[("prompt", "consent")])).await;
        let asked = alice.fills_in(&login, "alice", PASSWORD).await;
        stage.expect(1, consent_page(&asked));
        let mut tries = Vec::new();
        for n in 0..16 {
            let (mut alice, asked) = (alice.at(&stage.node(n).base), asked.clone());
            tries.push(actix_web::rt::spawn(async move {
                alice.decides(&asked, "allow").await
            }));
        }
        let mut codes = 0;
        for answer in tries {
            let answer = answer.await.unwrap();
            codes += usize::from(answer.callback("code").is_some());
            stage.check(1, answer.status < 500, || summary(&answer));
        }
        stage.check(1, codes == 1, || format!("round {round}: {codes} codes"));
        let active = "SELECT count(*) AS n FROM consents WHERE ended_at IS NULL";
        let active = stage.server.count(active);
        stage.check(1, active == 1, || format!("{active} consents"));
    }
}
