//! Refreshes raced with each other and with revocations. `races` has thousands of rounds.

use portcullis::accounts::user::Username;
use portcullis::audit::{Actor, RevocationReason};

use super::{grant_is_revoked, on_all_nodes, redeem_new_code, rejected_on_all_nodes};
use crate::expect::{json_error, logged, summary};
use crate::fixtures::{Answer, Browser, Db, Server, TestClient, Tokens};
use crate::token_code::Flow;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a212_concurrent_refreshes_without_grace_succeed_once),
    row!(a216_refresh_racing_revocation_never_survives_it),
];

async fn a212_concurrent_refreshes_without_grace_succeed_once(stage: &Stage) {
    let own = Server::with(stage.db(), |config| {
        config.tokens.refresh_grace = "0s".parse().unwrap();
        // Of 64 requests that wait for one row, none may wait for a connection too.
        config.database.pool_size = 32;
    })
    .await;
    let mut nodes = Vec::new();
    if stage.db() == Db::Postgres {
        nodes = vec![own.node().await, own.node().await];
    }
    let mut flow = Flow::begin(&own).await;
    let clients: Vec<TestClient> = std::iter::once(&own)
        .chain(&nodes)
        .map(|node| flow.web.at(&node.base))
        .collect();
    for (case, n) in (1..).zip([2, 4, 8, 16, 32, 64]) {
        for _ in 0..2 {
            let tokens = redeem_new_code(&mut flow).await;
            let answers = refresh_concurrently(&clients, tokens.refresh(), n).await;
            let (won, lost): (Vec<_>, Vec<_>) =
                answers.iter().partition(|answer| answer.status == 200);
            stage.check(case, won.len() == 1, || format!("{} of {n} won", won.len()));
            for answer in &lost {
                stage.expect(case, json_error(answer, 400, "invalid_grant"));
            }
            let reuse = |answer: &&&Answer| logged(answer, "token.refresh_reuse", "reused").is_ok();
            stage.check(case, lost.iter().any(|answer| reuse(&answer)), || {
                "no reuse alert was logged".to_owned()
            });
            stage.expect(case, grant_is_revoked(&own, &tokens, 1));
        }
    }
    for node in nodes {
        node.stop().await;
    }
    own.remove().await;
}

/// Sends `n` refreshes of one token at once, spread over all nodes.
async fn refresh_concurrently(clients: &[TestClient], token: &str, n: usize) -> Vec<Answer> {
    let racers = (0..n).map(|racer| {
        let (web, token) = (clients[racer % clients.len()].clone(), token.to_owned());
        actix_web::rt::spawn(async move { web.refreshes(&token, &[]).await })
    });
    let mut answers = Vec::new();
    for racer in racers.collect::<Vec<_>>() {
        answers.push(racer.await.unwrap());
    }
    answers
}

/// An action that revokes a refresh token.
#[derive(Clone, Copy)]
enum RevokingAction {
    Revocation,
    Logout,
    ConsentRemoval,
    PasswordChange,
}

impl RevokingAction {
    /// Performs the action and waits for the response.
    async fn perform(
        self,
        server: &Server,
        web: &TestClient,
        alice: &mut Browser,
        tokens: &Tokens,
    ) {
        match self {
            Self::Revocation => assert_eq!(web.revokes(tokens.refresh()).await.status, 200),
            Self::Logout => assert_eq!(alice.signs_out().await.status, 200),
            // There is no page yet that withdraws a consent.
            Self::ConsentRemoval => server.execute(&format!(
                "UPDATE consents SET ended_at = {} WHERE ended_at IS NULL",
                server.clock.now().micros()
            )),
            Self::PasswordChange => change_password(server).await,
        }
    }

    /// Returns the record that matches the tokens of the grant, as a condition on `revocations`.
    fn record(self, tokens: &Tokens) -> Option<String> {
        let claims = tokens.access_claims();
        let text = |name: &str| claims[name].as_str().unwrap().to_owned();
        match self {
            Self::Revocation => Some(format!("kind = 'G' AND value = '{}'", text("grant_id"))),
            Self::Logout => Some(format!("kind = 'S' AND value = '{}'", text("sid"))),
            Self::ConsentRemoval => None,
            Self::PasswordChange => {
                let rev: portcullis_verifier::Rev =
                    serde_json::from_value(claims["rev"].clone()).unwrap();
                Some(format!(
                    "kind = 'U' AND value = '{}' AND floor > {}",
                    text("sub"),
                    rev.user_epoch.unwrap()
                ))
            }
        }
    }
}

/// Keeps the password hash: the row is about the revocation that comes with a change.
async fn change_password(server: &Server) {
    let now = server.clock.now();
    server
        .write(move |tx| {
            let alice = Username::parse("alice").unwrap();
            let (user, phc) = tx.find_credentials(&alice)?.unwrap();
            tx.put_password(&user.id, &phc.unwrap(), now)?;
            tx.revoke_all_for_user(
                &user.id,
                &RevocationReason::PasswordChanged,
                &Actor::Operator,
                now,
            )
        })
        .await;
}

async fn a216_refresh_racing_revocation_never_survives_it(stage: &Stage) {
    let web = stage.server.shop().await;
    let acts = [
        RevokingAction::Revocation,
        RevokingAction::Logout,
        RevokingAction::ConsentRemoval,
        RevokingAction::PasswordChange,
    ];
    for (case, act) in (1..).zip(acts) {
        // Once in sequence, then three times concurrently.
        for round in 0..4 {
            let mut alice = stage.server.enters("alice").await;
            let code = alice.allows(&web).await;
            let tokens = web.redeems(&code).await.ok();
            let (one, other) = (stage.node(round), stage.node(round + 1));
            let (here, there) = (web.at(&one.base), web.at(&other.base));
            let mut alice = alice.at(&other.base);
            let mut held = tokens.clone();
            if round == 0 {
                act.perform(other, &there, &mut alice, &tokens).await;
            } else {
                let token = tokens.refresh().to_owned();
                let refresh =
                    actix_web::rt::spawn(async move { here.refreshes(&token, &[]).await });
                act.perform(other, &there, &mut alice, &tokens).await;
                let answer = refresh.await.unwrap();
                if answer.status == 200 {
                    held = answer.ok();
                } else {
                    stage.expect(case, json_error(&answer, 400, "invalid_grant"));
                }
            }
            // No later refresh succeeds, and the record matches the tokens that the race issued.
            for web in on_all_nodes(stage, &web) {
                for token in [tokens.refresh(), held.refresh()] {
                    let late = web.refreshes(token, &[]).await;
                    stage.check(case, late.status == 400, || {
                        format!("round {round}: {}", summary(&late))
                    });
                }
            }
            stage.expect(case, rejected_on_all_nodes(stage.all(), &held).await);
            if let Some(record) = act.record(&held) {
                let query = format!("SELECT count(*) AS n FROM revocations WHERE {record}");
                stage.check(case, stage.server.count(&query) > 0, || {
                    format!("round {round}: no record {record}")
                });
            }
        }
    }
}
