//! Which clients may refresh, for how long, and the tokens they get.

use std::collections::BTreeMap;
use std::time::Duration;

use portcullis::accounts::user::Username;
use portcullis::audit::Actor;
use portcullis::oauth::client::Client;
use portcullis::oauth::request::scope::Scope;
use portcullis::secret::{base64url, sha256};

use super::{redeem_new_code, rejected_on_all_nodes};
use crate::expect::{json_error, logged, summary};
use crate::fixtures::server::{AUDIENCE, PASSWORD, confidential, public, sweep};
use crate::fixtures::{Answer, Tokens};
use crate::token_code::Flow;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a217_refresh_token_of_another_client_is_rejected),
    row!(a218_unauthenticated_refresh_of_confidential_client_is_rejected),
    row!(a219_refresh_scope_never_widens),
    row!(a220_narrowed_refresh_keeps_the_original_scope),
    row!(a221_refresh_tokens_expire_idle_and_absolute),
    row!(a222_refresh_for_disabled_user_or_client_is_rejected),
    row!(a225_refreshed_tokens_keep_their_claims),
    row!(a226_refreshes_are_limited_per_grant),
    row!(a509_unredeemed_codes_do_not_revoke_the_grant),
];

const TOKEN: &str = "/oauth2/token";
const DAY: Duration = Duration::from_secs(86_400);
const SECOND: Duration = Duration::from_secs(1);
/// A node may cache a client registration for this long.
const CACHED: Duration = Duration::from_secs(6);

fn succeeded(stage: &Stage, case: usize, answer: &Answer) {
    stage.check(case, answer.status == 200, || summary(answer));
}

async fn a217_refresh_token_of_another_client_is_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let web2 = confidential("web2", "https://app2.example/cb");
    let web2 = stage.server.register(web2).await;
    let tokens = redeem_new_code(&mut flow).await;
    let answer = web2.refreshes(tokens.refresh(), &[]).await;
    stage.expect(1, json_error(&answer, 400, "invalid_grant"));
    stage.expect(1, logged(&answer, "token.rejected", "client"));
    succeeded(stage, 1, &flow.web.refreshes(tokens.refresh(), &[]).await);
    // The same for a used token: a replay by another client does not revoke the grant.
    stage.server.advance(31 * SECOND);
    let answer = web2.refreshes(tokens.refresh(), &[]).await;
    stage.expect(1, json_error(&answer, 400, "invalid_grant"));
    stage.expect(1, logged(&answer, "token.rejected", "client"));
    let ended = "SELECT count(*) AS n FROM grants WHERE ended_at IS NOT NULL";
    stage.check(1, stage.server.count(ended) == 0, || {
        "a grant ended".to_owned()
    });

    let spa = public("spa", &["https://spa.example/cb"]);
    let spa = stage.server.register(spa).await;
    let native = stage.server.phone().await;
    let code = flow.alice.allows(&spa).await;
    let tokens = spa.redeems(&code).await.ok();
    let answer = native.refreshes(tokens.refresh(), &[]).await;
    stage.expect(2, json_error(&answer, 400, "invalid_grant"));
    stage.expect(2, logged(&answer, "token.rejected", "client"));
    succeeded(stage, 2, &spa.refreshes(tokens.refresh(), &[]).await);
}

async fn a218_unauthenticated_refresh_of_confidential_client_is_rejected(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let tokens = redeem_new_code(&mut flow).await;
    let generation = "SELECT generation AS n FROM grants";
    let before = stage
        .server
        .count(&format!("{generation} ORDER BY created_at DESC LIMIT 1"));
    let fields = [
        ("grant_type", "refresh_token"),
        ("refresh_token", tokens.refresh()),
        ("client_id", flow.web.id()),
    ];
    let answer = flow.web.posts_raw(TOKEN, &[], &fields).await;
    stage.expect(1, json_error(&answer, 401, "invalid_client"));
    stage.expect(1, logged(&answer, "client.auth_failed", ""));
    let after = stage
        .server
        .count(&format!("{generation} ORDER BY created_at DESC LIMIT 1"));
    stage.check(1, before == after, || {
        format!("generation {before} is {after}")
    });
    succeeded(stage, 1, &flow.web.refreshes(tokens.refresh(), &[]).await);
}

async fn a220_narrowed_refresh_keeps_the_original_scope(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let whole = "openid orders:read orders:write";
    let url = flow.web.request(&[("scope", whole)]);
    let code = flow.alice.allows_request(&url).await;
    let tokens = flow.web.redeems(&code).await.ok();
    let narrow = flow
        .web
        .refreshes(tokens.refresh(), &[("scope", "orders:read")]);
    let narrow = narrow.await.ok();
    stage.check(
        1,
        narrow.0["scope"] == "orders:read" && narrow.access_claims()["scope"] == "orders:read",
        || narrow.0.to_string(),
    );
    let web = flow.web.at(&stage.node(1).base);
    let again = web.refreshes(narrow.refresh(), &[]).await.ok();
    stage.check(
        2,
        again.0["scope"] == whole && again.access_claims()["scope"] == whole,
        || again.0.to_string(),
    );
    // A wider scope is rejected, and the refresh token stays valid.
    let more = flow
        .web
        .refreshes(again.refresh(), &[("scope", "openid profile")])
        .await;
    stage.expect(3, json_error(&more, 400, "invalid_scope"));
    succeeded(stage, 3, &flow.web.refreshes(again.refresh(), &[]).await);
}

async fn a221_refresh_tokens_expire_idle_and_absolute(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let expired = |case: usize, answer: &Answer| {
        stage.expect(case, json_error(answer, 400, "invalid_grant"));
        stage.expect(case, logged(answer, "token.expired", ""));
    };
    // 1. Idle: one second before the limit the token is still valid.
    let (rested, spare) = (
        redeem_new_code(&mut flow).await,
        redeem_new_code(&mut flow).await,
    );
    stage.server.advance(14 * DAY - SECOND);
    succeeded(stage, 1, &flow.web.refreshes(spare.refresh(), &[]).await);
    stage.server.advance(2 * SECOND);
    expired(1, &flow.web.refreshes(rested.refresh(), &[]).await);
    // 2. Used daily.
    flow.alice = stage.server.enters("alice").await;
    let mut tokens = redeem_new_code(&mut flow).await;
    for day in 1..30 {
        stage.server.advance(DAY);
        let web = flow.web.at(&stage.node(day).base);
        tokens = web.refreshes(tokens.refresh(), &[]).await.ok();
    }
    stage.server.advance(DAY - SECOND);
    tokens = flow.web.refreshes(tokens.refresh(), &[]).await.ok();
    stage.server.advance(2 * SECOND);
    expired(2, &flow.web.refreshes(tokens.refresh(), &[]).await);
}

async fn a222_refresh_for_disabled_user_or_client_is_rejected(stage: &Stage) {
    // 3. The client loses the grant type.
    let mut flow = Flow::begin(&stage.server).await;
    let tokens = redeem_new_code(&mut flow).await;
    let (web, id) = (flow.web.clone(), flow.web.id().to_owned());
    let change = |what: &str| {
        stage
            .server
            .execute(&format!("UPDATE clients SET {what} WHERE id = '{id}'"));
        stage.server.advance(CACHED);
    };
    change("grant_types = '[\"authorization_code\"]'");
    let answer = flow.web.refreshes(tokens.refresh(), &[]).await;
    stage.expect(3, json_error(&answer, 400, "unauthorized_client"));
    stage.expect(3, logged(&answer, "token.rejected", "grant_type"));
    change("grant_types = '[\"authorization_code\",\"refresh_token\"]'");
    let tokens = flow.web.refreshes(tokens.refresh(), &[]).await.ok();
    // 1. The user is disabled.
    let now = stage.server.clock.now();
    stage
        .server
        .write(move |tx| {
            let alice = Username::parse("alice").unwrap();
            let (user, _) = tx.find_credentials(&alice)?.unwrap();
            tx.disable_user(&user.id, &Actor::Operator, now)
        })
        .await;
    for node in stage.all() {
        let answer = flow
            .web
            .at(&node.base)
            .refreshes(tokens.refresh(), &[])
            .await;
        stage.expect(1, json_error(&answer, 400, "invalid_grant"));
        stage.expect(1, logged(&answer, "token.rejected", "grant_ended"));
    }
    stage.expect(1, rejected_on_all_nodes(stage.all(), &tokens).await);
    // 2. The client is deleted.
    stage
        .server
        .write(move |tx| tx.delete_client(&flow.web.client.id, &Actor::Operator, now))
        .await;
    stage.server.advance(CACHED);
    for node in stage.all() {
        let answer = web.at(&node.base).refreshes(tokens.refresh(), &[]).await;
        stage.expect(2, json_error(&answer, 401, "invalid_client"));
        stage.expect(2, logged(&answer, "client.auth_failed", ""));
    }
}

async fn a225_refreshed_tokens_keep_their_claims(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let first = redeem_new_code(&mut flow).await;
    stage.server.advance(100 * SECOND);
    let second = flow.web.refreshes(first.refresh(), &[]).await.ok();
    let (before, after) = (first.id_claims(), second.id_claims());
    for name in ["iss", "sub", "auth_time", "aud", "azp", "sid", "acr", "amr"] {
        stage.check(1, before.get(name) == after.get(name), || {
            format!("{name}: {before} {after}")
        });
    }
    stage.check(
        1,
        after
            .get("nonce")
            .is_none_or(|nonce| *nonce == before["nonce"]),
        || after.to_string(),
    );
    let seconds = |claims: &serde_json::Value, name: &str| claims[name].as_u64().unwrap();
    stage.check(
        1,
        seconds(&after, "iat") == seconds(&before, "iat") + 100
            && seconds(&after, "exp") == seconds(&before, "exp") + 100,
        || after.to_string(),
    );
    let at_hash = base64url(&sha256(second.access().as_bytes())[..16]);
    stage.check(1, after["at_hash"] == at_hash.as_str(), || {
        after.to_string()
    });
    let (before, after) = (first.access_claims(), second.access_claims());
    for name in [
        "iss",
        "sub",
        "aud",
        "client_id",
        "auth_time",
        "sid",
        "grant_id",
        "rev",
    ] {
        stage.check(
            2,
            before[name] == after[name] && after[name] != serde_json::Value::Null,
            || format!("{name}: {before} {after}"),
        );
    }
    stage.check(
        2,
        seconds(&after, "iat") == seconds(&before, "iat") + 100 && after["jti"] != before["jti"],
        || after.to_string(),
    );
}

/// Returns the number of rows of every table.
fn sizes(stage: &Stage) -> BTreeMap<&'static str, i64> {
    let tables = [
        "users",
        "clients",
        "client_secrets",
        "sessions",
        "authorizations",
        "codes",
        "grants",
        "consents",
        "revocations",
        "audit_events",
        "signing_keys",
        "server_secrets",
    ];
    tables
        .map(|table| {
            (
                table,
                stage
                    .server
                    .count(&format!("SELECT count(*) AS n FROM {table}")),
            )
        })
        .into()
}

async fn a226_refreshes_are_limited_per_grant(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let mut tokens = redeem_new_code(&mut flow).await;
    let before = sizes(stage);
    let nodes = super::on_all_nodes(stage, &flow.web);
    for n in 0..150 {
        // At the limit of a grant: 30 per minute.
        stage.server.advance(2 * SECOND);
        tokens = nodes[n % nodes.len()]
            .refreshes(tokens.refresh(), &[])
            .await
            .ok();
    }
    stage.check(1, sizes(stage) == before, || {
        format!("tables had {before:?}, have {:?}", sizes(stage))
    });
    let generation = "SELECT max(generation) AS n FROM grants";
    stage.check(1, stage.server.count(generation) == 150, || {
        format!("generation {}", stage.server.count(generation))
    });
    // Above the limit: 30 succeed, then 429, and the refused token is still valid.
    stage.server.advance(60 * SECOND);
    for _ in 0..30 {
        tokens = nodes[0].refreshes(tokens.refresh(), &[]).await.ok();
    }
    let refused = nodes[0].refreshes(tokens.refresh(), &[]).await;
    let is_limited = (refused.status, refused.header("retry-after")) == (429, Some("2"));
    stage.check(2, is_limited, || summary(&refused));
    stage.expect(2, logged(&refused, "ratelimit.hit", "refresh"));
    stage.server.advance(2 * SECOND);
    let again = nodes[0].refreshes(tokens.refresh(), &[]).await;
    stage.check(2, again.status == 200, || summary(&again));
}

/// Returns the scopes of the token response and of the access token, sorted.
fn scopes(tokens: &Tokens) -> (String, String) {
    let text = |value: &serde_json::Value| value["scope"].as_str().unwrap_or_default().to_owned();
    (text(&tokens.0), text(&tokens.access_claims()))
}

async fn a219_refresh_scope_never_widens(stage: &Stage) {
    let mut flow = Flow::begin(&stage.server).await;
    let whole = "openid offline_access orders:read orders:write";
    let url = flow.web.request(&[("scope", whole)]);
    let (code, spare) = (
        flow.alice.allows_request(&url).await,
        flow.alice.allows_request(&url).await,
    );
    let tokens = flow.web.redeems(&code).await.ok();
    let registered = async |change: fn(&mut Client)| {
        stage.server.alter(&flow.web.client.id, change).await;
        stage.server.advance(CACHED);
    };
    // 1. Wider than the granted scope.
    let wider = [("scope", "openid profile")];
    let answer = flow.web.refreshes(tokens.refresh(), &wider).await;
    stage.expect(1, json_error(&answer, 400, "invalid_scope"));
    stage.expect(1, logged(&answer, "token.rejected", "scope"));
    // 2. The client loses a scope: refresh without and with `scope`, and exchange of a code.
    registered(|client| {
        client.scopes = Scope::parse("openid offline_access orders:read").unwrap();
    })
    .await;
    let narrow = "openid offline_access orders:read";
    let (narrow_pair, at) = ((narrow.to_owned(), narrow.to_owned()), stage.node(1));
    let mut tokens = flow.web.refreshes(tokens.refresh(), &[]).await.ok();
    stage.check(2, scopes(&tokens) == narrow_pair, || tokens.0.to_string());
    let named = [("scope", whole)];
    tokens = flow
        .web
        .at(&at.base)
        .refreshes(tokens.refresh(), &named)
        .await
        .ok();
    stage.check(2, scopes(&tokens) == narrow_pair, || tokens.0.to_string());
    let exchanged = flow.web.redeems(&spare).await.ok();
    stage.check(3, scopes(&exchanged) == narrow_pair, || {
        exchanged.0.to_string()
    });
    // 4. The client loses `offline_access`. Nothing is consumed: when it is restored, the grant works again.
    let url = flow.web.request(&[("scope", narrow)]);
    let offline = flow.alice.allows_request(&url).await;
    registered(|client| client.scopes = Scope::parse("openid orders:read").unwrap()).await;
    for web in super::on_all_nodes(stage, &flow.web) {
        let answer = web.refreshes(tokens.refresh(), &[]).await;
        stage.expect(4, json_error(&answer, 400, "invalid_grant"));
        stage.expect(4, logged(&answer, "token.rejected", "scope"));
    }
    let answer = flow.web.redeems(&offline).await;
    stage.expect(4, json_error(&answer, 400, "invalid_grant"));
    registered(|client| {
        client.scopes = Scope::parse("openid offline_access orders:read").unwrap();
    })
    .await;
    stage.server.advance(60 * SECOND);
    tokens = flow.web.refreshes(tokens.refresh(), &[]).await.ok();
    // 5. The client loses the resource.
    registered(|client| client.resources.clear()).await;
    let answer = flow.web.refreshes(tokens.refresh(), &[]).await;
    stage.expect(5, json_error(&answer, 400, "invalid_target"));
    registered(|client| client.resources = vec![AUDIENCE.to_owned()]).await;
    stage.server.advance(60 * SECOND);
    tokens = flow.web.refreshes(tokens.refresh(), &[]).await.ok();
    // 6. The client loses all granted scopes.
    registered(|client| client.scopes = Scope::parse("offline_access profile").unwrap()).await;
    let only = flow.web.refreshes(tokens.refresh(), &[]).await;
    stage.expect(6, json_error(&only, 400, "invalid_grant"));
    registered(|client| client.scopes = Scope::parse("openid offline_access").unwrap()).await;
    // 7. The client loses the redirect URI to which a code was sent.
    let code = flow.alice.allows(&flow.web).await;
    registered(|client| client.redirect_uris = vec!["https://new.example/cb".to_owned()]).await;
    let answer = flow.web.redeems(&code).await;
    stage.expect(7, json_error(&answer, 400, "invalid_grant"));
    stage.expect(7, logged(&answer, "token.rejected", "redirect_uri"));
}

async fn a509_unredeemed_codes_do_not_revoke_the_grant(stage: &Stage) {
    let spa = public("spa", &["https://spa.example/cb"]);
    let spa = stage.server.register(spa).await;
    let mut alice = stage.server.browser();
    let scope = [("scope", "openid offline_access")];
    let page = alice.opens(&spa.request(&scope)).await;
    let page = alice.fills_in(&page, "alice", PASSWORD).await;
    let back = alice.decides(&page, "allow").await;
    let tokens = spa.redeems(&back.callback("code").unwrap()).await.ok();
    let silent = spa.request(&[("scope", "openid offline_access"), ("prompt", "none")]);
    let revoked = "SELECT count(*) AS n FROM revocations";
    let before = stage.server.count(revoked);
    for n in 0..25 {
        stage.server.advance(SECOND);
        let answer = alice.at(&stage.node(n).base).get(&silent).await;
        stage.check(1, answer.callback("code").is_some(), || summary(&answer));
    }
    let after = stage.server.count(revoked);
    stage.check(2, after == before, || {
        format!("{} feed records", after - before)
    });
    let next = spa.refreshes(tokens.refresh(), &[]).await;
    succeeded(stage, 3, &next);
    // Codes that were never redeemed are deleted by the clean-up.
    stage.server.advance(12 * 60 * SECOND);
    let now = stage.server.clock.now();
    stage.server.write(move |tx| sweep(tx, now)).await;
    let left = stage.server.count("SELECT count(*) AS n FROM grants");
    stage.check(4, left == 1, || format!("{left} grants"));
    succeeded(stage, 4, &spa.refreshes(next.ok().refresh(), &[]).await);
}
