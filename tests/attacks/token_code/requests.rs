//! The form of a token request: method, content type, fields, origin.

use portcullis::oauth::client::rejected;
use portcullis::oauth::redirect_uri::Localhost;

use super::{FORM, Flow, TOKEN, code_is_active, not_logged, posts, send_raw, valid};
use crate::expect::{json_error, logged, summary};
use crate::fixtures::server::public;
use crate::fixtures::{Answer, VERIFIER, raw};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a180_token_endpoint_allows_only_post),
    row!(a181_token_requests_of_other_content_types_are_rejected),
    row!(a182_credentials_in_the_token_query_are_rejected),
    row!(a184_oversized_token_bodies_are_rejected),
    row!(a185_malformed_encodings_are_rejected),
    row!(a186_unknown_grant_types_are_rejected),
    row!(a204_cors_allows_only_the_registered_origin),
    row!(a680_cors_origins_of_packed_applications_match_exactly),
];

async fn a180_token_endpoint_allows_only_post(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let target = format!("{TOKEN}?grant_type=authorization_code&code={code}");
    for (case, method, target) in [(1, "GET", target.as_str()), (2, "PUT", TOKEN)] {
        let answer = stage.server.browser().send(method, target, &[], None).await;
        stage.check(
            case,
            answer.status == 405 && answer.header("allow") == Some("POST"),
            || format!("{} allow {:?}", summary(&answer), answer.header("allow")),
        );
        stage.expect(case, logged(&answer, "http.method", ""));
        stage.expect(case, not_logged(&answer, &code));
    }
    stage.expect(1, code_is_active(&flow.web, &code).await);
}

async fn a181_token_requests_of_other_content_types_are_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let kinds = [
        Some("application/json"),
        Some("text/plain"),
        Some("multipart/form-data; boundary=x"),
        None,
        Some("application/x-www-form-urlencoded; charset=utf-16"),
    ];
    for (case, kind) in (1..).zip(kinds) {
        let code = flow.code().await;
        let (body, authorization) = valid(&flow.web, &code);
        let mut headers = vec![("Authorization", authorization.as_str())];
        headers.extend(kind.map(|kind| ("Content-Type", kind)));
        let answer = posts(stage.node(case), TOKEN, &headers, &body).await;
        stage.expect(case, json_error(&answer, 400, "invalid_request"));
        stage.expect(case, logged(&answer, "token.rejected", ""));
        stage.expect(case, code_is_active(&flow.web, &code).await);
    }
}

async fn a182_credentials_in_the_token_query_are_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let (body, authorization) = valid(&flow.web, &code);
    let secret = flow.web.secret.clone().unwrap();
    let in_query = format!(
        "{TOKEN}?client_id={}&client_secret={}",
        flow.web.id(),
        secret.expose()
    );
    let answer = posts(&stage.server, &in_query, &[FORM], &body).await;
    stage.expect(1, json_error(&answer, 400, "invalid_request"));
    stage.expect(1, logged(&answer, "token.rejected", "query"));
    stage.expect(1, not_logged(&answer, secret.expose()));
    let without = body.replace("grant_type=authorization_code&", "");
    let answer = posts(
        &stage.server,
        &format!("{TOKEN}?grant_type=authorization_code"),
        &[FORM, ("Authorization", &authorization)],
        &without,
    )
    .await;
    stage.expect(2, json_error(&answer, 400, "invalid_request"));
    stage.expect(2, logged(&answer, "token.rejected", "query"));
    stage.expect(2, not_logged(&answer, "grant_type=authorization_code"));
    stage.expect(2, code_is_active(&flow.web, &code).await);
}

async fn a184_oversized_token_bodies_are_rejected(stage: &Stage) {
    let web = stage.server.shop().await;
    let (body, authorization) = valid(&web, "pcl_ac_x");
    let headers = [("Authorization", authorization.as_str())];
    let base = stage.server.base.as_str();
    let refused = |case: usize, answer: &Answer, statuses: &[u16]| {
        stage.check(case, statuses.contains(&answer.status), || {
            format!("got {}, want {statuses:?}", summary(answer))
        });
        stage.expect(case, logged(answer, "http.too_large", ""));
    };
    // 1. One byte above the limit.
    let long = format!("{body}&x={}", "x".repeat(16 * 1_024 + 1 - body.len() - 3));
    assert_eq!(long.len(), 16 * 1_024 + 1);
    refused(
        1,
        &send_raw(base, raw::post(TOKEN, &headers, &long)).await,
        &[413],
    );
    // 2. 100 MiB in chunks without an end: the server does not wait for one.
    let head = format!(
        "POST {TOKEN} HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nAuthorization: {authorization}\r\n\r\n"
    );
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x1_0000));
    let mut growth = u64::MAX;
    for _ in 0..4 {
        let before = resident();
        let (answer, hung_up) = raw::flood(
            base,
            head.clone().into_bytes(),
            chunk.clone().into_bytes(),
            1_600,
        )
        .await;
        // Other rows run in this process too, so the round with the least growth counts.
        growth = growth.min(resident().saturating_sub(before));
        stage.check(2, hung_up, || "still listening".to_owned());
        match answer {
            Some(answer) => refused(2, &answer, &[413]),
            None => stage.check(2, false, || "hung up without an answer".to_owned()),
        }
        if growth < 2 << 20 {
            break;
        }
    }
    stage.check(2, growth < 2 << 20, || {
        format!("{growth} bytes more are resident")
    });
    // 3. The first bytes of a gzip stream, which is not decompressed.
    let bomb = [
        ("Authorization", authorization.as_str()),
        ("Content-Encoding", "gzip"),
    ];
    refused(
        3,
        &send_raw(base, raw::post(TOKEN, &bomb, "\u{1f}\u{8b}\u{8}")).await,
        &[415],
    );
    // 4. and 5. Number of fields.
    for (case, fields, statuses) in [(4, 65, &[400][..]), (5, 10_000, &[400, 413])] {
        let many: String = (4..fields).map(|n| format!("&x{n}=1")).collect();
        refused(
            case,
            &send_raw(base, raw::post(TOKEN, &headers, &format!("{body}{many}"))).await,
            statuses,
        );
    }
}

/// Returns the resident memory of this process in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}

async fn a185_malformed_encodings_are_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let (body, authorization) = valid(&flow.web, &code);
    // A NUL is valid UTF-8, so the log has another reason for it.
    for (case, value, reason) in [
        (1, "%ff%fe", "utf8"),
        (2, "a%00b", "control_char"),
        (3, "%zz", "utf8"),
        (4, "%", "utf8"),
    ] {
        for body in [
            body.replace(&code, value),
            body.replace(VERIFIER, value),
            format!("{body}&unknown={value}"),
        ] {
            let answer = posts(
                stage.node(case),
                TOKEN,
                &[FORM, ("Authorization", &authorization)],
                &body,
            )
            .await;
            stage.expect(case, json_error(&answer, 400, "invalid_request"));
            stage.expect(case, logged(&answer, "token.rejected", reason));
        }
    }
    stage.expect(4, code_is_active(&flow.web, &code).await);
    let plus = flow.web.request(&[("scope", "openid orders:read")]);
    for (case, url) in [(5, plus.clone()), (6, plus.replace('+', "%20"))] {
        let code = flow.alice.allows_request(&url).await;
        let scope = flow.web.redeems(&code).await.ok().0["scope"].clone();
        stage.check(case, scope == "openid orders:read", || {
            format!("{url} got {scope}")
        });
    }
}

async fn a186_unknown_grant_types_are_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let answer = flow.web.redeems_with(&code, &[("grant_type", "")]).await;
    stage.expect(1, json_error(&answer, 400, "invalid_request"));
    stage.expect(1, logged(&answer, "token.rejected", ""));
    let others = [
        "foo",
        "password",
        "implicit",
        "PASSWORD",
        "urn:ietf:params:oauth:grant-type:token-exchange ",
        "authorization_code ",
    ];
    for (case, other) in (2..).zip(others) {
        let extra = [
            ("grant_type", other),
            ("username", "alice"),
            ("password", crate::fixtures::server::PASSWORD),
        ];
        let answer = flow.web.redeems_with(&code, &extra).await;
        stage.expect(case, json_error(&answer, 400, "unsupported_grant_type"));
        stage.expect(case, logged(&answer, "token.rejected", ""));
    }
    stage.expect(1, code_is_active(&flow.web, &code).await);
}

async fn a204_cors_allows_only_the_registered_origin(stage: &Stage) {
    let mut spa = public("spa", &["https://spa.example/cb"]);
    spa.cors_origins = vec!["https://spa.example".to_owned()];
    let spa = stage.server.register(spa).await;
    let origins = [
        "https://evil.test",
        "null",
        "https://spa.example",
        "https://spa.example.evil.test",
        "http://spa.example",
        "https://spa.example:8443",
        "https://SPA.example",
    ];
    for (case, origin) in (1..).zip(origins) {
        let want = (origin == "https://spa.example").then_some(origin);
        let asked = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "content-type"),
        ];
        let preflight = stage
            .node(case)
            .browser()
            .send("OPTIONS", TOKEN, &asked, None)
            .await;
        let actual = spa
            .posts_raw(
                TOKEN,
                &[("Origin", origin)],
                &[
                    ("grant_type", "authorization_code"),
                    ("code", "pcl_ac_x"),
                    ("client_id", spa.id()),
                ],
            )
            .await;
        for answer in [&preflight, &actual] {
            stage.check(
                case,
                answer.header("access-control-allow-origin") == want,
                || format!("{origin}: {:?}", answer.headers),
            );
            stage.check(
                case,
                answer.header("access-control-allow-credentials").is_none(),
                || format!("{origin}: {:?}", answer.headers),
            );
            stage.check(
                case,
                answer
                    .header("vary")
                    .is_some_and(|vary| vary.contains("Origin")),
                || format!("{origin}: {:?}", answer.headers),
            );
        }
        stage.check(
            case,
            preflight.header("access-control-allow-methods").is_some() == want.is_some(),
            || format!("{origin}: {:?}", preflight.headers),
        );
    }
}

async fn a680_cors_origins_of_packed_applications_match_exactly(stage: &Stage) {
    const ORIGIN: &str = "capacitor://localhost";
    let mut app = public("app", &["com.example.app:/cb"]);
    // No wildcard, no origin that every document without one sends, no scheme that browsers handle themselves.
    let refused = [
        "capacitor://*",
        "null",
        "javascript://localhost",
        "file://localhost",
    ];
    for (case, origin) in (1..).zip(refused) {
        app.cors_origins = vec![origin.to_owned()];
        let errors = app.check(Localhost::Forbidden).err();
        let code = errors.as_ref().map(|errors| rejected(errors).code.as_str());
        stage.check(case, code == Some("invalid_client_metadata"), || {
            format!("{origin}: {code:?}")
        });
        stage.check(
            case,
            errors.is_some_and(|errors| errors.0.iter().all(|e| e.field == "cors_origins")),
            || format!("{origin}: another field was refused"),
        );
    }
    app.cors_origins = vec![ORIGIN.to_owned()];
    let checked = app.check(Localhost::Forbidden);
    stage.check(5, checked.is_ok(), || format!("{checked:?}"));
    stage.server.register(app).await;
    let sent = [
        ORIGIN,
        "ionic://localhost",
        "http://localhost",
        "https://localhost",
        "capacitor://localhost:80",
        "capacitor://localhost.evil.test",
        "capacitor://LOCALHOST",
        "null",
    ];
    for (case, origin) in (5..).zip(sent) {
        let want = (origin == ORIGIN).then_some(origin);
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
        ];
        let mut browser = stage.node(case).browser();
        let answer = browser.send("OPTIONS", TOKEN, &headers, None).await;
        stage.check(
            case,
            answer.header("access-control-allow-origin") == want
                && answer.header("access-control-allow-credentials").is_none(),
            || format!("{origin}: {:?}", answer.headers),
        );
    }
}
