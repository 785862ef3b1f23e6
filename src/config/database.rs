//! Section `database`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, is_loopback_host};

/// The database and the number of connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `postgres://…` or `sqlite:PATH`. Default: `sqlite:<data_dir>/portcullis.db`. Alias `DATABASE_URL`.
    pub url: Option<String>,
    /// A file with the URL, which may contain a password.
    pub url_file: Option<PathBuf>,
    /// Whether only the database and these servers use the network between them, as in the compose file.
    /// Then the connection need not be encrypted. Default false.
    pub private_network: bool,
    /// Number of connections of this node. Default 16.
    pub pool_size: u32,
    /// Whether to migrate the schema at start. Default: true on SQLite, false on PostgreSQL.
    pub auto_migrate: Option<bool>,
}

impl Default for Database {
    fn default() -> Self {
        Self {
            url: None,
            url_file: None,
            private_network: false,
            pool_size: 16,
            auto_migrate: None,
        }
    }
}

impl Database {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(1..=1_000).contains(&self.pool_size) {
            return Err(ConfigError::key("database.pool_size", "must be 1 to 1000"));
        }
        let url = self.url.as_deref().unwrap_or("sqlite:");
        if !["sqlite:", "postgres://", "postgresql://"]
            .iter()
            .any(|scheme| url.starts_with(scheme))
        {
            return Err(ConfigError::key(
                "database.url",
                "must begin with postgres://, postgresql:// or sqlite:",
            ));
        }
        let link = Link::of(url);
        if let Some(mode) = link.sslmode
            && link.is_remote
            && !self.private_network
            && mode != VERIFIED
        {
            return Err(ConfigError::key(
                "database.url",
                format!(
                    "sslmode={mode} lets an attacker on the network read the connection or impersonate the database; remove it or use {VERIFIED}, or set `database.private_network` if the network is private"
                ),
            ));
        }
        Ok(())
    }

    /// Returns the URL to connect to. A server on another machine must present a valid certificate unless the
    /// network is private.
    pub(super) fn secured(&self, url: String) -> String {
        let link = Link::of(&url);
        if link.sslmode.is_some() || !link.is_remote || self.private_network {
            return url;
        }

        let separator = if url.contains('?') { '&' } else { '?' };
        format!("{url}{separator}sslmode={VERIFIED}")
    }
}

/// The only `sslmode` of libpq that checks certificate and host name.
const VERIFIED: &str = "verify-full";

/// The parts of a PostgreSQL URL that determine whether the connection is encrypted.
struct Link {
    is_remote: bool,
    sslmode: Option<String>,
}

impl Link {
    /// Parses a URL as libpq does: hosts in the authority or in the query, several of them or none. A socket
    /// is a path, and libpq ignores `sslmode` for it.
    fn of(url: &str) -> Self {
        let local = Self {
            is_remote: false,
            sslmode: None,
        };
        let Some((_, rest)) = url.split_once("://") else {
            return local;
        };
        let (main, query) = rest.split_once('?').unwrap_or((rest, ""));
        let authority = main.split('/').next().unwrap_or_default();
        let hosts = authority.rsplit('@').next().unwrap_or_default();
        let mut is_remote = hosts.split(',').any(|host| !is_local(without_port(host)));
        let mut sslmode = None;
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "host" | "hostaddr" => is_remote |= !value.split(',').all(is_local),
                // libpq takes the last one.
                "sslmode" => sslmode = Some(value.into_owned()),
                _ => {}
            }
        }
        Self { is_remote, sslmode }
    }
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(literal) => literal.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

/// Returns whether a host is this machine: no host at all, a socket, or loopback.
fn is_local(host: &str) -> bool {
    host.is_empty() || host.starts_with(['/', '@', '%']) || is_loopback_host(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(url: &str, private_network: bool) -> Result<String, String> {
        let database = Database {
            url: Some(url.to_owned()),
            private_network,
            ..Database::default()
        };
        database.check().map_err(|refused| refused.0)?;
        Ok(database.secured(url.to_owned()))
    }

    #[test]
    fn remote_server_requires_verified_tls() {
        for (url, secured) in [
            (
                "postgres://db.example/p",
                "postgres://db.example/p?sslmode=verify-full",
            ),
            (
                "postgresql://u:p%40w@10.0.0.7:6432/p?application_name=x",
                "postgresql://u:p%40w@10.0.0.7:6432/p?application_name=x&sslmode=verify-full",
            ),
            (
                "postgres://127.0.0.1,db.example/p",
                "postgres://127.0.0.1,db.example/p?sslmode=verify-full",
            ),
            (
                "postgres:///p?host=db.example",
                "postgres:///p?host=db.example&sslmode=verify-full",
            ),
            (
                "postgres://localhost/p?hostaddr=192.0.2.1",
                "postgres://localhost/p?hostaddr=192.0.2.1&sslmode=verify-full",
            ),
            (
                "postgres://[2001:db8::1]:5432/p",
                "postgres://[2001:db8::1]:5432/p?sslmode=verify-full",
            ),
        ] {
            assert_eq!(opened(url, false).as_deref(), Ok(secured));
            assert_eq!(opened(url, true).as_deref(), Ok(url), "its own network");
        }
    }

    #[test]
    fn local_server_needs_no_tls() {
        for url in [
            "postgres:///p",
            "postgres:///p?host=/run/postgresql&user=u",
            "postgres://%2Frun%2Fpostgresql/p",
            "postgres://u@localhost:5432/p",
            "postgres://127.0.0.1,[::1]/p?sslmode=disable",
            "sqlite:portcullis.db",
        ] {
            assert_eq!(opened(url, false).as_deref(), Ok(url));
        }
    }

    #[test]
    fn weak_sslmode_is_rejected() {
        for mode in ["disable", "allow", "prefer", "require", "verify-ca", ""] {
            let url = format!("postgres://u:secret@db.example/p?sslmode={mode}");
            let why = opened(&url, false).unwrap_err();
            assert!(
                why.contains("database.url") && !why.contains("secret"),
                "{why}"
            );
            assert_eq!(opened(&url, true), Ok(url));
        }
        let strict = "postgres://db.example/p?sslmode=verify-full";
        assert_eq!(opened(strict, false).as_deref(), Ok(strict));
    }
}
