//! Checks of the database: connection, schema, clock and administrators.

use std::path::Path;
use std::time::Duration;

use super::{Finding, fail, info, ok, warn};
use crate::app;
use crate::cli::command::{clock, entropy};
use crate::config::Config;
use crate::config::limits::{CLOCK_OFF_STOPS, CLOCK_OFF_WARNS, DATABASE_BEHIND};
use crate::db::{Schema, Store};
use crate::feed::AuditMark;

/// Time after which every node would have sealed an event.
const SEALED_BY: Duration = Duration::from_secs(60);

/// Returns the findings, and the database if the other checks can use it.
pub async fn check(config: &Config) -> (Option<Store>, Vec<Finding>) {
    let url = config.database_url();
    if let Some(path) = url.strip_prefix("sqlite:")
        && !Path::new(path).exists()
    {
        let what = format!("{path} does not exist yet; the first start creates it");
        return (None, vec![warn("database", what)]);
    }
    let store = match app::open(config, entropy()) {
        Ok(store) => store,
        Err(error) => {
            let what = format!("{error}; check `database.url`");
            return (None, vec![fail("database", what)]);
        }
    };
    let schema = schema(config, &store);
    if schema.verdict != super::Verdict::Ok {
        return (None, vec![schema]);
    }
    let mut findings = vec![schema];
    findings.extend(damage(&store).await);
    findings.push(restore(&store).await);
    findings.push(clock_skew(&store).await);
    findings.push(audit_log(config, &store).await);
    findings.push(administrators(&store).await);
    findings.extend(shared_resource_servers(&store).await);
    (Some(store), findings)
}

fn schema(config: &Config, store: &Store) -> Finding {
    let kind = match store.is_sqlite() {
        true => "SQLite",
        false => "PostgreSQL",
    };
    match store.schema() {
        Err(error) => fail("database", error.to_string()),
        Ok(Schema::Current) => ok("database", format!("{kind}, reachable, schema current")),
        Ok(Schema::Newer(_)) => fail(
            "database",
            "migrated by a newer version of portcullis: run that version here",
        ),
        Ok(Schema::Older(missing)) => {
            let what = format!("the schema lacks {} migration(s)", missing.len());
            match config.migrates_itself() {
                true => warn("database", format!("{what}; the next start applies them")),
                false => fail("database", format!("{what}: run `portcullis migrate up`")),
            }
        }
    }
}

/// Checks an embedded database for damaged pages. A server detects one only when it reads it.
async fn damage(store: &Store) -> Option<Finding> {
    if !store.is_sqlite() {
        return None;
    }
    let advice = "stop the server and restore a backup: `portcullis restore`";
    Some(match store.quick_check().await {
        Ok(errors) if errors.is_empty() => ok("database file", "no damage found"),
        Ok(errors) => fail("database file", format!("{}; {advice}", errors.join("; "))),
        Err(error) => fail("database file", format!("{error}; {advice}")),
    })
}

/// Checks whether the database awaits a recovery.
async fn restore(store: &Store) -> Finding {
    match store.read(|tx| tx.read_head()).await {
        Err(error) => fail("restore", error.to_string()),
        Ok(head) if head.restored_at.is_some() => fail(
            "restore",
            "the database was restored from an older copy; nothing is issued until `portcullis recover`",
        ),
        Ok(_) => ok("restore", "no restored copy was detected"),
    }
}

/// Checks that recent events are sealed, and that the chain contains the head beside the KEK. `audit verify` checks
/// every seal.
async fn audit_log(config: &Config, store: &Store) -> Finding {
    let keks = config.keys.kek.clone();
    let by = clock().now() - SEALED_BY;
    let read = store.read(move |tx| {
        let secrets = tx.list_server_secrets()?;
        let first = secrets.first();
        let mark = first.and_then(|first| AuditMark::beside(&keks, &first.id));
        let is_missing = match mark.and_then(|mark| mark.read()) {
            None => false,
            Some(marked) => !tx.continues_head(marked.seq, &marked.seal, marked.at)?,
        };
        // Commands can change the database before the first server starts.
        let is_started = !secrets.is_empty();
        Ok((
            is_missing,
            is_started && !tx.list_unsealed_audit(by, 1)?.is_empty(),
        ))
    });
    match read.await {
        Err(error) => fail("audit log", error.to_string()),
        Ok((true, _)) => fail(
            "audit log",
            "events that this machine has seen are missing: run `portcullis audit verify`",
        ),
        Ok((_, true)) => warn(
            "audit log",
            "events without a seal: start a server on this database, or see `audit.unsealed` in its log",
        ),
        Ok(_) => ok(
            "audit log",
            "sealed, with the head that this machine has seen",
        ),
    }
}

/// Compares the clocks of this machine and the database. An embedded database has no clock, so its last timestamp is
/// used.
async fn clock_skew(store: &Store) -> Finding {
    let before = clock().now();
    let (database, written) = match store.read(|tx| tx.read_head()).await {
        Ok(head) => (head.database, head.beat),
        Err(error) => return fail("clock", error.to_string()),
    };
    let here = clock().halfway(before);
    let Some(database) = database else {
        return match written.since(here) > DATABASE_BEHIND {
            true => fail(
                "clock",
                format!(
                    "the clock of this machine shows {here}, but the database was written at {written}: set the clock"
                ),
            ),
            false => ok("clock", "not behind the last timestamp of the database"),
        };
    };
    let difference = here.since(database).max(database.since(here));
    let what = format!("{} ms off the database's", difference.as_millis());
    if difference > CLOCK_OFF_STOPS {
        fail(
            "clock",
            format!("{what}: no tokens are issued; run NTP on both"),
        )
    } else if difference > CLOCK_OFF_WARNS {
        warn("clock", format!("{what}: run NTP on both"))
    } else {
        ok("clock", what)
    }
}

/// Names clients that are the resource server for several audiences. Introspection reports a token of each of them as
/// active, so a service that does not check `aud` itself would accept the tokens of the others.
async fn shared_resource_servers(store: &Store) -> Option<Finding> {
    let clients = match store.read(|tx| tx.list_clients()).await {
        Ok(clients) => clients,
        Err(error) => return Some(fail("resource servers", error.to_string())),
    };
    let shared: Vec<String> = clients
        .iter()
        .filter(|client| client.disabled_at.is_none() && client.serves.len() > 1)
        .map(|client| format!("`{}`", client.id))
        .collect();
    (!shared.is_empty()).then(|| {
        let what = format!(
            "clients that serve several audiences: {}. Register one client for each service, or make sure that each service checks `aud`: introspection reports a token for any of the audiences as active",
            shared.join(", ")
        );
        warn("resource servers", what)
    })
}

async fn administrators(store: &Store) -> Finding {
    let now = clock().now();
    let read = store.read(move |tx| {
        let mut admins = tx.list_admins()?;
        admins.retain(|admin| admin.is_live(now));
        let mut open = Vec::new();
        for admin in &admins {
            let user = tx.find_user(&admin.user_id)?;
            if user.is_some_and(|user| user.disabled_at.is_none()) {
                open.push(admin.clone());
            }
        }
        Ok((admins, open))
    });
    let (admins, open) = match read.await {
        Ok(read) => read,
        Err(error) => return fail("administrator", error.to_string()),
    };
    // Until there is an admin API, a missing administrator prevents nothing.
    if admins.is_empty() {
        return info(
            "administrator",
            "no administrator exists, and none is needed: the command line administers the server until the admin API is released. `portcullis setup link` or `portcullis user create NAME --admin` creates one",
        );
    }
    if open.is_empty() {
        // No link is suggested, because it could let an administrator in who was locked out on purpose.
        return info(
            "administrator",
            "all are locked: run `portcullis user unlock NAME`, or `portcullis user create NAME --admin`",
        );
    }
    if open.iter().all(|admin| admin.expires_at.is_some()) {
        return info(
            "administrator",
            "there is no permanent one: run `portcullis user create NAME --admin`",
        );
    }
    ok("administrator", "there is one")
}
