//! The lifetime and the end of a session.

use std::time::{Duration, Instant};

use portcullis::accounts::password::Password;
use portcullis::accounts::user::Username;
use portcullis::audit::{Actor, Event, Name, RevocationReason, Target};
use portcullis::config::Argon2;
use portcullis::secret::{from_base64url, sha256};

use super::{LoginForm, RANDOM, SESSION, failed, is_unknown_session, passed, sessions, signed_in};
use crate::expect::{json_error, logged, login_page, redirected, summary};
use crate::fixtures::server::PASSWORD;
use crate::fixtures::{Answer, Db, Server};
use crate::token_code::Flow;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a132_altered_session_ids_are_not_signed_in),
    row!(a133_idle_and_old_sessions_expire),
    row!(a134_logout_ends_the_session_on_every_node),
    row!(a136_password_change_revokes_sessions_codes_and_tokens),
    row!(a501_rehash_never_restores_a_replaced_password),
];

async fn a132_altered_session_ids_are_not_signed_in(stage: &Stage) {
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
        is_unknown_session(stage, case, stage.node(case), &web, value).await;
    }
    // One byte of the stored hash is changed, because the whole hash must be compared.
    stage.check(6, signed_in(&stage.server, &web, &real).await.0, || {
        "the real one is not signed in".to_owned()
    });
}

async fn a133_idle_and_old_sessions_expire(stage: &Stage) {
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
    // 1. Idle since the login. Nothing was granted in this session.
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
    // 2. Absolute lifetime, although the session is used each minute. Its grants depend on the row, which
    //    stays without its cookie.
    let mut alice = stage.server.browser();
    alice.signs_in(&web, "alice").await;
    let kept = alice.cookies[SESSION].clone();
    stage.check(2, rows(&kept) == 1, || "no row of this cookie".to_owned());
    let silent = web.request(&[("prompt", "none")]);
    // Used each minute for an hour, then just often enough, because every use writes.
    let minutes: Vec<u64> = (1..60).chain((60..720).step_by(20)).chain([719]).collect();
    let mut passed = 0;
    for minute in minutes {
        stage
            .server
            .advance(Duration::from_secs(60 * (minute - passed)));
        passed = minute;
        let node = stage.node(usize::try_from(minute).unwrap());
        let answer = alice.at(&node.base).get(&silent).await;
        stage.check(2, answer.callback("code").is_some(), || {
            format!("over after {minute} min: {}", summary(&answer))
        });
    }
    stage.server.advance(Duration::from_secs(61));
    let (is_in, answer) = signed_in(&stage.server, &web, &kept).await;
    stage.check(2, !is_in, || summary(&answer));
    stage.expect(2, logged(&answer, "session.expired", "absolute"));
    stage.check(2, rows(&kept) == 0, || {
        "the row still has its cookie".to_owned()
    });
    // 3. Replayed.
    for (node, cookie) in stage.all().zip([&cookie, &kept, &cookie]) {
        is_unknown_session(stage, 3, node, &web, cookie).await;
    }
    is_unknown_session(stage, 3, &stage.server, &web, &kept).await;
}

async fn a134_logout_ends_the_session_on_every_node(stage: &Stage) {
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
            && out.body.contains("signed out")
            && !alice.cookies.contains_key(SESSION),
        || summary(&out),
    );
    for (case, node) in (1..).zip(stage.all()) {
        is_unknown_session(stage, case, node, &web, &cookie).await;
    }
}

/// Changes a password as an operator does, including the revocation.
async fn change_password(server: &Server, password: &str) {
    let phc = hashed(server, password, &server.app.config.login.argon2);
    replaces_hash(server, phc).await;
}

fn hashed(server: &Server, password: &str, cost: &Argon2) -> String {
    let password = Password::parse(password).unwrap();
    password.hash(cost, &server.app.entropy).unwrap()
}

/// Runs the transaction of `user set-password` with a hashed password.
async fn replaces_hash(server: &Server, phc: String) {
    let now = server.clock.now();
    server
        .write(move |tx| {
            let (user, _) = tx
                .find_credentials(&Username::parse("alice").unwrap())?
                .unwrap();
            tx.put_password(&user.id, &phc, now)?;
            tx.revoke_all_for_user(
                &user.id,
                &RevocationReason::PasswordChanged,
                &Actor::Operator,
                now,
            )?;
            tx.put_audit(&Event {
                at: now,
                name: Name::UserCredentialChanged,
                actor: Actor::Operator,
                target: Target::User(user.id.clone()),
                reason: None,
                detail: serde_json::json!({}),
            })
        })
        .await;
}

async fn a136_password_change_revokes_sessions_codes_and_tokens(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let (code, spent) = (flow.code().await, flow.code().await);
    let bought = flow.web.redeems(&spent).await.ok();
    let tokens = bought.access_claims();
    let cookie = flow.alice.cookies[SESSION].clone();
    let new = "a quite different sentence";
    change_password(&stage.server, new).await;
    for (case, node) in (1..).zip(stage.all()) {
        is_unknown_session(stage, case, node, &flow.web, &cookie).await;
    }
    let answer = flow.web.at(&stage.node(1).base).redeems(&code).await;
    stage.expect(4, json_error(&answer, 400, "invalid_grant"));
    stage.expect(4, logged(&answer, "token.rejected", ""));
    let answer = flow.web.refreshes(bought.refresh(), &[]).await;
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
        format!("userinfo: {}", summary(&told))
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
    let mut login_form = LoginForm::opens(&stage.server, &flow.web).await;
    stage.expect(6, failed(&login_form.tries("alice", PASSWORD).await));
    stage.expect(6, passed(&login_form.tries("alice", new).await));
    // 7. Codes and refreshes raced with the change: tokens that are still issued began before it, the
    //    record matches them, and they cannot be refreshed.
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
            actix_web::rt::spawn(async move { other.refreshes(&held, &[]).await }),
        ];
        current = format!("sentence number {round} of alice");
        change_password(&stage.server, &current).await;
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
            let next = flow.web.refreshes(minted.refresh(), &[]).await;
            stage.expect(7, json_error(&next, 400, "invalid_grant"));
        }
        let late = alice.get(&flow.web.request(&[("prompt", "none")])).await;
        stage.expect(7, redirected(&late, "login_required", Some("st-4711")));
    }
}

async fn a501_rehash_never_restores_a_replaced_password(stage: &Stage) {
    let web = stage.server.shop().await;
    // The cost differs from the configuration, so each login renews the hash.
    let outdated = Argon2 {
        passes: 3,
        ..stage.server.app.config.login.argon2
    };
    let password = |round: usize| format!("gravel-otter-{round}-lamp");
    replaces_hash(
        &stage.server,
        hashed(&stage.server, &password(0), &outdated),
    )
    .await;
    for round in 0..12 {
        // Failures of an earlier round must not delay this one.
        stage.server.advance(Duration::from_secs(3_600));
        let node = stage.node(round);
        let (old, new) = (password(round), password(round + 1));
        let replacement = hashed(node, &new, &outdated);
        let mut login_form = LoginForm::opens(node, &web.at(&node.base)).await;
        let typed = old.clone();
        let racing = actix_web::rt::spawn(async move { login_form.tries("alice", &typed).await });
        let begun = Instant::now();
        while node.app.hashing().0 == 0 && !racing.is_finished() {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "nothing is hashed"
            );
            actix_web::rt::task::yield_now().await;
        }
        replaces_hash(&stage.server, replacement).await;
        let answer = racing.await.unwrap();
        match passed(&answer) {
            Ok(()) => {
                let cookie = set_cookie(&answer, SESSION).unwrap_or_default();
                is_unknown_session(stage, 1, node, &web, &cookie).await;
            }
            Err(_) => {
                stage.expect(1, login_page(&answer));
                stage.expect(1, logged(&answer, "login.failed", ""));
            }
        }
        let mut login_form = LoginForm::opens(node, &web.at(&node.base)).await;
        let answer = login_form.tries("alice", &old).await;
        stage.check(2, failed(&answer).is_ok(), || {
            format!("round {round}, the old password: {}", summary(&answer))
        });
        let answer = login_form.tries("alice", &new).await;
        stage.check(3, passed(&answer).is_ok(), || {
            format!("round {round}, the new password: {}", summary(&answer))
        });
    }
    let changed = "SELECT count(*) AS n FROM audit_events WHERE name = 'user.credential_changed'";
    let changed = stage.server.count(changed);
    stage.check(4, changed == 13, || {
        format!("{changed} changes are audited")
    });
}

/// Returns the value of a cookie that a response sets.
fn set_cookie(answer: &Answer, name: &str) -> Option<String> {
    let cookies = answer.headers.get_all("set-cookie").iter();
    let mut pairs = cookies.filter_map(|cookie| cookie.to_str().ok()?.split(';').next());
    let pair = pairs.find(|pair| pair.starts_with(&format!("{name}=")))?;
    Some(pair[name.len() + 1..].to_owned())
}

/// Returns the auth epoch of the user in an access token.
fn user_epoch(claims: &serde_json::Value) -> i64 {
    let rev: portcullis_verifier::Rev = serde_json::from_value(claims["rev"].clone()).unwrap();
    i64::try_from(rev.user_epoch.unwrap()).unwrap()
}
