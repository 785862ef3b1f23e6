//! Rows of the catalogue: refresh tokens, their rotation, reuse and revocation.

pub mod answers;
pub mod races;
pub mod reuse;

use crate::expect::{json_error, logged, summary};
use crate::fixtures::{Answer, Server, Tokens};
use crate::token_code::{Flow, severity};
use crate::{Stage, fixtures};

/// Gets a new code of alice and exchanges it for tokens of `web`.
pub async fn redeem_new_code(flow: &mut Flow) -> Tokens {
    let code = flow.code().await;
    flow.web.redeems(&code).await.ok()
}

/// Checks that the grant of these tokens is revoked in the database, with this many G records.
pub fn grant_is_revoked(server: &Server, tokens: &Tokens, records: i64) -> Result<(), String> {
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
            "revoked grants and G records: got {found:?}, want 1 and {records}"
        ))
    }
}

/// Checks that reuse is rejected, is logged with high severity, and revoked the grant with one record.
pub fn reuse_is_rejected(
    stage: &Stage,
    server: &Server,
    case: usize,
    answer: &Answer,
    tokens: &Tokens,
) {
    stage.expect(case, json_error(answer, 400, "invalid_grant"));
    stage.expect(case, logged(answer, "token.refresh_reuse", "reused"));
    stage.expect(case, severity(answer, "token.refresh_reuse", "high"));
    stage.expect(case, grant_is_revoked(server, tokens, 1));
}

/// Checks that all nodes reject the access token.
pub async fn rejected_on_all_nodes(
    nodes: impl Iterator<Item = &Server>,
    tokens: &Tokens,
) -> Result<(), String> {
    for node in nodes {
        let told = node.browser().asks_userinfo("GET", tokens.access()).await;
        if told.status != 401 || told.logged().is_empty() {
            return Err(format!("userinfo: got {}, want 401", summary(&told)));
        }
    }
    Ok(())
}

/// Returns the client for each node of the stage, in order.
pub fn on_all_nodes(stage: &Stage, client: &fixtures::TestClient) -> Vec<fixtures::TestClient> {
    stage.all().map(|node| client.at(&node.base)).collect()
}
