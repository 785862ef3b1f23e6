//! Section `database`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, is_loopback_host};

/// Which database, and how many connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `postgres://…` or `sqlite:PATH`. Default: `sqlite:<data_dir>/portcullis.db`. Alias `DATABASE_URL`.
    pub url: Option<String>,
    /// A file that holds the URL, since it may hold a password.
    pub url_file: Option<PathBuf>,
    /// Says that nobody but the database and these servers is on the network between them, as in the
    /// compose file: then the link need not be encrypted. Default no.
    pub private_network: bool,
    /// Connections of this node. Default 16.
    pub pool_size: u32,
    /// Whether to bring the schema up to date at start. Default: yes on SQLite, no on Postgres.
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
                    "sslmode={mode} lets others read or answer for the database; leave it out or write {VERIFIED}, or say `database.private_network` where that is so"
                ),
            ));
        }
        Ok(())
    }

    /// `url` as it is opened: a server on another machine proves who it is, unless the network is ours.
    pub(super) fn secured(&self, url: String) -> String {
        let link = Link::of(&url);
        if link.sslmode.is_some() || !link.is_remote || self.private_network {
            return url;
        }
        let joint = if url.contains('?') { '&' } else { '?' };
        format!("{url}{joint}sslmode={VERIFIED}")
    }
}

/// The only `sslmode` of libpq that checks certificate and host name.
const VERIFIED: &str = "verify-full";

/// How a URL leads to a Postgres server.
struct Link {
    is_remote: bool,
    sslmode: Option<String>,
}

impl Link {
    /// Reads what libpq would: hosts in the authority or in the query, several of them or none. A
    /// socket is a path, and libpq ignores `sslmode` there.
    fn of(url: &str) -> Self {
        let nothing = Self {
            is_remote: false,
            sslmode: None,
        };
        let Some((_, rest)) = url.split_once("://") else {
            return nothing;
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

/// This machine: no host at all, a socket, or loopback.
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
    fn a_server_on_another_machine_proves_who_it_is() {
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
    fn this_machine_and_sockets_need_no_tls() {
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
    fn a_weak_link_is_refused() {
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
