//! `/oauth2/authorize`: malformed, doubled, oversized and hostile requests.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::keys::Alg;
use portcullis::oauth::authorize::KNOWN;
use portcullis::oauth::scope::Scope;
use serde_json::json;

use crate::cast::client::{claims, header};
use crate::cast::server::{AUDIENCE, PASSWORD, confidential};
use crate::cast::{Answer, Browser, ISSUER, Party, log, raw};
use crate::expect::{
    WEB_CALLBACK, answered_to, consent_page, logged, login_page, page, page400, posted_to,
    redirected, seen, sets_session,
};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a001),
    row!(a002),
    row!(a004),
    row!(a005),
    row!(a006),
    row!(a008),
    row!(a009),
    row!(a010),
    row!(a012),
    row!(a013),
    row!(a014),
    row!(a016),
    row!(a017),
    row!(a018),
    row!(a020),
    row!(a021),
    row!(a022),
    row!(a024),
    row!(a025),
    row!(a026),
    row!(a028),
    row!(a029),
    row!(a030),
    row!(a032),
    row!(a033),
    row!(a034),
    row!(a036),
    row!(a037),
    row!(a038),
];

const STATE: Option<&str> = Some("st-4711");
const AUTHORIZE: &str = "/oauth2/authorize";

/// Both must hold.
fn both(first: Result<(), String>, second: Result<(), String>) -> Result<(), String> {
    first.and(second)
}

/// A form POST as another site makes it: without the `Lax` cookies.
async fn posts_across(stage: &Stage, case: usize, body: String) -> Answer {
    let mut nobody = stage.node(case).browser();
    let headers = [
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Origin", "https://app.example"),
        ("Sec-Fetch-Site", "cross-site"),
    ];
    nobody.send("POST", AUTHORIZE, &headers, Some(body)).await
}

fn form(fields: &[(String, String)]) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish()
}

/// The request with one parameter as raw text at its end.
fn with_raw(web: &Party, name: &str, raw: &str) -> String {
    format!("{}&{name}={raw}", web.request(&[(name, "")]))
}

async fn a001(stage: &Stage) {
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

async fn a002(stage: &Stage) {
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

async fn a004(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let with = |unknown: usize| {
        let more: String = (0..unknown).map(|n| format!("&x{n}={n}")).collect();
        web.request(&[]) + &more
    };
    for (case, unknown) in [(1, 1), (2, 10), (3, 50)] {
        let answer = alice.at(&stage.node(case).base).get(&with(unknown)).await;
        stage.expect(case, answered_to(&answer, WEB_CALLBACK, STATE));
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
    stage.expect(5, answered_to(&answer, WEB_CALLBACK, STATE));
}

async fn a005(stage: &Stage) {
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
        .write(move |tx| tx.disable_client(&id, now))
        .await;
    let spaced = format!("{} ", web.id());
    let upper = web.id().to_uppercase();
    let ids = ["nobody", deleted.id(), disabled.id(), &spaced, &upper];
    let mut times = vec![Vec::new(); ids.len()];
    let mut bodies = vec![String::new(); ids.len()];
    for round in 0..SAMPLES {
        for (n, id) in ids.iter().enumerate() {
            let started = Instant::now();
            let answer = alice.get(&web.request(&[("client_id", id)])).await;
            times[n].push(started.elapsed());
            if round == 0 {
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
    let medians: Vec<Duration> = times
        .iter_mut()
        .map(|times| {
            times.sort();
            times[SAMPLES / 2]
        })
        .collect();
    for n in 1..ids.len() {
        stage.check(n + 1, bodies[n] == bodies[0], || {
            "the page differs from that of an unknown client".to_owned()
        });
    }
    let spread = *medians.iter().max().unwrap() - *medians.iter().min().unwrap();
    stage.check(6, spread < Duration::from_millis(5), || {
        format!("medians {medians:?}")
    });
}

async fn a006(stage: &Stage) {
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
        // Past 128 KiB the HTTP layer closes, perhaps in the middle of our sentence.
        let answer = raw::bytes(&stage.node(case).base, get.into_bytes()).await;
        match answer {
            Some(answer) => {
                stage.check(case, [400, 414, 431].contains(&answer.status), || {
                    seen(&answer)
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
    // Exactly 8 KiB of target is still read.
    let target = format!("{request}&x={}", "a".repeat(8_192 - request.len() - 3));
    let answer = alice.clone().get(&target).await;
    stage.expect(4, answered_to(&answer, WEB_CALLBACK, STATE));
    stage.check(3, stage.rows() <= rows + 2, || {
        "a row was written".to_owned()
    });
}

async fn a008(stage: &Stage) {
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

async fn a009(stage: &Stage) {
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

async fn a010(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let hard = r#"+ &=%"</>'?#;:@,$!~*()[]{}|^`\"#;
    let state: String = hard.chars().chain('a'..='z').cycle().take(1_024).collect();
    let nonce: String = hard.chars().cycle().take(384).collect();
    let request = web.request(&[("state", &state), ("nonce", &nonce)]);
    for (case, request) in [(1, request.clone()), (2, request.replace('+', "%20"))] {
        let answer = alice.at(&stage.node(case).base).get(&request).await;
        stage.expect(case, answered_to(&answer, WEB_CALLBACK, Some(&state)));
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

async fn a012(stage: &Stage) {
    let web = stage.server.shop().await;
    let many = |n: usize| {
        (0..n)
            .map(|n| format!("s{n}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let scopes = [
        many(10_000),
        "a".repeat(100_000),
        ["openid"; 1_000].join(" "),
        "a".repeat(1_025),
        many(33),
    ];
    for (case, scope) in (1..).zip(&scopes) {
        let answer = posts_across(stage, case, form(&web.parameters(&[("scope", scope)]))).await;
        if scope.len() > 16_384 {
            stage.expect(
                case,
                page(&answer, 413).and(logged(&answer, "http.too_large", "body")),
            );
        } else {
            stage.expect(
                case,
                both(
                    redirected(&answer, "invalid_scope", STATE),
                    logged(&answer, "authz.rejected", "scope"),
                ),
            );
        }
    }
    // What is not over the limit is small: the whole of parsing, far below the 5 ms of a handler.
    let (longest, started) = (many(32), Instant::now());
    for _ in 0..100 {
        assert!(Scope::parse(&longest).is_ok());
    }
    stage.check(6, started.elapsed() < Duration::from_millis(500), || {
        format!("100 times in {:?}", started.elapsed())
    });
}

async fn a013(stage: &Stage) {
    let mut narrow = confidential("narrow", WEB_CALLBACK);
    narrow.scopes = Scope::parse("openid").unwrap();
    let web = stage.server.register(narrow).await;
    let mut alice = stage.server.browser();
    alice.signs_in(&web, "alice").await;
    let scopes = [
        "openid \"",
        "openid a\\b",
        "openid caf\u{e9}",
        "openid wibble",
        "openid orders:read",
    ];
    for (case, scope) in (1..).zip(scopes) {
        let node = stage.node(case);
        for mut browser in [alice.at(&node.base), node.browser()] {
            let answer = browser.get(&web.request(&[("scope", scope)])).await;
            stage.expect(
                case,
                both(
                    redirected(&answer, "invalid_scope", STATE),
                    logged(&answer, "authz.rejected", "scope"),
                ),
            );
        }
    }
}

async fn a014(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let cases = [
        ("", "invalid_request"),
        ("foo", "unsupported_response_type"),
        ("code code", "unsupported_response_type"),
    ];
    for (case, (response_type, error)) in (1..).zip(cases) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[("response_type", response_type)]))
            .await;
        stage.expect(
            case,
            both(
                redirected(&answer, error, STATE),
                logged(&answer, "authz.rejected", ""),
            ),
        );
    }
}

async fn a016(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    for (case, mode) in (1..).zip(["fragment", "web_message", "foo", "query.jwt"]) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[("response_mode", mode)]))
            .await;
        stage.expect(
            case,
            both(
                redirected(&answer, "invalid_request", STATE),
                logged(&answer, "authz.rejected", ""),
            ),
        );
        stage.check(
            case,
            !answer.location().unwrap_or_default().contains('#'),
            || "answered in a fragment".to_owned(),
        );
    }
}

async fn a017(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let state = "\"><script>alert(1)</script>";
    let answer = alice
        .get(&web.request(&[("response_mode", "form_post"), ("state", state)]))
        .await;
    stage.check(
        1,
        answer.status == 200 && answer.location().is_none(),
        || seen(&answer),
    );
    stage.check(
        1,
        !answer.body.contains("<script>") && answer.body.matches("<script").count() == 1,
        || answer.body.clone(),
    );
    let field = |name: &str| {
        posted_to(&answer, WEB_CALLBACK)
            .ok()
            .and_then(|fields| fields.get(name).cloned())
    };
    stage.check(2, field("state").as_deref() == Some(state), || {
        format!("state {:?}", field("state"))
    });
    stage.check(
        2,
        field("code").is_some() && field("iss").as_deref() == Some(ISSUER),
        || answer.body.clone(),
    );
    let csp = answer.header("content-security-policy").unwrap_or_default();
    let directive = |name: &str| {
        csp.split(';')
            .map(str::trim)
            .find_map(|part| part.strip_prefix(name))
            .map(str::trim)
    };
    stage.check(
        3,
        directive("form-action") == Some("'self' https://app.example"),
        || csp.to_owned(),
    );
    let nonce = answer
        .body
        .split_once("<script nonce=\"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .map(|(nonce, _)| nonce);
    let only = nonce.map(|nonce| format!("'nonce-{nonce}' 'strict-dynamic'"));
    stage.check(
        4,
        only.is_some() && directive("script-src") == only.as_deref(),
        || csp.to_owned(),
    );
    let again = alice
        .get(&web.request(&[("response_mode", "form_post")]))
        .await;
    stage.check(
        4,
        nonce.is_some_and(|nonce| !again.body.contains(nonce)),
        || "the nonce came twice".to_owned(),
    );
}

async fn a018(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let cases = [
        ("prompt", "none login"),
        ("prompt", "foo"),
        ("max_age", "-1"),
        ("max_age", "1e3"),
        ("max_age", "99999999999999999999"),
    ];
    for (case, (name, value)) in (1..).zip(cases) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[(name, value)]))
            .await;
        stage.expect(
            case,
            both(
                redirected(&answer, "invalid_request", STATE),
                logged(&answer, "authz.rejected", name),
            ),
        );
    }
}

async fn a020(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    for (case, (name, value)) in [(1, ("max_age", "0")), (2, ("prompt", "login"))] {
        stage.server.advance(Duration::from_secs(40));
        let earlier = alice.opens(&web.request(&[(name, value)])).await;
        stage.expect(case, login_page(&earlier));
        let fields = [
            ("authorization", earlier.hidden("authorization")),
            ("csrf", earlier.hidden("csrf")),
            ("username", "alice".to_owned()),
            ("password", PASSWORD.to_owned()),
        ];
        let fields: Vec<(&str, &str)> = fields
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let login = alice.post("/login", &fields).await;
        stage.expect(case, logged(&login, "login.reauth", ""));
        let answer = alice.opens(&login.own_redirect().unwrap()).await;
        stage.expect(case, answered_to(&answer, WEB_CALLBACK, STATE));
        let id = web
            .redeems(&answer.callback("code").unwrap())
            .await
            .ok()
            .id_claims();
        let now = stage.server.clock.now().secs();
        stage.check(case, id["auth_time"] == now, || {
            format!("auth_time {}, now {now}", id["auth_time"])
        });
        let back = alice.post("/login", &fields).await;
        stage.expect(
            case + 2,
            both(page400(&back), logged(&back, "authorization.replay", "")),
        );
    }
    // Not even a login of this very instant is young enough.
    let answer = alice.opens(&web.request(&[("max_age", "0")])).await;
    stage.expect(5, login_page(&answer));
}

async fn a021(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let mark = log::mark();
    let code = alice.allows(&web).await;
    let genuine = web.redeems(&code).await.ok().0["id_token"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut bob = stage.server.browser();
    let code = bob.signs_in(&web, "bob").await.callback("code").unwrap();
    let of_bob = web.redeems(&code).await.ok().0["id_token"]
        .as_str()
        .unwrap()
        .to_owned();

    let (signed, signature) = genuine.rsplit_once('.').unwrap();
    let middle = signature.len() / 2;
    let other = if signature.as_bytes()[middle] == b'A' {
        "B"
    } else {
        "A"
    };
    let forged = format!(
        "{signed}.{}{other}{}",
        &signature[..middle],
        &signature[middle + 1..]
    );
    let mut none = header(&genuine);
    none["alg"] = json!("none");
    let unsigned = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode(none.to_string()),
        genuine.split('.').nth(1).unwrap()
    );
    let mut foreign = claims(&genuine);
    foreign["iss"] = json!("https://other.example");
    let foreign = stage
        .server
        .app
        .keys()
        .sign(Alg::RS256, "JWT", &foreign)
        .unwrap();

    for (case, hint) in (1..).zip([&forged, &unsigned, &foreign]) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[("id_token_hint", hint)]))
            .await;
        stage.expect(
            case,
            both(
                redirected(&answer, "invalid_request", STATE),
                logged(&answer, "authz.rejected", "id_token_hint"),
            ),
        );
    }
    let answer = alice
        .get(&web.request(&[("id_token_hint", &of_bob), ("prompt", "none")]))
        .await;
    stage.expect(
        4,
        both(
            redirected(&answer, "login_required", STATE),
            logged(&answer, "authz.rejected", "other_user"),
        ),
    );
    // A genuine one of her own is no obstacle.
    let answer = alice
        .get(&web.request(&[("id_token_hint", &genuine), ("prompt", "none")]))
        .await;
    stage.expect(5, answered_to(&answer, WEB_CALLBACK, STATE));
    let parts: Vec<&str> = [&forged, &foreign, &of_bob]
        .into_iter()
        .flat_map(|token| token.split('.').skip(1))
        .collect();
    let told = log::since(mark).into_iter().find(|event| {
        event
            .values()
            .any(|value| parts.iter().any(|part| value.contains(part)))
    });
    stage.check(6, told.is_none(), || format!("logged {told:?}"));
}

async fn a022(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut nobody = stage.server.browser();
    let page = nobody
        .opens(&web.request(&[("login_hint", "<script>alert(1)</script>")]))
        .await;
    stage.expect(1, login_page(&page));
    stage.check(
        1,
        !page.body.contains("<script") && page.body.contains("&#60;script&#62;alert(1)"),
        || page.body.clone(),
    );

    let long = "a".repeat(10_000);
    let posted = posts_across(stage, 2, form(&web.parameters(&[("login_hint", &long)]))).await;
    let page = nobody.opens(&posted.own_redirect().unwrap()).await;
    stage.expect(2, login_page(&page));
    let shown = page.hidden("username").len();
    stage.check(2, shown == 254, || format!("{shown} characters are shown"));

    let page = nobody
        .opens(&web.request(&[("ui_locales", "../../etc/passwd")]))
        .await;
    stage.expect(3, login_page(&page));
    stage.check(
        3,
        page.body.contains("<html lang=\"en\">") && !page.body.contains("passwd"),
        || page.body.clone(),
    );
    // Ten thousand by hand. One begun authorization each and nothing more: no locale is kept.
    for n in 0..50 {
        let answer = stage
            .node(n)
            .browser()
            .opens(&web.request(&[("ui_locales", &format!("x{n}-AB"))]))
            .await;
        stage.expect(4, login_page(&answer));
    }
}

async fn a024(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let nested = |depth: usize, inner: &str| {
        format!(
            "{}{inner}{}",
            r#"{"userinfo":"#.repeat(depth),
            "}".repeat(depth)
        )
    };
    let malformed = |answer: &Answer| {
        both(
            redirected(answer, "invalid_request", STATE),
            logged(answer, "authz.rejected", "json"),
        )
    };
    for inner in ["1", "{}"] {
        let depth = if inner == "1" { 9 } else { 8 };
        let answer = alice
            .get(&web.request(&[("claims", &nested(depth, inner))]))
            .await;
        stage.expect(1, malformed(&answer));
    }
    for deepest in [
        nested(8, "null"),
        format!(r#"{{"x":{}{}}}"#, "[".repeat(7), "]".repeat(7)),
    ] {
        let answer = alice.get(&web.request(&[("claims", &deepest)])).await;
        stage.expect(5, answered_to(&answer, WEB_CALLBACK, STATE));
    }
    // Brackets stand for themselves in a form, so ten thousand of them fit into a body.
    let body = format!(
        "{}&claims={{\"a\":{}",
        form(&web.parameters(&[])),
        "[".repeat(10_000)
    );
    let answer = posts_across(stage, 2, body).await;
    stage.expect(2, malformed(&answer));
    let answer = posts_across(
        stage,
        3,
        form(&web.parameters(&[("claims", &format!("{{\"a\":\"{}\"}}", "b".repeat(1 << 20)))])),
    )
    .await;
    stage.expect(3, page(&answer, 413));
    let answer = alice
        .get(&web.request(&[("claims", r#"{"id_token":{},"id_token":{}}"#)]))
        .await;
    stage.expect(4, malformed(&answer));
}

async fn a025(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let rows = stage.rows();
    for (case, method) in (1..).zip(["HEAD", "PUT", "DELETE", "OPTIONS"]) {
        for mut browser in [alice.at(&stage.node(case).base), stage.node(case).browser()] {
            let answer = browser.send(method, &web.request(&[]), &[], None).await;
            let quiet = answer.headers.get("set-cookie").is_none()
                && answer.location().is_none()
                && answer.body.is_empty();
            stage.check(case, quiet, || seen(&answer));
            if method == "HEAD" {
                stage.check(case, answer.status == 200, || seen(&answer));
            } else {
                stage.check(
                    case,
                    answer.status == 405 && answer.header("allow") == Some("GET, POST"),
                    || format!("{} {:?}", seen(&answer), answer.header("allow")),
                );
                stage.expect(case, logged(&answer, "http.method", ""));
            }
        }
    }
    stage.check(1, stage.rows() == rows, || "a row was written".to_owned());
}

async fn a026(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let cookies = alice.cookies.clone();
    let answer = posts_across(stage, 1, form(&web.parameters(&[]))).await;
    let cookie = answer.headers.get("set-cookie");
    stage.check(1, cookie.is_none(), || format!("set-cookie: {cookie:?}"));
    stage.check(
        1,
        answer.status == 303 && answer.callback("code").is_none(),
        || seen(&answer),
    );
    // Nobody is signed in there.
    let elsewhere = stage
        .node(1)
        .browser()
        .opens(&answer.own_redirect().unwrap())
        .await;
    stage.expect(2, login_page(&elsewhere));
    let next = alice.at(&stage.node(2).base).get(&web.request(&[])).await;
    stage.expect(3, answered_to(&next, WEB_CALLBACK, STATE));
    // Where the browser sends its cookies with the GET that follows, the session counts.
    let answer = posts_across(stage, 2, form(&web.parameters(&[]))).await;
    let next = alice.opens(&answer.own_redirect().unwrap()).await;
    stage.expect(4, answered_to(&next, WEB_CALLBACK, STATE));
    stage.check(
        4,
        alice.cookies["__Host-sid"] == cookies["__Host-sid"],
        || "the session cookie was replaced".to_owned(),
    );
}

async fn a028(stage: &Stage) {
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

async fn a029(stage: &Stage) {
    let web = stage.server.shop().await;
    let mut alice = stage.node(1).browser();
    let common = |answer: &Answer| {
        let wanted = [
            ("cache-control", "no-store"),
            ("referrer-policy", "same-origin"),
            (
                "strict-transport-security",
                "max-age=63072000; includeSubDomains",
            ),
            ("x-content-type-options", "nosniff"),
        ];
        let odd = wanted
            .iter()
            .find(|(name, want)| answer.header(name) != Some(*want));
        odd.map_or(Ok(()), |(name, want)| {
            Err(format!(
                "{name}: got {:?}, want {want}",
                answer.header(name)
            ))
        })
    };
    let html = |answer: &Answer, popup: bool| {
        let csp = answer.header("content-security-policy").unwrap_or_default();
        let wanted = [
            "default-src 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'self'",
        ];
        let framed = !wanted.iter().all(|part| csp.contains(part))
            || answer.header("x-frame-options") != Some("DENY");
        let coop = answer.header("cross-origin-opener-policy");
        if framed || csp.contains("unsafe") || coop.is_some() == popup {
            Err(format!("csp {csp:?}, coop {coop:?}"))
        } else {
            Ok(())
        }
    };
    let start = alice.get(&web.request(&[])).await;
    stage.expect(1, common(&start));
    let login = alice.get(&start.own_redirect().unwrap()).await;
    stage.expect(
        2,
        login_page(&login)
            .and(common(&login))
            .and(html(&login, true)),
    );
    let consent = alice.fills_in(&login, "alice", PASSWORD).await;
    stage.expect(
        3,
        consent_page(&consent)
            .and(common(&consent))
            .and(html(&consent, true)),
    );
    let success = alice.decides(&consent, "allow").await;
    stage.expect(
        4,
        answered_to(&success, WEB_CALLBACK, STATE).and(common(&success)),
    );
    let refused = alice.get(&web.request(&[("scope", "wibble")])).await;
    stage.expect(
        5,
        redirected(&refused, "invalid_scope", STATE).and(common(&refused)),
    );
    let error = alice.get(&web.request(&[("client_id", "nobody")])).await;
    stage.expect(
        6,
        page400(&error).and(common(&error)).and(html(&error, false)),
    );
    let posted = alice
        .get(&web.request(&[("response_mode", "form_post")]))
        .await;
    stage.expect(
        7,
        posted_to(&posted, WEB_CALLBACK)
            .map(drop)
            .and(common(&posted))
            .and(html(&posted, true)),
    );
    let method = alice.send("PUT", &web.request(&[]), &[], None).await;
    stage.expect(8, common(&method));
}

/// Every error that the endpoint sends to a client, and a request that earns it.
const REFUSALS: [(&str, &[(&str, &str)]); 9] = [
    ("invalid_request", &[("prompt", "foo")]),
    ("unsupported_response_type", &[("response_type", "token")]),
    ("invalid_scope", &[("scope", "openid wibble")]),
    ("invalid_target", &[("resource", "https://other.example")]),
    ("request_not_supported", &[("request", "e30.e30.")]),
    ("request_uri_not_supported", &[("request_uri", "urn:x:1")]),
    (
        "unmet_authentication_requirements",
        &[(
            "claims",
            r#"{"id_token":{"acr":{"essential":true,"value":"urn:none"}}}"#,
        )],
    ),
    (
        "consent_required",
        &[("prompt", "none"), ("scope", "openid orders:write")],
    ),
    ("access_denied", &[("prompt", "consent")]),
];

async fn a030(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let mut incapable = confidential("incapable", WEB_CALLBACK);
    incapable.grant_types = Vec::new();
    let incapable = stage.server.register(incapable).await;
    let iss = |answer: &Answer, mode: &str, error: Option<&str>| {
        let fields = if mode == "query" {
            let to = answer
                .location()
                .filter(|to| to.starts_with(&format!("{WEB_CALLBACK}?")));
            to.map(|to| {
                form_urlencoded::parse(to.split_once('?').unwrap().1.as_bytes())
                    .into_owned()
                    .collect()
            })
        } else {
            posted_to(answer, WEB_CALLBACK).ok()
        };
        let fields: std::collections::BTreeMap<String, String> =
            fields.ok_or_else(|| seen(answer))?;
        let right = fields.get("iss").map(String::as_str) == Some(ISSUER)
            && fields.get("error").map(String::as_str) == error
            && fields.get("state").map(String::as_str) == STATE
            && fields.contains_key("code") == error.is_none();
        if right {
            Ok(())
        } else {
            Err(format!("{mode}: got {fields:?}, want {error:?}"))
        }
    };
    for mode in ["query", "form_post"] {
        let offset = if mode == "query" {
            0
        } else {
            REFUSALS.len() + 3
        };
        let success = alice
            .clone()
            .get(&web.request(&[("response_mode", mode)]))
            .await;
        stage.expect(offset + 1, iss(&success, mode, None));
        let mut nobody = stage.node(1).browser();
        let answer = nobody
            .get(&web.request(&[("response_mode", mode), ("prompt", "none")]))
            .await;
        stage.expect(offset + 2, iss(&answer, mode, Some("login_required")));
        let answer = nobody
            .get(&incapable.request(&[("response_mode", mode)]))
            .await;
        stage.expect(offset + 3, iss(&answer, mode, Some("unauthorized_client")));
        for (n, (error, changed)) in REFUSALS.iter().enumerate() {
            let mut alice = alice.at(&stage.node(n).base);
            let changed: Vec<(&str, &str)> = changed
                .iter()
                .copied()
                .chain([("response_mode", mode)])
                .collect();
            let mut answer = alice.opens(&web.request(&changed)).await;
            if *error == "access_denied" {
                answer = alice.decides(&answer, "deny").await;
            }
            stage.expect(offset + 4 + n, iss(&answer, mode, Some(error)));
        }
    }
    let metadata = alice
        .clone()
        .get("/.well-known/openid-configuration")
        .await
        .json();
    let offered = metadata["authorization_response_iss_parameter_supported"] == true
        && metadata["issuer"] == ISSUER;
    stage.check(2 * (REFUSALS.len() + 3) + 1, offered, || {
        metadata.to_string()
    });
}

async fn a032(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let text = "<svg onload=alert(1)>";
    let names = [
        "scope",
        "response_type",
        "response_mode",
        "prompt",
        "max_age",
        "code_challenge",
        "code_challenge_method",
        "claims",
        "id_token_hint",
        "request",
        "request_uri",
        "resource",
    ];
    for (case, name) in (1..).zip(names) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[(name, text)]))
            .await;
        let error = answer.callback("error").unwrap_or_default();
        stage.expect(case, redirected(&answer, &error, STATE));
        stage.check(case, !error.is_empty(), || seen(&answer));
        let description = answer.callback("error_description").unwrap_or_default();
        let printable = !description.is_empty()
            && description
                .bytes()
                .all(|b| matches!(b, 0x20..=0x21 | 0x23..=0x5b | 0x5d..=0x7e));
        let ours = printable
            && !description.contains("svg")
            && !answer.location().unwrap_or_default().contains("svg");
        stage.check(case, ours, || format!("error_description `{description}`"));
    }
    for (case, name) in (names.len() + 1..).zip(["client_id", "redirect_uri"]) {
        let answer = alice.clone().get(&web.request(&[(name, text)])).await;
        stage.expect(case, page400(&answer));
        stage.check(case, !answer.body.contains("onload"), || {
            answer.body.clone()
        });
    }
}

async fn a033(stage: &Stage) {
    let (web, mut alice) = stage.web_and_alice().await;
    let essential = r#"{"id_token":{"acr":{"essential":true,"values":["urn:none"]}}}"#;
    let answer = alice.get(&web.request(&[("claims", essential)])).await;
    stage.expect(
        1,
        both(
            redirected(&answer, "unmet_authentication_requirements", STATE),
            logged(&answer, "authz.rejected", "acr"),
        ),
    );
    let voluntary = r#"{"id_token":{"acr":{"values":["urn:none"]}}}"#;
    let best = web
        .redeems(&alice.allows(&web).await)
        .await
        .ok()
        .id_claims()["acr"]
        .clone();
    for (case, (name, value)) in [(2, ("claims", voluntary)), (3, ("acr_values", "urn:none"))] {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[(name, value)]))
            .await;
        stage.expect(case, answered_to(&answer, WEB_CALLBACK, STATE));
        let acr = web
            .redeems(&answer.callback("code").unwrap())
            .await
            .ok()
            .id_claims()["acr"]
            .clone();
        stage.check(
            case,
            acr == best && acr.is_string() && acr != "urn:none",
            || format!("acr {acr}"),
        );
    }
}

async fn a034(stage: &Stage) {
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

async fn a036(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let with = |resources: &[&str]| {
        let fields: Vec<(String, String)> = resources
            .iter()
            .map(|uri| ("resource".to_owned(), (*uri).to_owned()))
            .collect();
        format!("{}&{}", web.request(&[]), form(&fields))
    };
    let fragment = format!("{AUDIENCE}#x");
    let cases = [
        vec!["/orders"],
        vec![fragment.as_str()],
        vec!["https://other.example"],
        vec![AUDIENCE; 9],
        vec![AUDIENCE, "https://other.example"],
    ];
    for (case, resources) in (1..).zip(&cases) {
        let answer = alice.at(&stage.node(case).base).get(&with(resources)).await;
        stage.expect(
            case,
            both(
                redirected(&answer, "invalid_target", STATE),
                logged(&answer, "authz.rejected", "resource"),
            ),
        );
    }
    let answer = alice.clone().get(&with(&[AUDIENCE; 8])).await;
    stage.expect(6, answered_to(&answer, WEB_CALLBACK, STATE));
}

async fn a037(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let deep = format!(
        "[{{\"type\":\"a\",\"x\":{}{}}}]",
        "[".repeat(9),
        "]".repeat(9)
    );
    let plain = web.redeems(&alice.clone().allows(&web).await).await.ok();
    for (case, details) in (1..).zip([
        "[{",
        r#"[{"type":"nobody_knows"}]"#,
        &deep,
        r#"[{"type":"payment"}]"#,
    ]) {
        let answer = alice
            .at(&stage.node(case).base)
            .get(&web.request(&[("authorization_details", details)]))
            .await;
        // Rich authorization requests are not offered: a parameter that nobody knows.
        stage.expect(case, answered_to(&answer, WEB_CALLBACK, STATE));
        let tokens = web.redeems(&answer.callback("code").unwrap()).await.ok();
        let same = ["aud", "scope"]
            .iter()
            .all(|name| tokens.access_claims()[name] == plain.access_claims()[name]);
        let silent = tokens.0.get("authorization_details").is_none()
            && tokens
                .access_claims()
                .get("authorization_details")
                .is_none();
        stage.check(case, same && silent, || tokens.access_claims().to_string());
    }
    let metadata = alice
        .clone()
        .get("/.well-known/openid-configuration")
        .await
        .json();
    stage.check(
        5,
        metadata
            .get("authorization_details_types_supported")
            .is_none(),
        || metadata.to_string(),
    );
}

async fn a038(stage: &Stage) {
    let (web, alice) = stage.web_and_alice().await;
    let jkt = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I";
    let answer = alice.clone().get(&web.request(&[("dpop_jkt", jkt)])).await;
    stage.expect(1, answered_to(&answer, WEB_CALLBACK, STATE));
    // DPoP is not offered: its parameter and its header are not read.
    let code = answer.callback("code").unwrap();
    let authorization = crate::cast::client::basic(web.id(), web.secret.as_ref().unwrap().expose());
    let fields = [
        ("grant_type", "authorization_code"),
        ("code", &code),
        ("redirect_uri", WEB_CALLBACK),
        ("code_verifier", crate::cast::VERIFIER),
    ];
    let tokens = web
        .posts_raw(
            "/oauth2/token",
            &[("Authorization", &authorization), ("DPoP", "e30.e30.e30")],
            &fields,
        )
        .await
        .ok();
    stage.check(
        2,
        tokens.0["token_type"] == "Bearer" && tokens.access_claims().get("cnf").is_none(),
        || tokens.0.to_string(),
    );
    let mut nobody: Browser = stage.node(1).browser();
    let metadata = nobody.get("/.well-known/openid-configuration").await.json();
    stage.check(
        3,
        metadata.get("dpop_signing_alg_values_supported").is_none(),
        || metadata.to_string(),
    );
    let pushed = nobody
        .post("/oauth2/par", &[("client_id", web.id()), ("dpop_jkt", jkt)])
        .await;
    stage.expect(4, page(&pushed, 404));
    stage.check(4, !sets_session(&pushed), || seen(&pushed));
}
