//! Rows of the catalogue: a code is bound to its request by PKCE and the browser, works once, and expires
//! after ten minutes.

use std::time::Duration;

use crate::expect::{
    WEB_CALLBACK, consent_page, json_error, logged, login_page, page, page400, posted_to,
    redirected, redirected_with_code, summary,
};
use crate::fixtures::client::challenge;
use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Answer, Browser, Db, ISSUER, Server, TestClient, raw};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a076_code_challenge_methods_except_s256_are_rejected),
    row!(a077_malformed_code_challenges_are_rejected),
    row!(a078_code_for_an_injected_challenge_is_rejected),
    row!(a080_authorization_is_bound_to_its_browser),
    row!(a081_authorization_yields_exactly_one_code),
    row!(a082_added_form_fields_are_ignored),
    row!(a084_mixed_up_codes_are_rejected),
    row!(a085_responses_of_two_servers_carry_their_own_iss),
    row!(a086_pages_load_nothing_cross_origin),
    row!(a088_expired_authorization_shows_start_again_page),
    row!(a090_request_uri_is_rejected_without_par),
    row!(a092_plain_request_is_accepted_without_par),
    row!(a093_request_uri_is_rejected_beside_other_parameters),
    row!(a094_par_endpoint_does_not_exist),
    row!(a096_request_objects_are_rejected),
    row!(a500_consent_page_cannot_skip_reauthentication),
    row!(a504_expired_authorization_shows_expiry_page),
];

const STATE: Option<&str> = Some("st-4711");

/// Returns the fields of a page's form, with some of them changed.
fn fields(page: &Answer, changed: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut fields: Vec<(String, String)> = ["authorization", "csrf"]
        .map(|name| (name.to_owned(), page.hidden(name)))
        .to_vec();
    for (name, value) in changed {
        fields.retain(|(known, _)| known != name);
        fields.push(((*name).to_owned(), (*value).to_owned()));
    }
    fields
}

async fn posts(browser: &mut Browser, path: &str, fields: &[(String, String)]) -> Answer {
    let fields: Vec<(&str, &str)> = fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    browser.post(path, &fields).await
}

const ALICE: [(&str, &str); 2] = [("username", "alice"), ("password", PASSWORD)];

fn unbound(answer: &Answer) -> Result<(), String> {
    page400(answer).and(logged(answer, "authorization.binding_failed", ""))
}

fn replay_is_rejected(answer: &Answer) -> Result<(), String> {
    page400(answer).and(logged(answer, "authorization.replay", ""))?;
    if answer.body.contains("already done") {
        Ok(())
    } else {
        Err(format!("no `already done` in {}", answer.body))
    }
}

async fn a076_code_challenge_methods_except_s256_are_rejected(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    for (case, method) in (1..).zip(["plain", "", "s256", "S512"]) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[("code_challenge_method", method)]))
            .await;
        stage.expect(
            case,
            redirected(&answer, "invalid_request", STATE).and(logged(
                &answer,
                "authz.rejected",
                "pkce",
            )),
        );
    }
    // Without a challenge: all clients need one.
    for (case, changed) in [
        (
            5,
            &[("code_challenge", ""), ("code_challenge_method", "")][..],
        ),
        (6, &[("code_challenge", "")]),
    ] {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(changed))
            .await;
        stage.expect(
            case,
            redirected(&answer, "invalid_request", STATE).and(logged(
                &answer,
                "authz.rejected",
                "require_pkce",
            )),
        );
    }
}

async fn a077_malformed_code_challenges_are_rejected(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let good = challenge(crate::fixtures::VERIFIER);
    let challenges = [
        good[..42].to_owned(),
        format!("{good}A"),
        "A".repeat(128),
        format!("{good}="),
        format!("+{}", &good[1..]),
        format!("/{}", &good[1..]),
        // 43 characters hold 258 bits; the last two must be zero, and `B` sets one of them.
        format!("{}B", "A".repeat(42)),
        format!("{}.", &good[..42]),
    ];
    for (case, challenge) in (1..).zip(&challenges) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[("code_challenge", challenge)]))
            .await;
        stage.expect(
            case,
            redirected(&answer, "invalid_request", STATE).and(logged(
                &answer,
                "authz.rejected",
                "pkce",
            )),
        );
    }
    let answer = alice
        .clone()
        .get(&web.request(&[("code_challenge", &"A".repeat(43))]))
        .await;
    stage.expect(
        challenges.len() + 1,
        redirected_with_code(&answer, WEB_CALLBACK, STATE),
    );
}

async fn a078_code_for_an_injected_challenge_is_rejected(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let own = "the-verifier-that-only-the-attacker-knows-0123456789";
    let code = alice
        .allows_request(&web.request(&[("code_challenge", &challenge(own))]))
        .await;
    let grants = |used: &str| {
        stage.server.count(&format!(
            "SELECT count(*) AS n FROM codes WHERE used_at IS {used}"
        ))
    };
    let unused = grants("NULL");
    let answer = web.at(&stage.node(1).base).redeems(&code).await;
    stage.expect(
        1,
        json_error(&answer, 400, "invalid_grant").and(logged(&answer, "token.rejected", "pkce")),
    );
    stage.check(1, grants("NULL") == unused - 1, || {
        "the code is not consumed".to_owned()
    });
    let answer = web
        .at(&stage.node(2).base)
        .redeems_with(&code, &[("code_verifier", own)])
        .await;
    stage.expect(2, json_error(&answer, 400, "invalid_grant"));
}

async fn a080_authorization_is_bound_to_its_browser(stage: &Stage) {
    let web = stage.server.shop().await;
    let (mut a, mut b) = (stage.server.browser(), stage.node(1).browser());
    let login = a.opens(&web.request(&[])).await;
    let theirs = login.hidden("authorization");
    // B has begun its own sign-in, so it has its own cookie and form token.
    let mine = b.opens(&web.request(&[])).await;
    stage.expect(1, login_page(&login).and(login_page(&mine)));
    let mut stranger = stage.node(2).browser();
    for path in ["/oauth2/authorize", "/login", "/consent"] {
        for browser in [&mut b, &mut stranger] {
            let answer = browser.get(&format!("{path}?authorization={theirs}")).await;
            stage.expect(1, unbound(&answer));
        }
    }
    let stolen = [ALICE[0], ALICE[1], ("authorization", theirs.as_str())];
    let answer = posts(&mut b, "/login", &fields(&mine, &stolen)).await;
    stage.expect(2, unbound(&answer));

    // The same where B is signed in and A has the consent page open.
    let consent = a.fills_in(&login, "alice", PASSWORD).await;
    stage.expect(3, consent_page(&consent));
    let own_consent = b.fills_in(&mine, "bob", PASSWORD).await;
    stage.expect(3, consent_page(&own_consent));
    for path in ["/oauth2/authorize", "/login", "/consent"] {
        let answer = b.get(&format!("{path}?authorization={theirs}")).await;
        stage.expect(3, unbound(&answer));
    }
    // A form token of the consent page belongs to one authorization. B has none for A's authorization, and
    // that is checked first.
    for form in [
        fields(&consent, &[]),
        fields(&own_consent, &[("authorization", &theirs)]),
    ] {
        let form: Vec<(String, String)> = form
            .into_iter()
            .chain([
                ("decision".to_owned(), "allow".to_owned()),
                ("scope".to_owned(), "openid".to_owned()),
            ])
            .collect();
        let answer = posts(&mut b, "/consent", &form).await;
        stage.expect(
            4,
            page(&answer, 403).and(logged(&answer, "csrf.rejected", "")),
        );
    }
    stage.check(
        5,
        stage.server.count("SELECT count(*) AS n FROM codes") == 0,
        || "a code was written".to_owned(),
    );
    let answer = a.decides(&consent, "allow").await;
    stage.expect(5, redirected_with_code(&answer, WEB_CALLBACK, STATE));
}

async fn a081_authorization_yields_exactly_one_code(stage: &Stage) {
    let web = stage.server.shop().await;
    let codes = || stage.server.count("SELECT count(*) AS n FROM codes");
    // 1. Back and submit again, at login and at consent.
    let mut alice = stage.server.browser();
    let login = alice.opens(&web.request(&[])).await;
    let consent = alice.fills_in(&login, "alice", PASSWORD).await;
    let answer = alice.decides(&consent, "allow").await;
    stage.expect(1, redirected_with_code(&answer, WEB_CALLBACK, STATE));
    let id = login.hidden("authorization");
    stage.expect(
        1,
        replay_is_rejected(&alice.fills_in(&login, "alice", PASSWORD).await),
    );
    stage.expect(
        1,
        replay_is_rejected(&alice.decides(&consent, "allow").await),
    );
    for path in ["/oauth2/authorize", "/login", "/consent"] {
        stage.expect(
            1,
            replay_is_rejected(
                &alice
                    .at(&stage.node(1).base)
                    .get(&format!("{path}?authorization={id}"))
                    .await,
            ),
        );
    }
    stage.check(1, codes() == 1, || format!("{} codes", codes()));

    // 2. Two login POSTs at once on two nodes; consent is remembered by now.
    let mut alice = stage.server.browser();
    let login = alice.opens(&web.request(&[])).await;
    let (mut one, mut two) = (alice.at(&stage.node(1).base), alice.at(&stage.node(2).base));
    let (first, second) = tokio::join!(
        one.fills_in(&login, "alice", PASSWORD),
        two.fills_in(&login, "alice", PASSWORD)
    );
    let mut outcomes = [first, second];
    outcomes.sort_by_key(|answer| answer.status);
    stage.expect(
        2,
        redirected_with_code(&outcomes[0], WEB_CALLBACK, STATE)
            .and(replay_is_rejected(&outcomes[1])),
    );
    stage.check(2, codes() == 2, || format!("{} codes", codes()));

    // 3. Two tabs with one authorization, signed in: both continue at once.
    let mut alice = stage.server.browser();
    let login = alice.opens(&web.request(&[])).await;
    let form = fields(&login, &ALICE);
    let next = posts(&mut alice, "/login", &form)
        .await
        .own_redirect()
        .unwrap();
    let (mut one, mut two) = (alice.at(&stage.node(1).base), alice.at(&stage.node(2).base));
    let (first, second) = tokio::join!(one.get(&next), two.get(&next));
    let mut outcomes = [first, second];
    outcomes.sort_by_key(|answer| answer.status);
    stage.expect(
        3,
        redirected_with_code(&outcomes[0], WEB_CALLBACK, STATE)
            .and(replay_is_rejected(&outcomes[1])),
    );
    stage.check(3, codes() == 3, || format!("{} codes", codes()));
}

async fn a082_added_form_fields_are_ignored(stage: &Stage) {
    let web = stage.server.shop().await;
    let other = stage.server.shop().await;
    let mut alice = stage.server.browser();
    let login = alice.opens(&web.request(&[])).await;
    let id = login.hidden("authorization");
    let mut changed = id.clone().into_bytes();
    let last = changed.len() - 1;
    changed[last] = if changed[last] == b'0' { b'1' } else { b'0' };
    let changed = String::from_utf8(changed).unwrap();
    let added = [
        ("client_id", other.id()),
        ("redirect_uri", "https://evil.test/cb"),
        ("response_type", "token"),
    ];
    // At login `scope` is also an added field. At consent it belongs to the form, which row A161 covers.
    let at_login: Vec<(&str, &str)> = ALICE
        .iter()
        .chain(&added)
        .copied()
        .chain([("scope", "openid orders:write")])
        .collect();

    let mut forged = at_login.clone();
    forged.push(("authorization", &changed));
    let answer = posts(&mut alice, "/login", &fields(&login, &forged)).await;
    stage.expect(3, unbound(&answer));

    let answer = posts(&mut alice, "/login", &fields(&login, &at_login)).await;
    let own = format!("/oauth2/authorize?authorization={id}");
    stage.check(
        1,
        answer.own_redirect().as_deref() == Some(own.as_str()),
        || summary(&answer),
    );
    let consent = alice.opens(&own).await;
    stage.expect(1, consent_page(&consent));
    stage.check(1, consent.values("scope") == ["openid"], || {
        consent.body.clone()
    });

    let at_consent: Vec<(&str, &str)> = added
        .iter()
        .copied()
        .chain([("decision", "allow"), ("scope", "openid")])
        .collect();
    // The token of the consent form is valid only for its own authorization.
    let mut forged = at_consent.clone();
    forged.push(("authorization", &changed));
    let answer = posts(&mut alice, "/consent", &fields(&consent, &forged)).await;
    stage.expect(4, page(&answer, 403));
    for path in ["/oauth2/authorize", "/login", "/consent"] {
        let answer = alice.get(&format!("{path}?authorization={changed}")).await;
        stage.expect(4, unbound(&answer));
    }
    let answer = posts(&mut alice, "/consent", &fields(&consent, &at_consent)).await;
    let answer = alice.opens(&answer.own_redirect().unwrap()).await;
    stage.expect(2, redirected_with_code(&answer, WEB_CALLBACK, STATE));
    let tokens = web.redeems(&answer.callback("code").unwrap()).await.ok();
    stage.check(
        2,
        tokens.access_claims()["scope"] == "openid" && tokens.id_claims()["aud"] == web.id(),
        || tokens.access_claims().to_string(),
    );
}

async fn a084_mixed_up_codes_are_rejected(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let web2 = stage
        .server
        .register(crate::fixtures::server::confidential(
            "web2",
            "https://app2.example/cb",
        ))
        .await;
    let cases: [(&TestClient, &[(&str, &str)]); 4] = [
        (&web2, &[("redirect_uri", WEB_CALLBACK)]),
        (&web2, &[]),
        (&web, &[("redirect_uri", "https://app.example/cb2")]),
        (
            &web,
            &[(
                "code_verifier",
                "another-verifier-another-verifier-another-one",
            )],
        ),
    ];
    for (case, (client, changed)) in (1..).zip(cases) {
        let answer = alice.get(&web.request(&[])).await;
        stage.check(
            case,
            answer.callback("iss").as_deref() == Some(ISSUER),
            || summary(&answer),
        );
        let code = answer.callback("code").unwrap();
        let answer = client
            .at(&stage.node(case).base)
            .redeems_with(&code, changed)
            .await;
        // A code of another client is not a mistake: it has its own event (row A190).
        let event = if client.id() == web.id() {
            "token.rejected"
        } else {
            "code.client_mismatch"
        };
        stage.expect(
            case,
            json_error(&answer, 400, "invalid_grant").and(logged(&answer, event, "")),
        );
    }
}

async fn a085_responses_of_two_servers_carry_their_own_iss(stage: &Stage) {
    // A client that uses one redirect URI for two servers.
    let other_issuer = "https://op2.example";
    let other = Server::with(Db::Sqlite, |config| {
        config.issuer = Some(other_issuer.to_owned())
    })
    .await;
    let (here, there) = (stage.server.shop().await, other.shop().await);
    let answer = stage
        .server
        .browser()
        .get(&here.request(&[("prompt", "none")]))
        .await;
    stage.expect(1, redirected(&answer, "login_required", STATE));
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: op2.example\r\nConnection: close\r\n\r\n",
        there.request(&[("prompt", "none")])
    );
    let answer = raw::bytes(&other.base, request.into_bytes()).await.unwrap();
    let to = answer.location().unwrap_or_default();
    stage.check(
        2,
        to.starts_with(&format!("{WEB_CALLBACK}?error=login_required")),
        || summary(&answer),
    );
    stage.check(
        2,
        answer.callback("iss").as_deref() == Some(other_issuer),
        || summary(&answer),
    );
    other.remove().await;
}

async fn a086_pages_load_nothing_cross_origin(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.node(1).browser();
    let anonymous = stage.node(2).browser();
    let login = alice.opens(&web.request(&[])).await;
    let failed = alice
        .clone()
        .fills_in(&login, "alice", "not the password of alice")
        .await;
    let consent = alice.fills_in(&login, "alice", PASSWORD).await;
    let mut pages = vec![login, failed, consent.clone()];
    alice.decides(&consent, "allow").await;
    let form_post = alice
        .get(&web.request(&[("response_mode", "form_post")]))
        .await;
    stage.expect(1, posted_to(&form_post, WEB_CALLBACK).map(drop));
    pages.push(form_post);
    for path in [
        "/",
        "/account",
        "/oauth2/end_session",
        "/nowhere",
        "/login",
        "/consent",
        "/oauth2/authorize",
    ] {
        pages.push(alice.clone().opens(path).await);
        pages.push(anonymous.clone().opens(path).await);
    }
    for (case, page) in (1..).zip(&pages) {
        stage.check(
            case,
            page.header("content-type")
                .is_some_and(|kind| kind.starts_with("text/html")),
            || summary(page),
        );
        stage.check(
            case,
            page.header("referrer-policy") == Some("same-origin"),
            || format!("{:?}", page.header("referrer-policy")),
        );
        // Checked without a browser: no element of the page loads anything from another origin.
        let loads = [
            "src=\"",
            "<link rel=\"stylesheet\" href=\"",
            "<link rel=\"icon\" type=\"image/svg+xml\" href=\"",
            "srcset=\"",
            "data=\"",
            "poster=\"",
        ];
        for load in loads {
            let foreign = page
                .body
                .split(load)
                .skip(1)
                .find(|rest| !rest.starts_with('/') || rest.starts_with("//"));
            stage.check(case, foreign.is_none(), || {
                format!(
                    "{load}{}",
                    foreign
                        .unwrap_or_default()
                        .chars()
                        .take(80)
                        .collect::<String>()
                )
            });
        }
        let odd = [
            "<iframe",
            "<object",
            "<embed",
            "<base",
            "http-equiv",
            "@import",
            "preconnect",
            "prefetch",
        ];
        let odd = odd.iter().find(|odd| page.body.contains(*odd));
        stage.check(
            case,
            odd.is_none() && page.body.matches("<link").count() == 2,
            || format!("{odd:?} in {}", page.body),
        );
        let csp = page.header("content-security-policy").unwrap_or_default();
        stage.check(
            case,
            csp.contains("default-src 'none'")
                && csp.contains("img-src 'self'")
                && csp.contains("style-src 'self'"),
            || csp.to_owned(),
        );
    }
}

async fn a088_expired_authorization_shows_start_again_page(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.server.browser();
    let login = alice.opens(&web.request(&[])).await;
    let begun = login.hidden("authorization");
    let late = |answer: &Answer| {
        page400(answer).and(logged(answer, "authorization.expired", ""))?;
        if answer.body.contains("start again") {
            Ok(())
        } else {
            Err(format!("no `start again` in {}", answer.body))
        }
    };
    stage.server.advance(Duration::from_secs(599));
    stage.expect(
        1,
        login_page(&alice.get(&format!("/login?authorization={begun}")).await),
    );
    stage.server.advance(Duration::from_secs(2));
    for path in ["/oauth2/authorize", "/login", "/consent"] {
        stage.expect(
            1,
            late(
                &alice
                    .at(&stage.node(1).base)
                    .get(&format!("{path}?authorization={begun}"))
                    .await,
            ),
        );
    }
    stage.expect(
        2,
        late(&posts(&mut alice, "/login", &fields(&login, &ALICE)).await),
    );
    // The same at the consent page.
    let login = alice.opens(&web.request(&[])).await;
    let consent = alice.fills_in(&login, "alice", PASSWORD).await;
    stage.expect(3, consent_page(&consent));
    stage.server.advance(Duration::from_secs(601));
    stage.expect(3, late(&alice.decides(&consent, "allow").await));
    stage.check(
        4,
        stage.server.count("SELECT count(*) AS n FROM codes") == 0,
        || "a code was written".to_owned(),
    );

    let open = || {
        stage
            .server
            .count("SELECT count(*) AS n FROM authorizations")
    };
    // An hour later. Until then the page can restart the request.
    stage.server.advance(Duration::from_secs(3_600));
    let (before, now) = (open(), stage.server.clock.now());
    let gone = stage
        .server
        .write(move |tx| tx.drop_expired_authorizations(1_000, now))
        .await;
    stage.check(5, before > 0 && open() == 0, || {
        format!("{gone} of {before} are gone")
    });
}

/// A `request_uri` of a request that was never pushed.
const PUSHED: &str = "urn:ietf:params:oauth:request_uri:6esc_11ACC5bwc014ltc14eY22c";

/// Checks that PAR is not offered.
async fn without_par(stage: &Stage, case: usize) {
    let mut anonymous = stage.node(case).browser();
    for answer in [
        anonymous.get("/oauth2/par").await,
        anonymous.post("/oauth2/par", &[("client_id", "x")]).await,
    ] {
        stage.expect(case, page(&answer, 404));
    }
    for path in [
        "/.well-known/openid-configuration",
        "/.well-known/oauth-authorization-server",
    ] {
        let metadata = anonymous.get(path).await.json();
        let silent = [
            "pushed_authorization_request_endpoint",
            "require_pushed_authorization_requests",
        ]
        .iter()
        .all(|name| metadata.get(name).is_none());
        stage.check(
            case,
            silent && metadata["request_uri_parameter_supported"] == false,
            || metadata.to_string(),
        );
    }
}

async fn a090_request_uri_is_rejected_without_par(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let web2 = stage
        .server
        .register(crate::fixtures::server::confidential("web2", WEB_CALLBACK))
        .await;
    for (case, client) in [(1, &web), (2, &web2)] {
        for _ in 0..2 {
            let answer = alice
                .at(&stage.node(case).base)
                .get(&client.request(&[("request_uri", PUSHED)]))
                .await;
            stage.expect(
                case,
                redirected(&answer, "request_uri_not_supported", STATE).and(logged(
                    &answer,
                    "authz.rejected",
                    "",
                )),
            );
        }
    }
    let answer = alice
        .clone()
        .get(&format!(
            "/oauth2/authorize?client_id={}&request_uri={PUSHED}",
            web.id()
        ))
        .await;
    stage.expect(
        3,
        redirected(&answer, "request_uri_not_supported", None).and(logged(
            &answer,
            "authz.rejected",
            "",
        )),
    );
    without_par(stage, 4).await;
}

async fn a092_plain_request_is_accepted_without_par(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    // No client can require PAR yet, so a plain request is accepted.
    let answer = alice.clone().get(&web.request(&[])).await;
    stage.expect(1, redirected_with_code(&answer, WEB_CALLBACK, STATE));
    let answer = alice
        .clone()
        .get(&web.request(&[("redirect_uri", "https://evil.test/")]))
        .await;
    stage.expect(2, page400(&answer));
    without_par(stage, 3).await;
}

async fn a093_request_uri_is_rejected_beside_other_parameters(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let outer = [
        ("request_uri", PUSHED),
        ("scope", "admin"),
        ("state", "other"),
    ];
    let answer = alice
        .at(&stage.node(1).base)
        .get(&web.request(&outer))
        .await;
    stage.expect(
        1,
        redirected(&answer, "request_uri_not_supported", Some("other")),
    );
    let outer = [
        outer[0],
        outer[1],
        outer[2],
        ("redirect_uri", "https://evil.test/"),
    ];
    let answer = alice
        .at(&stage.node(2).base)
        .get(&web.request(&outer))
        .await;
    stage.expect(
        2,
        page400(&answer).and(logged(&answer, "redirect_uri.mismatch", "")),
    );
}

async fn a094_par_endpoint_does_not_exist(stage: &Stage) {
    let web = stage.server.shop().await;
    let answer = web
        .posts_raw(
            "/oauth2/par",
            &[],
            &[("client_id", web.id()), ("response_type", "code")],
        )
        .await;
    stage.expect(1, page(&answer, 404));
    let answer = stage.node(1).browser().get("/oauth2/par").await;
    stage.expect(2, page(&answer, 404));
    for bytes in [16 * 1_024 + 1, 100_000] {
        let large = "x".repeat(bytes - 2);
        let answer = web
            .at(&stage.node(2).base)
            .posts_raw("/oauth2/par", &[], &[("x", &large)])
            .await;
        stage.expect(3, page(&answer, 404));
    }
}

async fn a096_request_objects_are_rejected(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let claims = serde_json::json!({ "iss": web.id(), "aud": ISSUER, "jti": "seen-before", "client_id": web.id(), "sub": web.id(), "exp": stage.server.clock.now().secs() + 60 });
    let jar = stage
        .server
        .app
        .keys()
        .sign(portcullis::keys::Alg::ES256, "oauth-authz-req+jwt", &claims)
        .unwrap();
    for _ in 0..2 {
        let answer = alice.get(&web.request(&[("request", &jar)])).await;
        stage.expect(
            1,
            redirected(&answer, "request_not_supported", STATE).and(logged(
                &answer,
                "authz.rejected",
                "",
            )),
        );
    }
    let code = alice.allows(&web).await;
    let form = [
        ("grant_type", "authorization_code"),
        ("code", &code),
        ("redirect_uri", WEB_CALLBACK),
        ("code_verifier", crate::fixtures::VERIFIER),
        ("client_id", web.id()),
        (
            "client_assertion_type",
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        ),
        ("client_assertion", &jar),
    ];
    let answer = web
        .at(&stage.node(1).base)
        .posts_raw("/oauth2/token", &[], &form)
        .await;
    stage.expect(2, json_error(&answer, 401, "invalid_client"));
    let metadata = alice.get("/.well-known/openid-configuration").await.json();
    let off = metadata["request_parameter_supported"] == false
        && metadata["request_uri_parameter_supported"] == false;
    stage.check(3, off, || metadata.to_string());
}

async fn a500_consent_page_cannot_skip_reauthentication(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let demands = [
        ("prompt", "login"),
        ("max_age", "0"),
        ("prompt", "select_account"),
    ];
    for (case, demand) in (1..).zip(demands) {
        alice = alice.at(&stage.node(case).base);
        let login = alice.opens(&web.request(&[demand])).await;
        stage.expect(case, login_page(&login));
        let id = login.hidden("authorization");
        let before = |what: &str| {
            let rows = format!(
                "SELECT count(*) AS n FROM authorizations WHERE id = '{id}' AND state = 'begun' AND sid IS NULL AND taken_at IS NULL"
            );
            stage.check(case, stage.server.count(&rows) == 1, || {
                format!("{what} changed the authorization")
            });
        };
        // The page, then its form with a token that would be valid without the required login.
        let opened = alice.opens(&format!("/consent?authorization={id}")).await;
        stage.expect(case, login_page(&opened));
        before("the page");
        let consent = alice.opens(&web.request(&[("prompt", "consent")])).await;
        stage.expect(case, consent_page(&consent));
        for token in [
            consent.hidden("csrf"),
            consent_token(stage, &alice, &id).await,
        ] {
            let form = [
                ("authorization", id.as_str()),
                ("csrf", &token),
                ("decision", "allow"),
                ("scope", "openid"),
            ];
            let answer = alice.post("/consent", &form).await;
            stage.check(case, answer.callback("code").is_none(), || summary(&answer));
            before("the form");
        }
        let on = alice
            .opens(&format!("/oauth2/authorize?authorization={id}"))
            .await;
        stage.expect(case, login_page(&on));
        let answer = alice.fills_in(&on, "alice", PASSWORD).await;
        stage.expect(case, redirected_with_code(&answer, WEB_CALLBACK, STATE));
    }
}

/// Returns the form token that the consent page of an authorization would have in alice's session.
async fn consent_token(stage: &Stage, alice: &Browser, id: &str) -> String {
    let cookie = portcullis::secret::Secret::from_text(&alice.cookies["__Host-sid"]);
    let app = &stage.server.app;
    let found = app
        .store
        .read(move |tx| tx.find_session(&cookie.hash()))
        .await;
    let (session, _) = found.unwrap().unwrap();
    app.secret
        .form_token(session.login.sid.as_str(), &format!("consent {id}"))
}

/// Checks the page of an expired sign-in: it names the expiry, is not logged as an attack, and its link
/// restarts the request.
async fn starts_again(stage: &Stage, case: usize, browser: &mut Browser, answer: &Answer) {
    stage.expect(case, page400(answer));
    stage.expect(case, logged(answer, "authorization.expired", "expired"));
    let attacks = ["csrf.rejected", "authorization.binding_failed"];
    let blamed = answer
        .logged()
        .iter()
        .any(|(event, _)| attacks.contains(&event.as_str()));
    stage.check(case, !blamed, || format!("{:?}", answer.logged()));
    let link = answer
        .body
        .split_once("id=\"error-next\" href=\"")
        .and_then(|(_, rest)| rest.split('"').next())
        .map(|link| link.replace("&#38;", "&"));
    let page = browser.opens(&link.unwrap_or_default()).await;
    let goes_on = page.status == 200
        && (page.body.contains("login-submit") || page.body.contains("consent-allow"));
    stage.check(case, goes_on, || summary(&page));
}

async fn a504_expired_authorization_shows_expiry_page(stage: &Stage) {
    let web = stage.server.shop().await;
    // The test client keeps cookies as browsers do: it drops a cookie when its lifetime is over.
    let expired = Duration::from_secs(601);
    // 1: the login page, submitted, reloaded, and submitted again after Back.
    let mut alice = stage.server.browser();
    let login = alice.opens(&web.request(&[])).await;
    alice.forget_expired(expired);
    stage.server.advance(expired);
    let late = posts(&mut alice, "/login", &fields(&login, &ALICE)).await;
    starts_again(stage, 1, &mut alice, &late).await;
    let path = format!("/login?authorization={}", login.hidden("authorization"));
    let reloaded = alice.get(&path).await;
    starts_again(stage, 1, &mut alice, &reloaded).await;
    // 2: the consent page.
    let login = alice.opens(&web.request(&[])).await;
    let consent = alice.fills_in(&login, "alice", PASSWORD).await;
    stage.expect(2, consent_page(&consent));
    alice.forget_expired(expired);
    stage.server.advance(expired);
    let late = alice.decides(&consent, "allow").await;
    starts_again(stage, 2, &mut alice, &late).await;
    let path = format!("/consent?authorization={}", consent.hidden("authorization"));
    let reloaded = alice.get(&path).await;
    starts_again(stage, 2, &mut alice, &reloaded).await;
    // 3: Back after the answer leads to the client.
    let consent = alice.opens(&web.request(&[])).await;
    let answer = alice.decides(&consent, "allow").await;
    stage.expect(3, redirected_with_code(&answer, WEB_CALLBACK, STATE));
    let path = format!("/consent?authorization={}", consent.hidden("authorization"));
    let back = alice.get(&path).await;
    stage.expect(3, replay_is_rejected(&back));
    let leads_back = back
        .body
        .contains("id=\"error-next\" href=\"https://app.example\"");
    stage.check(3, leads_back, || back.body.clone());
}
