//! Rows of the catalogue: refresh tokens, their reuse and their end.

pub mod answers;
pub mod races;
pub mod reuse;

use crate::expect::{json_error, logged, seen};
use crate::fixtures::{Answer, Server, Tokens};
use crate::token_code::{Flow, severity};
use crate::{Stage, fixtures};

/// What a fresh code of alice buys at `web`.
pub async fn bought(flow: &mut Flow) -> Tokens {
    let code = flow.code().await;
    flow.web.redeems(&code).await.ok()
}

/// What ended the grant behind these tokens, as the database has it: ended, with this many G records.
pub fn grant_ended(server: &Server, tokens: &Tokens, records: i64) -> Result<(), String> {
    let claims = tokens.access_claims();
    let grant = claims["grant_id"].as_str().unwrap();
    let count = |query: &str| server.count(&format!("SELECT count(*) AS n FROM {query}"));
    let found = [
        count(&format!(
            "grants WHERE id = '{grant}' AND ended_at IS NOT NULL"
        )),
        count(&format!(
            "revocations WHERE kind = 'G' AND value = '{grant}'"
        )),
    ];
    if found == [1, records] {
        Ok(())
    } else {
        Err(format!(
            "ended grants and G records: got {found:?}, want 1 and {records}"
        ))
    }
}

/// The refusal of a reused refresh token: told, loud, and the grant has ended with one record.
pub fn reused(stage: &Stage, server: &Server, case: usize, answer: &Answer, tokens: &Tokens) {
    stage.expect(case, json_error(answer, 400, "invalid_grant"));
    stage.expect(case, logged(answer, "token.refresh_reuse", "reused"));
    stage.expect(case, severity(answer, "token.refresh_reuse", "high"));
    stage.expect(case, grant_ended(server, tokens, 1));
}

/// No node takes the access token any more.
pub async fn refused_everywhere(
    nodes: impl Iterator<Item = &Server>,
    tokens: &Tokens,
) -> Result<(), String> {
    for node in nodes {
        let told = node.browser().asks_userinfo("GET", tokens.access()).await;
        if told.status != 401 || told.logged().is_empty() {
            return Err(format!("userinfo: got {}, want 401", seen(&told)));
        }
    }
    Ok(())
}

/// A party at each node of the stage, in turn.
pub fn everywhere(stage: &Stage, party: &fixtures::TestClient) -> Vec<fixtures::TestClient> {
    stage.all().map(|node| party.at(&node.base)).collect()
}
