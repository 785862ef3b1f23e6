//! Each kind of response of the token endpoint.

use std::collections::BTreeSet;

use portcullis::oauth::{Code, Description};

use super::{Flow, TOKEN, code_is_active, send_raw, valid};
use crate::expect::{json_error, logged, summary};
use crate::fixtures::client::basic;
use crate::fixtures::server::confidential;
use crate::fixtures::{Answer, Db, TestClient, raw};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a188_token_responses_carry_required_headers),
    row!(a198_storage_error_during_redemption_issues_nothing),
    row!(a202_token_error_descriptions_are_fixed_texts),
];

async fn a188_token_responses_carry_required_headers(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let answer = flow.web.redeems(&code).await;
    stage.expect(1, answer_headers(&answer));
    let tokens = answer.ok();
    stage.check(
        1,
        tokens.0["token_type"] == "Bearer" && tokens.0["expires_in"].is_u64(),
        || answer.body.clone(),
    );
    for (case, (answer, status, error)) in (2..).zip(every_error(stage, &mut flow).await) {
        stage.check(case, answer.status == status, || {
            format!("got {}, want {status} {error}", summary(&answer))
        });
        stage.check(case, answer.json()["error"] == error, || {
            format!("got {}, want {error}", answer.body)
        });
        stage.expect(case, answer_headers(&answer));
        stage.check(
            case,
            answer.status != 401
                || answer
                    .header("www-authenticate")
                    .is_some_and(|scheme| scheme.starts_with("Basic ")),
            || format!("{:?}", answer.headers),
        );
        let technical = [
            "src/", ".rs", "panicked", "diesel", "actix", "SELECT", "sqlite", "postgres",
        ];
        stage.check(
            case,
            technical.iter().all(|word| !answer.body.contains(word)),
            || answer.body.clone(),
        );
    }
}

fn answer_headers(answer: &Answer) -> Result<(), String> {
    let pair = (
        answer.header("cache-control"),
        answer.header("content-type"),
    );
    if pair == (Some("no-store"), Some("application/json")) {
        Ok(())
    } else {
        Err(format!("{pair:?}"))
    }
}

/// Provokes each kind of error response of the token endpoint; returns it with its expected status and code.
async fn every_error(stage: &Stage, flow: &mut Flow) -> Vec<(Answer, u16, &'static str)> {
    let mut idle = confidential("idle", "https://idle.example/cb");
    idle.grant_types.clear();
    let idle = stage.server.register(idle).await;
    let (fresh, spare) = (flow.code().await, flow.code().await);
    let (body, authorization) = valid(&flow.web, &spare);
    let headers = [("Authorization", authorization.as_str())];
    let base = stage.server.base.as_str();
    vec![
        (flow.web.posts(TOKEN, &[]).await, 400, "invalid_request"),
        (
            flow.web
                .posts_raw(TOKEN, &[], &[("grant_type", "authorization_code")])
                .await,
            401,
            "invalid_client",
        ),
        (
            flow.web
                .posts_raw(TOKEN, &[("Authorization", &basic("ghost", "x"))], &[])
                .await,
            401,
            "invalid_client",
        ),
        (
            flow.web.redeems("pcl_ac_unknown").await,
            400,
            "invalid_grant",
        ),
        (
            idle.redeems("pcl_ac_unknown").await,
            400,
            "unauthorized_client",
        ),
        (
            flow.web
                .redeems_with(&fresh, &[("grant_type", "password")])
                .await,
            400,
            "unsupported_grant_type",
        ),
        (
            flow.web
                .redeems_with(&fresh, &[("resource", "https://other.example")])
                .await,
            400,
            "invalid_target",
        ),
        (
            send_raw(base, raw::post(TOKEN, &headers, &"x".repeat(20_000))).await,
            413,
            "invalid_request",
        ),
        (
            send_raw(
                base,
                raw::post(TOKEN, &[headers[0], ("Content-Encoding", "br")], &body),
            )
            .await,
            415,
            "invalid_request",
        ),
        (
            send_raw(base, raw::post(TOKEN, &headers, &"a=1&".repeat(65))).await,
            400,
            "invalid_request",
        ),
        (
            storage_fails(stage, &flow.web, &spare).await,
            503,
            "temporarily_unavailable",
        ),
    ]
}

/// Redeems the code while the database refuses to mark it as used.
async fn storage_fails(stage: &Stage, web: &TestClient, code: &str) -> Answer {
    let (body, authorization) = valid(web, code);
    let (breaks, heals) = match stage.db() {
        Db::Sqlite => (
            "CREATE TRIGGER broken BEFORE UPDATE ON codes BEGIN SELECT RAISE(ABORT, 'the disk is on fire'); END",
            "DROP TRIGGER broken",
        ),
        Db::Postgres => (
            "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the disk is on fire' USING ERRCODE = '53100'; END $$;
             CREATE TRIGGER broken BEFORE UPDATE ON codes FOR EACH ROW EXECUTE FUNCTION broken()",
            "DROP TRIGGER broken ON codes; DROP FUNCTION broken()",
        ),
    };
    stage.server.execute(breaks);
    // Sent raw, outside the journal, because this row expects a 5xx.
    let answer = send_raw(
        &stage.server.base,
        raw::post(TOKEN, &[("Authorization", &authorization)], &body),
    )
    .await;
    stage.server.execute(heals);
    answer
}

async fn a198_storage_error_during_redemption_issues_nothing(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let code = flow.code().await;
    let rows = || {
        [
            "grants",
            "revocations",
            "audit_events",
            "codes WHERE used_at IS NOT NULL",
        ]
        .map(|of| {
            stage
                .server
                .count(&format!("SELECT count(*) AS n FROM {of}"))
        })
    };
    let before = rows();
    let answer = storage_fails(stage, &flow.web, &code).await;
    stage.expect(1, json_error(&answer, 503, "temporarily_unavailable"));
    stage.check(
        1,
        answer
            .header("retry-after")
            .is_some_and(|secs| secs.parse::<u8>().is_ok()),
        || format!("{:?}", answer.headers),
    );
    stage.check(
        1,
        !answer.body.contains("token\"") && !answer.body.contains("fire"),
        || answer.body.clone(),
    );
    stage.expect(1, logged(&answer, "token.storage_error", ""));
    stage.check(1, rows() == before, || {
        format!("rows were {before:?}, are {:?}", rows())
    });
    stage.expect(1, code_is_active(&flow.web, &code).await);
}

async fn a202_token_error_descriptions_are_fixed_texts(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    for (case, (answer, _, _)) in (1..).zip(every_error(stage, &mut flow).await) {
        stage.expect(case, fixed_text(&answer));
    }
}

/// Checks that an error response of the token endpoint contains only a code, the fixed text of that code or
/// of the HTTP layer, and the correlation id.
pub fn fixed_text(answer: &Answer) -> Result<(), String> {
    const HTTP: [&str; 4] = [
        "The request has more than 16 KiB.",
        "Bodies must not be compressed.",
        "At most 64 fields are accepted.",
        "The address has more than 8 KiB.",
    ];
    const OAUTH: [Code; 8] = [
        Code::InvalidRequest,
        Code::UnauthorizedClient,
        Code::InvalidScope,
        Code::TemporarilyUnavailable,
        Code::InvalidClient,
        Code::InvalidGrant,
        Code::UnsupportedGrantType,
        Code::InvalidTarget,
    ];
    if answer.status == 429 {
        let said = answer.body == r#"{"error":"temporarily_unavailable"}"#;
        return if said {
            Ok(())
        } else {
            Err(answer.body.clone())
        };
    }
    let body = answer.json();
    let members: BTreeSet<&str> = body
        .as_object()
        .map(|members| members.keys().map(String::as_str).collect())
        .unwrap_or_default();
    let (error, text) = (
        body["error"].as_str().unwrap_or_default(),
        body["error_description"].as_str().unwrap_or_default(),
    );
    let known = OAUTH
        .iter()
        .any(|code| code.as_str() == error && code.sentence() == text)
        || (OAUTH.iter().any(|code| code.as_str() == error) && Description::ALL.contains(&text))
        || (error == "invalid_request" && HTTP.contains(&text));
    let quoted = body["error_id"].as_str() == answer.header("x-request-id");
    if known && quoted && members == BTreeSet::from(["error", "error_description", "error_id"]) {
        Ok(())
    } else {
        Err(format!("not from the table: {body}"))
    }
}
