//! Log injection, and values that must not be logged.

use std::collections::BTreeSet;

use crate::expect::summary;
use crate::fixtures::{log, raw};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a461_log_injection_is_escaped),
    row!(a462_secrets_appear_in_no_log),
    row!(a464_hostile_request_ids_are_replaced),
];

async fn a461_log_injection_is_escaped(stage: &Stage) {
    let web = stage.server.shop().await;
    let payloads = [
        "x\r\n{\"level\":\"info\",\"event\":\"forged\"}".to_owned(),
        "x\u{1b}[2J\u{1b}[31mforged".to_owned(),
        "x\u{2028}forged".to_owned(),
        "x\u{202e}forged".to_owned(),
        "forged".repeat(2_000),
    ];
    for (case, payload) in (1..).zip(&payloads) {
        let mark = log::mark();
        let mut login_form =
            crate::login::LoginForm::opens(stage.node(case), &web.at(&stage.node(case).base)).await;
        let failed = login_form.tries(payload, "wrong").await;
        let refused = stage
            .server
            .browser()
            .get(&web.request(&[("client_id", payload)]))
            .await;
        let header: String = payload.chars().filter(char::is_ascii_graphic).collect();
        let told = stage
            .server
            .browser()
            .send("GET", "/nothing", &[("User-Agent", &header)], None)
            .await;
        for answer in [&failed, &refused, &told] {
            let events = log::of(answer.header("x-request-id").unwrap());
            let refusals = events
                .iter()
                .filter(|event| event.contains_key("reason"))
                .count();
            stage.check(case, refusals == 1, || {
                format!("{refusals} events: {events:?}")
            });
        }
        let fields: Vec<String> = log::since(mark)
            .iter()
            .flat_map(|event| event.values().cloned())
            .collect();
        let odd = fields.iter().find(|field| {
            field.contains("forged")
                || field.chars().count() > 512
                || field.chars().any(|c| c.is_control())
        });
        stage.check(case, odd.is_none(), || format!("logged: {odd:?}"));
    }
}

async fn a462_secrets_appear_in_no_log(stage: &Stage) {
    let canary = "Canary9x7Canary9x7Canary9x7Canary9x7Canary9";
    let web = stage.server.shop().await;
    let mark = log::mark();
    let fields = [
        "code",
        "refresh_token",
        "client_secret",
        "code_verifier",
        "password",
        "client_assertion",
        "token",
        "access_token",
    ];
    for path in [
        "/oauth2/token",
        "/oauth2/revoke",
        "/oauth2/userinfo",
        "/login",
        "/consent",
        "/oauth2/end_session",
    ] {
        for (case, field) in (1..).zip(fields) {
            let value = format!("{field}{canary}");
            let given = [
                ("client_id", web.id()),
                ("grant_type", "authorization_code"),
                (field, value.as_str()),
            ];
            let bearer = format!("Bearer {value}");
            let secret = crate::fixtures::client::basic(web.id(), &value);
            for headers in [
                vec![],
                vec![("Authorization", bearer.as_str())],
                vec![("Authorization", secret.as_str())],
            ] {
                let answer = web.posts_raw(path, &headers, &given).await;
                stage.check(
                    case,
                    answer.status < 500 && !answer.body.contains(canary),
                    || summary(&answer),
                );
            }
            let query = format!("{path}?{field}={value}");
            let cookies = format!("__Host-sid={canary}; __Host-ix={canary}; __Host-dev={canary}");
            let answer = stage
                .server
                .browser()
                .send("GET", &query, &[("Cookie", &cookies)], None)
                .await;
            stage.check(
                case,
                answer.status < 500 && !answer.body.contains(canary),
                || summary(&answer),
            );
        }
        // The error of a failed statement contains nothing of its values.
        let secret = web.secret.as_ref().unwrap().expose();
        let header = crate::fixtures::client::basic(web.id(), secret);
        let form = format!(
            "grant_type=authorization_code&code=pcl_ac_{canary}&redirect_uri=x&code_verifier={canary}"
        );
        let request = raw::post("/oauth2/token", &[("Authorization", &header)], &form);
        let storage = |statement| stage.server.execute(statement);
        storage("ALTER TABLE codes RENAME TO codes_gone");
        let broken = raw::bytes(&stage.server.base, request).await.unwrap();
        storage("ALTER TABLE codes_gone RENAME TO codes");
        stage.check(
            20,
            broken.status >= 500 && !broken.body.contains(canary),
            || summary(&broken),
        );
    }
    let logged: Vec<String> = log::since(mark)
        .iter()
        .flat_map(|event| event.values().cloned())
        .filter(|value| value.contains(canary))
        .collect();
    stage.check(21, logged.is_empty(), || format!("{logged:?}"));
}

async fn a464_hostile_request_ids_are_replaced(stage: &Stage) {
    let mut ids = BTreeSet::new();
    let mut stranger = stage.server.browser();
    let own = "01a3185c-5000-7000-8000-000000000001";
    for (case, value) in (1..).zip([
        own,
        "x",
        "x y",
        "a\"b",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "../../x",
    ]) {
        let headers = [("X-Request-Id", value), ("traceparent", value)];
        let answer = stranger.send("GET", "/account", &headers, None).await;
        let id = answer.header("x-request-id").unwrap_or_default().to_owned();
        let fresh = id.len() == 36 && id != value && ids.insert(id.clone());
        stage.check(case, answer.status == 200 && fresh, || {
            format!("{value}: {id}")
        });
    }
    for (case, lines, wanted) in [
        (
            10,
            vec![format!("X-Request-Id: {}\r\n", "x".repeat(1 << 20))],
            [Some(431), None],
        ),
        (
            11,
            vec![format!("traceparent: {}\r\n", "x".repeat(40_000))],
            [Some(431), None],
        ),
        (
            12,
            vec!["X-Request-Id: a\rb\r\n".to_owned()],
            [Some(400), None],
        ),
        (
            13,
            vec!["X-Request-Id: \u{e9}\u{fc}\r\n".to_owned()],
            [Some(200), Some(400)],
        ),
    ] {
        let text = format!(
            "GET /account HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\n{}\r\n",
            lines.concat()
        );
        let answer = raw::bytes(&stage.server.base, text.into_bytes()).await;
        let status = answer.as_ref().map(|answer| answer.status);
        stage.check(case, wanted.contains(&status), || format!("{status:?}"));
        let echoed = answer.and_then(|answer| answer.header("x-request-id").map(str::to_owned));
        stage.check(case, echoed.is_none_or(|id| id.len() == 36), String::new);
    }
}
