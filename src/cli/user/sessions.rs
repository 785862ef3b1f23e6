//! `user list-sessions`.

use serde_json::{Value, json};

use super::{find, parse};
use crate::accounts::session::Session;
use crate::cli::command::clock;
use crate::cli::{Output, block_on, open, table};
use crate::config::Config;

pub fn list(config: &Config, username: &str, output: Output) -> anyhow::Result<()> {
    let store = open(config)?;
    let user = find(&store, &parse(username)?)?.id;
    let now = clock().now();
    let idle = config.login.session_idle.0;
    let all = block_on(async { Ok(store.read(move |tx| tx.list_sessions(&user)).await?) })?;
    let sessions: Vec<_> = all
        .into_iter()
        .filter(|session| !session.is_expired(idle, now))
        .collect();
    let facts = |session: &Session| {
        [
            session.login.sid.to_string(),
            session.login.auth_time.to_string(),
            session.seen_at.to_string(),
            session.expires_at.to_string(),
        ]
    };
    let columns = ["sid", "signed in at", "last seen at", "ends at"];
    let rows: Vec<Vec<String>> = sessions.iter().map(|s| facts(s).to_vec()).collect();
    let values: Vec<Value> = sessions
        .iter()
        .map(|session| {
            let [sid, auth_time, seen_at, expires_at] = facts(session);
            json!({ "sid": sid, "auth_time": auth_time, "seen_at": seen_at, "expires_at": expires_at })
        })
        .collect();
    table::print(output, &columns, &rows, &values.into());
    Ok(())
}
