//! One installation has one issuer: the last server on a database stores its own, and commands warn if theirs is
//! another one, because a link or a token for another issuer is of no use.

use super::command::read;
use crate::config::Config;
use crate::db::Store;

/// Warns if the last server on this database had another issuer than this configuration.
pub fn warn_of_another(config: &Config, store: &Store) -> anyhow::Result<()> {
    let configured = config.issuer()?;
    let served = read(store, |tx| tx.served_issuer())?;
    if let Some(served) = served.filter(|served| served != configured.as_str()) {
        tracing::warn!(
            event = "config.other_issuer",
            reason = "command",
            served,
            configured = configured.as_str(),
            "the last server on this database has the issuer {served}, but this configuration has {configured}; run this command with the configuration of the server"
        );
    }
    Ok(())
}
