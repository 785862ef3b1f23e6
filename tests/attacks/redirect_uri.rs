//! Rows of the catalogue: redirect URIs are compared byte for byte, at the request and at registration.

use std::time::{Duration, Instant};

use portcullis::oauth::client::{Client, rejected};
use portcullis::oauth::redirect_uri::{self, Localhost, Presence};

use crate::expect::{
    WEB_CALLBACK, consent_page, json_error, logged, login_page, page400, redirected_with_code,
    summary,
};
use crate::fixtures::server::{confidential, public};
use crate::fixtures::{Answer, Browser, TestClient};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a050_near_matches_of_the_redirect_path_are_rejected),
    row!(a052_redirect_uris_with_userinfo_are_rejected),
    row!(a053_near_matches_of_the_redirect_host_are_rejected),
    row!(a054_near_matches_of_the_redirect_port_are_rejected),
    row!(a055_redirect_uris_of_other_schemes_are_rejected),
    row!(a056_non_ascii_redirect_hosts_are_rejected),
    row!(a057_native_loopback_accepts_any_port),
    row!(a058_native_loopback_variants_are_rejected),
    row!(a059_localhost_matches_any_port_where_it_may_be_registered),
    row!(a060_wildcard_redirect_uris_are_not_registered),
    row!(a061_omitted_redirect_uri_needs_a_single_one_and_no_openid),
    row!(a062_redirect_uri_query_must_match_exactly),
    row!(a064_redirect_uri_lookup_time_is_constant),
    row!(a065_redirect_uri_removed_during_login_gets_no_code),
    row!(a066_private_use_schemes_need_a_dot_and_pkce_binds_the_code),
    row!(a067_second_spellings_of_hosts_are_not_registered),
];

const STATE: Option<&str> = Some("st-4711");

fn mismatched(answer: &Answer) -> Result<(), String> {
    page400(answer).and(logged(answer, "redirect_uri.mismatch", ""))
}

/// Sends an authorization request with each URI. Cases are numbered from `first`.
async fn present(
    stage: &Stage,
    client: &TestClient,
    browser: &Browser,
    first: usize,
    uris: &[impl AsRef<str>],
) {
    let rows = stage.rows();
    for (case, uri) in (first..).zip(uris) {
        let answer = browser
            .at(&stage.node(case).base)
            .get(&client.request(&[("redirect_uri", uri.as_ref())]))
            .await;
        stage.expect(case, mismatched(&answer));
    }
    stage.check(first, stage.rows() == rows, || {
        "a row was written".to_owned()
    });
}

/// Registers each URI for a confidential and for a public client. Cases are numbered from `first`.
fn refuse(stage: &Stage, first: usize, uris: &[&str]) {
    for (case, uri) in (first..).zip(uris) {
        for client in [confidential("new", uri), public("new", &[uri])] {
            stage.expect(case, refused(&client));
        }
    }
}

/// Checks for 400 `invalid_redirect_uri` from the check that every registration passes through.
fn refused(client: &Client) -> Result<(), String> {
    match client
        .check(Localhost::Forbidden)
        .map_err(|errors| (rejected(&errors), errors))
    {
        Err((error, _))
            if error.code.as_str() == "invalid_redirect_uri"
                && error.code.status() == 400
                && error.detail.event == "registration.rejected" =>
        {
            Ok(())
        }
        Err((error, why)) => Err(format!("refused with {error}: {why}")),
        Ok(()) => Err(format!("{:?} was registered", client.redirect_uris)),
    }
}

async fn a050_near_matches_of_the_redirect_path_are_rejected(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let uris = [
        "/cb/", "/CB", "/cb?", "/cb?x=1", "/cb#f", "/cb%2f", "/%63b", "//cb", "/./cb", "/cb/.",
        "/cb;a", "/cb\\",
    ]
    .map(|path| format!("https://app.example{path}"));
    present(stage, &web, &alice, 1, &uris).await;
}

async fn a052_redirect_uris_with_userinfo_are_rejected(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let uris = [
        "https://app.example@evil.test/cb",
        "https://app.example:443@evil.test/cb",
        "https://a@b@evil.test/cb",
        "https://evil.test\\@app.example/cb",
    ];
    present(stage, &web, &alice, 1, &uris).await;
    refuse(stage, 5, &uris);
}

async fn a053_near_matches_of_the_redirect_host_are_rejected(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let uris = [
        "https://app.example.evil.test/cb",
        "https://evilapp.example/cb",
        "https://app.example./cb",
        "https://APP.example/cb",
    ];
    present(stage, &web, &alice, 1, &uris).await;
}

async fn a054_near_matches_of_the_redirect_port_are_rejected(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let uris = [":443", ":8443", ":0", ":65536", ":", ":0443"]
        .map(|port| format!("https://app.example{port}/cb"));
    present(stage, &web, &alice, 1, &uris).await;
}

async fn a056_non_ascii_redirect_hosts_are_rejected(stage: &Stage) {
    let (_, alice) = stage.web_and_alice().await;
    // The registered host, and hosts that look like it or are equal to it under other rules.
    let pairs = [
        (WEB_CALLBACK, "https://\u{430}pp.example/cb"),
        (
            "https://xn--bcher-kva.example/cb",
            "https://b\u{fc}cher.example/cb",
        ),
        (WEB_CALLBACK, "https://app\u{ff0e}example/cb"),
        (
            "https://strasse.example/cb",
            "https://stra\u{df}e.example/cb",
        ),
        (WEB_CALLBACK, "https://app\u{200d}.example/cb"),
    ];
    for (n, (registered, presented)) in pairs.into_iter().enumerate() {
        let client = confidential(&format!("client-{n}"), registered);
        stage.check(n + 6, client.check(Localhost::Forbidden).is_ok(), || {
            format!("{registered} was refused")
        });
        let client = stage.server.register(client).await;
        present(stage, &client, &alice, n + 1, &[presented]).await;
        refuse(stage, n + 6, &[presented]);
    }
}

async fn a057_native_loopback_accepts_any_port(stage: &Stage) {
    let native = stage.server.phone().await;
    let alice = stage.server.enters("alice").await;
    let uris = [
        "http://127.0.0.1:51004/cb",
        "http://[::1]:51004/cb",
        "http://127.0.0.1:1/cb",
        "http://127.0.0.1:65535/cb",
        "http://[::1]:1/cb",
        "http://[::1]:65535/cb",
        "http://127.0.0.1/cb",
        "http://[::1]/cb",
    ];
    for (case, uri) in (1..).zip(uris) {
        let mut alice = alice.at(&stage.node(case).base);
        // Any program on the machine can listen there, so consent is asked each time.
        let asked = alice.opens(&native.request(&[("redirect_uri", uri)])).await;
        stage.expect(case, consent_page(&asked));
        let answer = alice.decides(&asked, "allow").await;
        stage.expect(case, redirected_with_code(&answer, uri, STATE));
        let code = answer.callback("code").unwrap();
        let tokens = native
            .at(&stage.node(case + 1).base)
            .redeems_with(&code, &[("redirect_uri", uri)])
            .await;
        stage.check(case, tokens.status == 200, || summary(&tokens));
    }
    // The token request must name the port of this authorization request.
    let (sent, other) = ("http://127.0.0.1:51004/cb", "http://127.0.0.1:51005/cb");
    let code = alice
        .clone()
        .allows_request(&native.request(&[("redirect_uri", sent)]))
        .await;
    let tokens = native.redeems_with(&code, &[("redirect_uri", other)]).await;
    stage.expect(9, json_error(&tokens, 400, "invalid_grant"));
    let odd = [
        "http://127.0.0.1:0/cb",
        "http://127.0.0.1:65536/cb",
        "http://127.0.0.1:/cb",
        "http://127.0.0.1:080/cb",
        "http://127.0.0.1:80/cb?x=1",
        "http://127.0.0.1:80/cb#f",
        "http://127.0.0.1:80\\@evil.test/cb",
        "http://127.0.0.1:80@evil.test/cb",
        "HTTP://127.0.0.1:80/cb",
        "http://[0:0:0:0:0:0:0:1]:80/cb",
    ];
    present(stage, &native, &alice, 10, &odd).await;
}

async fn a058_native_loopback_variants_are_rejected(stage: &Stage) {
    let native = stage
        .server
        .register(public("native", &["http://127.0.0.1/cb"]))
        .await;
    let alice = stage.server.enters("alice").await;
    let uris = [
        "http://127.0.0.1:51004/other",
        "http://127.0.0.1.evil.test/cb",
        "http://localhost.evil.test/cb",
        "http://127.1/cb",
        "http://2130706433/cb",
        "http://0x7f.1/cb",
        "http://0.0.0.0/cb",
        "http://[::ffff:127.0.0.1]/cb",
        "http://user@127.0.0.1:80/cb",
        "https://127.0.0.1/cb",
        "http://[::1]/cb",
    ];
    present(stage, &native, &alice, 1, &uris).await;
}

async fn a060_wildcard_redirect_uris_are_not_registered(stage: &Stage) {
    refuse(
        stage,
        1,
        &[
            "https://*.example/cb",
            "https://app.example/*",
            "*",
            "https://app.example/(a|b)+",
        ],
    );
}

async fn a061_omitted_redirect_uri_needs_a_single_one_and_no_openid(stage: &Stage) {
    let one = stage.server.shop().await;
    let mut client = confidential("two", WEB_CALLBACK);
    client
        .redirect_uris
        .push("https://app.example/other".to_owned());
    let two = stage.server.register(client).await;
    let mut alice = stage.server.browser();
    alice.signs_in(&one, "alice").await;
    let without =
        |client: &TestClient, scope| client.request(&[("redirect_uri", ""), ("scope", scope)]);
    for (case, client, scope) in [
        (1, &one, "openid"),
        (2, &two, "openid"),
        (4, &two, "orders:read"),
    ] {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&without(client, scope))
            .await;
        stage.expect(
            case,
            page400(&answer).and(logged(&answer, "authz.rejected", "")),
        );
    }
    let asked = alice.opens(&without(&one, "orders:read")).await;
    let answer = alice.decides(&asked, "allow").await;
    stage.expect(3, redirected_with_code(&answer, WEB_CALLBACK, STATE));
    // RFC 6749 §4.1.3: a `redirect_uri` that was not sent at /authorize is not required at /token.
    let tokens = one
        .redeems_with(&answer.callback("code").unwrap(), &[("redirect_uri", "")])
        .await;
    stage.check(3, tokens.status == 200, || summary(&tokens));
}

async fn a062_redirect_uri_query_must_match_exactly(stage: &Stage) {
    let registered = "https://app.example/cb?a=1";
    let web = stage
        .server
        .register(confidential("query", registered))
        .await;
    let mut alice = stage.server.browser();
    let answer = alice.signs_in(&web, "alice").await;
    stage.expect(1, redirected_with_code(&answer, registered, STATE));
    let uris =
        ["?a=1&b=2", "?a=2", "?b=2&a=1"].map(|query| format!("https://app.example/cb{query}"));
    present(stage, &web, &alice, 2, &uris).await;
}

async fn a064_redirect_uri_lookup_time_is_constant(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let sized = |bytes: usize| {
        format!(
            "{WEB_CALLBACK}/{}",
            "a".repeat(bytes - WEB_CALLBACK.len() - 1)
        )
    };
    present(stage, &web, &alice, 1, &[sized(2_049)]).await;
    stage.check(
        1,
        confidential("long", &sized(2_048))
            .check(Localhost::Forbidden)
            .is_ok(),
        || "2,048 bytes were refused".to_owned(),
    );
    stage.expect(1, refused(&confidential("long", &sized(2_049))));

    let mut many = confidential("many", WEB_CALLBACK);
    many.redirect_uris = (1..=20)
        .map(|n| format!("https://app.example/cb{n}"))
        .collect();
    stage.check(2, many.check(Localhost::Forbidden).is_ok(), || {
        "20 were refused".to_owned()
    });
    let party = stage.server.register(many.clone()).await;
    let last = party.client.redirect_uris[19].clone();
    let mut alice = alice.at(&stage.node(2).base);
    let asked = alice
        .opens(&party.request(&[("redirect_uri", &last)]))
        .await;
    stage.expect(2, consent_page(&asked));
    let answer = alice.decides(&asked, "allow").await;
    stage.expect(2, redirected_with_code(&answer, &last, STATE));
    // Compared with the milliseconds of a request, the last of 20 URIs costs the same as a single one.
    let look_up = |client: &Client, uri: &str| {
        let started = Instant::now();
        for _ in 0..1_000 {
            assert!(
                redirect_uri::resolve(&client.redirect_uris, Some(uri), Presence::Required).is_ok()
            );
        }
        started.elapsed()
    };
    let (one, twenty) = (look_up(&web.client, WEB_CALLBACK), look_up(&many, &last));
    stage.check(
        3,
        twenty.saturating_sub(one) < Duration::from_millis(100),
        || format!("1,000 times: {one:?} and {twenty:?}"),
    );
    many.redirect_uris
        .push("https://app.example/cb21".to_owned());
    stage.expect(4, refused(&many));
}

async fn a065_redirect_uri_removed_during_login_gets_no_code(stage: &Stage) {
    let mut client = confidential("moving", WEB_CALLBACK);
    client
        .redirect_uris
        .push("https://app.example/old".to_owned());
    let web = stage.server.register(client).await;
    let request = web.request(&[("redirect_uri", "https://app.example/old")]);
    let mut alice = stage.server.browser();
    // One request is at the login page, the other at the consent page.
    let login = alice.opens(&request).await;
    stage.expect(1, login_page(&login));
    let mut bob = stage.node(1).browser();
    let page = bob.opens(&request).await;
    let consent = bob
        .fills_in(&page, "bob", crate::fixtures::server::PASSWORD)
        .await;
    stage.expect(2, consent_page(&consent));
    let id = web.client.id.clone();
    stage
        .server
        .alter(&id, |client| {
            client.redirect_uris = vec![WEB_CALLBACK.to_owned()]
        })
        .await;

    stage.forget_registrations();
    let answer = alice
        .fills_in(&login, "alice", crate::fixtures::server::PASSWORD)
        .await;
    stage.expect(1, mismatched(&answer));
    let answer = bob.decides(&consent, "allow").await;
    stage.expect(2, mismatched(&answer));
    stage.check(
        3,
        stage.server.count("SELECT count(*) AS n FROM codes") == 0,
        || "a code was written".to_owned(),
    );
}

async fn a066_private_use_schemes_need_a_dot_and_pkce_binds_the_code(stage: &Stage) {
    stage.expect(1, refused(&public("dotless", &["myapp:/cb"])));
    // A private-use scheme has no owner: another app may have registered it with the system.
    let uri = "com.example.app:/cb";
    let (first, second) = (public("first", &[uri]), public("second", &[uri]));
    stage.check(
        2,
        first.check(Localhost::Forbidden).is_ok() && second.check(Localhost::Forbidden).is_ok(),
        || "the scheme was refused".to_owned(),
    );
    stage.expect(2, refused(&confidential("third", uri)));
    let (first, second) = (
        stage.server.register(first).await,
        stage.server.register(second).await,
    );
    let mut alice = stage.server.browser();
    let attempts = [
        (3, &second, crate::fixtures::VERIFIER),
        (
            4,
            &second,
            "an-interceptor-has-to-make-one-up-0123456789abcdef",
        ),
        (
            5,
            &first,
            "an-interceptor-has-to-make-one-up-0123456789abcdef",
        ),
        (6, &first, ""),
    ];
    for (case, thief, verifier) in attempts {
        let code = alice.allows(&first).await;
        let answer = thief
            .at(&stage.node(case).base)
            .redeems_with(&code, &[("code_verifier", verifier)])
            .await;
        stage.expect(case, json_error(&answer, 400, "invalid_grant"));
    }
}

async fn a055_redirect_uris_of_other_schemes_are_rejected(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let uris = [
        "http://app.example/cb",
        "HTTPS://app.example/cb",
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "data:text/html,x",
        "vbscript:x",
        "file:///cb",
        "blob:https://app.example/cb",
        "about:blank",
        "intent://app.example/cb",
    ];
    present(stage, &web, &alice, 1, &uris).await;
    refuse(stage, 1, &uris);
}

async fn a059_localhost_matches_any_port_where_it_may_be_registered(stage: &Stage) {
    const URI: &str = "http://localhost/cb";
    let other = [
        "http://localhost.evil.test/cb",
        "http://LOCALHOST:5000/cb",
        "http://localhost:0/cb",
        "https://localhost:5000/cb",
    ];
    // A public client, and a confidential one with the switch.
    let native = public("native", &[URI]);
    let mut switched = confidential("switched", URI);
    stage.expect(5, refused(&switched));
    switched.allow_localhost_redirect = true;
    for (case, client) in (1..).zip([native, switched]) {
        stage.check(case, client.check(Localhost::Forbidden).is_ok(), || {
            "refused".to_owned()
        });
        let client = stage.server.register(client).await;
        let alice = stage.server.enters("alice").await;
        for uri in [URI, "http://localhost:5000/cb", "http://localhost:65535/cb"] {
            let mut alice = alice.at(&stage.node(case).base);
            let mut answer = alice.opens(&client.request(&[("redirect_uri", uri)])).await;
            // Consent to a confidential client is remembered.
            if !client.client.is_confidential() || uri == URI {
                stage.expect(case, consent_page(&answer));
                answer = alice.decides(&answer, "allow").await;
            }
            stage.expect(case, redirected_with_code(&answer, uri, STATE));
        }
        present(stage, &client, &alice, case, &other).await;
    }
    // Another loopback host is another redirect URI.
    let literal = stage
        .server
        .register(public("literal", &["http://127.0.0.1/cb"]))
        .await;
    let alice = stage.server.enters("alice").await;
    present(stage, &literal, &alice, 4, &["http://localhost:5000/cb"]).await;
    // While the issuer is a development server on http, confidential clients may use it too; an https issuer on
    // localhost is no exception.
    let confidential = confidential("dev", URI);
    stage.check(6, confidential.check(Localhost::Allowed).is_ok(), || {
        "refused".to_owned()
    });
    let mut config = stage.server.config.clone();
    config.issuer = Some("https://localhost:8443".to_owned());
    let rules = portcullis::admin::clients::Rules::of(&config).unwrap();
    stage.check(7, rules.check(&confidential).is_err(), || {
        "accepted".to_owned()
    });
}

async fn a067_second_spellings_of_hosts_are_not_registered(stage: &Stage) {
    refuse(
        stage,
        1,
        &[
            "https://xn--example-.com/cb",
            "https://XN--80ak6aa92e.com/cb",
            "https://App.example/cb",
            "https://app%2eexample/cb",
            "http://0x7f.1/cb",
        ],
    );
    // A label is never decoded.
    let client = confidential("idn", "https://xn--80ak6aa92e.com/cb");
    stage.check(6, client.check(Localhost::Forbidden).is_ok(), || {
        "refused".to_owned()
    });
    let client = stage.server.register(client).await;
    let alice = stage.server.enters("alice").await;
    let decoded = "https://\u{430}\u{440}\u{440}\u{4cf}\u{435}.com/cb";
    present(stage, &client, &alice, 6, &[decoded]).await;
}
