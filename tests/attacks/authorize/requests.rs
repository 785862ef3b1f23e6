//! The request as a whole: repeated, long and unknown parameters, methods and paths.

use std::time::{Duration, Instant};

use portcullis::audit::Actor;
use portcullis::oauth::client::{Client, GrantType};
use portcullis::oauth::request::authorize::KNOWN;

use super::{AUTHORIZE, STATE, both, form, posts_across, with_raw};
use crate::expect::{
    WEB_CALLBACK, logged, login_page, page, page400, redirected, redirected_with_code, summary,
};
use crate::fixtures::server::{AUDIENCE, confidential};
use crate::fixtures::{Answer, ISSUER, raw};
use crate::token_code::median;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a001_duplicate_client_id_or_redirect_uri_shows_error_page),
    row!(a002_duplicate_parameters_are_rejected),
    row!(a004_unknown_parameters_are_ignored_up_to_the_field_limit),
    row!(a005_unusable_client_ids_are_indistinguishable),
    row!(a006_oversized_queries_never_reach_the_database),
    row!(a008_nul_bytes_are_rejected_before_the_database),
    row!(a009_crlf_injects_no_response_header),
    row!(a010_state_and_nonce_are_returned_byte_exact),
    row!(a025_authorize_head_has_no_effect_and_other_methods_get_405),
    row!(a026_cross_site_authorize_post_keeps_the_session),
    row!(a028_parameter_in_query_and_body_is_rejected),
    row!(a034_non_canonical_authorize_paths_get_404),
    row!(a512_clients_without_the_code_grant_look_unknown),
];

async fn a001_duplicate_client_id_or_redirect_uri_shows_error_page(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let rows = stage.rows();
    let other = stage.server.shop().await;
    let doubles = [
        ("client_id", web.id()),
        ("client_id", other.id()),
        ("redirect_uri", web.redirect_uri()),
        ("redirect_uri", "https://evil.test/cb"),
    ];
    for (case, (name, value)) in (1..).zip(doubles) {
        let second = form(&[(name.to_owned(), value.to_owned())]);
        let answer = alice
            .at(&stage.node(case).base)
            .get(&format!("{}&{second}", web.request(&[])))
            .await;
        stage.expect(
            case,
            both(
                page400(&answer),
                logged(&answer, "authz.rejected", "dup_param"),
            ),
        );
    }
    stage.check(4, stage.rows() == rows, || "a row was written".to_owned());
}

async fn a002_duplicate_parameters_are_rejected(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let names = [
        "state",
        "scope",
        "nonce",
        "code_challenge",
        "response_type",
        "prompt",
    ];
    for (case, name) in (1..).zip(names) {
        for second in ["same", "other"] {
            let first = web
                .parameters(&[("prompt", "login")])
                .into_iter()
                .find(|(known, _)| known == name)
                .unwrap()
                .1;
            let request = web.request(&[(name, &first)]);
            let value = if second == "same" {
                first
            } else {
                format!("{first}x")
            };
            let answer = alice
                .at(&stage.node(case).base)
                .get(&format!("{request}&{}", form(&[(name.to_owned(), value)])))
                .await;
            let state = STATE.filter(|_| name != "state");
            stage.expect(
                case,
                both(
                    redirected(&answer, "invalid_request", state),
                    logged(&answer, "authz.rejected", "dup_param"),
                ),
            );
        }
    }
}

async fn a004_unknown_parameters_are_ignored_up_to_the_field_limit(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let with = |unknown: usize| {
        let more: String = (0..unknown).map(|n| format!("&x{n}={n}")).collect();
        web.request(&[]) + &more
    };
    for (case, unknown) in [(1, 1), (2, 10), (3, 50)] {
        let answer = alice.at(&stage.node(case).base).get(&with(unknown)).await;
        stage.expect(case, redirected_with_code(&answer, WEB_CALLBACK, STATE));
    }
    let known = web.parameters(&[]).len();
    let answer = alice.clone().get(&with(65 - known)).await;
    stage.expect(
        4,
        both(
            page400(&answer),
            logged(&answer, "authz.rejected", "too_many"),
        ),
    );
    let answer = alice.clone().get(&with(64 - known)).await;
    stage.expect(5, redirected_with_code(&answer, WEB_CALLBACK, STATE));
}

/// The largest allowed difference between the medians of A005.
const LIMIT: Duration = Duration::from_millis(5);

async fn a005_unusable_client_ids_are_indistinguishable(stage: &Stage) {
    const SAMPLES: usize = 40;
    let (web, mut alice) = stage.web_and_alice().await;
    let (deleted, disabled) = (stage.server.shop().await, stage.server.shop().await);
    stage.server.execute(&format!(
        "DELETE FROM client_secrets WHERE client_id = '{0}'; DELETE FROM clients WHERE id = '{0}'",
        deleted.id()
    ));
    let (id, now) = (disabled.client.id.clone(), stage.server.clock.now());
    stage
        .server
        .write(move |tx| tx.disable_client(&id, &Actor::Operator, now))
        .await;
    stage.forget_registrations();
    let spaced = format!("{} ", web.id());
    let upper = web.id().to_uppercase();
    let ids = ["unknown", deleted.id(), disabled.id(), &spaced, &upper];
    let mut bodies = vec![String::new(); ids.len()];
    let mut spread = Duration::MAX;
    // The best of six rounds counts, so that other load on the machine does not look like a leak.
    for attempt in 0..6 {
        let mut times = vec![Vec::new(); ids.len()];
        for round in 0..SAMPLES {
            for (n, id) in ids.iter().enumerate() {
                let started = Instant::now();
                let answer = alice.get(&web.request(&[("client_id", id)])).await;
                times[n].push(started.elapsed());
                if attempt == 0 && round == 0 {
                    stage.expect(
                        n + 1,
                        both(
                            page400(&answer),
                            logged(&answer, "authz.rejected", "client"),
                        ),
                    );
                    bodies[n] = answer
                        .body
                        .replace(answer.header("x-request-id").unwrap(), "");
                }
            }
        }
        let medians: Vec<Duration> = times.iter_mut().map(|times| median(times)).collect();
        spread = spread.min(*medians.iter().max().unwrap() - *medians.iter().min().unwrap());
        if spread < LIMIT {
            break;
        }
    }
    for n in 1..ids.len() {
        stage.check(n + 1, bodies[n] == bodies[0], || {
            "the page differs from that of an unknown client".to_owned()
        });
    }
    stage.check(6, spread < LIMIT, || {
        format!("the medians are {spread:?} apart")
    });
}

async fn a006_oversized_queries_never_reach_the_database(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let rows = stage.rows();
    let request = web.request(&[]);
    let query = request.split_once('?').unwrap().1;
    for (case, bytes) in [(1, 8_193), (2, 64 << 10), (3, 1 << 20)] {
        let target = format!(
            "{AUTHORIZE}?{query}&x={}",
            "a".repeat(bytes - query.len() - 3)
        );
        let cookie = format!("Cookie: __Host-sid={}", alice.cookies["__Host-sid"]);
        let get = format!(
            "GET {target} HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\n{cookie}\r\n\r\n"
        );
        // Above 128 KiB the HTTP layer closes the connection, perhaps before the response is complete.
        let answer = raw::bytes(&stage.node(case).base, get.into_bytes()).await;
        match answer {
            Some(answer) => {
                stage.check(case, [400, 414, 431].contains(&answer.status), || {
                    summary(&answer)
                });
                if answer.status == 414 {
                    stage.expect(case, logged(&answer, "http.too_large", "url"));
                }
            }
            None => stage.check(case, bytes > 128 << 10, || {
                "closed without an answer".to_owned()
            }),
        }
    }
    // A request target of exactly 8 KiB is still accepted.
    let target = format!("{request}&x={}", "a".repeat(8_192 - request.len() - 3));
    let answer = alice.clone().get(&target).await;
    stage.expect(4, redirected_with_code(&answer, WEB_CALLBACK, STATE));
    stage.check(3, stage.rows() <= rows + 2, || {
        "a row was written".to_owned()
    });
}

async fn a008_nul_bytes_are_rejected_before_the_database(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let mut alice = alice.at(&stage.node(1).base);
    let told = |answer: &Answer| logged(answer, "authz.rejected", "control_char");
    let answer = alice.get(&with_raw(&web, "client_id", "a%00")).await;
    stage.expect(1, both(page400(&answer), told(&answer)));
    let answer = alice.get(&with_raw(&web, "state", "a%00b")).await;
    stage.expect(
        2,
        both(redirected(&answer, "invalid_request", None), told(&answer)),
    );
    let answer = alice.get(&with_raw(&web, "scope", "openid%00admin")).await;
    stage.expect(
        3,
        both(redirected(&answer, "invalid_request", STATE), told(&answer)),
    );
}

async fn a009_crlf_injects_no_response_header(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let suffix = "%0d%0aSet-Cookie:%20a=b";
    let clean = |answer: &Answer| {
        let injected = answer.headers.iter().find(|(_, value)| {
            value
                .to_str()
                .is_ok_and(|value| value.contains("a=b") || value.contains("%0"))
        });
        injected.map_or(Ok(()), |header| Err(format!("injected: {header:?}")))
    };
    let told = |answer: &Answer| logged(answer, "authz.rejected", "control_char");
    let answer = alice
        .at(&stage.node(1).base)
        .get(&with_raw(&web, "state", &format!("x{suffix}")))
        .await;
    stage.expect(
        1,
        redirected(&answer, "invalid_request", None)
            .and(told(&answer))
            .and(clean(&answer)),
    );
    let uri: String = form_urlencoded::byte_serialize(web.redirect_uri().as_bytes()).collect();
    let answer = alice
        .at(&stage.node(2).base)
        .get(&with_raw(&web, "redirect_uri", &format!("{uri}{suffix}")))
        .await;
    stage.expect(2, page400(&answer).and(told(&answer)).and(clean(&answer)));
}

async fn a010_state_and_nonce_are_returned_byte_exact(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let hard = r#"+ &=%"</>'?#;:@,$!~*()[]{}|^`\"#;
    let state: String = hard.chars().chain('a'..='z').cycle().take(1_024).collect();
    let nonce: String = hard.chars().cycle().take(384).collect();
    let request = web.request(&[("state", &state), ("nonce", &nonce)]);
    for (case, request) in [(1, request.clone()), (2, request.replace('+', "%20"))] {
        let answer = alice.at(&stage.node(case).base).get(&request).await;
        stage.expect(
            case,
            redirected_with_code(&answer, WEB_CALLBACK, Some(&state)),
        );
        let tokens = web
            .at(&stage.node(case + 1).base)
            .redeems(&answer.callback("code").unwrap())
            .await
            .ok();
        stage.check(case, tokens.id_claims()["nonce"] == nonce.as_str(), || {
            format!("nonce {}", tokens.id_claims()["nonce"])
        });
    }
}

async fn a025_authorize_head_has_no_effect_and_other_methods_get_405(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let rows = stage.rows();
    for (case, method) in (1..).zip(["HEAD", "PUT", "DELETE", "OPTIONS"]) {
        for mut browser in [alice.at(&stage.node(case).base), stage.node(case).browser()] {
            let answer = browser.send(method, &web.request(&[]), &[], None).await;
            let quiet = answer.headers.get("set-cookie").is_none()
                && answer.location().is_none()
                && answer.body.is_empty();
            stage.check(case, quiet, || summary(&answer));
            if method == "HEAD" {
                // The status of GET.
                stage.check(case, answer.status == 303, || summary(&answer));
            } else {
                stage.check(
                    case,
                    answer.status == 405 && answer.header("allow") == Some("GET, POST"),
                    || format!("{} {:?}", summary(&answer), answer.header("allow")),
                );
                stage.expect(case, logged(&answer, "http.method", ""));
            }
        }
    }
    stage.check(1, stage.rows() == rows, || "a row was written".to_owned());
}

async fn a026_cross_site_authorize_post_keeps_the_session(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let cookies = alice.cookies.clone();
    let answer = posts_across(stage, 1, form(&web.parameters(&[]))).await;
    let cookie = answer.headers.get("set-cookie");
    stage.check(1, cookie.is_none(), || format!("set-cookie: {cookie:?}"));
    stage.check(
        1,
        answer.status == 303 && answer.callback("code").is_none(),
        || summary(&answer),
    );
    // The cross-site POST carries no session.
    let elsewhere = stage
        .node(1)
        .browser()
        .opens(&answer.own_redirect().unwrap())
        .await;
    stage.expect(2, login_page(&elsewhere));
    let next = alice.at(&stage.node(2).base).get(&web.request(&[])).await;
    stage.expect(3, redirected_with_code(&next, WEB_CALLBACK, STATE));
    // The session is used where the browser sends its cookies with the GET that follows.
    let answer = posts_across(stage, 2, form(&web.parameters(&[]))).await;
    let next = alice.opens(&answer.own_redirect().unwrap()).await;
    stage.expect(4, redirected_with_code(&next, WEB_CALLBACK, STATE));
    stage.check(
        4,
        alice.cookies["__Host-sid"] == cookies["__Host-sid"],
        || "the session cookie was replaced".to_owned(),
    );
}

async fn a028_parameter_in_query_and_body_is_rejected(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let headers = [
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Origin", ISSUER),
    ];
    let rows = stage.rows();
    for (case, name) in (1..).zip(KNOWN) {
        let mut fields = web.parameters(&[]);
        if !fields.iter().any(|(known, _)| known == name) {
            fields.push((name.to_owned(), "1".to_owned()));
        }
        let value = fields
            .iter()
            .find(|(known, _)| known == name)
            .unwrap()
            .1
            .clone();
        let target = format!("{AUTHORIZE}?{}", form(&[(name.to_owned(), value)]));
        let answer = alice
            .at(&stage.node(case).base)
            .send("POST", &target, &headers, Some(form(&fields)))
            .await;
        stage.expect(
            case,
            both(
                page400(&answer),
                logged(&answer, "authz.rejected", "dup_param"),
            ),
        );
    }
    stage.check(KNOWN.len(), stage.rows() == rows, || {
        "a row was written".to_owned()
    });
}

async fn a034_non_canonical_authorize_paths_get_404(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let request = web.request(&[]);
    let query = request.split_once('?').unwrap().1;
    let cookie = format!("Cookie: __Host-sid={}", alice.cookies["__Host-sid"]);
    let paths = [
        "/oauth2/authorize;x=1",
        "//oauth2/authorize",
        "/oauth2/%61uthorize",
        "/oauth2/authorize/",
        "/./oauth2/authorize",
        "/x/../oauth2/authorize",
        "/oauth2//authorize",
        "/oauth2/Authorize",
    ];
    for (case, path) in (1..).zip(paths) {
        let answer = raw::request(
            &stage.node(case).base,
            "GET",
            &format!("{path}?{query}"),
            &[&cookie],
            "",
        )
        .await
        .unwrap();
        stage.expect(
            case,
            both(page(&answer, 404), logged(&answer, "http.404", "")),
        );
    }
}

async fn a512_clients_without_the_code_grant_look_unknown(stage: &Stage) {
    let server = &stage.server;
    let web = server.shop().await;
    let api = server.resource_server("rs1", AUDIENCE).await;
    let machine = server
        .register(Client {
            grant_types: vec![GrantType::ClientCredentials],
            redirect_uris: vec!["https://machine.example/cb".to_owned()],
            ..confidential("machine", "")
        })
        .await;
    let mut bodies = Vec::new();
    for (case, id) in (1..).zip(["unknown", api.id(), machine.id()]) {
        let unregistered = [("client_id", id), ("redirect_uri", "https://x.test/")];
        let answer = stage
            .node(case)
            .browser()
            .get(&web.request(&unregistered))
            .await;
        stage.expect(
            case,
            both(
                page400(&answer),
                logged(&answer, "authz.rejected", "client"),
            ),
        );
        let id = answer.header("x-request-id").unwrap();
        bodies.push(answer.body.replace(id, ""));
    }
    for (case, body) in (1..).zip(&bodies) {
        stage.check(case, *body == bodies[0], || body.clone());
    }
}
